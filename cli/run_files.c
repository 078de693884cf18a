/* run_files.c — attn run: tensors from files in, O and LSE to files out. Nothing is written before all is
 * computed. */
#include "gpu.h"
#include "inputs.h"
#include "npy.h"
#include "problem_options.h"
#include "safetensors.h"
#include "tensor_file.h"
#include "terminal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct result {     /* one case */
    char    name_o[512], name_lse[512];
    tensor  o, lse;
    void   *o_data;
    float  *lse_data;
} result;

/* ---- computing ---- */

static int api_failure(attn_status status) {
    cli_error("%s", attn_last_error());
    return status == ATTN_INVALID ? CLI_USAGE : CLI_FAILED;
}

static void *host_block(size_t bytes) {
    void *block = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (!block) cli_error("out of memory for %zu bytes", bytes);
    return block;
}

static int run_on_cpu(const attn_plan *plan, const cli_input *in, result *r) {
    attn_tensors t = in->tensors;
    t.o = r->o_data;
    t.lse = r->lse_data;
    void *workspace = host_block(attn_plan_workspace(plan));
    if (!workspace) return CLI_FAILED;
    const attn_status status = attn_run(plan, &t, workspace, NULL);
    free(workspace);
    return status ? api_failure(status) : CLI_OK;
}

/* What a run has on the device: inputs, then O, LSE and workspace. */
enum { DEVICE_O = INPUT_ROLES, DEVICE_LSE, DEVICE_WORKSPACE, DEVICE_BLOCKS };
typedef struct device_blocks { check_memory memory; void *block[DEVICE_BLOCKS]; } device_blocks;

static void *device_block(device_blocks *d, int i, size_t bytes) {
    d->block[i] = d->memory.alloc(d->memory.context, bytes);
    if (!d->block[i]) cli_error("the CUDA device has no %zu bytes of memory to spare", bytes);
    return d->block[i];
}

/* Everything to the device, run, O and LSE back. */
static int run_on_device(const attn_plan *plan, const cli_input *in, check_gpu *gpu, device_blocks *d,
                         result *r) {
    attn_tensors t = in->tensors;
    char why[256] = "copying to or from the device failed";
    for (int role = 0; role < INPUT_ROLES; role++) {
        const void **pointer = cli_input_pointer(&t, role);
        if (!*pointer) continue;
        if (!device_block(d, role, in->bytes[role])) return CLI_FAILED;
        if (d->memory.upload(d->memory.context, d->block[role], *pointer, in->bytes[role])) goto failed;
        *pointer = d->block[role];
    }
    t.o = device_block(d, DEVICE_O, r->o.bytes);
    t.lse = t.o ? device_block(d, DEVICE_LSE, r->lse.bytes) : NULL;
    if (!t.lse || !device_block(d, DEVICE_WORKSPACE, attn_plan_workspace(plan))) return CLI_FAILED;
    /* Packed rows that belong to no sequence keep what prepare_result wrote. */
    if (d->memory.upload(d->memory.context, t.o, r->o_data, r->o.bytes) ||
        d->memory.upload(d->memory.context, t.lse, r->lse_data, r->lse.bytes))
        goto failed;
    const attn_status status = attn_run(plan, &t, d->block[DEVICE_WORKSPACE], check_gpu_stream(gpu));
    if (status) return api_failure(status);
    if (check_gpu_wait(gpu, why, sizeof why) ||
        d->memory.download(d->memory.context, r->o_data, t.o, r->o.bytes) ||
        d->memory.download(d->memory.context, r->lse_data, t.lse, r->lse.bytes))
        goto failed;
    return CLI_OK;
failed:
    cli_error("CUDA: %s", why);
    return CLI_FAILED;
}

static int run_on_new_device(const attn_plan *plan, const cli_input *in, int ordinal, result *r) {
    char why[256];
    check_gpu *gpu = check_gpu_open(ordinal, why, sizeof why);
    if (!gpu) {
        cli_error("CUDA: %s", why);
        return CLI_FAILED;
    }
    device_blocks d = { .memory = check_gpu_memory(gpu) };
    const int code = run_on_device(plan, in, gpu, &d, r);
    for (int i = 0; i < DEVICE_BLOCKS; i++)
        if (d.block[i]) d.memory.free(d.memory.context, d.block[i]);
    check_gpu_close(gpu);
    return code;
}

