/* test_cuda_device.c — every CUDA kernel on a real device, beyond the numbers that test_kernels.c checks: the same bits
 * 100 times, capture into a graph and replay with other lengths, streams, bad input. Without a device: skipped. */
#include "check.h"
#include "cuda/driver.h"
#include "gpu.h"
#include <fnmatch.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

enum { MAX_KERNELS = 64, REPEATS = 100, REPLAYS = 20, LAUNCHES = 20000, CAPTURES = 200 };

static check_gpu              *gpu;
static const attn_cuda_driver *driver;
static const char             *kernels[MAX_KERNELS];
static int                     kernel_count;
static char                    why_not[256] = "no CUDA kernel is built in";

#define NEED_DEVICE do { if (!gpu) { printf("skipped: %s\n", why_not); skip(); } } while (0)

static int open_device(void **state) {
    (void)state;
    attn_kernel_info info = { .struct_size = sizeof info };
    const char *pattern = getenv("ATTN_CHECK_KERNEL");
    for (int i = 0; !attn_kernel_describe(i, &info) && kernel_count < MAX_KERNELS; i++)
        if (info.device == ATTN_CUDA && !info.unavailable && (!pattern || !fnmatch(pattern, info.name, 0)))
            kernels[kernel_count++] = info.name;
    gpu = check_gpu_open(0, why_not, sizeof why_not);
    driver = gpu ? attn_cuda_open(why_not, sizeof why_not) : NULL;
    if (gpu && !kernel_count) {
        check_gpu_close(gpu);
        gpu = NULL;
    }
    return 0;
}

static int close_device(void **state) {
    (void)state;
    check_gpu_close(gpu);
    return 0;
}

/* ---- helpers ---- */

static attn_problem problem_of(attn_dtype dtype, int64_t batch, int64_t q_heads, int64_t kv_heads, int64_t q_len,
                               int64_t kv_len, int64_t dim) {
    attn_problem p = ATTN_PROBLEM_INIT;
    p.device = ATTN_CUDA;
    p.dtype = dtype;
    p.batch = batch;
    p.q_heads = q_heads;
    p.kv_heads = kv_heads;
    p.q_len = q_len;
    p.kv_len = kv_len;
    p.qk_dim = dim;
    return p;
}

static check_data *data_of(const attn_problem *p, check_lengths lengths) {
    const check_memory memory = check_gpu_memory(gpu);
    const check_case c = { .problem = *p, .shape = "custom", .lengths = lengths, .seed = 7 };
    check_data *data = NULL;
    assert_int_equal(check_data_create(&data, &c, &memory, 0), ATTN_OK);
    return data;
}

/* NULL: the kernel refuses the problem. */
static attn_plan *plan_of(const char *kernel, const attn_problem *p, int checked) {
    attn_options options = ATTN_OPTIONS_INIT;
    attn_plan *plan = NULL;
    options.kernel = kernel;
    options.checked = checked;
    const attn_status status = attn_plan_create(&plan, p, &options);
    if (status && status != ATTN_UNSUPPORTED) printf("%s: %s\n", kernel, attn_last_error());
    assert_true(status == ATTN_OK || status == ATTN_UNSUPPORTED);
    return plan;
}

static void run(const attn_plan *plan, check_data *data, void *workspace, void *stream) {
    const attn_status status = attn_run(plan, check_data_tensors(data), workspace, stream);
    if (status) printf("%s: %s\n", attn_plan_kernel(plan), attn_last_error());
    assert_int_equal(status, ATTN_OK);
}

static void finish(void) {
    char why[256] = "";
    if (check_gpu_wait(gpu, why, sizeof why)) printf("device: %s\n", why);
    assert_string_equal(why, "");
}

static void put(const void *device, const void *host, size_t bytes) {
    assert_int_equal(driver->MemcpyHtoD((cu_pointer)(uintptr_t)device, host, bytes), CU_OK);
}

static void get(void *host, const void *device, size_t bytes) {
    assert_int_equal(driver->MemcpyDtoH(host, (cu_pointer)(uintptr_t)device, bytes), CU_OK);
}

