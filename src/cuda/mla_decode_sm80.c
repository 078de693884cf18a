/* mla_decode_sm80.c — the record of mla_decode_sm80.cu: recognises multi-head latent attention with few
 * queries, chooses the height of the tile, queues schedule, kernel and merge. */
#include "decode_merge.h"
#include "launch.h"
#include "mla_decode_sm80.h"
#include <math.h>

ATTN_CUDA_IMAGE(mla_decode_sm80);

enum { MAIN, SCHEDULE, MERGE };                                 /* slots of plan->device_code */
/* Numbers of the plan. EVEN_BLOCKS: of each sequence, 0 = ragged. */
enum { WORKERS, EVEN_BLOCKS, OVERLAP, ROWS, STAGES };
enum {
    Q_LEN_MOST = 16, OVERHEAD_BLOCKS = 2,
    STRICT_BLOCKS = 64, STRICT_SPLITS = 64      /* strict: parts of so many blocks; longer rather than more */
};

/* ---- shapes ---- */

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int64_t packed_rows(const attn_problem *p) { return p->q_len * (p->q_heads / p->kv_heads); }

/* Blocks of threads side by side on an item. */
static int64_t tiles_of(const attn_plan *plan) {
    const int64_t tiles = divide_up(packed_rows(&plan->problem), plan->schedule[ROWS]);
    return tiles > 1 ? tiles : 1;
}

static attn_decode_shape shape_of(const attn_problem *p, int64_t workers, int splits) {
    attn_decode_shape shape = {
        .batch = (int32_t)p->batch, .tiles = (int32_t)p->kv_heads, .block_keys = MLA80_KEYS,
        .workers = (int32_t)workers, .overhead_blocks = OVERHEAD_BLOCKS, .least_blocks = 1,
    };
    shape.max_blocks = p->kv_len > 0 ? (int32_t)divide_up(p->kv_len, MLA80_KEYS) : 1;
    if (p->strict) shape.split_blocks = STRICT_BLOCKS, shape.forced_splits = STRICT_SPLITS;
    else shape.forced_splits = splits;
    return shape;
}
static attn_decode_shape shape_of_plan(const attn_plan *plan) {
    return shape_of(&plan->problem, plan->schedule[WORKERS], plan->splits);
}

/* All sequences are equally long, as the problem says how long: their blocks. 0: lengths must be read. */
static int64_t even_blocks(const attn_problem *p) {
    if (p->packed_q || p->packed_kv || p->has_seqused_q || p->has_seqused_kv || p->has_leftpad_kv) return 0;
    const attn_sequence s = { .q_len = p->q_len, .kv_len = p->kv_len,
                              .shift = p->top_left ? 0 : p->kv_len - p->q_len };
    return attn_decode_blocks(attn_decode_span(p, &s), MLA80_KEYS);
}

/* A worker alone does whole items: nothing to merge. */
static int merges(const attn_decode_shape *shape) {
    return attn_decode_parts_max(shape) && !(attn_decode_balances(shape) && shape->workers == 1);
}

/* ---- planning ---- */

static int whole(attn_stride s) { return s.batch % 8 == 0 && s.seq % 8 == 0 && s.head % 8 == 0; }

static const char *refuse(const attn_problem *p) {
    const int64_t limit = (int64_t)1 << 28;
    if (!p->v_in_k || p->qk_dim != MLA80_QK || p->v_dim != MLA80_V)
        return "not MLA: needs qk_dim 576 and V in K, v_dim 512";
    if (p->q_len > Q_LEN_MOST) return "more than 16 queries a sequence";
    if (!(p->scale > 0) || !isfinite(p->scale)) return "needs a positive scale";
    if (!whole(p->q_stride) || !whole(p->k_stride) || !whole(p->o_stride))
        return "strides of Q, K, O in multiples of 8 elements";
    if (p->kv_len > limit || p->page_size > limit || p->batch > limit || p->q_heads > limit / Q_LEN_MOST)
        return "kv_len, page_size and batch up to 2^28, q_heads up to 2^24";
    const attn_decode_shape shape = shape_of(p, 1, 0);
    return attn_decode_fits(&shape) ? NULL : "batch * kv_heads * kv_len below 2^33";
}

