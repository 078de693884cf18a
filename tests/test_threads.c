/* test_threads.c — the pool: the same bits whatever runs beside, no deadlock, no thread left, nothing lost in
 * a fork. A watchdog ends the program if a test hangs. */
#include "small_case.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WATCHDOG_SECONDS = 120 };

#if defined(__has_feature)
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_THREAD__) || HAS_FEATURE(thread_sanitizer)
#define UNDER_TSAN 1
#else
#define UNDER_TSAN 0
#endif
#if defined(__SANITIZE_ADDRESS__) || HAS_FEATURE(address_sanitizer)
#define UNDER_ASAN 1
#else
#define UNDER_ASAN 0
#endif

/* Children of a threaded parent start threads here on purpose. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "die_after_fork=0"; }

/* What other threads of the parent held is lost in a child: not a leak to report. */
static int in_child;
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void) { return in_child; }

static attn_plan *plan_with(const attn_problem *p, int threads, attn_parallel_for parallel_for,
                            void *context) {
    attn_options options = ATTN_OPTIONS_INIT;
    options.threads = threads;
    options.parallel_for = parallel_for;
    options.parallel_context = context;
    attn_plan *plan;
    if (attn_plan_create(&plan, p, &options)) fail_msg("%s", attn_last_error());
    return plan;
}

static uint64_t run_once(const attn_plan *plan, small_case *c) {
    void *workspace = small_workspace(plan);
    small_case_poison(c);
    if (attn_run(plan, &c->tensors, workspace, NULL)) fail_msg("%s", attn_last_error());
    free(workspace);
    return small_case_hash(c);
}

static int threads_of_process(void) {
    char text[4096];
    const int file = open("/proc/self/status", O_RDONLY);
    const ssize_t length = read(file, text, sizeof text - 1);
    (void)close(file);
    if (length < 0) return -1;
    text[length] = 0;
    const char *line = strstr(text, "\nThreads:");
    return line ? atoi(line + 9) : -1;
}

static void *end_at_once(void *arg) { return arg; }

/* ---- bits ---- */

static attn_problem strict_problem(int index) {
    const int64_t q_len = index % 4 ? 1 + index : 1, kv_len = 20 + index * 13, qk_dim = 8 + index * 4;
    attn_problem p = small_problem(1 + index % 3, 4, index % 2 ? 2 : 4, q_len, kv_len, qk_dim);
    p.causal = index % 3 == 1;
    p.strict = 1;
    return p;
}

static void thread_counts_give_the_same_bits(void **state) {
    (void)state;
    for (int index = 0; index < 10; index++) {
        const attn_problem p = strict_problem(index);
        small_case c = small_case_create(p);
        uint64_t first = 0;
        static const int counts[] = { 1, 2, 3, 7, 16 };
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            attn_plan *plan = plan_with(&p, counts[i], NULL, NULL);
            for (int repeat = 0; repeat < 5; repeat++) {
                const uint64_t hash = run_once(plan, &c);
                if (!i && !repeat) first = hash;
                assert_int_equal(hash, first);
            }
            attn_plan_destroy(plan);
        }
        small_case_destroy(&c);
    }
}

/* ---- the caller's pool ---- */

typedef struct { int calls, most_tasks, backwards; } loop_context;

/* Tasks one after the other, from the last to the first. */
static void loop_backwards(void *context, int tasks, void (*task)(void *arg, int index), void *arg) {
    loop_context *c = context;
    c->calls++;
    if (tasks > c->most_tasks) c->most_tasks = tasks;
    for (int i = tasks; i-- > 0;) task(arg, i);
}

typedef struct { void (*task)(void *arg, int index); void *arg; int index; } started_task;
static void *start_task(void *arg) {
    started_task *s = arg;
    s->task(s->arg, s->index);
    return NULL;
}

