/* test_zoo.c — the checker is checked: it must reject every wrong kernel of mutants/mutants.def on the
 * edge-shape grid and pass the same kernel without a bug. Prints which case gave each mutant away.
 * ATTN_CHECK_BACKEND=cuda: the tensors lie on a GPU. */
#include "mutants/on_device.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

typedef struct catch {
    int64_t    tried;               /* cases that ran until it was caught */
    int        caught;
    check_case by;
    char       reason[512];
} catch;

static catch      catches[MUTANTS];
static row_kernel kernels[MUTANTS];

static check_gpu   *gpu;
static check_memory gpu_memory;

static const attn_dtype dtypes[] = { ATTN_F32, ATTN_BF16, ATTN_F16 };

static check_case grid_case(int shape, int turn) {
    check_case c = check_shapes[shape];
    c.problem.dtype = dtypes[(turn + shape) % 3];      /* every fill meets every dtype */
    c.fill = (check_fill)(turn % CHECK_FILLS);
    c.layout = (check_layout)((turn + shape) % 3);
    c.lengths = (check_lengths)((turn + 1) % 3);
    c.seed = (uint64_t)(turn * 1000 + shape);
    return c;
}

static void try_mutant(int n, const check_case *c, check_data *data) {
    catch *k = &catches[n];
    check_candidate candidate = mutant_candidate(&kernels[n]);
    check_verdict verdict;
    if (k->caught) return;
    k->tried++;
    device_data = data;
    if (gpu) candidate.run = run_on_device;
    check_run(&candidate, data, NULL, 2, &verdict, NULL);
    if (verdict.ok) return;
    k->caught = 1;
    k->by = *c;
    snprintf(k->reason, sizeof k->reason, "%s", verdict.reason);
}

static void test_zoo(void **state) {
    (void)state;
    const char *text = getenv("ATTN_CHECK_CASES");
    const double factor = text ? atof(text) : 1;
    const int turns = factor < 1 ? 3 : 9;
    const char *backend = getenv("ATTN_CHECK_BACKEND");
    char why[256];
    if (backend && !strcmp(backend, "cuda")) {
        if (!(gpu = check_gpu_open(0, why, sizeof why))) {
            printf("skipped: %s\n", why);
            skip();
        }
        gpu_memory = check_gpu_memory(gpu);
    }
    for (int n = 0; n < MUTANTS; n++) kernels[n].bug = (mutant)n;
    for (int turn = 0; turn < turns; turn++)
        for (int s = 0; s < check_shape_count; s++) {
            const check_case c = grid_case(s, turn + s);
            check_data *data;
            assert_int_equal(check_data_create(&data, &c, gpu ? &gpu_memory : NULL, (turn + s) & 1), ATTN_OK);
            for (int n = 0; n < MUTANTS; n++) try_mutant(n, &c, data);
            check_data_destroy(data);
        }
    assert_true(catches[MUTANT_none].tried > 0);
}

static void test_table(void **state) {
    (void)state;
    int alive = 0;
    if (!catches[MUTANT_none].tried) skip();
    printf("%-26s %6s  %-22s %-12s %s\n", "mutant", "cases", "caught by shape", "fill", "finding");
    for (int n = 1; n < MUTANTS; n++) {
        const catch *k = &catches[n];
        alive += !k->caught;
        printf("%-26s %6lld  %-22s %-12s %.120s\n", mutant_table[n].name, (long long)k->tried,
               k->caught ? k->by.shape : "ALIVE", k->caught ? check_fill_names[k->by.fill] : "",
               k->caught ? k->reason : mutant_table[n].description);
    }
    const catch *right = &catches[MUTANT_none];
    printf("%d mutants, %d rejected; the kernel without a bug: %lld cases, %s %s\n", MUTANTS - 1,
           MUTANTS - 1 - alive, (long long)right->tried, right->caught ? "REJECTED:" : "all passed",
           right->reason);
    assert_false(right->caught);
    assert_int_equal(alive, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_zoo), cmocka_unit_test(test_table) };
    const int failed = cmocka_run_group_tests_name("zoo", tests, NULL, NULL);
    check_gpu_close(gpu);
    return failed;
}
