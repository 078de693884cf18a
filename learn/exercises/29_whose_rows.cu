/* 29_whose_rows.cu — exercise: flash_v2.cu with a hole. The grid replaces the outer loop.
 * Find it, fill it, then: learn check 29 --my FILE */
#include "attn/attn_plugin.h"
#include <math.h>

enum { ROWS = 64, KEYS = 32, THREADS = 256, PARTS = 8 };   /* a tile of queries, of keys; 16 x 16 threads a block */

/* Near memory: shared by the block. d + 1 words a row, so that 16 threads reading 16 rows hit 16 banks. */
struct tile {
    float *q, *k, *v, *s;               /* q [ROWS][d + 1], k [KEYS][d + 1], v [KEYS][dv], s [ROWS][KEYS + 1] */
    float *m, *l, *c;                   /* [ROWS]: running maximum, running sum, exp(old maximum - new one) */
    int *visible;                       /* [ROWS]: row i sees the first visible[i] keys of the tile */
    int rows, keys, d, dv;
};
/* What one thread keeps in registers: o of rows y, y + 16, y + 32, y + 48 and columns x, x + 16, ... */
struct part { int x, y; float o[4][PARTS]; };

static int64_t near_floats(const attn_problem *p) {
    return (ROWS + KEYS) * (p->qk_dim + 1) + KEYS * p->v_dim + ROWS * (KEYS + 1) + 4 * ROWS;
}

__device__ tile tile_at(const attn_problem &p, float *near) {
    tile t;
    t.d = (int)p.qk_dim, t.dv = (int)p.v_dim;
    t.q = near, t.k = t.q + ROWS * (t.d + 1), t.v = t.k + KEYS * (t.d + 1), t.s = t.v + KEYS * t.dv;
    t.m = t.s + ROWS * (KEYS + 1), t.l = t.m + ROWS, t.c = t.l + ROWS, t.visible = (int *)(t.c + ROWS);
    return t;
}

/* Queries from i on, keys from j on. */
__device__ void place(tile &t, const attn_problem &p, int64_t i, int64_t j) {
    t.rows = (int)(p.q_len - i < ROWS ? p.q_len - i : ROWS);
    t.keys = (int)(p.kv_len - j < KEYS ? p.kv_len - j : KEYS);
    if (threadIdx.x >= ROWS) return;
    const int64_t n = threadIdx.x < t.rows ? attn_plugin_limit(&p, i + threadIdx.x) - j : 0;
    t.visible[threadIdx.x] = (int)(n < 0 ? 0 : n > t.keys ? t.keys : n);
}

/* near [count][pad] = far [count][width], zeros from `count` rows to `most`. */
__device__ void load(float *near, int pad, const float *far, int64_t stride, int count, int most, int width) {
    for (int n = threadIdx.x; n < most * width; n += THREADS)
        near[n / width * pad + n % width] = n / width < count ? far[n / width * stride + n % width] : 0;
}

/* s = scale q k^T: a thread makes 4 x 2 scores from 4 + 2 numbers at a time. */
__device__ void scores(const tile &t, const part &r, float scale) {
    float sum[4][2] = {};
    for (int x = 0; x < t.d; x++)
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 2; j++)
                sum[i][j] += t.q[(r.y + 16 * i) * (t.d + 1) + x] * t.k[(r.x + 16 * j) * (t.d + 1) + x];
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            const int row = r.y + 16 * i, key = r.x + 16 * j;
            t.s[row * (KEYS + 1) + key] = key < t.visible[row] ? scale * sum[i][j] : -INFINITY;
        }
}

/* s becomes p; four neighbouring threads share a row. */
__device__ void softmax_step(const tile &t) {
    const int row = threadIdx.x / 4, first = threadIdx.x % 4;
    float *s = t.s + row * (KEYS + 1), top = t.m[row], sum = 0;
    for (int j = first; j < KEYS; j += 4) top = fmaxf(top, s[j]);
    for (int n = 1; n < 4; n *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, n));
    const float safe = top == -INFINITY ? 0 : top;
    for (int j = first; j < KEYS; j += 4) sum += s[j] = expf(s[j] - safe);
    for (int n = 1; n < 4; n *= 2) sum += __shfl_xor_sync(~0u, sum, n);
    if (first) return;
    t.c[row] = expf(t.m[row] - safe), t.l[row] = t.l[row] * t.c[row] + sum, t.m[row] = top;
}

