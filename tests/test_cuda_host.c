/* test_cuda_host.c — the CUDA host layer without a GPU, against fake_cuda.c: every way a driver can be
 * missing, old or failing gives the right status and a message, leaks nothing, and the next call works. Each
 * case is a process of its own, because a driver once opened stays open. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <dlfcn.h>
#include <cmocka.h>
#include "attn/attn.h"
#if defined(FAKE_CUDA_DIR)
#include "fake_cuda.h"

/* ---- children: a scenario returns 0, or the line that is wrong ---- */

#define WANT(condition) do { \
        if (!(condition)) return fprintf(stderr, "  %s:%d: %s (last error: %s)\n", __func__, __LINE__, \
                                         #condition, attn_last_error()), 1; \
    } while (0)

static fake_cuda *open_books(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    fake_cuda *(*books)(void) = NULL;
    void *symbol = library ? dlsym(library, "fake_cuda_books") : NULL;
    memcpy(&books, &symbol, sizeof books);
    if (!books) exit(99);
    return books();
}

static attn_problem small_problem(void) {
    attn_problem p = ATTN_PROBLEM_INIT;
    p.device = ATTN_CUDA;
    p.batch = 2;
    p.q_heads = 2;
    p.q_len = 8;
    p.qk_dim = 32;
    return p;
}

static attn_tensors tensors_on(const fake_cuda *fake, int device) {
    attn_tensors t = ATTN_TENSORS_INIT;
    t.q = fake->memory[device];
    t.k = fake->memory[device] + 4096;
    t.v = fake->memory[device] + 8192;
    t.o = fake->memory[device] + 12288;
    return t;
}

/* The kernel is named: which one is best on a fake device is not the point here. */
static attn_status plan_on(attn_plan **plan, const attn_problem *p, int device) {
    attn_options options = ATTN_OPTIONS_INIT;
    options.cuda_device = device;
    options.kernel = "reference_fwd_cuda";
    return attn_plan_create(plan, p, &options);
}

static int balanced(const fake_cuda *fake, cu_context current, int depth) {
    return fake->current == current && fake->context_depth == depth && !fake->retained[0] &&
           !fake->retained[1];
}

static int message_has(const char *text) { return strstr(attn_last_error(), text) != NULL; }

static int works(void) {
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    attn_plan *plan;
    WANT(plan_on(&plan, &p, 0) == ATTN_OK && balanced(fake, NULL, 0));
    attn_tensors t = tensors_on(fake, 0);
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_OK && fake->launches == 1);
    WANT(fake->launch_context == fake->primary[0] && balanced(fake, NULL, 0));
    WANT(fake->launched.grid_x == 8 && fake->launched.block_x == 128 && !fake->launched.stream);
    WANT(attn_run(plan, &t, NULL, fake->stream[0]) == ATTN_OK && fake->launched.stream == fake->stream[0]);
    attn_plan *second;
    WANT(plan_on(&second, &p, 0) == ATTN_OK && fake->libraries == 1);      /* loaded once */
    attn_plan_destroy(second);
    attn_plan_destroy(plan);
    return 0;
}

static int no_driver(void) {
    attn_problem p = small_problem();
    attn_plan *plan;
    char text[2048];
    WANT(attn_plan_create(&plan, &p, NULL) == ATTN_DEVICE_ERROR && !plan && message_has("no CUDA driver"));
    WANT(attn_explain(&p, NULL, text, sizeof text) > 0 && strstr(text, "no usable CUDA driver"));
    p.device = ATTN_CPU;
    WANT(attn_plan_create(&plan, &p, NULL) == ATTN_OK);
    attn_plan_destroy(plan);
    return 0;
}

static int no_device(void) {
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    attn_plan *plan;
    fake->devices = 0;
    WANT(attn_plan_create(&plan, &p, NULL) == ATTN_DEVICE_ERROR && !plan && message_has("no CUDA device"));
    fake->devices = 2;                                                      /* it was plugged in meanwhile */
    WANT(plan_on(&plan, &p, 0) == ATTN_OK);
    attn_plan_destroy(plan);
    WANT(plan_on(&plan, &p, 2) == ATTN_DEVICE_ERROR && message_has("cuda_device = 2"));
    return 0;
}

static int old_driver(void) {
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    attn_plan *plan;
    fake->version = 11080;
    WANT(attn_plan_create(&plan, &p, NULL) == ATTN_DEVICE_ERROR && !plan && message_has("11.8"));
    fake->version = 13000;
    fake->missing = "cuLibraryLoadData";
    WANT(attn_plan_create(&plan, &p, NULL) == ATTN_DEVICE_ERROR && !plan && message_has("cuLibraryLoadData"));
    fake->missing = "cuFuncLoad";                                           /* 12.4: done without */
    WANT(plan_on(&plan, &p, 0) == ATTN_OK);
    attn_plan_destroy(plan);
    return 0;
}

