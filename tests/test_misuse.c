/* test_misuse.c — every field with every kind of bad value: the right status, a message that names the field,
 * nothing computed. The first tables are lists of fields crossed with bad values; the last are single
 * mistakes. */
#include "small_case.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>

static int cases;

/* A valid problem in which every optional tensor has a place. */
static attn_problem base(void) {
    attn_problem p = small_problem(2, 4, 2, 3, 5, 8);
    p.v_dim = 8;
    p.bias_dtype = ATTN_F32;
    p.has_mask = 1;
    return p;
}

/* All ways in agree that the problem is invalid, and say which field is to blame; nothing is written. */
static void expect_invalid(const attn_problem *bad, const char *field, const char *what) {
    char text[1024];
    attn_plan *plan = (attn_plan *)&cases;
    attn_problem copy = *bad;
    small_case good = small_case_create(base());
    cases++;
    if (attn_plan_create(&plan, bad, NULL) != ATTN_INVALID) fail_msg("%s: accepted", what);
    assert_null(plan);
    if (!strstr(attn_last_error(), field))
        fail_msg("%s: \"%s\" doesn't name %s", what, attn_last_error(), field);
    assert_int_equal(attn_problem_resolve(&copy), ATTN_INVALID);
    assert_memory_equal(&copy, bad, sizeof copy);
    assert_true(attn_explain(bad, NULL, text, sizeof text) > 0);
    if (!strstr(text, field)) fail_msg("%s: explain \"%s\" doesn't name %s", what, text, field);
    assert_int_equal(attn_attend(bad, &good.tensors, NULL), ATTN_INVALID);
    assert_true(small_case_untouched(&good));
    small_case_destroy(&good);
}

#define FIELD(name) { #name, offsetof(attn_problem, name) }
typedef struct { const char *name; size_t offset; } field_place;

static void bad_int64(const field_place *f, int64_t value) {
    attn_problem p = base();
    char what[128];
    memcpy((char *)&p + f->offset, &value, sizeof value);
    (void)snprintf(what, sizeof what, "%s = %lld", f->name, (long long)value);
    expect_invalid(&p, f->name, what);
}

static void bad_int32(const field_place *f, int32_t value) {
    attn_problem p = base();
    char what[128];
    memcpy((char *)&p + f->offset, &value, sizeof value);
    (void)snprintf(what, sizeof what, "%s = %d", f->name, (int)value);
    expect_invalid(&p, f->name, what);
}

static void sizes(void **state) {
    (void)state;
    static const field_place fields[] = {
        FIELD(batch), FIELD(q_heads), FIELD(kv_heads), FIELD(q_len), FIELD(kv_len), FIELD(qk_dim),
        FIELD(v_dim), FIELD(q_total), FIELD(kv_total), FIELD(kv_batch), FIELD(page_size), FIELD(pages),
        FIELD(block_table_cols), FIELD(block_table_stride),
    };
    static const int64_t values[] = { -1, INT64_MIN, INT64_MIN + 1, INT64_MAX, ((int64_t)1 << 40) + 1 };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) bad_int64(&fields[i], values[v]);
    bad_int64(&fields[1], 0);      /* q_heads */
    bad_int64(&fields[5], 0);      /* qk_dim */
    bad_int64(&fields[5], 1025);
    bad_int64(&fields[6], 1025);
}

static void strides(void **state) {
    (void)state;
    static const struct { field_place f; const char *name; } fields[] = {
#define STRIDE(tensor, dim) { FIELD(tensor.dim), #tensor }
        STRIDE(q_stride, batch), STRIDE(q_stride, seq), STRIDE(q_stride, head), STRIDE(k_stride, batch),
        STRIDE(k_stride, seq), STRIDE(k_stride, head), STRIDE(v_stride, batch), STRIDE(v_stride, seq),
        STRIDE(v_stride, head), STRIDE(o_stride, batch), STRIDE(o_stride, seq), STRIDE(o_stride, head),
        STRIDE(lse_stride, batch), STRIDE(lse_stride, seq), STRIDE(lse_stride, head),
        STRIDE(bias_stride, batch), STRIDE(bias_stride, head), STRIDE(bias_stride, q),
        STRIDE(bias_stride, kv), STRIDE(mask_stride, batch), STRIDE(mask_stride, head),
        STRIDE(mask_stride, q), STRIDE(mask_stride, kv),
    };
    static const int64_t values[] = { -1, INT64_MIN, INT64_MAX, INT64_MAX / 3 };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            const field_place f = { fields[i].name, fields[i].f.offset };
            bad_int64(&f, values[v]);
        }
}

