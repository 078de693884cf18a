/* decode_fwd_body.h — few queries over many keys; included once per instruction set. An item reads its
 * part of K and V once, chunk by chunk, for all query heads that share it; where the keys are split, a
 * second pass merges the parts.
 * Chunks start at multiples of CHUNK whatever the item, and parts are fixed by the plan:
 * bits don't depend on threads. */
#include <string.h>
#include "decode_fwd_dots.h"
#include "decode_fwd_item.h"
#include "decode_fwd_scores.h"
#if defined(SIMD_DOT)
#include "decode_fwd_pairs.h"
#else
#include "decode_fwd_f32.h"
#endif

enum { FEW_ROWS = 12,                                 /* query rows per K/V head up to
                                                         which decode beats flash */
       MOST_ROWS = 128,                               /* and up to which it may,
                                                         by splitting keys among threads */
       LONG_KEYS = 1024,                              /* if there are as many keys */
       ITEM_ROWS = 64,                                /* rows of all heads of an item:
                                                         its sums stay in L1 and L2 */
       AHEAD = 4096,                                  /* bytes from what is read to what is fetched, */
       HEADS_AHEAD = 2,                               /* or heads, where they lie side by side */
       LEAST_KEYS = 256, STRICT_KEYS = 1024 };        /* keys of a part: at least; in strict mode always */
/* schedule[]: */
enum { PARTS, PART_KEYS, ITEM_HEADS, HEAD_ITEMS };

typedef struct {
    const attn_plan *plan;
    const attn_tensors *t;
    char *workspace;
    decode_layout layout;
} decode_job;

/* ---- one head, one chunk ---- */

/* Rows `row` .. of one head: scores, masks, softmax, values. The first group of rows fetches for all. */
static void rows_of_chunk(decode *x, int64_t head, int64_t row, int rows, rows_at k, rows_at v,
                          rows_ahead next_k, rows_ahead next_v) {
    const int64_t at = head * x->padded + row;
    float alpha[ROWS], *o = x->o + at * x->o_row;
    int masked = 0;
    scores_of(x, rows, x->q + at * x->q_row, k, next_k);
    for (int i = 0; i < rows; i++)
        masked |= mask_row(x, x->scores + i * CHUNK, head, at_most(row + i, x->rows - 1));
    softmax_rows(x, rows, x->scores, x->m + at, x->l + at, alpha);
    if (!masked || chunk_is_finite(x, v)) {
        values_of(x, rows, x->scores, v, next_v, alpha, o);
        return;
    }
    for (int i = 0; i < rows; i++) {
        const char *seen[CHUNK];
        visible_values(x, head, at_most(row + i, x->rows - 1), v, seen);
        values_of(x, 1, x->scores + i * CHUNK, (rows_at){ seen, 0 }, (rows_ahead){ v, 0 }, alpha + i,
                  o + i * x->o_row);
    }
}

/* The rows to fetch while `list` is read at `head`: of one head AHEAD bytes ahead;
 * of heads side by side those of the head after the next. */
static rows_ahead next_rows(const decode *x, const char **list, int64_t head, int64_t head_step,
                            int64_t bytes) {
    const int64_t ahead = x->p->v_in_k ? 2 * AHEAD : AHEAD;      /* V in K: one stream instead of two */
    const int64_t keys = at_least(1, at_most(CHUNK, ahead / bytes)), next = head + HEADS_AHEAD;
    if (x->heads == 1) return (rows_ahead){ { list + keys, 0 }, x->last ? 0 : bytes };
    if (next < x->heads) return (rows_ahead){ { list, next * head_step }, bytes };
    return (rows_ahead){ { list + CHUNK, (next - x->heads) * head_step }, x->last ? 0 : bytes };
}

static void head_of_chunk(decode *x, int64_t head) {
    const attn_problem *p = x->p;
    const int64_t size = attn_dtype_size(p->dtype), k_step = p->k_stride.head * size,
                  v_step = p->v_stride.head * size;
    const rows_at k = { x->k, head * k_step }, v = { x->v, head * v_step };
    rows_ahead next_k = next_rows(x, x->k, head, k_step, p->qk_dim * size);
    rows_ahead next_v = next_rows(x, x->v, head, v_step, p->v_dim * size);
    if (p->v_in_k) next_v.bytes = 0;
    x->finite = -1;
    for (int64_t row = 0; row < x->padded;) {
        const int rows = rows_of(x->padded - row);
        rows_of_chunk(x, head, row, rows, k, v, next_k, next_v);
        row += rows;
        next_k.bytes = next_v.bytes = 0;              /* once for all rows */
    }
}

/* ---- one item ---- */