/* o = c o + p v; a hidden v may be NaN: skipped, not weighted with 0. */
__device__ void accumulate(const tile &t, part &r) {
    for (int i = 0; i < 4; i++) {
        const int row = r.y + 16 * i;
#pragma unroll
        for (int c = 0; c < PARTS; c++) r.o[i][c] *= t.c[row];
        for (int j = 0; j < t.visible[row]; j++)
#pragma unroll
            for (int c = 0; c < PARTS; c++)
                if (r.x + 16 * c < t.dv) r.o[i][c] += t.s[row * (KEYS + 1) + j] * t.v[j * t.dv + r.x + 16 * c];
    }
}

__device__ void store(const tile &t, const part &r, const attn_problem &p, float *o, float *lse) {
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int c = 0; c < PARTS; c++) {
            const int row = r.y + 16 * i, x = r.x + 16 * c;
            if (row < t.rows && x < t.dv) o[row * p.o_stride.seq + x] = t.l[row] == 0 ? 0 : r.o[i][c] / t.l[row];
        }
    const int row = threadIdx.x;
    if (lse && row < t.rows) lse[row * p.lse_stride.seq] = t.l[row] == 0 ? -INFINITY : t.m[row] + logf(t.l[row]);
}

__global__ void __launch_bounds__(THREADS) flash_v2(attn_problem p, attn_tensors x) {
    extern __shared__ float near[];
    const attn_plugin_head far = attn_plugin_head_at(&p, &x, blockIdx.y / p.q_heads, blockIdx.y % p.q_heads);
    const int64_t i = 0;   /* hole: which queries are this block's? Causal: let the longest rows start first */
    tile t = tile_at(p, near);
    part r = { (int)threadIdx.x % 16, (int)threadIdx.x / 16 };
    place(t, p, i, 0);
    load(t.q, t.d + 1, far.q + i * p.q_stride.seq, p.q_stride.seq, t.rows, ROWS, t.d);
    if (threadIdx.x < ROWS) t.m[threadIdx.x] = -INFINITY, t.l[threadIdx.x] = 0;
    const int64_t end = attn_plugin_limit(&p, i + t.rows - 1);          /* the last row sees the most */
    for (int64_t j = 0; j < end; j += KEYS) {
        __syncthreads();
        place(t, p, i, j);
        load(t.k, t.d + 1, far.k + j * p.k_stride.seq, p.k_stride.seq, t.keys, KEYS, t.d);
        load(t.v, t.dv, far.v + j * p.v_stride.seq, p.v_stride.seq, t.keys, KEYS, t.dv);
        __syncthreads();
        scores(t, r, p.scale);
        __syncthreads();
        softmax_step(t);
        __syncthreads();
        accumulate(t, r);
    }
    __syncthreads();
    store(t, r, p, far.o + i * p.o_stride.seq, far.lse ? far.lse + i * p.lse_stride.seq : NULL);
}

static const char *refuse(const attn_problem *p) {
    if (p->qk_dim > 16 * PARTS || p->v_dim > 16 * PARTS) return "keeps o in registers: dims up to 128";
    if (p->batch * p->q_heads > 65535) return "more blocks than a grid has in y";
    return attn_plugin_plain(p);
}

static attn_traffic moved;
static void traffic(attn_traffic *out) { *out = moved; }

static void count(const attn_problem *p) {
    const int64_t heads = p->batch * p->q_heads;
    moved = {};
    moved.q = 4 * heads * p->q_len * p->qk_dim, moved.o = 4 * heads * p->q_len * p->v_dim;
    for (int64_t i = 0; i < p->q_len; i += ROWS) {
        const int64_t end = attn_plugin_limit(p, i + ROWS < p->q_len ? i + ROWS - 1 : p->q_len - 1);
        const int64_t keys = (end + KEYS - 1) / KEYS * KEYS, read = keys < p->kv_len ? keys : p->kv_len;
        moved.k += 4 * heads * read * p->qk_dim, moved.v += 4 * heads * read * p->v_dim;
    }
}

static attn_status run(const attn_problem *p, const attn_tensors *t, void *none, void *stream) {
    const int bytes = 4 * (int)near_floats(p);
    const unsigned heads = (unsigned)(p->batch * p->q_heads), tiles = (unsigned)((p->q_len + ROWS - 1) / ROWS);
    (void)none;
    if (!heads || !tiles) return ATTN_OK;
    if (cudaFuncSetAttribute(flash_v2, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) return ATTN_DEVICE_ERROR;
    flash_v2<<<dim3(tiles, heads), THREADS, bytes, (cudaStream_t)stream>>>(*p, *t);
    count(p);
    return cudaGetLastError() ? ATTN_DEVICE_ERROR : ATTN_OK;
}

const attn_plugin attn_plugin_kernel = { sizeof(attn_plugin), ATTN_CUDA, "flash_v2",
    "outer Q, inner K/V: o stays in registers", refuse, NULL, run, traffic };
