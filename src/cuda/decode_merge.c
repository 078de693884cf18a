/* decode_merge.c — host side of decode_merge.cu. */
#include "decode_merge.h"
#include "launch.h"

ATTN_CUDA_IMAGE(decode_merge);

enum { WARPS = 4, MANY_ROWS = 1024 };   /* warps of a block, as in decode_merge.cu; rows that keep a device busy */

attn_status attn_decode_merge_prepare(attn_plan *plan, int slot) {
    const int64_t v_dim = plan->problem.v_dim;
    const char *entry = v_dim <= 128 ? "decode_merge_128" : v_dim <= 256 ? "decode_merge_256" : "decode_merge_512";
    return attn_cuda_prepare(plan, slot, ATTN_CUDA_IMAGE_OF(decode_merge), entry, 0);
}

attn_status attn_decode_merge_launch(const attn_plan *plan, int slot, const attn_decode_merge_args *args, int overlap,
                                     void *stream) {
    attn_decode_merge_args a = *args;
    if (!a.rows) a.rows = a.tile_rows;
    a.hash = attn_decode_hash(&a.shape);
    const int64_t items = attn_decode_items(&a.shape);
    if (!a.share) a.share = a.p.strict || items * a.rows > MANY_ROWS ? 1 : WARPS;
    const int64_t rows_of_block = WARPS / a.share, row_blocks = (a.rows + rows_of_block - 1) / rows_of_block;
    const attn_cuda_grid grid = { .blocks = items * row_blocks, .threads = 32 * WARPS, .overlap = overlap };
    void *arguments[] = { &a };
    return attn_cuda_launch(plan, slot, &grid, stream, arguments);
}
