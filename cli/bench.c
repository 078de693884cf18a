/* bench.c — attn bench: time kernels on problems beside this machine's own ceilings, each checked before it
 * counts. */
#include "bench.h"
#include "gpu_session.h"
#include "inputs.h"
#include "openblas.h"
#include "problem_options.h"
#include "terminal.h"
#include <stdlib.h>
#include <string.h>

enum { MOST_THREADS = 16 };

static const cli_option bench_options[] = {
    { .name = "vs", .type = CLI_CHOICE, .argument = "LIST", .choices = "openblas naive", .list = 1,
      .summary = "Also time a GEMM library: openblas = blocked as frameworks do, naive = with the whole "
                 "score matrix." },
    { .name = "suite", .type = CLI_CHOICE, .argument = "LIST", .choices = bench_suite_names, .list = 1,
      .summary = "Run sets of problems instead; table prints every speed target with what was measured. "
                 "decode and mla run on a GPU if there is one, unless --backend cpu." },
    { .name = "samples", .type = CLI_INTEGER, .argument = "N", .low = 1, .high = BENCH_SAMPLES / 3,
      .summary = "Undisturbed samples of each contender, taken in alternating rounds (5)." },
    { .name = "sample-ms", .type = CLI_REAL, .argument = "X",
      .summary = "Least length of a sample in milliseconds (60)." },
    { .name = "budget", .type = CLI_REAL, .argument = "X",
      .summary = "Seconds to spend on one contender and problem; slow ones get fewer samples (20)." },
    { .name = "seed", .type = CLI_INTEGER, .argument = "N", .summary = "Seed of the numbers (1)." },
    { .name = "json", .type = CLI_FILE, .argument = "FILE",
      .summary = "Save the rows as JSON (schema 1); - is stdout." },
    { .name = "csv", .type = CLI_FILE, .argument = "FILE", .summary = "Save the rows as CSV." },
    { .name = "html", .type = CLI_FILE, .argument = "FILE",
      .summary = "Save a self-contained page: bars, roofline, lengths, a table to sort." },
    { .name = "md", .type = CLI_FILE, .argument = "FILE", .summary = "Save the rows as a Markdown table." },
    { .name = NULL },
};

static int settings_of(const cli_arguments *a, bench_settings *s) {
    *s = (bench_settings){ .samples = (int)cli_integer(a, "samples", 5),
                           .sample_seconds = cli_real(a, "sample-ms", 60) * 1e-3,
                           .budget = cli_real(a, "budget", 20) };
    if (s->sample_seconds > 0 && s->budget > 0) return CLI_OK;
    cli_error("--sample-ms and --budget must be above 0");
    return CLI_USAGE;
}

/* --threads as given; 0 and absent mean the default count. */
static int threads_of(const cli_arguments *a, int threads[MOST_THREADS]) {
    const int given = cli_given(a, "threads");
    int n = 0;
    for (int i = 0; i < given && n < MOST_THREADS; i++) threads[n++] = (int)cli_integer_item(a, "threads", i);
    if (!n) threads[n++] = 0;
    for (int i = 0; i < n; i++)
        if (!threads[i]) threads[i] = attn_cpu_threads();
    return n;
}

/* Time one problem and show its rows. */
static int one_problem(const bench_request *request, bench_table *table) {
    const int first = table->count, code = bench_problem(request, table);
    cli_progress_end();
    if (code != CLI_USAGE) bench_print(table, first);
    return code;
}

static int run_problems(const cli_arguments *a, bench_request *request, bench_table *table) {
    attn_problem *problems;
    int count, code = cli_problem_list(a, &problems, &count);
    for (int i = 0; i < count && code != CLI_USAGE; i++) {
        request->problem = problems[i];
        const int one = one_problem(request, table);
        if (one) code = one;
    }
    free(problems);
    return code;
}