/* The lowest tile that holds all rows, as far as shared memory allows. */
static void choose_tile(attn_plan *plan, int smem) {
    const int64_t needed = packed_rows(&plan->problem);
    int rows = 16, stages = MLA80_STAGES_MOST;
    while (rows < 64 && rows < needed && mla_decode_sm80_smem(2 * rows, 2) <= smem) rows *= 2;
    while (stages > 2 && mla_decode_sm80_smem(rows, stages) > smem) stages--;
    plan->schedule[ROWS] = rows;
    plan->schedule[STAGES] = stages;
}

static const char *entry_of(const attn_plan *plan) {
    static const char *const names[2][3] = {
        { "mla_decode_sm80_f16_16", "mla_decode_sm80_f16_32", "mla_decode_sm80_f16_64" },
        { "mla_decode_sm80_bf16_16", "mla_decode_sm80_bf16_32", "mla_decode_sm80_bf16_64" } };
    return names[plan->problem.dtype == ATTN_BF16][plan->schedule[ROWS] / 32];
}

static int smem_of(const attn_plan *plan) {
    return mla_decode_sm80_smem((int)plan->schedule[ROWS], (int)plan->schedule[STAGES]);
}

static attn_status prepare(attn_plan *plan) {
    attn_cuda_device device;
    attn_status status = attn_cuda_device_read(plan->cuda_device, &device);
    if (status) return status;
    choose_tile(plan, device.smem_per_block);
    const int64_t tiles = tiles_of(plan), workers = device.multiprocessors / tiles;
    plan->schedule[WORKERS] = workers > 1 ? workers : 1;
    plan->schedule[EVEN_BLOCKS] = even_blocks(&plan->problem);
    plan->schedule[OVERLAP] = device.capability / 10 == 9;          /* ptx_decode.h */
    const attn_decode_shape shape = shape_of_plan(plan);
    plan->schedule_bytes = plan->schedule[EVEN_BLOCKS] ? 0 : attn_decode_schedule_bytes(&shape);
    plan->workspace = plan->schedule_bytes;
    if (merges(&shape))
        plan->workspace += attn_decode_parts_bytes(&shape, tiles * plan->schedule[ROWS], MLA80_V);
    const void *image = ATTN_CUDA_IMAGE_OF(mla_decode_sm80);
    status = attn_cuda_prepare(plan, MAIN, image, entry_of(plan), smem_of(plan));
    if (!status && plan->schedule_bytes) status = attn_decode_schedule_prepare(plan, SCHEDULE);
    if (!status && merges(&shape)) status = attn_decode_merge_prepare(plan, MERGE);
    return status;
}

/* ---- running ---- */

static attn_status schedule(const attn_plan *plan, const attn_tensors *lengths, void *memory, void *stream) {
    const attn_decode_shape shape = shape_of_plan(plan);
    return attn_decode_schedule_launch(plan, SCHEDULE, &shape, lengths, memory, stream);
}

static attn_status find_schedule(const attn_plan *plan, mla_decode_sm80_args *args, void *workspace,
                                 void *stream) {
    const attn_tensors *t = &args->t;
    if (!plan->schedule_bytes) {
        args->even = attn_decode_even_line(&args->shape, (int32_t)plan->schedule[EVEN_BLOCKS]);
        return ATTN_OK;
    }
    args->schedule = t->schedule ? t->schedule : workspace;
    if (!t->schedule)
        return (plan->schedule[OVERLAP] ? attn_decode_schedule_launch_early : attn_decode_schedule_launch)(
            plan, SCHEDULE, &args->shape, t, workspace, stream);
    return plan->checked ? attn_decode_schedule_check(&args->shape, t->schedule, stream) : ATTN_OK;
}

