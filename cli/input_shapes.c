/* input_shapes.c — shapes of tensors in files to the sizes and strides of an attn_problem. */
#include "inputs.h"
#include "terminal.h"
#include <string.h>

typedef struct extents { int64_t batch, seq, heads, dim; } extents;

int cli_input_refuse(const cli_input *in, int role, const char *what) {
    char shape[256];
    tensor_shape_text(in->parts[role], shape, sizeof shape);
    cli_error("%s%s: shape %s: %s", in->prefix, cli_input_names[role], shape, what);
    return CLI_FAILED;
}

/* Dimensions from the last to the first: dim, then heads and seq in the file's order, then batch. Missing
 * ones are 1, a two-dimensional tensor is one head. */
static int read_extents(const cli_input *in, int role, extents *out) {
    const tensor *t = in->parts[role];
    if (t->dims < 2 || t->dims > 4) return cli_input_refuse(in, role, "2, 3 or 4 dimensions are expected");
    const int64_t *s = t->shape + t->dims;
    const int64_t outer = t->dims > 2 ? s[-3] : 1;
    *out = (extents){ .batch = t->dims > 3 ? s[-4] : 1, .dim = s[-1] };
    if (t->dims == 2) out->seq = s[-2], out->heads = 1;
    else if (in->bhsd) out->heads = outer, out->seq = s[-2];
    else out->seq = outer, out->heads = s[-2];
    return CLI_OK;
}

static attn_stride strides(const cli_input *in, extents e) {
    if (in->bhsd)
        return (attn_stride){ .batch = e.heads * e.seq * e.dim, .seq = e.dim, .head = e.seq * e.dim };
    return (attn_stride){ .batch = e.seq * e.heads * e.dim, .seq = e.heads * e.dim, .head = e.dim };
}

int cli_input_extents(const cli_input *in, int role, int64_t out[4], attn_stride *stride) {
    extents e;
    if (read_extents(in, role, &e)) return CLI_FAILED;
    out[0] = e.batch, out[1] = e.seq, out[2] = e.heads, out[3] = e.dim;
    *stride = strides(in, e);
    return CLI_OK;
}

/* ---- lengths ---- */

/* Longest sequence of cu_seqlens; attn_run checks the values. */
static int64_t longest(const int32_t *offsets, int64_t batch) {
    int64_t most = 0;
    for (int64_t b = 0; b < batch; b++) {
        const int64_t n = (int64_t)offsets[b + 1] - offsets[b];
        if (n > most) most = n;
    }
    return most;
}

static int64_t largest(const int32_t *values, int64_t count) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++)
        if (values[i] > most) most = values[i];
    return most;
}

static int check_vector(const cli_input *in, int role, int64_t count) {
    const tensor *t = in->parts[role];
    if (!t || (t->dims == 1 && t->shape[0] == count)) return CLI_OK;
    char what[64];
    snprintf(what, sizeof what, "[%lld] is expected", (long long)count);
    return cli_input_refuse(in, role, what);
}

/* ---- Q ---- */

static int set_q(cli_input *in) {
    attn_problem *p = &in->problem;
    extents e;
    if (read_extents(in, INPUT_Q, &e)) return CLI_FAILED;
    in->q_dims = in->parts[INPUT_Q]->dims;
    p->q_heads = e.heads;
    p->qk_dim = e.dim;
    p->batch = e.batch;
    p->q_len = e.seq;
    const tensor *cu = in->parts[INPUT_CU_Q];
    if (cu) {
        if (e.batch != 1)
            return cli_input_refuse(in, INPUT_Q, "packed Q (cu_seqlens_q) has no batch dimension");
        if (cu->dims != 1 || cu->shape[0] < 1)
            return cli_input_refuse(in, INPUT_CU_Q, "[batch + 1] is expected");
        p->packed_q = 1;
        p->batch = cu->shape[0] - 1;
        p->q_total = e.seq;
        p->q_len = longest(in->tensors.cu_seqlens_q, p->batch);
    }
    p->q_stride = strides(in, e);
    return CLI_OK;
}

/* ---- K and V ---- */

