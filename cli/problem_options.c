/* problem_options.c — options to problems: a row per option says which field it sets; lists multiply out. */
#include "problem_options.h"
#include "terminal.h"
#include <stdlib.h>
#include <string.h>

#define DTYPES "f32 f16 bf16"
static const int64_t longest = (int64_t)1 << 40;
#define SIZE(option, placeholder, text) \
    { .name = option, .type = CLI_INTEGER, .argument = placeholder, .summary = text, .list = 1, \
      .high = (int64_t)1 << 40 }
#define FLAG(option, text) { .name = option, .type = CLI_FLAG, .summary = text, .list = 1 }

const cli_option cli_shape_options[] = {
    SIZE("b", "N", "Sequences in the batch (1)."),
    SIZE("hq", "N", "Heads of Q (8)."),
    SIZE("hkv", "N", "Heads of K and V; divides --hq (as --hq)."),
    SIZE("sq", "N", "Queries per sequence (512); 2k = 2048."),
    SIZE("sk", "N", "Keys per sequence (as --sq)."),
    SIZE("d", "N", "Dimension of Q and K rows, 1 .. 1024 (64)."),
    SIZE("dv", "N", "Dimension of V and O rows (as --d)."),
    { .name = "dtype", .type = CLI_CHOICE, .argument = "TYPE", .choices = DTYPES, .list = 1,
      .summary = "Type of Q, K and V (f32)." },
    { .name = "bias", .type = CLI_CHOICE, .argument = "TYPE", .choices = DTYPES, .list = 1,
      .summary = "Add a bias tensor of this type to the scores." },
    FLAG("mask", "Use a boolean mask tensor."),
    { .name = "alibi", .type = CLI_INTEGER, .argument = "N", .high = 2, .list = 1,
      .summary = "ALiBi slopes: 1 per head, 2 per batch and head." },
    FLAG("sinks", "One attention-sink logit per head."),
    FLAG("packed", "Q and O are packed: [q_total, heads, dim] with cu_seqlens_q."),
    FLAG("packed-kv", "K and V are packed: [kv_total, heads, dim] with cu_seqlens_kv."),
    SIZE("q-total", "N", "Rows of packed Q (b * sq)."),
    SIZE("kv-total", "N", "Rows of packed K and V (b * sk)."),
    FLAG("seqused-q", "Queries in use come per sequence from seqused_q."),
    FLAG("seqused", "Keys in use come per sequence from seqused_kv."),
    FLAG("leftpad", "Padding before the first key comes per sequence from leftpad_kv."),
    FLAG("batch-index", "Sequence b reads K and V of row kv_batch_index[b]."),
    SIZE("kv-batch", "N", "Rows of K and V with --batch-index (as --b)."),
    SIZE("page-size", "N", "K and V are paged with this many keys a page; 0 = not paged."),
    SIZE("pages", "N", "Pages in the pool (as many as the batch needs)."),
    FLAG("v-in-k", "V is the first --dv columns of K."),
    { .name = NULL },
};

const cli_option cli_mask_options[] = {
    FLAG("causal", "Query i sees keys up to i + (sk - sq)."),
    FLAG("top-left", "Align causal, window and ALiBi at the first key instead of the last."),
    { .name = "window", .type = CLI_PAIR, .argument = "L,R", .list = 1,
      .summary = "See L keys to the left and R to the right; -1 = unbounded. Lists are cut at '/'." },
    { .name = "softcap", .type = CLI_REAL, .argument = "X", .list = 1,
      .summary = "Scores become X * tanh(score / X); 0 = off." },
    { .name = "scale", .type = CLI_REAL, .argument = "X", .list = 1,
      .summary = "Scores are X * (q . k) (1 / sqrt(d))." },
    { .name = "o-dtype", .type = CLI_CHOICE, .argument = "TYPE", .choices = DTYPES, .list = 1,
      .summary = "Type of O: as --dtype, or f32." },
    FLAG("strict", "Bits don't depend on batch neighbours, threads or splits."),
    { .name = NULL },
};

