/* bench_decode_step.c — a made-up decoding step in device memory. The cache repeats a random pattern of a length that no
 * page divides, so that the float64 check knows every element without a host copy of gigabytes. */
#include "bench_decode.h"
#include "gpu_session.h"
#include "number.h"
#include <stdlib.h>

enum { PATTERN = 4000037 };         /* elements, a prime: pages and rows all differ */
enum { CHECKED_ROWS = 6 };

/* ---- making ---- */

static int fail(decode_step *s, const char *what) {
    snprintf(s->why, sizeof s->why, "%s: %.400s", what, attn_last_error());
    return 1;
}

/* Device memory of the step; `host` is copied in if given. */
static void *keep(decode_step *s, size_t bytes, const void *host, const check_memory *memory) {
    void *at = memory->alloc(memory->context, bytes);
    if (!at) return NULL;
    s->buffers[s->count++] = at;
    if (host && memory->upload(memory->context, at, host, bytes)) return NULL;
    return at;
}

static uint16_t *random_numbers(int64_t count, uint64_t seed) {
    uint16_t *x = malloc((size_t)count * sizeof *x);
    for (int64_t i = 0; x && i < count; i++) check_narrow(x, ATTN_BF16, i, check_normal(check_mix(seed + (uint64_t)i)));
    return x;
}

/* The cache: the pattern again and again. */
static void *make_cache(decode_step *s, int64_t elements, const check_memory *memory) {
    unsigned char *at = keep(s, (size_t)elements * 2, NULL, memory);
    for (int64_t i = 0; at && i < elements; i += PATTERN) {
        const int64_t count = elements - i < PATTERN ? elements - i : PATTERN;
        if (memory->upload(memory->context, at + 2 * i, s->pattern, (size_t)count * 2)) return NULL;
    }
    return at;
}

/* Ragged: normal around the mean with half of it as deviation. @return the largest. */
static int64_t make_lengths(decode_step *s, int32_t *used) {
    const decode_row *r = s->row;
    int64_t longest = 0;
    s->mean_keys = 0;
    for (int64_t b = 0; b < r->batch; b++) {
        const double x = (double)r->keys * (1 + 0.5 * check_normal(check_mix(99 + (uint64_t)b)));
        s->lengths[b] = !r->ragged ? r->keys : x < (double)r->q_len ? r->q_len : (int64_t)x;
        used[b] = (int32_t)s->lengths[b];
        if (s->lengths[b] > longest) longest = s->lengths[b];
        s->mean_keys += (double)s->lengths[b] / (double)r->batch;
    }
    return longest;
}

/* Pages in shuffled order; entries behind a sequence's last page are out of range. */
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

static int make_problem(decode_step *s, const check_memory *memory) {
    const decode_row *r = s->row;
    attn_problem p = ATTN_PROBLEM_INIT;
    int32_t *used = malloc((size_t)r->batch * sizeof *used);
    s->lengths = malloc((size_t)r->batch * sizeof *s->lengths);
    s->pattern = random_numbers(PATTERN, 1);
    const int64_t q_count = r->batch * r->q_len * r->q_heads * r->qk_dim;
    s->q = random_numbers(q_count, 12345678901u);
    if (!used || !s->lengths || !s->pattern || !s->q) {
        free(used);
        return fail(s, "out of memory");
    }
    p.device = ATTN_CUDA, p.dtype = ATTN_BF16;
    p.batch = r->batch, p.q_heads = r->q_heads, p.kv_heads = r->kv_heads, p.q_len = r->q_len;
    p.qk_dim = r->qk_dim, p.v_dim = r->v_dim, p.v_in_k = r->v_in_k, p.causal = r->q_len > 1;
    p.kv_len = make_lengths(s, used), p.has_seqused_kv = r->ragged;
    int64_t rows = p.batch * p.kv_len;
    if (r->page_size) {
        p.page_size = r->page_size;
        p.block_table_cols = (p.kv_len + r->page_size - 1) / r->page_size;
        p.pages = make_table(s, p.block_table_cols);
        rows = p.pages * r->page_size;
    }
    s->problem = p;
    s->tensors = (attn_tensors)ATTN_TENSORS_INIT;
    s->tensors.q = keep(s, (size_t)q_count * 2, s->q, memory);
    s->tensors.k = make_cache(s, rows * r->kv_heads * r->qk_dim, memory);
    s->tensors.v = r->v_in_k ? s->tensors.k : make_cache(s, rows * r->kv_heads * r->v_dim, memory);
    s->tensors.o = keep(s, (size_t)(r->batch * r->q_len * r->q_heads * r->v_dim) * 2, NULL, memory);
    s->tensors.lse = keep(s, (size_t)(r->batch * r->q_len * r->q_heads) * 4, NULL, memory);
    if (r->ragged) s->tensors.seqused_kv = keep(s, (size_t)r->batch * 4, used, memory);
    if (r->page_size) s->tensors.block_table = keep(s, (size_t)(r->batch * p.block_table_cols) * 4, s->table, memory);
    free(used);
    return s->tensors.k && s->tensors.v && s->tensors.lse && (!r->page_size || s->tensors.block_table)
         ? 0 : fail(s, "no device memory");
}

