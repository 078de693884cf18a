/* test_kv_append.c — the cache append: every kernel on every case against the checker, every mutant rejected,
 * the caller's mistakes refused, dropped rows on a device. ATTN_CHECK_BACKEND=cuda runs it on the GPU, and
 * times it; ATTN_APPEND_TESTS=PATTERN takes the tests with such names. */
#include "append_check.h"
#include "gpu.h"
#include <fnmatch.h>
#include "mutants/append_kernel.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

static check_gpu   *gpu;
static check_memory gpu_memory;
static int          on_cuda;

static int open_backend(void **state) {
    const char *backend = getenv("ATTN_CHECK_BACKEND");
    char why[256];
    (void)state;
    on_cuda = backend && !strcmp(backend, "cuda");
    if (!on_cuda) return 0;
    gpu = check_gpu_open(0, why, sizeof why);
    if (!gpu) {
        printf("ATTN_CHECK_BACKEND=cuda: %s\n", why);
        return 1;
    }
    gpu_memory = check_gpu_memory(gpu);
    return 0;
}

static int close_backend(void **state) {
    (void)state;
    if (gpu) check_gpu_close(gpu);
    return 0;
}

/* 1 = right, 0 = refused, -1 = wrong (printed). */
static int check_one(uint64_t number, check_candidate *candidate, int quiet, int *crashed) {
    const append_case c = check_append_case(number, on_cuda ? ATTN_CUDA : ATTN_CPU);
    char text[512], why[512];
    const char *refusal;
    check_append *a;
    const attn_status created = check_append_create(&a, &c, on_cuda ? &gpu_memory : NULL);
    check_append_text(&c, text, sizeof text);
    if (created) printf("%s: %s\n", text, attn_last_error());
    assert_int_equal(created, ATTN_OK);
    const attn_status status = check_append_run(a, candidate, NULL, why, sizeof why, &refusal);
    if (status && !refusal && !quiet) printf("%s, %s: %s\n", candidate->name, text, why);
    if (crashed) *crashed = strstr(why, "crashed") || strstr(why, "touched");
    check_append_destroy(a);
    return refusal ? 0 : status ? -1 : 1;
}

static void kernels_are_right(void **state) {
    (void)state;
    attn_kernel_info info = { .struct_size = sizeof info };
    int kernels = 0;
    for (int n = 0; !attn_kernel_describe(n, &info); n++) {
        if (info.pass != ATTN_KV_APPEND || (info.device == ATTN_CUDA) != on_cuda) continue;
        check_candidate candidate = check_library_kernel(info.name);
        int right = 0, refused = 0, wrong = 0;
        assert_null(info.unavailable);
        for (uint64_t i = 0; i < CHECK_APPEND_CASES && wrong < 5; i++) {
            const int result = check_one(i, &candidate, 0, NULL);
            right += result > 0, refused += !result, wrong += result < 0;
        }
        printf("%s: %d right, %d refused, %d wrong\n", info.name, right, refused, wrong);
        assert_int_equal(wrong, 0);
        assert_int_equal(right, CHECK_APPEND_CASES);
        kernels++;
    }
    assert_true(kernels > 0);
}

/* What the cases must have met. */
static void cases_are_many(void **state) {
    (void)state;
    int half = 0, interleaved = 0, partial = 0, packed = 0, index = 0, leftpad = 0, in_place = 0,
        converted = 0, mla = 0, fixed = 0, offsets = 0, used_q = 0, pages[257] = { 0 };
    for (uint64_t i = 0; i < CHECK_APPEND_CASES; i++) {
        const append_case c = check_append_case(i, ATTN_CPU);
        const attn_problem *p = &c.problem;
        half += p->rotary_dim && !p->rotary_interleaved;
        interleaved += p->rotary_interleaved && p->rotary_dim;
        partial += p->rotary_dim && p->rotary_dim < p->qk_dim, packed += p->packed_new;
        index += p->has_kv_batch_index, leftpad += p->has_leftpad_kv, in_place += c.in_place && p->rotary_dim;
        converted += p->new_dtype && p->new_dtype != p->dtype, mla += p->v_in_k && p->rotary_dim;
        fixed += p->rotary_dim && p->rotary_q_fixed && p->write_q && p->q_len > 1;
        offsets += p->has_rotary_offsets, used_q += p->write_q && p->has_seqused_q;
        pages[p->page_size]++;
    }
    const int counts[] = { half, interleaved, partial, packed, index, leftpad, in_place, converted, mla,
                           fixed, offsets, used_q, pages[1], pages[2], pages[3], pages[16], pages[17],
                           pages[64], pages[256], pages[0] };
    for (size_t n = 0; n < sizeof counts / sizeof *counts; n++) {
        if (counts[n] < 3) printf("property %zu: %d cases\n", n, counts[n]);
        assert_true(counts[n] >= 3);
    }
}

