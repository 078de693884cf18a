/* decode_merge.c — host side of decode_merge.cu. */
#include "decode_merge.h"
#include "launch.h"

ATTN_CUDA_IMAGE(decode_merge);

/* Warps of a block, as in decode_merge.cu; rows that keep a device busy. */
enum { WARPS = 4, MANY_ROWS = 1024 };

/* Then a row is shared by several blocks, and each of its parts by the warps of a block. */
static int few_rows(const attn_problem *p) {
    return !p->strict && p->batch * p->q_heads * p->q_len <= MANY_ROWS;
}

attn_status attn_decode_merge_prepare(attn_plan *plan, int slot) {
    const int64_t v_dim = plan->problem.v_dim;
    const char *entry = v_dim <= 128 || few_rows(&plan->problem) ? "decode_merge_128"
                      : v_dim <= 256 ? "decode_merge_256" : "decode_merge_512";
    return attn_cuda_prepare(plan, slot, ATTN_CUDA_IMAGE_OF(decode_merge), entry, 0);
}

attn_status attn_decode_merge_launch(const attn_plan *plan, int slot, const attn_decode_merge_args *args,
                                     int overlap, void *stream) {
    attn_decode_merge_args a = *args;
    if (!a.rows) a.rows = a.tile_rows;
    a.hash = attn_decode_hash(&a.shape);
    const int64_t items = attn_decode_items(&a.shape);
    if (!a.share) a.share = few_rows(&a.p) ? WARPS : 1;
    const int64_t rows_of_block = WARPS / a.share, row_blocks = (a.rows + rows_of_block - 1) / rows_of_block;
    const int64_t column_blocks = few_rows(&a.p) ? (a.p.v_dim + 127) / 128 : 1;
    const attn_cuda_grid grid = { .blocks = items * row_blocks, .blocks_y = column_blocks,
                                  .threads = 32 * WARPS, .overlap = overlap };
    void *arguments[] = { &a };
    return attn_cuda_launch(plan, slot, &grid, stream, arguments);
}