static void flags_and_enums(void **state) {
    (void)state;
    static const field_place flags[] = {
        FIELD(kv_empty), FIELD(v_in_k), FIELD(causal), FIELD(top_left), FIELD(window), FIELD(has_mask),
        FIELD(has_sinks), FIELD(packed_q), FIELD(packed_kv), FIELD(has_seqused_q), FIELD(has_seqused_kv),
        FIELD(has_leftpad_kv), FIELD(has_kv_batch_index), FIELD(strict), FIELD(reserved),
        FIELD(pass), FIELD(device), FIELD(dtype), FIELD(o_dtype), FIELD(bias_dtype), FIELD(alibi),
    };
    static const int32_t values[] = { -1, 99, INT32_MIN, INT32_MAX };
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) bad_int32(&flags[i], values[v]);
}

static void floats(void **state) {
    (void)state;
    static const float scales[] = { NAN, INFINITY, -INFINITY },
                       softcaps[] = { NAN, INFINITY, -INFINITY, -1, -1e-30f };
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
        attn_problem p = base();
        p.scale = scales[i];
        expect_invalid(&p, "scale", "scale");
    }
    for (size_t i = 0; i < sizeof softcaps / sizeof *softcaps; i++) {
        attn_problem p = base();
        p.softcap = softcaps[i];
        expect_invalid(&p, "softcap", "softcap");
    }
}

