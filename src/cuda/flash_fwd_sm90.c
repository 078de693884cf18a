/* flash_fwd_sm90.c — the record of flash_fwd_sm90.cu: which tile of the table a problem gets, its tensor
 * maps, its launch. Everything here is arithmetic on the problem; a run encodes three maps from the pointers
 * and queues one kernel. */
#include "flash_fwd_sm90.h"
#include "launch.h"

ATTN_CUDA_IMAGE(flash_fwd_sm90);

typedef struct sm90_tile {
    int qk, v, kind, keys, warpgroups, stages, pingpong, lazy;
    const char *bf16, *f16;
} sm90_tile;

static const sm90_tile tiles[] = {
#define ROW(qk, v, kind, keys, warpgroups, stages, pingpong, lazy) \
    { qk, v, kind, keys, warpgroups, stages, pingpong, lazy, \
      SM90_NAME(bf16, qk, v, kind, keys, warpgroups, stages, pingpong, lazy), \
      SM90_NAME(f16, qk, v, kind, keys, warpgroups, stages, pingpong, lazy) },
#define SM90_NAME(dtype, qk, v, kind, ...) SM90_TEXT(SM90_SYMBOL(dtype, qk, v, kind, __VA_ARGS__))
    ATTN_SM90_TILES(ROW)
#undef ROW
};
enum { TILES = sizeof tiles / sizeof *tiles };

/* What every row must keep: shared memory and registers of a Hopper multiprocessor, the area for barriers. */
#define FITS(qk, v, kind, keys, warpgroups, stages, pingpong, lazy) \
    _Static_assert(SM90_SMEM(qk, v, keys, warpgroups, stages) <= 232448 && (keys) % 16 == 0 && \
                   (keys) / 2 + (keys) / 4 + (v) / 2 <= ((warpgroups) == 3 ? 160 : 224) - 24 && \
                   8 * (2 * (warpgroups) + 5 * (stages) + 3 * SM90_TILE_SLOTS + 1) <= SM90_BARRIER_BYTES, \
                   "a row of ATTN_SM90_TILES is too large");
ATTN_SM90_TILES(FITS)
#undef FITS

/* Where the plan keeps its numbers. */
enum { PLAN_TILE, PLAN_BLOCKS, PLAN_PACK_SHIFT, PLAN_GROUP_HEADS };

#if defined(SM90_TUNE)      /* the tuning driver names a row of its own table */
int sm90_tune_row = -1, sm90_tune_static = 0, sm90_tune_group_mb = 32;
#else
enum { sm90_tune_row = -1, sm90_tune_static = 0, sm90_tune_group_mb = 32 };
#endif

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- which tile ---- */

static int kind_of(const attn_problem *p) {
    const int window = p->window_left >= 0 || p->window_right >= 0;
    if (p->bias_dtype || p->has_mask) return SM90_BIASED;
    if (window || p->softcap > 0 || p->alibi || p->scale <= 0) return SM90_GENERAL;
    return p->causal ? SM90_CAUSAL : SM90_FULL;
}

