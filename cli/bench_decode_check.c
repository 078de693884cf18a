/* bench_decode_check.c — is a decoding step right? A sample of O's rows, and of LSE, against sums in float64.
 * Errors are taken in the norm of a row: with many keys O is small, and a bound on each element would let a
 * lost part pass. */
#include "bench_decode.h"
#include "number.h"
#include <math.h>
#include <stdlib.h>

enum { CHECKED_ROWS = 5 };
static const double O_ALLOWED = 1e-2;       /* of the row's norm: bf16 P and O round by 2^-9 each */
static const double LSE_ALLOWED = 1e-3;

typedef struct place { int64_t b, i, h; } place;

/* The row of O at `at`, [v_dim], and its LSE. @return nonzero: no memory. */
static int answer(const decode_step *s, int set, place at, double *o, double *lse) {
    const decode_row *r = s->row;
    const int64_t g = at.h * r->kv_heads / r->q_heads;
    const int64_t keys = s->lengths[at.b] - (s->problem.causal ? r->q_len - 1 - at.i : 0);
    const uint16_t *q = s->q + ((at.b * r->q_len + at.i) * r->q_heads + at.h) * r->qk_dim;
    double *p = malloc((size_t)(keys > 0 ? keys : 1) * sizeof *p), top = -INFINITY, sum = 0;
    if (!p) return 1;
    for (int64_t j = 0; j < keys; j++) {
        const uint16_t *k = decode_step_k(s, set, at.b, j, g);
        double dot = 0;
        for (int64_t d = 0; d < r->qk_dim; d++)
            dot += check_widen(q, ATTN_BF16, d) * check_widen(k, ATTN_BF16, d);
        p[j] = dot / sqrt((double)r->qk_dim);
        top = p[j] > top ? p[j] : top;
    }
    for (int64_t j = 0; j < keys; j++) sum += p[j] = exp(p[j] - top);
    for (int64_t d = 0; d < r->v_dim; d++) o[d] = 0;
    for (int64_t j = 0; j < keys; j++) {
        const uint16_t *v = decode_step_v(s, set, at.b, j, g);
        for (int64_t d = 0; d < r->v_dim; d++) o[d] += p[j] / sum * check_widen(v, ATTN_BF16, d);
    }
    *lse = top + log(sum);
    free(p);
    return 0;
}

/* Keep the larger; NaN is the largest. */
static void note(double *worst, double x) {
    if (!(x <= *worst) && !isnan(*worst)) *worst = x;
}

static int download(const decode_step *s, void *to, const void *from, int64_t bytes) {
    return s->memory->download(s->memory->context, to, from, (size_t)bytes);
}

/* Row number `row` of [batch, q_len, q_heads]. Nonzero: no memory, or the device failed. */
static int judge_row(const decode_step *s, int set, int64_t row, uint16_t *got, double *o, check_verdict *v) {
    const decode_row *r = s->row;
    const place at = { row / r->q_heads / r->q_len, row / r->q_heads % r->q_len, row % r->q_heads };
    double lse, error = 0, norm = 0;
    float got_lse = 0;
    if (answer(s, set, at, o, &lse)) return 1;
    if (download(s, got, (const uint16_t *)s->tensors.o + row * r->v_dim, r->v_dim * 2)) return 1;
    if (s->tensors.lse) {                           /* [batch, q_heads, q_len] */
        const int64_t element = (at.b * r->q_heads + at.h) * r->q_len + at.i;
        if (download(s, &got_lse, s->tensors.lse + element, 4)) return 1;
        note(&v->lse_error, fabs((double)got_lse - lse));
    }
    for (int64_t d = 0; d < r->v_dim; d++) {
        const double away = check_widen(got, ATTN_BF16, d) - o[d];
        note(&v->o_error, fabs(away));
        error += away * away;
        norm += o[d] * o[d];
    }
    note(&v->o_ratio, sqrt(error / norm) / O_ALLOWED);
    v->rows_checked++;
    return 0;
}

/* Bytes that no run leaves behind: NaN. */
static int poison(const decode_step *s, void *device, int64_t bytes) {
    void *nan = malloc((size_t)bytes);
    if (!nan) return 1;
    memset(nan, 0xff, (size_t)bytes);
    const int bad = s->memory->upload(s->memory->context, device, nan, (size_t)bytes);
    free(nan);
    return bad;
}

int decode_step_check(decode_step *s, check_verdict *v) {
    const decode_row *r = s->row;
    const int64_t rows = r->batch * r->q_len * r->q_heads;
    uint16_t *got = malloc((size_t)r->v_dim * sizeof *got);
    double *o = malloc((size_t)r->v_dim * sizeof *o);
    *v = (check_verdict){ .rows = rows };
    int bad = !got || !o || poison(s, s->tensors.o, rows * r->v_dim * 2) ||
              (s->tensors.lse && poison(s, s->tensors.lse, rows * 4));
    const attn_status status = bad ? ATTN_OK : decode_step_run(s, s->sets - 1, 0, NULL);
    for (int n = 0; n < CHECKED_ROWS && !bad && !status; n++) {
        const int64_t row = n == 0 ? 0 : n == 1 ? rows - 1 : check_pick(check_mix((uint64_t)n), rows);
        bad = judge_row(s, s->sets - 1, row, got, o, v);
    }
    free(got);
    free(o);
    if (status) return decode_step_fail(s, OUTCOME_FAILED, attn_status_name(status), attn_last_error());
    if (bad) return decode_step_fail(s, OUTCOME_FAILED, "no result", "out of memory, or the device failed");
    v->lse_ratio = v->lse_error / LSE_ALLOWED;
    if (!s->tensors.lse) v->lse_error = NAN;        /* unknown */
    v->ok = v->o_ratio <= 1 && v->lse_ratio <= 1;
    if (v->ok) return 0;
    snprintf(v->reason, sizeof v->reason,
             "relative error %.2e of O's rows, at most %.0e; error %.2e of LSE, at most %.0e",
             v->o_ratio * O_ALLOWED, O_ALLOWED, v->lse_error, LSE_ALLOWED);
    return decode_step_fail(s, OUTCOME_WRONG, outcome_names[OUTCOME_WRONG], v->reason);
}