/* One case of real input. */
static int run_input(const cli_input_files *files, int i, const cli_arguments *a, bench_request *request,
                     bench_table *table) {
    cli_input input;
    int code = cli_inputs_case(&input, files, i, a);
    if (code) return code;
    request->problem = input.problem;
    const check_memory *memory;
    if (gpu_session_memory(input.problem.device, a, &memory)) {
        cli_input_free(&input);
        return CLI_FAILED;
    }
    const attn_status status = check_data_from(&request->data, &input.problem, &input.tensors, memory);
    if (status) {
        cli_error("%s%s: %s", input.prefix, attn_status_name(status), attn_last_error());
        code = CLI_FAILED;
    } else {
        bench_show("%s%s%s\n", bench_style(CLI_BOLD), *input.prefix ? input.prefix : "input",
               bench_style(CLI_PLAIN));
        code = one_problem(request, table);
    }
    check_data_destroy(request->data);
    request->data = NULL;
    cli_input_free(&input);
    return code;
}

static int run_inputs(const cli_arguments *a, bench_request *request, bench_table *table) {
    cli_input_files *files;
    int code = cli_inputs_open(&files, a);
    if (code) return code;
    for (int i = 0; i < cli_inputs_count(files) && code != CLI_USAGE; i++) {
        const int one = run_input(files, i, a, request, table);
        if (one) code = one;
    }
    cli_inputs_close(files);
    return code;
}

/* The contenders of the command line on what it names. */
static int run_named(const cli_arguments *a, bench_request *request, bench_table *table) {
    contender_list contenders;
    int code = contenders_create(&contenders, a, cli_choice(a, "backend", 0) ? ATTN_CUDA : ATTN_CPU);
    if (code) return code;
    request->contenders = &contenders;
    code = cli_inputs_given(a) ? run_inputs(a, request, table) : run_problems(a, request, table);
    contenders_free(&contenders);
    return code;
}

static int run(const cli_arguments *a) {
    int threads[MOST_THREADS];
    bench_request request = { .options = ATTN_OPTIONS_INIT, .threads = threads, .fill = CHECK_FILL_gaussian,
                              .seed = (uint64_t)cli_integer(a, "seed", 1),
                              .explicit_list = cli_given(a, "kernel") > 0 };
    bench_table table = { NULL, 0 };
    int code = settings_of(a, &request.settings);
    if (code) return code;
    bench_report_setup(a);
    request.thread_counts = threads_of(a, threads);
    request.options.splits = (int32_t)cli_integer(a, "splits", 0);
    request.options.cuda_device = (int32_t)cli_integer(a, "device", 0);
    for (int i = 0; i < cli_given(a, "suite"); i++) {
        const int one = bench_suite(cli_choice_item(a, "suite", i), a, &request, &table);
        if (one) code = one;
    }
    if (!cli_given(a, "suite")) code = run_named(a, &request, &table);
    if (code != CLI_USAGE) {
        if (cli_given(a, "vs") && *openblas_core())
            bench_show("OpenBLAS core: %s, one thread per GEMM\n", openblas_core());
        const int saved = bench_save(&table, a);
        if (!code) code = saved;
    }
    bench_table_free(&table);
    return code;
}

static const cli_option *const tables[] = { cli_shape_options, cli_mask_options, cli_engine_options,
                                            cli_input_options, bench_options, NULL };

const cli_command cli_command_bench = {
    .name = "bench", .summary = "Time kernels on problems, with this machine's own ceilings beside them.",
    .sweeps = 1, .tables = tables, .run = run,
    .notes =
        "Every value may be a list: all combinations are timed. Each contender is first compared with the "
        "float64 oracle; a wrong one is reported and not timed. Contenders and ceilings take turns in "
        "rounds, and ratios are medians over the rounds, so that they hold on a busy machine. A --kernel "
        "with a '/' or ending in .c is a plug-in: it is built, checked in a child process, and ranked beside "
        "the others.\n"
        "%peak: share of the multiply-add (or bf16 dot) rate measured on as many threads. %read: share of a "
        "plain read of the same K and V.\n"
        "Exit code 1 means that a contender was wrong or failed.\n"
        "Example:  attn bench --sq 1k,2k --d 64,128 --causal --kernel 'flash_*',./mine.c --vs openblas",
};
