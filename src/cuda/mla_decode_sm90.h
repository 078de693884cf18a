/* mla_decode_sm90.h — what mla_decode_sm90.cu and its record agree on: sizes, shared memory,
 * launch arguments. docs/decode-and-mla.md explains the schedule. */
#ifndef ATTN_MLA_DECODE_SM90_H
#define ATTN_MLA_DECODE_SM90_H
#include "attn/attn.h"
#include "decode_schedule.h"

enum {
    MLA_QK = 576, MLA_V = 512,          /* V is the first 512 columns of K */
    MLA_ROWS = 64,                      /* (query token, head) pairs of a block's tile */
    MLA_KEYS = 64,                      /* keys of a K tile */
    MLA_CHUNK = 64 * 128,               /* bytes of 64 rows x 64 columns, the unit of copies and
                                           matrix operands */
    MLA_CHUNKS = MLA_QK / 64,           /* 8 of K and V, the last of K alone; P takes the last one's place */
    MLA_TILE = MLA_CHUNKS * MLA_CHUNK,
    MLA_BUFFERS = 2,                    /* K tiles in shared memory */
    MLA_THREADS = 384,
    MLA_PART_SLOTS = 2, MLA_PART_BYTES = 80,
    MLA_STATE_BYTES = 1024,             /* per K tile: maxima, factors, flags */
    MLA_SUM_BYTES = 1024,               /* row sums, of each warpgroup, twice */
    MLA_BARRIER_BYTES = 512,
    MLA_SMEM = 1024 + (1 + MLA_BUFFERS) * MLA_TILE + MLA_BUFFERS * MLA_STATE_BYTES + MLA_SUM_BYTES +
               MLA_BARRIER_BYTES + MLA_PART_SLOTS * MLA_PART_BYTES
};

/* x / d = x * magic >> shift for 0 <= x < 2^31: a division costs a cold kernel 400 bytes of instructions. */
typedef struct mla_divider { uint32_t magic, shift; } mla_divider;

typedef struct mla_decode_sm90_args {
    attn_problem problem;
    attn_tensors tensors;
    attn_decode_shape shape;    /* an item is all rows of one K/V head of a sequence */
    const void *schedule;
    float *o_part;              /* [slot][tiles * 64][512], divided by the part's own sum */
    float *lse_part;            /* [slot][tiles * 64], base 2 */
    float  scale_log2;          /* scores to powers of 2: scale * log2(e) */
    int    tiles;               /* blocks side by side on an item, 64 rows each */
    int    group;               /* query heads of a K/V head */
    mla_divider by_group, by_page;
    int    plain;               /* 1: sequence b is row b of Q and of K, from their first token on */
    int    kv_rows;             /* keys that a sequence has room for */
    int    box_rows;            /* keys of one copy, a power of two */
    int    q_even;              /* 1: the rows of an item lie evenly spaced in Q, as the map says */
    attn_decode_line even;      /* without a schedule */
    uint32_t hash;              /* of the shape */
    int    cache_first;         /* 1: K is read once and not ahead, L2 need not keep it */
} mla_decode_sm90_args;
#endif
