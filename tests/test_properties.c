/* test_properties.c — what must hold whatever the numbers are: partial results merge, pages and packing don't
 * show, masks that say the same give the same. For every CPU kernel that takes the problem; no oracle but its
 * bound. */
#include "world.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

enum { MAX_KERNELS = 64 };

static const char *kernels[MAX_KERNELS];
static int kernel_count, failures;
static const char *property;
static int64_t held, refused;

static const attn_dtype dtypes[] = { ATTN_F32, ATTN_F16, ATTN_BF16 };

/* Sizes that reach both regimes: tiles of queries, and few queries over long keys. */
static const struct { int64_t q_len, kv_len, dim, v_dim, group; } sizes[] = {
    { 37, 70, 64, 64, 2 }, { 1, 300, 64, 64, 4 }, { 64, 64, 40, 24, 1 }, { 3, 200, 128, 128, 8 }, { 130, 150,
      32, 32, 1 }
};
enum { SIZES = sizeof sizes / sizeof *sizes };

static attn_problem sized(int n, attn_dtype dtype) {
    attn_problem p = ATTN_PROBLEM_INIT;
    p.batch = 2;
    p.kv_heads = 2;
    p.q_heads = 2 * sizes[n].group;
    p.q_len = sizes[n].q_len;
    p.kv_len = sizes[n].kv_len;
    p.qk_dim = sizes[n].dim;
    p.v_dim = sizes[n].v_dim;
    p.dtype = dtype;
    return p;
}

static void verdict(const char *kernel, const world *w, int ok) {
    held += ok;
    if (ok) return;
    failures++;
    printf("FAIL %s: %s, q_len %lld kv_len %lld dims %lld %lld heads %lld/%lld dtype %d\n", property, kernel,
           (long long)w->p.q_len, (long long)w->p.kv_len, (long long)w->p.qk_dim, (long long)w->p.v_dim,
           (long long)w->p.q_heads, (long long)w->p.kv_heads, (int)w->p.dtype);
}

/* Run both; 1 if there is something to compare. */
static int both(world *a, world *b, const char *kernel) {
    const int x = world_run(a, kernel, NULL), y = world_run(b, kernel, NULL);
    if (x < 0 || y < 0) failures++;
    refused += x == 0 || y == 0;
    return x > 0 && y > 0;
}

static void compare_bits(world *a, world *b) {
    for (int k = 0; k < kernel_count; k++)
        if (both(a, b, kernels[k])) verdict(kernels[k], a, same_bits(a, b));
}

static void compare_within(world *a, world *b, double shift) {
    if (!a->bound) world_bounds(a);
    for (int k = 0; k < kernel_count; k++)
        if (both(a, b, kernels[k])) verdict(kernels[k], a, within(a, b, shift));
}

/* One base world for every size and dtype. */
static void each_world(void (*test)(world *), int strict, int causal) {
    for (int n = 0; n < SIZES; n++)
        for (int d = 0; d < 3; d++) {
            attn_problem p = sized(n, dtypes[d]);
            p.strict = strict;
            p.causal = causal;
            world w = world_create(p, (uint64_t)(n * 3 + d));
            test(&w);
            world_destroy(&w);
        }
}

/* Reads w's row (b, j) of a [batch, kv_len, heads * dim] tensor into row `to` of another. */
static void copy_row(void *to, int64_t to_row, const void *from, int64_t from_row, int64_t row_bytes) {
    memcpy((unsigned char *)to + to_row * row_bytes, (const unsigned char *)from + from_row * row_bytes,
           (size_t)row_bytes);
}

static int64_t k_row_bytes(const attn_problem *p) {
    return p->kv_heads * p->qk_dim * check_element_size(p->dtype);
}
static int64_t v_row_bytes(const attn_problem *p) {
    return p->kv_heads * p->v_dim * check_element_size(p->dtype);
}

