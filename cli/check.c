/* check.c — attn check: kernels and plug-ins against the float64 oracle; every failure comes with the line
 * that repeats it. */
#include "check_options.h"
#include "contenders.h"
#include "output.h"
#include "problem_options.h"
#include "terminal.h"
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

enum { SCHEMA = 1, SHOWN_FAILURES = 5 };

/* What came out for one contender over all cases. */
typedef struct tally {
    int    ok, wrong, failed, refused;
    double o_error, o_ratio, lse_error, lse_ratio;  /* the largest */
    char   refusal[256];                            /* the last one */
    cJSON *failures;
} tally;

static const cli_option check_options[] = {
    { .name = "pass", .type = CLI_CHOICE, .argument = "PASS", .choices = "forward append",
      .summary = "What is checked: attention, or the kernels that write new rows into a cache (forward)." },
    { .name = "kernel", .type = CLI_TEXT, .argument = "LIST", .list = 2,
      .summary = "Kernels by name or pattern, and plug-ins by path (./mine.c); all kernels of the backend." },
    { .name = "vs", .type = CLI_CHOICE, .argument = "LIST", .choices = "openblas naive", .list = 2,
      .summary = "Also check the benchmark's GEMM baselines." },
    { .name = "backend", .type = CLI_CHOICE, .argument = "WHERE", .choices = "cpu cuda",
      .summary = "Where to compute (cpu)." },
    { .name = "device", .type = CLI_INTEGER, .argument = "N", .high = 1023, .summary = "CUDA device (0)." },
    { .name = "threads", .type = CLI_INTEGER, .argument = "N", .high = 1024,
      .summary = "CPU threads; 0 = what affinity, cgroup quota and ATTN_NUM_THREADS allow." },
    { .name = "splits", .type = CLI_INTEGER, .argument = "N", .high = 65536,
      .summary = "Parts the keys are split into, where a kernel splits; 0 = it chooses." },
    { .name = "repeats", .type = CLI_INTEGER, .argument = "N", .low = 1, .high = 1000,
      .summary = "Runs of each case; all must give the same bits (2)." },
    { .name = "time-limit", .type = CLI_REAL, .argument = "X",
      .summary = "Seconds that one check may take before it is stopped as hanging (10, more for large "
                 "problems)." },
    { .name = "json", .type = CLI_FILE, .argument = "FILE",
      .summary = "Save the result as JSON (schema 1); - is stdout." },
    { .name = NULL },
};

static int stdout_taken;        /* by --json - : the table goes to stderr */
static FILE *shown(void) { return stdout_taken ? stderr : stdout; }

static double larger(double a, double b) { return b > a || b != b ? b : a; }

static void print_failure(const contender *c, const contender_outcome *o, const char *name,
                          const char *repeat) {
    fprintf(shown(), "%s%s%s %s (%s): %s\n    %s\n", cli_style_code(shown(), CLI_RED), outcome_names[o->kind],
           cli_style_code(shown(), CLI_PLAIN), c->name, name, o->reason, repeat);
    fflush(shown());
}

/* The path as the user gave it would do in the repro line as well; a plug-in's name alone would not. */
static void repeat_line(const check_plan *plan, int i, const contender *c, const cli_arguments *a, char *text,
                        size_t size) {
    const char *kernel = c->plugin ? plugin_path(c->plugin) : c->name;
    if (plan->files) snprintf(text, size, "attn check --kernel %s --in %s", kernel, cli_text(a, "in"));
    else check_case_command(&plan->cases[i], kernel, text, size);
}

static void note(tally *t, const contender *c, const contender_outcome *o, const char *name,
                 const char *repeat) {
    if (o->kind == OUTCOME_REFUSED) {
        t->refused++;
        snprintf(t->refusal, sizeof t->refusal, "%.255s", o->reason);
        return;
    }
    t->o_error = larger(t->o_error, o->verdict.o_error);
    t->o_ratio = larger(t->o_ratio, o->verdict.o_ratio);
    t->lse_error = larger(t->lse_error, o->verdict.lse_error);
    t->lse_ratio = larger(t->lse_ratio, o->verdict.lse_ratio);
    if (o->kind == OUTCOME_OK) {
        t->ok++;
        return;
    }
    if (t->wrong + t->failed < SHOWN_FAILURES) print_failure(c, o, name, repeat);
    if (o->kind == OUTCOME_WRONG) t->wrong++;
    else t->failed++;
    cJSON *failure = cJSON_CreateObject();
    cJSON_AddStringToObject(failure, "case", name);
    cJSON_AddStringToObject(failure, "kind", o->kind == OUTCOME_WRONG ? "wrong" : "failed");
    cJSON_AddStringToObject(failure, "reason", o->reason);
    cJSON_AddStringToObject(failure, "repeat", repeat);
    cJSON_AddItemToArray(t->failures, failure);
}

