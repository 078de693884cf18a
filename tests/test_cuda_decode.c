/* test_cuda_decode.c — decoding on a real device, beyond test_kernels.c: forced splits, all page sizes, block
 * edges; and bit for bit: paged = contiguous, strict = alone, a schedule made beforehand = one made in the run. */
#include "cuda_device.h"
#include <math.h>

enum { HEADS = 8, KV_HEADS = 2, DIM = 128, BATCH = 3, KEYS = 1024, ROW = KV_HEADS * DIM };

static const int32_t splits[] = { 0, 1, 2, 3, 7, 1 << 20 };
enum { SPLITS = sizeof splits / sizeof *splits };

/* ---- right for every number of parts ---- */

static void judge(const check_case *c, int *judged) {
    const check_memory memory = check_gpu_memory(gpu);
    check_data *data = NULL;
    assert_int_equal(check_data_create(&data, c, &memory, 0), ATTN_OK);
    for (int n = 0; n < kernel_count; n++)
        for (int i = 0; i < SPLITS; i++) {
            check_candidate candidate = check_library_kernel(kernels[n]);
            attn_options options = ATTN_OPTIONS_INIT;
            check_verdict verdict;
            const char *refusal = NULL;
            options.splits = splits[i];
            if (!strstr(kernels[n], "decode") && i) continue;
            if (check_run(&candidate, data, &options, i % 2 ? 2 : 1, &verdict, &refusal) == ATTN_UNSUPPORTED && refusal)
                continue;
            if (!verdict.ok) {
                char command[1024];
                check_case_command(c, kernels[n], command, sizeof command);
                printf("%s, %d splits: %s\n  %s\n", kernels[n], (int)splits[i], verdict.reason, command);
            }
            assert_true(verdict.ok);
            (*judged)++;
        }
    check_data_destroy(data);
}

static void test_splits(void **state) {
    (void)state;
    NEED_DEVICE;
    static const int64_t pages[] = { 0, 1, 2, 3, 16, 17, 64, 256 }, dims[] = { 64, 128, 128, 256, 192, 80, 96, 72 };
    int judged = 0;
    for (int n = 0; n < 24; n++) {
        check_case c = { .problem = problem_of(n % 2 ? ATTN_BF16 : ATTN_F16, 5, 8, n % 3 ? 2 : 1,
                                               1 + n % 4 * (n % 5), 577, dims[n % 8]),
                         .shape = "custom", .seed = (uint64_t)n, .layout = (check_layout)(n % 3),
                         .lengths = (check_lengths)(n % 3), .fill = (check_fill)(n % CHECK_FILLS) };
        c.problem.page_size = pages[(n + n / 8) % 8];
        c.problem.has_seqused_kv = n % 4 != 1;
        c.problem.causal = n % 2;
        if (dims[n % 8] == 192) c.problem.v_dim = 128;
        if (n % 6 == 5) c.problem.has_sinks = 1, c.problem.window = 1, c.problem.window_left = 100,
                        c.problem.window_right = -1;
        judge(&c, &judged);
    }
    printf("forced splits: %d runs judged\n", judged);
}

/* Lengths on both sides of every block's edge. */
static void test_edges(void **state) {
    (void)state;
    NEED_DEVICE;
    static const int64_t lengths[] = { 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257 };
    int judged = 0;
    for (int n = 0; n < 16; n++) {
        check_case c = { .problem = problem_of(ATTN_BF16, 2, 4, 1, 1, lengths[n], n % 2 ? 64 : 128), .shape = "custom",
                         .seed = (uint64_t)n };
        judge(&c, &judged);
    }
    printf("block edges: %d runs judged\n", judged);
}

/* ---- one cache, several ways to name its rows ---- */

typedef struct cache {
    void *q, *k, *v, *o, *workspace, *table, *lengths, *schedule;
    uint16_t host[BATCH * KEYS * ROW];
} cache;

static cache store;
static const int32_t lengths_used[BATCH] = { KEYS, 333, 700 };

