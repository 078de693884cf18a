/* reference_fwd_scalar.c — the definition in f32: all scores of a row, softmax, weighted sum.
 * Computes every option. Readable before fast; the other kernels are compared with it. Its
 * idea: learn/flash_attention/naive.c. */
#include "half.h"
#include "kernel.h"
#include "sequence.h"
#include <math.h>

typedef struct { const attn_plan *plan; const attn_tensors *t; float *workspace; } work;

/* Score of key j for query i before masks, in natural-log units. */
static float score(const attn_problem *p, const attn_tensors *t, const attn_sequence *s, int64_t h, int64_t i,
                   int64_t j) {
    const int64_t q = attn_q_offset(s, p->q_stride, i, h);
    const int64_t k = attn_kv_offset(p, s, p->k_stride, j, h / (p->q_heads / p->kv_heads));
    float x = 0;
    for (int64_t d = 0; d < p->qk_dim; d++)
        x += attn_load(t->q, p->dtype, q + d) * attn_load(t->k, p->dtype, k + d);
    x *= p->scale;
    if (p->softcap > 0) x = p->softcap * tanhf(x / p->softcap);
    if (p->bias_dtype) x += attn_load(t->bias, p->bias_dtype, attn_score_offset(s, p->bias_stride, h, i, j));
    if (p->alibi) x -= attn_slope(p, t, s->b, h) * fabsf((float)(i + s->shift - j));
    if (p->has_mask && !t->mask[attn_score_offset(s, p->mask_stride, h, i, j)]) x = -INFINITY;
    return x;
}

/* A key is out of the row if a mask says so; then its V may be anything and must not be touched. */
static int masked(const attn_problem *p, const attn_tensors *t, const attn_sequence *s, int64_t h, int64_t i,
                  int64_t j) {
    if (p->has_mask && !t->mask[attn_score_offset(s, p->mask_stride, h, i, j)]) return 1;
    return p->bias_dtype &&
           attn_load(t->bias, p->bias_dtype, attn_score_offset(s, p->bias_stride, h, i, j)) == -INFINITY;
}

static void row(const work *job, const attn_sequence *s, int64_t h, int64_t i, float *scores) {
    const attn_problem *p = &job->plan->problem;
    const attn_tensors *t = job->t;
    const attn_range range = attn_visible(p, s, i);
    float m = -INFINITY, l = 0;
    for (int64_t j = range.low; j < range.high; j++) {
        const float x = masked(p, t, s, h, i, j) ? -INFINITY : score(p, t, s, h, i, j);
        scores[j] = x;
        if (!(x <= m)) m = x;   /* a NaN becomes the maximum and stays visible */
    }
    const float top = m == -INFINITY ? 0 : m;
    for (int64_t j = range.low; j < range.high; j++) l += scores[j] = expf(scores[j] - top);
    const float sink = p->has_sinks && l != 0 ? expf(t->sinks[h] - top) : 0;
    const int64_t o = attn_q_offset(s, p->o_stride, i, h), head_kv = h / (p->q_heads / p->kv_heads);
    for (int64_t d = 0; d < p->v_dim; d++) {
        float sum = 0;
        for (int64_t j = range.low; j < range.high; j++)
            if (!masked(p, t, s, h, i, j))
                sum += scores[j] * attn_load(t->v, p->dtype,
                                             attn_kv_offset(p, s, p->v_stride, j, head_kv) + d);
        attn_store(t->o, p->o_dtype, o + d, l == 0 ? 0 : sum / (l + sink));
    }
    if (t->lse) t->lse[attn_lse_offset(p, s, i, h)] = l == 0 ? -INFINITY : m + logf(l);
}

/* Item: one (batch, head). */
static void head(void *arg, int64_t item, int slot) {
    const work *job = arg;
    const attn_problem *p = &job->plan->problem;
    const attn_sequence s = attn_sequence_at(p, job->t, item / p->q_heads);
    float *scores = p->kv_len ? job->workspace + slot * p->kv_len : NULL;
    for (int64_t i = 0; i < s.q_len; i++) row(job, &s, item % p->q_heads, i, scores);
}

static attn_status prepare(attn_plan *plan) {
    int64_t floats;
    if (!attn_multiply(plan->problem.kv_len, plan->threads, &floats) ||
        !attn_multiply(floats, 4, &plan->workspace))
        return attn_fail(ATTN_INVALID, "kv_len = %lld: workspace overflows", (long long)plan->problem.kv_len);
    return ATTN_OK;
}

static attn_status run(const attn_plan *plan, const attn_tensors *t, void *workspace, void *stream) {
    (void)stream;
    work job = { plan, t, workspace };
    attn_parallel(plan, plan->problem.batch * plan->problem.q_heads, head, &job);
    return ATTN_OK;
}

const attn_kernel attn_reference_fwd_scalar = {
    .name = "reference_fwd_scalar", .summary = "row by row, f32, every option; the readable definition",
    .pass = ATTN_FORWARD, .device = ATTN_CPU, .dtypes = ATTN_DTYPE_BITS_ALL, .features = ATTN_NEEDS_ALL,
    .prepare = prepare, .run = run,
};