const cli_option cli_engine_options[] = {
    { .name = "kernel", .type = CLI_TEXT, .argument = "NAME", .list = 1,
      .summary = "Use this kernel; \"attn info\" lists them." },
    { .name = "backend", .type = CLI_CHOICE, .argument = "WHERE", .choices = "cpu cuda",
      .summary = "Where to compute (cpu)." },
    { .name = "device", .type = CLI_INTEGER, .argument = "N", .high = 1023, .summary = "CUDA device (0)." },
    { .name = "threads", .type = CLI_INTEGER, .argument = "N", .low = 0, .high = 1024, .list = 1,
      .summary = "CPU threads; 0 = what affinity, cgroup quota and ATTN_NUM_THREADS allow." },
    { .name = "splits", .type = CLI_INTEGER, .argument = "N", .high = 65536,
      .summary = "Parts the keys are split into, where a kernel splits; 0 = it chooses." },
    { .name = "layout", .type = CLI_CHOICE, .argument = "ORDER", .choices = "bshd bhsd",
      .summary = "Order of the tensors' dimensions: bshd = [batch, seq, heads, dim] (bshd)." },
    { .name = NULL },
};

/* ---- one option, one field ---- */

typedef enum field_kind {
    FIELD_SIZE, FIELD_FLAG, FIELD_DTYPE, FIELD_REAL, FIELD_WINDOW, FIELD_ALIBI
} field_kind;
typedef struct field_row { const char *name; field_kind kind; size_t offset; } field_row;

/* Lists multiply out in this order: the last row changes fastest. */
static const field_row fields[] = {
    { "dtype", FIELD_DTYPE, offsetof(attn_problem, dtype) },
    { "o-dtype", FIELD_DTYPE, offsetof(attn_problem, o_dtype) },
    { "bias", FIELD_DTYPE, offsetof(attn_problem, bias_dtype) },
    { "mask", FIELD_FLAG, offsetof(attn_problem, has_mask) },
    { "alibi", FIELD_ALIBI, offsetof(attn_problem, alibi) },
    { "sinks", FIELD_FLAG, offsetof(attn_problem, has_sinks) },
    { "packed", FIELD_FLAG, offsetof(attn_problem, packed_q) },
    { "packed-kv", FIELD_FLAG, offsetof(attn_problem, packed_kv) },
    { "q-total", FIELD_SIZE, offsetof(attn_problem, q_total) },
    { "kv-total", FIELD_SIZE, offsetof(attn_problem, kv_total) },
    { "seqused-q", FIELD_FLAG, offsetof(attn_problem, has_seqused_q) },
    { "seqused", FIELD_FLAG, offsetof(attn_problem, has_seqused_kv) },
    { "leftpad", FIELD_FLAG, offsetof(attn_problem, has_leftpad_kv) },
    { "batch-index", FIELD_FLAG, offsetof(attn_problem, has_kv_batch_index) },
    { "kv-batch", FIELD_SIZE, offsetof(attn_problem, kv_batch) },
    { "page-size", FIELD_SIZE, offsetof(attn_problem, page_size) },
    { "pages", FIELD_SIZE, offsetof(attn_problem, pages) },
    { "v-in-k", FIELD_FLAG, offsetof(attn_problem, v_in_k) },
    { "d", FIELD_SIZE, offsetof(attn_problem, qk_dim) },
    { "dv", FIELD_SIZE, offsetof(attn_problem, v_dim) },
    { "b", FIELD_SIZE, offsetof(attn_problem, batch) },
    { "hq", FIELD_SIZE, offsetof(attn_problem, q_heads) },
    { "hkv", FIELD_SIZE, offsetof(attn_problem, kv_heads) },
    { "sq", FIELD_SIZE, offsetof(attn_problem, q_len) },
    { "sk", FIELD_SIZE, offsetof(attn_problem, kv_len) },
    { "top-left", FIELD_FLAG, offsetof(attn_problem, top_left) },
    { "window", FIELD_WINDOW, 0 },
    { "softcap", FIELD_REAL, offsetof(attn_problem, softcap) },
    { "scale", FIELD_REAL, offsetof(attn_problem, scale) },
    { "strict", FIELD_FLAG, offsetof(attn_problem, strict) },
    { "causal", FIELD_FLAG, offsetof(attn_problem, causal) },
};
enum { FIELDS = sizeof fields / sizeof *fields };