static int set_pages(cli_input *in, extents e) {
    attn_problem *p = &in->problem;
    const tensor *table = in->parts[INPUT_TABLE];
    if (table->dims != 2 || table->shape[0] != p->batch)
        return cli_input_refuse(in, INPUT_TABLE, "[batch, columns] is expected");
    if (in->parts[INPUT_K]->dims < 3)
        return cli_input_refuse(in, INPUT_K, "paged K is [pages, page_size, kv_heads, dim]");
    if (in->parts[INPUT_K]->dims == 3) e = (extents){ .batch = in->parts[INPUT_K]->shape[0],
        .seq = in->parts[INPUT_K]->shape[1], .heads = 1, .dim = e.dim };
    if (!e.seq) return cli_input_refuse(in, INPUT_K, "a page must hold at least one key");
    if (table->shape[1] > ((int64_t)1 << 40) / e.seq)
        return cli_input_refuse(in, INPUT_TABLE, "too many keys per sequence");
    p->page_size = e.seq;
    p->pages = e.batch;
    p->kv_heads = e.heads;
    p->block_table_cols = table->shape[1];
    p->kv_len = in->tensors.seqused_kv ? largest(in->tensors.seqused_kv, p->batch) : table->shape[1] * e.seq;
    p->k_stride = strides(in, e);
    return CLI_OK;
}

static int set_packed(cli_input *in, extents e) {
    attn_problem *p = &in->problem;
    const tensor *cu = in->parts[INPUT_CU_KV];
    if (e.batch != 1) return cli_input_refuse(in, INPUT_K, "packed K (cu_seqlens_kv) has no batch dimension");
    if (cu->dims != 1 || cu->shape[0] != p->batch + 1)
        return cli_input_refuse(in, INPUT_CU_KV, "[batch + 1] is expected, as for Q");
    p->packed_kv = 1;
    p->kv_total = e.seq;
    p->kv_len = longest(in->tensors.cu_seqlens_kv, p->batch);
    return CLI_OK;
}

static int set_k(cli_input *in) {
    attn_problem *p = &in->problem;
    extents e;
    if (read_extents(in, INPUT_K, &e)) return CLI_FAILED;
    if (e.dim != p->qk_dim) return cli_input_refuse(in, INPUT_K, "the last dimension must be that of q");
    if (in->parts[INPUT_TABLE] && in->parts[INPUT_CU_KV])
        return cli_input_refuse(in, INPUT_TABLE, "K and V are either paged or packed (cu_seqlens_kv)");
    if (in->parts[INPUT_TABLE]) {
        if (set_pages(in, e)) return CLI_FAILED;
    } else {
        p->kv_heads = e.heads;
        p->k_stride = strides(in, e);
        p->kv_len = e.seq;
        p->kv_batch = e.batch;
        if (in->parts[INPUT_CU_KV] && set_packed(in, e)) return CLI_FAILED;
        if (!p->packed_kv && !in->parts[INPUT_KV_INDEX] && e.batch != p->batch)
            return cli_input_refuse(in, INPUT_K, "the batch must be that of q (or give kv_batch_index)");
    }
    if (p->packed_kv || p->page_size) p->kv_batch = 0;
    p->kv_empty = p->kv_len == 0;
    p->has_kv_batch_index = in->parts[INPUT_KV_INDEX] != NULL;
    return CLI_OK;
}

static int set_v(cli_input *in, int64_t dv) {
    attn_problem *p = &in->problem;
    const tensor *k = in->parts[INPUT_K], *v = in->parts[INPUT_V];
    if (!v) {
        if (dv) {
            p->v_in_k = 1;
            p->v_dim = dv;
            return CLI_OK;
        }
        cli_error("no tensor \"%sv\": give --v FILE, or --dv N where V is the first N columns of K",
                  in->prefix);
        return CLI_USAGE;
    }
    if (v->dims != k->dims || memcmp(v->shape, k->shape, (size_t)(k->dims - 1) * sizeof *k->shape))
        return cli_input_refuse(in, INPUT_V, "must be the shape of k but for the last dimension");
    extents e;
    if (read_extents(in, INPUT_V, &e)) return CLI_FAILED;
    if (dv && dv != e.dim) return cli_input_refuse(in, INPUT_V, "the last dimension is not --dv");
    if (p->page_size && v->dims == 3)
        e = (extents){ .batch = e.batch, .seq = p->page_size, .heads = 1, .dim = e.dim };
    p->v_dim = e.dim;
    p->v_stride = strides(in, e);
    return CLI_OK;
}

/* ---- bias and mask ---- */

