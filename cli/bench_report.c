/* bench_report.c — rows as a table on the terminal, as Markdown, CSV and JSON. */
#include "bench.h"
#include "bench_html.h"
#include "gpu_session.h"
#include "openblas.h"
#include "output.h"
#include "problem_options.h"
#include "terminal.h"
#include <cjson/cJSON.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SCHEMA = 1 };

static const char convention[] =
    "flop = 2 x visible (query, key) pairs x (d + dv), that is 4 x pairs x d where dv = d; GB/s: Q, K, V and "
    "O once";

static FILE *stream;

void bench_show(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stream ? stream : stdout, format, arguments);
    va_end(arguments);
}

const char *bench_style(cli_style style) { return cli_style_code(stream ? stream : stdout, style); }

void bench_report_setup(const cli_arguments *a) {
    static const char *const files[] = { "json", "csv", "md" };
    for (int i = 0; i < 3; i++)
        if (cli_given(a, files[i]) && !strcmp(cli_text(a, files[i]), "-")) stream = stderr;
}

static const char *state_of(const bench_row *r) {
    if (r->outcome.kind != OUTCOME_OK) return outcome_names[r->outcome.kind];
    return *r->reason ? "FAILED" : "ok";
}

static const char *reason_of(const bench_row *r) { return *r->reason ? r->reason : r->outcome.reason; }

static double gflops(const bench_row *r) { return r->time.median > 0 ? r->flops / r->time.median * 1e-9 : 0; }
static double gbytes(const bench_row *r) { return r->time.median > 0 ? r->bytes / r->time.median * 1e-9 : 0; }

static double traffic_bytes(const attn_traffic *t) { return (double)(t->q + t->k + t->v + t->o + t->scores); }

/* "%.3g ms" in the unit that suits. */
static const char *time_text(double seconds, char text[24]) {
    if (seconds >= 1) snprintf(text, 24, "%.3f s", seconds);
    else if (seconds >= 1e-3) snprintf(text, 24, "%.3f ms", seconds * 1e3);
    else snprintf(text, 24, "%.3f us", seconds * 1e6);
    return text;
}

/* ---- terminal ---- */

static int any_versus(const bench_table *t, int which) {
    for (int i = 0; i < t->count; i++)
        if (t->rows[i].versus[which] > 0) return 1;
    return 0;
}

static int any_traffic(const bench_table *t) {
    for (int i = 0; i < t->count; i++)
        if (t->rows[i].outcome.has_traffic) return 1;
    return 0;
}

static void print_header(const bench_table *t) {
    bench_show("%s%s%s\n", bench_style(CLI_DIM), convention, bench_style(CLI_PLAIN));
    bench_show("%s  %-26s %2s  %-7s %9s %6s  %11s %13s  %8s %6s  %7s %6s", bench_style(CLI_BOLD), "kernel",
               "T", "check", "max error", "/bound", "median", "quartiles", "GFLOP/s", "%peak", "GB/s",
               "%read");
    if (any_versus(t, 0)) bench_show("  %11s", "x OpenBLAS");
    if (any_versus(t, 1)) bench_show("  %7s", "x naive");
    if (any_traffic(t)) bench_show("  %10s", "far bytes");
    bench_show("%s\n", bench_style(CLI_PLAIN));
}

static void print_shares(const bench_row *r) {
    char percent[16] = "-", read[16] = "-";
    if (r->of_ceiling > 0) snprintf(percent, sizeof percent, "%.1f", 100 * r->of_ceiling);
    if (r->of_read > 0) snprintf(read, sizeof read, "%.1f", 100 * r->of_read);
    bench_show("  %8.2f %6s  %7.2f %6s", gflops(r), percent, gbytes(r), read);
}

static void print_times(double times, int width) {
    if (times > 0) bench_show("  %*.2f", width, times);
    else bench_show("  %*s", width, "");
}