static void set_field(attn_problem *p, const field_row *f, const cli_arguments *a, int item) {
    char *at = (char *)p + f->offset;
    switch (f->kind) {
    case FIELD_SIZE: *(int64_t *)(void *)at = cli_integer_item(a, f->name, item); break;
    case FIELD_FLAG: *(int32_t *)(void *)at = cli_flag_item(a, f->name, item); break;
    case FIELD_DTYPE: *(attn_dtype *)(void *)at = (attn_dtype)(1 + cli_choice_item(a, f->name, item)); break;
    case FIELD_REAL: *(float *)(void *)at = (float)cli_real_item(a, f->name, item); break;
    case FIELD_ALIBI: p->alibi = (attn_alibi)cli_integer_item(a, f->name, item); break;
    case FIELD_WINDOW:
        p->window = 1;
        cli_pair_item(a, f->name, item, &p->window_left, &p->window_right);
        break;
    }
}

void cli_problem_masks(const cli_arguments *a, attn_problem *problem) {
    for (const cli_option *o = cli_mask_options; o->name; o++)
        for (int i = 0; i < FIELDS; i++)
            if (!strcmp(o->name, fields[i].name) && cli_given(a, o->name))
                set_field(problem, &fields[i], a, 0);
    if (cli_choice(a, "backend", 0) == 1) problem->device = ATTN_CUDA;
}

/* ---- defaults that the API leaves to the caller ---- */

static int64_t pages_for(int64_t keys, int64_t page_size) { return (keys + page_size - 1) / page_size; }

/* Products stay far below 2^63 only for sane sizes; for others the API's own check has to speak, so cap
 * them. */
static int64_t product(int64_t a, int64_t b) { return b && a > longest / b ? longest : a * b; }

static void derive(attn_problem *p, const cli_arguments *a) {
    const int64_t keys = cli_given(a, "sk") ? p->kv_len : p->q_len;
    p->kv_empty = keys == 0;
    if (p->packed_q && !cli_given(a, "q-total")) p->q_total = product(p->batch, p->q_len);
    if (p->packed_kv && !cli_given(a, "kv-total")) p->kv_total = product(p->batch, keys);
    if (p->page_size) {
        p->block_table_cols = pages_for(keys, p->page_size);
        if (!cli_given(a, "pages")) p->pages = product(p->batch, p->block_table_cols);
    }
    if (cli_choice(a, "backend", 0) == 1) p->device = ATTN_CUDA;
    if (cli_choice(a, "layout", 0) == 1) cli_problem_layout_bhsd(p);
}

static attn_stride heads_first(int64_t rows, int64_t heads, int64_t dim) {
    const int64_t head = product(rows, dim);
    return (attn_stride){ .batch = product(heads, head), .seq = dim, .head = head };
}

void cli_problem_layout_bhsd(attn_problem *p) {
    const int64_t kv_heads = p->kv_heads ? p->kv_heads : p->q_heads, v_dim = p->v_dim ? p->v_dim : p->qk_dim;
    const int64_t keys = p->kv_len || p->kv_empty ? p->kv_len : p->q_len;
    const int64_t q_rows = p->packed_q ? p->q_total : p->q_len;
    const int64_t kv_rows = p->page_size ? p->page_size : p->packed_kv ? p->kv_total : keys;
    p->q_stride = heads_first(q_rows, p->q_heads, p->qk_dim);
    p->o_stride = heads_first(q_rows, p->q_heads, v_dim);
    p->k_stride = heads_first(kv_rows, kv_heads, p->qk_dim);
    p->v_stride = p->v_in_k ? p->k_stride : heads_first(kv_rows, kv_heads, v_dim);
}

/* ---- lists ---- */