/* A hanging or crashing contender would do it on every case: three times is enough. */
static int given_up(const tally *t) { return t->failed >= 3; }

static int check_case_all(const check_plan *plan, int i, const contender_list *list, tally *tallies,
                          const cli_arguments *a) {
    char name[256], repeat[1024];
    check_data *data;
    const int code = check_plan_data(plan, i, a, &data, name, sizeof name);
    if (code) return code;
    const attn_status status = check_data_answer(data);
    if (status) {
        cli_error("%s: no answer: %s", name, attn_status_name(status));
        check_data_destroy(data);
        return CLI_FAILED;
    }
    attn_options options = ATTN_OPTIONS_INIT;
    options.threads = (int32_t)cli_integer(a, "threads", 0);
    options.splits = (int32_t)cli_integer(a, "splits", 0);
    options.cuda_device = (int32_t)cli_integer(a, "device", 0);
    const int repeats = (int)cli_integer(a, "repeats", 2);
    const double limit = cli_real(a, "time-limit", 10) + repeats * check_data_work(data).flops / 1e8;
    for (int n = 0; n < list->count; n++) {
        contender_outcome outcome;
        if (given_up(&tallies[n])) continue;
        cli_progress("case %d of %d: %s, %s", i + 1, plan->count, name, list->items[n].name);
        contender_check(&list->items[n], data, &options, repeats, limit, &outcome);
        repeat_line(plan, i, &list->items[n], a, repeat, sizeof repeat);
        note(&tallies[n], &list->items[n], &outcome, name, repeat);
    }
    check_data_destroy(data);
    return CLI_OK;
}

/* ---- results ---- */

static const char *result_of(const tally *t, const contender *c) {
    if (t->wrong || t->failed) return t->wrong ? "WRONG" : "FAILED";
    if (t->ok) return "ok";
    return c->unavailable ? "skipped" : "not reached";
}

static void print_table(const contender_list *list, const tally *tallies, int cases) {
    fprintf(shown(), "%s  %-28s %-11s %7s %6s %6s %8s  %9s %6s  %9s %6s%s\n",
            cli_style_code(shown(), CLI_BOLD), "kernel", "result", "right", "wrong", "failed", "refused",
            "O error", "/bound", "LSE error", "/bound", cli_style_code(shown(), CLI_PLAIN));
    for (int n = 0; n < list->count; n++) {
        const tally *t = &tallies[n];
        const contender *c = &list->items[n];
        const char *result = result_of(t, c);
        const cli_style style = t->wrong || t->failed ? CLI_RED : t->ok ? CLI_GREEN : CLI_YELLOW;
        fprintf(shown(), "  %-28s %s%-11s%s %7d %6d %6d %8d", c->name, cli_style_code(shown(), style), result,
               cli_style_code(shown(), CLI_PLAIN), t->ok, t->wrong, t->failed, t->refused);
        if (t->ok || t->wrong)
            fprintf(shown(), "  %9.2e %6.3f  %9.2e %6.3f\n", t->o_error, t->o_ratio, t->lse_error,
                    t->lse_ratio);
        else fprintf(shown(), "  %s\n", t->failed ? "" : t->refusal);
    }
    fprintf(shown(),
            "%d case%s against the float64 oracle; an error counts against the bound computed for its "
            "element\n",
            cases, cases == 1 ? "" : "s");
}

