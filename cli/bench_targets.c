/* bench_targets.c — the speed table: every target with what this machine reaches, measured now. A target is
 * one row; rows with the same problem share one measurement, so that their figures come from the same
 * minutes. */
#include "bench.h"
#include "openblas.h"
#include "terminal.h"
#include <stdlib.h>
#include <string.h>

typedef enum metric { OF_CEILING, OF_READ, TIMES_BLOCKED, TIMES_NAIVE, SCALING, NANOSECONDS } metric;

enum { ALL_THREADS = 0 };

typedef struct target {
    metric      metric;
    double      must, goal;             /* NANOSECONDS: at most, else: at least */
    const char *kernel;                 /* a name, or NULL: the planner's choice */
    int         threads;                /* 1, or ALL_THREADS */
    attn_dtype  dtype;
    int64_t     q_heads, kv_heads, q_len, kv_len, dim;
    int         causal;
} target;

#define PREFILL(s, d, causal) 8, 8, s, s, d, causal
#define F32_AVX512 "flash_fwd_avx512", 1, ATTN_F32
#define F32_AVX2 "flash_fwd_avx2", 1, ATTN_F32
#define BF16 "flash_fwd_avx512bf16", 1, ATTN_BF16
#define BEST(threads, dtype) NULL, threads, dtype

static const target targets[] = {
    /* f32 prefill, AVX-512, of the FMA ceiling; the AVX2 kernel of its own; OpenBLAS on the same problems */
    { OF_CEILING, 0.85, 0.92, F32_AVX512, PREFILL(1024, 64, 0) },
    { OF_CEILING, 0.85, 0.92, F32_AVX512, PREFILL(2048, 64, 0) },
    { OF_CEILING, 0.80, 0.88, F32_AVX512, PREFILL(1024, 64, 1) },
    { OF_CEILING, 0.80, 0.88, F32_AVX512, PREFILL(2048, 64, 1) },
    { OF_CEILING, 0.88, 0.94, F32_AVX512, PREFILL(1024, 128, 0) },
    { OF_CEILING, 0.88, 0.94, F32_AVX512, PREFILL(2048, 128, 0) },
    { OF_CEILING, 0.83, 0.90, F32_AVX512, PREFILL(1024, 128, 1) },
    { OF_CEILING, 0.83, 0.90, F32_AVX512, PREFILL(2048, 128, 1) },
    { OF_CEILING, 0.78, 0.88, F32_AVX2, PREFILL(1024, 64, 0) },
    { OF_CEILING, 0.72, 0.88, F32_AVX2, PREFILL(2048, 64, 1) },
    { OF_CEILING, 0.78, 0.88, F32_AVX2, PREFILL(1024, 128, 0) },
    { OF_CEILING, 0.72, 0.88, F32_AVX2, PREFILL(2048, 128, 1) },
    { TIMES_BLOCKED, 1.10, 1.2, BEST(1, ATTN_F32), PREFILL(1024, 64, 0) },
    { TIMES_BLOCKED, 1.10, 1.2, BEST(1, ATTN_F32), PREFILL(1024, 128, 0) },
    { TIMES_BLOCKED, 1.25, 1.4, BEST(1, ATTN_F32), PREFILL(2048, 64, 1) },
    { TIMES_BLOCKED, 1.25, 1.4, BEST(1, ATTN_F32), PREFILL(2048, 128, 1) },
    { TIMES_NAIVE, 2, 2, BEST(1, ATTN_F32), PREFILL(2048, 64, 1) },
    { TIMES_NAIVE, 2, 2, BEST(1, ATTN_F32), PREFILL(2048, 128, 1) },
    { TIMES_BLOCKED, 1.10, 1.2, BEST(ALL_THREADS, ATTN_F32), PREFILL(1024, 64, 0) },
    { TIMES_BLOCKED, 1.25, 1.4, BEST(ALL_THREADS, ATTN_F32), PREFILL(2048, 128, 1) },
    { SCALING, 1.9, 1.97, BEST(ALL_THREADS, ATTN_F32), PREFILL(1024, 64, 0) },
    { SCALING, 1.9, 1.97, BEST(ALL_THREADS, ATTN_F32), PREFILL(2048, 128, 1) },
    /* bf16 prefill of the dpbf16 ceiling */
    { OF_CEILING, 0.78, 0.88, BF16, PREFILL(1024, 64, 0) },
    { OF_CEILING, 0.70, 0.80, BF16, PREFILL(2048, 64, 1) },
    { OF_CEILING, 0.78, 0.88, BF16, PREFILL(1024, 128, 0) },
    { OF_CEILING, 0.70, 0.80, BF16, PREFILL(2048, 128, 1) },
    /* f16 inputs, of the f32 FMA ceiling */
    { OF_CEILING, 0.82, 0.90, "flash_fwd_avx512", 1, ATTN_F16, PREFILL(1024, 64, 0) },
    { OF_CEILING, 0.82, 0.90, "flash_fwd_avx512", 1, ATTN_F16, PREFILL(1024, 128, 0) },
    /* decode out of cache, of the stream read of the same K and V */
    { OF_READ, 0.85, 1.0, BEST(1, ATTN_F32), 8, 8, 1, 32768, 128, 1 },
    { OF_READ, 0.85, 1.0, BEST(ALL_THREADS, ATTN_F32), 8, 8, 1, 32768, 128, 1 },
    { OF_READ, 0.75, 0.9, BEST(1, ATTN_F16), 8, 8, 1, 32768, 128, 1 },
    { OF_READ, 0.75, 0.9, BEST(ALL_THREADS, ATTN_F16), 8, 8, 1, 32768, 128, 1 },
    { OF_READ, 0.75, 0.9, BEST(1, ATTN_BF16), 8, 8, 1, 32768, 128, 1 },
    { OF_READ, 0.75, 0.9, BEST(ALL_THREADS, ATTN_BF16), 8, 8, 1, 32768, 128, 1 },
    { OF_READ, 0.60, 0.75, BEST(1, ATTN_F16), 32, 8, 1, 16384, 128, 1 },
    { OF_READ, 0.75, 0.90, BEST(ALL_THREADS, ATTN_F16), 32, 8, 1, 16384, 128, 1 },
    { OF_READ, 0.60, 0.75, BEST(1, ATTN_F16), 32, 8, 1, 32768, 128, 1 },
    { OF_READ, 0.75, 0.90, BEST(ALL_THREADS, ATTN_F16), 32, 8, 1, 32768, 128, 1 },
    { OF_READ, 0.60, 0.75, BEST(1, ATTN_BF16), 32, 8, 1, 16384, 128, 1 },
    { OF_READ, 0.75, 0.90, BEST(ALL_THREADS, ATTN_BF16), 32, 8, 1, 16384, 128, 1 },
    { OF_READ, 0.60, 0.75, BEST(1, ATTN_BF16), 32, 8, 1, 32768, 128, 1 },
    { OF_READ, 0.75, 0.90, BEST(ALL_THREADS, ATTN_BF16), 32, 8, 1, 32768, 128, 1 },
    /* what a call costs with a ready plan */
    { NANOSECONDS, 1000, 200, BEST(1, ATTN_F32), 1, 1, 1, 1, 1, 0 },
};
enum { TARGETS = sizeof targets / sizeof *targets };