static void walk_keys(decode *x) {
    const attn_tensors *t = x->t;
    const attn_problem *p = x->p;
    const size_t bytes = CHUNK * sizeof(char *);
    x->chunk = x->low / CHUNK * CHUNK;
    find_rows(x, x->chunk, t->k, p->k_stride, x->k);
    find_rows(x, x->chunk, t->v, p->v_stride, x->v);
    for (;; x->chunk += CHUNK) {
        x->last = x->chunk + CHUNK >= x->high;
        if (!x->last) {
            find_rows(x, x->chunk + CHUNK, t->k, p->k_stride, x->k + CHUNK);
            find_rows(x, x->chunk + CHUNK, t->v, p->v_stride, x->v + CHUNK);
        }
        x->from = at_least(0, x->low - x->chunk);
        x->to = at_most(CHUNK, x->high - x->chunk);
        x->begin = x->from / LANES * LANES;
        x->end = round_up(x->to, LANES);
        for (int64_t head = 0; head < x->heads; head++) head_of_chunk(x, head);
        if (x->last) return;
        memcpy(x->k, x->k + CHUNK, bytes);
        memcpy(x->v, x->v + CHUNK, bytes);
    }
}

/* What an item and the merge of a row both need to know; `index` counts (batch, group of K/V heads). */
static decode decode_at(const decode_job *job, int64_t index) {
    const attn_problem *p = &job->plan->problem;
    const int64_t *schedule = job->plan->schedule;
    decode x = { .p = p, .t = job->t, .s = attn_sequence_at(p, job->t, index / schedule[HEAD_ITEMS]) };
    x.group = p->q_heads / p->kv_heads;
    x.rows = x.s.q_len * x.group;
    x.padded = padded_rows(x.rows);
    x.kv_head = index % schedule[HEAD_ITEMS] * schedule[ITEM_HEADS];
    x.heads = at_most(schedule[ITEM_HEADS], p->kv_heads - x.kv_head);
    x.edited = p->softcap > 0 || p->bias_dtype || p->alibi;
    x.sign = !x.edited && p->scale < 0 ? -1 : 1;
    x.c = (float)(x.edited ? 1.4426950408889634 : 1.4426950408889634 * fabs((double)p->scale));
    return x;
}

static char *sums_of(const decode_job *job, int64_t item) {
    return job->workspace + job->plan->threads * job->layout.slot + item * job->layout.sums;
}

static void decode_item(void *arg, int64_t item, int slot) {
    const decode_job *job = arg;
    const int64_t parts = job->plan->schedule[PARTS], keys = job->plan->schedule[PART_KEYS],
                  part = item % parts;
    decode x = decode_at(job, item / parts);
    if (!x.rows) return;
    place(&x, job->workspace + slot * job->layout.slot, parts > 1 ? sums_of(job, item) : NULL, &job->layout);
    open_rows(&x);
    x.low = at_least(x.row_low[0], part * keys);
    x.high = part + 1 == parts ? x.row_high[x.padded - 1]
                               : at_most(x.row_high[x.padded - 1], (part + 1) * keys);
    if (x.low < x.high) walk_keys(&x);
    for (int64_t head = 0; head < x.heads && parts == 1; head++)
        for (int64_t row = 0; row < x.rows; row++) {
            const int64_t at = head * x.padded + row;
            close_row(&x, head, row, x.o + at * x.o_row, x.m[at], x.l[at]);
        }
}

/* ---- merging the parts of a row ---- */

/* Sums of all parts, each shrunk to the common maximum, in the order of the keys, into the slot's scratch. */
static void merge_row(const decode_job *job, const decode *x, int64_t index, int64_t at, float *sum, float *m,
                      float *l) {
    const int64_t parts = job->plan->schedule[PARTS];
    const int64_t o_floats = x->heads * x->padded * x->o_row, rows = x->heads * x->padded;
    const char *first = sums_of(job, index * parts);
    *m = -INFINITY;
    *l = 0;
    memset(sum, 0, (size_t)x->o_row * sizeof(float));
    for (int64_t part = 0; part < parts; part++) {
        const float part_m = ((const float *)(const void *)(first + part * job->layout.sums))[o_floats + at];
        if (part_m > *m || part_m != part_m) *m = part_m;
    }
    for (int64_t part = 0; part < parts; part++) {
        const float *o = (const float *)(const void *)(first + part * job->layout.sums);
        const float part_m = o[o_floats + at], part_l = o[o_floats + rows + at];
        if (part_l == 0) continue;                    /* saw no key */
        float weight[LANES];
        v_store(weight, v_exp2(v_mul(v_set(x->c), v_sub(v_set(part_m), v_set(*m)))));
        for (int64_t d = 0; d < x->o_row; d += LANES)
            v_store(sum + d, v_fma(v_set(weight[0]), v_load(o + at * x->o_row + d), v_load(sum + d)));
        *l += weight[0] * part_l;
    }
}

static void merge_item(void *arg, int64_t index, int slot) {
    const decode_job *job = arg;
    decode x = decode_at(job, index);
    if (!x.rows) return;
    place(&x, job->workspace + slot * job->layout.slot, NULL, &job->layout);
    for (int64_t head = 0; head < x.heads; head++)
        for (int64_t row = 0; row < x.rows; row++) {
            float m, l;
            merge_row(job, &x, index, head * x.padded + row, x.q, &m, &l);
            close_row(&x, head, row, x.q, m, l);
        }
}

