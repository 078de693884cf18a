/* oracle.c — the answer in float64: scores, then softmax, then the weighted sum, each in a pass of its own
 * with compensated (branch-free Neumaier) sums. Beside O and LSE it sums what the error bound in bound.h
 * needs. */
#include "check.h"
#include "geometry.h"
#include <stdlib.h>

/* sum + carry is the exact-to-f64^2 value. */
typedef struct sum2 { double sum, carry; } sum2;

static inline void add(sum2 *s, double x) {
    const double total = s->sum + x, part = total - s->sum;
    s->carry += (s->sum - (total - part)) + (x - part);
    s->sum = total;
}

/* Infinities have no carry. */
static inline double value(sum2 s) { return isfinite(s.carry) ? s.sum + s.carry : s.sum; }

typedef struct scores {
    int64_t count;                  /* visible keys */
    int64_t *key;
    double *score, *reach;          /* reach: |scale| * (see score_key) + |bias| + ALiBi + softcap */
    double *q, *row;                /* one row of Q, K or V, widened */
} scores;

static int scores_create(scores *s, int64_t keys, int64_t dim) {
    const size_t n = (size_t)keys + 2, d = (size_t)dim;      /* 2: a bend adds up to one key on either side */
    s->count = 0;
    s->key = malloc(n * sizeof *s->key);
    s->score = malloc((2 * n + 2 * d) * sizeof *s->score);
    s->reach = s->score ? s->score + n : NULL;
    s->q = s->score ? s->reach + n : NULL;
    s->row = s->score ? s->q + d : NULL;
    return s->key && s->score;
}

static void scores_destroy(scores *s) {
    free(s->key);
    free(s->score);
}

static void widen_row(const void *x, attn_dtype dtype, int64_t place, int64_t count, double *row) {
    for (int64_t d = 0; d < count; d++) row[d] = check_widen(x, dtype, place + d);
}

/* score = scale (q . k), softcap, + bias, + ALiBi. The products are exact, d <= 1024: f64 needs no carry
 * here. The reach of a dot product: sum |q k|, or what its partial sums let f32 lose, whether at random
 * (their 2-norm) or in one direction, as near-equal terms do (their 1-norm). */
static void score_key(const attn_problem *p, const attn_tensors *t, scores *s, int64_t b, int64_t h,
                      int64_t i, int64_t j) {
    double dot = 0, size = 0, squares = 0, length = 0;
    for (int64_t d = 0; d < p->qk_dim; d++) {
        const double product = s->q[d] * s->row[d];
        dot += product;
        size += fabs(product);
        squares += dot * dot;
        length += fabs(dot);
    }
    const double path = fmax(2 * sqrt(squares), length / 4);
    double x = (double)p->scale * dot, reach = fabs((double)p->scale) * (path < size ? size : path);
    if (p->softcap > 0) {
        const double bent = tanh(x / (double)p->softcap), slope = 1 - bent * bent;
        x = (double)p->softcap * bent;
        reach = (slope > 0 ? slope * reach : 0) + (double)p->softcap;
    }
    if (p->bias_dtype) {
        const double bias =
            check_widen(t->bias, p->bias_dtype, check_score_place(p->bias_stride, b, h, i, j));
        x += bias;
        reach += fabs(bias);
    }
    if (p->alibi) {
        const double slope =
            (double)t->alibi_slopes[p->alibi == ATTN_ALIBI_PER_BATCH_HEAD ? b * p->q_heads + h : h];
        const double distance = fabs((double)(check_here(p, t, b, i) - j));
        x -= slope * distance;
        reach += fabs(slope) * distance;
    }
    s->key[s->count] = j;
    s->score[s->count] = x;
    s->reach[s->count++] = reach;
}

/* First pass: every key that the row sees. A bend shows the row one key more or less at its ends. */
static void score_row(const attn_problem *p, const attn_tensors *t, int64_t b, int64_t h, int64_t i,
                      const check_bend *bend, int64_t kv_head, scores *s) {
    const int64_t here = check_here(p, t, b, i), keys = check_keys(p, t, b);
    int64_t low = keys, high = -1;
    for (int64_t j = 0; j < keys; j++)
        if (check_near(p, here, j)) {
            if (j < low) low = j;
            high = j;
        }
    if (bend && high >= low) {
        low = low + bend->low > 0 ? low + bend->low : 0;
        high = high + bend->high < keys ? high + bend->high : keys - 1;
    }
    const int64_t row = check_row_index(p, t, b, i);
    widen_row(t->q, p->dtype, check_q_place(p, p->q_stride, row, h), p->qk_dim, s->q);
    for (int64_t j = low; j <= high; j++) {
        if (!check_let(p, t, b, h, i, j)) continue;
        widen_row(t->k, p->dtype, check_kv_place(p, t, p->k_stride, b, j, kv_head), p->qk_dim, s->row);
        score_key(p, t, s, b, h, i, j);
    }
}