static int save_json(const contender_list *list, tally *tallies, int cases, const char *path) {
    cJSON *root = cJSON_CreateObject();
    cJSON_AddNumberToObject(root, "schema", SCHEMA);
    cJSON_AddStringToObject(root, "kind", "attn check");
    cJSON_AddStringToObject(root, "version", attn_version_string());
    cJSON_AddNumberToObject(root, "cases", cases);
    cJSON *rows = cJSON_AddArrayToObject(root, "kernels");
    for (int n = 0; n < list->count; n++) {
        tally *t = &tallies[n];
        cJSON *row = cJSON_CreateObject();
        cJSON_AddStringToObject(row, "kernel", list->items[n].name);
        cJSON_AddStringToObject(row, "result", result_of(t, &list->items[n]));
        cJSON_AddNumberToObject(row, "right", t->ok);
        cJSON_AddNumberToObject(row, "wrong", t->wrong);
        cJSON_AddNumberToObject(row, "failed", t->failed);
        cJSON_AddNumberToObject(row, "refused", t->refused);
        if (*t->refusal) cJSON_AddStringToObject(row, "last_refusal", t->refusal);
        cJSON_AddNumberToObject(row, "o_error", t->o_error);
        cJSON_AddNumberToObject(row, "o_error_of_bound", t->o_ratio);
        cJSON_AddNumberToObject(row, "lse_error", t->lse_error);
        cJSON_AddNumberToObject(row, "lse_error_of_bound", t->lse_ratio);
        cJSON_AddItemToObject(row, "failures", t->failures);
        t->failures = NULL;
        cJSON_AddItemToArray(rows, row);
    }
    char *text = cJSON_Print(root);
    cJSON_Delete(root);
    const int bad = !text || cli_output_save("--json", path, text, strlen(text));
    cJSON_free(text);
    return bad ? CLI_FAILED : CLI_OK;
}

/* Wrong or failed; nothing checked at all; the grid missed a kernel that this machine can run. */
static int verdict_of(const contender_list *list, const tally *tallies, int is_grid) {
    int bad = 0, reached = 0;
    for (int n = 0; n < list->count; n++) {
        const tally *t = &tallies[n];
        bad |= t->wrong || t->failed;
        reached |= t->ok > 0;
        if (!is_grid || t->ok || t->wrong || t->failed || list->items[n].unavailable) continue;
        cli_error("no case reaches %s: %s", list->items[n].name, t->refusal);
        bad = 1;
    }
    if (!reached && !bad) cli_error("nothing was checked: every kernel refused or is not available here");
    return bad || !reached ? CLI_FAILED : CLI_OK;
}

static int check_all(const check_plan *plan, const contender_list *list, const cli_arguments *a) {
    tally *tallies = calloc((size_t)list->count + 1, sizeof *tallies);
    if (!tallies) {
        cli_error("out of memory");
        return CLI_FAILED;
    }
    for (int n = 0; n < list->count; n++) tallies[n].failures = cJSON_CreateArray();
    int code = CLI_OK;
    for (int i = 0; i < plan->count && !code; i++) code = check_case_all(plan, i, list, tallies, a);
    cli_progress_end();
    if (!code) {
        print_table(list, tallies, plan->count);
        code = verdict_of(list, tallies, plan->is_grid);
        if (cli_given(a, "json") && save_json(list, tallies, plan->count, cli_text(a, "json")))
            code = CLI_FAILED;
    }
    for (int n = 0; n < list->count; n++) cJSON_Delete(tallies[n].failures);
    free(tallies);
    return code;
}

static int run(const cli_arguments *a) {
    check_plan plan;
    contender_list list;
    if (cli_choice(a, "pass", 0)) return check_append_command(a);
    stdout_taken = cli_given(a, "json") && !strcmp(cli_text(a, "json"), "-");
    int code = check_plan_create(&plan, a);
    if (code) return code;
    code = contenders_create(&list, a, cli_choice(a, "backend", 0) ? ATTN_CUDA : ATTN_CPU);
    if (!code) {
        code = check_all(&plan, &list, a);
        contenders_free(&list);
    }
    check_plan_free(&plan);
    return code;
}

static const cli_option *const tables[] = { check_case_options, check_options,     cli_shape_options,
                                            cli_mask_options,   cli_input_options, NULL };

const cli_command cli_command_check = {
    .name = "check", .summary = "Compare kernels and plug-ins with the float64 oracle.", .sweeps = 1,
    .tables = tables,
    .run = run,
    .notes =
        "Runs every kernel that takes the problem on every kind of numbers, in a child process: guard pages "
        "around all tensors, NaN outside the valid range, poisoned outputs and workspace, the same bits "
        "every time. A --kernel with a '/' or ending in .c is a plug-in (attn/attn_plugin.h): it is built "
        "with $CC -O3 -march=native, and a crash, a hang, a compile error or a wrong number is a row like "
        "any other.\n"
        "Every failure is printed with the command that repeats it. Exit code 1: something is wrong.\n"
        "Example:  attn check --sq 100 --sk 300 --causal --kernel ./mine.c\n"
        "          attn check --grid --kernel 'flash_*'\n"
        "          attn check --pass append --random 1000",
};