/* [q, kv], [heads, q, kv] or [batch, heads, q, kv]; size 1 broadcasts. */
static int set_scores(cli_input *in, int role, attn_score_stride *out) {
    const attn_problem *p = &in->problem;
    const tensor *t = in->parts[role];
    if (t->dims < 2 || t->dims > 4)
        return cli_input_refuse(in, role, "2, 3 or 4 dimensions are expected: [batch, heads, q, kv]");
    const int64_t wanted[4] = { p->batch, p->q_heads, p->q_len, p->kv_len };
    int64_t stride[4] = { 0 }, step = 1, scores = 1;
    for (int i = 3; i >= 0; i--) {
        const int at = i - (4 - t->dims);
        const int64_t n = at >= 0 ? t->shape[at] : 1;
        const int ragged =
            i >= 2 && (p->packed_q || p->packed_kv || p->page_size); /* the maxima may be smaller */
        if (n != 1 && n != wanted[i] && !(ragged && n > wanted[i])) {
            char what[128];
            snprintf(what, sizeof what, "[%lld, %lld, %lld, %lld] or 1 for each is expected",
                     (long long)wanted[0], (long long)wanted[1], (long long)wanted[2], (long long)wanted[3]);
            return cli_input_refuse(in, role, what);
        }
        if (n > 1) stride[i] = step;
        step *= n;
        if (wanted[i] > 1) scores = 2;
    }
    if (t->count == 1 && scores > 1)
        return cli_input_refuse(in, role, "one value for all scores: leave it out");
    *out = (attn_score_stride){ .batch = stride[0], .head = stride[1], .q = stride[2], .kv = stride[3] };
    return CLI_OK;
}

/* ---- all ---- */

static int set_vectors(cli_input *in) {
    attn_problem *p = &in->problem;
    const int per_batch[] = { INPUT_USED_Q, INPUT_USED_KV, INPUT_LEFTPAD, INPUT_KV_INDEX };
    for (size_t i = 0; i < sizeof per_batch / sizeof *per_batch; i++)
        if (check_vector(in, per_batch[i], p->batch)) return CLI_FAILED;
    if (check_vector(in, INPUT_SINKS, p->q_heads)) return CLI_FAILED;
    p->has_seqused_q = in->parts[INPUT_USED_Q] != NULL;
    p->has_seqused_kv = in->parts[INPUT_USED_KV] != NULL;
    p->has_leftpad_kv = in->parts[INPUT_LEFTPAD] != NULL;
    p->has_sinks = in->parts[INPUT_SINKS] != NULL;
    const tensor *slopes = in->parts[INPUT_ALIBI];
    if (!slopes) return CLI_OK;
    if (slopes->dims == 2 && slopes->shape[0] == p->batch && slopes->shape[1] == p->q_heads)
        p->alibi = ATTN_ALIBI_PER_BATCH_HEAD;
    else if (slopes->dims == 1 && slopes->shape[0] == p->q_heads)
        p->alibi = ATTN_ALIBI_PER_HEAD;
    else
        return cli_input_refuse(in, INPUT_ALIBI, "[q_heads] or [batch, q_heads] is expected");
    return CLI_OK;
}

int cli_input_shapes(cli_input *in, int64_t dv) {
    attn_problem *p = &in->problem;
    int code = set_q(in);
    if (!code && check_vector(in, INPUT_USED_KV, p->batch)) code = CLI_FAILED;   /* set_k reads it */
    if (!code) code = set_k(in);
    if (!code) code = set_v(in, dv);
    if (!code) code = set_vectors(in);
    if (!code && in->parts[INPUT_BIAS]) code = set_scores(in, INPUT_BIAS, &p->bias_stride);
    if (!code && in->parts[INPUT_MASK]) code = set_scores(in, INPUT_MASK, &p->mask_stride);
    p->has_mask = in->parts[INPUT_MASK] != NULL;
    if (code) return code;
    const extents o = { .batch = p->batch, .seq = p->packed_q ? p->q_total : p->q_len, .heads = p->q_heads,
                        .dim = p->v_dim };
    p->o_stride = strides(in, o);
    return CLI_OK;
}

void cli_input_o_shape(const cli_input *in, tensor *out) {
    const tensor *q = in->parts[INPUT_Q];
    out->dims = q->dims;
    memcpy(out->shape, q->shape, sizeof q->shape);
    out->shape[q->dims - 1] = in->problem.v_dim;
}

void cli_input_lse_shape(const cli_input *in, tensor *out) {
    const attn_problem *p = &in->problem;
    const int64_t rows = p->packed_q ? p->q_total : p->q_len;
    out->dims = 0;
    if (in->q_dims == 4) out->shape[out->dims++] = p->packed_q ? 1 : p->batch;
    if (in->q_dims >= 3) out->shape[out->dims++] = p->q_heads;
    out->shape[out->dims++] = rows;
}
