/* flash_fwd_sm80.c — the record of flash_fwd_sm80.cu: which tile, which entry, the order of the blocks. */
#include "flash_fwd_sm80.h"
#include "launch.h"

ATTN_CUDA_IMAGE(flash_fwd_sm80);

typedef struct shape { int rows, threads, smem, blocks; } shape;
typedef struct tile {
    int qk_dim, v_dim;
    shape plain, rich;
    const char *bf16, *f16, *bf16_rich, *f16_rich;
} tile;

#define SHAPE(qk, v, warps, rows, keys, stages, blocks) \
    { (warps) * (rows) * 16, (warps) * 32, FLASH_FWD_SM80_SMEM(qk, v, warps, rows, keys, stages), blocks }
#define TILE(qk, v, warps, rows, keys, stages, blocks, rich_warps, rich_rows, rich_keys, rich_blocks) \
    { qk, v, SHAPE(qk, v, warps, rows, keys, stages, blocks), \
      SHAPE(qk, v, rich_warps, rich_rows, rich_keys, 2, rich_blocks), \
      "flash_fwd_sm80_bf16_" #qk "_" #v, "flash_fwd_sm80_f16_" #qk "_" #v, \
      "flash_fwd_sm80_bf16_" #qk "_" #v "_rich", "flash_fwd_sm80_f16_" #qk "_" #v "_rich" },
static const tile tiles[] = { FLASH_FWD_SM80_TILES(TILE) };
enum { TILES = sizeof tiles / sizeof *tiles };

/* Slots of the plan. Rows that can't be copied 16 bytes at a time are known only when the pointers are. */
enum { PLAIN, RICH };
/* Numbers of the plan. */
enum { TILE_INDEX, HAS_PLAIN, GROUP /* of PLAIN, then of RICH */ };

static const tile *tile_of(const attn_problem *p) {
    for (int i = 0; i < TILES; i++)
        if (p->qk_dim <= tiles[i].qk_dim && p->v_dim <= tiles[i].v_dim) return &tiles[i];
    return NULL;
}

static int64_t row_blocks(const attn_problem *p, const shape *s) {
    return (p->q_len + s->rows - 1) / s->rows;
}

static const char *refuse(const attn_problem *p) {
    const int64_t longest = (int64_t)1 << 30;
    const tile *t = tile_of(p);
    if (!t) return "head dims up to 256";
    if (p->q_len >= longest || p->kv_len >= longest) return "q_len and kv_len below 2^30";
    int64_t blocks;
    if (!attn_multiply(p->batch, p->q_heads, &blocks) ||
        !attn_multiply(blocks, row_blocks(p, &t->rich), &blocks) || blocks > INT32_MAX)
        return "batch * q_heads * row blocks below 2^31";
    return NULL;
}

/* The plain entry knows masks by position only, and rows that are strides apart. */
static int is_plain(const attn_problem *p) {
    return !(p->softcap > 0) && !p->bias_dtype && !p->has_mask && !p->alibi && !p->page_size && p->scale > 0;
}

static attn_status prepare(attn_plan *plan) {
    const attn_problem *p = &plan->problem;
    const tile *t = tile_of(p);
    const int bf16 = p->dtype == ATTN_BF16;
    attn_cuda_device device;
    attn_status status = attn_cuda_device_read(plan->cuda_device, &device);
    if (status) return status;
    plan->schedule[TILE_INDEX] = t - tiles;
    plan->schedule[HAS_PLAIN] =
        is_plain(p) && t->plain.smem <= device.smem_per_block - 2048; /* static part */
    for (int slot = PLAIN; slot <= RICH; slot++) {
        const shape *s = slot == PLAIN ? &t->plain : &t->rich;
        plan->schedule[GROUP + slot] = attn_flash_group(p, row_blocks(p, s), device.l2_bytes,
                                                        (int64_t)device.multiprocessors * s->blocks);
    }
    if (plan->schedule[HAS_PLAIN])
        status = attn_cuda_prepare(plan, PLAIN, ATTN_CUDA_IMAGE_OF(flash_fwd_sm80), bf16 ? t->bf16 : t->f16,
                                   t->plain.smem);
    if (status) return status;
    return attn_cuda_prepare(plan, RICH, ATTN_CUDA_IMAGE_OF(flash_fwd_sm80),
                             bf16 ? t->bf16_rich : t->f16_rich, t->rich.smem);
}

static int stride_whole(attn_stride s) { return s.batch % 8 == 0 && s.seq % 8 == 0 && s.head % 8 == 0; }

/* Every row of Q, K, V and O begins at a multiple of 16 bytes and is a multiple of 16 bytes long. */
static int rows_whole(const attn_problem *p, const attn_tensors *t) {
    const uintptr_t bases = (uintptr_t)t->q | (uintptr_t)t->k | (uintptr_t)t->v | (uintptr_t)t->o;
    return p->qk_dim % 8 == 0 && p->v_dim % 8 == 0 && bases % 16 == 0 && stride_whole(p->q_stride) &&
           stride_whole(p->k_stride) && stride_whole(p->v_stride) && stride_whole(p->o_stride);
}

static attn_status run(const attn_plan *plan, const attn_tensors *t, void *workspace, void *stream) {
    const attn_problem *p = &plan->problem;
    (void)workspace;
    const int whole = rows_whole(p, t), slot = plan->schedule[HAS_PLAIN] && whole ? PLAIN : RICH;
    const tile *chosen = &tiles[plan->schedule[TILE_INDEX]];
    const shape *s = slot == PLAIN ? &chosen->plain : &chosen->rich;
    flash_fwd_args args = {
        .p = *p, .t = *t, .scale_log2 = slot == PLAIN ? p->scale * 1.4426950408889634f : 1, .vector = whole,
        .row_blocks = (uint32_t)row_blocks(p, s), .heads = (uint32_t)(p->batch * p->q_heads),
        .group = (uint32_t)plan->schedule[GROUP + slot],
    };
    const attn_cuda_grid grid = { .blocks = (int64_t)args.row_blocks * args.heads, .threads = s->threads,
                                  .smem = s->smem };
    void *arguments[] = { &args };
    return attn_cuda_launch(plan, slot, &grid, stream, arguments);
}

const attn_kernel attn_flash_fwd_sm80 = {
    .name = "flash_fwd_sm80",
    .summary = "FlashAttention-2 on mma.sync: cp.async, swizzled tiles, rare rescaling",
    .pass = ATTN_FORWARD, .device = ATTN_CUDA, .isa = 80,
    .dtypes = ATTN_DTYPE_BIT(ATTN_F16) | ATTN_DTYPE_BIT(ATTN_BF16), .features = ATTN_NEEDS_ALL,
    .refuse = refuse, .prepare = prepare, .run = run,
};
