/* plan.c — choosing a kernel, and saying why. attn_explain and attn_plan_create ask the same function. */
#include "float_mode.h"
#include "kernel.h"
#if defined(ATTN_WITH_CUDA)
#include "cuda/launch.h"
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- which kernel ---- */

const char *attn_kernel_unavailable(const attn_kernel *kernel, int cuda_device) {
#if defined(ATTN_WITH_CUDA)
    if (kernel->device == ATTN_CUDA) return attn_cuda_unavailable(kernel->isa, cuda_device);
#endif
    (void)cuda_device;
    const unsigned missing = kernel->isa & ~attn_isa_bits();
#define ATTN_ISA(name, index, description) \
    if (missing & (1u << (index))) \
        return "needs " description ", which this CPU lacks or ATTN_CPU_ISA forbids";
#include "isa.def"
#undef ATTN_ISA
    return NULL;
}

const char *attn_kernel_refuses(const attn_kernel *kernel, const attn_problem *problem, int cuda_device) {
    if (kernel->pass != problem->pass) return "computes another pass";
    if (kernel->device != problem->device) return "runs on another device";
    const char *unavailable = attn_kernel_unavailable(kernel, cuda_device);
    if (unavailable) return unavailable;
    if (!(kernel->dtypes & ATTN_DTYPE_BIT(problem->dtype))) return "dtype not supported";
    const unsigned missing = attn_problem_needs(problem) & ~kernel->features;
    if (missing) return attn_needs_sentence(missing & (~missing + 1));
    const char *why = kernel->refuse ? kernel->refuse(problem) : NULL;
    return !why && kernel->yields ? kernel->yields(problem, cuda_device) : why;
}

static const attn_kernel *kernel_named(const char *name) {
    for (const attn_kernel *const *k = attn_kernels; *k; k++)
        if (!strcmp((*k)->name, name)) return *k;
    return NULL;
}

/* Before any kernel is asked: is there a device for the problem at all? */
static attn_status check_device(const attn_problem *p, const attn_options *options) {
    if (p->device != ATTN_CUDA) return ATTN_OK;
#if defined(ATTN_WITH_CUDA)
    return attn_cuda_check_device(options->cuda_device);
#else
    (void)options;
    return attn_fail(ATTN_UNSUPPORTED, "device = ATTN_CUDA: this library was built without CUDA kernels");
#endif
}

static attn_status choose(const attn_kernel **out, const attn_problem *p, const attn_options *options) {
    attn_status status = check_device(p, options);
    if (status) return status;
    if (options->kernel) {
        const attn_kernel *kernel = kernel_named(options->kernel);
        if (!kernel)
            return attn_fail(ATTN_INVALID, "options.kernel = \"%s\": no such kernel (attn info lists them)",
                             options->kernel);
        const char *why = attn_kernel_refuses(kernel, p, options->cuda_device);
        if (why) return attn_fail(ATTN_UNSUPPORTED, "kernel %s: %s", kernel->name, why);
        *out = kernel;
        return ATTN_OK;
    }
    for (const attn_kernel *const *k = attn_kernels; *k; k++)
        if (!attn_kernel_refuses(*k, p, options->cuda_device)) {
            *out = *k;
            return ATTN_OK;
        }
    return attn_fail(ATTN_UNSUPPORTED, "no kernel for this problem%s: attn_explain says why",
                     p->pass != ATTN_FORWARD && p->pass != ATTN_KV_APPEND
                         ? " (only ATTN_FORWARD and ATTN_KV_APPEND are computed)" : "");
}

/* ---- options ---- */

static attn_status import_options(attn_options *to, const attn_options *from) {
    *to = (attn_options){ .struct_size = sizeof *to };
    if (!from) return ATTN_OK;
    if (attn_struct_import(to, sizeof *to, from, from->struct_size, "options")) return ATTN_INVALID;
    to->struct_size = sizeof *to;
    if (to->threads < 0 || to->threads > 1024)
        return attn_fail(ATTN_INVALID, "options.threads = %d: must be 0 .. 1024", (int)to->threads);
    if (to->splits < 0) return attn_fail(ATTN_INVALID, "options.splits = %d: must be >= 0", (int)to->splits);
    if (to->cuda_device < 0)
        return attn_fail(ATTN_INVALID, "options.cuda_device = %d: must be >= 0", (int)to->cuda_device);
    if (to->checked != 0 && to->checked != 1)
        return attn_fail(ATTN_INVALID, "options.checked = %d: must be 0 or 1", (int)to->checked);
    if (to->reserved) return attn_fail(ATTN_INVALID, "options.reserved = %d: must be 0", (int)to->reserved);
    return ATTN_OK;
}