/* A thread per task. */
static void thread_per_task(void *context, int tasks, void (*task)(void *arg, int index), void *arg) {
    pthread_t threads[64];
    started_task started[64];
    (void)context;
    assert_true(tasks <= 64);
    for (int i = 0; i < tasks; i++) {
        started[i] = (started_task){ task, arg, i };
        assert_int_equal(pthread_create(&threads[i], NULL, start_task, &started[i]), 0);
    }
    for (int i = 0; i < tasks; i++) (void)pthread_join(threads[i], NULL);
}

static void callers_parallel_for_is_used(void **state) {
    (void)state;
    const int before = threads_of_process();
    const attn_problem p = strict_problem(5);
    small_case c = small_case_create(p);
    attn_plan *alone = plan_with(&p, 1, NULL, NULL);
    const uint64_t expected = run_once(alone, &c);
    loop_context context = { 0 };
    attn_plan *looped = plan_with(&p, 3, loop_backwards, &context);
    assert_int_equal(attn_plan_threads(looped), 3);
    assert_int_equal(run_once(looped, &c), expected);
    assert_true(context.calls > 0 && context.most_tasks > 1 && context.most_tasks <= 3);
    attn_plan *threaded = plan_with(&p, 5, thread_per_task, NULL);
    assert_int_equal(run_once(threaded, &c), expected);
    attn_plan_destroy(alone);
    attn_plan_destroy(looped);
    attn_plan_destroy(threaded);
    small_case_destroy(&c);
    assert_int_equal(threads_of_process(), before);
}

/* ---- storm ---- */

enum { STORM_THREADS = 64, STORM_CALLS = UNDER_TSAN ? 20 : 200, STORM_PLANS = 12 };
static attn_plan *storm_plans[STORM_PLANS];
static uint64_t storm_hashes[STORM_PLANS];
static _Atomic int storm_wrong;

static void *storm(void *arg) {
    uint32_t random = (uint32_t)(uintptr_t)arg * 2654435761u + 1;
    small_case cases[STORM_PLANS];
    for (int i = 0; i < STORM_PLANS; i++) cases[i] = small_case_create(strict_problem(i));
    for (int call = 0; call < STORM_CALLS; call++) {
        random = random * 1664525u + 1013904223u;
        const int i = (int)(random >> 16) % STORM_PLANS;
        if (run_once(storm_plans[i], &cases[i]) != storm_hashes[i]) atomic_fetch_add(&storm_wrong, 1);
    }
    for (int i = 0; i < STORM_PLANS; i++) small_case_destroy(&cases[i]);
    return NULL;
}

static void storm_on_shared_plans(void **state) {
    (void)state;
    for (int i = 0; i < STORM_PLANS; i++) {
        const attn_problem p = strict_problem(i);
        storm_plans[i] = plan_with(&p, 1 + i % 4, NULL, NULL);
        small_case c = small_case_create(p);
        storm_hashes[i] = run_once(storm_plans[i], &c);
        small_case_destroy(&c);
    }
    pthread_t threads[STORM_THREADS];
    const int before = threads_of_process();
    for (uintptr_t i = 0; i < STORM_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, storm, (void *)i), 0);
    for (int i = 0; i < STORM_THREADS; i++) (void)pthread_join(threads[i], NULL);
    assert_int_equal(storm_wrong, 0);
    assert_true(threads_of_process() <= before);
    for (int i = 0; i < STORM_PLANS; i++) attn_plan_destroy(storm_plans[i]);
}

/* ---- fork ---- */

/* In a child: a plan from the parent, then one of its own. Ends the process. (ThreadSanitizer takes a thread
 * of the child for one of the parent's that has the same id, and gives up: there the child stays alone.) */
static void child_calls(const attn_plan *inherited, const attn_problem *p, small_case *c, uint64_t expected) {
    if (run_once(inherited, c) != expected) _exit(1);
    attn_options options = ATTN_OPTIONS_INIT;
    options.threads = UNDER_TSAN ? 1 : 3;
    attn_plan *plan;
    if (attn_plan_create(&plan, p, &options)) _exit(2);
    for (int i = 0; i < 3; i++)
        if (run_once(plan, c) != expected) _exit(3);
    if (attn_plan_threads(plan) != options.threads) _exit(4);
    attn_plan_destroy(plan);
    exit(0);   /* runs the library's destructor in the child */
}

