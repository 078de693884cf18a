/* test_kernels.c — every registered kernel against the float64 oracle: the edge-shape grid, then random
 * problems, each in guarded memory, with poisoned outputs and the same bits demanded again.
 * ATTN_CHECK_CASES=F: F times as many (1); ATTN_CHECK_BACKEND, ATTN_CHECK_KERNEL='flash_*': only those. */
#include "check.h"
#include "gpu.h"
#include <fnmatch.h>
#include <setjmp.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { MAX_KERNELS = 64 };

typedef struct tally {
    const char *name, *unavailable;
    attn_device device;
    int64_t     passed, failed, refused;
    double      o_ratio[4], lse_ratio, rms_ratio, bias;   /* O: by dtype of Q */
} tally;

static tally  kernels[MAX_KERNELS];
static int    kernel_count;
static int    failures_printed;
static check_gpu *gpu;              /* NULL: none here, or not asked for */

static void list_kernels(void) {
    attn_kernel_info info = { .struct_size = sizeof info };
    const char *backend = getenv("ATTN_CHECK_BACKEND"), *pattern = getenv("ATTN_CHECK_KERNEL");
    for (int i = 0; attn_kernel_describe(i, &info) == ATTN_OK && kernel_count < MAX_KERNELS; i++) {
        if (info.pass != ATTN_FORWARD) continue;
        if (backend && strcmp(backend, info.device == ATTN_CUDA ? "cuda" : "cpu")) continue;
        if (pattern && fnmatch(pattern, info.name, 0)) continue;
        kernels[kernel_count++] =
            (tally){ .name = info.name, .unavailable = info.unavailable, .device = info.device };
    }
}

static int has_kernels(attn_device device) {
    for (int n = 0; n < kernel_count; n++)
        if (kernels[n].device == device && !kernels[n].unavailable) return 1;
    return 0;
}

/* After a fault the context is dead: what follows would only repeat the same error. */
static void stop_device(attn_device device) {
    for (int n = 0; n < kernel_count; n++)
        if (device == ATTN_CUDA && kernels[n].device == device && !kernels[n].failed)
            kernels[n].unavailable = "the device broke down in another kernel";
        else if (device == ATTN_CUDA && kernels[n].device == device)
            kernels[n].unavailable = "FAILED, and took the device along";
}

static void report_failure(const check_case *c, const char *kernel, int align_end, const check_verdict *v) {
    char command[1024];
    if (failures_printed++ >= 40) return;
    check_case_command(c, kernel, command, sizeof command);
    printf("FAIL %s\n     %s   (tensors at the %s of their pages)\n", v->reason, command,
           align_end ? "end" : "beginning");
}

static void count(tally *k, const check_verdict *v, attn_dtype dtype, int has_work) {
    k->passed += has_work;
    if (v->o_ratio > k->o_ratio[dtype]) k->o_ratio[dtype] = v->o_ratio;
    if (v->lse_ratio > k->lse_ratio) k->lse_ratio = v->lse_ratio;
    if (v->rms_ratio > k->rms_ratio) k->rms_ratio = v->rms_ratio;
    if (fabs(v->bias) > fabs(k->bias)) k->bias = v->bias;
}

/* All kernels of a device on one case. */
static void check_device(const check_case *c, const check_memory *memory, int align_end, int repeats) {
    const attn_device device = memory ? memory->device : ATTN_CPU;
    check_data *data = NULL;
    if (!has_kernels(device)) return;
    if (check_data_create(&data, c, memory, align_end)) {
        printf("FAIL no data for shape %s: %s\n", c->shape, attn_last_error());
        fail();
    }
    for (int n = 0; n < kernel_count; n++) {
        tally *k = &kernels[n];
        if (k->unavailable || k->device != device) continue;
        check_candidate candidate = check_library_kernel(k->name);
        check_verdict verdict;
        const char *refusal = NULL;
        attn_options options = ATTN_OPTIONS_INIT;
        options.threads = (int32_t)(c->seed % 3) + 1;
        options.splits = c->seed % 5 == 0 ? (int32_t)(c->seed / 5 % 4) : 0;
        const attn_status status = check_run(&candidate, data, &options, repeats, &verdict, &refusal);
        if (status == ATTN_UNSUPPORTED && refusal) {
            k->refused++;
        } else if (!verdict.ok) {
            k->failed++;
            report_failure(c, k->name, align_end, &verdict);
            if (status == ATTN_DEVICE_ERROR) stop_device(device);
        } else {
            count(k, &verdict, check_data_problem(data)->dtype, verdict.rows > 0);
        }
    }
    check_data_destroy(data);
}