int cli_problem_list(const cli_arguments *a, attn_problem **problems, int *count) {
    enum { MOST = 100000 };
    int64_t total = 1;
    for (int i = 0; i < FIELDS && total <= MOST; i++)
        if (cli_given(a, fields[i].name)) total *= cli_given(a, fields[i].name);
    *problems = NULL;
    *count = 0;
    if (total > MOST) {
        cli_error("the lists multiply out to more than %d problems", MOST);
        return CLI_USAGE;
    }
    attn_problem *all = malloc((size_t)total * sizeof *all);
    if (!all) {
        cli_error("out of memory");
        return CLI_FAILED;
    }
    for (int n = 0; n < (int)total; n++) {
        attn_problem p = ATTN_PROBLEM_INIT;
        p.batch = 1, p.q_heads = 8, p.q_len = 512, p.qk_dim = 64;
        int rest = n;
        for (int i = FIELDS - 1; i >= 0; i--) {
            const int items = cli_given(a, fields[i].name);
            if (!items) continue;
            set_field(&p, &fields[i], a, rest % items);
            rest /= items;
        }
        derive(&p, a);
        all[n] = p;
    }
    *problems = all;
    *count = (int)total;
    return CLI_OK;
}

attn_options cli_engine(const cli_arguments *a) {
    attn_options o = ATTN_OPTIONS_INIT;
    o.threads = (int32_t)cli_integer(a, "threads", 0);
    o.splits = (int32_t)cli_integer(a, "splits", 0);
    o.cuda_device = (int32_t)cli_integer(a, "device", 0);
    o.kernel = cli_text_item(a, "kernel", 0);
    return o;
}

/* ---- problems to options ---- */

typedef struct text_buffer { char *text; size_t size; int length; } text_buffer;

static void append(text_buffer *t, const char *name, const char *value) {
    const size_t used = (size_t)t->length < t->size ? (size_t)t->length : t->size;
    t->length += snprintf(t->text + used, t->size - used, "%s--%s%s%s", t->length ? " " : "", name,
                          *value ? " " : "", value);
}

static void append_field(text_buffer *t, const attn_problem *p, const field_row *f) {
    static const char *const dtypes[] = { "", "f32", "f16", "bf16" };
    const char *at = (const char *)p + f->offset;
    char value[64] = "";
    if (f->kind == FIELD_SIZE) {
        const int64_t n = *(const int64_t *)(const void *)at;
        const int meant = n || !strcmp(f->name, "b") || !strcmp(f->name, "sq") ||
                          (!strcmp(f->name, "sk") && p->kv_empty);
        if (!meant || (f->offset == offsetof(attn_problem, kv_batch) && !p->has_kv_batch_index)) return;
        snprintf(value, sizeof value, "%lld", (long long)n);
    } else if (f->kind == FIELD_FLAG) {
        if (!*(const int32_t *)(const void *)at) return;
    } else if (f->kind == FIELD_DTYPE) {
        const attn_dtype dtype = *(const attn_dtype *)(const void *)at;
        if (dtype < ATTN_F32 || dtype > ATTN_BF16) return;
        snprintf(value, sizeof value, "%s", dtypes[dtype]);
    } else if (f->kind == FIELD_REAL) {
        const float x = *(const float *)(const void *)at;
        if (!(x < 0 || x > 0)) return;
        snprintf(value, sizeof value, "%.9g", (double)x);
    } else if (f->kind == FIELD_ALIBI) {
        if (!p->alibi) return;
        snprintf(value, sizeof value, "%d", (int)p->alibi);
    } else {
        if (!p->window) return;
        snprintf(value, sizeof value, "%lld,%lld", (long long)p->window_left, (long long)p->window_right);
    }
    append(t, f->name, value);
}

int cli_problem_text(const attn_problem *problem, char *text, size_t size) {
    text_buffer t = { text, size, 0 };
    if (size) text[0] = 0;
    static const char *const first[] = { "b", "hq", "hkv", "sq", "sk", "d", "dv", "dtype" };
    enum { FIRST = sizeof first / sizeof *first };
    for (int k = 0; k < FIRST; k++)
        for (int i = 0; i < FIELDS; i++)
            if (!strcmp(fields[i].name, first[k])) append_field(&t, problem, &fields[i]);
    for (int i = 0; i < FIELDS; i++) {
        int shown = 0;
        for (int k = 0; k < FIRST; k++) shown |= !strcmp(fields[i].name, first[k]);
        if (!shown) append_field(&t, problem, &fields[i]);
    }
    if (problem->device == ATTN_CUDA) append(&t, "backend", "cuda");
    return t.length;
}
