/* convert.c — attn convert: npy to safetensors and back, with a change of type. */
#include "half.h"
#include "npy.h"
#include "options.h"
#include "safetensors.h"
#include "tensor_file.h"
#include "terminal.h"
#include <stdlib.h>
#include <string.h>

typedef struct job {
    tensor_file **files;        /* one per input */
    tensor       *tensors;      /* what goes out */
    char        **names;        /* owned, for npy inputs */
    void        **owned;        /* converted data */
    int           file_count, count;
} job;

/* ---- collecting ---- */

/* "folder/q.npy" is called q. */
static char *stem(const char *path) {
    const char *slash = strrchr(path, '/'), *start = slash ? slash + 1 : path, *dot = strrchr(start, '.');
    return strndup(start, dot && dot > start ? (size_t)(dot - start) : strlen(start));
}

static int add(job *j, const tensor *t, char *name) {
    tensor *tensors = realloc(j->tensors, ((size_t)j->count + 1) * sizeof *tensors);
    if (tensors) j->tensors = tensors;
    char **names = realloc(j->names, ((size_t)j->count + 1) * sizeof *names);
    if (names) j->names = names;
    void **owned = realloc(j->owned, ((size_t)j->count + 1) * sizeof *owned);
    if (owned) j->owned = owned;
    if (!tensors || !names || !owned || !name) {
        free(name);
        cli_error("out of memory");
        return CLI_FAILED;
    }
    for (int i = 0; i < j->count; i++)
        if (!strcmp(j->names[i], name)) {
            cli_error("two tensors would be called \"%s\": name one with NAME=FILE", name);
            free(name);
            return CLI_USAGE;
        }
    j->tensors[j->count] = *t;
    j->tensors[j->count].name = name;
    j->names[j->count] = name;
    j->owned[j->count++] = NULL;
    return CLI_OK;
}

/* FILE, or NAME=FILE for an npy file. */
static int add_file(job *j, const char *operand, const char *only) {
    const char *equals = strchr(operand, '='), *path = equals ? equals + 1 : operand;
    tensor_file *f;
    if (tensor_file_open(&f, path)) return CLI_FAILED;
    j->files[j->file_count++] = f;
    if (equals && f->format != FORMAT_NPY) {
        cli_error("%s: NAME=FILE names the array of an npy file; this is safetensors", operand);
        return CLI_USAGE;
    }
    for (int i = 0; i < f->count; i++) {
        if (only && f->format == FORMAT_SAFETENSORS && strcmp(only, f->tensors[i].name)) continue;
        char *name = f->format == FORMAT_SAFETENSORS ? strdup(f->tensors[i].name)
                   : equals ? strndup(operand, (size_t)(equals - operand)) : stem(path);
        const int code = add(j, &f->tensors[i], name);
        if (code) return code;
    }
    return CLI_OK;
}

/* ---- types ---- */

static int is_float(tensor_type t) {
    return t == TENSOR_F32 || t == TENSOR_F16 || t == TENSOR_BF16 || t == TENSOR_F64;
}

/* Integers and booleans stay as they are. */
static int convert(job *j, int i, attn_dtype dtype, int words_are_bf16) {
    tensor *t = &j->tensors[i];
    if (t->type == TENSOR_U16 && words_are_bf16) t->type = TENSOR_BF16;
    if (!dtype || !is_float(t->type) || t->type == tensor_from_attn_dtype(dtype)) return CLI_OK;
    tensor to = *t;
    to.type = tensor_from_attn_dtype(dtype);
    if (tensor_set_sizes(&to) || !(j->owned[i] = malloc(to.bytes + 1))) {
        cli_error("%s: out of memory for %zu bytes", t->name, to.bytes);
        return CLI_FAILED;
    }
    for (int64_t k = 0; k < t->count; k++) attn_store(j->owned[i], dtype, k, (float)tensor_element(t, k));
    to.data = j->owned[i];
    *t = to;
    return CLI_OK;
}

/* ---- writing ---- */

static int write_out(const job *j, const char *path) {
    cli_output *output;
    const int named = tensor_format_of(path) == FORMAT_SAFETENSORS;
    if (!named && j->count != 1) {
        cli_error("%s: npy holds one tensor, the input has %d: choose one with --name", path, j->count);
        return CLI_USAGE;
    }
    if (cli_output_open(&output, "output", path)) return CLI_FAILED;
    if (named ? safetensors_write(output, j->tensors, j->count, NULL) : npy_write(output, j->tensors)) {
        cli_output_discard(output);
        return CLI_FAILED;
    }
    return cli_output_commit(output) ? CLI_FAILED : CLI_OK;
}

/* ---- the command ---- */

static int run(const cli_arguments *a) {
    const int inputs = cli_operands(a) - 1;
    const char *only = cli_text(a, "name");
    job j = { .files = calloc((size_t)inputs, sizeof *j.files) };
    int code = j.files ? CLI_OK : CLI_FAILED;
    if (code) cli_error("out of memory");
    for (int i = 0; !code && i < inputs; i++) code = add_file(&j, cli_operand(a, i), only);
    if (!code && only && !j.count) {
        cli_error("no tensor is called \"%s\"", only);
        code = CLI_FAILED;
    }
    for (int i = 0; !code && i < j.count; i++)
        code = convert(&j, i, (attn_dtype)(cli_choice(a, "dtype", -1) + 1), cli_flag(a, "bf16"));
    if (!code) code = write_out(&j, cli_operand(a, inputs));
    if (!code) cli_remark("%s: %d tensor%s", cli_operand(a, inputs), j.count, j.count == 1 ? "" : "s");
    for (int i = 0; i < j.count; i++) free(j.names[i]), free(j.owned[i]);
    for (int i = 0; i < j.file_count; i++) tensor_file_close(j.files[i]);
    free(j.files);
    free(j.tensors);
    free(j.names);
    free(j.owned);
    return code;
}

static const cli_option options[] = {
    { .name = "dtype",
      .type = CLI_CHOICE,
      .argument = "TYPE",
      .choices = "f32 f16 bf16",
      .summary = "Convert floating-point tensors; others stay as they are." },
    { .name = "bf16", .summary = "16-bit words (<u2 and V2 in npy files) are bf16." },
    { .name = "name",
      .type = CLI_TEXT,
      .argument = "NAME",
      .summary = "Only this tensor of safetensors inputs." },
    { .name = NULL },
};
static const cli_option *const tables[] = { options, NULL };

const cli_command cli_command_convert = {
    .name = "convert", .summary = "Turn .npy into .safetensors and back, or change the type.",
    .operands = "FILE... OUTPUT", .least_operands = 2, .most_operands = 1 << 20, .tables = tables, .run = run,
    .notes = "An npy input is called as its file; NAME=FILE gives another name.\n"
             "Examples:\n"
             "  attn convert q.npy k.npy v=values.npy qkv.safetensors --dtype bf16\n"
             "  attn convert qkv.safetensors q.npy --name q --dtype f32",
};
