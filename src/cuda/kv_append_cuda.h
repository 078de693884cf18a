/* kv_append_cuda.h — what the append's host and device parts agree on: how the work is cut into blocks. */
#ifndef KV_APPEND_CUDA_H
#define KV_APPEND_CUDA_H
#include <stdint.h>

enum { APPEND_THREADS = 128, APPEND_WIDE = 8 };   /* a thread moves one chunk: 8 elements, or 1 where nothing aligns */

/* Blocks, in this order: K rows x k_parts, V rows x v_parts, Q rows x q_parts, then lengths. A part: one chunk per
 * thread of a token's row, all heads. */
typedef struct kv_append_work {
    int64_t rows, q_rows;           /* token rows of k_new and of q, batch included */
    int64_t k_parts, v_parts, q_parts;
    int64_t units;                  /* all blocks together */
} kv_append_work;
#endif