static _Atomic int busy_stop;
static void *keep_busy(void *arg) {
    const attn_plan *plan = arg;
    small_case c = small_case_create(strict_problem(7));
    while (!atomic_load(&busy_stop)) (void)run_once(plan, &c);
    small_case_destroy(&c);
    return NULL;
}

static void forked_children_compute(void **state) {
    (void)state;
    const attn_problem p = strict_problem(7);
    attn_plan *plan = plan_with(&p, 3, NULL, NULL);
    small_case c = small_case_create(p);
    const uint64_t expected = run_once(plan, &c);
    pthread_t busy;                                   /* forks happen while the pool is in use */
    assert_int_equal(pthread_create(&busy, NULL, keep_busy, plan), 0);
    for (int i = 0; i < 50; i++) {
        (void)fflush(NULL);
        const pid_t child = fork();
        assert_true(child >= 0);
        if (!child) {
            in_child = 1;
            alarm(WATCHDOG_SECONDS);
            child_calls(plan, &p, &c, expected);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (!WIFEXITED(status) || WEXITSTATUS(status))
            fail_msg("child %d ended with status 0x%x", i, (unsigned)status);
        assert_int_equal(run_once(plan, &c), expected);
    }
    atomic_store(&busy_stop, 1);
    (void)pthread_join(busy, NULL);
    attn_plan_destroy(plan);
    small_case_destroy(&c);
}

/* A system that refuses threads: a child whose user may have none. */
static void no_threads_to_be_had(void **state) {
    (void)state;
    const attn_problem p = strict_problem(5);
    small_case c = small_case_create(p);
    attn_plan *plan = plan_with(&p, 1, NULL, NULL);
    const uint64_t expected = run_once(plan, &c);
    attn_plan_destroy(plan);
    (void)fflush(NULL);
    const pid_t child = fork();
    if (!child) {
        const struct rlimit none = { 0, 0 };
        pthread_t thread;
        if (setrlimit(RLIMIT_NPROC, &none) || (!getuid() && setuid(65534))) _exit(10);
        if (pthread_create(&thread, NULL, end_at_once, NULL) != EAGAIN) _exit(11);
        plan = plan_with(&p, 4, NULL, NULL);
        _exit(attn_plan_threads(plan) != 1 ? 12 : run_once(plan, &c) != expected ? 13 : 0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    small_case_destroy(&c);
}

/* ---- unload ---- */

/* A copy of the library that this program is linked with, to be loaded and unloaded on its own. */
static void copy_library(char *path, size_t size) {
    Dl_info info;
    void *symbol;
    int (*function)(void) = attn_version;
    memcpy(&symbol, &function, sizeof symbol);
    assert_true(dladdr(symbol, &info) != 0);
    (void)snprintf(path, size, "/tmp/attn_copy_%d.so", (int)getpid());
    FILE *from = fopen(info.dli_fname, "rb"), *to = fopen(path, "wb");
    assert_non_null(from);
    assert_non_null(to);
    char buffer[65536];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, from)) > 0;)
        assert_int_equal(fwrite(buffer, 1, n, to), n);
    (void)fclose(from);
    assert_int_equal(fclose(to), 0);
}

static void function_at(void *library, const char *name, void *function_pointer) {
    void *symbol = dlsym(library, name);
    assert_non_null(symbol);
    memcpy(function_pointer, &symbol, sizeof symbol);
}

