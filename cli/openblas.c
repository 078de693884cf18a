/* openblas.c — attention the way a framework computes it on a CPU: products by a GEMM library, softmax
 * between them, one (batch, head) or block of queries per thread. OpenBLAS is opened at run time; nothing
 * links it. */
#include "openblas.h"
#include "openblas_softmax.h"
#include "team.h"
#include <dlfcn.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, TRANSPOSE = 112, KEY_BLOCK = 512 };

typedef void (*sgemm_function)(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a,
                               int lda, const float *b, int ldb, float beta, float *c, int ldc);

static struct {
    void *handle;
    sgemm_function sgemm;
    void (*set_threads)(int);
    char *(*core)(void);
} blas;

/* Settings in the environment that slow it down would make us look good: they go before it is loaded. */
static const char *open_library(void) {
    static const char *const names[] = { "libopenblas.so.0", "libopenblas.so", "libopenblas.dylib" };
    if (blas.sgemm) return NULL;
    unsetenv("OPENBLAS_CORETYPE");
    unsetenv("OPENBLAS_L2_SIZE");
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    for (size_t i = 0; !blas.handle && i < sizeof names / sizeof *names; i++)
        blas.handle = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!blas.handle) return "OpenBLAS is not installed (Debian package libopenblas0-pthread)";
    void *const sgemm = dlsym(blas.handle, "cblas_sgemm");
    void *const threads = dlsym(blas.handle, "openblas_set_num_threads");
    void *const core = dlsym(blas.handle, "openblas_get_corename");
    if (!sgemm || !threads) return "this OpenBLAS has no cblas_sgemm";
    memcpy(&blas.set_threads, &threads, sizeof threads);
    memcpy(&blas.core, &core, sizeof core);
    memcpy(&blas.sgemm, &sgemm, sizeof sgemm);
    blas.set_threads(1);                /* our threads, each with a single-threaded GEMM: its own threading
                                           loses */
    return NULL;
}

const char *openblas_unavailable(void) { return open_library(); }
const char *openblas_core(void) { return !open_library() && blas.core ? blas.core() : ""; }

/* ---- one prepared problem ---- */

typedef struct baseline {
    attn_problem        problem;
    const attn_tensors *tensors;
    int                 naive, threads;
    int64_t             block, blocks;  /* queries of an item, items of a head */
    int64_t             scratch_floats; /* per thread */
    float              *scratch;
    team               *team;
    atomic_llong        next;
} baseline;