static int prepare_result(const cli_input *in, const attn_problem *resolved, result *r) {
    snprintf(r->name_o, sizeof r->name_o, "%so", in->prefix);
    snprintf(r->name_lse, sizeof r->name_lse, "%slse", in->prefix);
    r->o = (tensor){ .name = r->name_o, .type = tensor_from_attn_dtype(resolved->o_dtype) };
    r->lse = (tensor){ .name = r->name_lse, .type = TENSOR_F32 };
    cli_input_o_shape(in, &r->o);
    cli_input_lse_shape(in, &r->lse);
    if (tensor_set_sizes(&r->o) || tensor_set_sizes(&r->lse)) {
        cli_error("%so: the number of elements overflows 64 bits", in->prefix);
        return CLI_FAILED;
    }
    r->o_data = host_block(r->o.bytes);
    r->lse_data = host_block(r->lse.bytes);
    r->o.data = r->o_data;
    r->lse.data = (const unsigned char *)r->lse_data;
    if (!r->o_data || !r->lse_data) return CLI_FAILED;
    /* Packed rows that belong to no sequence stay zero. */
    memset(r->o_data, 0, r->o.bytes);
    for (int64_t i = 0; i < r->lse.count; i++) r->lse_data[i] = -INFINITY;
    return CLI_OK;
}

/* ---- reporting ---- */

static void print_plan(const cli_input *in, const attn_plan *plan) {
    char text[1024];
    cli_problem_text(&in->problem, text, sizeof text);
    printf("%s%s%s\n  kernel %s, %zu bytes of workspace, at most %d thread%s\n", in->prefix,
           *in->prefix ? " " : "", text, attn_plan_kernel(plan), attn_plan_workspace(plan),
           attn_plan_threads(plan), attn_plan_threads(plan) == 1 ? "" : "s");
}

static void print_result(const cli_input *in, const attn_plan *plan, const result *r, double seconds) {
    char o[256], lse[256];
    int64_t bad = 0;
    tensor_shape_text(&r->o, o, sizeof o);
    tensor_shape_text(&r->lse, lse, sizeof lse);
    for (int64_t i = 0; i < r->o.count; i++) bad += !isfinite(tensor_element(&r->o, i));
    printf("%so %s %s, lse %s F32: %s, %.3g ms", in->prefix, o, tensor_types[r->o.type].name, lse,
           attn_plan_kernel(plan), 1e3 * seconds);
    if (bad)
        printf(", %s%lld elements of O are not finite%s", cli_style_code(stdout, CLI_YELLOW), (long long)bad,
               cli_style_code(stdout, CLI_PLAIN));
    putchar('\n');
}

/* ---- one case ---- */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int run_case(const cli_arguments *a, const cli_input *in, result *r) {
    const attn_options options = cli_engine(a);
    attn_plan *plan;
    const attn_status status = attn_plan_create(&plan, &in->problem, &options);
    if (status) return api_failure(status);
    int code = CLI_OK;
    if (cli_flag(a, "dry-run")) print_plan(in, plan);
    else {
        code = prepare_result(in, attn_plan_problem(plan), r);
        const double start = now();
        if (!code && in->problem.device == ATTN_CUDA)
            code = run_on_new_device(plan, in, options.cuda_device, r);
        else if (!code) code = run_on_cpu(plan, in, r);
        if (!code) print_result(in, plan, r, now() - start);
    }
    attn_plan_destroy(plan);
    return code;
}

/* ---- writing ---- */

static int write_named(cli_output *output, const result *results, int count, int with_o) {
    tensor *all = calloc(2 * (size_t)count + 1, sizeof *all);
    if (!all) {
        cli_error("out of memory");
        return 1;
    }
    int n = 0;
    for (int i = 0; i < count; i++) {
        if (with_o) all[n++] = results[i].o;
        all[n++] = results[i].lse;
    }
    char producer[64];
    snprintf(producer, sizeof producer, "attn %s", attn_version_string());
    const safetensors_note notes[] = { { "producer", producer }, { NULL, NULL } };
    const int failed = safetensors_write(output, all, n, notes);
    free(all);
    return failed;
}

static int write_one(cli_output *output, const char *path, const result *results, int count, int with_o) {
    if (tensor_format_of(path) == FORMAT_SAFETENSORS) return write_named(output, results, count, with_o);
    if (with_o && results->o.type == TENSOR_BF16)
        cli_remark("%s: bf16 is stored as V2, as the Python package ml_dtypes does", path);
    return npy_write(output, with_o ? &results->o : &results->lse);
}

/* --out and --lse, or NULL. Both open before anything is computed, both are written before one becomes
 * visible: an unwritable place shows at once and a full disk leaves neither. */
typedef struct outputs { const char *path[2]; cli_output *file[2]; } outputs;

