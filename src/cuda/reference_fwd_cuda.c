/* reference_fwd_cuda.c — the record of reference_fwd_cuda.cu. */
#include "launch.h"

ATTN_CUDA_IMAGE(reference_fwd_cuda);

enum { WARPS = 4 };     /* rows of a block, one warp each */

/* Each warp keeps its row of Q and of O in shared memory, in f32. At most 32 KB. */
static int smem_bytes(const attn_problem *p) { return WARPS * (int)(p->qk_dim + p->v_dim) * 4; }

static const char *refuse(const attn_problem *p) {
    int64_t items;
    const int fits = attn_multiply(p->batch, p->q_heads, &items) && attn_multiply(items, p->q_len, &items);
    return fits ? NULL : "batch * q_heads * q_len overflows 64 bits";
}

static attn_status prepare(attn_plan *plan) {
    const attn_problem *p = &plan->problem;
    const char *entry = p->dtype == ATTN_F32 ? "reference_fwd_f32"
                      : p->dtype == ATTN_F16 ? "reference_fwd_f16" : "reference_fwd_bf16";
    return attn_cuda_prepare(plan, 0, ATTN_CUDA_IMAGE_OF(reference_fwd_cuda), entry, smem_bytes(p));
}

static attn_status run(const attn_plan *plan, const attn_tensors *t, void *workspace, void *stream) {
    const attn_problem *p = &plan->problem;
    (void)workspace;
    /* The kernel strides beyond. */
    const int64_t blocks = (p->batch * p->q_heads * p->q_len + WARPS - 1) / WARPS;
    const attn_cuda_grid grid = { .blocks = blocks < INT32_MAX ? blocks : INT32_MAX, .threads = 32 * WARPS,
                                  .smem = smem_bytes(p) };
    void *arguments[] = { (void *)(uintptr_t)p, (void *)(uintptr_t)t };
    return attn_cuda_launch(plan, 0, &grid, stream, arguments);
}

const attn_kernel attn_reference_fwd_cuda = {
    .name = "reference_fwd_cuda",
    .summary = "one warp a row, online softmax in f32, every option; the GPU fallback",
    .pass = ATTN_FORWARD, .device = ATTN_CUDA, .isa = 80, .dtypes = ATTN_DTYPE_BITS_ALL,
    .features = ATTN_NEEDS_ALL, .refuse = refuse, .prepare = prepare, .run = run,
};