/* ---- the same bits ---- */

static void repeat(const attn_problem *p, check_lengths lengths, int *runs) {
    check_data *data = data_of(p, lengths);
    for (int n = 0; n < kernel_count; n++) {
        attn_plan *plan = plan_of(kernels[n], check_data_problem(data), 0);
        if (!plan) continue;
        void *workspace = check_data_workspace(data, attn_plan_workspace(plan));
        uint64_t first = 0;
        for (int i = 0; i < REPEATS; i++) {
            check_data_poison(data, i % 4);
            run(plan, data, workspace, check_gpu_stream(gpu));
            const uint64_t hash = check_data_hash(data);
            if (!i) first = hash;
            if (hash != first) printf("%s: run %d gave other bits\n", kernels[n], i);
            assert_true(hash == first);
            (*runs)++;
        }
        attn_plan_destroy(plan);
    }
    check_data_destroy(data);
}

static void test_repeats(void **state) {
    (void)state;
    NEED_DEVICE;
    int runs = 0;
    attn_problem p = problem_of(ATTN_BF16, 2, 4, 2, 333, 333, 128);
    p.causal = 1;
    repeat(&p, CHECK_LENGTHS_FULL, &runs);
    p = problem_of(ATTN_F16, 3, 2, 1, 257, 511, 64);
    p.packed_q = p.packed_kv = 1;
    p.window = 1;
    p.window_left = 100;
    repeat(&p, CHECK_LENGTHS_RANDOM, &runs);
    p = problem_of(ATTN_F32, 1, 2, 2, 129, 200, 64);
    repeat(&p, CHECK_LENGTHS_FULL, &runs);
    p = problem_of(ATTN_BF16, 4, 8, 1, 1, 700, 128);
    p.page_size = 16;
    p.has_seqused_kv = 1;
    repeat(&p, CHECK_LENGTHS_RANDOM, &runs);
    printf("bitwise equal: %d runs\n", runs);
}

/* ---- graphs ---- */

static cu_graph_exec capture(const attn_plan *plan, check_data *data, void *workspace) {
    cu_stream stream = check_gpu_stream(gpu);
    cu_graph graph;
    cu_graph_exec exec;
    assert_int_equal(driver->StreamBeginCapture(stream, 0), CU_OK);
    /* The default stream can't run meanwhile; saying so must not harm the capture. */
    assert_int_equal(attn_run(plan, check_data_tensors(data), workspace, NULL), ATTN_INVALID);
    assert_non_null(strstr(attn_last_error(), "captured"));
    run(plan, data, workspace, stream);
    assert_int_equal(driver->StreamEndCapture(stream, &graph), CU_OK);
    assert_int_equal(driver->GraphInstantiateWithFlags(&exec, graph, 0), CU_OK);
    assert_int_equal(driver->GraphDestroy(graph), CU_OK);
    return exec;
}

/* Replays with new lengths must give the bits of a plain run with these lengths. */
static void replay(const attn_problem *p, int *replays) {
    check_data *data = data_of(p, CHECK_LENGTHS_FULL);
    const attn_tensors *t = check_data_tensors(data);
    cu_stream stream = check_gpu_stream(gpu);
    int32_t lengths[16];
    for (int n = 0; n < kernel_count; n++) {
        attn_plan *plan = plan_of(kernels[n], check_data_problem(data), 0);
        if (!plan) continue;
        void *workspace = check_data_workspace(data, attn_plan_workspace(plan));
        cu_graph_exec exec = capture(plan, data, workspace);
        for (int i = 0; i < REPLAYS; i++, (*replays)++) {
            for (int b = 0; b < p->batch; b++) lengths[b] = (int32_t)((p->kv_len * (i * 7 + b * 5 + 1) / 3) % (p->kv_len + 1));
            put(t->seqused_kv, lengths, (size_t)p->batch * 4);
            check_data_poison(data, i % 4);
            run(plan, data, workspace, stream);
            const uint64_t plain = check_data_hash(data);
            check_data_poison(data, (i + 1) % 4);
            assert_int_equal(driver->GraphLaunch(exec, stream), CU_OK);
            const uint64_t replayed = check_data_hash(data);
            if (plain != replayed) printf("%s: replay %d differs\n", kernels[n], i);
            assert_true(plain == replayed);
        }
        assert_int_equal(driver->GraphExecDestroy(exec), CU_OK);
        attn_plan_destroy(plan);
    }
    check_data_destroy(data);
}