static void mutants_are_rejected(void **state) {
    (void)state;
    if (on_cuda) skip();        /* they run on the host */
    int missed = 0;
    for (int m = 0; m < MUTANTS; m++) {
        append_kernel kernel = { .bug = (mutant)m };
        check_candidate candidate = { mutant_table[m].name, mutant_prepare, mutant_run, mutant_finish,
                                      &kernel };
        int rejected = 0;
        for (uint64_t i = 0; i < CHECK_APPEND_CASES && !rejected; i++)
            rejected = check_one(i, &candidate, m > 0, NULL) < 0;
        if (rejected == !m) {
            printf("mutant %s (%s): %s\n", mutant_table[m].name, mutant_table[m].description,
                   m ? "accepted" : "rejected, but it is right");
            missed++;
        }
    }
    printf("%d wrong appends, %d not recognised\n", MUTANTS - 1, missed);
    assert_int_equal(missed, 0);
}

/* ---- the caller's mistakes ---- */

static attn_problem good_problem(void) {
    attn_problem p = ATTN_PROBLEM_INIT;
    p.pass = ATTN_KV_APPEND;
    p.batch = 2, p.q_heads = 4, p.kv_heads = 2, p.q_len = 3, p.new_len = 3, p.kv_len = 20, p.qk_dim = 16;
    p.has_seqused_kv = 1, p.rotary_dim = 8, p.rotary_rows = 20, p.write_q = 1;
    return p;
}

static void bad_problem(void (*change)(attn_problem *p), const char *names) {
    attn_problem p = good_problem();
    attn_plan *plan;
    change(&p);
    assert_int_equal(attn_plan_create(&plan, &p, NULL), ATTN_INVALID);
    if (!strstr(attn_last_error(), names)) printf("\"%s\" doesn't name %s\n", attn_last_error(), names);
    assert_non_null(strstr(attn_last_error(), names));
}

static void odd(attn_problem *p) { p->rotary_dim = 7; }
static void wide(attn_problem *p) { p->rotary_dim = 18; }
static void far_right(attn_problem *p) { p->rotary_first = 10; }
static void no_rows(attn_problem *p) { p->rotary_rows = 0; }
static void short_stride(attn_problem *p) { p->rotary_stride = 3; }
static void negative(attn_problem *p) { p->new_len = -1; }
static void packed_cache(attn_problem *p) { p->packed_kv = 1, p->kv_total = 40; }
static void bad_type(attn_problem *p) { p->new_dtype = (attn_dtype)9; }
static void bad_flag(attn_problem *p) { p->write_q = 2; }
static void shared_rows(attn_problem *p) { p->k_stride = (attn_stride){ 0, 32, 16 }; }
static void shared_q(attn_problem *p) { p->q_out_stride = (attn_stride){ 192, 64, 8 }; }
static void reserved(attn_problem *p) { p->reserved_append = 1; }
static void overflow(attn_problem *p) { p->k_new_stride = (attn_stride){ INT64_MAX / 2, 64, 16 }; }

static void bad_problems(void **state) {
    (void)state;
    bad_problem(odd, "rotary_dim"), bad_problem(wide, "rotary_dim"), bad_problem(far_right, "rotary_first");
    bad_problem(no_rows, "rotary_rows"), bad_problem(short_stride, "rotary_stride");
    bad_problem(negative, "new_len"), bad_problem(packed_cache, "packed_kv");
    bad_problem(bad_type, "new_dtype"), bad_problem(bad_flag, "write_q");
    bad_problem(shared_rows, "k_stride"), bad_problem(shared_q, "q_out_stride");
    bad_problem(reserved, "reserved_append");
    bad_problem(overflow, "k_new_stride");
    /* one problem for both passes: what belongs to the other is not looked at */
    attn_problem p = good_problem();
    attn_plan *plan;
    p.causal = 1;
    assert_int_equal(attn_plan_create(&plan, &p, NULL), ATTN_OK);
    assert_string_equal(attn_plan_kernel(plan), "kv_append_scalar");
    attn_plan_destroy(plan);
    p.pass = ATTN_FORWARD;
    assert_int_equal(attn_plan_create(&plan, &p, NULL), ATTN_OK);
    attn_plan_destroy(plan);
}

typedef struct tensors {
    float k[2 * 20 * 32], v[2 * 20 * 32], k_new[2 * 3 * 32], v_new[2 * 3 * 32], q[2 * 3 * 64], cosine[80],
        sine[80];
    int32_t used[2], used_out[2], offsets[2], cu[3], table[20];
    attn_tensors t;
} tensors;

