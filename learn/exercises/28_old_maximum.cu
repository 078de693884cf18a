/* 28_old_maximum.cu — exercise: flash_v1.cu with a hole. The maximum rises.
 * Find it, fill it, then: learn check 28 --my FILE */
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
        for (int c = 0; c < PARTS; c++) r.o[i][c] *= 1;   /* hole: what was summed before belongs to the old maximum */
        for (int j = 0; j < t.visible[row]; j++)
#pragma unroll
            for (int c = 0; c < PARTS; c++)
                if (r.x + 16 * c < t.dv) r.o[i][c] += t.s[row * (KEYS + 1) + j] * t.v[j * t.dv + r.x + 16 * c];
    }
}

/* o is kept divided by l, so that device memory always holds the answer for the keys met so far. */
__device__ void load_state(tile &t, part &r, const attn_problem &p, const float *o, const float *m, const float *l) {
    const int mine = threadIdx.x;
    if (mine < ROWS) t.m[mine] = mine < t.rows ? m[mine] : -INFINITY, t.l[mine] = mine < t.rows ? l[mine] : 0;
    __syncthreads();
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int c = 0; c < PARTS; c++) {
            const int row = r.y + 16 * i, x = r.x + 16 * c;
            r.o[i][c] = row < t.rows && x < t.dv && t.l[row] != 0 ? o[row * p.o_stride.seq + x] * t.l[row] : 0;
        }
}

__device__ void store_state(const tile &t, const part &r, const attn_problem &p, float *o, float *m, float *l) {
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int c = 0; c < PARTS; c++) {
            const int row = r.y + 16 * i, x = r.x + 16 * c;
            if (row < t.rows && x < t.dv) o[row * p.o_stride.seq + x] = t.l[row] == 0 ? 0 : r.o[i][c] / t.l[row];
        }
    __syncthreads();
    if (threadIdx.x < t.rows) m[threadIdx.x] = t.m[threadIdx.x], l[threadIdx.x] = t.l[threadIdx.x];
}

__global__ void __launch_bounds__(THREADS) flash_v1(attn_problem p, attn_tensors x, float *state) {
    extern __shared__ float near[];
    const attn_plugin_head far = attn_plugin_head_at(&p, &x, blockIdx.y / p.q_heads, blockIdx.y % p.q_heads);
    tile t = tile_at(p, near);
    part r = { (int)threadIdx.x % 16, (int)threadIdx.x / 16 };
    float *m = state + 2 * blockIdx.y * p.q_len, *l = m + p.q_len;
    for (int64_t i = threadIdx.x; i < p.q_len; i += THREADS) {
        m[i] = -INFINITY, l[i] = 0;
        for (int c = 0; c < t.dv; c++) far.o[i * p.o_stride.seq + c] = 0;
    }
    for (int64_t j = 0; j < p.kv_len; j += KEYS) {
        __syncthreads();
        place(t, p, 0, j);
        load(t.k, t.d + 1, far.k + j * p.k_stride.seq, p.k_stride.seq, t.keys, KEYS, t.d);
        load(t.v, t.dv, far.v + j * p.v_stride.seq, p.v_stride.seq, t.keys, KEYS, t.dv);
        for (int64_t i = 0; i < p.q_len; i += ROWS) {
            if (attn_plugin_limit(&p, i + ROWS - 1) <= j) continue;     /* no row of the tile sees a key */
            __syncthreads();
            place(t, p, i, j);
            load(t.q, t.d + 1, far.q + i * p.q_stride.seq, p.q_stride.seq, t.rows, ROWS, t.d);
            load_state(t, r, p, far.o + i * p.o_stride.seq, m + i, l + i);
            __syncthreads();
            scores(t, r, p.scale);
            __syncthreads();
            softmax_step(t);
            __syncthreads();
            accumulate(t, r);
            store_state(t, r, p, far.o + i * p.o_stride.seq, m + i, l + i);
        }
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; far.lse && i < p.q_len; i += THREADS)
        far.lse[i * p.lse_stride.seq] = l[i] == 0 ? -INFINITY : m[i] + logf(l[i]);
}

static const char *refuse(const attn_problem *p) {
    if (p->qk_dim > 16 * PARTS || p->v_dim > 16 * PARTS) return "keeps o in registers: dims up to 128";
    if (p->batch * p->q_heads > 65535) return "more blocks than a grid has in y";
    return attn_plugin_plain(p);
}

static int64_t workspace(const attn_problem *p) { return 8 * p->batch * p->q_heads * p->q_len; }    /* m and l */
static attn_traffic moved;
static void traffic(attn_traffic *out) { *out = moved; }

static void count(const attn_problem *p, int lse) {
    const int64_t heads = p->batch * p->q_heads;
    moved = {};
    moved.o = 4 * heads * p->q_len * (p->v_dim + 2 + (lse ? 2 : 0));       /* begun; m and l read once more for LSE */
    moved.k = 4 * heads * p->kv_len * p->qk_dim, moved.v = 4 * heads * p->kv_len * p->v_dim;
    for (int64_t j = 0; j < p->kv_len; j += KEYS)
        for (int64_t i = 0; i < p->q_len; i += ROWS) {
            const int64_t rows = p->q_len - i < ROWS ? p->q_len - i : ROWS;
            if (attn_plugin_limit(p, i + ROWS - 1) <= j) continue;
            moved.q += 4 * heads * rows * p->qk_dim;
            moved.o += 4 * heads * rows * (2 * (p->v_dim + 2) - (j ? 0 : p->v_dim));    /* l = 0: o is 0, not read */
        }
}

static attn_status run(const attn_problem *p, const attn_tensors *t, void *state, void *stream) {
    const int bytes = 4 * (int)near_floats(p);
    const unsigned heads = (unsigned)(p->batch * p->q_heads);
    if (!heads || !p->q_len) return ATTN_OK;
    if (cudaFuncSetAttribute(flash_v1, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) return ATTN_DEVICE_ERROR;
    flash_v1<<<dim3(1, heads), THREADS, bytes, (cudaStream_t)stream>>>(*p, *t, (float *)state);
    count(p, t->lse != NULL);
    return cudaGetLastError() ? ATTN_DEVICE_ERROR : ATTN_OK;
}

const attn_plugin attn_plugin_kernel = { sizeof(attn_plugin), ATTN_CUDA, "flash_v1",
    "outer K/V, inner Q: o, m, l come and go with every tile of keys", refuse, workspace, run, traffic };