static void test_graphs(void **state) {
    (void)state;
    NEED_DEVICE;
    int replays = 0;
    attn_problem p = problem_of(ATTN_BF16, 3, 4, 2, 100, 300, 64);
    p.causal = p.has_seqused_kv = 1;
    replay(&p, &replays);
    p = problem_of(ATTN_BF16, 5, 8, 2, 1, 1000, 128);
    p.has_seqused_kv = 1;
    p.page_size = 16;
    replay(&p, &replays);
    p = problem_of(ATTN_F32, 2, 2, 2, 70, 130, 32);
    p.has_seqused_kv = 1;
    replay(&p, &replays);
    printf("replayed: %d\n", replays);
}

/* ---- streams and contexts ---- */

static void test_streams(void **state) {
    (void)state;
    NEED_DEVICE;
    attn_problem p = problem_of(ATTN_BF16, 2, 4, 4, 256, 256, 64);
    cu_stream streams[2] = { NULL, NULL };
    for (int i = 0; i < 2; i++) assert_int_equal(driver->StreamCreate(&streams[i], 1), CU_OK);
    for (int n = 0; n < kernel_count; n++) {
        check_data *data[2] = { data_of(&p, CHECK_LENGTHS_FULL), data_of(&p, CHECK_LENGTHS_FULL) };
        attn_plan *plan = plan_of(kernels[n], check_data_problem(data[0]), 0);
        cu_context before = NULL, after = NULL;
        (void)driver->CtxGetCurrent(&before);
        finish();                               /* these streams don't wait for the uploads by themselves */
        for (int i = 0; plan && i < 40; i++) {
            void *workspace = i < 2 ? check_data_workspace(data[i], attn_plan_workspace(plan)) : NULL;
            if (attn_plan_workspace(plan) && i >= 2) break;
            run(plan, data[i % 2], workspace, streams[i % 2]);
        }
        finish();
        (void)driver->CtxGetCurrent(&after);
        assert_ptr_equal(before, after);
        if (plan) assert_true(check_data_hash(data[0]) == check_data_hash(data[1]));
        /* No context current at all: attn_run finds its own. */
        cu_context popped;
        assert_int_equal(driver->CtxPopCurrent(&popped), CU_OK);
        if (plan && !attn_plan_workspace(plan)) run(plan, data[0], NULL, NULL);
        (void)driver->CtxGetCurrent(&after);
        assert_null(after);
        assert_int_equal(driver->CtxPushCurrent(popped), CU_OK);
        finish();
        attn_plan_destroy(plan);
        check_data_destroy(data[0]);
        check_data_destroy(data[1]);
    }
    for (int i = 0; i < 2; i++) assert_int_equal(driver->StreamDestroy(streams[i]), CU_OK);
}

/* ---- threads ---- */

enum { THREADS = 8, ROUNDS = 50 };

typedef struct worker { const char *kernel; check_data *data; pthread_t thread; int failures; } worker;