/* Keys of one copy of a K/V tile: pages may be smaller than the tile or cut it unevenly. */
static int page_rows(const attn_problem *p, int keys) {
    if (!p->page_size) return keys;
    int64_t a = p->page_size, b = keys;
    while (b) {
        const int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return (int)a;
}

/* The smallest tile that holds the head dims; -1: none. */
static int pick(const attn_problem *p) {
    if (sm90_tune_row >= 0) return sm90_tune_row;
    int best = -1;
    const int kind = kind_of(p);
    for (int i = 0; i < TILES; i++) {
        if (tiles[i].kind != kind || tiles[i].qk < p->qk_dim || tiles[i].v < p->v_dim) continue;
        if (best < 0 || tiles[i].qk + tiles[i].v < tiles[best].qk + tiles[best].v) best = i;
    }
    return best;
}

/* ---- what can't be done ---- */

/* The copy engine wants 16-byte aligned rows; a stride of 0 (one row for all) isn't encodable. */
static int stride_fits(attn_stride s, int64_t batch, int64_t seq, int64_t heads) {
    const int64_t extents[] = { batch, seq, heads }, strides[] = { s.batch, s.seq, s.head };
    for (int i = 0; i < 3; i++)
        if (extents[i] > 1 && (strides[i] % 8 || strides[i] <= 0 || strides[i] >= (int64_t)1 << 39)) return 0;
    return 1;
}

static const char *refuse(const attn_problem *p) {
    const int64_t limit = (int64_t)1 << 28;
    const int64_t q_rows = p->packed_q ? p->q_total : p->q_len, q_batch = p->packed_q ? 1 : p->batch;
    const int64_t kv_rows = p->page_size ? p->page_size : p->packed_kv ? p->kv_total : p->kv_len;
    const int64_t kv_batch = p->page_size ? p->pages : p->packed_kv ? 1 : p->kv_batch;
    if (p->qk_dim > 256 || p->v_dim > 256) return "head dims above 256";
    if (p->v_dim % 8) return "needs v_dim to be a multiple of 8";
    if (q_rows > limit || kv_rows > limit || p->kv_len > limit || p->batch > limit || p->q_heads > limit ||
        (q_rows / 64 + p->batch) * p->q_heads > limit)
        return "more than 2^28 rows or tiles";
    if (!stride_fits(p->q_stride, q_batch, q_rows, p->q_heads) ||
        !stride_fits(p->k_stride, kv_batch, kv_rows, p->kv_heads) ||
        !stride_fits(p->v_stride, kv_batch, kv_rows, p->kv_heads) ||
        !stride_fits(p->o_stride, q_batch, q_rows, p->q_heads))
        return "needs strides that are multiples of 8 elements and not 0";
    if (p->page_size % 8) return "needs pages of a multiple of 8 tokens";
    if (pick(p) < 0) return "no tile for these head dims";
    return NULL;
}

/* ---- plan ---- */

/* With few queries, several query heads of one K/V head share a tile: 2^shift of them. */
static int pack_shift(const attn_problem *p, int rows) {
    const int64_t heads = p->q_heads / p->kv_heads;
    int shift = 0;
    while ((int64_t)1 << shift < heads) shift++;
    if ((int64_t)1 << shift != heads || shift > 6) return 0;
    const int64_t apart = (p->q_len + rows - 1) / rows * heads,
                  together = (p->q_len * heads + rows - 1) / rows;
    return together * 4 <= apart * 3 ? shift : 0;
}

/* Tile heads whose K and V fit into 32 MB, so that they stay in L2 (50 MB on an H100) while their tiles run.
 * Of short sequences only as many as all blocks together hold with all their rows: the longest rows, which
 * come first and fetch K and V, would wait for memory if every block had one. */
static int64_t group_heads(const attn_problem *p, int shift, int64_t heights, int64_t blocks) {
    const int64_t bytes = p->kv_len * (p->qk_dim + p->v_dim) * 2, share = p->q_heads / p->kv_heads >> shift;
    const int64_t most = (p->packed_q ? 1 : p->batch) * p->kv_heads;
    int64_t heads = 1;
    while (heads * 2 * bytes <= (int64_t)sm90_tune_group_mb << 20 && heads < most &&
           (heights > 8 || heads * 2 * share * heights <= blocks))
        heads *= 2;
    return smaller(heads, most) * share;
}

static attn_status prepare(attn_plan *plan) {
    const attn_problem *p = &plan->problem;
    attn_cuda_device device;
    const int row = pick(p);
    const sm90_tile *t = &tiles[row];
    const attn_status status = attn_cuda_device_read(plan->cuda_device, &device);
    if (status) return status;
    const int rows = 64 * t->warpgroups, shift = pack_shift(p, rows);
    const int64_t heads = p->q_heads >> shift;
    const int64_t heights = ((p->q_len << shift) + rows - 1) / rows;    /* of one head */
    const int64_t most =
        p->packed_q ? ((p->q_total << shift) / rows + p->batch) * heads : heights * p->batch * heads;
    const int even = t->kind == SM90_FULL && !p->packed_q && !p->packed_kv && !p->has_seqused_q &&
                     !p->has_seqused_kv && !p->has_leftpad_kv;
    plan->schedule[PLAN_TILE] = row;
    plan->schedule[PLAN_BLOCKS] = smaller(most, device.multiprocessors);
    plan->schedule[PLAN_PACK_SHIFT] = shift;
    plan->schedule[PLAN_GROUP_HEADS] = t->kind == SM90_FULL
                                           ? p->q_heads / p->kv_heads >> shift
                                           : group_heads(p, shift, heights, device.multiprocessors);
    /* Tiles of unequal length are handed out by a counter. */
    plan->workspace = (even || sm90_tune_static || most <= device.multiprocessors) ? 0 : 256;
    return attn_cuda_prepare(plan, 0, ATTN_CUDA_IMAGE_OF(flash_fwd_sm90),
                             p->dtype == ATTN_BF16 ? t->bf16 : t->f16,
                             SM90_SMEM(t->qk, t->v, t->keys, t->warpgroups, t->stages));
}

/* ---- run ---- */

typedef struct view { const void *at; int64_t dim, heads, rows, batch; attn_stride stride; } view;

/* Boxes of 64 columns x heads x rows; columns past dim and rows past the end read as zeros. */
static attn_status encode(cu_tensor_map *map, const attn_problem *p, const view *x, int heads, int rows,
                          const char *name) {
    const attn_cuda_driver *driver = attn_cuda();
    if (!driver) return ATTN_DEVICE_ERROR;
    const int64_t extents[] = { x->dim, x->heads, x->rows, x->batch },
                  elements[] = { x->stride.head, x->stride.seq, x->stride.batch };
    uint64_t sizes[4], strides[3];
    for (int i = 0; i < 4; i++) sizes[i] = extents[i] > 0 ? (uint64_t)extents[i] : 1;
    for (int i = 0; i < 3; i++) strides[i] = extents[i + 1] > 1 ? (uint64_t)elements[i] * 2 : 16;
    const uint32_t box[4] = { 64, (uint32_t)heads, (uint32_t)rows, 1 }, ones[4] = { 1, 1, 1, 1 };
    const cu_result result = driver->TensorMapEncodeTiled(
        map, p->dtype == ATTN_BF16 ? CU_MAP_BF16 : CU_MAP_F16, 4, (void *)(uintptr_t)x->at, sizes, strides,
        box, ones, CU_MAP_INTERLEAVE_NONE, CU_MAP_SWIZZLE_128B, CU_MAP_L2_256B, CU_MAP_FILL_ZEROS);
    if (!result) return ATTN_OK;
    return attn_fail(ATTN_DEVICE_ERROR, "describing %s to the copy engine: %s", name,
                     attn_cuda_error(driver, result));
}

static attn_status encode_maps(cu_tensor_map maps[3], const attn_problem *p, const attn_tensors *t,
                               const sm90_tile *tile, int shift) {
    const int64_t kv_rows = p->page_size ? p->page_size : p->packed_kv ? p->kv_total : p->kv_len;
    const int64_t kv_batch = p->page_size ? p->pages : p->packed_kv ? 1 : p->kv_batch;
    const int64_t q_rows = p->packed_q ? p->q_total : p->q_len, q_batch = p->packed_q ? 1 : p->batch;
    const int empty = kv_rows <= 0 || kv_batch <= 0;    /* nothing is read, but a map needs some address */
    const view q = { t->q, p->qk_dim, p->q_heads, q_rows, q_batch, p->q_stride };
    const view k = { empty ? t->q : t->k, p->qk_dim, p->kv_heads, kv_rows, kv_batch, p->k_stride };
    const view v = { empty ? t->q : t->v, p->v_dim, p->kv_heads, kv_rows, kv_batch, p->v_stride };
    const int rows = page_rows(p, tile->keys);
    attn_status status = encode(&maps[0], p, &q, 1 << shift, 64 >> shift, "q");
    if (!status) status = encode(&maps[1], p, &k, 1, rows, "k");
    if (!status) status = encode(&maps[2], p, &v, 1, rows, "v");
    return status;
}

static attn_status run(const attn_plan *plan, const attn_tensors *tensors, void *workspace, void *stream) {
    const attn_problem *p = &plan->problem;
    const sm90_tile *tile = &tiles[plan->schedule[PLAN_TILE]];
    const int shift = (int)plan->schedule[PLAN_PACK_SHIFT];
    attn_tensors t = *tensors;
    if (p->v_in_k) t.v = t.k;
    attn_status status = attn_cuda_aligned(p, &t, 16);
    cu_tensor_map maps[3];
    if (!status) status = encode_maps(maps, p, &t, tile, shift);
    if (status) return status;
    flash_fwd_sm90_args a = {
        .problem = *p,
        .tensors = t,
        .counter = plan->workspace ? workspace : NULL,
        .scale_log2 = p->scale * 1.4426950408889634f,
        .pack_shift = shift,
        .tile_heads = (int)(p->q_heads >> shift),
        .group_heads = (int)plan->schedule[PLAN_GROUP_HEADS],
        .page_rows = page_rows(p, tile->keys),
        .scan_tail = p->page_size || p->packed_kv || p->has_seqused_kv || p->has_leftpad_kv,
    };
    if (a.counter) {
        const attn_cuda_driver *driver = attn_cuda();
        const cu_result result = driver->MemsetD8Async((cu_pointer)(uintptr_t)workspace, 0, 4, stream);
        if (result)
            return attn_fail(ATTN_DEVICE_ERROR, "clearing the tile counter: %s",
                             attn_cuda_error(driver, result));
    }
    const attn_cuda_grid grid = {
        .blocks = plan->schedule[PLAN_BLOCKS],
        .threads = 128 * (tile->warpgroups + 1),
        .smem = SM90_SMEM(tile->qk, tile->v, tile->keys, tile->warpgroups, tile->stages),
    };
    void *arguments[] = { &maps[0], &maps[1], &maps[2], &a };
    return attn_cuda_launch(plan, 0, &grid, stream, arguments);
}

const attn_kernel attn_flash_fwd_sm90 = {
    .name = "flash_fwd_sm90",
    .summary =
        "flash attention for Hopper: TMA, wgmma, a producer and 2-3 consumer warpgroups, persistent blocks",
    .pass = ATTN_FORWARD,
    .device = ATTN_CUDA,
    .isa = ATTN_CUDA_ONLY(90),
    .dtypes = ATTN_DTYPE_BIT(ATTN_F16) | ATTN_DTYPE_BIT(ATTN_BF16),
    .features = ATTN_NEEDS_ALL & ~(unsigned)ATTN_NEEDS_O_F32,
    .refuse = refuse,
    .prepare = prepare,
    .run = run,
};