static int wrong_architecture(void) {
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    attn_plan *plan;
    char text[4096];
    fake->capability = 75;
    WANT(attn_plan_create(&plan, &p, NULL) == ATTN_UNSUPPORTED && !plan);
    WANT(plan_on(&plan, &p, 0) == ATTN_UNSUPPORTED && message_has("needs compute capability 8.0"));
    WANT(attn_explain(&p, NULL, text, sizeof text) > 0 && strstr(text, "needs compute capability 8.0"));
    attn_kernel_info info = { .struct_size = sizeof info };
    for (int i = 0; !attn_kernel_describe(i, &info); i++)
        WANT(info.device != ATTN_CUDA || info.unavailable);
    return 0;
}

/* Open, plan and run with the n-th driver call failing, for every n: never a crash, always a message, books
 * balanced, and the retry works. */
static int nth_call_fails(int n, cu_result result, int *reached) {
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    attn_plan *plan = NULL;
    attn_tensors t = tensors_on(fake, 1);
    fake->current = fake->other[0];
    fake->fail_call = n;
    fake->fail_result = result;
    attn_status status = plan_on(&plan, &p, 1);
    if (!status) status = attn_run(plan, &t, NULL, NULL);
    *reached = !fake->fail_call;
    fake->fail_call = 0;
    WANT(balanced(fake, fake->other[0], 0));
    if (*reached && status) {
        WANT(status == ATTN_DEVICE_ERROR || status == ATTN_NO_MEMORY || status == ATTN_UNSUPPORTED);
        WANT(*attn_last_error());
    }
    WANT(*reached || !status);
    if (!plan) WANT(plan_on(&plan, &p, 1) == ATTN_OK);
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_OK && balanced(fake, fake->other[0], 0));
    WANT(fake->libraries == 1);
    attn_plan_destroy(plan);
    return 0;
}

static int out_of_memory(void) {
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    attn_plan *plan;
    fake->fail_name = "LibraryLoadData";
    fake->fail_result = CU_OUT_OF_MEMORY;
    WANT(plan_on(&plan, &p, 0) == ATTN_NO_MEMORY && message_has("CUDA_ERROR_OUT_OF_MEMORY"));
    WANT(plan_on(&plan, &p, 0) == ATTN_OK);
    attn_plan_destroy(plan);
    return 0;
}

static int launch_fails(void) {
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    attn_plan *plan;
    attn_tensors t = tensors_on(fake, 0);
    WANT(plan_on(&plan, &p, 0) == ATTN_OK);
    fake->fail_name = "LaunchKernelEx";
    fake->fail_result = 719;
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_DEVICE_ERROR && message_has("CUDA_ERROR_LAUNCH_FAILED"));
    WANT(balanced(fake, NULL, 0) && attn_run(plan, &t, NULL, NULL) == ATTN_OK);
    fake->sticky = 700;                                 /* reported each time, never cleared */
    for (int i = 0; i < 3; i++)
        WANT(attn_run(plan, &t, NULL, NULL) == ATTN_DEVICE_ERROR &&
             message_has("CUDA_ERROR_ILLEGAL_ADDRESS"));
    attn_plan_destroy(plan);
    return 0;
}

/* The tensors' device counts, whatever is current; the caller's context comes back. */
static int contexts_come_back(void) {
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    attn_plan *plan;
    attn_tensors t = tensors_on(fake, 1);
    fake->current = fake->primary[0];
    WANT(plan_on(&plan, &p, 1) == ATTN_OK && balanced(fake, fake->primary[0], 0));
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_OK && fake->launch_context == fake->primary[1]);
    WANT(balanced(fake, fake->primary[0], 0));
    WANT(attn_run(plan, &t, NULL, fake->stream[1]) == ATTN_OK && fake->launch_context == fake->primary[1]);
    WANT(attn_run(plan, &t, NULL, fake->stream[0]) == ATTN_INVALID && message_has("another CUDA device"));
    fake->pool_memory = 1;                              /* no context known: the device's current or primary
                                                           one */
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_OK && fake->launch_context == fake->primary[1]);
    fake->current = fake->other[1];
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_OK && fake->launch_context == fake->other[1]);
    WANT(balanced(fake, fake->other[1], 0));
    attn_plan_destroy(plan);
    return 0;
}

