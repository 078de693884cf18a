/* flash_fwd_sm80.h — what flash_fwd_sm80.cu and its record in flash_fwd_sm80.c share: the tile table and the
 * kernel's parameter block. */
#ifndef ATTN_FLASH_FWD_SM80_H
#define ATTN_FLASH_FWD_SM80_H
#include "attn/attn.h"

/* One row a tile, smallest first: the first whose dims cover the problem's is taken.
 *   qk v        head dims the tile holds; smaller ones are padded with zeros in shared memory
 *   warps rows  warps of a block; 16-row tiles of a warp (block rows = warps * rows * 16)
 *   keys        keys of a step
 *   stages      steps of K and V in shared memory
 *   blocks      blocks that share a multiprocessor (sets the register limit)
 * and the same for the rich entry, which changes scores and loads row by row. Reasons (H100,
 * bench/notes/cuda-sm80.md): two row tiles a warp, because each fragment of K and V then feeds twice the mma;
 * as many keys as the registers hold, because an mma that continues a sum waits for the one 16 before; at v
 * 256 O takes the registers of the second row tile. The rich entries are smaller: options need registers, and
 * a device with 100 KB a block must hold them. */
#ifndef FLASH_FWD_SM80_TILES
#define FLASH_FWD_SM80_TILES(T) \
    /*  qk   v   warps rows keys stages blocks   rich: warps rows keys blocks */ \
    T(  64,  64, 4,    2,   128, 2,     2,             4,    2,   32,  2) \
    T(  96,  96, 4,    2,   64,  2,     2,             4,    2,   32,  2) \
    T( 128, 128, 4,    2,   64,  2,     2,             4,    2,   32,  2) \
    T( 192, 128, 4,    2,   64,  2,     1,             4,    2,   32,  2) \
    T( 256, 256, 4,    1,   64,  1,     2,             4,    1,   32,  2)
#endif

/* Dynamic shared memory of a block, bytes: Q, the stages of K and V, a few numbers for each warp. */
#define FLASH_FWD_SM80_SMEM(qk, v, warps, rows, keys, stages) \
    ((warps) * (rows) * 16 * (qk) * 2 + (stages) * (keys) * ((qk) + (v)) * 2 + (2 + (warps)) * 16)

/* The f32 kernel's tiles: head dims, rows and keys of a thread (block: 16 * rows queries, 16 * keys keys a
 * step). Larger dims leave less shared memory and fewer registers for rows. */
#define FLASH_FWD_F32_SM80_TILES(T) \
    /*  qk   v   rows keys */ \
    T(  64,  64, 8,   8) \
    T( 128, 128, 8,   6) \
    T( 256, 256, 8,   2)
#define FLASH_FWD_F32_SM80_SMEM(qk, v, rows, keys) \
    (4 * (16 * (rows) * ((qk) + 4) + 16 * (keys) * ((qk) + 4 + (v) + 4) + 16 * (rows) * (16 * (keys) + 4)))

typedef struct flash_fwd_args {
    attn_problem p;
    attn_tensors t;
    float scale_log2; /* log2(e) * scale; where options change the scores: 1, or 0 in the f32 kernel */
    int32_t  vector;            /* 1: rows of Q, K, V, O can be copied 16 bytes at a time */
    uint32_t row_blocks;        /* blocks along a sequence's queries */
    uint32_t heads;             /* batch * q_heads */
    uint32_t group; /* heads whose blocks run together, so that their K and V share the L2 cache */
} flash_fwd_args;

/* How many heads' blocks run side by side. Rows of one length: the query heads of one K/V head, so that few K
 * and V are in flight at a time and stay in the L2 cache. Rows of different lengths: a group also fills the
 * device (slots: blocks that run at once) four times, the longest rows first, so that it ends evenly; as far
 * as K and V of a group fit half of the L2 cache. Whole groups of query heads, all about the same size. */
static inline int64_t attn_flash_group(const attn_problem *p, int64_t row_blocks, int64_t l2_bytes,
                                       int64_t slots) {
    const int64_t heads = p->batch * p->q_heads, per_kv_head = p->q_heads / p->kv_heads;
    const int64_t bytes = (p->kv_len + 1) * (p->qk_dim + p->v_dim) * (p->dtype == ATTN_F32 ? 4 : 2);
    const int uneven = p->causal || p->window_left >= 0 || p->window_right >= 0;
    if (!uneven) return per_kv_head;
    int64_t group = l2_bytes / 2 / bytes * per_kv_head;
    if (group < 4 * slots / (row_blocks + 1)) group = 4 * slots / (row_blocks + 1);
    if (group < 1) group = 1;
    const int64_t groups = (heads + group - 1) / group, even = groups ? (heads + groups - 1) / groups : 1;
    return (even + per_kv_head - 1) / per_kv_head * per_kv_head;
}
#endif
