/* test_options.c — the command line: values are checked where they are parsed, lists multiply out, and the
 * text of a problem parses back to the same problem. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>
#include "check.h"
#include "problem_options.h"
#include <stdlib.h>
#include <string.h>

static const cli_option own[] = {
    { .name = "count", .type = CLI_INTEGER, .argument = "N", .summary = "-", .low = 1, .high = 9 },
    { .name = "file", .type = CLI_FILE, .argument = "FILE", .summary = "-" },
    { .name = NULL },
};
static const cli_option *const tables[] = { own, cli_shape_options, cli_mask_options, cli_engine_options,
                                            NULL };
static const cli_command single = {
    .name = "single", .summary = "-", .operands = "FILE", .most_operands = 1, .tables = tables
};
static const cli_command sweeping = { .name = "sweeping", .summary = "-", .sweeps = 1, .tables = tables };
const cli_command *const cli_commands[] = { &single, &sweeping, NULL };

/* Cut at spaces and parse. @return what cli_parse does. */
static int parse(cli_arguments **out, const cli_command *command, const char *line) {
    static char text[2048];
    char *words[128], *rest = NULL;
    int count = 0;
    snprintf(text, sizeof text, "%s", line);
    for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
        words[count++] = word;
    return cli_parse(out, command, count, words);
}

static void good_values(void **state) {
    (void)state;
    cli_arguments *a;
    assert_int_equal(
        parse(&a, &single,
              "--sq 16k --sk=3m --count 9 --softcap 2.5 --window 128,-1 --causal --dtype bf16 x"),
        0);
    int64_t left, right;
    cli_pair_item(a, "window", 0, &left, &right);
    assert_int_equal(cli_integer(a, "sq", 0), 16384);
    assert_int_equal(cli_integer(a, "sk", 0), 3 << 20);
    assert_true(cli_real(a, "softcap", 0) == 2.5);
    assert_int_equal(left, 128);
    assert_int_equal(right, -1);
    assert_true(cli_flag(a, "causal"));
    assert_false(cli_flag(a, "mask"));
    assert_int_equal(cli_choice(a, "dtype", -1), 2);
    assert_int_equal(cli_choice(a, "backend", 0), 0);
    assert_int_equal(cli_operands(a), 1);
    assert_string_equal(cli_operand(a, 0), "x");
    cli_arguments_free(a);
    assert_int_equal(parse(&a, &single, "--count 1 --count 2"), 0);   /* the last one holds */
    assert_int_equal(cli_integer(a, "count", 0), 2);
    cli_arguments_free(a);
}

static void bad_values(void **state) {
    (void)state;
    static const char *const lines[] = {
        "--unknown", "--sq", "--sq x", "--sq 1x", "--sq -1", "--sq 99999999999999999999", "--sq 1,2",
        "--sq 9999999999999m", "--count 0", "--count 10", "--softcap x", "--softcap nan", "--softcap inf",
        "--window 1", "--window 1,", "--window 1,2,3", "--dtype f64", "--dtype", "--causal=2", "--file=",
        "-x", "one two", "--kernel=",
    };
    cli_arguments *a;
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        if (parse(&a, &single, lines[i]) != CLI_USAGE) fail_msg("\"%s\" was accepted", lines[i]);
        assert_null(a);
    }
}

static void lists_multiply_out(void **state) {
    (void)state;
    cli_arguments *a;
    attn_problem *problems;
    int count;
    assert_int_equal(
        parse(&a, &sweeping, "--d 64,128 --sq 1k,2k,4k --causal=0,1 --window 1,0/2,0 --dtype f32,bf16"), 0);
    assert_int_equal(cli_problem_list(a, &problems, &count), 0);
    assert_int_equal(count, 2 * 3 * 2 * 2 * 2);
    for (int i = 0; i < count; i++)
        for (int k = 0; k < i; k++) assert_memory_not_equal(&problems[i], &problems[k], sizeof *problems);
    assert_int_equal(problems[0].causal, 0);      /* the last row of the table changes fastest */
    assert_int_equal(problems[1].causal, 1);
    assert_int_equal(problems[0].dtype, ATTN_F32);
    assert_int_equal(problems[count - 1].dtype, ATTN_BF16);
    free(problems);
    cli_arguments_free(a);
    char many[2048] = "--sq 1";
    for (int i = 0; i < 400; i++) strcat(many, ",1");
    strcat(many, " --sk 1");
    for (int i = 0; i < 300; i++) strcat(many, ",1");
    assert_int_equal(parse(&a, &sweeping, many), 0);
    assert_int_equal(cli_problem_list(a, &problems, &count), CLI_USAGE);   /* 120 701 problems */
    cli_arguments_free(a);
}

/* Sizes that packed, paged and indexed problems derive are the same ones that check_case_complete sets. */
static void text_parses_back(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 500; seed++) {
        check_case c = check_random_case(seed);
        c.layout = CHECK_LAYOUT_BSHD;
        check_case_complete(&c);
        char text[2048], again[2048];
        attn_problem *problems, resolved = c.problem;
        cli_arguments *a;
        int count;
        if (attn_problem_resolve(&resolved)) continue;
        assert_true(cli_problem_text(&c.problem, text, sizeof text) < (int)sizeof text);
        assert_int_equal(parse(&a, &single, text), 0);
        assert_int_equal(cli_problem_list(a, &problems, &count), 0);
        assert_int_equal(count, 1);
        cli_problem_text(&problems[0], again, sizeof again);
        assert_string_equal(text, again);
        attn_problem parsed = problems[0];
        assert_int_equal(attn_problem_resolve(&parsed), ATTN_OK);
        parsed.block_table_cols = resolved.block_table_cols;       /* no option: the least that fits */
        parsed.block_table_stride = resolved.block_table_stride;
        if (memcmp(&parsed, &resolved, sizeof parsed))
            fail_msg("seed %llu: %s", (unsigned long long)seed, text);
        free(problems);
        cli_arguments_free(a);
    }
}

static void layout_swaps_strides(void **state) {
    (void)state;
    cli_arguments *a;
    attn_problem *problems;
    int count;
    assert_int_equal(parse(&a, &sweeping, "--b 2 --hq 4 --hkv 2 --sq 10 --sk 20 --d 8 --dv 6 --layout bhsd"),
                     0);
    assert_int_equal(cli_problem_list(a, &problems, &count), 0);
    const attn_problem *p = problems;
    assert_int_equal(p->q_stride.head, 80);
    assert_int_equal(p->q_stride.seq, 8);
    assert_int_equal(p->k_stride.batch, 2 * 20 * 8);
    assert_int_equal(p->v_stride.head, 20 * 6);
    assert_int_equal(p->o_stride.head, 10 * 6);
    free(problems);
    cli_arguments_free(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_values), cmocka_unit_test(bad_values), cmocka_unit_test(lists_multiply_out),
        cmocka_unit_test(text_parses_back), cmocka_unit_test(layout_swaps_strides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
