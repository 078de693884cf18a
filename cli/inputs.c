/* inputs.c — find the tensors of a case in files, convert what has to be, and point attn_tensors at them. */
#include "inputs.h"
#include "half.h"
#include "problem_options.h"
#include "tensor_file.h"
#include "terminal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ALIASES = 4 };
typedef enum wanted { WANT_QKV, WANT_BIAS, WANT_TABLE, WANT_BYTES, WANT_F32, WANT_I32 } wanted;

/* What each tensor may be called, in files; the first name is attn_tensors'. */
static const struct { const char *names[ALIASES]; wanted type; } roles[INPUT_ROLES] = {
    { { "q", "query" }, WANT_QKV },
    { { "k", "key", "k_cache", "kv_cache" }, WANT_QKV },
    { { "v", "value", "v_cache" }, WANT_QKV },
    { { "bias" }, WANT_BIAS },
    { { "mask" }, WANT_BYTES },
    { { "alibi_slopes" }, WANT_F32 },
    { { "sinks" }, WANT_F32 },
    { { "cu_seqlens_q" }, WANT_I32 },
    { { "cu_seqlens_kv", "cu_seqlens_k" }, WANT_I32 },
    { { "seqused_q" }, WANT_I32 },
    { { "seqused_kv", "seqused_k", "cache_seqlens" }, WANT_I32 },
    { { "leftpad_kv", "leftpad_k" }, WANT_I32 },
    { { "kv_batch_index", "cache_batch_idx" }, WANT_I32 },
    { { "block_table", "page_table" }, WANT_I32 },
    { { "k_new" }, WANT_QKV },
    { { "v_new" }, WANT_QKV },
    { { "rotary_cos" }, WANT_TABLE },
    { { "rotary_sin" }, WANT_TABLE },
};

const char *const cli_input_names[INPUT_ROLES] = {
    "q", "k", "v", "bias", "mask", "alibi_slopes", "sinks", "cu_seqlens_q", "cu_seqlens_kv", "seqused_q",
    "seqused_kv", "leftpad_kv", "kv_batch_index", "block_table", "k_new", "v_new", "rotary_cos", "rotary_sin"
};

/* Options that name one file each, in the order of the roles. */
static const char *const file_options[INPUT_ROLES] = { "q", "k", "v", "bias-file", "mask-file", "alibi-file",
    "sinks-file", "cu-seqlens-q", "cu-seqlens-kv", "seqused-q-file", "seqused-kv-file", "leftpad-file",
    "kv-batch-index", "block-table", "k-new", "v-new", "rotary-cos", "rotary-sin" };

#define FILE_OPTION(option, text) { .name = option, .type = CLI_FILE, .argument = "FILE", .summary = text }
const cli_option cli_input_options[] = {
    FILE_OPTION("in", "A safetensors file with tensors q, k, v and what else the problem needs."),
    { .name = "prefix",
      .type = CLI_TEXT,
      .argument = "P",
      .summary = "Only the case whose tensors are called Pq, Pk, Pv, as \"layer0.\" (all cases)." },
    FILE_OPTION("q", "Q: [batch, seq, heads, dim], or 3 dimensions for a batch of one or packed sequences."),
    FILE_OPTION("k", "K."),
    FILE_OPTION("v", "V; without it V is the first --dv columns of K."),
    FILE_OPTION("bias-file", "Additive bias; dimensions of size 1 broadcast over [batch, q_heads, q, kv]."),
    FILE_OPTION("mask-file", "Boolean mask, nonzero = visible; broadcasts as the bias does."),
    FILE_OPTION("alibi-file", "ALiBi slopes, [q_heads] or [batch, q_heads]."),
    FILE_OPTION("sinks-file", "Attention-sink logits, [q_heads]."),
    FILE_OPTION("cu-seqlens-q", "Q is packed: first row of each sequence, [batch + 1]."),
    FILE_OPTION("cu-seqlens-kv", "K and V are packed likewise."),
    FILE_OPTION("seqused-q-file", "Queries in use of each sequence, [batch]."),
    FILE_OPTION("seqused-kv-file", "Keys in use of each sequence, [batch]."),
    FILE_OPTION("leftpad-file", "Padding before the first key of each sequence, [batch]."),
    FILE_OPTION("kv-batch-index", "Row of K and V that each sequence reads, [batch]."),
    FILE_OPTION("block-table",
                "K and V are paged: [pages, page_size, kv_heads, dim]; pages of each sequence."),
    FILE_OPTION("k-new", "K is a cache: these rows go behind the keys in use first."),
    FILE_OPTION("v-new", "The same for V."),
    FILE_OPTION("rotary-cos", "Turn the new keys and Q first: [positions, rotary_dim / 2]."),
    FILE_OPTION("rotary-sin", "The same shape."),
    { .name = "rotary", .type = CLI_CHOICE, .argument = "PAIRS", .choices = "half interleaved",
      .summary = "Columns that are turned together: c with c + rotary_dim / 2, or 2c with 2c + 1 (half)." },
    { .name = NULL },
};

