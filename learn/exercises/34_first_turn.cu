/* 34_first_turn.cu — exercise: flash_hopper.cu with a hole. Who waits first, and for what?
 *     nvcc: -gencode=arch=compute_90a,code=sm_90a -ftz=true
 * Find it, fill it, then: learn check 34 --my FILE */
#include "../flash_attention/hopper.h"

#ifndef OVERLAP
#define OVERLAP 1
#endif
enum { WARPGROUPS = 2, ROWS = 64 * WARPGROUPS, KEYS = 128, THREADS = 128 * (1 + WARPGROUPS), STAGES = 2 };

/* Where things are in shared memory. D: dims, padded with zeros to 64 or 128. A stage is a tile of K and one of V. */
template <int D> struct tile {
    enum { Q = 0, K = Q + ROWS * D * 2, STAGE = 2 * KEYS * D * 2, V = K + KEYS * D * 2, Q_FULL = K + STAGES * STAGE,
           K_FULL = Q_FULL + 8, V_FULL = K_FULL + 8 * STAGES, K_EMPTY = V_FULL + 8 * STAGES,
           V_EMPTY = K_EMPTY + 8 * STAGES, BYTES = V_EMPTY + 8 * STAGES };
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
    barrier_expect(barrier, rows * D * 2);
    for (int x = 0; x < D; x += 64) copy_box(near + x * rows * 2, map, barrier, x, head, row, batch);
}

/* One thread: everything that the consumers need, in the order in which they need it. */
template <int D>
__device__ void produce(unsigned base, const CUtensorMap *q, const CUtensorMap *k, const CUtensorMap *v,
                        const place &at, int first, int tiles) {
    load<D>(base + tile<D>::Q, q, base + tile<D>::Q_FULL, ROWS, at.h, first, at.b);
#pragma unroll 1
    for (int n = 0; n < tiles; n++) {
        const unsigned at_stage = n % STAGES, stage = base + at_stage * tile<D>::STAGE, parity = n / STAGES % 2;
        barrier_wait(base + tile<D>::K_EMPTY + 8 * at_stage, parity);   /* hole: at first every stage is empty */
        load<D>(stage + tile<D>::K, k, base + tile<D>::K_FULL + 8 * at_stage, KEYS, at.g, n * KEYS, at.b);
        barrier_wait(base + tile<D>::V_EMPTY + 8 * at_stage, parity);
        load<D>(stage + tile<D>::V, v, base + tile<D>::V_FULL + 8 * at_stage, KEYS, at.g, n * KEYS, at.b);
    }
}

/* A warpgroup: wait for K or V of tile n; say that it has been read. */
__device__ void wait_full(unsigned full, int n) { barrier_wait(full + 8 * (n % STAGES), n / STAGES % 2); }
__device__ void release(unsigned empty, int n) {
    if (threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * (n % STAGES));
}

template <int D, int BF16>
__device__ void start_accumulate(float (&o)[D / 2], unsigned (&w)[KEYS / 4], unsigned base, int n) {
    wait_full(base + tile<D>::V_FULL, n);
    accumulate<D, BF16>(o, w, base + n % STAGES * tile<D>::STAGE + tile<D>::V);
}

/* Tile n: from o and p of the tile before to this one's. FIRST: there is none before. */
template <int D, int BF16, int FIRST>
__device__ void step(float (&o)[D / 2], unsigned (&w)[KEYS / 4], part &r, unsigned base, unsigned q, int n, int seen,
                     float scale) {
    float s[KEYS / 2];
    wait_full(base + tile<D>::K_FULL, n);
    scores<D, BF16>(s, q, base + n % STAGES * tile<D>::STAGE + tile<D>::K);
    if (OVERLAP && !FIRST) start_accumulate<D, BF16>(o, w, base, n - 1);
    wgmma_wait<OVERLAP && !FIRST>(), keep(s);
    release(base + tile<D>::K_EMPTY, n);
    if ((n + 1) * KEYS > seen) hide(s, r, n * KEYS);
    softmax_step<BF16>(s, r, scale);
    if (OVERLAP && !FIRST) {
        wgmma_wait<0>(), keep(o), keep(w);
        release(base + tile<D>::V_EMPTY, n - 1);
    }
    round_p<BF16>(w, s);
    rescale<D>(o, r);
    if (!OVERLAP) {
        start_accumulate<D, BF16>(o, w, base, n);
        wgmma_wait<0>(), keep(o);
        release(base + tile<D>::V_EMPTY, n);
    }
}