static int bad_tensors(void) {
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    attn_plan *plan;
    static float host[4096];
    attn_tensors t = tensors_on(fake, 0);
    WANT(plan_on(&plan, &p, 0) == ATTN_OK);
    t.k = host;
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_INVALID && message_has("tensors.k") &&
         message_has("not CUDA device"));
    t.k = fake->memory[1];
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_INVALID && message_has("lives on CUDA device 1"));
    t.k = fake->memory[0] + 2;
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_INVALID && message_has("aligned"));
    t.k = NULL;
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_INVALID && message_has("tensors.k"));
    t = tensors_on(fake, 1);
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_INVALID && message_has("the plan is for device 0"));
    t = tensors_on(fake, 0);
    fake->capturing = 1;
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_INVALID && message_has("captured"));
    WANT(attn_run(plan, &t, NULL, fake->stream[0]) == ATTN_OK && fake->launches == 1);
    attn_plan_destroy(plan);
    return 0;
}

static int checked_mode(void) {
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    p.page_size = 4;
    p.pages = 4;
    p.block_table_cols = 2;
    attn_options options = ATTN_OPTIONS_INIT;
    options.kernel = "reference_fwd_cuda";
    options.checked = 1;
    attn_plan *plan;
    WANT(attn_plan_create(&plan, &p, &options) == ATTN_OK);
    attn_tensors t = tensors_on(fake, 0);
    const int32_t good[4] = { 0, 1, 2, 3 }, bad[4] = { 0, 1, 4, 3 };
    t.block_table = memcpy(fake->memory[0] + 16384, good, sizeof good);
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_OK && fake->launches == 1);
    memcpy(fake->memory[0] + 16384, bad, sizeof bad);
    WANT(attn_run(plan, &t, NULL, NULL) == ATTN_INVALID && message_has("block_table[1][0] = 4"));
    WANT(fake->launches == 1);
    attn_plan_destroy(plan);
    return 0;
}

static int big_sizes(void) {
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    attn_plan *plan;
    attn_tensors t = tensors_on(fake, 0);
    p.batch = 1 << 20;                                  /* batch * heads far beyond 65,535 */
    p.q_heads = 64;
    p.q_len = 4;
    WANT(plan_on(&plan, &p, 0) == ATTN_OK && attn_run(plan, &t, NULL, NULL) == ATTN_OK);
    WANT(fake->launched.grid_x == 1u << 26 && fake->launched.grid_y == 1);
    attn_plan_destroy(plan);
    p.q_stride = (attn_stride){ .batch = (int64_t)1 << 33, .seq = (int64_t)1 << 31, .head = 32 };
    WANT(plan_on(&plan, &p, 0) == ATTN_OK);
    attn_plan_destroy(plan);
    return 0;
}

/* A kernel may start before what is queued has ended only if it looks again at whatever that may write. */
static int early_starts(void) {
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    attn_plan *plan;
    attn_options options = ATTN_OPTIONS_INIT;
    attn_tensors t = tensors_on(fake, 0);
    options.kernel = "decode_fwd_sm80";
    p.dtype = ATTN_BF16, p.q_len = 1, p.kv_len = 8;
    WANT(attn_plan_create(&plan, &p, &options) == ATTN_OK && attn_run(plan, &t, NULL, NULL) == ATTN_OK);
    WANT(fake->launches == 1 && fake->launched.attribute_count == 1);
    attn_plan_destroy(plan);
    p.page_size = 4, p.pages = 4, p.block_table_cols = 2;
    t.block_table = memset(fake->memory[0] + 16384, 0, 16);
    WANT(attn_plan_create(&plan, &p, &options) == ATTN_OK && attn_run(plan, &t, NULL, NULL) == ATTN_OK);
    WANT(fake->launches == 2 && fake->launched.attribute_count == 0);
    attn_plan_destroy(plan);
    return 0;
}

/* A decoding step over a ragged cache: the schedule in the run or beforehand, and what is said when it can't
 * be. */
