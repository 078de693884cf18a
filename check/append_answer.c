/* append_answer.c — what the memory must hold after an append, from attn.h's words alone, and the comparison:
 * turned values within a bound of the float64 rotation, all other bytes exactly. */
#include "append_check.h"
#include "data.h"
#include <stdio.h>
#include <stdlib.h>

/* ---- the answer ---- */

static unsigned char *after(const check_append *a, append_area name) {
    return a->areas[name].after + a->areas[name].offset;
}

/* cos and sin at a position, for pair r. */
static double table(const check_append *a, append_area name, int64_t position, int64_t r) {
    const attn_problem *p = &a->problem;
    const append_memory *m = &a->areas[name];
    return check_widen(m->before + m->offset, p->rotary_dtype, position * p->rotary_stride + r);
}

/* Bound of a c -+ b s computed in f32 and stored once: two products and a sum round, then the store. */
static double turned_bound(const attn_problem *p, double value, double size) {
    const double computed = 3 * 0x1p-24 * size + 0x1p-140;
    return computed + check_unit(p->dtype) * (fabs(value) + computed) +
           (p->dtype == ATTN_F16 ? 0x1p-25 : 0x1p-133);
}

/* Element `to` of an output becomes element `from` of a source, or that one turned with its partner. */
static void expect(check_append *a, append_area out, int64_t to, const void *source, int64_t from,
                   int64_t column, int64_t position, int turned) {
    const attn_problem *p = &a->problem;
    const int64_t size = check_element_size(p->dtype), c = column - p->rotary_first, half = p->rotary_dim / 2;
    if (!turned || c < 0 || c >= p->rotary_dim) {
        if (p->dtype == p->new_dtype) {
            memcpy(after(a, out) + to * size, (const unsigned char *)source + from * size, (size_t)size);
            return;
        }
        const double x = check_widen(source, p->new_dtype, from);
        check_narrow(after(a, out), p->dtype, to, x);
        if (isnan(x)) a->areas[out].bound[to] = (double)NAN;
        return;
    }
    const int64_t r = p->rotary_interleaved ? c / 2 : c % half,
                  is_second = p->rotary_interleaved ? c % 2 : c >= half;
    const int64_t step = p->rotary_interleaved ? 1 : half;
    const double x = check_widen(source, p->new_dtype, from);
    const double partner = check_widen(source, p->new_dtype, is_second ? from - step : from + step);
    const double cosine = table(a, APPEND_COS, position, r), sine = table(a, APPEND_SIN, position, r);
    const double value = is_second ? partner * sine + x * cosine : x * cosine - partner * sine;
    append_memory *m = &a->areas[out];
    m->value[to] = value;
    m->bound[to] =
        isfinite(value) ? turned_bound(p, value, fabs(x * cosine) + fabs(partner * sine)) : (double)INFINITY;
    if (isnan(value)) m->bound[to] = (double)NAN;
}

static int64_t length(const check_append *a, append_area name, int64_t b, int64_t otherwise) {
    const append_memory *m = &a->areas[name];
    int32_t x;
    if (!m->before) return otherwise;
    memcpy(&x, m->before + m->offset + 4 * b, 4);
    return x;
}

static int64_t position_of(const check_append *a, int64_t b, int64_t i) {
    return length(a, APPEND_USED_KV, b, 0) + length(a, APPEND_OFFSETS, b, 0) + i;
}