/* K and V with row (b, j) taken from row (b, source[j]); kv_len may grow. */
static world rearranged(const world *w, const int64_t *source, int64_t kv_len) {
    world x = *w;
    attn_problem p = w->p;
    p.kv_len = kv_len;
    p.k_stride = p.v_stride = (attn_stride){ 0 };
    attn_problem_resolve(&p);
    x.p = p;
    x.k = calloc((size_t)(p.batch * kv_len + 1), (size_t)k_row_bytes(&p));
    x.v = calloc((size_t)(p.batch * kv_len + 1), (size_t)v_row_bytes(&p));
    for (int64_t b = 0; b < p.batch; b++)
        for (int64_t j = 0; j < kv_len; j++) {
            copy_row(x.k, b * kv_len + j, w->k, b * w->p.kv_len + source[j], k_row_bytes(&p));
            copy_row(x.v, b * kv_len + j, w->v, b * w->p.kv_len + source[j], v_row_bytes(&p));
        }
    x.t.k = x.k;
    x.t.v = x.v;
    give_outputs(&x);
    return x;
}

static void rearranged_destroy(world *x) {
    free(x->k);
    free(x->v);
    variant_destroy(x);
}

/* ---- keys ---- */

static void key_permutation(world *w) {
    int64_t source[512];
    for (int64_t j = 0; j < w->p.kv_len; j++) source[j] = (j * 7 + 3) % w->p.kv_len;
    if (w->p.kv_len % 7 == 0)
        for (int64_t j = 0; j < w->p.kv_len; j++) source[j] = w->p.kv_len - 1 - j;
    world x = rearranged(w, source, w->p.kv_len);
    compare_within(w, &x, 0);
    rearranged_destroy(&x);
}

static void duplicate_keys(world *w) {
    int64_t source[1024];
    for (int64_t j = 0; j < 2 * w->p.kv_len; j++) source[j] = j % w->p.kv_len;
    world x = rearranged(w, source, 2 * w->p.kv_len);
    compare_within(w, &x, log(2.0));
    rearranged_destroy(&x);
}

/* Element n of rows of `dim` elements that got one more, `last`. */
static double widened(const void *x, attn_dtype dtype, int64_t n, int64_t dim, double last) {
    return n % (dim + 1) == dim ? last : check_widen(x, dtype, n / (dim + 1) * dim + n % (dim + 1));
}

/* One more element of q (1) and of k (c): every score moves by scale * c. */
static void score_shift(world *w) {
    static const double shifts[] = { 10, -10, 100, -100, -600 };
    for (int n = 0; n < 5; n++) {
        attn_problem p = w->p;
        const int64_t dim = p.qk_dim;
        p.qk_dim = dim + 1;
        p.q_stride = p.k_stride = (attn_stride){ 0 };
        world x = world_create(p, 99);
        for (int64_t r = 0; r < p.batch * p.q_len * p.q_heads * (dim + 1); r++)
            check_narrow(x.q, p.dtype, r, widened(w->q, p.dtype, r, dim, 1));
        const double c = rint(shifts[n] / (double)p.scale / 64) * 64;      /* exact in every dtype */
        for (int64_t r = 0; r < p.batch * p.kv_len * p.kv_heads * (dim + 1); r++)
            check_narrow(x.k, p.dtype, r, widened(w->k, p.dtype, r, dim, c));
        const double moved = check_widen(x.k, p.dtype, dim) * (double)p.scale;
        free(x.v);
        x.v = NULL;
        x.t.v = w->t.v;
        world_bounds(&x);
        for (int k = 0; k < kernel_count; k++) {
            if (!both(&x, w, kernels[k])) continue;
            verdict(kernels[k], w, within(&x, w, -moved));
        }
        world_destroy(&x);
    }
}

static void v_scaling(world *w) {
    const int64_t count = w->p.batch * w->p.kv_len * w->p.kv_heads * w->p.v_dim;
    if (w->p.dtype == ATTN_F16) return;        /* subnormal O rounds elsewhere */
    world x = variant(w);
    void *v = calloc((size_t)count, 4);
    for (int64_t n = 0; n < count; n++) check_narrow(v, w->p.dtype, n, 64 * check_widen(w->v, w->p.dtype, n));
    x.t.v = v;
    for (int k = 0; k < kernel_count; k++) {
        if (!both(w, &x, kernels[k])) continue;
        int ok = !memcmp(w->lse, x.lse, w->rows * sizeof *w->lse);
        for (size_t n = 0; n < w->rows * (size_t)w->p.v_dim; n++) ok &= o_at(&x, n) == 64 * o_at(w, n);
        verdict(kernels[k], w, ok);
    }
    free(v);
    variant_destroy(&x);
}

