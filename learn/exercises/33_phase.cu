/* 33_phase.cu — exercise: flash_tma.cu with a hole. Which phase of the barrier is awaited?
 *     nvcc: -gencode=arch=compute_90a,code=sm_90a -ftz=true
 * Find it, fill it, then: learn check 33 --my FILE */
#include "../flash_attention/hopper.h"

enum { WARPGROUPS = 2, ROWS = 64 * WARPGROUPS, KEYS = 128, THREADS = 128 * WARPGROUPS, STAGES = 2 };

/* Where things are in shared memory. D: dims, padded with zeros to 64 or 128. A stage is a tile of K and one of V. */
template <int D> struct tile {
    enum { Q = 0, K = Q + ROWS * D * 2, STAGE = 2 * KEYS * D * 2, V = K + KEYS * D * 2, Q_FULL = K + STAGES * STAGE,
           FULL = Q_FULL + 8, BYTES = FULL + 8 * STAGES };
};

/* ---- steps ---- */

/* s = q k^T: 64 queries of a warpgroup, a tile of keys. Starts it. */
template <int D, int BF16> __device__ void scores(float (&s)[KEYS / 2], unsigned q, unsigned k) {
    const uint64_t left = matrix_at(q, 0), right = matrix_at(k, 0);
    wgmma_begin();
#pragma unroll
    for (int x = 0; x < D / 16; x++)                    /* 16 columns are 32 bytes, 64 are a box */
        wgmma_rows<BF16>(s, left + x / 4 * ROWS * 8 + x % 4 * 2, right + x / 4 * KEYS * 8 + x % 4 * 2, x > 0);
    wgmma_end();
}

__device__ void hide(float (&s)[KEYS / 2], const part &r, int j) {
    const int first = j + threadIdx.x % 4 * 2;
#pragma unroll
    for (int e = 0; e < KEYS / 2; e++)
        if (first + e / 4 * 8 + e % 2 >= r.limit[e / 2 % 2]) s[e] = -INFINITY;
}

/* s becomes p, rounded. A row lies in four neighbouring threads. */
template <int BF16> __device__ void softmax_step(float (&s)[KEYS / 2], part &r, float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = r.m[half];
#pragma unroll
        for (int e = 2 * half; e < KEYS / 2; e += 4) top = fmaxf(top, fmaxf(s[e], s[e + 1]));
        for (int n = 1; n < 4; n *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, n));
        const float safe = top == -INFINITY ? 0 : top * scale;
        r.factor[half] = exp2f(r.m[half] * scale - safe), r.m[half] = top, r.l[half] *= r.factor[half];
#pragma unroll
        for (int e = 2 * half; e < KEYS / 2; e += 4) {
            s[e] = exp2f(s[e] * scale - safe), s[e + 1] = exp2f(s[e + 1] * scale - safe);
            r.l[half] += s[e] + s[e + 1];
        }
    }
}

template <int BF16> __device__ void round_p(unsigned (&p)[KEYS / 4], const float (&s)[KEYS / 2]) {
#pragma unroll
    for (int n = 0; n < KEYS / 4; n++) p[n] = pack<BF16>(s[2 * n], s[2 * n + 1]);
}

template <int D> __device__ void rescale(float (&o)[D / 2], const part &r) {
#pragma unroll
    for (int e = 0; e < D / 2; e++) o[e] *= r.factor[e / 2 % 2];
}

/* o += p v. Starts it. */
template <int D, int BF16> __device__ void accumulate(float (&o)[D / 2], unsigned (&p)[KEYS / 4], unsigned v) {
    const uint64_t right = matrix_at(v, KEYS * 128);
    keep(o), keep(p);
    wgmma_begin();
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++) wgmma_columns<BF16>(o, &p[4 * j], right + j * 128);  /* 16 keys: 2 KB */
    wgmma_end();
}

/* ---- the schedule ---- */

/* One thread: rows `row` ... of a head, as many boxes of 64 columns as D has. */
template <int D>
__device__ void load(unsigned near, const CUtensorMap *map, unsigned barrier, int rows, int head, int row, int batch) {
    for (int x = 0; x < D; x += 64) copy_box(near + x * rows * 2, map, barrier, x, head, row, batch);
}
/* One thread: ask for key tile n. */
template <int D>
__device__ void load_keys(unsigned base, const CUtensorMap *k, const CUtensorMap *v, const place &at, int n) {
    const unsigned full = base + tile<D>::FULL + n % STAGES * 8, stage = base + n % STAGES * tile<D>::STAGE;
    barrier_expect(full, tile<D>::STAGE);
    load<D>(stage + tile<D>::K, k, full, KEYS, at.g, n * KEYS, at.b);
    load<D>(stage + tile<D>::V, v, full, KEYS, at.g, n * KEYS, at.b);
}