static tensors *good_tensors(void) {
    static tensors x;
    memset(&x, 0, sizeof x);
    x.t = (attn_tensors)ATTN_TENSORS_INIT;
    x.t.k = x.k, x.t.v = x.v, x.t.k_new = x.k_new, x.t.v_new = x.v_new, x.t.q = x.t.q_out = x.q;
    x.t.rotary_cos = x.cosine, x.t.rotary_sin = x.sine, x.t.seqused_kv = x.used,
    x.t.seqused_kv_out = x.used_out;
    x.t.rotary_offsets = x.offsets, x.t.cu_seqlens_new = x.cu, x.t.block_table = x.table;
    x.used[0] = 17, x.cu[1] = 3, x.cu[2] = 6;
    return &x;
}

static void expect(const attn_problem *p, tensors *x, const char *names) {
    attn_plan *plan;
    assert_int_equal(attn_plan_create(&plan, p, NULL), ATTN_OK);
    const attn_status status = attn_run(plan, &x->t, NULL, NULL);
    if (names && !strstr(attn_last_error(), names))
        printf("\"%s\" doesn't name %s\n", attn_last_error(), names);
    if (!names && status) printf("%s\n", attn_last_error());
    assert_int_equal(status, names ? ATTN_INVALID : ATTN_OK);
    if (names) assert_non_null(strstr(attn_last_error(), names));
    for (size_t n = 0; names && n < sizeof x->k / sizeof *x->k; n++) assert_true(x->k[n] == 0);
    attn_plan_destroy(plan);
}

static void bad_runs(void **state) {
    (void)state;
    attn_problem p = good_problem();
    tensors *x = good_tensors();
    expect(&p, x, NULL);
    assert_int_equal(x->used_out[0], 20);
    assert_int_equal(x->used_out[1], 3);
#define BAD(change, names) x = good_tensors(), x->k_new[0] = 1, change, expect(&p, x, names)
    BAD(x->used[1] = 18, "seqused_kv[1]");
    BAD(x->used[0] = -1, "seqused_kv[0]");
    BAD(x->used[0] = 21, "seqused_kv[0]");
    BAD(x->t.k_new = NULL, "k_new");
    BAD(x->t.v_new = NULL, "v_new");
    BAD(x->t.k = NULL, "tensors.k");
    BAD(x->t.q_out = NULL, "q_out");
    BAD(x->t.rotary_sin = NULL, "rotary_sin");
    BAD(x->t.seqused_kv = NULL, "seqused_kv");
    BAD(x->t.seqused_kv_out = x->used, "seqused_kv_out");
    BAD(x->t.k_new = (char *)x->k_new + 2, "k_new");
    p.rotary_rows = 19;
    BAD((void)0, "rotary_rows");
    p = good_problem();
    p.q_out_stride = (attn_stride){ 64 * 3, 16, 48 };
    BAD((void)0, "q_out");
    p = good_problem();
    p.has_rotary_offsets = 1;
    BAD(x->offsets[1] = -1, "rotary");
    BAD(x->t.rotary_offsets = NULL, "rotary_offsets");
    p = good_problem();
    p.packed_new = 1, p.new_total = 6;
    BAD(x->cu[1] = 4, "cu_seqlens_new");
    BAD(x->cu[2] = 2, "cu_seqlens_new");
    BAD(x->cu[2] = 7, "cu_seqlens_new");
    p = good_problem();
    p.page_size = 4, p.pages = 10, p.block_table_cols = 5;
    for (int n = 0; n < 20; n++) x->table[n] = n % 10;
    BAD((x->table[4] = 10), "block_table[0][4]");
    BAD((x->table[4] = -1), "block_table[0][4]");
    BAD((x->t.block_table = NULL), "block_table");
    x = good_tensors();
    for (int n = 0; n < 4; n++) x->table[n] = -7;      /* full pages aren't looked at */
    for (int n = 4; n < 20; n++) x->table[n] = n % 10;
    expect(&p, x, NULL);
}

/* ---- garbage on the device: rows are dropped, nothing else is touched ---- */