static const char *refuse(const attn_problem *p) {
    if (p->dtype != ATTN_F32 || p->o_dtype != ATTN_F32) return "the OpenBLAS baseline computes f32 only";
    if (p->window || p->bias_dtype || p->has_mask || p->alibi || p->softcap > 0 || p->has_sinks)
        return "the OpenBLAS baseline knows no mask but causal";
    if (p->packed_q || p->packed_kv || p->has_seqused_q || p->has_seqused_kv || p->has_leftpad_kv ||
        p->has_kv_batch_index || p->page_size || p->v_in_k)
        return "the OpenBLAS baseline reads dense batches only";
    return NULL;
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Keys that query i sees. */
static int64_t limit(const attn_problem *p, int64_t i) {
    const int64_t n = p->causal ? i + 1 + (p->top_left ? 0 : p->kv_len - p->q_len) : p->kv_len;
    return n < 0 ? 0 : smaller(n, p->kv_len);
}

typedef struct place {                  /* one item: rows i .. i + rows - 1 of a head */
    const float *q, *k, *v;
    float *o, *lse;
    int64_t i, rows;
} place;

static place place_of(const baseline *x, int64_t item) {
    const attn_problem *p = &x->problem;
    const attn_tensors *t = x->tensors;
    const int64_t per_head = item % x->blocks, h = item / x->blocks % p->q_heads,
                  b = item / x->blocks / p->q_heads;
    const int64_t i = (x->blocks - 1 - per_head) * x->block;               /* longest first */
    const int64_t g = h / (p->q_heads / p->kv_heads);
    place at = { (const float *)t->q + b * p->q_stride.batch + h * p->q_stride.head + i * p->q_stride.seq,
                 (const float *)t->k + b * p->k_stride.batch + g * p->k_stride.head,
                 (const float *)t->v + b * p->v_stride.batch + g * p->v_stride.head,
                 (float *)t->o + b * p->o_stride.batch + h * p->o_stride.head + i * p->o_stride.seq, NULL, i,
                 smaller(x->block, p->q_len - i) };
    if (t->lse) at.lse = t->lse + b * p->lse_stride.batch + h * p->lse_stride.head + i * p->lse_stride.seq;
    return at;
}

/* One item. Scores of `width` keys at a time: all of them (naive) or KEY_BLOCK; the running softmax serves
 * both. Causal: naive computes every score and hides some, as an unfused framework does; blocked stops at the
 * last key. */
static void attend(baseline *x, int64_t item, float *scratch) {
    const attn_problem *p = &x->problem;
    const place at = place_of(x, item);
    const int64_t last = x->naive ? p->kv_len : limit(p, at.i + at.rows - 1);
    const int64_t width = x->naive ? p->kv_len : KEY_BLOCK;
    float *m = scratch, *l = m + x->block, *c = l + x->block, *o = c + x->block, *s = o + x->block * p->v_dim;
    for (int64_t r = 0; r < at.rows; r++) m[r] = -INFINITY, l[r] = 0;
    memset(o, 0, sizeof *o * (size_t)(at.rows * p->v_dim));
    for (int64_t j = 0; j < last; j += width) {
        const int64_t n = smaller(width, last - j);
        blas.sgemm(ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE, (int)at.rows, (int)n, (int)p->qk_dim, p->scale, at.q,
                   (int)p->q_stride.seq, at.k + j * p->k_stride.seq, (int)p->k_stride.seq, 0, s, (int)n);
        for (int64_t r = 0; r < at.rows; r++) {
            const int64_t seen = limit(p, at.i + r) - j;
            openblas_softmax_row(s + r * n, n, seen < 0 ? 0 : smaller(seen, n), &m[r], &l[r], &c[r]);
            for (int64_t d = 0; j > 0 && d < p->v_dim; d++) o[r * p->v_dim + d] *= c[r];
        }
        blas.sgemm(ROW_MAJOR, NO_TRANSPOSE, NO_TRANSPOSE, (int)at.rows, (int)p->v_dim, (int)n, 1, s, (int)n,
                   at.v + j * p->v_stride.seq, (int)p->v_stride.seq, 1, o, (int)p->v_dim);
    }
    for (int64_t r = 0; r < at.rows; r++) {
        const float inverse = l[r] == 0 ? 0 : 1 / l[r];
        for (int64_t d = 0; d < p->v_dim; d++) at.o[r * p->o_stride.seq + d] = o[r * p->v_dim + d] * inverse;
        if (at.lse) at.lse[r * p->lse_stride.seq] = l[r] == 0 ? -INFINITY : m[r] + logf(l[r]);
    }
}

static void work(void *arg, int member) {
    baseline *x = arg;
    const int64_t items = x->problem.batch * x->problem.q_heads * x->blocks;
    for (int64_t item; (item = atomic_fetch_add(&x->next, 1)) < items;)
        attend(x, item, x->scratch + member * x->scratch_floats);
}

/* ---- the candidate ---- */

static void finish(check_candidate *c) {
    baseline *x = c->state;
    if (!x) return;
    team_destroy(x->team);
    free(x->scratch);
    free(x);
    c->state = NULL;
}

static attn_status prepare(check_candidate *c, const attn_problem *problem, const attn_options *options,
                           size_t *workspace, const char **refusal) {
    const int naive = !strcmp(c->name, "openblas_naive");
    attn_problem p = *problem;
    *workspace = 0;
    c->state = NULL;
    *refusal = open_library();
    if (!*refusal) *refusal = attn_problem_resolve(&p) ? attn_last_error() : refuse(&p);
    if (!*refusal && p.q_len > 0x7fffffff / (p.kv_len ? p.kv_len : 1) && naive)
        *refusal = "too long for one GEMM";
    if (*refusal) return ATTN_UNSUPPORTED;
    baseline *x = calloc(1, sizeof *x);
    if (!x) return ATTN_NO_MEMORY;
    c->state = x;
    x->problem = p;
    x->naive = naive;
    x->threads = options && options->threads ? options->threads : attn_cpu_threads();
    x->block = naive ? p.q_len : p.q_len >= 768 ? 256 : p.q_len >= 192 ? 64 : 32;
    x->block = x->block > p.q_len ? p.q_len : x->block;
    if (!x->block) x->block = 1;
    x->blocks = (p.q_len + x->block - 1) / x->block;
    const int64_t width = naive ? p.kv_len : KEY_BLOCK;
    x->scratch_floats = (x->block * (3 + p.v_dim + width) + 15) / 16 * 16;
    x->scratch = aligned_alloc(64, sizeof(float) * (size_t)(x->scratch_floats * x->threads));
    x->team = team_create(x->threads);
    if (x->scratch && x->team) return ATTN_OK;
    finish(c);
    return ATTN_NO_MEMORY;
}

static attn_status run(check_candidate *c, const attn_tensors *tensors, void *workspace, void *stream) {
    baseline *x = c->state;
    (void)workspace;
    (void)stream;
    x->tensors = tensors;
    atomic_store(&x->next, 0);
    team_run(x->team, work, x);
    return ATTN_OK;
}

check_candidate openblas_candidate(int naive) {
    return (check_candidate){ .name = naive ? "openblas_naive" : "openblas_blocked", .prepare = prepare,
                              .run = run,
                              .finish = finish };
}
