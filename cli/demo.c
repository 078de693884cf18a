/* demo.c — attn demo: real tensors attended by the course's kernels and the library's, all checked, then
 * ranked. */
#include "bench.h"
#include "inputs.h"
#include "locate.h"
#include "openblas.h"
#include "terminal.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>

extern const cli_command cli_command_bench;

/* A case of the file, as it is stored or as f32, with the course's kernels or without. */
typedef struct stage { const char *prefix, *dtype, *title; int course; } stage;

static const stage stages[] = {
    { "layer0.long.", "f32",
      "First layer, 512 tokens, as f32: the course's four kernels beside the library's", 1 },
    { "layer0.long.", "bf16", "The same in bf16, as stored", 0 },
    { "layer5.long.", "f16", "Last layer, 512 tokens, f16", 0 },
    { "layer2.batch.", "f32", "Third layer, seven sentences of different length in one batch, f32", 0 },
};
enum { STAGES = sizeof stages / sizeof *stages };

static const char *const course[] = { "naive.c", "online_softmax.c", "flash_v1.c", "flash_v2.c" };

/* ---- contenders ---- */

static int find_contenders(const stage *s, contender_list *list) {
    int code = contenders_add(list, "*", ATTN_CPU);
    for (size_t i = 0; s->course && !code && i < sizeof course / sizeof *course; i++) {
        char relative[64], path[PATH_MAX];
        snprintf(relative, sizeof relative, "learn/flash_attention/%s", course[i]);
        if (cli_locate(relative, path, sizeof path)) cli_remark("%s is not here: left out", relative);
        else code = contenders_add(list, path, ATTN_CPU);
    }
    if (s->course && !code && !openblas_unavailable()) code = contenders_add(list, "openblas", ATTN_CPU);
    return code;
}

/* ---- results ---- */

static int by_time(const void *a, const void *b) {
    const bench_row *x = *(const bench_row *const *)a, *y = *(const bench_row *const *)b;
    const double s = x->time.median, t = y->time.median;
    if (!(s > 0) || !(t > 0)) return (s > 0) < (t > 0) ? 1 : -1;     /* what isn't timed comes last */
    return (s > t) - (s < t);
}

static double naive_seconds(const bench_table *t) {
    for (int i = 0; i < t->count; i++)
        if (!strcmp(t->rows[i].kernel, course[0])) return t->rows[i].time.median;
    return 0;
}

static double far_bytes(const attn_traffic *t) { return (double)(t->q + t->k + t->v + t->o + t->scores); }

static void print_row(int rank, const bench_row *r, double naive) {
    bench_show("%5d  %-24s %2d", rank, r->kernel, r->threads);
    if (!(r->time.median > 0)) {
        const char *reason = *r->reason ? r->reason : r->outcome.reason;
        bench_show("  %s%s%s: %s\n", bench_style(CLI_RED), outcome_names[r->outcome.kind],
               bench_style(CLI_PLAIN), reason);
        return;
    }
    bench_show("  %8.1e %5.0f %%  %9.3f ms  %8.1f %7.1f", r->outcome.verdict.o_error,
               100 * r->outcome.verdict.o_ratio, r->time.median * 1e3, r->flops / r->time.median * 1e-9,
               100 * r->of_ceiling);
    if (naive > 0) bench_show("  %7.1f", naive / r->time.median);
    if (r->outcome.has_traffic) bench_show("  %8.1f MB", far_bytes(&r->outcome.traffic) * 1e-6);
    bench_show("%s\n", r->chosen ? "   chosen" : "");
}

static void print_refused(const bench_table *t) {
    int n = 0;
    for (int i = 0; i < t->count; i++)
        if (t->rows[i].outcome.kind == OUTCOME_REFUSED)
            bench_show("%s%s",
                       n++ ? ", " : "not for this problem (attn explain says why): ", t->rows[i].kernel);
    if (n) bench_show("\n");
}

static void print_stage(const stage *s, const bench_table *t) {
    const bench_row **sorted = calloc((size_t)t->count + 1, sizeof *sorted);
    if (!sorted || !t->count) {
        free(sorted);
        return;
    }
    for (int i = 0; i < t->count; i++) sorted[i] = &t->rows[i];
    qsort(sorted, (size_t)t->count, sizeof *sorted, by_time);
    const attn_problem *p = &t->rows[0].problem;
    bench_show("\n%s%s%s\n%lld x %lld queries and keys, %lld heads of dimension %lld, %.3g GFLOP\n",
           bench_style(CLI_BOLD), s->title, bench_style(CLI_PLAIN), (long long)p->batch,
           (long long)p->q_len, (long long)p->q_heads, (long long)p->qk_dim, t->rows[0].flops * 1e-9);
    bench_show(" rank  %-24s %2s  %8s %7s  %12s  %8s %7s%s\n", "kernel", "T", "error", "allowed", "time",
               "GFLOP/s", "% peak", s->course ? "  x naive    far memory" : "");
    for (int i = 0; i < t->count; i++)
        if (sorted[i]->outcome.kind != OUTCOME_REFUSED)
            print_row(i + 1, sorted[i], s->course ? naive_seconds(t) : 0);
    print_refused(t);
    fflush(stdout);
    free(sorted);
}

