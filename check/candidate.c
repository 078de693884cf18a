/* candidate.c — library kernels by name through the public API, and the run of any candidate: poison, run
 * guarded, judge; with repeats the same bits under every poison pattern. */
#include "memory.h"
#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- a kernel of the library ---- */

static char library_refusal[256];   /* the tools prepare one candidate at a time */

static attn_status library_prepare(check_candidate *c, const attn_problem *problem,
                                   const attn_options *options, size_t *workspace, const char **refusal) {
    attn_options o = ATTN_OPTIONS_INIT;
    attn_plan *plan;
    if (options) o = *options;
    o.kernel = c->name;
    const attn_status status = attn_plan_create(&plan, problem, &o);
    *refusal = NULL;
    c->state = plan;
    if (status == ATTN_UNSUPPORTED) {
        snprintf(library_refusal, sizeof library_refusal, "%s", attn_last_error());
        *refusal = library_refusal;
    }
    if (!status) *workspace = attn_plan_workspace(plan);
    return status;
}

static attn_status library_run(check_candidate *c, const attn_tensors *tensors, void *workspace,
                               void *stream) {
    return attn_run(c->state, tensors, workspace, stream);
}

static void library_finish(check_candidate *c) {
    attn_plan_destroy(c->state);
    c->state = NULL;
}

check_candidate check_library_kernel(const char *name) {
    return (check_candidate){ name, library_prepare, library_run, library_finish, NULL };
}

/* ---- running one ---- */

typedef struct call {
    check_candidate *candidate;
    check_data      *data;
    void            *workspace;
} call;

static attn_status run_call(void *arg) {
    call *c = arg;
    return c->candidate->run(c->candidate, check_data_tensors(c->data), c->workspace, NULL);
}

static void fail(check_verdict *v, const char *text) {
    v->ok = 0;
    snprintf(v->reason, sizeof v->reason, "%s", text);
}

/* Which tensor's guard was hit? */
static void describe_fault(const check_data *data, const void *address, check_verdict *v) {
    const unsigned char *where = address;
    snprintf(v->reason, sizeof v->reason, "crashed: fault at address %p, no tensor near it", address);
    for (int n = 0; n < AREAS; n++) {
        const area *a = &data->areas[n];
        const ptrdiff_t guard = 4096;
        if (!a->base || where < a->base - guard || where >= a->base + a->total + guard) continue;
        const long long first = (long long)(where - a->base) - (long long)a->offset;
        const char *side = first < 0 ? "before its beginning" : "from its beginning";
        snprintf(v->reason, sizeof v->reason, "touched memory outside %s: byte %lld %s, it has %llu",
                 check_area_names[n], first < 0 ? -first : first, side, (unsigned long long)a->bytes);
    }
    v->ok = 0;
}

/* One run under one poison; *hash of the output. */
static attn_status run_once(call *c, int pattern, check_verdict *v, uint64_t *hash) {
    char command[1024];
    attn_status status = ATTN_OK;
    void *address;
    check_data_poison(c->data, pattern);
    check_case_command(&c->data->what, c->candidate->name, command, sizeof command);
    const int rounding = fegetround();
    if (check_guarded(run_call, c, command, &status, &address)) {
        describe_fault(c->data, address, v);
        return ATTN_OK;
    }
    if (status) {
        snprintf(v->reason, sizeof v->reason, "run returned %s: %.300s", attn_status_name(status),
                 attn_last_error());
        v->ok = 0;
        return status;
    }
    check_data_judge(c->data, v);
    if (v->ok && fegetround() != rounding) fail(v, "the rounding mode was changed");
    fesetround(rounding);
    *hash = check_data_hash(c->data);
    return ATTN_OK;
}

/* A wrong candidate may have written them; the next one gets clean ones. */
static void restore_inputs(check_data *data) {
    for (int n = 0; n < AREA_WORKSPACE; n++) check_area_upload(data, (area_name)n);
}

attn_status check_run(check_candidate *candidate, check_data *data, const attn_options *options, int repeats,
                      check_verdict *verdict, const char **refusal) {
    static const int patterns[] = { 0, 3, 1, 2 };
    size_t workspace = 0;
    const char *why = NULL;
    *verdict = (check_verdict){ .ok = 1 };
    attn_status status = candidate->prepare(candidate, &data->problem, options, &workspace, &why);
    if (refusal) *refusal = why;
    if (status) {
        snprintf(verdict->reason, sizeof verdict->reason, "%.400s", why ? why : attn_last_error());
        verdict->ok = 0;
        return why ? ATTN_UNSUPPORTED : status;
    }
    status = check_data_answer(data);
    call c = { candidate, data, check_data_workspace(data, workspace) };
    if (workspace && !c.workspace) status = ATTN_NO_MEMORY;
    uint64_t first = 0, hash = 0;
    for (int n = 0; !status && verdict->ok && n < (repeats > 1 ? repeats : 1); n++) {
        status = run_once(&c, patterns[(n + (int)(data->what.seed % 4)) % 4], verdict, n ? &hash : &first);
        if (verdict->ok && n && hash != first)
            fail(verdict,
                 "the bits differ from run to run, or with the content of outputs and workspace on entry");
    }
    candidate->finish(candidate);
    check_area_destroy(data, AREA_WORKSPACE);
    if (!verdict->ok) restore_inputs(data);
    if (status) verdict->ok = 0;
    return status;
}