/* One row: the statements that spoil the base problem. */
#define MISTAKE(field, ...) \
    do { attn_problem p = base(); __VA_ARGS__; expect_invalid(&p, field, #__VA_ARGS__); } while (0)

static void contradictions(void **state) {
    (void)state;
    const int64_t huge = (int64_t)1 << 40;
    MISTAKE("q_heads", p.q_heads = 7);
    MISTAKE("q_heads", p.kv_heads = 3);
    MISTAKE("q_heads", p.kv_heads = 8);
    MISTAKE("kv_empty", p.kv_empty = 1);
    MISTAKE("v_dim", p.v_in_k = 1; p.v_dim = 9);
    MISTAKE("o_dtype", p.o_dtype = ATTN_BF16);
    MISTAKE("o_dtype", p.dtype = ATTN_BF16; p.o_dtype = ATTN_F16);
    MISTAKE("packed_kv", p.page_size = 4; p.block_table_cols = 2; p.packed_kv = 1);
    MISTAKE("has_kv_batch_index", p.page_size = 4; p.block_table_cols = 2; p.has_kv_batch_index = 1);
    MISTAKE("has_leftpad_kv", p.page_size = 4; p.block_table_cols = 2; p.has_leftpad_kv = 1);
    MISTAKE("packed_kv", p.packed_kv = 1; p.has_kv_batch_index = 1);
    MISTAKE("packed_kv", p.packed_kv = 1; p.has_leftpad_kv = 1);
    MISTAKE("kv_batch", p.kv_batch = 3);
    MISTAKE("block_table_cols", p.page_size = 4; p.block_table_cols = 1);
    MISTAKE("block_table_cols", p.page_size = 1);
    MISTAKE("block_table_stride", p.page_size = 4; p.block_table_cols = 2; p.block_table_stride = 1);
    MISTAKE("window_left", p.window = 1; p.window_left = -2);
    MISTAKE("window_left", p.window = 1; p.window_left = INT64_MAX);
    MISTAKE("window_right", p.window = 1; p.window_right = INT64_MIN);
    MISTAKE("pages", p.page_size = 4; p.block_table_cols = 2; p.pages = ((int64_t)1 << 31) + 1);
    MISTAKE("q_len", p.q_len = huge; p.q_heads = huge);
    MISTAKE("q_len", p.packed_q = 1; p.q_len = huge; p.q_heads = huge; p.kv_heads = 1);
    MISTAKE("q_total", p.packed_q = 1; p.q_total = huge; p.q_heads = huge; p.q_len = 1);
    MISTAKE("kv_len", p.kv_len = huge; p.q_heads = p.kv_heads = huge / 4; p.q_len = 1);
    MISTAKE("batch", p.packed_q = 1; p.batch = huge; p.q_heads = huge / 2; p.q_len = 8);
    MISTAKE("q_len * kv_len", p.q_len = p.kv_len = huge / 64);
    MISTAKE("o_stride", p.o_stride.head = 8; p.o_stride.seq = 32);                     /* batch 0 */
    MISTAKE("o_stride", p.o_stride.head = 8; p.o_stride.batch = 96);                   /* seq 0 */
    MISTAKE("o_stride", p.o_stride = (attn_stride){ 96, 32, 7 });                      /* overlap by one */
    MISTAKE("o_stride", p.o_stride = (attn_stride){ 1, 1, 1 });
    MISTAKE("o_stride", p.o_stride = (attn_stride){ 95, 32, 8 });
    MISTAKE("o_stride", p.o_stride = (attn_stride){ 96, 31, 8 });
    MISTAKE("lse_stride", p.lse_stride.head = 3; p.lse_stride.seq = 1);
    MISTAKE("lse_stride", p.lse_stride.batch = 12; p.lse_stride.head = 2; p.lse_stride.seq = 1);
    MISTAKE("struct_size", p.struct_size = 0);
    MISTAKE("struct_size", p.struct_size = 7);
    MISTAKE("struct_size", p.struct_size = 4097);
    MISTAKE("struct_size", p.struct_size = UINT32_MAX);
}

static void null_arguments(void **state) {
    (void)state;
    attn_problem p = base();
    attn_plan *plan = NULL;
    attn_tensors t = ATTN_TENSORS_INIT;
    char text[256];
    assert_int_equal(attn_plan_create(NULL, &p, NULL), ATTN_INVALID);
    assert_non_null(strstr(attn_last_error(), "plan"));
    assert_int_equal(attn_plan_create(&plan, NULL, NULL), ATTN_INVALID);
    assert_non_null(strstr(attn_last_error(), "problem"));
    assert_int_equal(attn_problem_resolve(NULL), ATTN_INVALID);
    assert_int_equal(attn_run(NULL, &t, NULL, NULL), ATTN_INVALID);
    assert_int_equal(attn_attend(NULL, &t, NULL), ATTN_INVALID);
    assert_true(attn_explain(NULL, NULL, text, sizeof text) > 0);
    assert_int_equal(attn_kernel_describe(0, NULL), ATTN_INVALID);
    attn_plan_destroy(NULL);
    p = small_problem(1, 1, 1, 1, 1, 1);
    assert_int_equal(attn_plan_create(&plan, &p, NULL), ATTN_OK);
    assert_int_equal(attn_run(plan, NULL, NULL, NULL), ATTN_INVALID);
    assert_non_null(strstr(attn_last_error(), "tensors"));
    attn_plan_destroy(plan);
}

static void options(void **state) {
    (void)state;
    const attn_problem p = small_problem(1, 1, 1, 1, 1, 1);
#define BAD_OPTION(status, field, ...) do { \
        attn_options o = ATTN_OPTIONS_INIT; attn_plan *plan; __VA_ARGS__; cases++; \
        if (attn_plan_create(&plan, &p, &o) != (status)) fail_msg("%s: wrong status", #__VA_ARGS__); \
        if (!strstr(attn_last_error(), field)) fail_msg("%s: \"%s\"", #__VA_ARGS__, attn_last_error()); \
    } while (0)
    BAD_OPTION(ATTN_INVALID, "options.threads", o.threads = -1);
    BAD_OPTION(ATTN_INVALID, "options.threads", o.threads = INT32_MIN);
    BAD_OPTION(ATTN_INVALID, "options.threads", o.threads = 1025);
    BAD_OPTION(ATTN_INVALID, "options.threads", o.threads = INT32_MAX);
    BAD_OPTION(ATTN_INVALID, "options.splits", o.splits = -1);
    BAD_OPTION(ATTN_INVALID, "options.splits", o.splits = INT32_MIN);
    BAD_OPTION(ATTN_INVALID, "options.cuda_device", o.cuda_device = -1);
    BAD_OPTION(ATTN_INVALID, "options.checked", o.checked = 2);
    BAD_OPTION(ATTN_INVALID, "options.checked", o.checked = -1);
    BAD_OPTION(ATTN_INVALID, "options.reserved", o.reserved = 1);
    BAD_OPTION(ATTN_INVALID, "options.kernel", o.kernel = "no_such_kernel");
    BAD_OPTION(ATTN_INVALID, "options.kernel", o.kernel = "");
    BAD_OPTION(ATTN_INVALID, "options.struct_size", o.struct_size = 0);
    BAD_OPTION(ATTN_INVALID, "options.struct_size", o.struct_size = 5000);
}

/* ---- tensors ---- */

enum { ROWS = 2, PAGES = 4 };
typedef struct {
    small_case c;
    float bias[2 * 4 * 3 * 5], sinks[4], slopes[4];
    uint8_t mask[2 * 4 * 3 * 5];
    int32_t cu_q[ROWS + 1], cu_kv[ROWS + 1], used_q[ROWS], used_kv[ROWS], leftpad[ROWS], index[ROWS];
    int32_t table[ROWS * 2];
} full_case;

static full_case full_case_create(attn_problem p) {
    full_case f = { .c = small_case_create(base()), .cu_q = { 0, 2, 5 }, .cu_kv = { 0, 5, 10 },
                    .used_q = { 3, 2 }, .used_kv = { 5, 0 }, .leftpad = { 0, 2 }, .index = { 1, 0 },
                    .table = { 0, 3, 1, 2 } };
    memset(f.mask, 1, sizeof f.mask);
    f.c.problem = p;
    return f;
}

static void attach(full_case *f) {
    attn_tensors *t = &f->c.tensors;
    t->bias = f->bias;
    t->mask = f->mask;
    t->sinks = f->sinks;
    t->alibi_slopes = f->slopes;
    t->cu_seqlens_q = f->cu_q;
    t->cu_seqlens_kv = f->cu_kv;
    t->seqused_q = f->used_q;
    t->seqused_kv = f->used_kv;
    t->leftpad_kv = f->leftpad;
    t->kv_batch_index = f->index;
    t->block_table = f->table;
}

/* Problem families that between them read every tensor. */
static attn_problem padded(void) {
    attn_problem p = base();
    p.has_sinks = 1;
    p.alibi = ATTN_ALIBI_PER_HEAD;
    p.has_seqused_q = p.has_seqused_kv = p.has_leftpad_kv = p.has_kv_batch_index = 1;
    p.kv_batch = 2;
    return p;
}

static attn_problem packed(void) {
    attn_problem p = base();
    p.packed_q = p.packed_kv = 1;
    p.q_total = 5;
    p.kv_total = 10;
    return p;
}

static attn_problem paged(void) {
    attn_problem p = base();
    p.page_size = 3;
    p.pages = PAGES;
    p.block_table_cols = 2;
    p.has_seqused_kv = 1;
    return p;
}

static void expect_run(full_case *f, attn_status expected, const char *field, const char *what) {
    attn_plan *plan;
    cases++;
    if (attn_plan_create(&plan, &f->c.problem, NULL)) fail_msg("%s: %s", what, attn_last_error());
    void *workspace = small_workspace(plan);
    small_case_poison(&f->c);
    const attn_status status = attn_run(plan, &f->c.tensors, workspace, NULL);
    if (status != expected) fail_msg("%s: status %d (%s)", what, (int)status, attn_last_error());
    if (status && !strstr(attn_last_error(), field))
        fail_msg("%s: \"%s\" doesn't name %s", what, attn_last_error(), field);
    if (status) assert_true(small_case_untouched(&f->c));
    free(workspace);
    attn_plan_destroy(plan);
}

#define TENSOR_MISTAKE(family, field, ...) do { \
        full_case f = full_case_create(family()); \
        attach(&f); \
        attn_tensors *t = &f.c.tensors; \
        __VA_ARGS__; \
        (void)t; \
        expect_run(&f, ATTN_INVALID, field, #__VA_ARGS__); \
        small_case_destroy(&f.c); \
    } while (0)
#define OFF_BY(pointer, bytes) pointer = (void *)((uintptr_t)(pointer) + (bytes))

static void good_tensors(void **state) {
    (void)state;
    attn_problem (*const families[])(void) = { base, padded, packed, paged };
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        full_case f = full_case_create(families[i]());
        attach(&f);
        expect_run(&f, ATTN_OK, "", "a valid case");
        f.c.tensors.lse = NULL;
        attn_plan *plan;
        assert_int_equal(attn_plan_create(&plan, &f.c.problem, NULL), ATTN_OK);
        void *workspace = small_workspace(plan);
        assert_int_equal(attn_run(plan, &f.c.tensors, workspace, NULL), ATTN_OK);
        free(workspace);
        attn_plan_destroy(plan);
        small_case_destroy(&f.c);
    }
}

static void missing_tensors(void **state) {
    (void)state;
    TENSOR_MISTAKE(base, "tensors.q ", t->q = NULL);
    TENSOR_MISTAKE(base, "tensors.k ", t->k = NULL);
    TENSOR_MISTAKE(base, "tensors.v ", t->v = NULL);
    TENSOR_MISTAKE(base, "tensors.bias", t->bias = NULL);
    TENSOR_MISTAKE(base, "tensors.mask", t->mask = NULL);
    TENSOR_MISTAKE(padded, "tensors.sinks", t->sinks = NULL);
    TENSOR_MISTAKE(padded, "tensors.alibi_slopes", t->alibi_slopes = NULL);
    TENSOR_MISTAKE(padded, "tensors.seqused_q", t->seqused_q = NULL);
    TENSOR_MISTAKE(padded, "tensors.seqused_kv", t->seqused_kv = NULL);
    TENSOR_MISTAKE(padded, "tensors.leftpad_kv", t->leftpad_kv = NULL);
    TENSOR_MISTAKE(padded, "tensors.kv_batch_index", t->kv_batch_index = NULL);
    TENSOR_MISTAKE(packed, "tensors.cu_seqlens_q", t->cu_seqlens_q = NULL);
    TENSOR_MISTAKE(packed, "tensors.cu_seqlens_kv", t->cu_seqlens_kv = NULL);
    TENSOR_MISTAKE(paged, "tensors.block_table", t->block_table = NULL);
    TENSOR_MISTAKE(base, "tensors.struct_size", t->struct_size = 0);
    TENSOR_MISTAKE(base, "tensors.struct_size", t->struct_size = 4100);
    TENSOR_MISTAKE(base, "tensors.reserved", t->reserved = 1);
}

static void misaligned_tensors(void **state) {
    (void)state;
    TENSOR_MISTAKE(base, "tensors.q ", OFF_BY(t->q, 2));
    TENSOR_MISTAKE(base, "tensors.k ", OFF_BY(t->k, 1));
    TENSOR_MISTAKE(base, "tensors.v ", OFF_BY(t->v, 3));
    TENSOR_MISTAKE(base, "tensors.bias", OFF_BY(t->bias, 2));
    TENSOR_MISTAKE(padded, "tensors.sinks", OFF_BY(t->sinks, 1));
    TENSOR_MISTAKE(padded, "tensors.alibi_slopes", OFF_BY(t->alibi_slopes, 2));
    TENSOR_MISTAKE(padded, "tensors.seqused_q", OFF_BY(t->seqused_q, 1));
    TENSOR_MISTAKE(padded, "tensors.seqused_kv", OFF_BY(t->seqused_kv, 2));
    TENSOR_MISTAKE(padded, "tensors.leftpad_kv", OFF_BY(t->leftpad_kv, 3));
    TENSOR_MISTAKE(padded, "tensors.kv_batch_index", OFF_BY(t->kv_batch_index, 1));
    TENSOR_MISTAKE(packed, "tensors.cu_seqlens_q", OFF_BY(t->cu_seqlens_q, 2));
    TENSOR_MISTAKE(packed, "tensors.cu_seqlens_kv", OFF_BY(t->cu_seqlens_kv, 2));
    TENSOR_MISTAKE(paged, "tensors.block_table", OFF_BY(t->block_table, 2));
}

static void bad_outputs(void **state) {
    (void)state;
    full_case f = full_case_create(base());
    attach(&f);
    attn_plan *plan;
    assert_int_equal(attn_plan_create(&plan, &f.c.problem, NULL), ATTN_OK);
    void *workspace = small_workspace(plan);
    attn_tensors t = f.c.tensors;
    t.o = NULL;
    assert_int_equal(attn_run(plan, &t, workspace, NULL), ATTN_INVALID);
    assert_non_null(strstr(attn_last_error(), "tensors.o "));
    t = f.c.tensors;
    OFF_BY(t.o, 1);
    assert_int_equal(attn_run(plan, &t, workspace, NULL), ATTN_INVALID);
    assert_non_null(strstr(attn_last_error(), "tensors.o "));
    t = f.c.tensors;
    OFF_BY(t.lse, 2);
    assert_int_equal(attn_run(plan, &t, workspace, NULL), ATTN_INVALID);
    assert_non_null(strstr(attn_last_error(), "tensors.lse"));
    assert_true(small_case_untouched(&f.c));
    free(workspace);
    attn_plan_destroy(plan);
    small_case_destroy(&f.c);
}

static void bad_lengths(void **state) {
    (void)state;
    TENSOR_MISTAKE(packed, "cu_seqlens_q[0]", f.cu_q[0] = -1);
    TENSOR_MISTAKE(packed, "cu_seqlens_q[0]", f.cu_q[0] = 1);
    TENSOR_MISTAKE(packed, "cu_seqlens_q[2]", f.cu_q[2] = 6);
    TENSOR_MISTAKE(packed, "cu_seqlens_q[2]", f.cu_q[1] = 3; f.cu_q[2] = 2);
    TENSOR_MISTAKE(packed, "cu_seqlens_q[1]", f.cu_q[1] = 4);                     /* longer than q_len */
    TENSOR_MISTAKE(packed, "cu_seqlens_q[1]", f.cu_q[1] = INT32_MAX);
    TENSOR_MISTAKE(packed, "cu_seqlens_q[2]", f.cu_q[2] = INT32_MIN);
    TENSOR_MISTAKE(packed, "cu_seqlens_kv[0]", f.cu_kv[0] = 2);
    TENSOR_MISTAKE(packed, "cu_seqlens_kv[1]", f.cu_kv[1] = 6);
    TENSOR_MISTAKE(packed, "cu_seqlens_kv[2]", f.cu_kv[2] = 11);
    TENSOR_MISTAKE(packed, "cu_seqlens_kv[2]", f.cu_kv[2] = 4);
    TENSOR_MISTAKE(padded, "seqused_q[0]", f.used_q[0] = 4);
    TENSOR_MISTAKE(padded, "seqused_q[1]", f.used_q[1] = -1);
    TENSOR_MISTAKE(padded, "seqused_q[1]", f.used_q[1] = INT32_MIN);
    TENSOR_MISTAKE(padded, "seqused_kv[1]", f.used_kv[1] = 6);
    TENSOR_MISTAKE(padded, "seqused_kv[0]", f.used_kv[0] = -5);
    TENSOR_MISTAKE(padded, "leftpad_kv[0]", f.leftpad[0] = 6);
    TENSOR_MISTAKE(padded, "leftpad_kv[1]", f.leftpad[1] = -1);
    TENSOR_MISTAKE(padded, "kv_batch_index[0]", f.index[0] = 2);
    TENSOR_MISTAKE(padded, "kv_batch_index[1]", f.index[1] = -1);
    TENSOR_MISTAKE(paged, "block_table[0][0]", f.table[0] = -1);
    TENSOR_MISTAKE(paged, "block_table[0][1]", f.table[1] = PAGES);
    TENSOR_MISTAKE(paged, "block_table[1][0]", f.used_kv[1] = 1; f.table[2] = INT32_MAX);
    TENSOR_MISTAKE(paged, "block_table[1][1]", f.used_kv[1] = 4; f.table[3] = INT32_MIN);
}

/* Entries past a sequence's last page may hold anything. */
static void unused_table_entries(void **state) {
    (void)state;
    full_case f = full_case_create(paged());
    attach(&f);
    f.used_kv[0] = 3;
    f.table[1] = f.table[2] = f.table[3] = INT32_MAX;
    expect_run(&f, ATTN_OK, "", "unused table entries");
    small_case_destroy(&f.c);
}

static void bad_workspace(void **state) {
    (void)state;
    full_case f = full_case_create(base());
    attach(&f);
    attn_options o = ATTN_OPTIONS_INIT;
    o.kernel = "reference_fwd_scalar";     /* one that needs a workspace */
    attn_plan *plan;
    assert_int_equal(attn_plan_create(&plan, &f.c.problem, &o), ATTN_OK);
    assert_true(attn_plan_workspace(plan) > 0);
    char *workspace = aligned_alloc(64, (attn_plan_workspace(plan) + 127) / 64 * 64);
    assert_int_equal(attn_run(plan, &f.c.tensors, NULL, NULL), ATTN_INVALID);
    assert_non_null(strstr(attn_last_error(), "workspace"));
    for (size_t off = 1; off < 64; off *= 2)
        assert_int_equal(attn_run(plan, &f.c.tensors, workspace + off, NULL), ATTN_INVALID);
    assert_non_null(strstr(attn_last_error(), "workspace"));
    assert_true(small_case_untouched(&f.c));
    assert_int_equal(attn_run(plan, &f.c.tensors, workspace, NULL), ATTN_OK);
    free(workspace);
    attn_plan_destroy(plan);
    small_case_destroy(&f.c);
}

static void reserved_passes(void **state) {
    (void)state;
    static const attn_pass passes[] = { ATTN_BACKWARD, ATTN_MERGE };
    for (size_t i = 0; i < sizeof passes / sizeof *passes; i++) {
        attn_problem p = small_problem(1, 1, 1, 1, 1, 1);
        attn_plan *plan;
        p.pass = passes[i];
        assert_int_equal(attn_plan_create(&plan, &p, NULL), ATTN_UNSUPPORTED);
        assert_non_null(strstr(attn_last_error(), "ATTN_FORWARD"));
        assert_null(plan);
    }
}

static void enough_cases(void **state) {
    (void)state;
    printf("%d cases\n", cases);
    assert_true(cases >= 300);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes), cmocka_unit_test(strides), cmocka_unit_test(flags_and_enums),
        cmocka_unit_test(floats), cmocka_unit_test(contradictions), cmocka_unit_test(null_arguments),
        cmocka_unit_test(options), cmocka_unit_test(good_tensors), cmocka_unit_test(missing_tensors),
        cmocka_unit_test(misaligned_tensors), cmocka_unit_test(bad_outputs), cmocka_unit_test(bad_lengths),
        cmocka_unit_test(unused_table_entries), cmocka_unit_test(bad_workspace),
        cmocka_unit_test(reserved_passes), cmocka_unit_test(enough_cases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
