/* kv_append_cuda.h — what the append's host and device parts agree on: how the work is cut into blocks. */
#ifndef KV_APPEND_CUDA_H
#define KV_APPEND_CUDA_H
#include <stdint.h>

/* A thread moves chunks: 8 elements, or 1 where nothing aligns; and of two that are turned together both. */
enum { APPEND_THREADS = 128, APPEND_WIDE = 8, APPEND_MOST_CHUNKS = 4 };

/* Blocks, in this order: K rows x k_parts, V rows x v_parts, Q rows x q_parts, then lengths.
 * A part: `chunks` of each thread, out of a token's row of all heads. */
typedef struct kv_append_work {
    int     chunks;                 /* 1 where that fills the device, else up to 4: finding a
                                       row's place costs */
    int     k_head, v_head, q_head; /* of a head: those that are moved, without second halves */
    int64_t rows, q_rows;           /* token rows of k_new and of q, batch included */
    int64_t k_parts, v_parts, q_parts;
    int64_t units;                  /* all blocks together */
} kv_append_work;
#endif
