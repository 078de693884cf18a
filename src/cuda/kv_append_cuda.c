/* kv_append_cuda.c — the record of kv_append_cuda.cu: how many blocks,
 * and whether rows can be moved 16 bytes at a time. */
#include "kv_append_cuda.h"
#include "launch.h"

ATTN_CUDA_IMAGE(kv_append_cuda);

enum { WIDE, ANY };     /* slots of the plan; schedule[0]: the problem's shape allows WIDE */

static int whole(attn_stride s) {
    return s.batch % APPEND_WIDE == 0 && s.seq % APPEND_WIDE == 0 && s.head % APPEND_WIDE == 0;
}

/* Every row of every head starts at a multiple of 8 elements,
 * and so do the halves that are turned and their tables. */
static int is_wide(const attn_problem *p) {
    const int turned = p->rotary_interleaved ? p->rotary_dim : p->rotary_dim / 2;
    if (p->qk_dim % APPEND_WIDE || !whole(p->k_stride) || !whole(p->k_new_stride)) return 0;
    if (!p->v_in_k && (p->v_dim % APPEND_WIDE || !whole(p->v_stride) || !whole(p->v_new_stride))) return 0;
    if (p->write_q && (!whole(p->q_stride) || !whole(p->q_out_stride))) return 0;
    if (!p->rotary_dim) return 1;
    return turned % APPEND_WIDE == 0 && p->rotary_first % APPEND_WIDE == 0 &&
           (p->rotary_interleaved || p->rotary_stride % APPEND_WIDE == 0);
}

static const char *refuse(const attn_problem *p) {
    int64_t rows = p->new_total, q_rows = p->q_total, k, v, q;
    if (!p->packed_new && !attn_multiply(p->batch, p->new_len, &rows))
        return "batch * new_len overflows 64 bits";
    if (!p->packed_q && !attn_multiply(p->batch, p->q_len, &q_rows)) return "batch * q_len overflows 64 bits";
    const int fits = attn_multiply(p->kv_heads, p->qk_dim, &k) && attn_multiply(k, rows, &k) &&
                     attn_multiply(p->kv_heads, p->v_dim, &v) && attn_multiply(v, rows, &v) &&
                     attn_multiply(p->q_heads, p->qk_dim, &q) && attn_multiply(q, q_rows, &q);
    return fits && k < INT64_MAX / 4 && v < INT64_MAX / 4 && q < INT64_MAX / 4 ? NULL
         : "rows * heads * dim overflows 64 bits";
}

static attn_status prepare(attn_plan *plan) {
    const void *image = ATTN_CUDA_IMAGE_OF(kv_append_cuda);
    plan->schedule[0] = is_wide(&plan->problem);
    const attn_status status = attn_cuda_prepare(plan, WIDE, image, "kv_append_wide", 0);
    return status ? status : attn_cuda_prepare(plan, ANY, image, "kv_append_any", 0);
}

static int aligned(const attn_problem *p, const attn_tensors *t) {
    const uintptr_t tables = p->rotary_dim ? (uintptr_t)t->rotary_cos | (uintptr_t)t->rotary_sin : 0;
    const uintptr_t all = (p->rotary_interleaved ? 0 : tables) | (uintptr_t)t->k | (uintptr_t)t->k_new |
                          (uintptr_t)t->v | (uintptr_t)t->v_new | (uintptr_t)t->q | (uintptr_t)t->q_out;
    return all % 16 == 0;
}

static int64_t parts(int64_t heads, int per_head, int chunks) {
    return (heads * per_head + APPEND_THREADS * chunks - 1) / (APPEND_THREADS * chunks);
}

/* Chunks of a head that threads start from. Second halves go with the first;
 * in single elements so do odd columns, but those keep their number (a thread finds nothing to do there). */
static int starts(const attn_problem *p, int64_t dim, int turned, int width) {
    const int64_t second = turned && !p->rotary_interleaved ? p->rotary_dim / 2 : 0;
    return (int)((dim - second) / width);
}

enum { FILLED = 4096 };     /* blocks that keep any device busy: then a thread takes more than one chunk */

static void cut(const attn_problem *p, kv_append_work *w, int chunks) {
    w->chunks = chunks;
    w->k_parts = parts(p->kv_heads, w->k_head, chunks);
    w->v_parts = p->v_in_k ? 0 : parts(p->kv_heads, w->v_head, chunks);
    w->q_parts = p->write_q ? parts(p->q_heads, w->q_head, chunks) : 0;
    w->units = w->rows * (w->k_parts + w->v_parts) + w->q_rows * w->q_parts;
}

static attn_status run(const attn_plan *plan, const attn_tensors *caller_tensors, void *workspace,
                       void *stream) {
    const attn_problem *p = &plan->problem;
    attn_tensors t = *caller_tensors;
    (void)workspace;
    if (p->v_in_k) t.v = t.v_new = NULL;        /* the others decide about alignment */
    if (!p->write_q) t.q = t.q_out = NULL;
    const int wide = plan->schedule[0] && aligned(p, &t), width = wide ? APPEND_WIDE : 1;
    kv_append_work w = { .rows = p->packed_new ? p->new_total : p->batch * p->new_len,
                         .k_head = starts(p, p->qk_dim, 1, width), .v_head = starts(p, p->v_dim, 0, width),
                         .q_head = starts(p, p->qk_dim, 1, width) };
    if (!p->kv_len) w.rows = 0;
    if (p->write_q) w.q_rows = p->packed_q ? p->q_total : p->batch * p->q_len;
    cut(p, &w, 1);
    if (w.units > FILLED) cut(p, &w, APPEND_MOST_CHUNKS);
    if (t.seqused_kv_out) w.units += (p->batch + APPEND_THREADS - 1) / APPEND_THREADS;
    const attn_cuda_grid grid = { .blocks = w.units < INT32_MAX ? w.units : INT32_MAX,
                                  .threads = APPEND_THREADS };
    void *arguments[] = { (void *)(uintptr_t)p, &t, &w };
    return attn_cuda_launch(plan, wide ? WIDE : ANY, &grid, stream, arguments);
}

const attn_kernel attn_kv_append_cuda = {
    .name = "kv_append_cuda",
    .summary = "new K, V rows into a cache, rotary on K and Q; 16 bytes a thread, bandwidth-bound",
    .pass = ATTN_KV_APPEND, .device = ATTN_CUDA, .isa = 80, .dtypes = ATTN_DTYPE_BITS_ALL,
    .features = ATTN_NEEDS_ALL, .refuse = refuse, .prepare = prepare, .run = run,
};
