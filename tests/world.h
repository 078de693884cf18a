/* world.h — a dense problem with its tensors in plain memory, for property tests: run it on a kernel, run it
 * changed, compare bits or compare within the bound of the float64 answer. */
#ifndef TESTS_WORLD_H
#define TESTS_WORLD_H
#include "data.h"
#include <stdio.h>
#include <stdlib.h>

typedef struct world {
    attn_problem p;                 /* resolved at creation; change it afterwards for a variant */
    attn_tensors t;
    void        *q, *k, *v, *o;
    float       *lse;
    double      *bound, *lse_bound; /* of the answer to p as created, in the order of O and LSE [b, i, h] */
    size_t       o_bytes, rows;
} world;

static void *filled(int64_t count, attn_dtype dtype, uint64_t seed) {
    void *x = calloc((size_t)count + 16, 4);
    for (int64_t n = 0; x && n < count; n++)
        check_narrow(x, dtype, n, check_normal(check_mix(seed + (uint64_t)n)));
    return x;
}

/* Outputs of the size of w's; the inputs are shared with w. */
static void give_outputs(world *w) {
    w->rows = (size_t)(w->p.batch * w->p.q_len * w->p.q_heads);
    w->o_bytes = w->rows * (size_t)w->p.v_dim * (size_t)check_element_size(w->p.o_dtype);
    w->o = malloc(w->o_bytes + 16);
    w->lse = malloc((w->rows + 4) * sizeof *w->lse);
    w->t.o = w->o;
    w->t.lse = w->lse;
}

static world world_create(attn_problem p, uint64_t seed) {
    world w = { .p = p, .t = ATTN_TENSORS_INIT };
    if (attn_problem_resolve(&w.p)) printf("world: %s\n", attn_last_error());
    p = w.p;
    w.q = filled(p.batch * p.q_len * p.q_heads * p.qk_dim, p.dtype, seed);
    w.k = filled(p.batch * p.kv_len * p.kv_heads * p.qk_dim, p.dtype, seed ^ 1ull << 40);
    w.v = filled(p.batch * p.kv_len * p.kv_heads * p.v_dim, p.dtype, seed ^ 1ull << 41);
    w.t.q = w.q;
    w.t.k = w.k;
    w.t.v = w.v;
    give_outputs(&w);
    return w;
}

/* Bounds for comparisons, from the float64 answer to the world as it is now. */
static void world_bounds(world *w) {
    check_data *data;
    const attn_problem *p = &w->p;
    const size_t n = w->rows, d = (size_t)p->v_dim;
    w->bound = calloc(n * d + 1, sizeof *w->bound);
    w->lse_bound = calloc(n + 1, sizeof *w->lse_bound);
    if (check_data_from(&data, p, &w->t, NULL)) {
        printf("world: %s\n", attn_last_error());
        return;
    }
    check_data_answer(data);
    memcpy(w->bound, data->answer.bound, n * d * sizeof *w->bound);
    memcpy(w->lse_bound, data->answer.lse_bound, n * sizeof *w->lse_bound);
    check_data_destroy(data);
}

static void world_destroy(world *w) {
    free(w->q);
    free(w->k);
    free(w->v);
    free(w->o);
    free(w->lse);
    free(w->bound);
    free(w->lse_bound);
}

/* Outputs only: inputs belong to the world it was copied from. */
static void variant_destroy(world *w) {
    free(w->o);
    free(w->lse);
}

static world variant(const world *w) {
    world x = *w;
    give_outputs(&x);
    return x;
}

/* 1 = ran, 0 = the kernel refuses the problem, -1 = failed. */
static int world_run(world *w, const char *kernel, const attn_options *given) {
    attn_options options = ATTN_OPTIONS_INIT;
    attn_plan *plan;
    if (given) options = *given;
    options.kernel = kernel;
    const attn_status status = attn_plan_create(&plan, &w->p, &options);
    if (status == ATTN_UNSUPPORTED) return 0;
    if (status) {
        printf("plan of %s: %s\n", kernel, attn_last_error());
        return -1;
    }
    memset(w->o, 0xFF, w->o_bytes);
    const size_t bytes = attn_plan_workspace(plan);
    void *workspace = bytes ? aligned_alloc(64, (bytes + 63) / 64 * 64) : NULL;
    if (workspace) memset(workspace, 0xFF, bytes);
    const attn_status ran = attn_run(plan, &w->t, workspace, NULL);
    if (ran) printf("run of %s: %s\n", kernel, attn_last_error());
    free(workspace);
    attn_plan_destroy(plan);
    return ran ? -1 : 1;
}