static void expect_cache(check_append *a, append_area out, int64_t b) {
    const attn_problem *p = &a->problem;
    const int is_k = out == APPEND_K;
    const attn_stride s = is_k ? p->k_stride : p->v_stride, n = is_k ? p->k_new_stride : p->v_new_stride;
    const append_memory *m = &a->areas[is_k ? APPEND_K_NEW : APPEND_V_NEW];
    const int64_t dim = is_k ? p->qk_dim : p->v_dim;
    for (int64_t i = 0; i < a->rows[b]; i++) {
        const int64_t slot = length(a, APPEND_USED_KV, b, 0) + i;
        const int64_t row = p->packed_new ? length(a, APPEND_CU_NEW, b, 0) + i : i,
                      batch = p->packed_new ? 0 : b;
        int64_t place = length(a, APPEND_INDEX, b, b) * s.batch + slot * s.seq;
        if (p->page_size) {
            const int64_t page = length(a, APPEND_TABLE, b * p->block_table_stride + slot / p->page_size, 0);
            place = page * s.batch + slot % p->page_size * s.seq;
        }
        for (int64_t h = 0; h < p->kv_heads; h++)
            for (int64_t d = 0; d < dim; d++)
                expect(a, out, place + h * s.head + d, m->before + m->offset,
                       batch * n.batch + row * n.seq + h * n.head + d, d, position_of(a, b, i),
                       is_k && p->rotary_dim);
    }
}

static void expect_q(check_append *a, int64_t b) {
    const attn_problem *p = &a->problem;
    const attn_stride s = p->q_out_stride, n = p->q_stride;
    const append_memory *m = &a->areas[a->what.in_place ? APPEND_Q_OUT : APPEND_Q];
    for (int64_t i = 0; i < a->q_rows[b]; i++) {
        const int64_t row = p->packed_q ? length(a, APPEND_CU_Q, b, 0) + i : i, batch = p->packed_q ? 0 : b;
        for (int64_t h = 0; h < p->q_heads; h++)
            for (int64_t d = 0; d < p->qk_dim; d++)
                expect(a, APPEND_Q_OUT, batch * s.batch + row * s.seq + h * s.head + d, m->before + m->offset,
                       batch * n.batch + row * n.seq + h * n.head + d, d,
                       position_of(a, b, p->rotary_q_fixed ? 0 : i), p->rotary_dim > 0);
    }
}

attn_status check_append_answer(check_append *a) {
    const attn_problem *p = &a->problem;
    for (int n = APPEND_K; n < APPEND_LENGTHS; n++) {
        append_memory *m = &a->areas[n];
        const size_t elements = m->bytes / (size_t)check_element_size(p->dtype) + 1;
        if (!m->base) continue;
        if (!m->value) m->value = malloc(elements * sizeof *m->value);
        if (!m->bound) m->bound = malloc(elements * sizeof *m->bound);
        if (!m->value || !m->bound) return ATTN_NO_MEMORY;
        for (size_t e = 0; e < elements; e++) m->bound[e] = 0;
    }
    for (int n = 0; n < APPEND_AREAS; n++)
        if (a->areas[n].base) memcpy(a->areas[n].after, a->areas[n].before, a->areas[n].total);
    for (int64_t b = 0; b < p->batch; b++) {
        expect_cache(a, APPEND_K, b);
        if (!p->v_in_k) expect_cache(a, APPEND_V, b);
        if (p->write_q) expect_q(a, b);
        const int32_t sum = (int32_t)(length(a, APPEND_USED_KV, b, 0) + a->rows[b]);
        if (a->areas[APPEND_LENGTHS].base) memcpy(after(a, APPEND_LENGTHS) + 4 * b, &sum, 4);
    }
    return ATTN_OK;
}

/* ---- the judgement ---- */

/* Where element e of an output is: batch or page, token or slot, head, column. */
static void place_text(const check_append *a, append_area name, int64_t e, char *text, size_t size) {
    const attn_problem *p = &a->problem;
    const attn_stride s = name == APPEND_K ? p->k_stride : name == APPEND_V ? p->v_stride : p->q_out_stride;
    const int64_t heads = name == APPEND_Q_OUT ? p->q_heads : p->kv_heads;
    const int64_t dim = name == APPEND_V ? p->v_dim : p->qk_dim;
    const int packed = name == APPEND_Q_OUT && p->packed_q;
    const int64_t batch = packed || !s.batch ? 0 : e / s.batch, rest = e - batch * s.batch;
    for (int64_t h = 0; h < heads; h++) {
        const int64_t in_head = rest - h * s.head, row = in_head < 0 ? -1 : in_head / s.seq;
        if (row < 0 || in_head - row * s.seq >= dim) continue;
        snprintf(text, size, "%s %lld, %s %lld, head %lld, column %lld",
                 p->page_size && name != APPEND_Q_OUT ? "page" : "batch", (long long)batch,
                 name == APPEND_Q_OUT ? "row" : "slot", (long long)row, (long long)h,
                 (long long)(in_head - row * s.seq));
        return;
    }
    snprintf(text, size, "element %lld, in a gap", (long long)e);
}

