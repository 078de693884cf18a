/* flash_fwd_sm80.h — what flash_fwd_sm80.cu and its record in flash_fwd_sm80.c share: the tile table and the kernel's
 * parameter block. */
#ifndef ATTN_FLASH_FWD_SM80_H
#define ATTN_FLASH_FWD_SM80_H
#include "attn/attn.h"

/* One row a tile, smallest first: the first whose dims cover the problem's is taken.
 *   qk v        head dims the tile holds; smaller ones are padded with zeros in shared memory
 *   warps rows  warps of a block; 16-row tiles of a warp (block rows = warps * rows * 16)
 *   keys        keys of a step; K and V of two steps lie in shared memory
 *   blocks      blocks that share a multiprocessor (sets the register limit)
 * and the same for the rich entry, which changes scores and loads row by row. Reasons (H100, bench/notes/cuda-sm80.md):
 * two row tiles a warp, because each fragment of K and V then feeds twice the mma; as many keys as the registers hold,
 * because an mma that continues a sum waits for the one 16 before; at v 256 O takes the registers of the second row
 * tile. The rich entries are smaller: options need registers, and a device with 100 KB a block must hold them. */
#define FLASH_FWD_SM80_TILES(T) \
    /*  qk   v   warps rows keys blocks   rich: warps rows keys blocks */ \
    T(  64,  64, 4,    2,   128, 2,             4,    2,   32,  2) \
    T(  96,  96, 4,    2,   64,  2,             4,    2,   32,  2) \
    T( 128, 128, 4,    2,   64,  2,             4,    2,   32,  2) \
    T( 192, 128, 4,    2,   64,  1,             4,    2,   32,  2) \
    T( 256, 256, 8,    1,   64,  1,             4,    1,   32,  2)

/* Dynamic shared memory of a block, bytes: Q, two steps of K and V, a few numbers for each warp. */
#define FLASH_FWD_SM80_SMEM(qk, v, warps, rows, keys) \
    ((warps) * (rows) * 16 * (qk) * 2 + 2 * (keys) * ((qk) + (v)) * 2 + (2 + (warps)) * 16)

typedef struct flash_fwd_args {
    attn_problem p;
    attn_tensors t;
    float    scale_log2;        /* log2(e) * scale; 1 where the scores are already in log2 units (rich) */
    int32_t  vector;            /* 1: rows of Q, K, V, O can be copied 16 bytes at a time */
    uint32_t row_blocks;        /* blocks along a sequence's queries */
    uint32_t heads;             /* batch * q_heads */
    uint32_t group;             /* heads whose blocks run together, so that their K and V share the L2 cache */
} flash_fwd_args;
#endif