template <int D, int BF16>
__device__ void consume(const attn_problem &p, const place &at, unsigned base, int warpgroup, int64_t first,
                        int tiles) {
    const int64_t mine = first + 64 * warpgroup, row = mine + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    const int seen = (int)attn_plugin_limit(&p, mine < p.q_len ? mine : p.q_len - 1);  /* keys that all 64 rows see */
    const unsigned q = base + tile<D>::Q + warpgroup * 64 * 128;
    const float scale = p.scale * 1.44269504f;
    float o[D / 2] = {};
    unsigned w[KEYS / 4];
    part r = {};
    for (int half = 0; half < 2; half++)
        r.m[half] = -INFINITY,
        r.limit[half] = (int)attn_plugin_limit(&p, row + 8 * half < p.q_len ? row + 8 * half : p.q_len - 1);
    barrier_wait(base + tile<D>::Q_FULL, 0);
    if (tiles) {
        step<D, BF16, 1>(o, w, r, base, q, 0, seen, scale);
#pragma unroll 1
        for (int n = 1; n < tiles; n++) step<D, BF16, 0>(o, w, r, base, q, n, seen, scale);
        if (OVERLAP) {
            start_accumulate<D, BF16>(o, w, base, tiles - 1);
            wgmma_wait<0>(), keep(o);
        }
    }
    finish<D, BF16, 0>(o, r, p, at, row, scale);
    finish<D, BF16, 1>(o, r, p, at, row + 8, scale);
}

template <int D, int BF16>
__global__ void __launch_bounds__(THREADS, 1)
flash_hopper(attn_problem p, attn_tensors x, const __grid_constant__ CUtensorMap q,
             const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v) {
    extern __shared__ unsigned char memory[];
    const unsigned base = (shared_address(memory) + 1023) & ~1023u;
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
    const place at = place_of(p, x);
    const int64_t first = (int64_t)(gridDim.x - 1 - blockIdx.x) * ROWS;     /* causal: the longest rows start first */
    const int end = (int)attn_plugin_limit(&p, first + ROWS < p.q_len ? first + ROWS - 1 : p.q_len - 1);
    const int tiles = (end + KEYS - 1) / KEYS;
    if (threadIdx.x == 0) {
        for (unsigned n = 0; n < 1 + 2 * STAGES; n++) barrier_init(base + tile<D>::Q_FULL + 8 * n, 1);
        for (unsigned n = 0; n < 2 * STAGES; n++) barrier_init(base + tile<D>::K_EMPTY + 8 * n, WARPGROUPS);
        barrier_init_done();
    }
    __syncthreads();
    if (warpgroup == 0) {
        registers_give<40>();
        if (threadIdx.x == 0) produce<D>(base, &q, &k, &v, at, (int)first, tiles);
    } else {
        registers_take<232>();
        consume<D, BF16>(p, at, base, warpgroup - 1, first, tiles);
    }
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
    if (cudaFuncSetAttribute(flash_hopper<D, BF16>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes))
        return ATTN_DEVICE_ERROR;
    flash_hopper<D, BF16><<<dim3(tiles, heads), THREADS, bytes, (cudaStream_t)stream>>>(*p, *t, q, k, v);
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

const attn_plugin attn_plugin_kernel = { sizeof(attn_plugin), ATTN_CUDA, "flash_hopper",
    "FlashAttention on wgmma, a producer and two consumer warpgroups, scores beside p v",
    refuse_boxes, NULL, run, traffic };