static void print_row(const bench_table *t, const bench_row *r) {
    const int ok = !strcmp(state_of(r), "ok");
    const cli_style failed = r->outcome.kind == OUTCOME_REFUSED ? CLI_DIM : CLI_RED;
    const cli_style style = !ok ? failed : r->faster ? CLI_YELLOW : CLI_PLAIN;
    const char *on = style == CLI_PLAIN ? "" : bench_style(style);
    const char mark = r->chosen ? '*' : r->faster ? '!' : ' ';
    bench_show("%s%c %-26s %2d  %-7s", on, mark, r->kernel, r->threads, state_of(r));
    if (!ok || !(r->time.median > 0)) {
        bench_show(" %s%s\n", reason_of(r), *on ? bench_style(CLI_PLAIN) : "");
        return;
    }
    char median[24], spread[32];
    snprintf(spread, sizeof spread, "%+.1f %+.1f%%%s", 100 * (r->time.low / r->time.median - 1),
             100 * (r->time.high / r->time.median - 1), r->time.disturbed > r->time.count ? "~" : "");
    bench_show(" %9.2e %6.3f  %11s %13s", r->outcome.verdict.o_error, r->outcome.verdict.o_ratio,
           time_text(r->time.median, median), spread);
    print_shares(r);
    if (any_versus(t, 0)) print_times(r->versus[0], 11);
    if (any_versus(t, 1)) print_times(r->versus[1], 7);
    if (r->outcome.has_traffic) bench_show("  %7.1f MB", traffic_bytes(&r->outcome.traffic) * 1e-6);
    bench_show("%s\n", *on ? bench_style(CLI_PLAIN) : "");
}

void bench_print(const bench_table *table, int first) {
    int header = 1;
    for (int i = 0; i < first; i++) header &= table->rows[i].target.name != NULL;
    if (header) print_header(table);
    int flagged = 0;
    double noise = 0;
    for (int i = first; i < table->count; i++) {
        const bench_row *r = &table->rows[i];
        char text[512], previous[512] = "";
        cli_problem_text(&r->problem, text, sizeof text);
        if (i > first) cli_problem_text(&table->rows[i - 1].problem, previous, sizeof previous);
        if (strcmp(text, previous))
            bench_show("%s%s%s   %.4g GFLOP, %.4g MB\n", bench_style(CLI_BOLD), text,
                   bench_style(CLI_PLAIN), r->flops * 1e-9, r->bytes * 1e-6);
        print_row(table, r);
        flagged |= r->faster;
        noise = r->noise > noise ? r->noise : noise;
    }
    if (flagged)
        bench_show("! faster than the kernel that the planner chose (*): their order in kernels.def is wrong "
                   "here\n");
    if (noise > 0.05)
        bench_show("~ other programs took up to %.0f %% of the processors meanwhile\n", 100 * noise);
    fflush(stream ? stream : stdout);
}

/* ---- JSON ---- */

static void machine_name(char *text, size_t size) {
    snprintf(text, size, "unknown");
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];
    while (f && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon) continue;
        snprintf(text, size, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        break;
    }
    if (f) fclose(f);
}

static void add_machine(cJSON *root) {
    char name[256], date[32];
    const time_t now = time(NULL);
    struct tm utc;
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    machine_name(name, sizeof name);
    cJSON *m = cJSON_AddObjectToObject(root, "machine");
    cJSON_AddStringToObject(m, "cpu", name);
    cJSON_AddStringToObject(m, "isa", attn_cpu_isa());
    cJSON_AddNumberToObject(m, "threads", attn_cpu_threads());
    if (gpu_session_device()) {
        check_gpu_info info;
        check_gpu_describe(gpu_session_device(), &info);
        cJSON_AddStringToObject(m, "gpu", info.name);
        cJSON_AddNumberToObject(m, "cuda_driver", info.driver);
    }
    cJSON_AddStringToObject(root, "version", attn_version_string());
    cJSON_AddStringToObject(root, "build", attn_build_info());
    cJSON_AddStringToObject(root, "date", date);
    cJSON_AddStringToObject(root, "flop_convention", convention);
}

static void add_positive(cJSON *object, const char *name, double x) {
    if (x > 0) cJSON_AddNumberToObject(object, name, x);
}

