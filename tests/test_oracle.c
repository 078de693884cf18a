/* test_oracle.c — who checks the oracle: another reading of the problem (the library's sequence.h) in another
 * arithmetic (long double, exp without subtracting a maximum) on random tiny cases; and every 16-bit number
 * converted both ways. */
#include "data.h"
#include "half.h"
#include "sequence.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

/* ---- numbers ---- */

static void test_numbers(void **state) {
    (void)state;
    for (uint32_t word = 0; word < 65536; word++) {
        const uint16_t h = (uint16_t)word;
        const double f16 = check_widen(&h, ATTN_F16, 0), bf16 = check_widen(&h, ATTN_BF16, 0);
        const double other_f16 = (double)attn_f16_to_f32(h), other_bf16 = (double)attn_bf16_to_f32(h);
        uint16_t back = 1, back_bf16 = 1;
        check_narrow(&back, ATTN_F16, 0, f16);
        check_narrow(&back_bf16, ATTN_BF16, 0, bf16);
        assert_true(isnan(f16) ? isnan(other_f16) : f16 == other_f16);
        assert_true(isnan(bf16) ? isnan(other_bf16) : bf16 == other_bf16);
        assert_true(isnan(f16) || back == h);
        assert_true(isnan(bf16) || back_bf16 == h);
    }
}

/* Halfway between neighbours, a little below and above; and numbers at random. */
static void test_rounding(void **state) {
    (void)state;
    for (uint32_t n = 0; n < 1000000; n++) {
        const uint32_t bits = n < 400000 ? (n / 4) << 12 | (n % 4) * 0x7ffu : (uint32_t)check_mix(n);
        const float x = attn_bits_to_f32(n % 8 < 4 ? bits : bits + 0x38000000u);
        uint16_t f16, bf16;
        check_narrow(&f16, ATTN_F16, 0, (double)x);
        check_narrow(&bf16, ATTN_BF16, 0, (double)x);
        if (isnan(x)) continue;
        assert_int_equal(f16, attn_f32_to_f16(x));
        assert_int_equal(bf16, attn_f32_to_bf16(x));
    }
}

/* ---- rows ---- */

typedef struct sums { long double l, o[1024]; } sums;

static long double score(const attn_problem *p, const attn_tensors *t, const attn_sequence *s, int64_t h,
                         int64_t i, int64_t j) {
    const int64_t q = attn_q_offset(s, p->q_stride, i, h), kv_head = h / (p->q_heads / p->kv_heads);
    const int64_t k = attn_kv_offset(p, s, p->k_stride, j, kv_head);
    long double x = 0;
    for (int64_t d = p->qk_dim - 1; d >= 0; d--)
        x += (long double)attn_load(t->q, p->dtype, q + d) * (long double)attn_load(t->k, p->dtype, k + d);
    x *= (long double)p->scale;
    if (p->softcap > 0) x = (long double)p->softcap * tanhl(x / (long double)p->softcap);
    if (p->bias_dtype)
        x += (long double)attn_load(t->bias, p->bias_dtype, attn_score_offset(s, p->bias_stride, h, i, j));
    if (p->alibi) x -= (long double)attn_slope(p, t, s->b, h) * fabsl((long double)(i + s->shift - j));
    return x;
}

static int hidden(const attn_problem *p, const attn_tensors *t, const attn_sequence *s, int64_t h, int64_t i,
                  int64_t j) {
    if (p->has_mask && !t->mask[attn_score_offset(s, p->mask_stride, h, i, j)]) return 1;
    return p->bias_dtype &&
           attn_load(t->bias, p->bias_dtype, attn_score_offset(s, p->bias_stride, h, i, j)) == -INFINITY;
}

