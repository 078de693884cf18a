/* flash_fwd_f32_sm80.c — the record of flash_fwd_f32_sm80.cu: which tile, the order of the blocks. */
#include "flash_fwd_sm80.h"
#include "launch.h"

ATTN_CUDA_IMAGE(flash_fwd_f32_sm80);

typedef struct tile { int qk_dim, v_dim, rows, smem; const char *entry; } tile;

#define TILE(qk, v, rows, keys) \
    { qk, v, 16 * (rows), FLASH_FWD_F32_SM80_SMEM(qk, v, rows, keys), "flash_fwd_f32_sm80_" #qk "_" #v },
static const tile tiles[] = { FLASH_FWD_F32_SM80_TILES(TILE) };
enum { TILES = sizeof tiles / sizeof *tiles, THREADS = 256 };
enum { GROUP };     /* numbers of the plan */

static const tile *tile_of(const attn_problem *p) {
    for (int i = 0; i < TILES; i++)
        if (p->qk_dim <= tiles[i].qk_dim && p->v_dim <= tiles[i].v_dim) return &tiles[i];
    return NULL;
}

static const char *refuse(const attn_problem *p) {
    const int64_t longest = (int64_t)1 << 30;
    const tile *t = tile_of(p);
    if (!t) return "head dims up to 256";
    if (p->q_len >= longest || p->kv_len >= longest) return "q_len and kv_len below 2^30";
    int64_t blocks;
    if (!attn_multiply(p->batch, p->q_heads, &blocks) ||
        !attn_multiply(blocks, (p->q_len + t->rows - 1) / t->rows, &blocks) || blocks > INT32_MAX)
        return "batch * q_heads * row blocks below 2^31";
    return NULL;
}

static attn_status prepare(attn_plan *plan) {
    const attn_problem *p = &plan->problem;
    const tile *t = tile_of(p);
    attn_cuda_device device;
    const attn_status status = attn_cuda_device_read(plan->cuda_device, &device);
    if (status) return status;
    plan->schedule[GROUP] = attn_flash_group(p, (p->q_len + t->rows - 1) / t->rows, device.l2_bytes,
                                             device.multiprocessors);
    return attn_cuda_prepare(plan, 0, ATTN_CUDA_IMAGE_OF(flash_fwd_f32_sm80), t->entry, t->smem);
}

static int stride_whole(attn_stride s) { return s.batch % 4 == 0 && s.seq % 4 == 0 && s.head % 4 == 0; }

static attn_status run(const attn_plan *plan, const attn_tensors *t, void *workspace, void *stream) {
    const attn_problem *p = &plan->problem;
    const tile *chosen = tile_of(p);
    (void)workspace;
    const int plain = !(p->softcap > 0) && !p->bias_dtype && !p->has_mask && !p->alibi;
    const uintptr_t bases = (uintptr_t)t->q | (uintptr_t)t->k | (uintptr_t)t->v;
    flash_fwd_args args = {
        .p = *p, .t = *t, .scale_log2 = plain ? p->scale * 1.4426950408889634f : 0,
        .vector = bases % 16 == 0 && p->qk_dim % 4 == 0 && p->v_dim % 4 == 0 && stride_whole(p->q_stride) &&
                  stride_whole(p->k_stride) && stride_whole(p->v_stride),
        .row_blocks = (uint32_t)((p->q_len + chosen->rows - 1) / chosen->rows),
        .heads = (uint32_t)(p->batch * p->q_heads), .group = (uint32_t)plan->schedule[GROUP],
    };
    const attn_cuda_grid grid = { .blocks = (int64_t)args.row_blocks * args.heads, .threads = THREADS,
                                  .smem = chosen->smem };
    void *arguments[] = { &args };
    return attn_cuda_launch(plan, 0, &grid, stream, arguments);
}

const attn_kernel attn_flash_fwd_f32_sm80 = {
    .name = "flash_fwd_f32_sm80", .summary = "flash attention in f32 on the CUDA cores: register tiles",
    .pass = ATTN_FORWARD, .device = ATTN_CUDA, .isa = 80, .dtypes = ATTN_DTYPE_BIT(ATTN_F32),
    .features = ATTN_NEEDS_ALL, .refuse = refuse, .prepare = prepare, .run = run,
};