static void *make(size_t bytes) {
    const check_memory memory = check_gpu_memory(gpu);
    void *pointer = memory.alloc(memory.context, bytes);
    assert_non_null(pointer);
    return pointer;
}

static void fill(void *device, size_t count, uint32_t seed) {
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        store.host[i] = (uint16_t)((seed >> 16 & 0x8000) | 0x3f00 | (seed >> 24 & 0xff));
    }
    put(device, store.host, count * 2);
}

static void open_store(void) {
    store.q = make(BATCH * HEADS * DIM * 2), store.o = make(BATCH * HEADS * DIM * 2);
    store.k = make(sizeof store.host), store.v = make(sizeof store.host);
    store.table = make(BATCH * KEYS * 4), store.lengths = make(BATCH * 4);
    store.workspace = make(64 << 20), store.schedule = make(1 << 20);
    fill(store.q, BATCH * HEADS * DIM, 1);
    fill(store.k, BATCH * KEYS * ROW, 2);
    fill(store.v, BATCH * KEYS * ROW, 3);
    put(store.lengths, lengths_used, sizeof lengths_used);
}

static void close_store(void) {
    const check_memory memory = check_gpu_memory(gpu);
    void *const all[] = { store.q, store.k, store.v, store.o, store.workspace, store.table, store.lengths,
                          store.schedule };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) memory.free(memory.context, all[i]);
}

static attn_tensors tensors_of_store(void) {
    attn_tensors t = ATTN_TENSORS_INIT;
    t.q = store.q, t.k = store.k, t.v = store.v, t.o = store.o;
    t.block_table = store.table, t.seqused_kv = store.lengths;
    return t;
}

/* O of `rows` sequences. NULL plan: nothing to do. @return 0 if the kernel refuses. */
static int attend(const char *kernel, const attn_problem *p, const attn_tensors *t, uint16_t *o) {
    attn_plan *plan = plan_of(kernel, p, 0);
    if (!plan) return 0;
    assert_true(attn_plan_workspace(plan) <= 64 << 20);
    put(store.o, store.host, (size_t)p->batch * HEADS * DIM * 2);
    assert_int_equal(attn_run(plan, t, store.workspace, NULL), ATTN_OK);
    finish();
    get(o, store.o, (size_t)p->batch * HEADS * DIM * 2);
    attn_plan_destroy(plan);
    return 1;
}

static attn_problem cache_problem(void) {
    attn_problem p = problem_of(ATTN_BF16, BATCH, HEADS, KV_HEADS, 1, KEYS, DIM);
    p.has_seqused_kv = 1;
    return p;
}

/* The cache cut into pages that are then shuffled in memory: the same bits. */
static void test_paged(void **state) {
    (void)state;
    NEED_DEVICE;
    static const int64_t sizes[] = { 1, 2, 16, 64, 256 };
    static uint16_t expected[BATCH * HEADS * DIM], o[BATCH * HEADS * DIM], moved[BATCH * KEYS * ROW];
    static int32_t table[BATCH * KEYS];
    int compared = 0;
    open_store();
    for (int n = 0; n < kernel_count; n++) {
        attn_problem p = cache_problem();
        attn_tensors t = tensors_of_store();
        if (!strstr(kernels[n], "decode") || !attend(kernels[n], &p, &t, expected)) continue;
        for (int i = 0; i < 5; i++) {
            const int64_t pages = BATCH * KEYS / sizes[i], page = sizes[i] * ROW;
            p = cache_problem();
            p.page_size = sizes[i], p.pages = pages, p.block_table_cols = KEYS / sizes[i];
            for (int which = 0; which < 2; which++) {
                fill(which ? store.v : store.k, BATCH * KEYS * ROW, which ? 3 : 2);
                for (int64_t x = 0; x < pages; x++) {
                    const int64_t to = pages - 1 - x * 7 % pages;     /* 7 doesn't divide the count */
                    table[x] = (int32_t)to;
                    memcpy(moved + to * page, store.host + x * page, (size_t)page * 2);
                }
                put(which ? store.v : store.k, moved, sizeof moved);
            }
            put(store.table, table, (size_t)pages * 4);
            assert_int_equal(attend(kernels[n], &p, &t, o), 1);
            assert_memory_equal(o, expected, sizeof o);
            compared++;
        }
        fill(store.k, BATCH * KEYS * ROW, 2);
        fill(store.v, BATCH * KEYS * ROW, 3);
    }
    close_store();
    printf("paged as contiguous, bit by bit: %d\n", compared);
}

