/* judge.c — compares outputs with the answer. Every comparison has the form !(error <= bound), so that NaN
 * fails; then everything that the candidate had no business to write must still be there: gaps, margins,
 * workspace edge, inputs. */
#include "suspect.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct sight {
    check_data    *data;
    check_verdict *verdict;
    unsigned char *o, *lse;         /* downloaded areas */
    int64_t        wrong, compared;
    double         squares, ratio_squares;
    int64_t        rounded;         /* elements of a 16-bit O that are normal numbers */
    double         bias, roundoff;  /* sums of their errors away from 0, and of their roundoffs */
} sight;

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static void reject(check_verdict *v, const char *format, ...) {
    if (!v->ok) return;             /* the first finding is the one to read */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(v->reason, sizeof v->reason, format, arguments);
    va_end(arguments);
    v->ok = 0;
}

static const void *at(const check_data *data, const unsigned char *copy, area_name name) {
    return copy + data->areas[name].offset;
}

static void wrong_o(sight *s, int64_t n, int64_t d, double got) {
    const answer *a = &s->data->answer;
    const int64_t e = n * s->data->problem.v_dim + d;
    char suspicion[160];
    s->wrong++;
    if (!s->verdict->ok) return;
    check_suspect(s->data, n, d, got, suspicion, sizeof suspicion);
    reject(s->verdict, "o[b=%lld i=%lld h=%lld d=%lld] = %.9g, expected %.9g +- %.3g (%lld keys)%s%s",
           (long long)a->row_b[n], (long long)a->row_i[n], (long long)a->row_h[n], (long long)d, got, a->o[e],
           a->bound[e], (long long)a->keys[n], suspicion[0] ? ": " : "", suspicion);
}

static void compare_o(sight *s, int64_t n, int64_t d, double got) {
    const answer *a = &s->data->answer;
    const int64_t e = n * s->data->problem.v_dim + d;
    const double expected = a->o[e], bound = a->bound[e], error = fabs(got - expected);
    if (bound == (double)INFINITY) return;
    if (a->keys[n] && a->lse[n] == (double)-INFINITY) {     /* every score is -inf by its data: 0 or NaN, both
                                                               fair */
        if (got != 0 && isfinite(got)) wrong_o(s, n, d, got);
        return;
    }
    if (!isfinite(expected)) {
        if (isfinite(got)) wrong_o(s, n, d, got);
        return;
    }
    if (!(error <= bound)) wrong_o(s, n, d, got);
    if (!(error <= s->verdict->o_error)) s->verdict->o_error = error;
    if (bound > 0 && !(error / bound <= s->verdict->o_ratio)) s->verdict->o_ratio = error / bound;
    s->compared++;
    s->squares += error * error;
    if (bound > 0) s->ratio_squares += error / bound * (error / bound);
    if (s->data->problem.o_dtype != ATTN_F32 && fabs(expected) > 0x1p-14) {
        s->rounded++;
        s->bias += expected > 0 ? got - expected : expected - got;
        s->roundoff += check_unit(s->data->problem.o_dtype) * fabs(expected);
    }
}

/* What no single element shows: errors that are large on the whole, or all in one direction (O cut instead of
 * rounded). The second needs numbers that don't repeat, as equal ones round alike, and many rows, as the
 * rounded P of one row moves all its elements. */
static void compare_whole(sight *s) {
    enum { ENOUGH = 256 };
    const check_data *data = s->data;
    check_verdict *v = s->verdict;
    if (s->compared) v->rms_error = sqrt(s->squares / (double)s->compared);
    if (s->compared >= ENOUGH) v->rms_ratio = sqrt(s->ratio_squares / (double)s->compared);
    if (s->rounded >= 4 * ENOUGH && data->answer.checked >= ENOUGH / 4 &&
        data->what.fill == CHECK_FILL_gaussian)
        v->bias = s->bias / s->roundoff;
    if (!(v->rms_ratio <= CHECK_MOST_RMS))
        reject(v,
               "o: errors of all %lld elements are %.3g of their bounds (root mean square), at most %.3g is "
               "right", (long long)s->compared, v->rms_ratio, CHECK_MOST_RMS);
    if (!(fabs(v->bias) <= CHECK_MOST_BIAS))
        reject(v,
               "o: errors point the same way, %.3g roundoffs on average over %lld elements, at most %.3g is "
               "right", v->bias, (long long)s->rounded, CHECK_MOST_BIAS);
}

static void compare_lse(sight *s, int64_t n, double got) {
    const answer *a = &s->data->answer;
    const double expected = a->lse[n], bound = a->lse_bound[n], error = fabs(got - expected);
    int fine;
    if (bound == (double)INFINITY) return;
    if (!a->keys[n]) fine = got == (double)-INFINITY;
    else if (!isfinite(expected)) fine = !isfinite(got);
    else fine = error <= bound;
    if (!fine) {
        char suspicion[160];
        s->wrong++;
        if (!s->verdict->ok) return;
        check_suspect_lse(s->data, n, got, suspicion, sizeof suspicion);
        reject(s->verdict, "lse[b=%lld h=%lld i=%lld] = %.9g, expected %.9g +- %.3g (%lld keys)%s%s",
               (long long)a->row_b[n], (long long)a->row_h[n], (long long)a->row_i[n], got, expected, bound,
               (long long)a->keys[n], suspicion[0] ? ": " : "", suspicion);
    }
    if (!isfinite(expected)) return;
    if (!(error <= s->verdict->lse_error)) s->verdict->lse_error = error;
    if (bound > 0 && !(error / bound <= s->verdict->lse_ratio)) s->verdict->lse_ratio = error / bound;
}