struct cli_input_files {
    tensor_file *in;                    /* --in, or NULL */
    tensor_file *parts[INPUT_ROLES];    /* --q and so on */
    char       **prefixes;
    int          count;
};

/* ---- files and cases ---- */

int cli_inputs_given(const cli_arguments *a) {
    if (cli_given(a, "in")) return 1;
    for (int i = 0; i < INPUT_ROLES; i++)
        if (cli_given(a, file_options[i])) return 1;
    return 0;
}

/* "layer0.q" has the prefix "layer0."; "seq" has none. @return its length or -1. */
static int prefix_length(const char *name) {
    for (int k = 0; k < ALIASES && roles[INPUT_Q].names[k]; k++) {
        const size_t n = strlen(name), m = strlen(roles[INPUT_Q].names[k]);
        if (n < m || strcmp(name + n - m, roles[INPUT_Q].names[k])) continue;
        if (n == m || name[n - m - 1] == '.' || name[n - m - 1] == '/') return (int)(n - m);
    }
    return -1;
}

static int add_prefix(cli_input_files *f, const char *text, size_t length) {
    char **larger = realloc(f->prefixes, ((size_t)f->count + 1) * sizeof *larger);
    char *copy = malloc(length + 1);
    if (larger) f->prefixes = larger;
    if (!larger || !copy) {
        free(copy);
        cli_error("out of memory");
        return CLI_FAILED;
    }
    memcpy(copy, text, length);
    copy[length] = 0;
    f->prefixes[f->count++] = copy;
    return CLI_OK;
}

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static int find_cases(cli_input_files *f, const cli_arguments *a) {
    const char *only = cli_text(a, "prefix");
    if (only) return add_prefix(f, only, strlen(only));
    for (int i = 0; f->in && f->in->format == FORMAT_SAFETENSORS && i < f->in->count; i++) {
        const int n = prefix_length(f->in->tensors[i].name);
        if (n >= 0 && add_prefix(f, f->in->tensors[i].name, (size_t)n)) return CLI_FAILED;
    }
    if (f->count) qsort(f->prefixes, (size_t)f->count, sizeof *f->prefixes, by_text);
    else return add_prefix(f, "", 0);
    return CLI_OK;
}

int cli_inputs_open(cli_input_files **out, const cli_arguments *a) {
    int code = CLI_OK;
    cli_input_files *f = calloc(1, sizeof *f);
    *out = NULL;
    if (!f) {
        cli_error("out of memory");
        return CLI_FAILED;
    }
    if (cli_given(a, "in") && tensor_file_open(&f->in, cli_text(a, "in"))) code = CLI_FAILED;
    for (int i = 0; !code && i < INPUT_ROLES; i++)
        if (cli_given(a, file_options[i]) && tensor_file_open(&f->parts[i], cli_text(a, file_options[i])))
            code = CLI_FAILED;
    if (!code) code = find_cases(f, a);
    if (code) {
        cli_inputs_close(f);
        return code;
    }
    *out = f;
    return CLI_OK;
}

void cli_inputs_close(cli_input_files *f) {
    if (!f) return;
    tensor_file_close(f->in);
    for (int i = 0; i < INPUT_ROLES; i++) tensor_file_close(f->parts[i]);
    for (int i = 0; i < f->count; i++) free(f->prefixes[i]);
    free(f->prefixes);
    free(f);
}

int cli_inputs_count(const cli_input_files *f) { return f->count; }

/* ---- one tensor ---- */

/* The tensor of a role: the file named for it, else the first alias in --in. */
static int find_part(const tensor **out, const cli_input_files *f, const char *prefix, int role) {
    *out = NULL;
    if (f->parts[role]) {
        if (f->parts[role]->count == 1) *out = f->parts[role]->tensors;
        else *out = tensor_file_find(f->parts[role], roles[role].names[0]);
        if (*out) return CLI_OK;
        cli_error("--%s %s: holds %d tensors, none is called \"%s\"", file_options[role],
                  f->parts[role]->path, f->parts[role]->count, roles[role].names[0]);
        return CLI_FAILED;
    }
    for (int k = 0; f->in && k < ALIASES && roles[role].names[k]; k++) {
        char name[512];
        snprintf(name, sizeof name, "%s%s", prefix, roles[role].names[k]);
        const tensor *t = tensor_file_find(f->in, name);
        if (t && *out) {
            cli_error("%s: \"%s\" and \"%s\" mean the same tensor", f->in->path, (*out)->name, name);
            return CLI_FAILED;
        }
        if (t) *out = t;
    }
    return CLI_OK;
}

