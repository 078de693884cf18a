/* test_allocation.c — memory: attn_run takes none, and when the n-th allocation fails, for every n, the call
 * fails with ATTN_NO_MEMORY, loses nothing and works the next time. Linked with the static library and --wrap
 * (CMakeLists.txt). */
#include "small_case.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdatomic.h>

static _Atomic int allocations, live, fail_at;   /* fail_at: the number of the allocation to refuse; 0 =
                                                    none */

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void  __real_free(void *memory);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
void  __wrap_free(void *memory);

static int refused(void) { return atomic_fetch_add(&allocations, 1) + 1 == atomic_load(&fail_at); }
static void *counted(void *memory) {
    if (memory) atomic_fetch_add(&live, 1);
    return memory;
}

void *__wrap_malloc(size_t bytes) { return refused() ? NULL : counted(__real_malloc(bytes)); }
void *__wrap_calloc(size_t count, size_t bytes) {
    return refused() ? NULL : counted(__real_calloc(count, bytes));
}
void *__wrap_aligned_alloc(size_t alignment, size_t bytes) {
    return refused() ? NULL : counted(__real_aligned_alloc(alignment, bytes));
}
void *__wrap_realloc(void *memory, size_t bytes) {
    if (refused()) return NULL;
    return memory ? __real_realloc(memory, bytes) : counted(__real_realloc(NULL, bytes));
}
void __wrap_free(void *memory) {
    if (memory) atomic_fetch_sub(&live, 1);
    __real_free(memory);
}

static const struct { attn_problem problem; int threads; } setups[] = {
    { { .struct_size = sizeof(attn_problem), .batch = 1, .q_heads = 1, .q_len = 1, .kv_len = 1, .kv_heads = 1,
        .qk_dim = 1 }, 0 },
    { { .struct_size = sizeof(attn_problem), .batch = 2, .q_heads = 4, .kv_heads = 2, .q_len = 70,
      .kv_len = 130,
        .qk_dim = 64, .causal = 1 }, 3 },
    { { .struct_size = sizeof(attn_problem), .batch = 1, .q_heads = 4, .kv_heads = 1, .q_len = 1,
      .kv_len = 1500,
        .qk_dim = 48, .strict = 1 }, 2 },
};
enum { SETUPS = sizeof setups / sizeof *setups };

static void run_allocates_nothing(void **state) {
    (void)state;
    for (int i = 0; i < SETUPS; i++) {
        small_case c = small_case_create(setups[i].problem);
        attn_options options = ATTN_OPTIONS_INIT;
        options.threads = setups[i].threads;
        attn_plan *plan;
        assert_int_equal(attn_plan_create(&plan, &c.problem, &options), ATTN_OK);
        void *workspace = small_workspace(plan);
        const int before = atomic_load(&allocations);
        for (int repeat = 0; repeat < 20; repeat++)
            assert_int_equal(attn_run(plan, &c.tensors, workspace, NULL), ATTN_OK);
        assert_int_equal(atomic_load(&allocations), before);
        free(workspace);
        attn_plan_destroy(plan);
        small_case_destroy(&c);
    }
}

/* Fail the first, the second, ... allocation until the call gets through. @return how many had to be
 * refused. */
static int refuse_in_turn(const small_case *c, attn_status (*call)(const small_case *c)) {
    for (int n = 1;; n++) {
        const int before = atomic_load(&live);
        atomic_store(&allocations, 0);
        atomic_store(&fail_at, n);
        const attn_status status = call(c);
        atomic_store(&fail_at, 0);
        assert_int_equal(atomic_load(&live), before);
        if (!status) return n - 1;
        assert_int_equal(status, ATTN_NO_MEMORY);
        assert_true(attn_last_error()[0] != 0);
        assert_int_equal(call(c), ATTN_OK);
        assert_true(n < 100);
    }
}

static attn_status plan_and_destroy(const small_case *c) {
    attn_plan *plan;
    const attn_status status = attn_plan_create(&plan, &c->problem, NULL);
    if (status) assert_null(plan);
    attn_plan_destroy(plan);
    return status;
}

static attn_status attend(const small_case *c) { return attn_attend(&c->problem, &c->tensors, NULL); }

static void every_allocation_may_fail(void **state) {
    (void)state;
    for (int i = 0; i < SETUPS; i++) {
        small_case c = small_case_create(setups[i].problem);
        assert_true(refuse_in_turn(&c, plan_and_destroy) >= 1);
        assert_true(refuse_in_turn(&c, attend) >= 1);
        small_case_destroy(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(run_allocates_nothing), cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