/* ---- running ---- */

static int time_case(const cli_input *input, const stage *s, bench_request *request, bench_table *table) {
    contender_list contenders = { NULL, 0 };
    const int first = table->count;
    const int all = attn_cpu_threads(), threads[2] = { 1, all }, both = s->course && all > 1;
    request->problem = input->problem;
    request->threads = both ? threads : &threads[1];
    request->thread_counts = both ? 2 : 1;
    if (check_data_from(&request->data, &input->problem, &input->tensors, NULL)) {
        cli_error("%s: %s", s->prefix, attn_last_error());
        return CLI_FAILED;
    }
    int code = find_contenders(s, &contenders);
    request->contenders = &contenders;
    if (!code) code = bench_problem(request, table);
    cli_progress_end();
    print_stage(s, &(bench_table){ table->rows + first, table->count - first });
    contenders_free(&contenders);
    check_data_destroy(request->data);
    return code;
}

static int run_stage(const char *file, const stage *s, bench_request *request, bench_table *table) {
    char path[PATH_MAX], prefix[64], dtype[8], options[3][16] = { "--in", "--prefix", "--dtype" };
    snprintf(path, sizeof path, "%s", file);
    snprintf(prefix, sizeof prefix, "%s", s->prefix);
    snprintf(dtype, sizeof dtype, "%s", s->dtype);
    char *words[] = { options[0], path, options[1], prefix, options[2], dtype };
    cli_arguments *a;
    cli_input_files *files;
    cli_input input;
    if (cli_parse(&a, &cli_command_bench, 6, words)) return CLI_USAGE;
    int code = cli_inputs_open(&files, a);
    if (!code) {
        code = cli_inputs_case(&input, files, 0, a);
        if (!code) {
            code = time_case(&input, s, request, table);
            cli_input_free(&input);
        }
        cli_inputs_close(files);
    }
    cli_arguments_free(a);
    return code;
}

int bench_demo(const char *file, bench_table *table) {
    char found[PATH_MAX];
    if (!file && cli_locate("demo/minilm.safetensors", found, sizeof found)) {
        cli_error("demo/minilm.safetensors is not beside the program: --in names it");
        return CLI_FAILED;
    }
    bench_request request = {
        .options = ATTN_OPTIONS_INIT, .explicit_list = 1,
        .settings = { .samples = 5, .sample_seconds = 0.025, .budget = 0.8 },
    };
    bench_show("Q, K and V as the sentence model all-MiniLM-L6-v2 computed them on the Declaration of "
               "Independence.\n"
               "Every kernel below was first compared with a float64 oracle: \"allowed\" is its largest "
               "error as a share of\n"
               "what rounding explains for that element. %% peak: of the multiply-add rate that this machine "
               "reaches, measured\n"
               "between the same samples. far memory: bytes that the kernel counted itself.\n");
    int code = CLI_OK;
    for (int i = 0; i < STAGES; i++) {
        const int one = run_stage(file ? file : found, &stages[i], &request, table);
        if (one) code = one;
    }
    bench_show("\n"
               "Compare the course's kernels: diff learn/flash_attention/flash_v1.c "
               "learn/flash_attention/flash_v2.c\n"
               "Yours beside them:            attn bench --in demo/minilm.safetensors --dtype f32 --kernel "
               "./mine.c,'flash_*'\n");
    return code;
}

static int run(const cli_arguments *a) {
    bench_table table = { NULL, 0 };
    const int code = bench_demo(cli_text(a, "in"), &table);
    bench_table_free(&table);
    return code;
}

static const cli_option options[] = {
    { .name = "in", .type = CLI_FILE, .argument = "FILE",
      .summary = "The tensors (demo/minilm.safetensors beside the program or above it)." },
    { .name = NULL },
};
static const cli_option *const tables[] = { options, NULL };

const cli_command cli_command_demo = {
    .name = "demo", .summary = "Attend real tensors with every kernel, check them, and rank them by speed.",
    .tables = tables, .run = run,
    .notes = "Takes well under a minute. Exit code 1 means that a kernel was wrong or failed.",
};