/* ---- the record ---- */

/* Flash needs 16 rows to fill its lanes, but cuts a K/V head's rows only into whole panels: with fewer of
 * them than threads, splitting the keys wins (MLA: 128 query heads on one K/V head are two panels of
 * AVX-512). Not in strict mode, where batch and threads may not decide anything. */
static const char *decode_refuses(const attn_problem *p) {
    const int64_t group = p->q_heads / p->kv_heads;
    const int64_t panels = (p->q_len * group + SIMD_VECS * LANES - 1) / (SIMD_VECS * LANES);
    int64_t items;
    if (p->q_len > MOST_ROWS || p->q_len * group > MOST_ROWS) return "more than 128 query rows per K/V head";
    if (p->q_len * group <= FEW_ROWS) return NULL;
    if (p->strict || p->kv_len < LONG_KEYS) return "more than 12 query rows per K/V head: flash is faster";
    if (attn_multiply(p->batch, p->kv_heads, &items) && attn_multiply(items, panels, &items) &&
        items < attn_threads_default())
        return NULL;
    return "more than 12 query rows per K/V head, and work for all threads without splitting keys: "
           "flash is faster";
}

/* Into how many parts the keys are cut. In strict mode by their number alone;
 * otherwise so that every thread gets about four items, or as the options say. */
static void plan_parts(attn_plan *plan, int64_t items) {
    const attn_problem *p = &plan->problem;
    int64_t parts = (4 * plan->threads + items - 1) / items;
    if (plan->threads == 1 || items >= 4 * plan->threads) parts = 1;
    parts = at_most(parts, at_least(1, p->kv_len / LEAST_KEYS));
    if (plan->splits) parts = plan->splits;
    int64_t keys = round_up(at_least(1, (p->kv_len + parts - 1) / parts), CHUNK);
    if (p->strict) keys = STRICT_KEYS;
    plan->schedule[PART_KEYS] = keys;
    plan->schedule[PARTS] = at_least(1, (p->kv_len + keys - 1) / keys);
}

static attn_status decode_prepare(attn_plan *plan) {
    const attn_problem *p = &plan->problem;
    const int64_t rows = at_least(1, p->q_len * (p->q_heads / p->kv_heads));
    /* Heads that lie side by side in a token are walked together: memory is then read in its own order. */
    const int side_by_side = p->k_stride.head < p->k_stride.seq && p->kv_heads > 1;
    const int64_t heads = side_by_side ? at_least(1, at_most(p->kv_heads, ITEM_ROWS / rows)) : 1;
    const int64_t head_items = (p->kv_heads + heads - 1) / heads;
    int64_t items, bytes;
    if (!attn_multiply(p->batch, head_items, &items))
        return attn_fail(ATTN_INVALID, "batch = %lld: too many work items", (long long)p->batch);
    plan_parts(plan, at_least(1, items));
    plan->schedule[ITEM_HEADS] = heads;
    plan->schedule[HEAD_ITEMS] = head_items;
    const int split = plan->schedule[PARTS] > 1;
    const decode_layout layout = lay_out(p, rows, heads, split);
    if (!attn_multiply(items, plan->schedule[PARTS], &bytes) || !attn_multiply(bytes, layout.sums, &bytes) ||
        bytes > INT64_MAX / 2)
        return attn_fail(ATTN_INVALID, "kv_len = %lld: workspace overflows", (long long)p->kv_len);
    plan->workspace = plan->threads * layout.slot + (split ? bytes : 0);
    return ATTN_OK;
}

static attn_status decode_run(const attn_plan *plan, const attn_tensors *t, void *workspace, void *stream) {
    (void)stream;
    const attn_problem *p = &plan->problem;
    const int64_t *schedule = plan->schedule, parts = schedule[PARTS],
                   heads = p->batch * schedule[HEAD_ITEMS];
    const int64_t rows = at_least(1, p->q_len * (p->q_heads / p->kv_heads));
    decode_job job = { plan, t, workspace, lay_out(p, rows, schedule[ITEM_HEADS], parts > 1) };
    attn_parallel(plan, heads * parts, decode_item, &job);
    if (parts > 1) attn_parallel(plan, heads, merge_item, &job);
    return ATTN_OK;
}
SIMD_END

const attn_kernel SIMD_NAME(attn_decode_fwd) = {
    .name = "decode_fwd_" SIMD_STRING, .summary = DECODE_SUMMARY,
    .pass = ATTN_FORWARD, .device = ATTN_CPU, .isa = SIMD_ISA, .dtypes = DECODE_DTYPES,
    .features = ATTN_NEEDS_ALL, .refuse = decode_refuses, .prepare = decode_prepare, .run = decode_run,
};