/* ---- measuring ---- */

static attn_problem problem_of(const target *t) {
    attn_problem p = ATTN_PROBLEM_INIT;
    p.batch = 1, p.q_heads = t->q_heads, p.kv_heads = t->kv_heads, p.q_len = t->q_len, p.kv_len = t->kv_len;
    p.qk_dim = t->dim, p.causal = t->causal, p.dtype = t->dtype;
    return p;
}

static int same_problem(const target *a, const target *b) {
    return a->dtype == b->dtype && a->q_heads == b->q_heads && a->kv_heads == b->kv_heads &&
           a->q_len == b->q_len && a->kv_len == b->kv_len && a->dim == b->dim && a->causal == b->causal;
}

/* NULL if the planner refuses; lives as long as the library. */
static const char *kernel_of(const target *t) {
    if (t->kernel) return t->kernel;
    const attn_problem p = problem_of(t);
    attn_plan *plan;
    if (attn_plan_create(&plan, &p, NULL)) return NULL;
    const char *name = attn_plan_kernel(plan);
    attn_plan_destroy(plan);
    return name;
}

static int is_registered(const char *name) {
    attn_kernel_info info = { .struct_size = sizeof info };
    for (int i = 0; attn_kernel_describe(i, &info) == ATTN_OK; i++)
        if (!strcmp(info.name, name)) return 1;
    return 0;
}

