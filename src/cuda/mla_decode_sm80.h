/* mla_decode_sm80.h — what mla_decode_sm80.cu and its record in mla_decode_sm80.c share: sizes, shared
 * memory, launch arguments. docs/decode-and-mla.md explains the schedule. */
#ifndef ATTN_MLA_DECODE_SM80_H
#define ATTN_MLA_DECODE_SM80_H
#include "decode_schedule.h"

enum {
    MLA80_QK = 576, MLA80_V = 512,      /* V is the first 512 columns of K */
    MLA80_KEYS = 32,                    /* of a K tile: a block of the schedule */
    MLA80_THREADS = 256,
    MLA80_ROW_BYTES = MLA80_QK * 2,
    MLA80_TILE_BYTES = MLA80_KEYS * MLA80_ROW_BYTES,
    MLA80_STAGES_MOST = 5,              /* K tiles in shared memory, all but one under way */
    MLA80_S_STRIDE = 144,               /* bytes between rows of S: 32 floats, 16 against bank conflicts */
    MLA80_STATE_BYTES = 768             /* items, factors, a flag */
};

/* Rows of a tile: 16, 32 or 64 (query token, head) pairs. With up to 32 rows Q moves to registers and S takes
 * its place; with 64 S has a place of its own, in two halves of the depth. */
static inline int mla_decode_sm80_smem(int rows, int stages) {
    return rows * MLA80_ROW_BYTES + stages * MLA80_TILE_BYTES + (rows == 64 ? 2 * rows * MLA80_S_STRIDE : 0) +
           MLA80_STATE_BYTES;
}

typedef struct mla_decode_sm80_args {
    attn_problem p;
    attn_tensors t;
    attn_decode_shape shape;    /* an item is all rows of one K/V head of a sequence */
    const void *schedule;       /* NULL: `even` says it */
    attn_decode_line even;
    float   *o_parts, *lse_parts;   /* decode_merge.h */
    float    scale_log2;        /* scores to powers of 2: scale * log2(e) */
    int32_t  group;             /* query heads of a K/V head */
    int32_t  tiles;             /* blocks side by side on an item */
    int32_t  page_shift;        /* page_size = 2^page_shift, or -1 */
    int32_t  stages;
    uint32_t hash;              /* of the shape */
} mla_decode_sm80_args;
#endif
