/* decode_fwd_sm80.h — what decode_fwd_sm80.cu and its record in decode_fwd_sm80.c
 * share: tiles, parameters. */
#ifndef ATTN_DECODE_FWD_SM80_H
#define ATTN_DECODE_FWD_SM80_H
#include "decode_schedule.h"

/* One row a tile; the first whose dims cover the problem's, and whose rows its packed rows
 * if there is one, is taken.
 *   qk v   head dims the tile holds; smaller ones are padded with zeros in shared memory
 *   rows   16-row tiles of packed queries and heads that a block computes
 *   rich   1: there also is an entry that changes scores
 * How many warps a block has and how many steps each has under way is chosen for the device
 * (decode_fwd_sm80.c): bandwidth needs bytes under way, 128 KB a multiprocessor on an H100. */
#ifndef DECODE_FWD_SM80_TILES
#define DECODE_FWD_SM80_TILES(T) \
    /*  qk   v   rows rich */ \
    T(  64,  64, 1,   1) \
    T(  64,  64, 4,   0) \
    T( 128, 128, 1,   1) \
    T( 128, 128, 2,   0) \
    T( 192, 128, 1,   1) \
    T( 256, 256, 1,   1)
#endif
enum {
    DECODE_FWD_SM80_KEYS = 16,          /* of a warp's step; a block of keys is warps * 16 */
    DECODE_FWD_SM80_WARPS_MOST = 8,
    DECODE_FWD_SM80_STAGES_MOST = 6,    /* steps of a warp in shared memory, all but one under way */
    DECODE_FWD_SM80_PASS_ROWS = 4       /* rows whose sums meet in shared memory at a time */
};

/* Dynamic shared memory of a block: Q, the sums of its warps, their rings. */
static inline int decode_fwd_sm80_smem(int qk, int v, int rows, int warps, int stages) {
    const int sums = DECODE_FWD_SM80_PASS_ROWS * v * 4, stage = DECODE_FWD_SM80_KEYS * (qk + v) * 2;
    return rows * 16 * qk * 2 + warps * (sums + stages * stage);
}

typedef struct decode_fwd_args {
    attn_problem p;
    attn_tensors t;
    attn_decode_shape shape;
    const void *schedule;       /* NULL: `even` says it */
    attn_decode_line even;
    float   *o_parts, *lse_parts;   /* decode_merge.h */
    float    scale_log2;        /* log2(e) * scale; 1 where options change the scores */
    int32_t  group;             /* query heads of a K/V head */
    int32_t  m_tiles;           /* tiles of packed rows of a K/V head */
    int32_t  o_stride;          /* floats between rows of o_parts */
    int32_t  by_row;            /* 1: pages end within a warp's step: look up the page of every key */
    int32_t  page_shift;        /* page_size = 2^page_shift, or -1 */
    int32_t  block_shift;       /* a block has 2^block_shift keys */
    int32_t  stages;
    uint32_t hash;              /* of the shape */
    int32_t  guesses;           /* 1: a block reads schedule, seqused_kv and block table, all that say what
                                   to do, before what is queued has ended, and once more after */
} decode_fwd_args;
#endif