/* ---- merging ---- */

/* Keys [first, first + count) of w, as a view. */
static int run_range(const world *w, const char *kernel, int64_t first, int64_t count, part *out) {
    world x = variant(w);
    x.p.kv_len = count;
    x.p.kv_empty = count == 0;
    x.t.k = (const unsigned char *)w->k + first * k_row_bytes(&w->p);
    x.t.v = (const unsigned char *)w->v + first * v_row_bytes(&w->p);
    const int ran = world_run(&x, kernel, NULL);
    if (ran > 0) *out = part_of(&x);
    if (ran < 0) failures++;
    variant_destroy(&x);
    return ran > 0;
}

static void merge(world *w) {
    w->p.o_dtype = ATTN_F32;                   /* partial results aren't rounded to 16 bits */
    free(w->o);
    free(w->lse);
    give_outputs(w);
    world_bounds(w);
    const int64_t n = w->p.kv_len, cut[] = { 0, n / 3, n / 3 + 1 + n / 4, n };
    for (int k = 0; k < kernel_count; k++) {
        part x[5], ab, bc, left, right, turned, same;
        int ran = run_range(w, kernels[k], 0, n, &x[3]);
        refused += !ran;
        if (!ran) continue;
        for (int r = 0; r < 3; r++) ran &= run_range(w, kernels[k], cut[r], cut[r + 1] - cut[r], &x[r]);
        ran &= run_range(w, kernels[k], 0, 0, &x[4]);
        if (!ran) {
            verdict(kernels[k], w, 0);
            continue;
        }
        ab = merged(w, x[0], x[1]);
        bc = merged(w, x[1], x[2]);
        left = merged(w, ab, x[2]);
        right = merged(w, x[0], bc);
        turned = merged(w, x[2], ab);
        same = merged(w, x[4], x[3]);          /* with what no key gives: no change */
        verdict(kernels[k], w, close_parts(w, left, x[3], 3) && close_parts(w, left, right, 1e-3) &&
                               close_parts(w, left, turned, 1e-3) && close_parts(w, same, x[3], 0));
        part *all[] = { &x[0], &x[1], &x[2], &x[3], &x[4], &ab, &bc, &left, &right, &turned, &same };
        for (size_t m = 0; m < sizeof all / sizeof *all; m++) part_destroy(all[m]);
    }
}

/* ---- schedules ---- */

static void backwards(void *context, int tasks, void (*task)(void *arg, int index), void *arg) {
    (void)context;
    for (int n = tasks - 1; n >= 0; n--) task(arg, n);
}

/* w->p.strict: the same bits, else within the bound. */
static void schedules(world *w) {
    static const struct { int threads, splits; } ways[] = { { 1, 1 }, { 2, 0 }, { 3, 2 }, { 7, 3 }, { 1, 7 },
                                                            { 2, 1000 }, { 3, 0 } };
    world x = variant(w);
    world_bounds(w);
    for (int k = 0; k < kernel_count; k++)
        for (size_t n = 0; n < sizeof ways / sizeof *ways; n++) {
            attn_options options = ATTN_OPTIONS_INIT;
            options.threads = ways[n].threads;
            options.splits = ways[n].splits;
            if (n == 6) options.parallel_for = backwards;
            const int ran = world_run(w, kernels[k], NULL) > 0 ? world_run(&x, kernels[k], &options) : 0;
            refused += ran == 0;
            if (ran) verdict(kernels[k], w, ran > 0 && (w->p.strict ? same_bits(w, &x) : within(w, &x, 0)));
        }
    variant_destroy(&x);
}

/* ---- ways to say the same ---- */

