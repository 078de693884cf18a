/* test_cuda_input.c — what a caller may get wrong on a device, and sizes at the edge: the right answer or a
 * clear status, never a fault, for every CUDA kernel. */
#include "cuda_device.h"

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
        t.k = (const char *)t.k + 1;            /* aligned to its element only: right or refused, never a
                                                   fault */
        const attn_status status = plan ? attn_run(plan, &t, workspace, NULL) : ATTN_OK;
        assert_true(status == ATTN_OK || (status == ATTN_INVALID && strstr(attn_last_error(), "aligned")));
        finish();
        attn_plan_destroy(plan);
        check_data_destroy(data);
    }
}

/* Page ids out of range: never a read outside the pool (the pool's margins are NaN, a fault would break the
 * device), the other sequences right; checked plans say it. */
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
            /* sequence 1, its 4th page */
            const int32_t *entry = t->block_table + full->block_table_stride + 3;
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

/* Two sequences 2^31 + 64 elements apart, in one allocation that serves as Q, K and V; the answer of each is
 * that of the same rows side by side. */
static void test_far_strides(void **state) {
    (void)state;
    NEED_DEVICE;
    enum { LENGTH = 96, HEADS = 2, DIM = 64, ROWS = LENGTH * HEADS * DIM };
    static uint16_t rows[2 * ROWS], near[2 * ROWS], far[2 * ROWS];
    const int64_t apart = ((int64_t)1 << 31) + 64;
    cu_pointer in = 0, out = 0;
    if (driver->MemAlloc(&in, (size_t)(apart + ROWS) * 2) ||
        driver->MemAlloc(&out, (size_t)(apart + ROWS) * 2)) {
        if (in) (void)driver->MemFree(in);
        printf("skipped: no memory for 9 GB\n");
        skip();
    }
    for (int i = 0; i < 2 * ROWS; i++)
        rows[i] = (uint16_t)(0x3c00 + (i * 7919 + i / 131) % 1024 + (i * 31 & 1) * 0x8000);
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
            for (int b = 0; b < 2; b++)
                get((is_far ? far : near) + b * ROWS, (uint16_t *)t.o + b * batch, ROWS * 2);
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
        cmocka_unit_test(test_bad_pointers), cmocka_unit_test(test_bad_pages),
        cmocka_unit_test(test_bad_lengths),  cmocka_unit_test(test_many_heads),
        cmocka_unit_test(test_far_strides),
    };
    return cmocka_run_group_tests_name("cuda_input", tests, open_device, close_device);
}
