/* bench_runner.c — a contender made ready for one problem in a child process that runs it so often as it is
 * told and says how long that took; and the same interface for the ceilings. */
#include "bench_runner.h"
#include "gpu_session.h"
#include "sandbox.h"
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { PREPARE = 0, CALL_SECONDS = 300 };   /* a request above 0 is a number of iterations */

typedef struct shared_answer {
    bench_sample sample;
    int          has_traffic;
    attn_traffic traffic;
    char         reason[256];
} shared_answer;

struct bench_runner {
    bench_item      item;           /* first: the item is the runner */
    contender      *contender;
    check_candidate candidate;
    check_data     *data;
    attn_options    options;
    void           *workspace, *own_workspace;  /* own: on a device, where all runners share a process */
    sandbox        *sandbox;        /* NULL for a contender that runs in this process */
    shared_answer  *answer;
    int             prepared;
};

static double cpu_seconds(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           1e-6 * (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

/* ---- in the child ---- */

static int prepare(bench_runner *r) {
    size_t workspace = 0;
    const char *refusal = NULL;
    const attn_status status = r->candidate.prepare(&r->candidate, check_data_problem(r->data), &r->options,
                                                    &workspace, &refusal);
    if (status || refusal) {
        snprintf(r->answer->reason, sizeof r->answer->reason, "%s", refusal ? refusal : attn_last_error());
        return 1;
    }
    if (check_data_problem(r->data)->device != ATTN_CPU && workspace)
        r->workspace = r->own_workspace = gpu_session_alloc(workspace);
    else r->workspace = check_data_workspace(r->data, workspace);
    if (!workspace || r->workspace) return 0;
    snprintf(r->answer->reason, sizeof r->answer->reason, "no memory for %zu bytes of workspace", workspace);
    return 1;
}

static int run_on_gpu(void *arg, void *stream) {
    bench_runner *r = arg;
    const attn_status status =
        r->candidate.run(&r->candidate, check_data_tensors(r->data), r->workspace, stream);
    if (status)
        snprintf(r->answer->reason, sizeof r->answer->reason, "%s: %s", attn_status_name(status),
                 attn_last_error());
    return status != ATTN_OK;
}

static int serve_gpu(bench_runner *r, int64_t iterations) {
    r->answer->sample = (bench_sample){ gpu_session_time(run_on_gpu, r, iterations), 0 };
    if (r->answer->sample.seconds >= 0) return 0;
    if (!*r->answer->reason) snprintf(r->answer->reason, sizeof r->answer->reason, "the device failed");
    return 1;
}

static int serve(void *arg, int64_t request) {
    bench_runner *r = arg;
    const attn_tensors *t = check_data_tensors(r->data);
    if (request == PREPARE) return prepare(r);
    if (check_data_problem(r->data)->device != ATTN_CPU) return serve_gpu(r, request);
    attn_status status = ATTN_OK;
    const double cpu = cpu_seconds(), start = bench_now();
    for (int64_t i = 0; i < request && !status; i++)
        status = r->candidate.run(&r->candidate, t, r->workspace, NULL);
    r->answer->sample = (bench_sample){ bench_now() - start, cpu_seconds() - cpu };
    if (r->contender->plugin)
        r->answer->has_traffic = plugin_traffic(r->contender->plugin, &r->answer->traffic);
    if (!status) return 0;
    snprintf(r->answer->reason, sizeof r->answer->reason, "%s: %s", attn_status_name(status),
             attn_last_error());
    return 1;
}

/* ---- outside ---- */

static int call(bench_runner *r, int64_t request) {
    int answer = 1;
    if (!r->sandbox) answer = serve(r, request);
    else if (sandbox_call(r->sandbox, request, CALL_SECONDS, &answer)) {
        snprintf(r->item.reason, sizeof r->item.reason, "%s", sandbox_reason(r->sandbox));
        return 1;
    }
    if (answer) snprintf(r->item.reason, sizeof r->item.reason, "%s", r->answer->reason);
    return answer;
}

static int sample(bench_item *item, int64_t iterations, bench_sample *out) {
    bench_runner *r = (bench_runner *)(void *)item;
    if (!r->prepared && call(r, PREPARE)) return 1;
    r->prepared = 1;
    if (call(r, iterations)) return 1;
    *out = r->answer->sample;
    return 0;
}

bench_runner *bench_runner_create(contender *c, check_data *data, const attn_options *options, int threads) {
    bench_runner *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->contender = c;
    r->candidate = c->candidate;
    r->data = data;
    r->options = *options;
    r->options.threads = threads;
    r->item.sample = sample;
    r->item.threads = threads;
    r->answer = sandbox_shared(sizeof *r->answer);
    if (r->answer && c->device == ATTN_CPU) r->sandbox = sandbox_open(serve, r);
    if (r->answer && (r->sandbox || c->device != ATTN_CPU)) return r;
    bench_runner_free(r);
    return NULL;
}

bench_item *bench_runner_item(bench_runner *r) { return &r->item; }

void bench_runner_traffic(const bench_runner *r, int *has_traffic, attn_traffic *traffic) {
    if (!r->answer->has_traffic) return;
    *has_traffic = 1;
    *traffic = r->answer->traffic;
}

void bench_runner_free(bench_runner *r) {
    if (!r) return;
    if (!r->sandbox && r->prepared) r->candidate.finish(&r->candidate);
    gpu_session_free(r->own_workspace);
    sandbox_close(r->sandbox);
    sandbox_unshare(r->answer, sizeof *r->answer);
    free(r);
}

/* ---- ceilings ---- */

struct bench_ceiling {
    bench_item       item;
    ceiling          ceiling;
    team            *team;
    ceiling_buffers  buffers;
    check_gpu_meter *meter;
};

static int sample_gpu_ceiling(bench_item *item, int64_t iterations, bench_sample *out) {
    bench_ceiling *c = (bench_ceiling *)(void *)item;
    *out = (bench_sample){ gpu_session_time(check_gpu_meter_run, c->meter, iterations), 0 };
    return out->seconds < 0;
}

static int sample_ceiling(bench_item *item, int64_t iterations, bench_sample *out) {
    bench_ceiling *c = (bench_ceiling *)(void *)item;
    const double cpu = cpu_seconds(), start = bench_now();
    ceiling_run(c->ceiling, c->team, iterations, &c->buffers);
    *out = (bench_sample){ bench_now() - start, cpu_seconds() - cpu };
    return 0;
}

bench_ceiling *bench_ceiling_create(ceiling which, int threads, const ceiling_buffers *buffers) {
    bench_ceiling *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->item.sample = sample_ceiling;
    c->item.threads = threads;
    c->ceiling = which;
    if (buffers) c->buffers = *buffers;
    if (which >= CEILING_GPU_READ) {
        c->item.sample = sample_gpu_ceiling;
        c->meter = gpu_session_meter(which);
        if (c->meter) return c;
    } else {
        c->team = team_create(threads);
        if (c->team) return c;
    }
    free(c);
    return NULL;
}

bench_item *bench_ceiling_item(bench_ceiling *c) { return &c->item; }

double bench_ceiling_work(const bench_ceiling *c) {
    if (c->meter) return check_gpu_meter_amount(c->meter);
    return ceiling_work(c->ceiling, c->item.threads, &c->buffers);
}

void bench_ceiling_free(bench_ceiling *c) {
    if (!c) return;
    team_destroy(c->team);
    free(c);
}