static void paged(world *w) {
    static const int64_t page_sizes[] = { 1, 3, 16, 64, 100 };
    for (size_t n = 0; n < 5; n++) {
        world x = variant(w);
        attn_problem *p = &x.p;
        const int64_t size = page_sizes[n], cols = (p->kv_len + size - 1) / size, pages = p->batch * cols;
        int32_t *table = calloc((size_t)pages, sizeof *table);
        void *k = calloc((size_t)(pages * size), (size_t)k_row_bytes(p));
        void *v = calloc((size_t)(pages * size), (size_t)v_row_bytes(p));
        memset(k, 0xFF, (size_t)(pages * size * k_row_bytes(p)));
        memset(v, 0xFF, (size_t)(pages * size * v_row_bytes(p)));
        for (int64_t m = 0; m < pages; m++) table[m] = (int32_t)(pages - 1 - m);
        for (int64_t b = 0; b < p->batch; b++)
            for (int64_t j = 0; j < p->kv_len; j++) {
                const int64_t row = table[b * cols + j / size] * size + j % size;
                copy_row(k, row, w->k, b * p->kv_len + j, k_row_bytes(p));
                copy_row(v, row, w->v, b * p->kv_len + j, v_row_bytes(p));
            }
        p->page_size = size;
        p->pages = pages;
        p->block_table_cols = cols;
        p->block_table_stride = 0;
        p->k_stride = p->v_stride = (attn_stride){ 0 };
        x.t.k = k;
        x.t.v = v;
        x.t.block_table = table;
        compare_bits(w, &x);
        free(table);
        free(k);
        free(v);
        variant_destroy(&x);
    }
}

/* The batch as one packed call against a call per sequence; lengths differ. */
static void packed(world *w) {
    const int64_t q_lens[] = { w->p.q_len, (w->p.q_len + 1) / 2 },
                  kv_lens[] = { w->p.kv_len, w->p.kv_len / 2 + 1 };
    const int32_t cu_q[] = { 0, (int32_t)q_lens[0], (int32_t)(q_lens[0] + q_lens[1]) };
    const int32_t cu_kv[] = { 0, (int32_t)kv_lens[0], (int32_t)(kv_lens[0] + kv_lens[1]) };
    world x = variant(w);                      /* its rows: the packed rows come first, the rest is unused */
    x.p.packed_q = x.p.packed_kv = 1;
    x.p.q_total = cu_q[2];
    x.p.kv_total = cu_kv[2];
    x.p.lse_stride.batch = 0;
    x.p.lse_stride.head = x.p.q_total;
    x.t.cu_seqlens_q = cu_q;
    x.t.cu_seqlens_kv = cu_kv;
    const int64_t q_row = w->p.q_heads * w->p.qk_dim * check_element_size(w->p.dtype);
    const int64_t o_row = w->p.q_heads * w->p.v_dim * check_element_size(w->p.o_dtype);
    for (int k = 0; k < kernel_count; k++) {
        int ok = 1, ran = world_run(&x, kernels[k], NULL);
        refused += ran == 0;
        for (int s = 0; ran > 0 && s < 2; s++) {
            world one = variant(w);
            one.p.batch = one.p.kv_batch = 1;
            one.p.q_len = q_lens[s];
            one.p.kv_len = kv_lens[s];
            one.p.lse_stride.head = q_lens[s];
            one.t.q = (const unsigned char *)w->q + cu_q[s] * q_row;
            one.t.k = (const unsigned char *)w->k + cu_kv[s] * k_row_bytes(&w->p);
            one.t.v = (const unsigned char *)w->v + cu_kv[s] * v_row_bytes(&w->p);
            ran = world_run(&one, kernels[k], NULL);
            ok &= ran > 0 &&
                  !memcmp((unsigned char *)x.o + cu_q[s] * o_row, one.o, (size_t)(q_lens[s] * o_row));
            for (int64_t h = 0; ok && h < w->p.q_heads; h++)
                ok &= !memcmp(x.lse + h * x.p.q_total + cu_q[s], one.lse + h * q_lens[s],
                              (size_t)q_lens[s] * sizeof(float));
            variant_destroy(&one);
        }
        if (ran) verdict(kernels[k], w, ok && ran > 0);
    }
    variant_destroy(&x);
}