/* exp of a score fits a long double while |score| < 11000; returns the keys seen. */
static int64_t other_row(const attn_problem *p, const attn_tensors *t, const attn_sequence *s, int64_t h,
                         int64_t i, sums *r) {
    const attn_range range = attn_visible(p, s, i);
    int64_t keys = 0;
    memset(r, 0, sizeof *r);
    for (int64_t j = range.high - 1; j >= range.low; j--) {
        if (hidden(p, t, s, h, i, j)) continue;
        const long double weight = expl(score(p, t, s, h, i, j));
        const int64_t v = attn_kv_offset(p, s, p->v_stride, j, h / (p->q_heads / p->kv_heads));
        r->l += weight;
        for (int64_t d = 0; d < p->v_dim; d++)
            r->o[d] += weight * (long double)attn_load(t->v, p->dtype, v + d);
        keys++;
    }
    return keys;
}

static double worst;               /* error in units of 2^-45 of what was summed */

static int compare_row(const check_row *row, const sums *r, int64_t keys, const attn_problem *p,
                       double sink) {
    if (row->keys != keys) return 0;
    if (!keys) return row->lse == (double)-INFINITY && row->o[0] == 0;
    if (fabs(row->lse) > 11000) return 1;                  /* beyond the exponents of a long double */
    if (!isfinite((double)logl(r->l))) return !isfinite(row->lse);
    const long double whole = r->l + expl((long double)sink);
    for (int64_t d = 0; d < p->v_dim; d++) {
        const double other = (double)(r->o[d] / whole), size = row->weight[d] + row->drift[d] + 1e-300;
        if (isfinite(other) != isfinite(row->o[d])) return 0;
        if (!isfinite(other)) continue;
        const double error = fabs(other - row->o[d]) / size * 0x1p45;
        if (error > worst) worst = error;
        if (!(error <= 1)) return 0;
    }
    const double error = fabs((double)logl(r->l) - row->lse) / (row->reach + fabs(row->lse) + 1) * 0x1p45;
    if (error > worst) worst = error;
    return error <= 1;
}

static int64_t compare_case(const check_case *c) {
    check_data *data;
    static double o[4][1024];
    static sums r;
    int64_t rows = 0;
    assert_int_equal(check_data_create(&data, c, NULL, 1), ATTN_OK);
    const attn_problem *p = check_data_problem(data);
    attn_tensors t = *check_data_tensors(data);
    if (p->v_in_k) t.v = t.k;
    for (int64_t b = 0; b < p->batch; b++) {
        const attn_sequence s = attn_sequence_at(p, &t, b);
        for (int64_t n = 0; n < s.q_len * p->q_heads; n += 1 + n % 7) {
            check_row row = { .o = o[0], .weight = o[1], .drift = o[2], .tail = o[3] };
            const int64_t i = n / p->q_heads, h = n % p->q_heads;
            assert_true(check_oracle_row(p, &t, b, h, i, NULL, &row));
            const int64_t keys = other_row(p, &t, &s, h, i, &r);
            const double sink = p->has_sinks ? (double)t.sinks[h] : (double)-INFINITY;
            if (!compare_row(&row, &r, keys, p, sink)) {
                printf("case %llu b %lld h %lld i %lld: keys %lld and %lld, lse %.17g and %.17Lg\n",
                       (unsigned long long)c->seed, (long long)b, (long long)h, (long long)i,
                       (long long)row.keys, (long long)keys, row.lse, logl(r.l));
                fail();
            }
            rows++;
        }
    }
    check_data_destroy(data);
    return rows;
}

static void test_rows(void **state) {
    (void)state;
    int64_t rows = 0;
    int cases = 0;
    if (sizeof(long double) <= sizeof(double)) skip();
    for (uint64_t seed = 1; cases < 200; seed++) {
        check_case c = check_random_case(seed * 7919);
        if (c.problem.q_len * c.problem.kv_len > 5000) continue;
        /* exp without a maximum differs on non-finite numbers */
        if (c.fill == CHECK_FILL_nonfinite) c.fill = CHECK_FILL_gaussian;
        cases++;
        rows += compare_case(&c);
    }
    printf("oracle: %d cases, %lld rows, largest difference %.3g x 2^-45 of what was summed\n", cases,
           (long long)rows, worst);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_numbers), cmocka_unit_test(test_rounding),
                                        cmocka_unit_test(test_rows) };
    return cmocka_run_group_tests_name("oracle", tests, NULL, NULL);
}