static int same_bits(const world *a, const world *b) {
    return !memcmp(a->o, b->o, a->o_bytes) && !memcmp(a->lse, b->lse, a->rows * sizeof *a->lse);
}

static double o_at(const world *w, size_t n) { return check_widen(w->o, w->p.o_dtype, (int64_t)n); }

/* LSE is [b, h, i]. */
static size_t lse_index(const attn_problem *p, size_t row) {
    const size_t heads = (size_t)p->q_heads, queries = (size_t)p->q_len;
    const size_t h = row % heads, i = row / heads % queries, b = row / heads / queries;
    return (b * heads + h) * queries + i;
}

/* |a - b| within twice a's bounds (each may be off by one); LSE of b moved by `shift` first. */
static int within(const world *a, const world *b, double shift) {
    const size_t dims = (size_t)a->p.v_dim;
    for (size_t n = 0; n < a->rows * dims; n++)
        if (!(fabs(o_at(a, n) - o_at(b, n)) <= 2 * a->bound[n])) {
            printf("    o[%zu]: %.9g and %.9g, apart by more than 2 x %.3g\n", n, o_at(a, n), o_at(b, n),
                   a->bound[n]);
            return 0;
        }
    for (size_t n = 0; n < a->rows; n++) {
        const double x = (double)a->lse[lse_index(&a->p, n)], y = (double)b->lse[lse_index(&b->p, n)];
        const double slack = 2 * a->lse_bound[n] + 0x1p-22 * (fabs(x) + fabs(shift));
        if (x == (double)-INFINITY && y == x) continue;
        if (!(fabs(x - y + shift) <= slack)) {
            printf("    lse[%zu]: %.9g and %.9g, apart by more than %.3g\n", n, x, y - shift, slack);
            return 0;
        }
    }
    return 1;
}

/* ---- partial results and merging them, in float64 ---- */

typedef struct part { double *o, *lse; } part;

static part part_of(const world *w) {
    const size_t dims = (size_t)w->p.v_dim;
    part x = { calloc(w->rows * dims, sizeof(double)), calloc(w->rows, sizeof(double)) };
    for (size_t n = 0; n < w->rows * dims; n++) x.o[n] = o_at(w, n);
    for (size_t n = 0; n < w->rows; n++) x.lse[n] = (double)w->lse[lse_index(&w->p, n)];
    return x;
}

static part merged(const world *w, part a, part b) {
    const size_t dims = (size_t)w->p.v_dim;
    part x = { calloc(w->rows * dims, sizeof(double)), calloc(w->rows, sizeof(double)) };
    for (size_t r = 0; r < w->rows; r++) {
        const double top = a.lse[r] > b.lse[r] ? a.lse[r] : b.lse[r];
        const int any = top > (double)-INFINITY;
        const double wa = any ? exp(a.lse[r] - top) : 0, wb = any ? exp(b.lse[r] - top) : 0;
        x.lse[r] = top + log(wa + wb);
        for (size_t d = r * dims; any && d < (r + 1) * dims; d++)
            x.o[d] = (wa * a.o[d] + wb * b.o[d]) / (wa + wb);
    }
    return x;
}

static int close_parts(const world *w, part a, part b, double slack) {
    const size_t dims = (size_t)w->p.v_dim;
    for (size_t n = 0; n < w->rows * dims; n++)
        if (!(fabs(a.o[n] - b.o[n]) <= slack * w->bound[n] + 1e-12)) return 0;
    for (size_t n = 0; n < w->rows; n++)
        if (!(a.lse[n] == b.lse[n] || fabs(a.lse[n] - b.lse[n]) <= slack * w->lse_bound[n] + 1e-12)) return 0;
    return 1;
}

static void part_destroy(part *x) {
    free(x->o);
    free(x->lse);
}
#endif
