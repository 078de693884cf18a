/* test_decode.c — what splitting the keys may and may not change: in strict mode no bit, whatever the splits,
 * the threads and the batch neighbours; pages, left padding and unseen values never change one. */
#include "small_case.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>

static const char *const names[] = { "decode_fwd_avx512bf16", "decode_fwd_avx512", "decode_fwd_avx2" };
enum { NAMES = sizeof names / sizeof *names };

/* NULL if this machine lacks the instruction set or the kernel doesn't take the dtype. */
static attn_plan *plan_of(const attn_problem *p, const char *kernel, int threads, int splits) {
    attn_options options = ATTN_OPTIONS_INIT;
    options.kernel = kernel;
    options.threads = threads;
    options.splits = splits;
    attn_plan *plan;
    const attn_status status = attn_plan_create(&plan, p, &options);
    if (status == ATTN_INVALID) fail_msg("%s: %s", kernel, attn_last_error());   /* not x86: no such kernel */
    return status ? NULL : plan;
}

static uint64_t run(const attn_plan *plan, small_case *c) {
    void *workspace = small_workspace(plan);
    small_case_poison(c);
    if (attn_run(plan, &c->tensors, workspace, NULL)) fail_msg("%s", attn_last_error());
    free(workspace);
    return small_case_hash(c);
}

static attn_problem decode_problem(int64_t batch, int64_t q_heads, int64_t kv_heads, int64_t q_len,
                                   int64_t kv_len) {
    attn_problem p = small_problem(batch, q_heads, kv_heads, q_len, kv_len, 72);
    p.v_dim = 56;
    p.causal = 1;
    return p;
}

/* The f32 tensors of a case are read as bf16 where the dtype says so: any bits will do but NaN. */
static void make_bf16(small_case *c) {
    c->problem.dtype = ATTN_BF16;
    c->problem.o_dtype = ATTN_F32;
    const size_t words = (size_t)((float *)c->tensors.o - c->memory) * 2;
    uint16_t *x = (uint16_t *)(void *)c->memory;
    for (size_t i = 0; i < words; i++) x[i] = (uint16_t)((x[i] & 0x8000) | 0x3e80 | (x[i] & 0xff));
}

static void strict_bits_ignore_splits_and_threads(void **state) {
    (void)state;
    for (int k = 0; k < NAMES; k++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            attn_problem p = decode_problem(2, 6, 2, 2, 5000);
            p.strict = 1;
            small_case c = small_case_create(p);
            if (bf16) make_bf16(&c);
            attn_plan *plan = plan_of(&c.problem, names[k], 1, 0);
            const uint64_t expected = plan ? run(plan, &c) : 0;
            static const int threads[] = { 1, 2, 3, 7 }, splits[] = { 1, 2, 5, 77 };
            for (int i = 0; i < 16 && plan; i++) {
                attn_plan *other = plan_of(&c.problem, names[k], threads[i % 4], splits[i / 4]);
                assert_int_equal(run(other, &c), expected);
                attn_plan_destroy(other);
            }
            attn_plan_destroy(plan);
            small_case_destroy(&c);
        }
}

/* The second of two sequences alone, and planned for a longer cache: the same bits. */
static void strict_bits_ignore_neighbours_and_maxima(void **state) {
    (void)state;
    for (int k = 0; k < NAMES; k++) {
        attn_problem p = decode_problem(2, 4, 1, 1, 3000);
        p.strict = p.has_seqused_kv = 1;
        small_case both = small_case_create(p), one = both;
        const int32_t used[2] = { 17, 2345 };
        both.tensors.seqused_kv = used;
        attn_plan *plan = plan_of(&p, names[k], 3, 0);
        if (plan) {
            (void)run(plan, &both);
            float o[4 * 56], lse[4];
            memcpy(o, (float *)both.tensors.o + 4 * 56, sizeof o);
            memcpy(lse, both.tensors.lse + 4, sizeof lse);
            one.problem.batch = 1;
            one.problem.kv_len = 2345;
            one.problem.has_seqused_kv = 0;
            one.tensors.q = (const float *)both.tensors.q + 4 * 72;
            one.tensors.k = (const float *)both.tensors.k + 3000 * 72;
            one.tensors.v = (const float *)both.tensors.v + 3000 * 56;
            attn_plan *alone = plan_of(&one.problem, names[k], 2, 0);
            (void)run(alone, &one);
            assert_memory_equal(one.tensors.o, o, sizeof o);
            assert_memory_equal(one.tensors.lse, lse, sizeof lse);
            attn_plan_destroy(alone);
        }
        attn_plan_destroy(plan);
        small_case_destroy(&both);
    }
}