/* Plans made and run from many threads at once, none of which has a context. */
static void *work(void *arg) {
    worker *w = arg;
    attn_options options = ATTN_OPTIONS_INIT;
    options.kernel = w->kernel;
    for (int i = 0; i < ROUNDS; i++) {
        attn_plan *plan = NULL;
        const attn_status status = attn_plan_create(&plan, check_data_problem(w->data), &options);
        if (!status && !attn_plan_workspace(plan))
            w->failures += attn_run(plan, check_data_tensors(w->data), NULL, NULL) != ATTN_OK;
        w->failures += status != ATTN_OK && status != ATTN_UNSUPPORTED;
        attn_plan_destroy(plan);
    }
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    NEED_DEVICE;
    attn_problem p = problem_of(ATTN_BF16, 1, 2, 2, 96, 96, 64);
    for (int n = 0; n < kernel_count; n++) {
        worker workers[THREADS];
        for (int i = 0; i < THREADS; i++) workers[i] = (worker){ .kernel = kernels[n], .data = data_of(&p, CHECK_LENGTHS_FULL) };
        finish();
        for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
        for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
        finish();
        for (int i = 0; i < THREADS; i++) {
            assert_int_equal(workers[i].failures, 0);
            assert_true(check_data_hash(workers[i].data) == check_data_hash(workers[0].data));
        }
        for (int i = 0; i < THREADS; i++) check_data_destroy(workers[i].data);
    }
}

/* ---- endurance ---- */

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Thousands of launches and hundreds of captures leave the device's memory as it was. Prints the host's time per run. */
static void test_endurance(void **state) {
    (void)state;
    NEED_DEVICE;
    attn_problem p = problem_of(ATTN_BF16, 1, 2, 2, 16, 64, 64);
    p.has_seqused_kv = 1;
    for (int n = 0; n < kernel_count; n++) {
        check_data *data = data_of(&p, CHECK_LENGTHS_FULL);
        attn_plan *plan = plan_of(kernels[n], check_data_problem(data), 0);
        void *workspace = plan ? check_data_workspace(data, attn_plan_workspace(plan)) : NULL;
        size_t before = 0, after = 0, total;
        for (int i = 0; plan && i < 10; i++) assert_int_equal(driver->GraphExecDestroy(capture(plan, data, workspace)), CU_OK);
        finish();
        assert_int_equal(driver->MemGetInfo(&before, &total), CU_OK);
        const double start = seconds_now();
        for (int i = 0; plan && i < LAUNCHES; i++) run(plan, data, workspace, check_gpu_stream(gpu));
        finish();
        if (plan) printf("%s: %.2f us per queued run\n", kernels[n], (seconds_now() - start) / LAUNCHES * 1e6);
        for (int i = 0; plan && i < CAPTURES; i++)
            assert_int_equal(driver->GraphExecDestroy(capture(plan, data, workspace)), CU_OK);
        finish();
        assert_int_equal(driver->MemGetInfo(&after, &total), CU_OK);
        assert_true(after + (8 << 20) >= before);
        attn_plan_destroy(plan);
        check_data_destroy(data);
    }
}

