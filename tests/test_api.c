/* test_api.c — what the header promises about calls rather than numbers: struct versions, explain and choice,
 * shared plans, exact workspaces, and a caller whose thread is left as it was. */
#include "small_case.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <dlfcn.h>
#include <errno.h>
#include <fenv.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static attn_plan *plan_for(const attn_problem *p, const attn_options *options) {
    attn_plan *plan;
    if (attn_plan_create(&plan, p, options)) fail_msg("%s", attn_last_error());
    return plan;
}

static attn_plan *plan_of_kernel(const attn_problem *p, const char *kernel) {
    attn_options options = ATTN_OPTIONS_INIT;
    options.kernel = kernel;
    attn_plan *plan;
    return attn_plan_create(&plan, p, &options) ? NULL : plan;
}

/* The index-th CPU kernel that this machine can run; NULL past the last. */
static const char *cpu_kernel(int index) {
    attn_kernel_info info = { .struct_size = sizeof info };
    for (int i = 0; !attn_kernel_describe(i, &info); i++)
        if (info.device == ATTN_CPU && !info.unavailable && !index--) return info.name;
    return NULL;
}

static uint32_t draw(uint32_t *state, uint32_t below) {
    *state = *state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)(*state >> 8) * below) >> 24);
}

static attn_problem random_problem(uint32_t *state) {
    const int64_t kv_heads = 1 + draw(state, 3), q_heads = kv_heads * (1 + draw(state, 5)),
                  q_len = 1 + draw(state, 40);
    attn_problem p = small_problem(1 + draw(state, 3), q_heads, kv_heads, q_len, 1 + draw(state, 300),
                                   1 + draw(state, 150));
    if (!draw(state, 3)) p.v_dim = 1 + draw(state, 150);
    p.causal = !draw(state, 2);
    p.softcap = draw(state, 4) ? 0 : 20;
    p.strict = !draw(state, 4);
    if (!draw(state, 3)) {
        p.window = 1;
        p.window_left = (int64_t)draw(state, 60) - 1;
        p.window_right = (int64_t)draw(state, 60) - 1;
    }
    return p;
}

/* ---- small facts ---- */

static void names_and_versions(void **state) {
    (void)state;
    assert_string_equal(attn_status_name(ATTN_OK), "ok");
    assert_string_equal(attn_status_name(ATTN_INVALID), "invalid");
    assert_string_equal(attn_status_name(ATTN_UNSUPPORTED), "unsupported");
    assert_string_equal(attn_status_name(ATTN_NO_MEMORY), "no memory");
    assert_string_equal(attn_status_name(ATTN_DEVICE_ERROR), "device error");
    assert_non_null(attn_status_name((attn_status)12345));
    assert_int_equal(attn_version(), ATTN_VERSION);
    char text[32];
    (void)snprintf(text, sizeof text, "%d.%d.%d", ATTN_VERSION_MAJOR, ATTN_VERSION_MINOR, ATTN_VERSION_PATCH);
    assert_string_equal(attn_version_string(), text);
    assert_true(strlen(attn_build_info()) > 3 && strlen(attn_cpu_isa()) > 3);
    assert_true(attn_cpu_threads() >= 1);
}

static void *other_thread(void *arg) {
    const attn_problem bad = ATTN_PROBLEM_INIT;
    attn_plan *plan;
    if (attn_last_error()[0]) return NULL;                       /* a fresh thread has no message */
    if (attn_plan_create(&plan, &bad, NULL) != ATTN_INVALID || !strstr(attn_last_error(), "q_heads"))
        return NULL;
    return arg;
}

static void messages_belong_to_a_thread(void **state) {
    (void)state;
    attn_plan *plan;
    assert_int_equal(attn_plan_create(&plan, NULL, NULL), ATTN_INVALID);
    char before[256];
    (void)snprintf(before, sizeof before, "%s", attn_last_error());
    pthread_t thread;
    void *result;
    assert_int_equal(pthread_create(&thread, NULL, other_thread, before), 0);
    (void)pthread_join(thread, &result);
    assert_non_null(result);
    assert_string_equal(attn_last_error(), before);
}