static void check_all(const check_case *c, int align_end, int repeats) {
    check_device(c, NULL, align_end, repeats);
    if (!gpu) return;
    const check_memory memory = check_gpu_memory(gpu);
    check_case on_gpu = *c;
    on_gpu.problem.device = ATTN_CUDA;
    check_device(&on_gpu, &memory, align_end, repeats);
}

static int64_t scaled(int64_t cases) {
    const char *text = getenv("ATTN_CHECK_CASES");
    const double factor = text ? atof(text) : 1;
    return factor > 0 ? (int64_t)((double)cases * factor + 0.5) : cases;
}

static const struct { attn_dtype dtype, o_dtype; } dtypes[] = {
    { ATTN_F32, ATTN_F32 }, { ATTN_F16, ATTN_F16 }, { ATTN_BF16, ATTN_BF16 }, { ATTN_F16, ATTN_F32 },
    { ATTN_BF16, ATTN_F32 }
};

/* Every shape meets every fill; dtype, layout, lengths and alignment rotate with different periods. */
static void test_grid(void **state) {
    (void)state;
    const int64_t rounds = scaled(CHECK_FILLS);
    int64_t n = 0;
    for (int s = 0; s < check_shape_count; s++)
        for (int64_t r = 0; r < rounds; r++, n++) {
            check_case c = check_shapes[s];
            const int64_t turn = r + s;
            c.fill = (check_fill)(turn % CHECK_FILLS);
            c.problem.dtype = dtypes[turn % 5].dtype;
            c.problem.o_dtype = dtypes[turn % 5].o_dtype;
            c.layout = (check_layout)(turn / 2 % 3);
            c.lengths = (check_lengths)((turn + 2) % 3);
            c.no_lse = turn % 11 == 10;
            c.seed = (uint64_t)n;
            check_all(&c, (int)(turn & 1), turn % 4 ? 1 : 4);
        }
    printf("grid: %d shapes, %lld cases\n", check_shape_count, (long long)n);
}

static void test_random(void **state) {
    (void)state;
    const char *seed = getenv("ATTN_CHECK_SEED");
    const uint64_t first = seed ? strtoull(seed, NULL, 10) : 1;
    const int64_t cases = scaled(600);
    for (int64_t n = 0; n < cases; n++) {
        const check_case c = check_random_case(first + (uint64_t)n);
        check_all(&c, (int)(n & 1), n % 8 ? 1 : 4);
    }
    printf("random: %lld cases from seed %llu\n", (long long)cases, (unsigned long long)first);
}

static void test_summary(void **state) {
    (void)state;
    int bad = 0;
    printf("%56s largest error / bound     | O as a whole\n", "");
    printf("%-30s %7s %7s %7s | %6s %6s %6s %6s | %6s %6s\n", "kernel", "passed", "failed", "refused",
           "O f32", "O f16", "O bf16", "LSE", "rms", "bias");
    for (int n = 0; n < kernel_count; n++) {
        const tally *k = &kernels[n];
        if (k->unavailable) {
            printf("%-30s %s%s\n", k->name, k->failed ? "" : "skipped: ", k->unavailable);
            bad += k->failed > 0;
            continue;
        }
        printf("%-30s %7lld %7lld %7lld | %6.3f %6.3f %6.3f %6.3f | %6.3f %6.3f%s\n", k->name,
               (long long)k->passed, (long long)k->failed, (long long)k->refused, k->o_ratio[ATTN_F32],
               k->o_ratio[ATTN_F16], k->o_ratio[ATTN_BF16], k->lse_ratio, k->rms_ratio, k->bias,
               k->passed ? "" : "   NO SHAPE REACHED IT");
        bad += k->failed > 0 || !k->passed;
    }
    if (failures_printed > 40) printf("%d further failures not printed\n", failures_printed - 40);
    assert_int_equal(bad, 0);
    assert_true(kernel_count > 0);
}

int main(void) {
    char why[256];
    list_kernels();
    if (has_kernels(ATTN_CUDA) && !(gpu = check_gpu_open(0, why, sizeof why))) printf("no GPU: %s\n", why);
    setvbuf(stdout, NULL, _IOLBF, 0);
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_grid), cmocka_unit_test(test_random),
                                        cmocka_unit_test(test_summary) };
    const int failed = cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
    check_gpu_close(gpu);
    return failed;
}