/* ---- plans ---- */

/* Waking a second thread costs some microseconds: below this many multiplications it isn't worth it. */
static int is_tiny(const attn_problem *p) {
    const int64_t factors[] = { p->q_heads, p->q_len, p->kv_len, p->qk_dim + p->v_dim };
    int64_t product = p->batch;
    if (p->pass == ATTN_KV_APPEND) return attn_append_is_tiny(p);
    for (size_t i = 0; i < sizeof factors / sizeof *factors; i++)
        if (!attn_multiply(product, factors[i], &product)) return 0;
    return product < 131072;
}

static int plan_threads(const attn_problem *p, const attn_options *options) {
    if (p->device != ATTN_CPU || (!options->threads && is_tiny(p))) return 1;
    const int wanted = options->threads ? options->threads : attn_threads_default();
    return options->parallel_for ? wanted : attn_threads_reserve(wanted);
}

attn_status attn_plan_create(attn_plan **out, const attn_problem *problem,
                             const attn_options *caller_options) {
    if (!out) return attn_fail(ATTN_INVALID, "plan = NULL");
    *out = NULL;
    attn_problem resolved;
    attn_options options;
    const attn_kernel *kernel;
    attn_status status = attn_problem_import(&resolved, problem);
    if (!status) status = import_options(&options, caller_options);
    if (!status) status = choose(&kernel, &resolved, &options);
    if (status) return status;
    attn_plan *plan = malloc(sizeof *plan);
    if (!plan) return attn_fail(ATTN_NO_MEMORY, "out of memory for a plan of %zu bytes", sizeof *plan);
    *plan = (attn_plan){ .problem = resolved, .kernel = kernel, .threads = plan_threads(&resolved, &options),
                         .splits = options.splits, .cuda_device = options.cuda_device,
                         .checked = options.checked, .parallel_for = options.parallel_for,
                         .parallel_context = options.parallel_context };
    const attn_float_mode mode = attn_float_enter();
    status = kernel->prepare ? kernel->prepare(plan) : ATTN_OK;
    attn_float_leave(mode);
    if (status) {
        free(plan);
        return status;
    }
    *out = plan;
    return ATTN_OK;
}

void attn_plan_destroy(attn_plan *plan) { free(plan); }
const char *attn_plan_kernel(const attn_plan *plan) { return plan->kernel->name; }
const attn_problem *attn_plan_problem(const attn_plan *plan) { return &plan->problem; }
size_t attn_plan_workspace(const attn_plan *plan) { return (size_t)plan->workspace; }
size_t attn_plan_schedule_size(const attn_plan *plan) { return (size_t)plan->schedule_bytes; }
int attn_plan_threads(const attn_plan *plan) { return plan->threads; }

int attn_explain(const attn_problem *problem, const attn_options *caller_options, char *text, size_t size) {
    attn_options options;
    attn_problem p;
    if (size) text[0] = 0;
    if (attn_problem_import(&p, problem) || import_options(&options, caller_options))
        return snprintf(text, size, "%s\n", attn_last_error());
    const attn_kernel *chosen = NULL;
    if (choose(&chosen, &p, &options)) chosen = NULL;
    int length = 0;
    for (const attn_kernel *const *k = attn_kernels; *k; k++) {
        if ((*k)->pass != p.pass || (*k)->device != p.device) continue;
        const char *why = attn_kernel_refuses(*k, &p, options.cuda_device);
        const int room = (size_t)length < size;
        length += snprintf(room ? text + length : NULL, room ? size - (size_t)length : 0, "%-24s %s\n",
                           (*k)->name, why ? why : *k == chosen ? "chosen" : "fits");
    }
    if (!length) length = snprintf(text, size, "no kernel for this pass and device is built in\n");
    return length;
}

attn_status attn_kernel_describe(int index, attn_kernel_info *info) {
    if (!info || info->struct_size < sizeof *info)
        return attn_fail(ATTN_INVALID, "info: must be a struct with struct_size = sizeof(attn_kernel_info)");
    for (int i = 0; attn_kernels[i]; i++)
        if (i == index) {
            const attn_kernel *k = attn_kernels[i];
            *info = (attn_kernel_info){ .struct_size = info->struct_size, .pass = k->pass, .name = k->name,
                                        .summary = k->summary, .unavailable = attn_kernel_unavailable(k, 0),
                                        .device = k->device, .dtypes = k->dtypes };
            return ATTN_OK;
        }
    return attn_fail(ATTN_INVALID, "index = %d: past the last kernel", index);
}