static void descriptions(void **state) {
    (void)state;
    attn_kernel_info info = { .struct_size = sizeof info };
    int count = 0;
    for (; !attn_kernel_describe(count, &info); count++) {
        assert_non_null(info.name);
        assert_non_null(info.summary);
        assert_true(info.dtypes != 0);
    }
    assert_true(count >= 1);
    assert_int_equal(attn_kernel_describe(-1, &info), ATTN_INVALID);
    assert_int_equal(attn_kernel_describe(count, &info), ATTN_INVALID);
    info.struct_size = 4;
    assert_int_equal(attn_kernel_describe(0, &info), ATTN_INVALID);
}

/* ---- defaults and struct versions ---- */

static void defaults_are_replaced(void **state) {
    (void)state;
    attn_problem p = ATTN_PROBLEM_INIT;
    p.batch = 2;
    p.q_heads = 6;
    p.q_len = 5;
    p.qk_dim = 64;
    assert_int_equal(attn_problem_resolve(&p), ATTN_OK);
    assert_int_equal(p.dtype, ATTN_F32);
    assert_int_equal(p.o_dtype, ATTN_F32);
    assert_true(p.kv_heads == 6 && p.kv_len == 5 && p.v_dim == 64 && p.kv_batch == 2);
    assert_true(p.scale == 0.125f);
    assert_true(p.q_stride.batch == 5 * 6 * 64 && p.q_stride.seq == 6 * 64 && p.q_stride.head == 64);
    assert_true(p.lse_stride.batch == 30 && p.lse_stride.head == 5 && p.lse_stride.seq == 1);
    assert_true(p.window_left == -1 && p.window_right == -1);
    attn_problem again = p;
    assert_int_equal(attn_problem_resolve(&again), ATTN_OK);
    assert_memory_equal(&again, &p, sizeof p);
}

static void problem_versions(void **state) {
    (void)state;
    struct { attn_problem known; unsigned char later[64]; } newer = { .known = small_problem(1, 2, 1, 3, 4,
             8) };
    newer.known.struct_size = sizeof newer;
    attn_plan_destroy(plan_for(&newer.known, NULL));
    newer.later[40] = 1;
    attn_plan *plan;
    assert_int_equal(attn_plan_create(&plan, &newer.known, NULL), ATTN_INVALID);
    assert_non_null(strstr(attn_last_error(), "struct_size"));
    attn_problem older = small_problem(1, 2, 1, 3, 4, 8);
    older.struct_size = offsetof(attn_problem, scale);
    older.causal = 77;                                           /* past the end of the older struct: not
                                                                    read */
    plan = plan_for(&older, NULL);
    assert_int_equal(attn_plan_problem(plan)->causal, 0);
    assert_int_equal(attn_plan_problem(plan)->struct_size, sizeof(attn_problem));
    attn_plan_destroy(plan);
}

static void option_and_tensor_versions(void **state) {
    (void)state;
    small_case c = small_case_create(small_problem(1, 2, 1, 3, 4, 8));
    struct { attn_options known; unsigned char later[64]; } options = { .known = ATTN_OPTIONS_INIT };
    options.known.struct_size = sizeof options;
    attn_plan *plan = plan_for(&c.problem, &options.known), *refused;
    options.later[0] = 1;
    assert_int_equal(attn_plan_create(&refused, &c.problem, &options.known), ATTN_INVALID);
    struct { attn_tensors known; unsigned char later[64]; } tensors = { .known = c.tensors };
    tensors.known.struct_size = sizeof tensors;
    void *workspace = small_workspace(plan);
    assert_int_equal(attn_run(plan, &tensors.known, workspace, NULL), ATTN_OK);
    const uint64_t hash = small_case_hash(&c);
    small_case_poison(&c);
    tensors.later[63] = 1;
    assert_int_equal(attn_run(plan, &tensors.known, workspace, NULL), ATTN_INVALID);
    assert_true(small_case_untouched(&c));
    c.tensors.struct_size = offsetof(attn_tensors, bias);        /* as a caller built before bias existed */
    assert_int_equal(attn_run(plan, &c.tensors, workspace, NULL), ATTN_OK);
    assert_int_equal(small_case_hash(&c), hash);
    free(workspace);
    attn_plan_destroy(plan);
    small_case_destroy(&c);
}

