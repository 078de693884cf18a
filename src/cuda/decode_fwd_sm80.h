/* decode_fwd_sm80.h — what decode_fwd_sm80.cu and its record in decode_fwd_sm80.c share: tiles, parameters. */
#ifndef ATTN_DECODE_FWD_SM80_H
#define ATTN_DECODE_FWD_SM80_H
#include "decode_schedule.h"

/* One row a tile; the first whose dims cover the problem's, and whose rows its packed rows if there is one, is taken.
 *   qk v         head dims the tile holds; smaller ones are padded with zeros in shared memory
 *   rows         16-row tiles of packed queries and heads that a block computes
 *   warps        of a block; each walks its own keys
 *   keys         keys of a warp's step: a block of keys is warps * keys
 *   stages       steps of K and V of a warp in shared memory, all but one under way
 *   blocks       blocks of threads that share a multiprocessor
 *   rich_blocks  the same for the entry that changes scores (rows 1 only); 0: there is none
 * Why: bandwidth needs bytes under way (H100: 40 KB a multiprocessor and more), and nothing else. */
#ifndef DECODE_FWD_SM80_TILES
#define DECODE_FWD_SM80_TILES(T) \
    /*  qk   v   rows warps keys stages blocks rich_blocks */ \
    T(  64,  64, 1,   4,    16,  4,     3,     2) \
    T(  64,  64, 4,   4,    16,  4,     2,     0) \
    T( 128, 128, 1,   4,    16,  2,     3,     2) \
    T( 128, 128, 2,   4,    16,  2,     2,     0) \
    T( 192, 128, 1,   4,    16,  2,     2,     2) \
    T( 256, 256, 1,   2,    16,  2,     3,     2)
#endif

/* Dynamic shared memory of a block: Q and the ring, which the sums of the warps pass through at the end of a part. */
#define DECODE_FWD_SM80_RING(qk, v, warps, keys, stages) ((warps) * (keys) * (stages) * ((qk) + (v)) * 2)
#define DECODE_FWD_SM80_SMEM(qk, v, rows, warps, keys, stages) \
    ((rows) * 16 * (qk) * 2 + DECODE_FWD_SM80_RING(qk, v, warps, keys, stages))

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
} decode_fwd_args;
#endif