/* Everything that the targets with this problem need, in one measurement; rows go to the table. */
static int measure(const target *first, const bench_request *common, bench_table *table) {
    contender_list contenders = { NULL, 0 };
    int threads[2] = { 0, 0 }, counts = 0, code = CLI_OK, one = 0, all = 0;
    for (int i = 0; i < TARGETS && !code; i++) {
        const target *t = &targets[i];
        if (!same_problem(t, first)) continue;
        const char *kernel = kernel_of(t);
        if (kernel && is_registered(kernel)) code = contenders_add(&contenders, kernel, ATTN_CPU);
        if (!code && t->metric == TIMES_BLOCKED) code = contenders_add(&contenders, "openblas", ATTN_CPU);
        if (!code && t->metric == TIMES_NAIVE) code = contenders_add(&contenders, "naive", ATTN_CPU);
        one |= t->threads == 1 || t->metric == SCALING;
        all |= t->threads == ALL_THREADS;
    }
    if (one) threads[counts++] = 1;
    if (all && (attn_cpu_threads() > 1 || !one)) threads[counts++] = attn_cpu_threads();
    bench_request request = *common;
    request.problem = problem_of(first);
    request.contenders = &contenders;
    request.threads = threads;
    request.thread_counts = counts;
    request.explicit_list = 1;
    if (!code && contenders.count) code = bench_problem(&request, table);
    contenders_free(&contenders);
    return code;
}

/* ---- reading ---- */

static const bench_row *find_row(const bench_table *table, int first, const char *kernel, int threads) {
    for (int i = first; kernel && i < table->count; i++)
        if (!strcmp(table->rows[i].kernel, kernel) && table->rows[i].threads == threads)
            return &table->rows[i];
    return NULL;
}

/* @return the figure; 0 with *why set if there is none. */
static double figure_of(const target *t, const bench_table *table, int first, char *why, size_t size) {
    const char *kernel = kernel_of(t);
    const int threads = t->threads == ALL_THREADS ? attn_cpu_threads() : t->threads;
    const bench_row *r = find_row(table, first, kernel, threads);
    snprintf(why, size, "%s is not built", kernel ? kernel : "a kernel for this");
    if (!r) return 0;
    snprintf(why, size, "%s: %.150s", outcome_names[r->outcome.kind], r->outcome.reason);
    if (!(r->time.median > 0)) return 0;
    snprintf(why, size, "nothing to compare with: %s",
             t->metric == SCALING ? "one thread only" : "no ceiling, no OpenBLAS");
    switch (t->metric) {
    case OF_CEILING: return r->of_ceiling;
    case OF_READ: return r->of_read;
    case TIMES_BLOCKED: return r->versus[0];
    case TIMES_NAIVE: return r->versus[1];
    case SCALING: return r->times_one_thread;
    default: return r->time.median * 1e9;
    }
}

static void describe(const target *t, char *text, size_t size) {
    static const char *const dtypes[] = { "", "f32", "f16", "bf16" };
    static const char *const metrics[] = { "of ceiling",       "of stream read", "x OpenBLAS blocked",
                                           "x OpenBLAS naive", "x one thread",   "ns a call" };
    char heads[32] = "";
    if (t->q_heads != t->kv_heads)
        snprintf(heads, sizeof heads, "GQA %lld/%lld ", (long long)t->q_heads, (long long)t->kv_heads);
    const char *kind = t->metric == NANOSECONDS ? "1x1x1 problem" : t->q_len == 1 ? "decode" : "prefill";
    const char *mask = t->q_len == 1 ? "" : t->causal ? " causal" : " full";
    const int threads = t->threads == ALL_THREADS ? attn_cpu_threads() : 1;
    snprintf(text, size, "%-4s %s %sd%lld s%lld%s T%d, %s", dtypes[t->dtype], kind, heads, (long long)t->dim,
             (long long)t->kv_len, mask, threads, metrics[t->metric]);
}

static void number_text(metric m, double x, char text[24]) {
    if (m == OF_CEILING) snprintf(text, 24, "%.1f %%", 100 * x);
    else if (m == NANOSECONDS) snprintf(text, 24, "%.0f ns", x);
    else snprintf(text, 24, "%.2f", x);
}

typedef struct judged { double figure, noise; char why[256], kernel[64], machine[64]; } judged;

