/* decode_merge.c — host side of decode_merge.cu. */
#include "decode_merge.h"
#include "launch.h"

ATTN_CUDA_IMAGE(decode_merge);

enum { WARPS = 4 };     /* rows of a block, as in decode_merge.cu */

attn_status attn_decode_merge_prepare(attn_plan *plan, int slot) {
    const int64_t v_dim = plan->problem.v_dim;
    const char *entry = v_dim <= 128 ? "decode_merge_128" : v_dim <= 256 ? "decode_merge_256" : "decode_merge_512";
    return attn_cuda_prepare(plan, slot, ATTN_CUDA_IMAGE_OF(decode_merge), entry, 0);
}

attn_status attn_decode_merge_launch(const attn_plan *plan, int slot, const attn_decode_merge_args *args, int overlap,
                                     void *stream) {
    const int64_t row_blocks = (args->tile_rows + WARPS - 1) / WARPS;
    const attn_cuda_grid grid = { .blocks = attn_decode_items(&args->shape) * row_blocks, .threads = 32 * WARPS,
                                  .overlap = overlap };
    void *arguments[] = { (void *)(uintptr_t)args };
    return attn_cuda_launch(plan, slot, &grid, stream, arguments);
}
