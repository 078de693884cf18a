/* test_cuda_decode.c — decoding on a real device, beyond test_kernels.c: forced splits, all page sizes, block
 * edges; bit for bit: paged = contiguous, strict = alone, a schedule made before = one made in the run, queued
 * behind others = alone. */
#include "cuda_device.h"
#include <math.h>

enum { BATCH = 3, KEYS = 1024, ROW_MOST = 576, O_MOST = 16 * 512 };

/* Both kinds of decoding: grouped heads, and MLA, whose V is in K. */
typedef struct form { int64_t heads, kv_heads, qk_dim, v_dim; int32_t v_in_k; } form;
static const form forms[] = { { 8, 2, 128, 128, 0 }, { 16, 1, 576, 512, 1 } };
enum { FORMS = sizeof forms / sizeof *forms };

static size_t q_count(const form *f) { return (size_t)(f->heads * f->qk_dim); }
static size_t o_count(const form *f) { return (size_t)(f->heads * f->v_dim); }
static int64_t row_of(const form *f) { return f->kv_heads * f->qk_dim; }

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
            const attn_status status = check_run(&candidate, data, &options, 1 + i % 2, &verdict, &refusal);
            if (status == ATTN_UNSUPPORTED && refusal) continue;
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
    static const int64_t pages[] = { 0, 1, 2, 3, 16, 17, 64, 256 };
    static const int64_t dims[] = { 64, 128, 128, 256, 192, 80, 96, 72 };
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

/* MLA: every page size with every number of heads, one to several queries, all options that it takes. */
static void test_mla(void **state) {
    (void)state;
    NEED_DEVICE;
    static const int64_t pages[] = { 0, 1, 2, 3, 16, 17, 64, 256 }, heads[] = { 1, 3, 16, 24, 63, 128 };
    int judged = 0;
    for (int n = 0; n < 24; n++) {
        check_case c = { .problem = problem_of(n % 2 ? ATTN_BF16 : ATTN_F16, 3, heads[(n + n / 8) % 6], 1,
                                               1 + n % 5 * (n % 3), 289, 576),
                         .shape = "custom", .seed = (uint64_t)n, .layout = (check_layout)(n % 3),
                         .lengths = (check_lengths)(n % 3), .fill = (check_fill)((n + 3) % CHECK_FILLS) };
        c.problem.v_dim = 512, c.problem.v_in_k = 1;
        c.problem.page_size = pages[n % 8];
        c.problem.has_seqused_kv = n % 4 != 1;
        c.problem.causal = n % 2 || n == 12;
        if (n % 6 == 4) c.problem.kv_heads = c.problem.q_heads % 3 == 0 ? 3 : c.problem.q_heads > 1 ? 2 : 1;
        if (n % 6 == 5) c.problem.has_sinks = 1;
        if (n % 8 == 0) c.problem.has_leftpad_kv = 1;
        if (n % 7 == 3) c.problem.packed_q = 1;
        if (n % 5 == 2) c.problem.strict = 1;
        judge(&c, &judged);
    }
    printf("MLA: %d runs judged\n", judged);
}

/* Many empty sequences between those with keys: a block of threads meets four of them in a row, then two with
 * keys and one between. */
static void test_empty(void **state) {
    (void)state;
    NEED_DEVICE;
    enum { SEQUENCES = 1500, KV = 4, LONGEST = 200 };
    static uint16_t q[SEQUENCES * ROW_MOST], k[KV * LONGEST * ROW_MOST];
    static int32_t used[SEQUENCES], index[SEQUENCES];
    const check_memory memory = check_gpu_memory(gpu);
    int judged = 0;
    for (int b = 0; b < SEQUENCES; b++) {
        used[b] = b % 7 == 3 || b % 7 == 5 ? LONGEST - b % 50 : 0;
        index[b] = b % KV;
    }
    for (size_t i = 0; i < sizeof q / 2; i++) q[i] = (uint16_t)(0x3c00 | (i * 2654435761u >> 16 & 0x81ff));
    for (size_t i = 0; i < sizeof k / 2; i++) k[i] = (uint16_t)(0x3c00 | (i * 2246822519u >> 15 & 0x81ff));
    for (int f = 0; f < FORMS; f++) {
        attn_problem p = problem_of(ATTN_BF16, SEQUENCES, 1, 1, 1, LONGEST, forms[f].qk_dim);
        attn_tensors t = ATTN_TENSORS_INIT;
        check_data *data = NULL;
        p.v_dim = forms[f].v_dim, p.v_in_k = forms[f].v_in_k, p.kv_batch = KV;
        p.has_seqused_kv = p.has_kv_batch_index = 1;
        t.q = q, t.k = t.v = k, t.seqused_kv = used, t.kv_batch_index = index;
        assert_int_equal(attn_problem_resolve(&p), ATTN_OK);
        assert_int_equal(check_data_from(&data, &p, &t, &memory), ATTN_OK);
        for (int n = 0; n < kernel_count; n++) {
            check_candidate candidate = check_library_kernel(kernels[n]);
            check_verdict verdict;
            const char *refusal = NULL;
            printf("empty sequences: %s\n", kernels[n]);      /* a hang names its kernel */
            const attn_status status = check_run(&candidate, data, NULL, 1, &verdict, &refusal);
            if (status == ATTN_UNSUPPORTED && refusal) continue;
            if (!verdict.ok) printf("%s, empty sequences: %s\n", kernels[n], verdict.reason);
            assert_true(verdict.ok);
            judged++;
        }
        check_data_destroy(data);
    }
    printf("empty sequences: %d runs judged\n", judged);
}