static void use_and_unload(const char *path, small_case *c) {
    attn_status (*create)(attn_plan **, const attn_problem *, const attn_options *);
    attn_status (*run)(const attn_plan *, const attn_tensors *, void *, void *);
    void (*destroy)(attn_plan *);
    size_t (*size)(const attn_plan *);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) fail_msg("%s", dlerror());
    function_at(library, "attn_plan_create", &create);
    function_at(library, "attn_run", &run);
    function_at(library, "attn_plan_destroy", &destroy);
    function_at(library, "attn_plan_workspace", &size);
    attn_options options = ATTN_OPTIONS_INIT;
    options.threads = 3;
    attn_plan *plan;
    assert_int_equal(create(&plan, &c->problem, &options), ATTN_OK);
    void *workspace = aligned_alloc(64, (size(plan) + 127) / 64 * 64);
    assert_int_equal(run(plan, &c->tensors, workspace, NULL), ATTN_OK);
    free(workspace);
    destroy(plan);
    assert_int_equal(dlclose(library), 0);
}

static long resident_kib(void) {
    long pages = 0, unused;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld %ld", &unused, &pages) != 2) pages = 0;
    if (file) (void)fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void loading_and_unloading_leaves_nothing(void **state) {
    (void)state;
    char path[64];
    copy_library(path, sizeof path);
    small_case c = small_case_create(strict_problem(3));
    const int rounds = UNDER_TSAN ? 20 : 1000, threads = threads_of_process();
    for (int i = 0; i < rounds / 10; i++) use_and_unload(path, &c);
    const long before = resident_kib();
    for (int i = 0; i < rounds; i++) use_and_unload(path, &c);
    const long grown = resident_kib() - before;
    assert_int_equal(threads_of_process(), threads);
    if (!UNDER_TSAN && !UNDER_ASAN && grown > 4096)
        fail_msg("%d loads grew the process by %ld KiB", rounds, grown);
    (void)unlink(path);
    small_case_destroy(&c);
}

/* ---- how many ---- */

static void default_follows_the_affinity_mask(void **state) {
    (void)state;
    cpu_set_t before, one;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    const int here = attn_cpu_threads();
    assert_true(here >= 1 && here <= CPU_COUNT(&before));
    CPU_ZERO(&one);
    for (size_t cpu = 0; cpu < CPU_SETSIZE && !CPU_COUNT(&one); cpu++)
        if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    const int pinned = attn_cpu_threads();
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
    assert_int_equal(pinned, 1);
    assert_int_equal(attn_cpu_threads(), here);
}

static void default_follows_the_variable(void **state) {
    (void)state;
    const int here = attn_cpu_threads();
    static const char *const ignored[] = { "0", "-3", "many", "", "1000000", "99999999999999999999", "2x" };
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) {
        (void)setenv("ATTN_NUM_THREADS", ignored[i], 1);
        assert_int_equal(attn_cpu_threads(), here);
    }
    (void)setenv("ATTN_NUM_THREADS", "1", 1);
    assert_int_equal(attn_cpu_threads(), 1);
    (void)unsetenv("ATTN_NUM_THREADS");
}

static void one_thread_starts_no_pool(void **state) {
    (void)state;
    const int before = threads_of_process();
    const attn_problem p = strict_problem(9);
    small_case c = small_case_create(p);
    attn_plan *plan = plan_with(&p, 1, NULL, NULL);
    (void)run_once(plan, &c);
    assert_int_equal(threads_of_process(), before);
    attn_plan_destroy(plan);
    small_case_destroy(&c);
}

int main(void) {
    alarm(WATCHDOG_SECONDS);
    pthread_t first;                 /* a sanitizer starts its own thread with the first one: not ours to
                                        count */
    if (!pthread_create(&first, NULL, end_at_once, NULL)) (void)pthread_join(first, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_thread_starts_no_pool),
        cmocka_unit_test(callers_parallel_for_is_used),
        cmocka_unit_test(default_follows_the_affinity_mask),
        cmocka_unit_test(default_follows_the_variable),
        cmocka_unit_test(thread_counts_give_the_same_bits),
        cmocka_unit_test(storm_on_shared_plans),
        cmocka_unit_test(forked_children_compute),
        cmocka_unit_test(no_threads_to_be_had),
        cmocka_unit_test(loading_and_unloading_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
