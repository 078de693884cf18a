/* flash_fwd_sm90.h — what flash_fwd_sm90.cu and its record agree on: the table of tiles and the launch
 * arguments. docs/hopper-forward.md explains the schedule that these numbers feed. */
#ifndef ATTN_FLASH_FWD_SM90_H
#define ATTN_FLASH_FWD_SM90_H
#include "attn/attn.h"

/* FULL: no mask but the end of the keys. CAUSAL: and the diagonal. GENERAL: window, softcap, ALiBi, any
 * scale. BIASED: all that, additive bias and boolean mask. */
enum { SM90_FULL = 0, SM90_CAUSAL = 1, SM90_GENERAL = 2, SM90_BIASED = 3 };

/* T(qk, v, kind, keys, warpgroups, stages, pingpong, lazy): a kernel for head dims up to qk and v.
 *   keys       of a K/V tile; S takes keys / 2 registers a thread, P keys / 4, O v / 2, all else
 *              about 30; a thread has 224 with 2 consumer warpgroups, 160 with 3
 *   warpgroups of 64 query rows each; the tile is 64 * warpgroups rows high
 *   stages     K and V tiles in shared memory (227 KB: SM90_SMEM)
 *   pingpong   1: named barriers make the warpgroups take turns at the tensor cores
 *   lazy       1: O is rescaled only when a row's maximum grew by more than 2^8; the same but for rounding
 * Why these numbers (H100, TFLOP/s at 8k keys; bench/notes/hopper-forward.md has the other sequence lengths):
 *   64   3 warpgroups, since softmax and matrix work take equally long and three streams hide more than two.
 *        full: in turns 529, not 496, lazy 509; causal: in turns and lazy 493, neither 472, lazy 460,
 *        3 stages 460
 *   128  full: 176 keys, in turns, lazy 669; 128 keys 644; not in turns 643; not lazy 605
 *        causal: 128 keys, lazy 618 (176 keys waste more at the diagonal: 585; 96 keys: 561); in turns 581;
 *        not lazy 568; 3 stages 587
 *   256  80 keys, all that shared memory holds beside Q; lazy 750, not lazy 689, in turns 717 (and spills),
 *        64 keys 681
 *   96, 192, GENERAL, BIASED: the largest tile without spills; alternatives not measured */
#if !defined(ATTN_SM90_TILES) /* a tuning build brings its own */
#define ATTN_SM90_TILES(T) \
    T(64, 64, SM90_FULL, 128, 3, 2, 1, 0) \
    T(64, 64, SM90_CAUSAL, 128, 3, 2, 1, 1) \
    T(64, 64, SM90_GENERAL, 128, 2, 2, 0, 0) \
    T(64, 64, SM90_BIASED, 64, 2, 2, 0, 0) \
    T(96, 96, SM90_FULL, 128, 2, 2, 0, 1) \
    T(96, 96, SM90_CAUSAL, 128, 2, 2, 0, 1) \
    T(128, 128, SM90_FULL, 176, 2, 2, 1, 1) \
    T(128, 128, SM90_CAUSAL, 128, 2, 2, 0, 1) \
    T(128, 128, SM90_GENERAL, 128, 2, 2, 0, 0) \
    T(128, 128, SM90_BIASED, 64, 2, 2, 0, 0) \
    T(192, 128, SM90_FULL, 128, 2, 2, 0, 1) \
    T(192, 128, SM90_CAUSAL, 128, 2, 2, 0, 1) \
    T(192, 192, SM90_FULL, 112, 2, 2, 0, 1) \
    T(192, 192, SM90_CAUSAL, 112, 2, 2, 0, 1) \
    T(256, 256, SM90_FULL, 80, 2, 2, 0, 1) \
    T(256, 256, SM90_CAUSAL, 80, 2, 2, 0, 1) \
    T(256, 256, SM90_GENERAL, 64, 2, 2, 0, 0) \
    T(256, 256, SM90_BIASED, 32, 2, 2, 0, 0)
#endif

/* The entry point of one row of the table, and its name. */
#define SM90_SYMBOL(dtype, qk, v, kind, keys, warpgroups, stages, pingpong, lazy) \
    flash_fwd_sm90_##dtype##_##qk##_##v##_##kind##_##keys##x##warpgroups##_##stages##pingpong##lazy
#define SM90_TEXT(symbol) SM90_TEXT_OF(symbol)
#define SM90_TEXT_OF(symbol) #symbol

/* SLOTS: of tile records. With 2, the record after next waits until this tile is stored;
 * tiles of one or two key tiles then leave the copy engine idle (3: +5 % at 512 keys causal; 4: no more). */
enum { SM90_TILE_SLOTS = 3, SM90_TILE_BYTES = 112, SM90_BARRIER_BYTES = 256 };

/* Shared memory of a block: alignment, Q, the rings of K and V, then barriers and tile records. */
#define SM90_CHUNKS(dim) (((dim) + 63) / 64)
#define SM90_SMEM(qk, v, keys, warpgroups, stages) \
    (1024 + SM90_CHUNKS(qk) * 64 * (warpgroups) * 128 + \
     (stages) * (SM90_CHUNKS(qk) + SM90_CHUNKS(v)) * (keys) * 128 + \
     SM90_BARRIER_BYTES + SM90_TILE_SLOTS * SM90_TILE_BYTES)

typedef struct flash_fwd_sm90_args {
    attn_problem problem;
    attn_tensors tensors;
    int *counter; /* next tile to hand out, 0 before the launch; NULL: block b takes b, b + blocks, ... */
    float  scale_log2;      /* scores to powers of 2: scale * log2(e) */
    int pack_shift; /* 2^pack_shift query heads of one K/V head share a tile, row = i << pack_shift | head */
    int    tile_heads;      /* heads that tiles are counted over: q_heads >> pack_shift */
    int    group_heads;     /* heads whose K and V stay in L2 while their tiles run, longest first */
    int    page_rows;       /* keys of one copy: the tile, or less where pages are smaller */
    int    scan_tail;       /* 1: rows after the last key exist in memory and may hold anything */
} flash_fwd_sm90_args;
#endif