/* Heads of K and V repeated for every head of Q. */
static void repeated_heads(world *w) {
    if (w->p.kv_heads == w->p.q_heads) return;
    attn_problem p = w->p;
    p.kv_heads = p.q_heads;
    p.k_stride = p.v_stride = (attn_stride){ 0 };
    world x = world_create(p, 5);
    const int64_t size = check_element_size(p.dtype), rows = p.batch * p.kv_len,
                  group = p.q_heads / w->p.kv_heads;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t h = 0; h < p.q_heads; h++) {
            copy_row(x.k, r * p.q_heads + h, w->k, r * w->p.kv_heads + h / group, p.qk_dim * size);
            copy_row(x.v, r * p.q_heads + h, w->v, r * w->p.kv_heads + h / group, p.v_dim * size);
        }
    x.t.q = w->q;
    compare_within(w, &x, 0);                  /* kernels that share K among heads may sum in another order */
    world_destroy(&x);
}

static void batch_permutation(world *w) {
    const size_t q = (size_t)(w->p.q_stride.batch * check_element_size(w->p.dtype)), o = w->o_bytes / 2,
                 l = w->rows / 2;
    unsigned char *turned = malloc(2 * q);
    int64_t source[512];
    for (int64_t j = 0; j < w->p.kv_len; j++) source[j] = j;
    world y = rearranged(w, source, w->p.kv_len);
    memcpy(turned, (unsigned char *)w->q + q, q);
    memcpy(turned + q, w->q, q);
    for (int64_t b = 0; b < 2; b++)
        for (int64_t j = 0; j < w->p.kv_len; j++) {
            copy_row(y.k, b * w->p.kv_len + j, w->k, (1 - b) * w->p.kv_len + j, k_row_bytes(&w->p));
            copy_row(y.v, b * w->p.kv_len + j, w->v, (1 - b) * w->p.kv_len + j, v_row_bytes(&w->p));
        }
    y.t.q = turned;
    for (int k = 0; k < kernel_count; k++) {
        if (!both(w, &y, kernels[k])) continue;
        const unsigned char *a = w->o, *b = y.o;
        verdict(kernels[k], w, !memcmp(a, b + o, o) && !memcmp(a + o, b, o) &&
                               !memcmp(w->lse, y.lse + l, l * sizeof(float)) &&
                               !memcmp(w->lse + l, y.lse, l * sizeof(float)));
    }
    free(turned);
    rearranged_destroy(&y);
}

/* w is causal. */
static void causal_four_ways(world *w) {
    world window = variant(w), mask = variant(w), bias = variant(w);
    const int64_t rows = w->p.q_len, keys = w->p.kv_len;
    uint8_t *visible = malloc((size_t)(rows * keys));
    float *added = malloc((size_t)(rows * keys) * sizeof *added);
    for (int64_t n = 0; n < rows * keys; n++) {
        visible[n] = n % keys <= n / keys + keys - rows;
        added[n] = visible[n] ? 0 : -INFINITY;
    }
    window.p.causal = mask.p.causal = bias.p.causal = 0;
    window.p.window = 1;
    window.p.window_left = -1;
    window.p.window_right = 0;
    mask.p.has_mask = 1;
    bias.p.bias_dtype = ATTN_F32;
    mask.p.mask_stride = bias.p.bias_stride = (attn_score_stride){ .q = keys, .kv = 1 };
    mask.t.mask = visible;
    bias.t.bias = added;
    compare_within(w, &window, 0);
    compare_within(w, &mask, 0);
    compare_within(w, &bias, 0);
    free(visible);
    free(added);
    variant_destroy(&window);
    variant_destroy(&mask);
    variant_destroy(&bias);
}

static void nothing_options(world *w) {
    world window = variant(w), sink = variant(w), cap = variant(w);
    float sinks[64];
    for (int h = 0; h < 64; h++) sinks[h] = -INFINITY;
    window.p.window = 1;
    window.p.window_left = window.p.window_right = w->p.kv_len + w->p.q_len;
    sink.p.has_sinks = 1;
    sink.t.sinks = sinks;
    cap.p.softcap = 3e4f;
    compare_within(w, &window, 0);
    compare_within(w, &sink, 0);
    world_bounds(&cap);                        /* a cap allows errors of its own size */
    for (int k = 0; k < kernel_count; k++)
        if (both(&cap, w, kernels[k])) verdict(kernels[k], w, within(&cap, w, 0));
    free(cap.bound);
    free(cap.lse_bound);
    variant_destroy(&window);
    variant_destroy(&sink);
    variant_destroy(&cap);
}

