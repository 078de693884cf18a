/* suspect.c — names the mistake behind a wrong element: recomputes its row under one deliberate mistake after
 * another and reports the first that gives the wrong value. A guess to start from, no more. */
#include "suspect.h"
#include <stdio.h>
#include <stdlib.h>

typedef struct mistake {
    const char *name;
    check_bend  bend;
    void      (*change)(attn_problem *);   /* or NULL */
} mistake;

static void no_scale(attn_problem *p) { p->scale = 1; }
static void no_softcap(attn_problem *p) { p->softcap = 0; }
static void no_bias(attn_problem *p) { p->bias_dtype = ATTN_DTYPE_DEFAULT; }
static void no_mask(attn_problem *p) { p->has_mask = 0; }
static void no_alibi(attn_problem *p) { p->alibi = ATTN_ALIBI_NONE; }
static void no_sinks(attn_problem *p) { p->has_sinks = 0; }
static void no_causal(attn_problem *p) { p->causal = 0; }
static void no_window(attn_problem *p) { p->window = 0; }
static void other_alignment(attn_problem *p) { p->top_left = !p->top_left; }
static void no_seqused(attn_problem *p) {
    p->has_seqused_kv = p->page_size || p->packed_kv ? p->has_seqused_kv : 0;
}

static const mistake mistakes[] = {
    { "a key too many at the end of the row", { 0, 1, 0 }, NULL },
    { "the last key of the row is missing", { 0, -1, 0 }, NULL },
    { "a key too many at the start of the row", { -1, 0, 0 }, NULL },
    { "the first key of the row is missing", { 1, 0, 0 }, NULL },
    { "the causal or window alignment is the other one (top-left / bottom-right)", { 0, 0, 0 },
      other_alignment },
    { "the next K/V head was read", { 0, 0, 1 }, NULL },
    { "the scale is missing", { 0, 0, 0 }, no_scale },
    { "the softcap is missing", { 0, 0, 0 }, no_softcap },
    { "the bias is missing", { 0, 0, 0 }, no_bias },
    { "the boolean mask is missing", { 0, 0, 0 }, no_mask },
    { "ALiBi is missing", { 0, 0, 0 }, no_alibi },
    { "the sink is missing", { 0, 0, 0 }, no_sinks },
    { "the causal mask is missing", { 0, 0, 0 }, no_causal },
    { "the window is missing", { 0, 0, 0 }, no_window },
    { "seqused_kv is ignored", { 0, 0, 0 }, no_seqused },
};

/* O (d >= 0) or LSE (d < 0) of the answer's row n under a mistake, and the bound there; 0 if it can't be
 * computed. */
static int under(const check_data *data, const mistake *m, int64_t n, int64_t d, double *value,
                 double *bound) {
    const answer *a = &data->answer;
    attn_problem p = data->problem;
    if (m->change) m->change(&p);
    const size_t dims = (size_t)p.v_dim;
    double *scratch = malloc(5 * dims * sizeof *scratch), lse_bound;
    if (!scratch) return 0;
    check_row row = { .o = scratch, .weight = scratch + dims, .drift = scratch + 2 * dims,
                      .tail = scratch + 3 * dims };
    const int ok = check_oracle_row(&p, &data->host, a->row_b[n], a->row_h[n], a->row_i[n], &m->bend, &row);
    if (ok) {
        check_bounds(&p, &row, scratch + 4 * dims, &lse_bound);
        *value = d < 0 ? row.lse : row.o[d];
        *bound = d < 0 ? lse_bound : scratch[4 * dims + (size_t)d];
    }
    free(scratch);
    return ok;
}

static const char *explain(const check_data *data, int64_t n, int64_t d, double got) {
    const answer *a = &data->answer;
    if (a->row_i[n] >= check_queries(&data->problem, &data->host, a->row_b[n]))
        return "this row lies past seqused_q";
    for (size_t m = 0; m < sizeof mistakes / sizeof *mistakes; m++) {
        double value, bound;
        if (!under(data, &mistakes[m], n, d, &value, &bound)) continue;
        if (!isfinite(value) ? !isfinite(got) && m < 4 : fabs(got - value) <= bound) return mistakes[m].name;
    }
    return "";
}

void check_suspect(const check_data *data, int64_t n, int64_t d, double got, char *text, size_t size) {
    const attn_problem *p = &data->problem;
    const answer *a = &data->answer;
    const double expected = a->o[n * p->v_dim + d];
    const int64_t row = check_row_index(p, &data->host, a->row_b[n], a->row_i[n]);
    const int64_t place = check_q_place(p, p->o_stride, row, a->row_h[n]) + d;
    const double poison =
        data->areas[AREA_O].image ? check_widen(check_image(data, AREA_O), p->o_dtype, place) : 0;
    const char *guess = "";
    if (data->poisoned && (got == poison || (isnan(got) && isnan(poison)))) guess = "not written, or a NaN";
    else if (!isfinite(expected)) guess = "a NaN or infinity of a used element was swallowed";
    else if (!a->keys[n]) guess = "a row that sees no key must give O = 0";
    if (!guess[0] || (isnan(got) && isfinite(expected) && a->keys[n])) {
        const char *found = explain(data, n, d, got);
        if (found[0]) guess = found;
        else if (!isfinite(got))
            guess = "NaN: a masked or unused element leaked, inf - inf, or the row was not written";
    }
    snprintf(text, size, "%s", guess);
}

void check_suspect_lse(const check_data *data, int64_t n, double got, char *text, size_t size) {
    const answer *a = &data->answer;
    const double expected = a->lse[n], bound = a->lse_bound[n];
    const char *guess = "";
    if (!a->keys[n]) guess = "a row that sees no key must give LSE = -inf";
    else if (!isfinite(expected)) guess = "a NaN or infinity of a used element was swallowed";
    else if (fabs(got * log(2.0) - expected) <= 2 * bound) guess = "LSE in base 2";
    else if (fabs(got * log(10.0) - expected) <= 2 * bound) guess = "LSE in base 10";
    else if (data->problem.has_sinks) {
        const double sink = (double)data->host.sinks[a->row_h[n]], top = sink > expected ? sink : expected;
        if (fabs(got - (top + log(exp(sink - top) + exp(expected - top)))) <= 2 * bound + 1e-6)
            guess = "the sink is in the LSE";
    }
    snprintf(text, size, "%s", guess[0] ? guess : explain(data, n, -1, got));
}