int decode_step_create(decode_step *s, const decode_row *row, const bench_request *common) {
    const check_memory *memory;
    *s = (decode_step){ .row = row, .device = common->options.cuda_device };
    if (gpu_session_open(ATTN_CUDA, common->options.cuda_device, &memory)) return fail(s, "no GPU");
    if (make_problem(s, memory)) return 1;
    if (attn_plan_create(&s->plan, &s->problem, &common->options)) return fail(s, "no plan");
    const size_t bytes = attn_plan_workspace(s->plan), schedule = attn_plan_schedule_size(s->plan);
    if (bytes && !(s->workspace = keep(s, bytes, NULL, memory))) return fail(s, "no workspace");
    if (!schedule) return 0;
    if (!(s->schedule = keep(s, schedule, NULL, memory))) return fail(s, "no memory for a schedule");
    return attn_plan_schedule(s->plan, &s->tensors, s->schedule, NULL) ? fail(s, "no schedule") : 0;
}

void decode_step_destroy(decode_step *s) {
    for (int i = 0; i < s->count; i++) gpu_session_free(s->buffers[i]);
    attn_plan_destroy(s->plan);
    free(s->lengths);
    free(s->table);
    free(s->pattern);
    free(s->q);
}

/* ---- checking ---- */

/* Element d of key j of sequence b, K/V head g: of K, or of a V of its own (dim: its row length). */
static double cached(const decode_step *s, int64_t b, int64_t j, int64_t g, int64_t d, int64_t dim) {
    const decode_row *r = s->row;
    int64_t row = b * s->problem.kv_len + j;
    if (r->page_size)
        row = s->table[b * s->problem.block_table_cols + j / r->page_size] * (int64_t)r->page_size + j % r->page_size;
    return check_widen(s->pattern, ATTN_BF16, ((row * r->kv_heads + g) * dim + d) % PATTERN);
}

/* One row of O in float64, against what the GPU gave. @return largest error / allowed. */
static double row_error(const decode_step *s, int64_t b, int64_t i, int64_t h, const uint16_t *got) {
    const decode_row *r = s->row;
    const int64_t keys = s->lengths[b] - (s->problem.causal ? r->q_len - 1 - i : 0), g = h * r->kv_heads / r->q_heads;
    double *p = malloc((size_t)(keys > 0 ? keys : 1) * sizeof *p), top = -INFINITY, sum = 0, worst = 0;
    if (!p) return NAN;
    for (int64_t j = 0; j < keys; j++) {
        p[j] = 0;
        for (int64_t d = 0; d < r->qk_dim; d++)
            p[j] += check_widen(s->q, ATTN_BF16, ((b * r->q_len + i) * r->q_heads + h) * r->qk_dim + d) *
                    cached(s, b, j, g, d, r->qk_dim);
        p[j] /= sqrt((double)r->qk_dim);
        top = p[j] > top ? p[j] : top;
    }
    for (int64_t j = 0; j < keys; j++) sum += p[j] = exp(p[j] - top);
    for (int64_t d = 0; d < r->v_dim; d += 37) {
        double o = 0, size = 0;
        for (int64_t j = 0; j < keys; j++) {
            const double v = cached(s, b, j, g, d, r->v_in_k ? r->qk_dim : r->v_dim);
            o += p[j] / sum * v;
            size += p[j] / sum * fabs(v);
        }
        /* P and O rounded to bf16; sums in f32. */
        const double error = fabs(check_widen(got, ATTN_BF16, d) - o) / (0x1p-8 * (size + fabs(o)) + 1e-6);
        if (!(error <= worst)) worst = error;
    }
    free(p);
    return worst;
}

double decode_step_error(decode_step *s) {
    const decode_row *r = s->row;
    const check_memory *memory;
    uint16_t *o = malloc((size_t)r->v_dim * sizeof *o);
    double worst = 0;
    if (!o || gpu_session_open(ATTN_CUDA, s->device, &memory)) worst = NAN;
    for (int n = 0; n < CHECKED_ROWS && !isnan(worst); n++) {
        const int64_t rows = r->batch * r->q_len * r->q_heads;
        const int64_t row = n == 0 ? 0 : n == 1 ? rows - 1 : check_pick(check_mix((uint64_t)n), rows);
        const char *from = (const char *)s->tensors.o + 2 * row * r->v_dim;
        if (memory->download(memory->context, o, from, (size_t)r->v_dim * 2)) worst = NAN;
        else {
            const double error =
                row_error(s, row / r->q_heads / r->q_len, row / r->q_heads % r->q_len, row % r->q_heads, o);
            if (!(error <= worst)) worst = error;
        }
    }
    free(o);
    return worst;
}