static void splits_agree(void **state) {
    (void)state;
    for (int k = 0; k < NAMES; k++) {
        const attn_problem p = decode_problem(1, 4, 2, 3, 1000);
        small_case c = small_case_create(p), expected = small_case_create(p);
        attn_plan *whole = plan_of(&p, names[k], 1, 1);
        if (whole) (void)run(whole, &expected);
        for (int splits = 2; splits <= 40 && whole; splits++) {
            attn_plan *plan = plan_of(&p, names[k], 2, splits);
            const uint64_t first = run(plan, &c);
            assert_int_equal(run(plan, &c), first);
            for (size_t i = 0; i < c.o_floats; i++)
                assert_true(fabsf(((float *)c.tensors.o)[i] - ((float *)expected.tensors.o)[i]) <= 1e-5f);
            for (size_t i = 0; i < c.lse_floats; i++)
                assert_true(fabsf(c.tensors.lse[i] - expected.tensors.lse[i]) <= 1e-5f);
            attn_plan_destroy(plan);
        }
        attn_plan_destroy(whole);
        small_case_destroy(&c);
        small_case_destroy(&expected);
    }
}

/* Pages of any size over the same keys, in a shuffled pool. */
static void pages_change_no_bit(void **state) {
    (void)state;
    static const int64_t sizes[] = { 1, 3, 16, 64, 257 };
    enum { KEYS = 771 };
    for (int k = 0; k < NAMES; k++) {
        attn_problem p = decode_problem(1, 4, 2, 2, KEYS);
        small_case c = small_case_create(p);
        attn_plan *plan = plan_of(&p, names[k], 1, 3);
        const uint64_t expected = plan ? run(plan, &c) : 0;
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes && plan; i++) {
            const int64_t size = sizes[i], pages = KEYS / size + (KEYS % size != 0);
            small_case paged = c;
            paged.problem.page_size = size;
            paged.problem.pages = paged.problem.block_table_cols = pages;
            int32_t *table = malloc((size_t)pages * sizeof *table);
            float *keys = calloc((size_t)(pages * size * 2 * 72), sizeof *keys);
            float *values = calloc((size_t)(pages * size * 2 * 56), sizeof *values);
            for (int64_t j = 0; j < pages; j++) table[j] = (int32_t)((j * 7 + 3) % pages);
            if (pages % 7 == 0)
                for (int64_t j = 0; j < pages; j++) table[j] = (int32_t)(pages - 1 - j);
            for (int64_t j = 0; j < KEYS; j++) {
                const int64_t slot = table[j / size] * size + j % size;
                memcpy(keys + slot * 144, (const float *)c.tensors.k + j * 144, 144 * sizeof *keys);
                memcpy(values + slot * 112, (const float *)c.tensors.v + j * 112, 112 * sizeof *values);
            }
            paged.tensors.k = keys;
            paged.tensors.v = values;
            paged.tensors.block_table = table;
            attn_plan *other = plan_of(&paged.problem, names[k], 2, 3);
            assert_int_equal(run(other, &paged), expected);
            attn_plan_destroy(other);
            free(table);
            free(keys);
            free(values);
        }
        attn_plan_destroy(plan);
        small_case_destroy(&c);
    }
}

/* A masked key's V may be anything: the path around a NaN computes the very same sums. */
static void masked_values_change_no_bit(void **state) {
    (void)state;
    enum { KEYS = 200 };
    for (int k = 0; k < NAMES; k++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            attn_problem p = decode_problem(1, 4, 2, 3, KEYS);
            p.has_mask = 1;
            small_case c = small_case_create(p);
            if (bf16) make_bf16(&c);
            uint8_t mask[4 * 3 * KEYS];
            for (int i = 0; i < 4 * 3 * KEYS; i++)
                mask[i] = i % KEYS % 5 != 3 && (i / KEYS + i % KEYS) % 7 != 0;
            c.tensors.mask = mask;
            attn_plan *plan = plan_of(&c.problem, names[k], 1, 0);
            const uint64_t expected = plan ? run(plan, &c) : 0;
            const size_t row = 2 * 56 * (bf16 ? 2 : 4);
            char *v = (char *)c.memory + ((const char *)c.tensors.v - (const char *)c.memory);
            for (size_t j = 3; j < KEYS; j += 5) memset(v + j * row, 0xff, row);
            if (plan) assert_int_equal(run(plan, &c), expected);
            attn_plan_destroy(plan);
            small_case_destroy(&c);
        }
}

static void refuses_what_flash_does_better(void **state) {
    (void)state;
    const attn_problem prefill = decode_problem(1, 4, 4, 500, 500), token = decode_problem(1, 8, 2, 1, 5000);
    for (int k = 0; k < NAMES; k++) {
        attn_plan *plan = plan_of(&prefill, names[k], 1, 0);
        assert_null(plan);
    }
    attn_plan *plan;
    assert_int_equal(attn_plan_create(&plan, &token, NULL), ATTN_OK);
    if (strcmp(attn_cpu_isa(), "scalar")) assert_int_equal(strncmp(attn_plan_kernel(plan), "decode_", 7), 0);
    attn_plan_destroy(plan);
}

int main(void) {
#if !defined(__x86_64__)
    puts("no decode kernels on this architecture");
    return 0;
#endif
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strict_bits_ignore_splits_and_threads),
        cmocka_unit_test(strict_bits_ignore_neighbours_and_maxima), cmocka_unit_test(splits_agree),
        cmocka_unit_test(pages_change_no_bit), cmocka_unit_test(masked_values_change_no_bit),
        cmocka_unit_test(refuses_what_flash_does_better),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