static int decoding(void) {
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    attn_plan *plan, *checked;
    attn_options options = ATTN_OPTIONS_INIT;
    char text[2048];
    p.dtype = ATTN_BF16;
    p.q_heads = 8, p.kv_heads = 2, p.q_len = 1, p.kv_len = 4096, p.qk_dim = 128;
    p.has_seqused_kv = 1;
    WANT(attn_plan_create(&plan, &p, NULL) == ATTN_OK && !strcmp(attn_plan_kernel(plan), "decode_fwd_sm80"));
    unsigned char *memory = fake->memory[0] + 16384, *lengths = fake->memory[0] + 32768;
    attn_tensors t = tensors_on(fake, 0);
    t.seqused_kv = memset(lengths, 0, 8);
    WANT(attn_plan_workspace(plan) > attn_plan_schedule_size(plan) && attn_plan_schedule_size(plan) > 0);
    WANT(attn_run(plan, &t, memory, NULL) == ATTN_OK && fake->launches == 3); /* schedule, main, merge */
    WANT(attn_plan_schedule(plan, &t, lengths + 4, NULL) == ATTN_INVALID && message_has("aligned to 256"));
    WANT(attn_plan_schedule(plan, NULL, lengths, NULL) == ATTN_INVALID && message_has("lengths = NULL"));
    WANT(attn_plan_schedule(plan, &t, lengths + 256, NULL) == ATTN_OK && fake->launches == 4);
    WANT(fake->launched.grid_x == 1 && balanced(fake, NULL, 0));
    t.schedule = lengths + 256;
    WANT(attn_run(plan, &t, memory, NULL) == ATTN_OK && fake->launches == 6);
    options.checked = 1;                                /* what is in that memory is no schedule: nothing
                                                           wrote it */
    WANT(attn_plan_create(&checked, &p, &options) == ATTN_OK);
    WANT(attn_run(checked, &t, memory, NULL) == ATTN_INVALID &&
         message_has("is not what attn_plan_schedule writes"));
    t.seqused_kv = NULL;
    WANT(attn_plan_schedule(plan, &t, lengths + 256, NULL) == ATTN_INVALID &&
         message_has("tensors.seqused_kv"));
    attn_plan_destroy(checked);
    attn_plan_destroy(plan);
    p.has_seqused_kv = 0;                               /* lengths known when planning: nothing to make */
    WANT(attn_plan_create(&plan, &p, NULL) == ATTN_OK && !attn_plan_schedule_size(plan));
    WANT(attn_plan_schedule(plan, &t, NULL, NULL) == ATTN_OK);
    attn_plan_destroy(plan);
    p.batch = 64, p.q_len = 4;                          /* a Hopper device has something faster for these */
    WANT(attn_explain(&p, NULL, text, sizeof text) > 0 && strstr(text, "flash_fwd_sm90 is faster"));
    fake->capability = 80;
    WANT(attn_plan_create(&plan, &p, NULL) == ATTN_OK && !strcmp(attn_plan_kernel(plan), "decode_fwd_sm80"));
    attn_plan_destroy(plan);
    p.q_len = 512;
    WANT(attn_explain(&p, NULL, text, sizeof text) > 0 && strstr(text, "up to 16 queries a sequence"));
    return 0;
}

/* MLA: which kernel, and what the one through mma.sync makes of a device's shared memory. */
static int mla_decoding(void) {
    static const struct { int capability, smem, heads, bytes; } cases[] = {
        { 90, 232448, 16, 203520 },                     /* 16 rows, 5 stages */
        { 90, 232448, 64, 203520 },                     /* 64 rows, 3 stages */
        { 80, 166912, 16, 166656 }, { 80, 166912, 32, 148224 }, { 80, 166912, 64, 166656 },     /* 4, 3, 2 */
        { 89, 101376, 16, 92928 }, { 89, 101376, 64, 92928 },   /* 16 rows, 2 stages; four tiles of them */
    };
    fake_cuda *fake = open_books();
    attn_problem p = small_problem();
    attn_plan *plan;
    attn_tensors t = tensors_on(fake, 0);
    t.block_table = memset(fake->memory[0] + 32768, 0, 4096);
    p.dtype = ATTN_BF16, p.kv_heads = 1, p.q_len = 1, p.kv_len = 4096;
    p.qk_dim = 576, p.v_dim = 512, p.v_in_k = 1;
    p.page_size = 64, p.pages = 64, p.block_table_cols = 64;
    WANT(attn_plan_create(&plan, &p, NULL) == ATTN_OK && !strcmp(attn_plan_kernel(plan), "mla_decode_sm90"));
    attn_plan_destroy(plan);
    p.page_size = 17, p.pages = p.block_table_cols = 241;
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++) {
        fake->capability = cases[i].capability, fake->smem = cases[i].smem;
        p.q_heads = cases[i].heads;
        p.batch = cases[i].smem == 101376 && p.q_heads == 64 ? 33 : 132;    /* one for each worker: no merge */
        WANT(attn_plan_create(&plan, &p, NULL) == ATTN_OK);
        WANT(!strcmp(attn_plan_kernel(plan), "mla_decode_sm80") && !attn_plan_schedule_size(plan));
        const int before = fake->launches;
        WANT(attn_run(plan, &t, fake->memory[0] + 16384, NULL) == ATTN_OK && fake->launches == before + 1);
        WANT(fake->launched.grid_x == 132 && (int)fake->launched.smem_bytes == cases[i].bytes);
        attn_plan_destroy(plan);
    }
    p.batch = 1;                                        /* cut and merged */
    WANT(attn_plan_create(&plan, &p, NULL) == ATTN_OK && attn_plan_workspace(plan) > 0);
    const int before = fake->launches;
    WANT(attn_run(plan, &t, fake->memory[0] + 16384, NULL) == ATTN_OK && fake->launches == before + 2);
    attn_plan_destroy(plan);
    return 0;
}

