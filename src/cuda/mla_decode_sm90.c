/* mla_decode_sm90.c — the record of mla_decode_sm90.cu: recognises multi-head latent attention with few
 * queries, and queues schedule, kernel and merge. */
#include "decode_merge.h"
#include "launch.h"
#include "mla_decode_sm90.h"
#include <math.h>

ATTN_CUDA_IMAGE(mla_decode_sm90);

enum { SLOT_MAIN, SLOT_SCHEDULE, SLOT_MERGE };      /* of plan->device_code */
enum { PLAN_WORKERS, PLAN_EVEN };                   /* of plan->schedule; EVEN: blocks of each
                                                       sequence, 0 = ragged */
enum { MOST_QUERIES = 16, STRICT_BLOCKS = 32, OVERHEAD_BLOCKS = 2 };

/* ---- arithmetic on the problem ---- */

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

static mla_divider divider_of(int64_t d) {
    mla_divider x = { 0, 31 };
    while ((int64_t)1 << (x.shift - 31) < d) x.shift++;
    x.magic = (uint32_t)((((uint64_t)1 << x.shift) + (uint64_t)d - 1) / (uint64_t)d);
    return x;
}

/* Blocks of threads side by side on an item: 64 rows each. */
static int64_t tiles_of(const attn_problem *p) {
    const int64_t rows = p->q_len * (p->q_heads / p->kv_heads);
    return rows > 0 ? divide_up(rows, MLA_ROWS) : 1;
}

/* Neighbours that share the copies of K. */
static int cluster_of(const attn_problem *p) { return tiles_of(p) % 2 ? 1 : 2; }