/* ---- explain ---- */

static void explain_agrees_with_the_choice(void **state) {
    (void)state;
    uint32_t random = 7;
    for (int i = 0; i < 300; i++) {
        const attn_problem p = random_problem(&random);
        char text[8192];
        const int length = attn_explain(&p, NULL, text, sizeof text);
        assert_int_equal(length, strlen(text));
        attn_plan *plan = plan_for(&p, NULL);
        int chosen = 0, fits = 0;
        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
            char name[64], verdict[64];
            assert_int_equal(sscanf(line, "%63s %63s", name, verdict), 2);
            attn_plan *forced = plan_of_kernel(&p, name);
            const int is_chosen = !strcmp(verdict, "chosen");
            assert_int_equal(forced != NULL, is_chosen || !strcmp(verdict, "fits"));
            if (is_chosen) assert_string_equal(attn_plan_kernel(plan), name);
            if (is_chosen) assert_int_equal(fits, 0);            /* best first: nothing before it fits */
            chosen += is_chosen;
            fits += forced != NULL;
            attn_plan_destroy(forced);
        }
        assert_int_equal(chosen, 1);
        attn_plan_destroy(plan);
    }
}

static void explain_is_like_snprintf(void **state) {
    (void)state;
    const attn_problem p = small_problem(1, 2, 1, 3, 4, 8);
    char whole[8192], part[8192];
    const int length = attn_explain(&p, NULL, whole, sizeof whole);
    assert_true(length > 0);
    assert_int_equal(attn_explain(&p, NULL, NULL, 0), length);
    for (size_t size = 1; size < (size_t)length + 2; size++) {
        memset(part, '#', sizeof part);
        assert_int_equal(attn_explain(&p, NULL, part, size), length);
        const size_t kept = size <= (size_t)length ? size - 1 : (size_t)length;
        assert_int_equal(strlen(part), kept);
        assert_memory_equal(part, whole, kept);
        assert_int_equal(part[size], '#');
    }
}

/* ---- plans ---- */

static void plans_do_not_change(void **state) {
    (void)state;
    small_case a = small_case_create(small_problem(2, 4, 2, 5, 70, 32)), b = small_case_create(a.problem);
    attn_plan *plan = plan_for(&a.problem, NULL);
    const attn_problem before = *attn_plan_problem(plan);
    ((float *)b.memory)[3] = 9;
    void *workspace = small_workspace(plan);
    assert_int_equal(attn_run(plan, &a.tensors, workspace, NULL), ATTN_OK);
    const uint64_t first = small_case_hash(&a);
    assert_int_equal(attn_run(plan, &b.tensors, workspace, NULL), ATTN_OK);
    assert_true(small_case_hash(&b) != first);
    a.problem.q_len = 1;                                          /* the plan has its own copy */
    small_case_poison(&a);
    assert_int_equal(attn_run(plan, &a.tensors, workspace, NULL), ATTN_OK);
    assert_int_equal(small_case_hash(&a), first);
    assert_memory_equal(attn_plan_problem(plan), &before, sizeof before);
    free(workspace);
    attn_plan_destroy(plan);
    small_case_destroy(&a);
    small_case_destroy(&b);
}

static void nothing_to_do(void **state) {
    (void)state;
    small_case c = small_case_create(small_problem(1, 2, 2, 1, 1, 8));
    attn_problem empty = c.problem;
    empty.batch = 0;
    assert_int_equal(attn_attend(&empty, &c.tensors, NULL), ATTN_OK);
    empty.batch = 1;
    empty.q_len = 0;
    assert_int_equal(attn_attend(&empty, &c.tensors, NULL), ATTN_OK);
    const attn_tensors none = ATTN_TENSORS_INIT;
    assert_int_equal(attn_attend(&empty, &none, NULL), ATTN_OK);
    assert_true(small_case_untouched(&c));
    for (int k = 0; cpu_kernel(k); k++) {                        /* no keys: O = 0, LSE = -inf */
        attn_problem p = c.problem;
        p.kv_len = 0;
        p.kv_empty = 1;
        attn_plan *plan = plan_of_kernel(&p, cpu_kernel(k));
        if (!plan) continue;
        attn_tensors t = c.tensors;
        t.k = t.v = NULL;
        void *workspace = small_workspace(plan);
        assert_int_equal(attn_run(plan, &t, workspace, NULL), ATTN_OK);
        for (size_t i = 0; i < c.o_floats; i++) assert_true(((float *)c.tensors.o)[i] == 0);
        for (size_t i = 0; i < c.lse_floats; i++) assert_true(c.tensors.lse[i] == -INFINITY);
        free(workspace);
        attn_plan_destroy(plan);
        small_case_poison(&c);
    }
    small_case_destroy(&c);
}