static void add_time(cJSON *row, const bench_row *r) {
    cJSON_AddNumberToObject(row, "time_ns_median", r->time.median * 1e9);
    cJSON_AddNumberToObject(row, "time_ns_q25", r->time.low * 1e9);
    cJSON_AddNumberToObject(row, "time_ns_q75", r->time.high * 1e9);
    cJSON_AddNumberToObject(row, "time_ns_min", r->time.least * 1e9);
    cJSON_AddNumberToObject(row, "time_ns_max", r->time.most * 1e9);
    cJSON_AddNumberToObject(row, "samples", r->time.count);
    cJSON_AddNumberToObject(row, "samples_disturbed", r->time.disturbed);
    cJSON_AddNumberToObject(row, "gflop_per_s", gflops(r));
    cJSON_AddNumberToObject(row, "gb_per_s", gbytes(r));
    if (r->of_ceiling > 0) {
        cJSON_AddStringToObject(row, "ceiling", ceiling_names[r->ceiling]);
        cJSON_AddNumberToObject(row, "ceiling_gflop_per_s", r->ceiling_flops * 1e-9);
        cJSON_AddNumberToObject(row, "share_of_ceiling", r->of_ceiling);
        cJSON_AddNumberToObject(row, "share_lost_to_others", r->noise);
    }
    if (r->of_read > 0) {
        cJSON_AddNumberToObject(row, "read_gb_per_s", r->read_bytes * 1e-9);
        cJSON_AddNumberToObject(row, "share_of_read", r->of_read);
    }
    add_positive(row, "times_one_thread", r->times_one_thread);
    add_positive(row, "ceiling_times_one_thread", r->ceiling_scaling);
    add_positive(row, "times_openblas_blocked", r->versus[0]);
    add_positive(row, "times_openblas_naive", r->versus[1]);
}

static void add_target(cJSON *row, const bench_target *t) {
    static const char *const units[] = { [BENCH_US] = "us", [BENCH_GBS] = "GB/s", [BENCH_TFLOPS] = "TFLOP/s",
                                         [BENCH_OF_PEER] = "times the peer",
                                         [BENCH_OF_BEFORE] = "times the row before" };
    cJSON *target = cJSON_AddObjectToObject(row, "target");
    cJSON_AddStringToObject(target, "name", t->name + strspn(t->name, " "));
    if (t->peer) {
        cJSON_AddStringToObject(target, "peer", t->peer);
        cJSON_AddNumberToObject(target, "peer_figure", t->peer_figure);
        cJSON_AddStringToObject(target, "peer_unit", units[t->peer_unit]);
    }
    add_positive(target, "times_peer", t->ratio);
    cJSON_AddStringToObject(target, "unit", units[t->unit]);
    cJSON_AddNumberToObject(target, "must", t->must);
    cJSON_AddNumberToObject(target, "goal", t->goal);
    add_positive(target, "measured", t->measured);
    cJSON_AddStringToObject(target, "result", t->result);
    add_positive(target, "own_schedule_ns", t->own_schedule * 1e9);
}

static void add_row(cJSON *rows, const bench_row *r) {
    static const char *const kinds[] = { "kernel", "plugin", "baseline" };
    cJSON *row = cJSON_CreateObject();
    char text[1024];
    cli_problem_text(&r->problem, text, sizeof text);
    cJSON_AddStringToObject(row, "problem", text);
    cJSON_AddStringToObject(row, "kernel", r->kernel);
    cJSON_AddStringToObject(row, "kind", kinds[r->kind]);
    cJSON_AddNumberToObject(row, "threads", r->threads);
    cJSON_AddStringToObject(row, "check", state_of(r));
    if (*reason_of(r)) cJSON_AddStringToObject(row, "reason", reason_of(r));
    cJSON_AddBoolToObject(row, "chosen", r->chosen);
    cJSON_AddBoolToObject(row, "faster_than_chosen", r->faster);
    cJSON_AddNumberToObject(row, "flop", r->flops);
    cJSON_AddNumberToObject(row, "bytes", r->bytes);
    if (r->outcome.kind == OUTCOME_OK) {
        cJSON_AddNumberToObject(row, "max_error", r->outcome.verdict.o_error);
        cJSON_AddNumberToObject(row, "error_of_bound", r->outcome.verdict.o_ratio);
        cJSON_AddNumberToObject(row, "lse_max_error", r->outcome.verdict.lse_error);
    }
    if (r->outcome.has_traffic) cJSON_AddNumberToObject(row, "far_bytes", traffic_bytes(&r->outcome.traffic));
    if (r->time.median > 0) add_time(row, r);
    if (r->target.name) add_target(row, &r->target);
    cJSON_AddItemToArray(rows, row);
}