/* Keys of one copy: a K tile's, or less where pages are smaller or cut it unevenly. */
static int64_t box_rows(const attn_problem *p) {
    int64_t a = p->page_size ? p->page_size : MLA_KEYS, b = MLA_KEYS;
    while (b) {
        const int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static attn_decode_shape shape_of(const attn_problem *p, int64_t workers, int splits) {
    attn_decode_shape shape = { .batch = (int32_t)p->batch, .tiles = (int32_t)p->kv_heads,
                                .block_keys = MLA_KEYS, .workers = (int32_t)workers,
                                .overhead_blocks = OVERHEAD_BLOCKS, .least_blocks = 1 };
    shape.max_blocks = p->kv_len > 0 ? (int32_t)divide_up(p->kv_len, MLA_KEYS) : 1;
    if (splits > 0) shape.forced_splits = splits;
    else if (p->strict) shape.split_blocks = STRICT_BLOCKS;
    return shape;
}

/* All sequences are equally long, as the problem says how long: their blocks. 0: lengths must be read. */
static int64_t even_blocks(const attn_problem *p) {
    if (p->packed_q || p->packed_kv || p->has_seqused_q || p->has_seqused_kv || p->has_leftpad_kv) return 0;
    attn_sequence s = { .q_len = p->q_len, .kv_len = p->kv_len,
                        .shift = p->top_left ? 0 : p->kv_len - p->q_len };
    return attn_decode_blocks(attn_decode_span(p, &s), MLA_KEYS);
}

/* Sequence b is row b of Q and K. */
static int is_plain(const attn_problem *p) {
    return !p->packed_q && !p->packed_kv && !p->has_seqused_q && !p->has_leftpad_kv &&
           !p->has_kv_batch_index && (p->page_size || p->kv_batch >= p->batch);
}

/* ---- what can't be done ---- */

/* Rows are read and written 16 bytes at a time; the copy engine can't repeat rows. */
static int stride_fits(attn_stride s, int64_t batch, int64_t seq, int64_t heads, int repeats) {
    const int64_t extents[] = { batch, seq, heads }, strides[] = { s.batch, s.seq, s.head };
    for (int i = 0; i < 3; i++)
        if (extents[i] > 1 && (strides[i] % 8 || strides[i] < !repeats || strides[i] >= (int64_t)1 << 39))
            return 0;
    return 1;
}

static const char *refuse(const attn_problem *p) {
    const int64_t limit = (int64_t)1 << 28;
    const int64_t q_rows = p->packed_q ? p->q_total : p->q_len, q_batch = p->packed_q ? 1 : p->batch;
    const int64_t kv_rows = p->page_size ? p->page_size : p->packed_kv ? p->kv_total : p->kv_len;
    const int64_t kv_batch = p->page_size ? p->pages : p->packed_kv ? 1 : p->kv_batch;
    if (!p->v_in_k || p->qk_dim != MLA_QK || p->v_dim != MLA_V)
        return "not MLA: needs qk_dim 576 and V in K, v_dim 512";
    if (p->q_len > MOST_QUERIES) return "more than 16 queries a sequence";
    if (!(p->scale > 0) || !isfinite(p->scale)) return "needs a positive scale";
    if (q_rows > limit || kv_rows > limit || p->kv_len > limit || p->batch > limit || p->q_heads > limit ||
        p->kv_heads > limit)
        return "more than 2^28 rows";
    const attn_decode_shape shape = shape_of(p, 1, 0);
    if (!attn_decode_fits(&shape)) return "more than 2^30 blocks of keys";
    if (!stride_fits(p->q_stride, q_batch, q_rows, p->q_heads, 1) ||
        !stride_fits(p->k_stride, kv_batch, kv_rows, p->kv_heads, 0) ||
        !stride_fits(p->o_stride, q_batch, q_rows, p->q_heads, 1))
        return "needs strides that are multiples of 8 elements and not 0";
    if (p->page_size % 8) return "needs pages of a multiple of 8 tokens";
    return NULL;
}

/* ---- plan ---- */

static const char *entry_of(const attn_problem *p) {
    static const char *const names[2][4] = {
        { "mla_decode_f16_single", "mla_decode_f16_several",
          "mla_decode_f16_pair", "mla_decode_f16_pairs" },
        { "mla_decode_bf16_single", "mla_decode_bf16_several",
          "mla_decode_bf16_pair", "mla_decode_bf16_pairs" } };
    const int cluster = cluster_of(p);
    return names[p->dtype == ATTN_BF16][2 * (cluster - 1) + (tiles_of(p) > cluster)];
}

static int64_t parts_bytes(const attn_plan *plan, const attn_decode_shape *shape) {
    return attn_decode_parts_bytes(shape, tiles_of(&plan->problem) * MLA_ROWS, MLA_V);
}

static attn_status prepare(attn_plan *plan) {
    const attn_problem *p = &plan->problem;
    attn_cuda_device device;
    attn_status status = attn_cuda_device_read(plan->cuda_device, &device);
    if (status) return status;
    const int64_t workers = device.multiprocessors / tiles_of(p);
    plan->schedule[PLAN_WORKERS] = workers > 1 ? workers : 1;
    plan->schedule[PLAN_EVEN] = even_blocks(p);
    const attn_decode_shape shape = shape_of(p, plan->schedule[PLAN_WORKERS], plan->splits);
    plan->schedule_bytes = plan->schedule[PLAN_EVEN] ? 0 : attn_decode_schedule_bytes(&shape);
    plan->workspace = plan->schedule_bytes + parts_bytes(plan, &shape);
    status = attn_cuda_prepare(plan, SLOT_MAIN, ATTN_CUDA_IMAGE_OF(mla_decode_sm90), entry_of(p), MLA_SMEM);
    if (!status && plan->schedule_bytes) status = attn_decode_schedule_prepare(plan, SLOT_SCHEDULE);
    if (!status && parts_bytes(plan, &shape)) status = attn_decode_merge_prepare(plan, SLOT_MERGE);
    return status;
}

static attn_status schedule(const attn_plan *plan, const attn_tensors *lengths, void *to, void *stream) {
    const attn_decode_shape shape = shape_of(&plan->problem, plan->schedule[PLAN_WORKERS], plan->splits);
    return attn_decode_schedule_launch(plan, SLOT_SCHEDULE, &shape, lengths, to, stream);
}

/* ---- run ---- */

/* Columns by three dims of rows, in boxes of 64 columns x rows; what lies outside reads as zeros. */
static attn_status encode(cu_tensor_map *map, attn_dtype dtype, const void *at, const int64_t extents[3],
                          const int64_t elements[3], const uint32_t box[4], const char *name) {
    const attn_cuda_driver *driver = attn_cuda();
    if (!driver) return ATTN_DEVICE_ERROR;
    uint64_t sizes[4] = { MLA_QK }, strides[3];
    const uint32_t ones[4] = { 1, 1, 1, 1 };
    for (int i = 0; i < 3; i++) {
        sizes[i + 1] = extents[i] > 0 ? (uint64_t)extents[i] : 1;
        strides[i] = extents[i] > 1 ? (uint64_t)elements[i] * 2 : 16;
    }
    const cu_result result = driver->TensorMapEncodeTiled(
        map, dtype == ATTN_BF16 ? CU_MAP_BF16 : CU_MAP_F16, 4, (void *)(uintptr_t)at, sizes, strides, box,
        ones, CU_MAP_INTERLEAVE_NONE, CU_MAP_SWIZZLE_128B, CU_MAP_L2_128B, CU_MAP_FILL_ZEROS);
    if (!result) return ATTN_OK;
    return attn_fail(ATTN_DEVICE_ERROR, "describing %s to the copy engine: %s", name,
                     attn_cuda_error(driver, result));
}

static attn_status encode_k(cu_tensor_map *map, const attn_problem *p, const attn_tensors *t) {
    const int64_t rows = p->page_size ? p->page_size : p->packed_kv ? p->kv_total : p->kv_len;
    const int64_t batch = p->page_size ? p->pages : p->packed_kv ? 1 : p->kv_batch;
    const int64_t extents[] = { p->kv_heads, rows, batch };
    const int64_t elements[] = { p->k_stride.head, p->k_stride.seq, p->k_stride.batch };
    const uint32_t box[4] = { 64, 1, (uint32_t)box_rows(p), 1 };
    const int empty = rows <= 0 || batch <= 0;      /* nothing is read, but a map needs some address */
    return encode(map, p->dtype, empty ? t->q : t->k, extents, elements, box, "k");
}

/* Row (query i, head h) of Q lies i * q_heads + h rows after the sequence's beginning:
 * an item's rows are then evenly spaced if it has one query or all the heads. */
static int q_even(const attn_problem *p) {
    const attn_stride s = p->q_stride;
    return s.head > 0 && (s.batch > 0 || p->batch == 1) && (p->q_len == 1 || p->kv_heads == 1) &&
           ((p->q_len == 1 && !p->packed_q) || s.seq == p->q_heads * s.head);
}

static attn_status encode_q(cu_tensor_map *map, const attn_problem *p, const attn_tensors *t) {
    const int64_t extents[] = { (p->packed_q ? p->q_total : p->q_len) * p->q_heads,
                                p->packed_q ? 1 : p->batch, 1 };
    const int64_t elements[] = { p->q_stride.head, p->q_stride.batch, 0 };
    const uint32_t box[4] = { 64, MLA_ROWS, 1, 1 };
    return encode(map, p->dtype, t->q, extents, elements, box, "q");
}

static attn_status launch_main(const attn_plan *plan, mla_decode_sm90_args *a, void *stream) {
    cu_tensor_map map, q_map;
    attn_status status = encode_k(&map, &plan->problem, &a->tensors);
    if (!status && a->q_even) status = encode_q(&q_map, &plan->problem, &a->tensors);
    else q_map = map;
    if (status) return status;
    const int cluster = cluster_of(&plan->problem);
    int64_t workers = a->shape.workers;
    if (!a->schedule) workers = (a->even.total - 1) / a->even.payload + 1;  /* those with work */
    const attn_cuda_grid grid = { .blocks = a->tiles, .blocks_y = workers, .threads = MLA_THREADS,
                                  .smem = MLA_SMEM, .cluster = cluster == 1 ? 0 : cluster, .overlap = 1 };
    void *arguments[] = { &map, &q_map, a };
    return attn_cuda_launch(plan, SLOT_MAIN, &grid, stream, arguments);
}

static attn_status launch_merge(const attn_plan *plan, const mla_decode_sm90_args *a, void *stream) {
    const attn_decode_merge_args merge = {
        .p = plan->problem, .t = a->tensors, .shape = a->shape, .schedule = a->schedule, .o = a->o_part,
        .lse = a->lse_part, .tile_rows = a->tiles * MLA_ROWS, .m_tiles = 1,
        .o_stride = attn_decode_o_stride(MLA_V), .even = a->even };
    return attn_decode_merge_launch(plan, SLOT_MERGE, &merge, 1, stream);
}

static attn_status run(const attn_plan *plan, const attn_tensors *tensors, void *workspace, void *stream) {
    const attn_problem *p = &plan->problem;
    attn_tensors t = *tensors;
    t.v = t.k;
    attn_status status = attn_cuda_aligned(p, &t, 16);
    if (status || p->batch <= 0 || p->q_len <= 0) return status;
    mla_decode_sm90_args a = {
        .problem = *p, .tensors = t, .scale_log2 = p->scale * 1.4426950408889634f,
        .shape = shape_of(p, plan->schedule[PLAN_WORKERS], plan->splits),
        .tiles = (int)tiles_of(p), .group = (int)(p->q_heads / p->kv_heads),
        .by_group = divider_of(p->q_heads / p->kv_heads),
        .by_page = divider_of(p->page_size ? p->page_size : 1),
        .plain = is_plain(p), .kv_rows = p->page_size && !p->pages ? 0 : (int)p->kv_len,
        .box_rows = (int)box_rows(p), .q_even = q_even(p),
        .cache_first = tiles_of(p) == 1 };
    a.hash = attn_decode_hash(&a.shape);
    char *parts = (char *)workspace + plan->schedule_bytes;
    a.o_part = (float *)(void *)parts;
    a.lse_part = a.o_part + attn_decode_parts_max(&a.shape) * a.tiles * MLA_ROWS * MLA_V;
    if (!plan->schedule_bytes) a.even = attn_decode_even_line(&a.shape, (int32_t)plan->schedule[PLAN_EVEN]);
    else {
        a.schedule = t.schedule ? t.schedule : workspace;
        if (t.schedule && plan->checked) status = attn_decode_schedule_check(&a.shape, t.schedule, stream);
        if (!t.schedule) status = schedule(plan, &t, workspace, stream);
    }
    if (!status) status = launch_main(plan, &a, stream);
    const int merges = a.schedule || !attn_decode_even_whole(&a.shape, &a.even);
    if (!status && merges && parts_bytes(plan, &a.shape)) status = launch_merge(plan, &a, stream);
    return status;
}

const attn_kernel attn_mla_decode_sm90 = {
    .name = "mla_decode_sm90",
    .summary = "multi-head latent attention decode for Hopper: split over the keys, K tiles shared by pairs "
               "of blocks, two warpgroups in a seesaw",
    .pass = ATTN_FORWARD,
    .device = ATTN_CUDA,
    .isa = ATTN_CUDA_ONLY(90),
    .dtypes = ATTN_DTYPE_BIT(ATTN_F16) | ATTN_DTYPE_BIT(ATTN_BF16),
    .features = ATTN_NEEDS_CAUSAL | ATTN_NEEDS_SINKS | ATTN_NEEDS_PACKED | ATTN_NEEDS_SEQUSED |
                ATTN_NEEDS_LEFTPAD | ATTN_NEEDS_KV_INDEX | ATTN_NEEDS_PAGES | ATTN_NEEDS_GQA |
                ATTN_NEEDS_V_DIM | ATTN_NEEDS_V_IN_K | ATTN_NEEDS_STRICT,
    .refuse = refuse,
    .prepare = prepare,
    .schedule = schedule,
    .run = run,
};
