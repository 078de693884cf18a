/* decode_fwd_sm80.c — the record of decode_fwd_sm80.cu: which tile, how many workers,
 * who makes the schedule. */
#include "decode_fwd_sm80.h"
#include "decode_merge.h"
#include "launch.h"

ATTN_CUDA_IMAGE(decode_fwd_sm80);

typedef struct tile {
    int qk_dim, v_dim, rows, rich;
    const char *bf16, *f16, *bf16_rich, *f16_rich;
} tile;

#define TILE(qk, v, rows, rich) \
    { qk, v, (rows) * 16, rich, "decode_fwd_sm80_bf16_" #qk "_" #v "_" #rows, \
      "decode_fwd_sm80_f16_" #qk "_" #v "_" #rows, "decode_fwd_sm80_bf16_" #qk "_" #v "_rich", \
      "decode_fwd_sm80_f16_" #qk "_" #v "_rich" },
static const tile tiles[] = { DECODE_FWD_SM80_TILES(TILE) };
enum { TILES = sizeof tiles / sizeof *tiles };

/* Slots of the plan. */
enum { MAIN, SCHEDULE, MERGE };
/* Numbers of the plan. EVEN_BLOCKS 0: ragged. */
enum { WORKERS, EVEN_BLOCKS, OVERLAP, MERGES, WARPS, STAGES };

enum {
    ROWS_MOST = 64, Q_LEN_MOST = 16,
    ONE_TILE = 16, FEW_ITEMS = 64, MANY_ITEMS = 128,
    RING_MOST = 128 << 10, SUMS_MOST = 16 << 10,
    OVERHEAD_BLOCKS = 2, LEAST_BLOCKS = 1,
    /* Strict: parts of so many keys; longer rather than more of them. */
    STRICT_KEYS = 1024, STRICT_SPLITS = 64
};

/* ---- shapes ---- */

/* The plain entries know masks by position only. */
static int is_rich(const attn_problem *p) {
    return p->softcap > 0 || p->bias_dtype || p->has_mask || p->alibi || !(p->scale > 0);
}

static int64_t packed_rows(const attn_problem *p) { return p->q_len * (p->q_heads / p->kv_heads); }

static const tile *tile_of(const attn_problem *p) {
    const tile *best = NULL;
    for (int i = 0; i < TILES; i++) {
        const tile *t = &tiles[i];
        if (p->qk_dim > t->qk_dim || p->v_dim > t->v_dim || (is_rich(p) && !t->rich)) continue;
        if (best && (t->qk_dim > best->qk_dim || best->rows >= packed_rows(p))) break;
        best = t;
    }
    return best;
}

/* Where a sequence's keys are follows from its number, kv_len and the block table. */
static int is_plain(const attn_problem *p) {
    return !p->packed_q && !p->packed_kv && !p->has_seqused_q && !p->has_leftpad_kv &&
           !p->has_kv_batch_index && (p->page_size || p->kv_batch >= p->batch);
}

/* Nothing on the device decides about lengths: the schedule is known when planning. */
static int is_even(const attn_problem *p) {
    return !p->packed_q && !p->packed_kv && !p->has_seqused_q && !p->has_seqused_kv && !p->has_leftpad_kv;
}

static attn_decode_shape shape_of(const attn_problem *p, int splits, int64_t workers, int64_t warps) {
    const tile *t = tile_of(p);
    const int64_t m_tiles = (packed_rows(p) + t->rows - 1) / t->rows,
                  block_keys = warps * DECODE_FWD_SM80_KEYS;
    attn_decode_shape shape = {
        .batch = (int32_t)p->batch, .tiles = (int32_t)(p->kv_heads * m_tiles),
        .block_keys = (int32_t)block_keys, .workers = (int32_t)workers,
        .overhead_blocks = OVERHEAD_BLOCKS, .least_blocks = LEAST_BLOCKS,
        .max_blocks = (int32_t)((p->kv_len + block_keys - 1) / block_keys),
    };
    if (shape.max_blocks < 1) shape.max_blocks = 1;
    if (p->strict)
        shape.split_blocks = (int32_t)(STRICT_KEYS / block_keys), shape.forced_splits = STRICT_SPLITS;
    else shape.forced_splits = splits;
    return shape;
}
static attn_decode_shape shape_of_plan(const attn_plan *plan) {
    return shape_of(&plan->problem, plan->splits, plan->schedule[WORKERS], plan->schedule[WARPS]);
}

/* Blocks of every item of an even batch. */
static int32_t even_blocks(const attn_problem *p, int64_t warps) {
    attn_problem lengths = *p;
    lengths.page_size = lengths.has_kv_batch_index = 0;
    const attn_tensors none = ATTN_TENSORS_INIT;
    const attn_sequence s = attn_sequence_at(&lengths, &none, 0);
    return attn_decode_blocks(attn_decode_span(p, &s), (int32_t)warps * DECODE_FWD_SM80_KEYS);
}

/* ---- planning ---- */

static int whole(attn_stride s) { return s.batch % 8 == 0 && s.seq % 8 == 0 && s.head % 8 == 0; }

static const char *refuse(const attn_problem *p) {
    const int64_t longest = (int64_t)1 << 30;
    if (p->qk_dim > 256 || p->v_dim > 256 || p->qk_dim % 8 || p->v_dim % 8)
        return "head dims up to 256, multiples of 8";
    if (p->q_len > Q_LEN_MOST || packed_rows(p) > ROWS_MOST)
        return "up to 16 queries a sequence, and q_len * q_heads / kv_heads up to 64";
    if (!whole(p->q_stride) || !whole(p->k_stride) || !whole(p->v_stride) || !whole(p->o_stride))
        return "strides of Q, K, V, O in multiples of 8 elements";
    if (p->kv_len >= longest || p->page_size >= longest) return "kv_len and page_size below 2^30";
    if (p->batch >= longest / 64 || p->kv_heads >= longest / 64) return "batch and kv_heads below 2^24";
    const attn_decode_shape shape = shape_of(p, 0, 1, 1);
    return p->batch == 0 || attn_decode_fits(&shape) ? NULL : "batch * kv_heads * kv_len below 2^34";
}

/* Where the batch alone keeps a Hopper device busy, several queries fill flash_fwd_sm90's tiles better
 * (bench/notes/decode.md). Older devices have flash_fwd_sm80 instead, which is slower than this kernel. */
extern const attn_kernel attn_flash_fwd_sm90;

static const char *yields(const attn_problem *p, int cuda_device) {
    const int64_t items = p->batch * p->kv_heads;
    const int outdone = packed_rows(p) > ONE_TILE ? items > FEW_ITEMS : p->q_len > 1 && items >= MANY_ITEMS;
    return outdone && !attn_kernel_refuses(&attn_flash_fwd_sm90, p, cuda_device)
               ? "several queries and many sequences: flash_fwd_sm90 is faster" : NULL;
}

/* Does any item have parts to merge? */
static int any_merge(const attn_decode_shape *shape, int32_t blocks) {
    if (!attn_decode_parts_max(shape)) return 0;
    if (!blocks) return 1;
    const attn_decode_line line = attn_decode_even_line(shape, blocks);
    for (int32_t b = 0; b < shape->batch; b++)
        for (int32_t t = 0; t < shape->tiles; t++)
            if (attn_decode_item_parts(shape, &line, b, t) > 1) return 1;
    return 0;
}

static int smem_of(const tile *t, int64_t warps, int64_t stages) {
    return decode_fwd_sm80_smem(t->qk_dim, t->v_dim, t->rows / 16, (int)warps, (int)stages);
}

/* As many warps as can have two steps each. On an H100, 128 KB under way are best:
 * with 192 KB the memory serves the requests in a worse order. */
static void choose_ring(attn_plan *plan, const tile *t, int smem) {
    const int static_smem = 2048, most = smem_of(t, 0, 0) + RING_MOST + SUMS_MOST;
    for (int warps = DECODE_FWD_SM80_WARPS_MOST; warps >= 2; warps /= 2)
        for (int stages = DECODE_FWD_SM80_STAGES_MOST; stages >= 2; stages--) {
            const int bytes = smem_of(t, warps, stages);
            if (bytes > smem - static_smem || bytes > most) continue;
            plan->schedule[WARPS] = warps;
            plan->schedule[STAGES] = stages;
            return;
        }
    plan->schedule[WARPS] = 1;
    plan->schedule[STAGES] = 2;
}

static attn_status prepare(attn_plan *plan) {
    const attn_problem *p = &plan->problem;
    const tile *t = tile_of(p);
    const int rich = is_rich(p), bf16 = p->dtype == ATTN_BF16;
    attn_cuda_device device;
    attn_status status = attn_cuda_device_read(plan->cuda_device, &device);
    if (status) return status;
    choose_ring(plan, t, device.smem_per_block);
    plan->schedule[WORKERS] = device.multiprocessors;
    plan->schedule[EVEN_BLOCKS] = is_even(p) ? even_blocks(p, plan->schedule[WARPS]) : 0;
    plan->schedule[OVERLAP] = device.capability / 10 == 9;          /* ptx_decode.h */
    const attn_decode_shape shape = shape_of_plan(plan);
    plan->schedule[MERGES] = p->batch && any_merge(&shape, (int32_t)plan->schedule[EVEN_BLOCKS]);
    plan->schedule_bytes = plan->schedule[EVEN_BLOCKS] ? 0 : attn_decode_schedule_bytes(&shape);
    plan->workspace = plan->schedule_bytes;
    if (plan->schedule[MERGES]) plan->workspace += attn_decode_parts_bytes(&shape, t->rows, p->v_dim);
    if (plan->schedule_bytes) status = attn_decode_schedule_prepare(plan, SCHEDULE);
    if (!status && plan->schedule[MERGES]) status = attn_decode_merge_prepare(plan, MERGE);
    if (status) return status;
    return attn_cuda_prepare(plan, MAIN, ATTN_CUDA_IMAGE_OF(decode_fwd_sm80),
                             rich ? bf16 ? t->bf16_rich : t->f16_rich : bf16 ? t->bf16 : t->f16,
                             smem_of(t, plan->schedule[WARPS], plan->schedule[STAGES]));
}

/* ---- running ---- */

static attn_status schedule(const attn_plan *plan, const attn_tensors *lengths, void *memory, void *stream) {
    const attn_decode_shape shape = shape_of_plan(plan);
    return attn_decode_schedule_launch(plan, SCHEDULE, &shape, lengths, memory, stream);
}

static attn_status find_schedule(const attn_plan *plan, decode_fwd_args *args, const attn_tensors *t,
                                 void *workspace, void *stream) {
    args->schedule = NULL;
    if (!plan->schedule_bytes) return ATTN_OK;
    args->schedule = t->schedule ? t->schedule : workspace;
    if (!t->schedule)
        return (plan->schedule[OVERLAP] ? attn_decode_schedule_launch_early : attn_decode_schedule_launch)(
            plan, SCHEDULE, &args->shape, t, workspace, stream);
    return plan->checked ? attn_decode_schedule_check(&args->shape, t->schedule, stream) : ATTN_OK;
}

static attn_status merge(const attn_plan *plan, const decode_fwd_args *args, const tile *t, void *stream) {
    const attn_decode_merge_args merge_args = {
        .p = args->p, .t = args->t, .shape = args->shape, .schedule = args->schedule, .even = args->even,
        .o = args->o_parts, .lse = args->lse_parts, .tile_rows = t->rows, .m_tiles = args->m_tiles,
        .o_stride = args->o_stride,
        .rows = (int32_t)(packed_rows(&args->p) < t->rows ? packed_rows(&args->p) : t->rows),
    };
    return attn_decode_merge_launch(plan, MERGE, &merge_args, (int)plan->schedule[OVERLAP], stream);
}

static attn_status run(const attn_plan *plan, const attn_tensors *t, void *workspace, void *stream) {
    const attn_problem *p = &plan->problem;
    const tile *chosen = tile_of(p);
    attn_problem without_bias = *p;         /* read element by element */
    without_bias.bias_dtype = 0;
    attn_status status = attn_cuda_aligned(&without_bias, t, 16);
    if (status) return status;
    decode_fwd_args args = {
        .p = *p, .t = *t, .shape = shape_of_plan(plan), .stages = (int32_t)plan->schedule[STAGES],
        .scale_log2 = is_rich(p) ? 1 : p->scale * 1.4426950408889634f,
        .group = (int32_t)(p->q_heads / p->kv_heads), .o_stride = attn_decode_o_stride(p->v_dim),
        .by_row = p->page_size % DECODE_FWD_SM80_KEYS != 0,
    };
    args.hash = attn_decode_hash(&args.shape);
    args.page_shift = p->page_size > 0 && !(p->page_size & (p->page_size - 1)) ? 0 : -1;
    while (args.page_shift >= 0 && (int64_t)1 << args.page_shift < p->page_size) args.page_shift++;
    while (1 << args.block_shift < args.shape.block_keys) args.block_shift++;
    args.m_tiles = args.shape.tiles / (int32_t)p->kv_heads;
    args.o_parts = (float *)((char *)workspace + plan->schedule_bytes);
    args.lse_parts = args.o_parts + attn_decode_parts_max(&args.shape) * chosen->rows * args.o_stride;
    int64_t workers = args.shape.workers;
    if (plan->schedule[EVEN_BLOCKS]) {
        args.even = attn_decode_even_line(&args.shape, (int32_t)plan->schedule[EVEN_BLOCKS]);
        workers = (args.even.total - 1) / args.even.payload + 1;
    }
    status = find_schedule(plan, &args, t, workspace, stream);
    if (status) return status;
    args.guesses = args.schedule && plan->schedule[OVERLAP] && is_plain(p);
    /* On an even line a block looks up its first pages before it waits and never again: what is queued
     * may be writing the table, so it must have ended. */
    const int trusts_table = !args.schedule && p->page_size;
    const attn_cuda_grid grid = { .blocks = workers, .threads = (int)plan->schedule[WARPS] * 32,
                                  .smem = smem_of(chosen, plan->schedule[WARPS], plan->schedule[STAGES]),
                                  .overlap = plan->schedule[OVERLAP] && !trusts_table };
    void *arguments[] = { &args };
    status = attn_cuda_launch(plan, MAIN, &grid, stream, arguments);
    return status || !plan->schedule[MERGES] ? status : merge(plan, &args, chosen, stream);
}

const attn_kernel attn_decode_fwd_sm80 = {
    .name = "decode_fwd_sm80",
    .summary = "split-KV decode on mma.sync: heads as rows, a stream of keys per warp, parts merged",
    .pass = ATTN_FORWARD, .device = ATTN_CUDA, .isa = 80,
    .dtypes = ATTN_DTYPE_BIT(ATTN_F16) | ATTN_DTYPE_BIT(ATTN_BF16), .features = ATTN_NEEDS_ALL,
    .refuse = refuse, .yields = yields, .prepare = prepare, .run = run, .schedule = schedule,
};