static int save_json(const bench_table *t, const char *path) {
    cJSON *root = cJSON_CreateObject();
    cJSON_AddNumberToObject(root, "schema", SCHEMA);
    cJSON_AddStringToObject(root, "kind", "attn bench");
    add_machine(root);
    cJSON *rows = cJSON_AddArrayToObject(root, "rows");
    for (int i = 0; i < t->count; i++) add_row(rows, &t->rows[i]);
    char *text = cJSON_Print(root);
    cJSON_Delete(root);
    if (!text) {
        cli_error("out of memory");
        return CLI_FAILED;
    }
    const int bad = cli_output_save("--json", path, text, strlen(text));
    cJSON_free(text);
    return bad ? CLI_FAILED : CLI_OK;
}

/* ---- CSV and Markdown ---- */

typedef struct column { const char *name; int is_text; } column;
static const column columns[] = {
    { "problem", 1 }, { "kernel", 1 }, { "threads", 0 }, { "check", 1 }, { "max_error", 0 },
      { "error_of_bound", 0 },
    { "median_ms", 0 }, { "q25_ms", 0 }, { "q75_ms", 0 }, { "gflop_per_s", 0 }, { "percent_of_ceiling", 0 },
    { "gb_per_s", 0 }, { "percent_of_read", 0 }, { "times_openblas", 0 }, { "times_naive", 0 },
};
enum { COLUMNS = sizeof columns / sizeof *columns };

static void cell(const bench_row *r, int c, char *text, size_t size) {
    const double numbers[COLUMNS] = {
        0, 0, r->threads, 0, r->outcome.verdict.o_error, r->outcome.verdict.o_ratio, r->time.median * 1e3,
        r->time.low * 1e3, r->time.high * 1e3, gflops(r), 100 * r->of_ceiling, gbytes(r), 100 * r->of_read,
        r->versus[0], r->versus[1],
    };
    if (c == 0) cli_problem_text(&r->problem, text, size);
    else if (c == 1) snprintf(text, size, "%s", r->kernel);
    else if (c == 3) snprintf(text, size, "%s", state_of(r));
    else if (c != 2 && !(r->time.median > 0)) snprintf(text, size, "%s", "");
    else if (c > 9 && !(numbers[c] > 0)) snprintf(text, size, "%s", "");
    else snprintf(text, size, "%.4g", numbers[c]);
}

/* before, between, after a cell */
static int save_table(const bench_table *t, const char *option, const char *path, const char *const marks[3],
                      int rule) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) {
        cli_error("out of memory");
        return CLI_FAILED;
    }
    for (int i = -1; i < t->count; i++) {
        for (int c = 0; c < COLUMNS; c++) {
            char value[1024];
            if (i < 0) snprintf(value, sizeof value, "%s", columns[c].name);
            else cell(&t->rows[i], c, value, sizeof value);
            fprintf(f, "%s%s", c ? marks[1] : marks[0], value);
        }
        fprintf(f, "%s\n", marks[2]);
        for (int c = 0; rule && i < 0 && c < COLUMNS; c++) fputs(columns[c].is_text ? "|---" : "|---:", f);
        if (rule && i < 0) fputs("|\n", f);
    }
    int bad = fclose(f);
    if (!bad) bad = cli_output_save(option, path, text, size);
    free(text);
    return bad ? CLI_FAILED : CLI_OK;
}

int bench_save(const bench_table *table, const cli_arguments *a) {
    static const char *const csv[3] = { "", ",", "" }, *const markdown[3] = { "| ", " | ", " |" };
    int code = CLI_OK;
    if (cli_given(a, "json")) code = save_json(table, cli_text(a, "json"));
    if (!code && cli_given(a, "csv")) code = save_table(table, "--csv", cli_text(a, "csv"), csv, 0);
    if (!code && cli_given(a, "html")) {
        char machine[256];
        machine_name(machine, sizeof machine);
        code = bench_html_save(table, machine, cli_text(a, "html"));
    }
    if (!code && cli_given(a, "md")) code = save_table(table, "--md", cli_text(a, "md"), markdown, 1);
    return code;
}