static void compare_rows(sight *s) {
    const check_data *data = s->data;
    const attn_problem *p = &data->problem;
    const answer *a = &data->answer;
    for (int64_t n = 0; n < a->checked; n++) {
        const int64_t row = check_row_index(p, &data->host, a->row_b[n], a->row_i[n]);
        const int64_t place = check_q_place(p, p->o_stride, row, a->row_h[n]);
        for (int64_t d = 0; d < p->v_dim; d++)
            compare_o(s, n, d, check_widen(at(data, s->o, AREA_O), p->o_dtype, place + d));
        if (!s->lse) continue;
        const int64_t lse_place = check_lse_place(p, row, a->row_h[n]);
        compare_lse(s, n, check_widen(at(data, s->lse, AREA_LSE), ATTN_F32, lse_place));
    }
}

/* Rows outside the sample have no answer, but unless the input has NaN they are finite. */
static void compare_rest(sight *s) {
    const check_data *data = s->data;
    const attn_problem *p = &data->problem;
    if (data->answer.checked == data->answer.rows || data->what.fill == CHECK_FILL_nonfinite) return;
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t i = 0; i < check_q_rows(p, &data->host, b); i++)
            for (int64_t h = 0; h < p->q_heads; h++) {
                const int64_t place = check_q_place(p, p->o_stride, check_row_index(p, &data->host, b, i), h);
                for (int64_t d = 0; d < p->v_dim; d++)
                    if (!isfinite(check_widen(at(data, s->o, AREA_O), p->o_dtype, place + d)))
                        reject(s->verdict, "o[b=%lld i=%lld h=%lld d=%lld] isn't finite", (long long)b,
                               (long long)i, (long long)h, (long long)d);
            }
}

/* ---- what must not have been written ---- */

static void find_change(sight *s, area_name name, const unsigned char *now) {
    const area *a = &s->data->areas[name];
    if (!memcmp(now, a->image, a->total)) return;
    for (size_t i = 0; i < a->total; i++) {
        if (now[i] == a->image[i]) continue;
        reject(s->verdict, "wrote outside its rows: %s, byte %lld of %lld", check_area_names[name],
               (long long)i - (long long)a->offset, (long long)a->bytes);
        return;
    }
}

/* Put the poison back where rows are, then everything must be as it was. */
static void check_gaps(sight *s, area_name name, unsigned char *now, int64_t size, int64_t dims) {
    const check_data *data = s->data;
    const attn_problem *p = &data->problem;
    const area *a = &data->areas[name];
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t i = 0; i < check_q_rows(p, &data->host, b); i++)
            for (int64_t h = 0; h < p->q_heads; h++) {
                const int64_t row = check_row_index(p, &data->host, b, i);
                const int64_t place =
                    name == AREA_LSE ? check_lse_place(p, row, h) : check_q_place(p, p->o_stride, row, h);
                const size_t byte = a->offset + (size_t)(place * size);
                memcpy(now + byte, a->image + byte, (size_t)(dims * size));
            }
    find_change(s, name, now);
}

static unsigned char *fetch(const check_data *data, area_name name) {
    const area *a = &data->areas[name];
    unsigned char *copy = a->base ? malloc(a->total) : NULL;
    if (copy && data->memory.download(data->memory.context, copy, a->base, a->total)) {
        free(copy);
        return NULL;
    }
    return copy;
}

static void check_inputs(sight *s) {
    for (int n = 0; n < AREA_WORKSPACE; n++) {
        if (n == AREA_O || n == AREA_LSE || !s->data->areas[n].base) continue;
        unsigned char *now = fetch(s->data, (area_name)n);
        if (now) find_change(s, (area_name)n, now);
        else reject(s->verdict, "%s can't be read back", check_area_names[n]);
        free(now);
    }
    unsigned char *now = fetch(s->data, AREA_WORKSPACE);
    if (now) {
        const area *a = &s->data->areas[AREA_WORKSPACE];
        memcpy(now + a->offset, a->image + a->offset, a->bytes);
        find_change(s, AREA_WORKSPACE, now);
    }
    free(now);
}

void check_data_judge(check_data *data, check_verdict *verdict) {
    *verdict = (check_verdict){ .ok = 1, .rows = data->answer.rows, .rows_checked = data->answer.checked };
    sight s = { .data = data, .verdict = verdict };
    if (!data->answered) {
        reject(verdict, "no answer: check_data_answer comes first");
        return;
    }
    s.o = fetch(data, AREA_O);
    s.lse = fetch(data, AREA_LSE);
    if (!s.o || (data->areas[AREA_LSE].base && !s.lse)) {
        reject(verdict, "outputs can't be read back");
    } else {
        compare_rows(&s);
        compare_rest(&s);
        compare_whole(&s);
        if (data->poisoned) {
            check_gaps(&s, AREA_O, s.o, check_element_size(data->problem.o_dtype), data->problem.v_dim);
            if (s.lse) check_gaps(&s, AREA_LSE, s.lse, 4, 1);
        }
        check_inputs(&s);
    }
    free(s.o);
    free(s.lse);
}
