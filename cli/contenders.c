/* contenders.c — names to candidates, and one guarded check. */
#include "contenders.h"
#include "openblas.h"
#include "sandbox.h"
#include "terminal.h"
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const char *const outcome_names[] = { "ok", "WRONG", "refused", "FAILED" };

/* ---- lists ---- */

static contender *append(contender_list *list) {
    contender *more = realloc(list->items, (size_t)(list->count + 1) * sizeof *more);
    if (!more) return NULL;
    list->items = more;
    contender *c = &more[list->count++];
    *c = (contender){ .kind = CONTENDER_KERNEL };
    return c;
}

static int out_of_memory(void) {
    cli_error("out of memory");
    return CLI_USAGE;
}

static int listed(const contender_list *list, const char *name) {
    for (int i = 0; i < list->count; i++)
        if (!strcmp(list->items[i].name, name)) return 1;
    return 0;
}

static int add_kernels(contender_list *list, const char *pattern, attn_device device) {
    int found = 0;
    attn_kernel_info info = { .struct_size = sizeof info };
    for (int i = 0; attn_kernel_describe(i, &info) == ATTN_OK; i++) {
        if (info.pass != ATTN_FORWARD || fnmatch(pattern, info.name, 0)) continue;
        if (info.device != device && strpbrk(pattern, "*?[")) continue;
        found = 1;
        if (listed(list, info.name)) continue;
        contender *c = append(list);
        if (!c) return out_of_memory();
        c->name = info.name;
        c->candidate = check_library_kernel(info.name);
        c->unavailable = info.unavailable;
        c->device = info.device;
    }
    if (found || !strcmp(pattern, "*")) return CLI_OK;
    cli_error("--kernel %s: no such kernel (\"attn info\" lists them; a plug-in is a path like ./mine.c)",
              pattern);
    return CLI_USAGE;
}

static int add_plugin(contender_list *list, const char *path, attn_device device) {
    plugin *p = plugin_build(path, device == ATTN_CPU);
    contender *c = p ? append(list) : NULL;
    if (!c) return out_of_memory();
    c->kind = CONTENDER_PLUGIN;
    c->name = plugin_name(p);
    c->plugin = p;
    c->candidate = plugin_candidate(p);
    c->device = device;
    return CLI_OK;
}

static int add_baseline(contender_list *list, const char *name, int naive, attn_device device) {
    if (listed(list, name)) return CLI_OK;
    contender *c = append(list);
    if (!c) return out_of_memory();
    c->kind = CONTENDER_BASELINE;
    c->name = name;
    c->candidate = openblas_candidate(naive);
    c->unavailable = device == ATTN_CPU ? openblas_unavailable() : "computes on the CPU";
    return CLI_OK;
}

int contenders_add(contender_list *list, const char *word, attn_device device) {
    if (!strcmp(word, "openblas")) return add_baseline(list, "openblas_blocked", 0, device);
    if (!strcmp(word, "naive")) return add_baseline(list, "openblas_naive", 1, device);
    if (plugin_is_path(word)) {
        cli_progress("building %s", word);
        return add_plugin(list, word, device);
    }
    return add_kernels(list, word, device);
}

int contenders_create(contender_list *list, const cli_arguments *a, attn_device device) {
    *list = (contender_list){ NULL, 0 };
    int code = CLI_OK;
    const int kernels = cli_given(a, "kernel"), versus = cli_given(a, "vs");
    if (!kernels) code = contenders_add(list, "*", device);
    for (int i = 0; !code && i < kernels; i++)
        code = contenders_add(list, cli_text_item(a, "kernel", i), device);
    for (int i = 0; !code && i < versus; i++) code = contenders_add(list, cli_text_item(a, "vs", i), device);
    if (code) contenders_free(list);
    return code;
}

void contenders_free(contender_list *list) {
    for (int i = 0; i < list->count; i++) plugin_free(list->items[i].plugin);
    free(list->items);
    *list = (contender_list){ NULL, 0 };
}

/* ---- one check ---- */

typedef struct check_call {
    contender *contender;
    check_data *data;
    const attn_options *options;
    int repeats;
    contender_outcome *out;     /* shared with the child */
} check_call;

static void describe_error(const contender *c, attn_status status, contender_outcome *out) {
    const char *error = c->plugin ? plugin_error(c->plugin) : NULL;
    if (!error && *out->verdict.reason) error = out->verdict.reason;
    if (error) snprintf(out->reason, sizeof out->reason, "%s", error);
    else snprintf(out->reason, sizeof out->reason, "%s: %s", attn_status_name(status), attn_last_error());
}

static int serve_check(void *arg, int64_t request) {
    const check_call *call = arg;
    contender *c = call->contender;
    contender_outcome *out = call->out;
    const char *refusal = NULL;
    (void)request;
    const attn_status status =
        check_run(&c->candidate, call->data, call->options, call->repeats, &out->verdict, &refusal);
    if (refusal) {
        out->kind = OUTCOME_REFUSED;
        snprintf(out->reason, sizeof out->reason, "%s", refusal);
    } else if (status) {
        out->kind = OUTCOME_FAILED;
        describe_error(c, status, out);
    } else if (!out->verdict.ok) {
        out->kind = OUTCOME_WRONG;
        snprintf(out->reason, sizeof out->reason, "%s", out->verdict.reason);
    } else {
        out->kind = OUTCOME_OK;
    }
    if (c->plugin && out->kind == OUTCOME_OK) out->has_traffic = plugin_traffic(c->plugin, &out->traffic);
    return 0;
}

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(contender_outcome *out, const char *reason) {
    *out = (contender_outcome){ .kind = OUTCOME_FAILED };
    snprintf(out->reason, sizeof out->reason, "%s", reason);
}

/* A CUDA context does not survive a fork: such contenders run here. */
static int check_here(const contender *c) { return c->device != ATTN_CPU; }

void contender_check(contender *c, check_data *data, const attn_options *options, int repeats, double seconds,
                     contender_outcome *out) {
    *out = (contender_outcome){ .kind = OUTCOME_FAILED };
    if (c->unavailable || (c->plugin && plugin_error(c->plugin))) {
        fail(out, c->unavailable ? c->unavailable : plugin_error(c->plugin));
        if (c->unavailable) out->kind = OUTCOME_REFUSED;
        return;
    }
    const double start = seconds_now();
    contender_outcome *shared = check_here(c) ? out : sandbox_shared(sizeof *shared);
    check_call call = { c, data, options, repeats, shared };
    if (check_here(c)) {
        serve_check(&call, 0);
    } else {
        int answer;
        sandbox *s = shared ? sandbox_open(serve_check, &call) : NULL;
        if (!s) fail(out, "no child process to run it in");
        else if (sandbox_call(s, 0, seconds, &answer)) fail(out, sandbox_reason(s));
        else *out = *shared;
        sandbox_close(s);
        sandbox_unshare(shared, sizeof *shared);
    }
    out->seconds = seconds_now() - start;
}
