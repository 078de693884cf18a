/* input_append.c — k_new and v_new in the input: they are appended to a copy of the cache (and turned by the
 * rotary tables, as Q is) before anything else happens. What follows sees a cache that already holds them. */
#include "inputs.h"
#include "terminal.h"
#include <stdlib.h>
#include <string.h>

static int needs(const cli_input *in, int role, const char *why) {
    if (in->parts[role]) return CLI_OK;
    cli_error("no tensor \"%s%s\": %s", in->prefix, cli_input_names[role], why);
    return CLI_USAGE;
}

static int check_parts(const cli_input *in) {
    int code = needs(in, INPUT_K_NEW, "v_new and the rotary tables go with new keys (k_new)");
    if (!code)
        code = needs(in, INPUT_USED_KV,
                     "k_new goes behind the keys in the cache: cache_seqlens says how many these are");
    if (!code && !in->problem.v_in_k) code = needs(in, INPUT_V_NEW, "k_new needs the new values as well");
    if (!code && in->parts[INPUT_COS]) code = needs(in, INPUT_SIN, "rotary_cos goes with rotary_sin");
    if (!code && in->parts[INPUT_SIN]) code = needs(in, INPUT_COS, "rotary_sin goes with rotary_cos");
    if (code || !in->problem.packed_kv) return code;
    cli_error("%sk_new: packed K (cu_seqlens_kv) has no room for new rows: a cache is [batch, capacity, "
              "heads, dim] or paged", in->prefix);
    return CLI_USAGE;
}

/* Files are mapped for reading: what is written needs a copy of its own. */
static int own(cli_input *in, int role) {
    const void **pointer = cli_input_pointer(&in->tensors, role);
    if (in->owned[role] && *pointer == in->owned[role]) return CLI_OK;
    void *copy = aligned_alloc(64, (in->bytes[role] + 64) / 64 * 64);
    if (!copy) {
        cli_error("%s: out of memory for a copy of %zu bytes", cli_input_names[role], in->bytes[role]);
        return CLI_FAILED;
    }
    memcpy(copy, *pointer, in->bytes[role]);
    free(in->owned[role]);
    *pointer = in->owned[role] = copy;
    return CLI_OK;
}

static int set_new_rows(cli_input *in, attn_problem *p) {
    int64_t k[4], v[4];
    char what[128];
    if (cli_input_extents(in, INPUT_K_NEW, k, &p->k_new_stride)) return CLI_FAILED;
    snprintf(what, sizeof what,
             "[%lld, rows, %lld, %lld] is expected, as batch, kv_heads and dim of the cache",
             (long long)p->batch, (long long)p->kv_heads, (long long)p->qk_dim);
    if (k[0] != p->batch || k[2] != p->kv_heads || k[3] != p->qk_dim)
        return cli_input_refuse(in, INPUT_K_NEW, what);
    p->new_len = k[1];
    if (p->v_in_k) return CLI_OK;
    if (cli_input_extents(in, INPUT_V_NEW, v, &p->v_new_stride)) return CLI_FAILED;
    if (v[0] != k[0] || v[1] != k[1] || v[2] != k[2] || v[3] != p->v_dim)
        return cli_input_refuse(in, INPUT_V_NEW, "must be the shape of k_new, with the last dimension of v");
    return CLI_OK;
}

static int set_rotary(cli_input *in, attn_problem *p, int interleaved) {
    const tensor *cosines = in->parts[INPUT_COS], *sines = in->parts[INPUT_SIN];
    if (!cosines) return CLI_OK;
    if (cosines->dims != 2 || cosines->shape[1] < 1 || 2 * cosines->shape[1] > p->qk_dim)
        return cli_input_refuse(in, INPUT_COS, "[positions, rotary_dim / 2] is expected");
    if (sines->dims != 2 || memcmp(sines->shape, cosines->shape, 2 * sizeof *sines->shape) ||
        sines->type != cosines->type)
        return cli_input_refuse(in, INPUT_SIN, "must be the shape and type of rotary_cos");
    p->rotary_rows = cosines->shape[0];
    p->rotary_dim = (int32_t)(2 * cosines->shape[1]);
    p->rotary_interleaved = interleaved;
    p->write_q = 1;
    p->q_out_stride = p->q_stride;
    return own(in, INPUT_Q);
}

static int run(cli_input *in, const attn_problem *p) {
    attn_tensors t = in->tensors;
    attn_plan *plan;
    attn_status status = attn_plan_create(&plan, p, NULL);
    int32_t *lengths = aligned_alloc(64, ((size_t)p->batch * 4 + 64) / 64 * 64);
    if (!status) {
        t.q_out = in->owned[INPUT_Q];
        t.seqused_kv_out = lengths;
        status = lengths ? attn_run(plan, &t, NULL, NULL) : ATTN_NO_MEMORY;
        attn_plan_destroy(plan);
    }
    if (status) {
        cli_error("%sk_new: %s", in->prefix, lengths ? attn_last_error() : "out of memory");
        free(lengths);
        return status == ATTN_INVALID ? CLI_USAGE : CLI_FAILED;
    }
    free(in->owned[INPUT_USED_KV]);
    in->owned[INPUT_USED_KV] = lengths;
    in->tensors.seqused_kv = lengths;
    return CLI_OK;
}

int cli_input_append(cli_input *in, int interleaved) {
    static const int roles[] = { INPUT_K_NEW, INPUT_V_NEW, INPUT_COS, INPUT_SIN };
    int any = 0;
    for (int i = 0; i < 4; i++) any |= in->parts[roles[i]] != NULL;
    if (!any) return CLI_OK;
    attn_problem *p = &in->problem, append = *p;
    append.pass = ATTN_KV_APPEND;
    append.device = ATTN_CPU;
    append.has_seqused_kv = 1;
    append.has_seqused_q = 0;       /* all of Q is turned */
    if (p->page_size) append.kv_len = p->block_table_cols * p->page_size;
    append.kv_empty = append.kv_len == 0;
    int code = check_parts(in);
    if (!code) code = set_new_rows(in, &append);
    if (!code) code = own(in, INPUT_K);
    if (!code && !p->v_in_k) code = own(in, INPUT_V);
    if (!code) code = set_rotary(in, &append, interleaved);
    if (!code) code = run(in, &append);
    if (code) return code;
    for (int64_t b = 0; p->page_size && b < p->batch; b++)
        if (in->tensors.seqused_kv[b] > p->kv_len) p->kv_len = in->tensors.seqused_kv[b];
    p->kv_empty = p->kv_len == 0;
    p->rotary_dtype = ATTN_DTYPE_DEFAULT;
    for (int i = 0; i < 4; i++) *cli_input_pointer(&in->tensors, roles[i]) = NULL;
    return CLI_OK;
}