/* ---- running a scenario in a child ---- */

static int in_child(int (*scenario)(void)) {
    const pid_t child = fork();
    if (!child) {
        alarm(20);
        exit(scenario());
    }
    int status = -1;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
    return WEXITSTATUS(status);
}

#define SCENARIO(name) \
    static void test_##name(void **state) { (void)state; assert_int_equal(in_child(name), 0); }
SCENARIO(works)
SCENARIO(no_device)
SCENARIO(old_driver)
SCENARIO(wrong_architecture)
SCENARIO(out_of_memory)
SCENARIO(launch_fails)
SCENARIO(contexts_come_back)
SCENARIO(bad_tensors)
SCENARIO(checked_mode)
SCENARIO(early_starts)
SCENARIO(big_sizes)
SCENARIO(decoding)
SCENARIO(mla_decoding)

static int nth;
static cu_result nth_result;
static int nth_scenario(void) {
    int reached;
    const int wrong = nth_call_fails(nth, nth_result, &reached);
    return wrong ? wrong : reached ? 0 : 2;
}

static void test_nth_call_fails(void **state) {
    (void)state;
    const cu_result results[] = { CU_OUT_OF_MEMORY, 999 };
    for (int i = 0; i < 2; i++) {
        int end = 0;
        nth_result = results[i];
        for (nth = 1; nth < 200 && !end; nth++) {
            const int outcome = in_child(nth_scenario);
            assert_true(outcome == 0 || outcome == 2);
            end = outcome == 2;                         /* this many calls aren't made: all were tried */
        }
        assert_true(end && nth > 20);
    }
}

/* A driver that can't be loaded: this program again, with a libcuda.so.1 that is no library first in the
 * path. */
static void test_no_driver(void **state) {
    (void)state;
    const pid_t child = fork();
    if (!child) {
        setenv("LD_LIBRARY_PATH", FAKE_CUDA_DIR "/broken", 1);
        execl("/proc/self/exe", "test_cuda_host", "no-driver", (char *)NULL);
        _exit(98);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "no-driver")) return no_driver();
    if (!getenv("ATTN_FAKE_CUDA")) {                    /* the loader reads its path only once: start over
                                                           with it */
        setenv("LD_LIBRARY_PATH", FAKE_CUDA_DIR, 1);
        setenv("ATTN_FAKE_CUDA", "1", 1);
        execv("/proc/self/exe", argv);
        return 97;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_works), cmocka_unit_test(test_no_driver), cmocka_unit_test(test_no_device),
        cmocka_unit_test(test_old_driver), cmocka_unit_test(test_wrong_architecture),
        cmocka_unit_test(test_nth_call_fails), cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_launch_fails), cmocka_unit_test(test_contexts_come_back),
        cmocka_unit_test(test_bad_tensors), cmocka_unit_test(test_checked_mode),
        cmocka_unit_test(test_early_starts), cmocka_unit_test(test_big_sizes),
        cmocka_unit_test(test_decoding), cmocka_unit_test(test_mla_decoding),
    };
    return cmocka_run_group_tests_name("cuda_host", tests, NULL, NULL);
}
#else

/* Built without CUDA kernels: CUDA problems are refused with that reason. */
static void test_cpu_only(void **state) {
    (void)state;
    attn_problem p = ATTN_PROBLEM_INIT;
    attn_plan *plan;
    p.device = ATTN_CUDA;
    p.batch = p.q_heads = p.q_len = p.qk_dim = 1;
    assert_int_equal(attn_plan_create(&plan, &p, NULL), ATTN_UNSUPPORTED);
    assert_null(plan);
    assert_non_null(strstr(attn_last_error(), "built without CUDA"));
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_cpu_only) };
    return cmocka_run_group_tests_name("cuda_host", tests, NULL, NULL);
}
#endif
