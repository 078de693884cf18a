/* 11_causal.c — exercise: naive.c with a hole. Find it, fill it, then: learn check 11 --my FILE */
#include "attn/attn_plugin.h"
#include <math.h>

/* Far memory is the tensors and S; near memory holds one row of Q or O. Every far byte is counted here. */
static attn_traffic moved;

/* S = scale Q K^T: every query reads all the keys that it sees. */
static void scores(const attn_problem *p, attn_plugin_head far, float *s) {
    for (int64_t i = 0; i < p->q_len; i++) {
        const int64_t n = p->kv_len;   /* hole: a causal row ends earlier (attn_plugin_limit says where) */
        const float *q = far.q + i * p->q_stride.seq;
        for (int64_t j = 0; j < n; j++) {
            const float *k = far.k + j * p->k_stride.seq;
            float sum = 0;
            for (int64_t x = 0; x < p->qk_dim; x++) sum += q[x] * k[x];
            s[i * p->kv_len + j] = p->scale * sum;
        }
        moved.q += 4 * p->qk_dim, moved.k += 4 * n * p->qk_dim, moved.scores += 4 * n;
    }
}

/* S becomes P. The maximum is subtracted so that exp cannot overflow; hence three passes over a row. */
static void softmax(const attn_problem *p, attn_plugin_head far, float *s) {
    for (int64_t i = 0; i < p->q_len; i++) {
        const int64_t n = p->kv_len;   /* hole: a causal row ends earlier (attn_plugin_limit says where) */
        float *row = s + i * p->kv_len, m = -INFINITY, l = 0;
        for (int64_t j = 0; j < n; j++) m = row[j] > m ? row[j] : m;
        const float top = m == -INFINITY ? 0 : m;
        for (int64_t j = 0; j < n; j++) l += row[j] = expf(row[j] - top);
        for (int64_t j = 0; j < n; j++) row[j] = l == 0 ? 0 : row[j] / l;
        if (far.lse) far.lse[i * p->lse_stride.seq] = l == 0 ? -INFINITY : m + logf(l);
        moved.scores += 4 * n * 5;          /* read; read, write; read, write */
    }
}

/* O = P V: every query reads all the values that it sees. */
static void accumulate(const attn_problem *p, attn_plugin_head far, const float *s) {
    for (int64_t i = 0; i < p->q_len; i++) {
        const int64_t n = p->kv_len;   /* hole: a causal row ends earlier (attn_plugin_limit says where) */
        float *o = far.o + i * p->o_stride.seq;
        for (int64_t x = 0; x < p->v_dim; x++) {
            float sum = 0;
            for (int64_t j = 0; j < n; j++) sum += s[i * p->kv_len + j] * far.v[j * p->v_stride.seq + x];
            o[x] = sum;
        }
        moved.scores += 4 * n, moved.v += 4 * n * p->v_dim, moved.o += 4 * p->v_dim;
    }
}

static int64_t workspace(const attn_problem *p) { return 4 * p->q_len * p->kv_len; }    /* S of one head */
static void traffic(attn_traffic *out) { *out = moved; }

static attn_status run(const attn_problem *p, const attn_tensors *x, void *s, void *stream) {
    (void)stream, moved = (attn_traffic){ 0 };
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t h = 0; h < p->q_heads; h++) {
            const attn_plugin_head far = attn_plugin_head_at(p, x, b, h);
            scores(p, far, s);
            softmax(p, far, s);
            accumulate(p, far, s);
        }
    return ATTN_OK;
}

const attn_plugin attn_plugin_kernel = { sizeof(attn_plugin), ATTN_CPU, "naive",
    "the formula, scalar, with the whole score matrix", attn_plugin_plain, workspace, run, traffic };
