/* decode_merge.h — joining the parts of an item: O = sum of w_p O_p / (sum of w_p + sink),
 * w_p = 2^(LSE_p - top). Partial results, f32, written by the decode kernels for items of more
 * than one part (decode_schedule.h):
 *     o    [slot][tile_rows][o_stride]   O of the part alone, divided by the part's own sum;
 *                                        0 for a row without keys
 *     lse  [slot][tile_rows]             base 2: log2 of the part's sum of 2^(score * log2(e));
 *                                        -inf without keys
 * Row r of tile m of a K/V head g is R = m * tile_rows + r: query R / group, head g * group + R % group.
 * Parts are added in their order, so that a result repeats bit by bit. */
#ifndef ATTN_DECODE_MERGE_H
#define ATTN_DECODE_MERGE_H
#include "decode_schedule.h"

typedef struct attn_decode_merge_args {
    attn_problem p;
    attn_tensors t;
    attn_decode_shape shape;
    const void  *schedule;      /* NULL: slots by attn_decode_even_slots from `even` */
    attn_decode_line even;
    const float *o, *lse;
    int32_t tile_rows, m_tiles; /* shape.tiles = kv_heads * m_tiles */
    int32_t o_stride;           /* floats between rows, a multiple of 4 */
    int32_t rows;               /* of a tile that any item uses; 0: all */
    uint32_t hash;              /* of the shape; the launch sets it */
    int32_t share;              /* warps that share a row, 1 or 4; 0: the launch decides. Its choice
                                   depends on the batch, and the order of the sums on it: not for strict
                                   problems, they have 1 */
} attn_decode_merge_args;

static inline int32_t attn_decode_o_stride(int64_t v_dim) { return (int32_t)((v_dim + 3) / 4 * 4); }
/* Bytes of the partial results, O first. */
static inline int64_t attn_decode_parts_bytes(const attn_decode_shape *shape, int64_t tile_rows,
                                              int64_t v_dim) {
    return attn_decode_parts_max(shape) * tile_rows * (attn_decode_o_stride(v_dim) + 1) * 4;
}

#if !defined(__CUDACC__)
attn_status attn_decode_merge_prepare(attn_plan *plan, int slot);
/* Queue the merge. overlap: it may be started before the kernel before it has ended (sm_9x devices only). */
attn_status attn_decode_merge_launch(const attn_plan *plan, int slot, const attn_decode_merge_args *args,
                                     int overlap, void *stream);
#endif
#endif
