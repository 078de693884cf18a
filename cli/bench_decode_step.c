/* bench_decode_step.c — a made-up decoding step in device memory. The caches repeat random numbers with a
 * period that no page divides, so that the float64 check knows every element without a host copy of
 * gigabytes. */
#include "bench_decode.h"
#include "number.h"
#include <stdlib.h>

enum {
    PERIOD = 4000037,               /* elements, a prime: pages and rows all differ */
    LONGEST_ROW = 1024,             /* the numbers go on that far behind the period */
    V_FIRST = 1000003,              /* the element that V begins with: V is not K */
};
static const int64_t ENOUGH = (int64_t)256 << 20;   /* bytes of caches that no L2 holds */

int decode_step_fail(decode_step *s, outcome_kind kind, const char *what, const char *detail) {
    s->kind = kind;
    snprintf(s->why, sizeof s->why, "%s%s%.400s", what, *detail ? ": " : "", detail);
    return 1;
}

/* ---- numbers ---- */

static uint16_t *random_numbers(int64_t count, uint64_t seed) {
    uint16_t *x = malloc((size_t)count * sizeof *x);
    for (int64_t i = 0; x && i < count; i++)
        check_narrow(x, ATTN_BF16, i, check_normal(check_mix(seed + (uint64_t)i)));
    return x;
}

static int make_numbers(decode_step *s) {
    const decode_row *r = s->row;
    s->numbers = random_numbers(PERIOD + LONGEST_ROW, 1);
    s->q = random_numbers(r->batch * r->q_len * r->q_heads * r->qk_dim, 12345678901u);
    if (!s->numbers || !s->q) return 1;
    memcpy(s->numbers + PERIOD, s->numbers, LONGEST_ROW * sizeof *s->numbers);
    return 0;
}

/* Row of the cache, of K or V, in rows of one head: contiguous or by pages. */
static int64_t cache_row(const decode_step *s, int64_t b, int64_t j, int64_t g) {
    const attn_problem *p = &s->problem;
    const int64_t size = p->page_size;
    const int64_t row =
        size ? s->table[b * p->block_table_cols + j / size] * size + j % size : b * p->kv_len + j;
    return row * p->kv_heads + g;
}

const uint16_t *decode_step_k(const decode_step *s, int set, int64_t b, int64_t j, int64_t g) {
    return s->numbers + (set * s->k_elements + cache_row(s, b, j, g) * s->row->qk_dim) % PERIOD;
}

const uint16_t *decode_step_v(const decode_step *s, int set, int64_t b, int64_t j, int64_t g) {
    if (s->problem.v_in_k) return decode_step_k(s, set, b, j, g);
    return s->numbers + (V_FIRST + set * s->v_elements + cache_row(s, b, j, g) * s->row->v_dim) % PERIOD;
}

/* ---- lengths and pages ---- */

/* Ragged: normal around the mean with half of it as deviation. @return the largest. */
static int64_t make_lengths(decode_step *s, int32_t *used) {
    const decode_row *r = s->row;
    int64_t longest = 0;
    for (int64_t b = 0; b < r->batch; b++) {
        const double x = (double)r->kv_len * (1 + 0.5 * check_normal(check_mix(99 + (uint64_t)b)));
        s->lengths[b] = r->kv_len;
        if (r->lengths == DECODE_RAGGED) s->lengths[b] = x < (double)r->q_len ? r->q_len : (int64_t)x;
        used[b] = (int32_t)s->lengths[b];
        if (s->lengths[b] > longest) longest = s->lengths[b];
        s->mean_keys += (double)s->lengths[b] / (double)r->batch;
    }
    return longest;
}

/* Pages in shuffled order; entries behind a sequence's last page are out of range. @return pages, 0: no
 * memory. */
static int64_t make_table(decode_step *s, int64_t columns) {
    const decode_row *r = s->row;
    int64_t pages = 0, next = 0;
    for (int64_t b = 0; b < r->batch; b++) pages += (s->lengths[b] + r->page_size - 1) / r->page_size;
    int32_t *order = malloc((size_t)pages * sizeof *order);
    s->table = malloc((size_t)(r->batch * columns) * sizeof *s->table);
    if (!order || !s->table) {
        free(order);
        return 0;
    }
    for (int64_t i = 0; i < pages; i++) order[i] = (int32_t)i;
    for (int64_t i = pages - 1; i > 0; i--) {
        const int64_t other = check_pick(check_mix(7 + (uint64_t)i), i + 1);
        const int32_t kept = order[i];
        order[i] = order[other], order[other] = kept;
    }
    for (int64_t b = 0; b < r->batch; b++)
        for (int64_t c = 0; c < columns; c++)
            s->table[b * columns + c] = c * r->page_size < s->lengths[b] ? order[next++] : INT32_MAX;
    free(order);
    return pages;
}

/* ---- the problem ---- */

/* lengths, table and problem; used: [batch], what the device gets as lengths. */
static int make_problem(decode_step *s, int32_t *used) {
    const decode_row *r = s->row;
    attn_problem *p = &s->problem;
    p->device = s->memory->device, p->dtype = ATTN_BF16;
    p->batch = r->batch, p->q_heads = r->q_heads, p->kv_heads = r->kv_heads, p->q_len = r->q_len;
    p->qk_dim = r->qk_dim, p->v_dim = r->v_dim, p->v_in_k = r->is_mla, p->causal = r->q_len > 1;
    p->kv_len = make_lengths(s, used), p->has_seqused_kv = r->lengths != DECODE_PLANNED;
    int64_t rows = p->batch * p->kv_len;
    if (r->page_size) {
        p->page_size = r->page_size;
        p->block_table_cols = (p->kv_len + r->page_size - 1) / r->page_size;
        p->pages = make_table(s, p->block_table_cols);
        if (!p->pages) return 1;
        rows = p->pages * p->page_size;
    }
    s->k_elements = rows * r->kv_heads * r->qk_dim;
    s->v_elements = r->is_mla ? 0 : rows * r->kv_heads * r->v_dim;
    s->sets = r->timing == DECODE_COLD ? 1 : (int)(ENOUGH / (2 * (s->k_elements + s->v_elements))) + 1;
    return 0;
}

