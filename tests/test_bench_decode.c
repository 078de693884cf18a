/* test_bench_decode.c — the decode suites' own check, on the CPU: it accepts the library's results on small
 * rows of every kind, and notices a NaN, a wrong LSE, a swapped page and a few keys too many. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>
#include "bench_decode.h"
#include <stdlib.h>
#include <string.h>

const char *const outcome_names[] = { "ok", "WRONG", "refused", "FAILED" };     /* contenders.c has them */

typedef enum damage { NONE, NAN_IN_O, LSE_OFF, PAGE_SWAPPED, KEYS_MISSING } damage;

static damage wanted;               /* what download does to O and LSE on the way */

static void *host_alloc(void *context, size_t bytes) {
    (void)context;
    return aligned_alloc(256, (bytes + 255) / 256 * 256);
}
static void host_free(void *context, void *memory) {
    (void)context;
    free(memory);
}
static int host_upload(void *context, void *to, const void *from, size_t bytes) {
    (void)context;
    memcpy(to, from, bytes);
    return 0;
}
static int host_download(void *context, void *to, const void *from, size_t bytes) {
    const uint16_t nan = 0x7fc0;
    float lse;
    (void)context;
    memcpy(to, from, bytes);
    if (wanted == NAN_IN_O && bytes > 4) memcpy((char *)to + 6, &nan, 2);
    if (wanted == LSE_OFF && bytes == 4) {
        memcpy(&lse, to, 4);
        lse += 0.01f;
        memcpy(to, &lse, 4);
    }
    return 0;
}

static const check_memory host = { .name = "host", .device = ATTN_CPU, .alloc = host_alloc, .free = host_free,
                                   .upload = host_upload, .download = host_download };

#define ROW(name, batch, heads, kv_heads, q_len, keys, dims, is_mla, page, lengths, timing) \
    { name, batch, heads, kv_heads, q_len, keys, dims, is_mla, page, lengths, timing, \
      NULL, 0, BENCH_US, BENCH_US, 1, 1 }
#define D128 128, 128
#define D576 576, 512

static const decode_row rows[] = {
    ROW("contiguous", 2, 8, 2, 1, 900, D128, 0, 0, DECODE_PLANNED, DECODE_WARM),
    ROW("paged", 2, 8, 2, 1, 900, D128, 0, 64, DECODE_FULL, DECODE_WARM),
    ROW("many keys", 1, 4, 1, 1, 20000, D128, 0, 0, DECODE_PLANNED, DECODE_COLD),
    ROW("mla", 1, 16, 1, 1, 3000, D576, 1, 64, DECODE_PLANNED, DECODE_COLD),
    ROW("mla, ragged, 2 queries", 3, 16, 1, 2, 700, D576, 1, 64, DECODE_RAGGED, DECODE_COLD),
};
enum { ROWS = sizeof rows / sizeof *rows };

/* What the check should believe differs from what ran. */
static void spoil(decode_step *s) {
    const int64_t columns = s->problem.block_table_cols;
    if (wanted == PAGE_SWAPPED)
        for (int64_t b = 0; b < s->row->batch; b++) s->table[b * columns + 1] = s->table[b * columns];
    if (wanted == KEYS_MISSING)
        for (int64_t b = 0; b < s->row->batch; b++) s->lengths[b] -= s->lengths[b] / 20 + 1;
}

/* @return outcome of the check. */
static outcome_kind checked(const decode_row *row, damage how) {
    const attn_options options = ATTN_OPTIONS_INIT;
    decode_step s;
    check_verdict v;
    wanted = how;
    assert_int_equal(decode_step_create(&s, row, &options, &host), 0);
    spoil(&s);
    const int bad = decode_step_check(&s, &v);
    const outcome_kind kind = s.kind;
    assert_int_equal(bad, kind != OUTCOME_OK);
    assert_int_equal(v.ok, kind == OUTCOME_OK);
    decode_step_destroy(&s);
    return kind;
}

static void test_right_results_pass(void **state) {
    (void)state;
    for (int i = 0; i < ROWS; i++) assert_int_equal(checked(&rows[i], NONE), OUTCOME_OK);
}

static void test_wrong_results_are_found(void **state) {
    (void)state;
    for (int i = 0; i < ROWS; i++)
        for (damage how = NAN_IN_O; how <= KEYS_MISSING; how++) {
            if (how == LSE_OFF && !rows[i].is_mla) continue;        /* it writes none */
            if (how == PAGE_SWAPPED && !rows[i].page_size) continue;
            if (checked(&rows[i], how) != OUTCOME_WRONG)
                fail_msg("%s: damage %d passed", rows[i].name, (int)how);
        }
}

static void test_refused_problem_is_a_row(void **state) {
    attn_options options = ATTN_OPTIONS_INIT;
    decode_step s;
    (void)state;
    options.kernel = "no_such_kernel";
    assert_int_not_equal(decode_step_create(&s, &rows[0], &options, &host), 0);
    assert_int_equal(s.kind, OUTCOME_REFUSED);
    assert_non_null(strstr(s.why, "no_such_kernel"));
    decode_step_destroy(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right_results_pass),
        cmocka_unit_test(test_wrong_results_are_found),
        cmocka_unit_test(test_refused_problem_is_a_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