/* ---- workspace ---- */

/* `bytes` of memory, 64-byte aligned, that end as near to an inaccessible page as the alignment allows. */
static unsigned char *guarded(size_t bytes, size_t *mapped) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (bytes + page) / page * page;
    unsigned char *memory =
        mmap(NULL, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    assert_int_equal(mprotect(memory + body, page, PROT_NONE), 0);
    *mapped = body + page;
    return memory + body - (bytes + 63) / 64 * 64;
}

static void workspace_is_exact_and_dont_care(void **state) {
    (void)state;
    uint32_t random = 99;
    for (int i = 0; i < 40; i++) {
        small_case c = small_case_create(random_problem(&random));
        for (int k = 0; cpu_kernel(k); k++) {
            attn_plan *plan = plan_of_kernel(&c.problem, cpu_kernel(k));
            if (!plan) continue;
            const size_t bytes = attn_plan_workspace(plan), margin = (64 - bytes % 64) % 64;
            size_t mapped;
            unsigned char *workspace = guarded(bytes, &mapped), *end = workspace + bytes + margin;
            uint64_t first = 0;
            static const int fills[] = { 0, 0xff, 0x7f, 0xcd };
            for (int f = 0; f < 4; f++) {
                memset(workspace, fills[f], (size_t)(end - workspace));
                small_case_poison(&c);
                assert_int_equal(attn_run(plan, &c.tensors, bytes ? workspace : NULL, NULL), ATTN_OK);
                if (!f) first = small_case_hash(&c);
                assert_int_equal(small_case_hash(&c), first);
                for (size_t m = 0; m < margin; m++) assert_int_equal(workspace[bytes + m], fills[f]);
            }
            (void)munmap(end + (size_t)sysconf(_SC_PAGESIZE) - mapped, mapped);
            attn_plan_destroy(plan);
        }
        small_case_destroy(&c);
    }
}

/* ---- the caller's thread ---- */

static void library_path(char *path, size_t size) {
    Dl_info info;
    void *symbol;
    int (*function)(void) = attn_version;
    memcpy(&symbol, &function, sizeof symbol);
    assert_true(dladdr(symbol, &info) != 0);
    (void)snprintf(path, size, "%s", info.dli_fname);
}

/* Everything in a caller's floating-point state, as far as this machine shows it. */
typedef struct { int rounding, flags; unsigned control; } float_state;

#if defined(__SSE2__)
#include <xmmintrin.h>
static unsigned control(void) { return _mm_getcsr(); }
static void flush_denormals(void) { _mm_setcsr(_mm_getcsr() | 0x8040); }
#else
static unsigned control(void) { return 0; }
static void flush_denormals(void) {}
#endif

static float_state look(void) {
    return (float_state){ fegetround(), fetestexcept(FE_ALL_EXCEPT), control() };
}
static void expect_same(float_state before, const char *call) {
    const float_state now = look();
    if (now.rounding != before.rounding || now.flags != before.flags || now.control != before.control)
        fail_msg("%s changed the floating-point state: 0x%x -> 0x%x", call, before.control, now.control);
}