static int is_integer(tensor_type t) {
    return t == TENSOR_I32 || t == TENSOR_I64 || t == TENSOR_I16 || t == TENSOR_U16 || t == TENSOR_U8 ||
           t == TENSOR_I8 || t == TENSOR_U32 || t == TENSOR_U64;
}

static size_t type_size(attn_dtype dtype) { return (size_t)tensor_types[tensor_from_attn_dtype(dtype)].size; }

/* A copy as int32 or as one of the attn types. NULL with a message on failure. */
static void *convert(const tensor *t, const char *role, int to_integer, attn_dtype dtype) {
    const size_t size = to_integer ? 4 : type_size(dtype);
    void *copy = aligned_alloc(64, ((size_t)t->count * size + 64) / 64 * 64);
    if (!copy) {
        cli_error("%s: out of memory for a copy of %zu bytes", role, (size_t)t->count * size);
        return NULL;
    }
    for (int64_t i = 0; i < t->count; i++) {
        const double x = tensor_element(t, i);
        if (!to_integer) {
            attn_store(copy, dtype, i, (float)x);
            continue;
        }
        if (!(x >= -2147483648.0 && x <= 2147483647.0)) {
            cli_error("%s: element %lld = %g doesn't fit 32 bits", role, (long long)i, x);
            free(copy);
            return NULL;
        }
        ((int32_t *)copy)[i] = (int32_t)x;
    }
    return copy;
}

static int type_error(const char *role, const tensor *t, const char *remedy) {
    cli_error("%s: type %s: %s", role, tensor_types[t->type].name, remedy);
    return CLI_FAILED;
}

/* Where the bytes can be used as they are, use them. */
static int use(const void **pointer, cli_input *in, int role, int direct, int to_integer, attn_dtype dtype) {
    const tensor *t = in->parts[role];
    const size_t size = (size_t)tensor_types[t->type].size;
    in->bytes[role] = direct ? t->bytes : (size_t)t->count * (to_integer ? 4 : type_size(dtype));
    if (direct && (uintptr_t)t->data % size == 0) {
        *pointer = t->data;
        return CLI_OK;
    }
    if (direct) {   /* right type, wrong alignment */
        in->owned[role] = aligned_alloc(64, (t->bytes + 64) / 64 * 64);
        if (in->owned[role]) memcpy(in->owned[role], t->data, t->bytes);
        else cli_error("%s: out of memory for a copy of %zu bytes", roles[role].names[0], t->bytes);
    } else in->owned[role] = convert(t, roles[role].names[0], to_integer, dtype);
    *pointer = in->owned[role];
    return *pointer ? CLI_OK : CLI_FAILED;
}

static const char *const float_remedy =
    "must be F32, F16 or BF16; --dtype f32|f16|bf16 converts, and says that 16-bit "
    "words (<u2, V2) are bf16";

/* Q, K, V and the bias: one of the three types. `dtype` 0: as stored. */
static int use_floats(const void **pointer, cli_input *in, int role, attn_dtype dtype, attn_dtype *used) {
    const tensor *t = in->parts[role];
    attn_dtype stored = tensor_attn_dtype(t->type);
    if (t->type == TENSOR_U16 && dtype == ATTN_BF16) stored = ATTN_BF16;
    if (!stored && (!dtype || t->type != TENSOR_F64))
        return type_error(roles[role].names[0], t, float_remedy);
    *used = dtype ? dtype : stored;
    return use(pointer, in, role, stored == *used, 0, *used);
}

const void **cli_input_pointer(attn_tensors *t, int role) {
    const void **const places[INPUT_ROLES] = {
        &t->q, &t->k, &t->v, &t->bias, (const void **)&t->mask, (const void **)&t->alibi_slopes,
        (const void **)&t->sinks, (const void **)&t->cu_seqlens_q, (const void **)&t->cu_seqlens_kv,
        (const void **)&t->seqused_q, (const void **)&t->seqused_kv, (const void **)&t->leftpad_kv,
        (const void **)&t->kv_batch_index, (const void **)&t->block_table, &t->k_new, &t->v_new,
        &t->rotary_cos,
        &t->rotary_sin };
    return places[role];
}