static attn_status launch_main(const attn_plan *plan, mla_decode_sm80_args *args, void *stream) {
    int64_t workers = args->shape.workers;
    if (!args->schedule) workers = (args->even.total - 1) / args->even.payload + 1;     /* those with work */
    const attn_cuda_grid grid = { .blocks = workers * args->tiles, .threads = MLA80_THREADS,
                                  .smem = smem_of(plan), .overlap = (int)plan->schedule[OVERLAP] };
    void *arguments[] = { args };
    return attn_cuda_launch(plan, MAIN, &grid, stream, arguments);
}

static attn_status launch_merge(const attn_plan *plan, const mla_decode_sm80_args *args, void *stream) {
    const int64_t rows = packed_rows(&args->p);
    const attn_decode_merge_args merge = {
        .p = args->p, .t = args->t, .shape = args->shape, .schedule = args->schedule, .even = args->even,
        .o = args->o_parts, .lse = args->lse_parts, .m_tiles = 1,
        .tile_rows = (int32_t)(args->tiles * plan->schedule[ROWS]), .rows = (int32_t)rows,
        .o_stride = attn_decode_o_stride(MLA80_V),
    };
    return attn_decode_merge_launch(plan, MERGE, &merge, (int)plan->schedule[OVERLAP], stream);
}

static attn_status run(const attn_plan *plan, const attn_tensors *tensors, void *workspace, void *stream) {
    const attn_problem *p = &plan->problem;
    attn_tensors t = *tensors;
    t.v = t.k;
    attn_status status = attn_cuda_aligned(p, &t, 16);
    if (status || p->batch <= 0 || p->q_len <= 0) return status;
    mla_decode_sm80_args args = {
        .p = *p, .t = t, .shape = shape_of_plan(plan), .scale_log2 = p->scale * 1.4426950408889634f,
        .group = (int32_t)(p->q_heads / p->kv_heads), .tiles = (int32_t)tiles_of(plan),
        .stages = (int32_t)plan->schedule[STAGES] };
    args.hash = attn_decode_hash(&args.shape);
    args.page_shift = p->page_size > 0 && !(p->page_size & (p->page_size - 1)) ? 0 : -1;
    while (args.page_shift >= 0 && (int64_t)1 << args.page_shift < p->page_size) args.page_shift++;
    args.o_parts = (float *)(void *)((char *)workspace + plan->schedule_bytes);
    const int64_t part_rows = args.tiles * plan->schedule[ROWS];
    args.lse_parts = args.o_parts + attn_decode_parts_max(&args.shape) * part_rows * MLA80_V;
    status = find_schedule(plan, &args, workspace, stream);
    if (!status) status = launch_main(plan, &args, stream);
    const int is_cut = args.schedule || !attn_decode_even_whole(&args.shape, &args.even);
    return status || !is_cut || !merges(&args.shape) ? status : launch_merge(plan, &args, stream);
}

const attn_kernel attn_mla_decode_sm80 = {
    .name = "mla_decode_sm80",
    .summary = "multi-head latent attention decode on mma.sync: split over the keys, a ring of K tiles, "
               "any page size",
    .pass = ATTN_FORWARD, .device = ATTN_CUDA, .isa = 80,
    .dtypes = ATTN_DTYPE_BIT(ATTN_F16) | ATTN_DTYPE_BIT(ATTN_BF16),
    .features = ATTN_NEEDS_CAUSAL | ATTN_NEEDS_SINKS | ATTN_NEEDS_PACKED | ATTN_NEEDS_SEQUSED |
                ATTN_NEEDS_LEFTPAD | ATTN_NEEDS_KV_INDEX | ATTN_NEEDS_PAGES | ATTN_NEEDS_GQA |
                ATTN_NEEDS_V_DIM | ATTN_NEEDS_V_IN_K | ATTN_NEEDS_O_F32 | ATTN_NEEDS_STRICT,
    .refuse = refuse, .prepare = prepare, .run = run, .schedule = schedule,
};