/* Lengths on both sides of every block's edge. */
static void test_edges(void **state) {
    (void)state;
    NEED_DEVICE;
    static const int64_t lengths[] = { 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257 };
    int judged = 0;
    for (int n = 0; n < 16; n++) {
        check_case c = { .problem = problem_of(ATTN_BF16, 2, 4, 1, 1, lengths[n], n % 2 ? 64 : 128),
                         .shape = "custom", .seed = (uint64_t)n };
        judge(&c, &judged);
        c.problem.qk_dim = 576, c.problem.v_dim = 512, c.problem.v_in_k = 1;
        c.problem.causal = n % 2, c.problem.q_len = 1 + n % 2;
        judge(&c, &judged);
    }
    printf("block edges: %d runs judged\n", judged);
}

/* ---- one cache, several ways to name its rows ---- */

typedef struct cache {
    void *q, *k, *v, *o, *workspace, *table, *lengths, *schedule;
    uint16_t host[BATCH * KEYS * ROW_MOST];
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
    store.q = make(BATCH * 16 * 576 * 2), store.o = make(BATCH * O_MOST * 2);
    store.k = make(sizeof store.host), store.v = make(sizeof store.host);
    store.table = make(BATCH * KEYS * 4), store.lengths = make(BATCH * 4);
    store.workspace = make(64 << 20), store.schedule = make(1 << 20);
    fill(store.q, BATCH * 16 * 576, 1);
    fill(store.k, BATCH * KEYS * ROW_MOST, 2);
    fill(store.v, BATCH * KEYS * ROW_MOST, 3);
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

/* O of all sequences. @return 0 if the kernel refuses. */
static int attend(const char *kernel, const attn_problem *p, const attn_tensors *t, uint16_t *o) {
    attn_plan *plan = plan_of(kernel, p, 0);
    if (!plan) return 0;
    const size_t bytes = (size_t)(p->batch * p->q_heads * p->v_dim) * 2;
    assert_true(attn_plan_workspace(plan) <= 64 << 20);
    put(store.o, store.host, bytes);
    assert_int_equal(attn_run(plan, t, store.workspace, NULL), ATTN_OK);
    finish();
    get(o, store.o, bytes);
    attn_plan_destroy(plan);
    return 1;
}

static attn_problem cache_problem(const form *f) {
    attn_problem p = problem_of(ATTN_BF16, BATCH, f->heads, f->kv_heads, 1, KEYS, f->qk_dim);
    p.v_dim = f->v_dim, p.v_in_k = f->v_in_k;
    p.has_seqused_kv = 1;
    return p;
}

/* Cut K (or V) into pages and shuffle them: page x of the cache goes to table[x]. */
static void shuffle(const form *f, int64_t size, int which, int32_t *table) {
    static uint16_t moved[BATCH * KEYS * ROW_MOST];
    const int64_t pages = BATCH * KEYS / size, page = size * row_of(f);
    fill(which ? store.v : store.k, (size_t)(BATCH * KEYS * row_of(f)), which ? 3 : 2);
    for (int64_t x = 0; x < pages; x++) {
        const int64_t to = pages - 1 - x * 7 % pages;     /* 7 doesn't divide the count */
        table[x] = (int32_t)to;
        memcpy(moved + to * page, store.host + x * page, (size_t)page * 2);
    }
    put(which ? store.v : store.k, moved, (size_t)(pages * page) * 2);
}

/* The cache cut into pages that are then shuffled in memory: the same bits. */
static void test_paged(void **state) {
    (void)state;
    NEED_DEVICE;
    static const int64_t sizes[] = { 1, 2, 16, 64, 256 };
    static uint16_t expected[BATCH * O_MOST], o[BATCH * O_MOST];
    static int32_t table[BATCH * KEYS];
    int compared = 0;
    open_store();
    for (int n = 0; n < kernel_count * FORMS; n++) {
        const form *f = &forms[n % FORMS];
        const char *kernel = kernels[n / FORMS];
        attn_problem p = cache_problem(f);
        attn_tensors t = tensors_of_store();
        fill(store.k, (size_t)(BATCH * KEYS * row_of(f)), 2);
        fill(store.v, (size_t)(BATCH * KEYS * row_of(f)), 3);
        if (!strstr(kernel, "decode") || !attend(kernel, &p, &t, expected)) continue;
        for (int i = 0; i < 5; i++) {
            p.page_size = sizes[i], p.pages = BATCH * KEYS / sizes[i], p.block_table_cols = KEYS / sizes[i];
            for (int which = 0; which < 2; which++) shuffle(f, sizes[i], which, table);
            put(store.table, table, (size_t)p.pages * 4);
            if (!attend(kernel, &p, &t, o)) continue;
            assert_memory_equal(o, expected, BATCH * o_count(f) * 2);
            compared++;
        }
    }
    close_store();
    printf("paged as contiguous, bit by bit: %d\n", compared);
}

/* Strict: a sequence alone has the bits that it has in company, whatever the number of splits. */
static void test_strict(void **state) {
    (void)state;
    NEED_DEVICE;
    static uint16_t together[BATCH * O_MOST], alone[O_MOST];
    int compared = 0;
    open_store();
    for (int n = 0; n < kernel_count * FORMS; n++) {
        const form *f = &forms[n % FORMS];
        attn_problem p = cache_problem(f);
        attn_tensors t = tensors_of_store();
        p.strict = 1;
        if (!attend(kernels[n / FORMS], &p, &t, together)) continue;
        for (int b = 0; b < BATCH; b++) {
            const size_t rows = (size_t)(b * KEYS * row_of(f)) * 2;
            p.batch = p.kv_batch = 1;
            t.q = (const char *)store.q + (size_t)b * q_count(f) * 2;
            t.k = (const char *)store.k + rows, t.v = (const char *)store.v + rows;
            t.seqused_kv = (const int32_t *)store.lengths + b;
            assert_int_equal(attend(kernels[n / FORMS], &p, &t, alone), 1);
            assert_memory_equal(alone, together + (size_t)b * o_count(f), o_count(f) * 2);
            compared++;
        }
    }
    close_store();
    printf("strict as alone, bit by bit: %d\n", compared);
}

static int is_nan(uint16_t bf16) { return (bf16 & 0x7fff) > 0x7f80; }

/* A schedule of attn_plan_schedule gives the same bits; one of another shape gives NaN, or in checked mode an
 * error. */
static int share_schedule(const char *kernel, const form *f) {
    static uint16_t expected[BATCH * O_MOST], o[BATCH * O_MOST];
    attn_problem p = cache_problem(f);
    attn_tensors t = tensors_of_store();
    attn_plan *plan = plan_of(kernel, &p, 0);
    const size_t bytes = plan ? attn_plan_schedule_size(plan) : 0;
    if (bytes) {
        assert_true(bytes <= 1 << 20);
        assert_int_equal(attend(kernel, &p, &t, expected), 1);
        assert_int_equal(attn_plan_schedule(plan, &t, (char *)store.schedule + 4, NULL), ATTN_INVALID);
        assert_int_equal(attn_plan_schedule(plan, &t, store.schedule, NULL), ATTN_OK);
        t.schedule = store.schedule;
        for (int i = 0; i < 3; i++) {
            assert_int_equal(attend(kernel, &p, &t, o), 1);
            assert_memory_equal(o, expected, BATCH * o_count(f) * 2);
        }
        p.batch = p.kv_batch = BATCH - 1;
        assert_int_equal(attend(kernel, &p, &t, o), 1);
        for (size_t i = 0; i < (BATCH - 1) * o_count(f); i++) assert_true(is_nan(o[i]));
        attn_plan *checked = plan_of(kernel, &p, 1);
        assert_int_equal(attn_run(checked, &t, store.workspace, NULL), ATTN_INVALID);
        assert_non_null(strstr(attn_last_error(), "another shape"));
        attn_plan_destroy(checked);
    }
    attn_plan_destroy(plan);
    return bytes > 0;
}

static void test_schedule(void **state) {
    (void)state;
    NEED_DEVICE;
    int schedules = 0;
    open_store();
    for (int n = 0; n < kernel_count; n++)
        for (int f = 0; f < FORMS; f++) schedules += share_schedule(kernels[n], &forms[f]);
    close_store();
    printf("schedules shared: %d kernels\n", schedules);
}

/* ---- runs behind each other ---- */

enum { QUEUED = 12, VARIANTS = 4 };

/* Each with other lengths, the schedule made in the workspace, or by attn_plan_schedule in the same memory:
 * what a kernel has read before those before it ended must not show. */
static int queue_runs(const char *kernel, const form *f, int64_t page_size, int given) {
    static const int32_t variants[VARIANTS][BATCH] = {
        { KEYS, 333, 700 }, { 5, KEYS, 64 }, { 0, 1, KEYS }, { 700, 0, 333 } };
    static uint16_t expected[VARIANTS][BATCH * O_MOST], o[BATCH * O_MOST];
    const check_memory memory = check_gpu_memory(gpu);
    const size_t bytes = BATCH * o_count(f) * 2;
    attn_problem p = cache_problem(f);
    attn_tensors t = tensors_of_store();
    p.page_size = page_size;
    if (page_size) p.pages = BATCH * KEYS / page_size, p.block_table_cols = KEYS / page_size;
    attn_plan *plan = plan_of(kernel, &p, 0);
    if (!plan || !attn_plan_schedule_size(plan)) {
        attn_plan_destroy(plan);
        return 0;
    }
    char *lengths = make(sizeof variants), *outputs = make(QUEUED * bytes);
    put(lengths, variants, sizeof variants);
    for (int v = 0; v < VARIANTS; v++) {
        t.seqused_kv = (int32_t *)(void *)lengths + v * BATCH;
        assert_int_equal(attend(kernel, &p, &t, expected[v]), 1);
        if (v) assert_memory_not_equal(expected[v], expected[v - 1], bytes);
    }
    assert_true(QUEUED * bytes <= sizeof store.host);
    put(outputs, store.host, QUEUED * bytes);       /* nothing right is there from a call before */
    for (int i = 0; i < QUEUED; i++) {
        t.seqused_kv = (int32_t *)(void *)lengths + i % VARIANTS * BATCH, t.o = outputs + (size_t)i * bytes;
        if (given) assert_int_equal(attn_plan_schedule(plan, &t, store.schedule, NULL), ATTN_OK);
        t.schedule = given ? store.schedule : NULL;
        assert_int_equal(attn_run(plan, &t, store.workspace, NULL), ATTN_OK);
    }
    finish();
    for (int i = 0; i < QUEUED; i++) {
        get(o, outputs + (size_t)i * bytes, bytes);
        assert_memory_equal(o, expected[i % VARIANTS], bytes);
    }
    memory.free(memory.context, lengths);
    memory.free(memory.context, outputs);
    attn_plan_destroy(plan);
    return QUEUED;
}

static void test_queue(void **state) {
    (void)state;
    NEED_DEVICE;
    static int32_t table[BATCH * KEYS];
    int runs = 0;
    open_store();
    for (int n = 0; n < kernel_count * FORMS; n++) {
        const form *f = &forms[n % FORMS];
        for (int which = 0; which < 2; which++) shuffle(f, 64, which, table);
        put(store.table, table, BATCH * KEYS / 64 * 4);
        for (int i = 0; i < 8; i++) runs += queue_runs(kernels[n / FORMS], f, i & 1 ? 64 : 0, i >> 1 & 1);
    }
    close_store();
    printf("queued with other lengths, bit by bit: %d\n", runs);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_splits), cmocka_unit_test(test_mla), cmocka_unit_test(test_empty),
        cmocka_unit_test(test_edges), cmocka_unit_test(test_paged),
        cmocka_unit_test(test_strict), cmocka_unit_test(test_schedule), cmocka_unit_test(test_queue),
    };
    return cmocka_run_group_tests_name("cuda_decode", tests, open_device, close_device);
}
