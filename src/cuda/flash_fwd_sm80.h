/* flash_fwd_sm80.h — what flash_fwd_sm80.cu and its record in flash_fwd_sm80.c share: the tile table and the kernel's
 * parameter block. */
#ifndef ATTN_FLASH_FWD_SM80_H
#define ATTN_FLASH_FWD_SM80_H
#include "attn/attn.h"

/* One row a tile, smallest first: the first whose dims cover the problem's is taken.
 *   qk v        head dims the tile holds; smaller ones are padded with zeros in shared memory
 *   warps rows  warps of a block; 16-row tiles of a warp (block rows = warps * rows * 16)
 *   keys        keys of a step; a step's QK^T runs beside the softmax of the step before
 *   stages      steps of K and V in shared memory
 *   q_reg       1: the fragments of Q stay in registers
 *   blocks      blocks that should fit one multiprocessor (sets the register limit)
 * Reasons, H100: two row tiles a warp let each K or V fragment feed two mma; one tile leaves shared memory as the limit.
 * At qk 192 and more two row tiles do not fit 255 registers (O alone would take them). */
#ifndef FLASH_FWD_SM80_TILES
#define FLASH_FWD_SM80_TILES(T) \
    /*  qk   v   warps rows keys stages q_reg blocks */ \
    T(  64,  64, 4,    2,   32,  2,     1,    2) \
    T(  96,  96, 4,    2,   32,  2,     0,    2) \
    T( 128, 128, 4,    2,   32,  2,     0,    2) \
    T( 192, 128, 4,    1,   32,  2,     0,    2) \
    T( 256, 256, 4,    1,   32,  2,     0,    2)
#endif

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