/* w is causal: its last row is a single query over all keys, and so on backwards. */
static void row_is_a_decode(world *w) {
    if (w->p.kv_len < w->p.q_len) return;
    world_bounds(w);
    for (int64_t i = w->p.q_len - 1; i >= 0 && i > w->p.q_len - 4; i--)
        for (int k = 0; k < kernel_count; k++) {
            world one = variant(w);
            one.p.q_len = 1;
            one.p.kv_len = i + 1 + w->p.kv_len - w->p.q_len;
            one.p.lse_stride.head = 1;
            one.p.lse_stride.batch = w->p.q_heads;
            one.t.q = (const unsigned char *)w->q + i * w->p.q_stride.seq * check_element_size(w->p.dtype);
            one.t.o = (unsigned char *)one.o + i * w->p.o_stride.seq * check_element_size(w->p.o_dtype);
            const int ran = both(w, &one, kernels[k]);
            int ok = 1;
            for (int64_t b = 0; ran && b < w->p.batch; b++)
                for (int64_t h = 0; h < w->p.q_heads; h++)
                    for (int64_t d = 0; d < w->p.v_dim; d++) {
                        const size_t n = (size_t)(((b * w->p.q_len + i) * w->p.q_heads + h) * w->p.v_dim + d);
                        ok &= fabs(o_at(w, n) - o_at(&one, n)) <= 2 * w->bound[n];
                    }
            if (ran) verdict(kernels[k], w, ok);
            variant_destroy(&one);
        }
}

/* ---- the list ---- */

static const struct { const char *name; void (*test)(world *); int strict, causal; } properties[] = {
    { "keys in another order give the same", key_permutation, 0, 0 },
    { "every key twice: O the same, LSE + ln 2", duplicate_keys, 0, 0 },
    { "all scores shifted: O the same, LSE shifted", score_shift, 0, 0 },
    { "V times 64: O times 64 bit by bit", v_scaling, 0, 0 },
    { "parts of the keys merge, in any order", merge, 0, 0 },
    { "threads, splits and pools agree", schedules, 0, 0 },
    { "strict: threads, splits and pools, same bits", schedules, 1, 0 },
    { "strict, causal: the same", schedules, 1, 1 },
    { "strict: pages don't show, same bits", paged, 1, 1 },
    { "strict: packed as single calls, same bits", packed, 1, 1 },
    { "K/V heads repeated for each Q head", repeated_heads, 0, 1 },
    { "strict: batch permuted, same bits", batch_permutation, 1, 0 },
    { "causal as window, mask and bias", causal_four_ways, 0, 1 },
    { "wide window, sink -inf, huge softcap: as none", nothing_options, 0, 0 },
    { "a causal row is a decode", row_is_a_decode, 0, 1 },
};

static void test_all(void **state) {
    (void)state;
    printf("%-50s %8s %8s\n", "property", "held", "refused");
    for (size_t n = 0; n < sizeof properties / sizeof *properties; n++) {
        const int before = failures;
        property = properties[n].name;
        held = refused = 0;
        each_world(properties[n].test, properties[n].strict, properties[n].causal);
        printf("%-50s %8lld %8lld%s\n", property, (long long)held, (long long)refused,
               failures > before ? "   FAILED" : "");
        if (!held) {
            printf("FAIL %s: no kernel took it\n", property);
            failures++;
        }
    }
    assert_int_equal(failures, 0);
}

int main(void) {
    attn_kernel_info info = { .struct_size = sizeof info };
    for (int i = 0; attn_kernel_describe(i, &info) == ATTN_OK && kernel_count < MAX_KERNELS; i++)
        if (info.device == ATTN_CPU && info.pass == ATTN_FORWARD && !info.unavailable)
            kernels[kernel_count++] = info.name;
    setvbuf(stdout, NULL, _IOLBF, 0);
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_all) };
    return cmocka_run_group_tests_name("properties", tests, NULL, NULL);
}