template <int D, int BF16>
__global__ void __launch_bounds__(THREADS, 1)
flash_tma(attn_problem p, attn_tensors x, const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,
          const __grid_constant__ CUtensorMap v) {
    extern __shared__ unsigned char memory[];
    const unsigned base = (shared_address(memory) + 1023) & ~1023u;
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
    const place at = place_of(p, x);
    const int64_t first = (int64_t)(gridDim.x - 1 - blockIdx.x) * ROWS;     /* causal: the longest rows start first */
    const int64_t mine = first + 64 * warpgroup, row = mine + threadIdx.x % 128 / 32 * 16 + lane / 4;
    const int end = (int)attn_plugin_limit(&p, first + ROWS < p.q_len ? first + ROWS - 1 : p.q_len - 1);
    const int seen = (int)attn_plugin_limit(&p, mine < p.q_len ? mine : p.q_len - 1);  /* keys that all 64 rows see */
    const int tiles = (end + KEYS - 1) / KEYS;
    const float scale = p.scale * 1.44269504f;
    float s[KEYS / 2], o[D / 2] = {};
    unsigned w[KEYS / 4];
    part r = {};
    for (int half = 0; half < 2; half++)
        r.m[half] = -INFINITY,
        r.limit[half] = (int)attn_plugin_limit(&p, row + 8 * half < p.q_len ? row + 8 * half : p.q_len - 1);
    if (threadIdx.x == 0) {
        for (unsigned n = 0; n < 1 + STAGES; n++) barrier_init(base + tile<D>::Q_FULL + 8 * n, 1);
        barrier_init_done();
        barrier_expect(base + tile<D>::Q_FULL, ROWS * D * 2);
        load<D>(base + tile<D>::Q, &q, base + tile<D>::Q_FULL, ROWS, at.h, (int)first, at.b);
        for (int n = 0; n < STAGES && n < tiles; n++) load_keys<D>(base, &k, &v, at, n);
    }
    __syncthreads();
    barrier_wait(base + tile<D>::Q_FULL, 0);
#pragma unroll 1
    for (int n = 0; n < tiles; n++) {
        const unsigned stage = base + n % STAGES * tile<D>::STAGE;
        barrier_wait(base + tile<D>::FULL + n % STAGES * 8, 0);   /* hole: a stage is filled again and again */
        scores<D, BF16>(s, base + tile<D>::Q + warpgroup * 64 * 128, stage + tile<D>::K);
        wgmma_wait<0>(), keep(s);
        if ((n + 1) * KEYS > seen) hide(s, r, n * KEYS);
        softmax_step<BF16>(s, r, scale);
        round_p<BF16>(w, s);
        rescale<D>(o, r);
        accumulate<D, BF16>(o, w, stage + tile<D>::V);
        wgmma_wait<0>(), keep(o);
        __syncthreads();                    /* all have read this stage */
        if (threadIdx.x == 0 && n + STAGES < tiles) load_keys<D>(base, &k, &v, at, n + STAGES);
    }
    finish<D, BF16, 0>(o, r, p, at, row, scale);
    finish<D, BF16, 1>(o, r, p, at, row + 8, scale);
}

/* ---- the plug-in ---- */

static attn_traffic moved;
static void traffic(attn_traffic *out) { *out = moved; }

template <int D, int BF16> static attn_status launch(const attn_problem *p, const attn_tensors *t, void *stream) {
    const unsigned heads = (unsigned)(p->batch * p->q_heads), tiles = (unsigned)((p->q_len + ROWS - 1) / ROWS);
    const int bytes = tile<D>::BYTES + 1024;
    const int64_t k_rows = p->kv_len ? p->kv_len : 1;      /* a map wants some row, also if none is read */
    CUtensorMap q, k, v;
    if (describe(&q, t->q, BF16, p->batch, p->q_len, p->q_heads, p->qk_dim, p->q_stride, ROWS) ||
        describe(&k, p->kv_len ? t->k : t->q, BF16, p->batch, k_rows, p->kv_heads, p->qk_dim, p->k_stride, KEYS) ||
        describe(&v, p->kv_len ? t->v : t->q, BF16, p->batch, k_rows, p->kv_heads, p->v_dim, p->v_stride, KEYS))
        return ATTN_DEVICE_ERROR;
    if (cudaFuncSetAttribute(flash_tma<D, BF16>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes))
        return ATTN_DEVICE_ERROR;
    flash_tma<D, BF16><<<dim3(tiles, heads), THREADS, bytes, (cudaStream_t)stream>>>(*p, *t, q, k, v);
    return cudaGetLastError() ? ATTN_DEVICE_ERROR : ATTN_OK;
}

static attn_status run(const attn_problem *p, const attn_tensors *t, void *none, void *stream) {
    const int small = p->qk_dim <= 64 && p->v_dim <= 64, bf16 = p->dtype == ATTN_BF16;
    (void)none;
    if (!p->batch || !p->q_len) return ATTN_OK;
    moved = count(p, ROWS, KEYS);
    if (small) return bf16 ? launch<64, 1>(p, t, stream) : launch<64, 0>(p, t, stream);
    return bf16 ? launch<128, 1>(p, t, stream) : launch<128, 0>(p, t, stream);
}

const attn_plugin attn_plugin_kernel = { sizeof(attn_plugin), ATTN_CUDA, "flash_tma",
    "FlashAttention on wgmma, tiles by the copy engine, one ahead; all threads in step",
    refuse_boxes, NULL, run, traffic };
