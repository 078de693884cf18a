/* check_append.c — attn check --pass append: the cache-append kernels on numbered cases; every byte of the
 * cache counts. */
#include "append_check.h"
#include "check_options.h"
#include "contenders.h"
#include "gpu_session.h"
#include "output.h"
#include "problem_options.h"
#include "terminal.h"
#include <cjson/cJSON.h>
#include <fnmatch.h>
#include <string.h>

enum { SHOWN_FAILURES = 5 };

typedef struct tally { const char *name, *unavailable; int right, wrong,
                       refused; char refusal[256]; cJSON *failures; } tally;

/* Options of problems and inputs belong to the forward pass. */
static int check_arguments(const cli_arguments *a) {
    const cli_option *const tables[] = { check_case_options, cli_shape_options, cli_mask_options,
                                         cli_input_options };
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (const cli_option *o = tables[t]; o->name; o++) {
            if (!strcmp(o->name, "random") || !strcmp(o->name, "seed") || !cli_given(a, o->name)) continue;
            cli_error("--%s: not with --pass append, whose cases are numbers: --random N takes N of them "
                      "from --seed on", o->name);
            return CLI_USAGE;
        }
    if (!cli_given(a, "vs")) return CLI_OK;
    cli_error("--vs: not with --pass append: the baselines compute the forward pass");
    return CLI_USAGE;
}

static int wanted(const cli_arguments *a, const char *name) {
    const int patterns = cli_given(a, "kernel");
    for (int i = 0; i < patterns; i++)
        if (!fnmatch(cli_text_item(a, "kernel", i), name, 0)) return 1;
    return !patterns;
}

static void note_failure(tally *t, const append_case *c, const char *why, FILE *shown) {
    char text[512], repeat[256];
    check_append_text(c, text, sizeof text);
    snprintf(repeat, sizeof repeat, "attn check --pass append --kernel %s --random 1 --seed %llu%s", t->name,
             (unsigned long long)c->number, c->problem.device == ATTN_CUDA ? " --backend cuda" : "");
    if (t->wrong++ < SHOWN_FAILURES)
        fprintf(shown, "%sWRONG%s %s (%s): %s\n    %s\n", cli_style_code(shown, CLI_RED),
                cli_style_code(shown, CLI_PLAIN), t->name, text, why, repeat);
    cJSON *failure = cJSON_CreateObject();
    cJSON_AddStringToObject(failure, "case", text);
    cJSON_AddStringToObject(failure, "reason", why);
    cJSON_AddStringToObject(failure, "repeat", repeat);
    cJSON_AddItemToArray(t->failures, failure);
}

static int check_kernel(tally *t, const cli_arguments *a, attn_device device, const check_memory *memory,
                        FILE *shown) {
    const int64_t count = cli_integer(a, "random", CHECK_APPEND_CASES);
    const int64_t first = cli_integer(a, "seed", cli_given(a, "random") ? 1 : 0);
    check_candidate candidate = check_library_kernel(t->name);
    attn_options options = ATTN_OPTIONS_INIT;
    options.threads = (int32_t)cli_integer(a, "threads", 0);
    options.cuda_device = (int32_t)cli_integer(a, "device", 0);
    for (int64_t n = first; !t->unavailable && n < first + count; n++) {
        const append_case c = check_append_case((uint64_t)n, device);
        check_append *data;
        char why[512];
        const char *refusal = NULL;
        if (check_append_create(&data, &c, memory)) {
            cli_error("case %lld: no memory", (long long)n);
            return CLI_FAILED;
        }
        cli_progress("case %lld of %lld, %s", (long long)(n - first + 1), (long long)count, t->name);
        const attn_status status = check_append_run(data, &candidate, &options, why, sizeof why, &refusal);
        check_append_destroy(data);
        if (refusal) snprintf(t->refusal, sizeof t->refusal, "%.255s", refusal);
        t->refused += refusal != NULL;
        if (status && !refusal) note_failure(t, &c, why, shown);
        t->right += !status;
    }
    return CLI_OK;
}

static const char *result_of(const tally *t) {
    return t->wrong ? "WRONG" : t->right ? "ok" : t->unavailable ? "skipped" : "not reached";
}

static void print_row(const tally *t, FILE *shown) {
    const cli_style style = t->wrong ? CLI_RED : t->right ? CLI_GREEN : CLI_YELLOW;
    fprintf(shown, "  %-28s %s%-11s%s %7d %6d %8d  %s\n", t->name, cli_style_code(shown, style), result_of(t),
            cli_style_code(shown, CLI_PLAIN), t->right, t->wrong, t->refused,
            t->unavailable ? t->unavailable : t->refusal);
}

static void add_row(cJSON *rows, tally *t) {
    cJSON *row = cJSON_CreateObject();
    cJSON_AddStringToObject(row, "kernel", t->name);
    cJSON_AddStringToObject(row, "result", result_of(t));
    cJSON_AddNumberToObject(row, "right", t->right);
    cJSON_AddNumberToObject(row, "wrong", t->wrong);
    cJSON_AddNumberToObject(row, "refused", t->refused);
    cJSON_AddItemToObject(row, "failures", t->failures);
    t->failures = NULL;
    cJSON_AddItemToArray(rows, row);
}

static int save_json(cJSON *root, const char *path) {
    char *text = cJSON_Print(root);
    const int bad = !text || cli_output_save("--json", path, text, strlen(text));
    cJSON_free(text);
    return bad ? CLI_FAILED : CLI_OK;
}

int check_append_command(const cli_arguments *a) {
    const attn_device device = cli_choice(a, "backend", 0) ? ATTN_CUDA : ATTN_CPU;
    const check_memory *memory;
    FILE *shown = cli_given(a, "json") && !strcmp(cli_text(a, "json"), "-") ? stderr : stdout;
    if (check_arguments(a)) return CLI_USAGE;
    if (gpu_session_memory(device, a, &memory)) return CLI_FAILED;
    cJSON *root = cJSON_CreateObject(), *rows = cJSON_AddArrayToObject(root, "kernels");
    cJSON_AddNumberToObject(root, "schema", 1);
    cJSON_AddStringToObject(root, "kind", "attn check append");
    attn_kernel_info info = { .struct_size = sizeof info };
    int code = CLI_OK, wrong = 0, right = 0;
    fprintf(shown, "%s  %-28s %-11s %7s %6s %8s%s\n", cli_style_code(shown, CLI_BOLD), "kernel", "result",
            "right", "wrong", "refused", cli_style_code(shown, CLI_PLAIN));
    for (int i = 0; !code && !attn_kernel_describe(i, &info); i++) {
        if (info.pass != ATTN_KV_APPEND || info.device != device || !wanted(a, info.name)) continue;
        tally t = { .name = info.name, .unavailable = info.unavailable, .failures = cJSON_CreateArray() };
        code = check_kernel(&t, a, device, memory, shown);
        cli_progress_end();
        print_row(&t, shown);
        wrong += t.wrong, right += t.right;
        add_row(rows, &t);
    }
    fprintf(shown,
            "each case twice on different old content; every byte of the cache that no new row goes to must "
            "stay\n");
    if (!right && !wrong) cli_error("nothing was checked: no append kernel of this name runs here");
    if (!code && cli_given(a, "json")) code = save_json(root, cli_text(a, "json"));
    cJSON_Delete(root);
    return code ? code : wrong || !right ? CLI_FAILED : CLI_OK;
}