/* CUDA in a forked child is refused, with the reason. */
static void test_fork(void **state) {
    (void)state;
    NEED_DEVICE;
    const pid_t child = fork();
    if (!child) {
        attn_problem p = problem_of(ATTN_F32, 1, 1, 1, 4, 4, 8);
        attn_plan *plan = NULL;
        const attn_status status = attn_plan_create(&plan, &p, NULL);
        if (status) fprintf(stderr, "after fork: %s\n", attn_last_error());
        _exit(status == ATTN_DEVICE_ERROR && strstr(attn_last_error(), "fork") ? 0 : 1);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- bad input ---- */

static void test_bad_pointers(void **state) {
    (void)state;
    NEED_DEVICE;
    static float host[1 << 16];
    attn_problem p = problem_of(ATTN_BF16, 1, 2, 2, 65, 65, 64);
    for (int n = 0; n < kernel_count; n++) {
        check_data *data = data_of(&p, CHECK_LENGTHS_FULL);
        attn_plan *plan = plan_of(kernels[n], check_data_problem(data), 0);
        void *workspace = plan ? check_data_workspace(data, attn_plan_workspace(plan)) : NULL;
        attn_tensors t = *check_data_tensors(data);
        t.v = host;
        if (plan) assert_int_equal(attn_run(plan, &t, workspace, NULL), ATTN_INVALID);
        if (plan) assert_non_null(strstr(attn_last_error(), "tensors.v"));
        t = *check_data_tensors(data);
        t.k = (const char *)t.k + 1;
        if (plan) assert_int_equal(attn_run(plan, &t, workspace, NULL), ATTN_INVALID);
        t.k = (const char *)t.k + 1;            /* aligned to its element only: right or refused, never a fault */
        const attn_status status = plan ? attn_run(plan, &t, workspace, NULL) : ATTN_OK;
        assert_true(status == ATTN_OK || (status == ATTN_INVALID && strstr(attn_last_error(), "aligned")));
        finish();
        attn_plan_destroy(plan);
        check_data_destroy(data);
    }
}

/* Page ids out of range: never a read outside the pool (the pool's margins are NaN, a fault would break the device),
 * the other sequences right; checked plans say it. */
static void test_bad_pages(void **state) {
    (void)state;
    NEED_DEVICE;
    static const int32_t bad_ids[] = { -1, INT32_MAX, INT32_MIN, 1 << 20 };
    attn_problem p = problem_of(ATTN_BF16, 3, 2, 2, 40, 128, 64);
    p.page_size = 16;
    p.lse_stride.batch = 80, p.lse_stride.head = 40, p.lse_stride.seq = 1;
    for (int n = 0; n < kernel_count; n++) {
        check_data *data = data_of(&p, CHECK_LENGTHS_FULL);
        const attn_problem *full = check_data_problem(data);
        const attn_tensors *t = check_data_tensors(data);
        attn_plan *plan = plan_of(kernels[n], full, 0), *checked = plan_of(kernels[n], full, 1);
        void *workspace = plan ? check_data_workspace(data, attn_plan_workspace(plan)) : NULL;
        float good[3 * 80], lse[3 * 80];
        if (plan) run(plan, data, workspace, NULL);
        get(good, t->lse, sizeof good);
        for (int i = 0; plan && i < 4; i++) {
            int32_t saved;
            const int32_t *entry = t->block_table + full->block_table_stride + 3;   /* sequence 1, its 4th page */
            get(&saved, entry, 4);
            put(entry, &bad_ids[i], 4);
            run(plan, data, workspace, NULL);
            finish();
            get(lse, t->lse, sizeof lse);
            assert_memory_equal(lse, good, 80 * 4);
            assert_memory_equal(lse + 160, good + 160, 80 * 4);
            assert_int_equal(attn_run(checked, t, workspace, NULL), ATTN_INVALID);
            assert_non_null(strstr(attn_last_error(), "block_table[1][3]"));
            put(entry, &saved, 4);
            assert_int_equal(attn_run(checked, t, workspace, NULL), ATTN_OK);
        }
        attn_plan_destroy(plan);
        attn_plan_destroy(checked);
        check_data_destroy(data);
    }
}

/* Lengths that no plan allows are cut, not followed. */
static void test_bad_lengths(void **state) {
    (void)state;
    NEED_DEVICE;
    static const int32_t bad[] = { -5, INT32_MAX, INT32_MIN, 1000 };
    attn_problem p = problem_of(ATTN_F16, 2, 2, 1, 33, 64, 32);
    p.has_seqused_kv = p.has_seqused_q = p.packed_q = p.has_kv_batch_index = 1;
    for (int n = 0; n < kernel_count; n++) {
        check_data *data = data_of(&p, CHECK_LENGTHS_FULL);
        const attn_tensors *t = check_data_tensors(data);
        attn_plan *plan = plan_of(kernels[n], check_data_problem(data), 0);
        void *workspace = plan ? check_data_workspace(data, attn_plan_workspace(plan)) : NULL;
        const int32_t *const arrays[] = { t->seqused_kv, t->seqused_q, t->cu_seqlens_q, t->kv_batch_index };
        for (int a = 0; plan && a < 4; a++)
            for (int i = 0; i < 4; i++) {
                int32_t saved;
                get(&saved, arrays[a] + 1, 4);
                put(arrays[a] + 1, &bad[i], 4);
                run(plan, data, workspace, NULL);
                finish();
                put(arrays[a] + 1, &saved, 4);
            }
        attn_plan_destroy(plan);
        check_data_destroy(data);
    }
}

/* ---- big sizes ---- */

static void test_many_heads(void **state) {
    (void)state;
    NEED_DEVICE;
    const attn_problem p = problem_of(ATTN_BF16, 1100, 64, 64, 1, 5, 64);       /* batch * heads > 65,535 */
    check_data *data = data_of(&p, CHECK_LENGTHS_FULL);
    for (int n = 0; n < kernel_count; n++) {
        check_candidate candidate = check_library_kernel(kernels[n]);
        check_verdict verdict;
        const char *refusal;
        (void)check_run(&candidate, data, NULL, 1, &verdict, &refusal);
        if (refusal) continue;
        if (!verdict.ok) printf("%s: %s\n", kernels[n], verdict.reason);
        assert_true(verdict.ok);
    }
    check_data_destroy(data);
}

/* Two sequences 2^31 + 64 elements apart, in one allocation that serves as Q, K and V; the answer of each is that of
 * the same rows side by side. */
static void test_far_strides(void **state) {
    (void)state;
    NEED_DEVICE;
    enum { LENGTH = 96, HEADS = 2, DIM = 64, ROWS = LENGTH * HEADS * DIM };
    static uint16_t rows[2 * ROWS], near[2 * ROWS], far[2 * ROWS];
    const int64_t apart = ((int64_t)1 << 31) + 64;
    cu_pointer in = 0, out = 0;
    if (driver->MemAlloc(&in, (size_t)(apart + ROWS) * 2) || driver->MemAlloc(&out, (size_t)(apart + ROWS) * 2)) {
        if (in) (void)driver->MemFree(in);
        printf("skipped: no memory for 9 GB\n");
        skip();
    }
    for (int i = 0; i < 2 * ROWS; i++) rows[i] = (uint16_t)(0x3c00 + (i * 7919 + i / 131) % 1024 + ((i * 31) & 1) * 0x8000);
    for (int n = 0; n < kernel_count; n++)
        for (int is_far = 0; is_far < 2; is_far++) {
            const int64_t batch = is_far ? apart : ROWS;
            attn_problem p = problem_of(ATTN_BF16, 2, HEADS, HEADS, LENGTH, LENGTH, DIM);
            p.q_stride = p.k_stride = p.v_stride = p.o_stride = (attn_stride){ batch, HEADS * DIM, DIM };
            attn_plan *plan = plan_of(kernels[n], &p, 0);
            attn_tensors t = ATTN_TENSORS_INIT;
            t.q = t.k = t.v = (void *)(uintptr_t)in;
            t.o = (void *)(uintptr_t)out;
            for (int b = 0; b < 2; b++) put((const uint16_t *)t.q + b * batch, rows + b * ROWS, ROWS * 2);
            cu_pointer workspace = 0;
            if (plan && attn_plan_workspace(plan))
                assert_int_equal(driver->MemAlloc(&workspace, attn_plan_workspace(plan)), CU_OK);
            if (plan) assert_int_equal(attn_run(plan, &t, (void *)(uintptr_t)workspace, NULL), ATTN_OK);
            finish();
            for (int b = 0; b < 2; b++) get((is_far ? far : near) + b * ROWS, (uint16_t *)t.o + b * batch, ROWS * 2);
            if (workspace) (void)driver->MemFree(workspace);
            if (plan && is_far) assert_memory_equal(near, far, sizeof near);
            attn_plan_destroy(plan);
        }
    assert_int_equal(driver->MemFree(in), CU_OK);
    assert_int_equal(driver->MemFree(out), CU_OK);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repeats), cmocka_unit_test(test_graphs), cmocka_unit_test(test_streams),
        cmocka_unit_test(test_threads), cmocka_unit_test(test_endurance), cmocka_unit_test(test_fork),
        cmocka_unit_test(test_bad_pointers), cmocka_unit_test(test_bad_pages), cmocka_unit_test(test_bad_lengths),
        cmocka_unit_test(test_many_heads), cmocka_unit_test(test_far_strides),
    };
    return cmocka_run_group_tests_name("cuda_device", tests, open_device, close_device);
}
