/* test_cuda_device.c — every CUDA kernel on a real device, beyond the numbers that test_kernels.c checks: the
 * same bits 200 times, capture into a graph and replay with other lengths, streams, threads, endurance,
 * fork. */
#include "cuda_device.h"
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { REPEATS = 200, REPLAYS = 20, LAUNCHES = 20000, CAPTURES = 200 };

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
            for (int b = 0; b < p->batch; b++)
                lengths[b] = (int32_t)((p->kv_len * (i * 7 + b * 5 + 1) / 3) % (p->kv_len + 1));
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
        for (int i = 0; i < THREADS; i++)
            workers[i] = (worker){ .kernel = kernels[n], .data = data_of(&p, CHECK_LENGTHS_FULL) };
        finish();
        for (int i = 0; i < THREADS; i++)
            assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
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

/* Thousands of launches and hundreds of captures leave the device's memory as it was. Prints the host's time
 * a run. */
static void test_endurance(void **state) {
    (void)state;
    NEED_DEVICE;
    attn_problem p = problem_of(ATTN_BF16, 1, 2, 2, 1, 8, 64);
    p.has_seqused_kv = 1;
    for (int n = 0; n < kernel_count; n++) {
        check_data *data = data_of(&p, CHECK_LENGTHS_FULL);
        attn_plan *plan = plan_of(kernels[n], check_data_problem(data), 0);
        void *workspace = plan ? check_data_workspace(data, attn_plan_workspace(plan)) : NULL;
        size_t before = 0, after = 0, total;
        for (int i = 0; plan && i < 10; i++)
            assert_int_equal(driver->GraphExecDestroy(capture(plan, data, workspace)), CU_OK);
        finish();
        assert_int_equal(driver->MemGetInfo(&before, &total), CU_OK);
        const double start = seconds_now();
        for (int i = 0; plan && i < LAUNCHES; i++) run(plan, data, workspace, check_gpu_stream(gpu));
        finish();
        if (plan)
            printf("%s: %.2f us per queued run\n", kernels[n], (seconds_now() - start) / LAUNCHES * 1e6);
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

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repeats), cmocka_unit_test(test_graphs), cmocka_unit_test(test_streams),
        cmocka_unit_test(test_threads), cmocka_unit_test(test_endurance), cmocka_unit_test(test_fork),
    };
    return cmocka_run_group_tests_name("cuda_device", tests, open_device, close_device);
}