static void garbage_on_device(void **state) {
    (void)state;
    if (!on_cuda) {
        printf("skipped: a device has no way to report (ATTN_CHECK_BACKEND=cuda runs it)\n");
        skip();
    }
    static const int32_t bad[] = { -1, INT32_MIN, INT32_MAX, 1 << 20 };
    for (uint64_t number = 0; number < 96; number++) {
        const append_case c = check_append_case(number, ATTN_CUDA);
        check_append *a;
        char why[512];
        const char *refusal;
        assert_int_equal(check_append_create(&a, &c, &gpu_memory), ATTN_OK);
        check_candidate candidate = check_library_kernel("kv_append_cuda");
        assert_int_equal(check_append_run(a, &candidate, NULL, why, sizeof why, &refusal), ATTN_OK);
        size_t workspace;
        assert_int_equal(candidate.prepare(&candidate, &a->problem, NULL, &workspace, &refusal), ATTN_OK);
        for (int n = APPEND_OFFSETS; n < APPEND_AREAS; n++) {
            const append_memory *m = &a->areas[n];
            for (size_t i = 0; m->base && i < m->bytes / 4; i++)
                memcpy(m->before + m->offset + 4 * i, &bad[(i + number) % 4], 4);
            if (m->base) assert_int_equal(gpu_memory.upload(gpu, m->base, m->before, m->total), 0);
        }
        assert_int_equal(candidate.run(&candidate, &a->tensors, NULL, check_gpu_stream(gpu)), ATTN_OK);
        assert_int_equal(check_gpu_wait(gpu, why, sizeof why), 0);
        for (int n = 0; n < APPEND_AREAS; n++) {       /* the margins are what they were */
            const append_memory *m = &a->areas[n];
            unsigned char *got = m->base ? malloc(m->total) : NULL;
            if (!m->base) continue;
            assert_int_equal(gpu_memory.download(gpu, got, m->base, m->total), 0);
            assert_memory_equal(got, m->before, m->offset);
            assert_memory_equal(got + m->offset + m->bytes, m->before + m->offset + m->bytes,
                                m->total - m->offset - m->bytes);
            free(got);
        }
        candidate.finish(&candidate);
        check_append_destroy(a);
    }
}

/* ---- speed on the device ---- */

typedef struct timed { attn_plan *plan; const attn_tensors *t; } timed;

static int run_timed(void *arg, void *stream) {
    const timed *x = arg;
    return attn_run(x->plan, x->t, NULL, stream) != ATTN_OK;
}

static void time_one(const char *name, attn_problem p) {
    p.pass = ATTN_KV_APPEND;
    p.device = ATTN_CUDA;
    p.dtype = ATTN_BF16;
    p.has_seqused_kv = 1;
    const append_case c = { .problem = p };
    check_append *a;
    char why[512];
    const char *refusal;
    check_candidate candidate = check_library_kernel("kv_append_cuda");
    assert_int_equal(check_append_create(&a, &c, &gpu_memory), ATTN_OK);
    const attn_status status = check_append_run(a, &candidate, NULL, why, sizeof why, &refusal);
    if (status) printf("%s: %s\n", name, why);
    assert_int_equal(status, ATTN_OK);
    timed x = { NULL, &a->tensors };
    assert_int_equal(attn_plan_create(&x.plan, &a->problem, NULL), ATTN_OK);
    (void)check_gpu_time(gpu, run_timed, &x, 5, 1);
    const double seconds = check_gpu_time(gpu, run_timed, &x, 20, 1) / 20;
    printf("kv_append_cuda, bf16, %s: %.1f us, %.0f GB/s\n", name, 1e6 * seconds,
           check_append_traffic(a) / seconds * 1e-9);
    attn_plan_destroy(x.plan);
    check_append_destroy(a);
}

static void speed_on_device(void **state) {
    (void)state;
    if (!on_cuda) skip();
    attn_problem p = { .struct_size = sizeof p, .batch = 128, .q_heads = 32, .kv_heads = 8, .q_len = 1,
                       .new_len = 1, .kv_len = 64, .qk_dim = 128, .rotary_dim = 128, .rotary_rows = 256,
                       .write_q = 1, .page_size = 16, .block_table_cols = 4, .pages = 512 };
    time_one("1 row of 128 sequences, 8 heads d128, rotary K and Q, pages of 16", p);
    p.batch = 1, p.q_len = p.new_len = p.kv_len = 4096, p.page_size = 64, p.block_table_cols = p.pages = 64;
    p.rotary_rows = 4352;
    time_one("4096 rows, 8 heads d128, rotary K and Q, pages of 64", p);
    p.rotary_dim = 0, p.write_q = 0;
    time_one("4096 rows, 8 heads d128, copy, pages of 64", p);
}

static void not_asked_for(void **state) {
    (void)state;
    skip();
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *pattern = getenv("ATTN_APPEND_TESTS");
    struct CMUnitTest tests[] = {
        cmocka_unit_test(cases_are_many), cmocka_unit_test(kernels_are_right),
        cmocka_unit_test(mutants_are_rejected), cmocka_unit_test(bad_problems), cmocka_unit_test(bad_runs),
        cmocka_unit_test(garbage_on_device), cmocka_unit_test(speed_on_device),
    };
    static const struct CMUnitTest left_out = cmocka_unit_test(not_asked_for);
    for (size_t n = 0; pattern && n < sizeof tests / sizeof *tests; n++)
        if (fnmatch(pattern, tests[n].name, 0)) tests[n] = left_out;
    return cmocka_run_group_tests_name("kv_append", tests, open_backend, close_backend);
}