/* ---- device memory ---- */

/* `host` is copied in if given. */
static void *keep(decode_step *s, int64_t bytes, const void *host) {
    void *at = s->memory->alloc(s->memory->context, bytes > 0 ? (size_t)bytes : 1);
    if (!at) return NULL;
    s->buffers[s->buffer_count++] = at;
    return host && s->memory->upload(s->memory->context, at, host, (size_t)bytes) ? NULL : at;
}

/* The numbers from `first` on, again and again. */
static void *keep_cache(decode_step *s, int64_t elements, int64_t first) {
    uint16_t *at = keep(s, 2 * elements, NULL);
    for (int64_t i = 0; at && i < elements;) {
        const int64_t from = (first + i) % PERIOD, left = elements - i;
        const int64_t count = left < PERIOD - from ? left : PERIOD - from;
        if (s->memory->upload(s->memory->context, at + i, s->numbers + from, (size_t)count * 2)) return NULL;
        i += count;
    }
    return at;
}

static int make_tensors(decode_step *s, const int32_t *used) {
    const attn_problem *p = &s->problem;
    attn_tensors *t = &s->tensors;
    const int64_t q_rows = p->batch * p->q_len * p->q_heads;
    t->q = keep(s, q_rows * p->qk_dim * 2, s->q);
    t->k = keep_cache(s, s->sets * s->k_elements, 0);
    t->v = p->v_in_k ? t->k : keep_cache(s, s->sets * s->v_elements, V_FIRST);
    t->o = keep(s, q_rows * p->v_dim * 2, NULL);
    if (s->row->is_mla) t->lse = keep(s, q_rows * 4, NULL);
    if (p->has_seqused_kv) t->seqused_kv = keep(s, p->batch * 4, used);
    if (p->page_size) t->block_table = keep(s, p->batch * p->block_table_cols * 4, s->table);
    return !t->q || !t->k || !t->v || !t->o || (s->row->is_mla && !t->lse) ||
           (p->has_seqused_kv && !t->seqused_kv) || (p->page_size && !t->block_table);
}

static int make_plan(decode_step *s, const attn_options *options) {
    if (attn_plan_create(&s->plan, &s->problem, options))
        return decode_step_fail(s, OUTCOME_REFUSED, "no plan", attn_last_error());
    s->workspace = keep(s, (int64_t)attn_plan_workspace(s->plan), NULL);
    if (!s->workspace) return decode_step_fail(s, OUTCOME_FAILED, "no device memory", "workspace");
    const size_t bytes = attn_plan_schedule_size(s->plan);
    if (!bytes) return 0;
    s->schedule = keep(s, (int64_t)bytes, NULL);
    if (s->schedule && !attn_plan_schedule(s->plan, &s->tensors, s->schedule, NULL)) return 0;
    return decode_step_fail(s, OUTCOME_FAILED, "no schedule", attn_last_error());
}

int decode_step_create(decode_step *s, const decode_row *row, const attn_options *options,
                       const check_memory *memory) {
    *s = (decode_step){ .row = row, .memory = memory, .problem = ATTN_PROBLEM_INIT,
                        .tensors = ATTN_TENSORS_INIT };
    int32_t *used = malloc((size_t)row->batch * sizeof *used);
    s->lengths = malloc((size_t)row->batch * sizeof *s->lengths);
    const char *lacks = !used || !s->lengths || make_numbers(s) || make_problem(s, used) ? "on the host"
                      : make_tensors(s, used) ? "on the device" : NULL;
    free(used);
    return lacks ? decode_step_fail(s, OUTCOME_FAILED, "out of memory", lacks) : make_plan(s, options);
}

void decode_step_destroy(decode_step *s) {
    for (int i = 0; i < s->buffer_count; i++) s->memory->free(s->memory->context, s->buffers[i]);
    attn_plan_destroy(s->plan);
    free(s->lengths);
    free(s->table);
    free(s->numbers);
    free(s->q);
}

/* ---- running and counting ---- */

attn_status decode_step_run(const decode_step *s, int set, int own_schedule, void *stream) {
    attn_tensors t = s->tensors;
    t.k = (const uint16_t *)t.k + set * s->k_elements;
    t.v = s->problem.v_in_k ? t.k : (const uint16_t *)t.v + set * s->v_elements;
    t.schedule = own_schedule ? NULL : s->schedule;
    return attn_run(s->plan, &t, s->workspace, stream);
}

double decode_step_flops(const decode_step *s) {
    const decode_row *r = s->row;
    return 2.0 * (double)(r->batch * r->q_heads * r->q_len * (r->qk_dim + r->v_dim)) * s->mean_keys;
}

double decode_step_bytes(const decode_step *s) {
    const decode_row *r = s->row;
    const double cached = s->mean_keys * (double)(r->kv_heads * (r->qk_dim + (r->is_mla ? 0 : r->v_dim)));
    const double beside = r->is_mla ? (double)(r->q_len * r->q_heads * (r->qk_dim + r->v_dim)) : 0;
    return 2.0 * (double)r->batch * (cached + beside);
}