/* Strict: a sequence alone has the bits that it has in company, whatever the number of splits. */
static void test_strict(void **state) {
    (void)state;
    NEED_DEVICE;
    static uint16_t together[BATCH * HEADS * DIM], alone[HEADS * DIM];
    int compared = 0;
    open_store();
    for (int n = 0; n < kernel_count; n++) {
        attn_problem p = cache_problem();
        attn_tensors t = tensors_of_store();
        p.strict = 1;
        if (!attend(kernels[n], &p, &t, together)) continue;
        for (int b = 0; b < BATCH; b++) {
            const size_t rows = (size_t)b * KEYS * ROW * 2;
            p.batch = p.kv_batch = 1;
            t.q = (const char *)store.q + (size_t)b * HEADS * DIM * 2;
            t.k = (const char *)store.k + rows, t.v = (const char *)store.v + rows;
            t.seqused_kv = (const int32_t *)store.lengths + b;
            assert_int_equal(attend(kernels[n], &p, &t, alone), 1);
            assert_memory_equal(alone, together + (size_t)b * HEADS * DIM, sizeof alone);
            compared++;
        }
    }
    close_store();
    printf("strict as alone, bit by bit: %d\n", compared);
}

static int is_nan(uint16_t bf16) { return (bf16 & 0x7fff) > 0x7f80; }

/* A schedule of attn_plan_schedule gives the same bits; one of another shape gives NaN, or in checked mode an error. */
static void test_schedule(void **state) {
    (void)state;
    NEED_DEVICE;
    static uint16_t expected[BATCH * HEADS * DIM], o[BATCH * HEADS * DIM];
    int schedules = 0;
    open_store();
    for (int n = 0; n < kernel_count; n++) {
        attn_problem p = cache_problem();
        attn_tensors t = tensors_of_store();
        attn_plan *plan = plan_of(kernels[n], &p, 0);
        const size_t bytes = plan ? attn_plan_schedule_size(plan) : 0;
        if (bytes) {
            assert_true(bytes <= 1 << 20);
            assert_int_equal(attend(kernels[n], &p, &t, expected), 1);
            assert_int_equal(attn_plan_schedule(plan, &t, (char *)store.schedule + 4, NULL), ATTN_INVALID);
            assert_int_equal(attn_plan_schedule(plan, &t, store.schedule, NULL), ATTN_OK);
            t.schedule = store.schedule;
            for (int i = 0; i < 3; i++) {
                assert_int_equal(attend(kernels[n], &p, &t, o), 1);
                assert_memory_equal(o, expected, sizeof o);
            }
            p.batch = p.kv_batch = BATCH - 1;
            assert_int_equal(attend(kernels[n], &p, &t, o), 1);
            for (int i = 0; i < (BATCH - 1) * HEADS * DIM; i++) assert_true(is_nan(o[i]));
            attn_plan *checked = plan_of(kernels[n], &p, 1);
            assert_int_equal(attn_run(checked, &t, store.workspace, NULL), ATTN_INVALID);
            assert_non_null(strstr(attn_last_error(), "another shape"));
            attn_plan_destroy(checked);
            schedules++;
        }
        attn_plan_destroy(plan);
    }
    close_store();
    printf("schedules shared: %d kernels\n", schedules);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_splits), cmocka_unit_test(test_edges), cmocka_unit_test(test_paged),
        cmocka_unit_test(test_strict), cmocka_unit_test(test_schedule),
    };
    return cmocka_run_group_tests_name("cuda_decode", tests, open_device, close_device);
}