static int use_part(cli_input *in, int role, attn_dtype dtype) {
    const tensor *t = in->parts[role];
    const char *name = roles[role].names[0];
    const void *pointer = NULL;
    attn_dtype used = ATTN_DTYPE_DEFAULT;
    int code = CLI_OK;
    switch (roles[role].type) {
    case WANT_QKV:
        code = use_floats(&pointer, in, role, dtype, &used);
        if (!code && role == INPUT_Q) in->problem.dtype = used;
        if (!code && used != in->problem.dtype)
            code = type_error(name, t, "q, k and v must have one type; --dtype converts");
        break;
    case WANT_BIAS:
        code = use_floats(&pointer, in, role,
                          t->type == TENSOR_F64   ? ATTN_F32
                          : t->type == TENSOR_U16 ? dtype
                                                  : ATTN_DTYPE_DEFAULT,
                          &in->problem.bias_dtype);
        break;
    case WANT_TABLE:
        code = use_floats(&pointer, in, role, t->type == TENSOR_F64 ? ATTN_F32 : ATTN_DTYPE_DEFAULT,
                          &in->problem.rotary_dtype);
        break;
    case WANT_BYTES:
        if (t->type != TENSOR_BOOL && t->type != TENSOR_U8) return type_error(name, t, "must be BOOL or U8");
        code = use(&pointer, in, role, 1, 0, ATTN_F32);
        break;
    case WANT_F32:
        if (!tensor_attn_dtype(t->type) && t->type != TENSOR_F64) return type_error(name, t, "must be F32");
        code = use(&pointer, in, role, t->type == TENSOR_F32, 0, ATTN_F32);
        break;
    case WANT_I32:
        if (!is_integer(t->type)) return type_error(name, t, "must be I32 or another integer type");
        code = use(&pointer, in, role, t->type == TENSOR_I32, 1, ATTN_F32);
        break;
    }
    *cli_input_pointer(&in->tensors, role) = pointer;
    return code;
}

/* ---- a case ---- */

/* A tensor that nobody reads is probably a misspelt one. */
static void report_unused(const cli_input *in, const cli_input_files *f) {
    const size_t n = strlen(in->prefix);
    for (int i = 0; f->in && i < f->in->count; i++) {
        const tensor *t = &f->in->tensors[i];
        int known = strncmp(t->name, in->prefix, n) || prefix_length(t->name) > (int)n;
        for (int r = 0; r < INPUT_ROLES; r++) known |= in->parts[r] == t;
        if (!known && !strcmp(in->prefix, "") && strpbrk(t->name, "./")) known = 1;
        if (!known && strcmp(t->name + n, "o") && strcmp(t->name + n, "lse"))
            cli_remark("%s: tensor \"%s\" is not used", f->in->path, t->name);
    }
}

static int fill(cli_input *in, const cli_input_files *f, const cli_arguments *a) {
    for (int r = 0; r < INPUT_ROLES; r++)
        if (find_part(&in->parts[r], f, in->prefix, r)) return CLI_FAILED;
    for (int r = INPUT_Q; r <= INPUT_K; r++)
        if (!in->parts[r]) {
            cli_error("no tensor \"%s%s\"%s%s: give --%s FILE, or --in FILE with it", in->prefix,
                      roles[r].names[0], f->in ? " in " : "", f->in ? f->in->path : "", roles[r].names[0]);
            return CLI_USAGE;
        }
    const attn_dtype dtype = (attn_dtype)(cli_choice(a, "dtype", -1) + 1);
    for (int r = 0; r < INPUT_ROLES; r++)
        if (in->parts[r]) {
            const int code = use_part(in, r, dtype);
            if (code) return code;
        }
    int code = cli_input_shapes(in, cli_integer(a, "dv", 0));
    if (!code) code = cli_input_append(in, cli_choice(a, "rotary", 0));
    if (code) return code;
    cli_problem_masks(a, &in->problem);
    report_unused(in, f);
    attn_problem resolved = in->problem;
    if (!attn_problem_resolve(&resolved)) return CLI_OK;
    cli_error("%s", attn_last_error());
    return CLI_USAGE;
}

int cli_inputs_case(cli_input *out, const cli_input_files *f, int i, const cli_arguments *a) {
    *out = (cli_input){ .prefix = f->prefixes[i], .problem = ATTN_PROBLEM_INIT, .tensors = ATTN_TENSORS_INIT,
                        .bhsd = cli_choice(a, "layout", 0) == 1 };
    const int code = fill(out, f, a);
    if (code) cli_input_free(out);
    return code;
}

void cli_input_free(cli_input *input) {
    for (int r = 0; r < INPUT_ROLES; r++) {
        free(input->owned[r]);
        input->owned[r] = NULL;
    }
}