static const char *verdict_of(const target *t, double figure) {
    if (!(figure > 0)) return "-";
    const int less = t->metric == NANOSECONDS;
    if (less ? figure <= t->goal : figure >= t->goal) return "goal";
    return (less ? figure <= t->must : figure >= t->must) ? "must" : "MISSED";
}

static void judge(const target *t, const bench_table *table, int first, judged *out) {
    const char *kernel = kernel_of(t);
    const int threads = t->threads == ALL_THREADS ? attn_cpu_threads() : 1;
    out->figure = figure_of(t, table, first, out->why, sizeof out->why);
    snprintf(out->kernel, sizeof out->kernel, "%s", kernel ? kernel : "");
    const bench_row *r = find_row(table, first, kernel, threads);
    out->machine[0] = 0;
    out->noise = r ? r->noise : 0;
    if (!r || !(out->figure > 0)) return;
    const double flops = r->flops / r->time.median * 1e-9, bytes = r->bytes / r->time.median * 1e-9;
    if (t->metric == OF_CEILING)
        snprintf(out->machine, sizeof out->machine, "%.1f of %.1f GFLOP/s", flops, r->ceiling_flops * 1e-9);
    else if (t->metric == OF_READ)
        snprintf(out->machine, sizeof out->machine, "%.1f of %.1f GB/s", bytes, r->read_bytes * 1e-9);
    else if (t->metric == SCALING)
        snprintf(out->machine, sizeof out->machine, "the ceiling scales %.2f", r->ceiling_scaling);
    else if (t->metric != NANOSECONDS)
        snprintf(out->machine, sizeof out->machine, "%.1f GFLOP/s", flops);
}

static void print_target(const target *t, const judged *j) {
    char text[128], must[24], goal[24], figure[24] = "-";
    const char *verdict = verdict_of(t, j->figure);
    describe(t, text, sizeof text);
    number_text(t->metric, t->must, must);
    number_text(t->metric, t->goal, goal);
    if (j->figure > 0) number_text(t->metric, j->figure, figure);
    const cli_style style = *verdict == 'g' ? CLI_GREEN : *verdict == 'M' ? CLI_RED : CLI_PLAIN;
    bench_show("  %-58s %8s %8s  %9s  %s%-6s%s  %s%s%s", text, must, goal, figure,
           style == CLI_PLAIN ? "" : bench_style(style), verdict,
           style == CLI_PLAIN ? "" : bench_style(CLI_PLAIN), j->figure > 0 ? j->kernel : j->why,
           *j->machine ? ": " : "", j->machine);
    if (j->noise > 0.05) bench_show("  (other programs took %.0f %% of its processors)", 100 * j->noise);
    bench_show("\n");
}

/* --dtype narrows the table. */
static int is_wanted(const target *t, const cli_arguments *a) {
    const int given = cli_given(a, "dtype");
    for (int i = 0; i < given; i++)
        if (cli_choice_item(a, "dtype", i) == (int)t->dtype - (int)ATTN_F32) return 1;
    return !given;
}

static void measure_all(const cli_arguments *a, const bench_request *common, bench_table *table,
                        judged *results, int *code) {
    int done[TARGETS] = { 0 };
    for (int i = 0; i < TARGETS; i++) {
        if (done[i] || !is_wanted(&targets[i], a)) continue;
        const int first = table->count, one = measure(&targets[i], common, table);
        if (one) *code = one;
        for (int j = i; j < TARGETS; j++)
            if (same_problem(&targets[i], &targets[j])) {
                judge(&targets[j], table, first, &results[j]);
                done[j] = 1;
            }
    }
}

int bench_targets(const cli_arguments *a, const bench_request *common, bench_table *table) {
    judged results[TARGETS];
    int code = CLI_OK, missed = 0, shown = 0;
    measure_all(a, common, table, results, &code);
    cli_progress_end();
    bench_show("%s  %-58s %8s %8s  %9s  %-6s  %s%s\n", bench_style(CLI_BOLD), "target", "must", "goal",
               "measured", "result", "by", bench_style(CLI_PLAIN));
    for (int i = 0; i < TARGETS; i++) {
        if (!is_wanted(&targets[i], a)) continue;
        print_target(&targets[i], &results[i]);
        shown++;
        missed += *verdict_of(&targets[i], results[i].figure) == 'M';
    }
    bench_show("%d of %d targets missed; OpenBLAS core: %s\n", missed, shown, openblas_core());
    return missed && !code ? CLI_FAILED : code;
}