static void every_call(const small_case *c, const char *kernel, float_state before) {
    attn_options options = ATTN_OPTIONS_INIT;
    options.kernel = kernel;
    options.threads = 2;
    attn_plan *plan;
    char text[4096];
    attn_problem p = c->problem;
    assert_int_equal(attn_plan_create(&plan, &p, &options), ATTN_OK);
    expect_same(before, "attn_plan_create");
    (void)attn_explain(&p, NULL, text, sizeof text);
    expect_same(before, "attn_explain");
    assert_int_equal(attn_problem_resolve(&p), ATTN_OK);
    expect_same(before, "attn_problem_resolve");
    void *workspace = small_workspace(plan);
    errno = 4321;
    assert_int_equal(attn_run(plan, &c->tensors, workspace, NULL), ATTN_OK);
    assert_int_equal(errno, 4321);
    expect_same(before, kernel);
    p.softcap = NAN;
    assert_int_equal(attn_attend(&p, &c->tensors, NULL), ATTN_INVALID);
    expect_same(before, "a failing call");
    free(workspace);
    attn_plan_destroy(plan);
}

static void float_state_and_errno_are_kept(void **state) {
    (void)state;
    attn_problem p = small_problem(1, 4, 2, 3, 90, 40);
    p.scale = 30;                                                 /* probabilities underflow: flags would
                                                                     rise */
    small_case c = small_case_create(p);
    for (int k = 0; cpu_kernel(k); k++) {
        attn_plan *plan = plan_of_kernel(&p, cpu_kernel(k));
        if (!plan) continue;
        attn_plan_destroy(plan);
        static const int roundings[] = { FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO };
        uint64_t first = 0;
        for (int r = 0; r < 8; r++) {
            fenv_t mine;
            (void)fegetenv(&mine);
            (void)feclearexcept(FE_ALL_EXCEPT);
            (void)fesetround(roundings[r % 4]);
            if (r >= 4) flush_denormals();
            small_case_poison(&c);
            every_call(&c, cpu_kernel(k), look());
            (void)fesetenv(&mine);
            if (!r) first = small_case_hash(&c);
            assert_int_equal(small_case_hash(&c), first);         /* nor do the results depend on it */
        }
    }
    small_case_destroy(&c);
}

static void loading_keeps_the_float_state(void **state) {
    (void)state;
    char path[1024], copy[64], command[1200];
    library_path(path, sizeof path);
    (void)snprintf(copy, sizeof copy, "/tmp/attn_api_%d.so", (int)getpid());
    (void)snprintf(command, sizeof command, "cp '%s' '%s'", path, copy);
    assert_int_equal(system(command), 0);
    fenv_t mine;
    (void)fegetenv(&mine);
    (void)feclearexcept(FE_ALL_EXCEPT);
    (void)fesetround(FE_UPWARD);
    flush_denormals();
    const float_state before = look();
    void *library = dlopen(copy, RTLD_NOW | RTLD_LOCAL);
    const float_state loaded = look();
    if (library) (void)dlclose(library);
    const float_state unloaded = look();
    (void)fesetenv(&mine);
    (void)unlink(copy);
    assert_non_null(library);
    assert_memory_equal(&loaded, &before, sizeof before);
    assert_memory_equal(&unloaded, &before, sizeof before);
}

static void locale_does_not_matter(void **state) {
    (void)state;
    const char *const before = setlocale(LC_ALL, NULL);
    char name[256];
    (void)snprintf(name, sizeof name, "%s", before);
    small_case c = small_case_create(small_problem(1, 2, 1, 3, 40, 16));
    assert_int_equal(attn_attend(&c.problem, &c.tensors, NULL), ATTN_OK);
    assert_string_equal(setlocale(LC_ALL, NULL), name);
    small_case_destroy(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_versions), cmocka_unit_test(messages_belong_to_a_thread),
        cmocka_unit_test(descriptions), cmocka_unit_test(defaults_are_replaced),
        cmocka_unit_test(problem_versions), cmocka_unit_test(option_and_tensor_versions),
        cmocka_unit_test(explain_agrees_with_the_choice), cmocka_unit_test(explain_is_like_snprintf),
        cmocka_unit_test(plans_do_not_change), cmocka_unit_test(nothing_to_do),
        cmocka_unit_test(workspace_is_exact_and_dont_care), cmocka_unit_test(float_state_and_errno_are_kept),
        cmocka_unit_test(loading_keeps_the_float_state), cmocka_unit_test(locale_does_not_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
