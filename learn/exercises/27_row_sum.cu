/* 27_row_sum.cu — exercise: naive.cu with a hole. A row is spread over a warp.
 * Find it, fill it, then: learn check 27 --my FILE */
#include "attn/attn_plugin.h"
#include <math.h>

static attn_traffic moved;      /* far memory is device memory; a warp asks once for a word that several lanes want */

struct place { attn_plugin_head far; float *s; };   /* one (batch, head): its tensors, its S [q_len, kv_len] */

__device__ place place_of(const attn_problem &p, const attn_tensors &t, float *s) {
    const int64_t z = blockIdx.z;
    return { attn_plugin_head_at(&p, &t, z / p.q_heads, z % p.q_heads), s + z * p.q_len * p.kv_len };
}

/* S: a thread per score; 32 neighbours share the query and read 32 different keys. */
__global__ void scores(attn_problem p, attn_tensors t, float *s) {
    const int64_t j = (int64_t)blockIdx.x * 32 + threadIdx.x, i = (int64_t)blockIdx.y * 8 + threadIdx.y;
    if (i >= p.q_len || j >= attn_plugin_limit(&p, i)) return;
    const place at = place_of(p, t, s);
    const float *q = at.far.q + i * p.q_stride.seq, *k = at.far.k + j * p.k_stride.seq;
    float sum = 0;
    for (int x = 0; x < p.qk_dim; x++) sum += q[x] * k[x];
    at.s[i * p.kv_len + j] = p.scale * sum;
}

__device__ float warp_max(float x) {
    for (int n = 16; n; n /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, n));
    return x;
}
__device__ float warp_sum(float x) {
    return x;   /* hole: 32 lanes hold a part of the sum each, and all of them need the whole */
}

/* P: a warp per row, three passes; the maximum is subtracted so that exp cannot overflow. */
__global__ void softmax(attn_problem p, attn_tensors t, float *s) {
    const int64_t i = (int64_t)blockIdx.y * 8 + threadIdx.y, n = attn_plugin_limit(&p, i);
    if (i >= p.q_len) return;
    const place at = place_of(p, t, s);
    float *row = at.s + i * p.kv_len, m = -INFINITY, l = 0;
    for (int64_t j = threadIdx.x; j < n; j += 32) m = fmaxf(m, row[j]);
    m = warp_max(m);
    const float top = m == -INFINITY ? 0 : m;
    for (int64_t j = threadIdx.x; j < n; j += 32) l += row[j] = expf(row[j] - top);
    l = warp_sum(l);
    for (int64_t j = threadIdx.x; j < n; j += 32) row[j] = l == 0 ? 0 : row[j] / l;
    if (at.far.lse && !threadIdx.x) at.far.lse[i * p.lse_stride.seq] = l == 0 ? -INFINITY : m + logf(l);
}

/* O: a thread per element; 32 neighbours share the row of P and read neighbouring columns of V. */
__global__ void accumulate(attn_problem p, attn_tensors t, float *s) {
    const int64_t x = (int64_t)blockIdx.x * 32 + threadIdx.x, i = (int64_t)blockIdx.y * 8 + threadIdx.y;
    if (i >= p.q_len || x >= p.v_dim) return;
    const place at = place_of(p, t, s);
    const int64_t n = attn_plugin_limit(&p, i);
    float sum = 0;
    for (int64_t j = 0; j < n; j++) sum += at.s[i * p.kv_len + j] * at.far.v[j * p.v_stride.seq + x];
    at.far.o[i * p.o_stride.seq + x] = sum;
}

static const char *refuse(const attn_problem *p) {
    if (p->batch * p->q_heads > 65535 || p->q_len > 8 * 65535) return "more blocks than a grid has in y or z";
    return attn_plugin_plain(p);
}

static int64_t workspace(const attn_problem *p) { return 4 * p->batch * p->q_heads * p->q_len * p->kv_len; }
static void traffic(attn_traffic *out) { *out = moved; }

static unsigned blocks(int64_t n, int64_t each) { return (unsigned)((n + each - 1) / each); }

static void count(const attn_problem *p) {
    const int64_t heads = p->batch * p->q_heads;
    moved = {};
    for (int64_t i = 0; i < p->q_len; i++) {
        const int64_t n = attn_plugin_limit(p, i);
        moved.q += 4 * heads * p->qk_dim * blocks(n, 32), moved.o += 4 * heads * p->v_dim;
        moved.k += 4 * heads * n * p->qk_dim, moved.v += 4 * heads * n * p->v_dim;
        moved.scores += 4 * heads * n * (6 + blocks(p->v_dim, 32));     /* write; 5 in softmax; a read for 32 columns */
    }
}

static attn_status run(const attn_problem *p, const attn_tensors *t, void *s, void *stream) {
    const cudaStream_t on = (cudaStream_t)stream;
    const unsigned rows = blocks(p->q_len, 8), heads = (unsigned)(p->batch * p->q_heads);
    const dim3 threads(32, 8);
    if (!rows || !heads) return ATTN_OK;
    if (p->kv_len) scores<<<dim3(blocks(p->kv_len, 32), rows, heads), threads, 0, on>>>(*p, *t, (float *)s);
    softmax<<<dim3(1, rows, heads), threads, 0, on>>>(*p, *t, (float *)s);
    accumulate<<<dim3(blocks(p->v_dim, 32), rows, heads), threads, 0, on>>>(*p, *t, (float *)s);
    count(p);
    return cudaGetLastError() ? ATTN_DEVICE_ERROR : ATTN_OK;
}

const attn_plugin attn_plugin_kernel = { sizeof(attn_plugin), ATTN_CUDA, "naive",
    "the formula, a thread per number, with the whole score matrix", refuse, workspace, run, traffic };