static int open_outputs(outputs *out, const cli_arguments *a) {
    static const char *const names[2] = { "out", "lse" }, *const shown[2] = { "--out", "--lse" };
    *out = (outputs){ { NULL, NULL }, { NULL, NULL } };
    for (int i = 0; i < 2; i++) {
        out->path[i] = cli_flag(a, "dry-run") ? NULL : cli_text(a, names[i]);
        if (out->path[i] && cli_output_open(&out->file[i], shown[i], out->path[i])) return CLI_FAILED;
    }
    return CLI_OK;
}

static int write_outputs(outputs *out, const result *results, int count) {
    for (int i = 0; i < 2; i++)
        if (out->file[i] && write_one(out->file[i], out->path[i], results, count, i == 0)) return CLI_FAILED;
    for (int i = 0; i < 2; i++) {
        cli_output *file = out->file[i];
        out->file[i] = NULL;
        if (file && cli_output_commit(file)) return CLI_FAILED;
    }
    return CLI_OK;
}

static void discard_outputs(outputs *out) {
    for (int i = 0; i < 2; i++) cli_output_discard(out->file[i]);
}

/* ---- the command ---- */

static int check_outputs(const cli_arguments *a, int count) {
    static const char *const names[2] = { "out", "lse" };
    for (int i = 0; i < 2; i++) {
        const char *path = cli_text(a, names[i]);
        if (!path || count == 1 || tensor_format_of(path) == FORMAT_SAFETENSORS) continue;
        cli_error("--%s %s: npy holds one tensor, the input has %d cases: choose one with --prefix, or write "
                  ".safetensors", names[i], path, count);
        return CLI_USAGE;
    }
    if (cli_text(a, "out") && cli_text(a, "lse") && !strcmp(cli_text(a, "out"), cli_text(a, "lse"))) {
        cli_error("--out and --lse name the same file %s", cli_text(a, "out"));
        return CLI_USAGE;
    }
    return CLI_OK;
}

static int run_cases(const cli_arguments *a, const cli_input_files *files, result *results, int count) {
    outputs out;
    int code = open_outputs(&out, a);
    for (int i = 0; !code && i < count; i++) {
        cli_input in;
        code = cli_inputs_case(&in, files, i, a);
        if (code) break;
        cli_progress("case %d of %d", i + 1, count);
        code = run_case(a, &in, &results[i]);
        cli_input_free(&in);
    }
    cli_progress_end();
    if (!code) code = write_outputs(&out, results, count);
    discard_outputs(&out);
    return code;
}

static int run(const cli_arguments *a) {
    if (!cli_inputs_given(a)) {
        cli_error("no input: give --in FILE.safetensors, or --q, --k and --v");
        return CLI_USAGE;
    }
    cli_input_files *files;
    int code = cli_inputs_open(&files, a);
    if (code) return code;
    const int count = cli_inputs_count(files);
    result *results = calloc((size_t)count, sizeof *results);
    if (!results) cli_error("out of memory");
    code = !results ? CLI_FAILED : check_outputs(a, count);
    if (!code) code = run_cases(a, files, results, count);
    for (int i = 0; results && i < count; i++) {
        free(results[i].o_data);
        free(results[i].lse_data);
    }
    free(results);
    cli_inputs_close(files);
    return code;
}

static const cli_option options[] = {
    { .name = "out", .type = CLI_FILE, .argument = "FILE",
      .summary = "Where O goes: .npy, or .safetensors for o and lse of all cases." },
    { .name = "lse", .type = CLI_FILE, .argument = "FILE", .summary = "Where the log-sum-exp goes." },
    { .name = "dtype", .type = CLI_CHOICE, .argument = "TYPE", .choices = "f32 f16 bf16",
      .summary = "Convert Q, K and V; with bf16, take 16-bit words (<u2, V2) as bf16." },
    { .name = "dv", .type = CLI_INTEGER, .argument = "N", .low = 1, .high = 1024,
      .summary = "V is the first N columns of K." },
    { .name = "dry-run", .summary = "Print problem, kernel and workspace; compute and write nothing." },
    { .name = NULL },
};
static const cli_option *const tables[] = { cli_input_options, options, cli_mask_options, cli_engine_options,
                                            NULL };

const cli_command cli_command_run = {
    .name = "run", .summary = "Compute attention on tensors from .npy or .safetensors files.",
    .tables = tables, .run = run,
    .notes = "Outputs appear whole or not at all; an older file stays until the new one is complete.\n"
             "Examples:\n"
             "  attn run --q q.npy --k k.npy --v v.npy --causal --out o.npy --lse lse.npy\n"
             "  attn run --in qkv.safetensors --out o.safetensors",
};