static int judge_element(const check_append *a, append_area name, const unsigned char *got, int64_t e,
                         char *why, size_t size) {
    static const char *const names[] = { "k", "v", "q_out" };
    const attn_problem *p = &a->problem;
    const append_memory *m = &a->areas[name];
    const int64_t bytes = check_element_size(p->dtype);
    const double bound = m->bound[e];
    const int same = !memcmp(got + e * bytes, m->after + m->offset + e * bytes, (size_t)bytes);
    const double x = check_widen(got, p->dtype, e);
    char place[128];
    if (isnan(bound) ? isnan(x) : isinf(bound) ? x == m->value[e]
                     : bound > 0 ? fabs(x - m->value[e]) <= bound : same)
        return 1;
    place_text(a, name, e, place, sizeof place);
    if (bound != 0 && !isnan(bound))
        snprintf(why, size, "%s, %s: %.9g, expected %.9g, allowed %.3g", names[name], place, x, m->value[e],
                 bound);
    else if (!isnan(bound) &&
             !memcmp(m->before + m->offset + e * bytes, m->after + m->offset + e * bytes, (size_t)bytes))
        snprintf(why, size, "%s, %s: changed, but no new row goes there", names[name], place);
    else if (!memcmp(got + e * bytes, m->before + m->offset + e * bytes, (size_t)bytes))
        snprintf(why, size, "%s, %s: not written", names[name], place);
    else
        snprintf(why, size, "%s, %s: %.9g, expected %.9g", names[name], place, x,
                 check_widen(m->after + m->offset, p->dtype, e));
    return 0;
}

static int judge_bytes(const append_memory *m, const unsigned char *got, size_t from, size_t to,
                       const char *what, char *why, size_t size) {
    for (size_t n = from; n < to; n++)
        if (got[n] != m->after[n]) {
            snprintf(why, size, "%s: byte %lld of %zu is %u, must be %u", what,
                     (long long)n - (long long)m->offset, m->bytes, got[n], m->after[n]);
            return 0;
        }
    return 1;
}

int check_append_judge(check_append *a, char *why, size_t size) {
    int ok = 1;
    for (int n = 0; ok && n < APPEND_AREAS; n++) {
        append_memory *m = &a->areas[n];
        unsigned char *got = m->base ? malloc(m->total) : NULL;
        if (!m->base) continue;
        if (!got || a->memory.download(a->memory.context, got, m->base, m->total)) {
            snprintf(why, size, "the results can't be read back");
            free(got);
            return 0;
        }
        const int numbers = n < APPEND_LENGTHS;
        const int64_t bytes = numbers ? check_element_size(a->problem.dtype) : 1;
        ok = judge_bytes(m, got, 0, m->offset, "before a tensor", why, size) &&
             judge_bytes(m, got, m->offset + m->bytes, m->total, "behind a tensor", why, size);
        for (int64_t e = 0; ok && numbers && e < (int64_t)m->bytes / bytes; e++)
            ok = judge_element(a, (append_area)n, got + m->offset, e, why, size);
        if (ok && !numbers)
            ok = judge_bytes(m, got, m->offset, m->offset + m->bytes,
                             n == APPEND_LENGTHS ? "seqused_kv_out" : "an input", why, size);
        free(got);
    }
    return ok;
}