/* Second pass: weights p_j = exp(s_j - top) / denominator replace the scores; reach becomes the whole of what
 * moves the exponent. Returns whether the row is an ordinary one. */
static int weigh_row(const scores *s, double sink, check_row *r, double *denominator) {
    double m = (double)-INFINITY;
    r->reach_max = 0;
    for (int64_t n = 0; n < s->count; n++) {
        if (isnan(s->score[n]) || isnan(m)) m = (double)NAN;
        else if (s->score[n] > m) m = s->score[n];
        if (isfinite(s->reach[n]) && s->reach[n] > r->reach_max) r->reach_max = s->reach[n];
    }
    r->lse = m;
    if (s->count == 0 || !isfinite(m)) return 0;
    const double top = sink > m ? sink : m;
    sum2 l = { 0, 0 }, whole = { exp(sink - top), 0 }, reach = { 0, 0 };
    for (int64_t n = 0; n < s->count; n++) {
        const double x = s->score[n], weight = exp(x - m);
        const double size = s->reach[n] > fabs(m) ? s->reach[n] : fabs(m);
        add(&l, weight);
        add(&whole, exp(x - top));
        s->reach[n] = weight > 0 ? size + fabs(x - m) : 0;
        add(&reach, weight * s->reach[n]);
    }
    r->lse = m + log(value(l));
    r->reach = value(reach) / value(l);
    *denominator = value(whole);
    for (int64_t n = 0; n < s->count; n++) s->score[n] = exp(s->score[n] - top) / *denominator;
    return 1;
}

/* Third pass, and a fourth for the drift, which needs O. */
static int sum_values(const attn_problem *p, const attn_tensors *t, int64_t b, int64_t kv_head,
                      const scores *s, double denominator, check_row *r) {
    sum2 *o = calloc((size_t)p->v_dim, sizeof *o);
    if (!o) return 0;
    for (int64_t d = 0; d < p->v_dim; d++) r->weight[d] = r->drift[d] = r->tail[d] = 0;
    for (int64_t n = 0; n < s->count; n++) {
        widen_row(t->v, p->dtype, check_kv_place(p, t, p->v_stride, b, s->key[n], kv_head), p->v_dim, s->row);
        for (int64_t d = 0; d < p->v_dim; d++) {
            add(&o[d], s->score[n] * s->row[d]);
            r->weight[d] += s->score[n] * fabs(s->row[d]);
            r->tail[d] += fabs(s->row[d]) / denominator;
        }
    }
    for (int64_t d = 0; d < p->v_dim; d++) r->o[d] = value(o[d]);
    free(o);
    for (int64_t n = 0; n < s->count; n++) {
        widen_row(t->v, p->dtype, check_kv_place(p, t, p->v_stride, b, s->key[n], kv_head), p->v_dim, s->row);
        for (int64_t d = 0; d < p->v_dim; d++)
            r->drift[d] += s->score[n] * fabs(s->row[d] - r->o[d]) * s->reach[n];
    }
    return 1;
}

static void set_row(const attn_problem *p, double o, check_row *r) {
    for (int64_t d = 0; d < p->v_dim; d++) {
        r->o[d] = o;
        r->weight[d] = r->drift[d] = r->tail[d] = 0;
    }
    r->reach = 0;
}

/* The sink's share pulls O towards 0 by an exponent of its own. */
static void drift_by_sink(const attn_problem *p, double sink, check_row *r) {
    const double share = 1 / (1 + exp(r->lse - sink));
    if (!(share > 0)) return;
    for (int64_t d = 0; d < p->v_dim; d++)
        r->drift[d] += share * fabs(r->o[d]) * (fabs(sink) + fabs(r->lse) + fabs(sink - r->lse));
}

int check_oracle_row(const attn_problem *p, const attn_tensors *tensors, int64_t b, int64_t h, int64_t i,
                     const check_bend *bend, check_row *r) {
    attn_tensors t = *tensors;
    if (p->v_in_k) t.v = t.k;
    scores s;
    const int64_t kv_head = (check_kv_head(p, h) + (bend ? bend->kv_head : 0)) % p->kv_heads;
    const double sink = p->has_sinks ? (double)t.sinks[h] : (double)-INFINITY;
    double denominator = 0;
    int ok = scores_create(&s, check_keys(p, &t, b), p->qk_dim > p->v_dim ? p->qk_dim : p->v_dim);
    if (ok) {
        score_row(p, &t, b, h, i, bend, kv_head, &s);
        r->keys = s.count;
        if (weigh_row(&s, sink, r, &denominator)) {
            ok = sum_values(p, &t, b, kv_head, &s, denominator, r);
            if (ok && p->has_sinks) drift_by_sink(p, sink, r);
        } else {
            set_row(p, r->lse == (double)-INFINITY ? 0 : (double)NAN, r);
        }
    }
    scores_destroy(&s);
    return ok;
}
