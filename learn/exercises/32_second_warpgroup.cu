/* 32_second_warpgroup.cu — exercise: flash_wgmma.cu with a hole. A row of a box is 128 bytes.
 *     nvcc: -gencode=arch=compute_90a,code=sm_90a -ftz=true
 * Find it, fill it, then: learn check 32 --my FILE */
#include "../flash_attention/hopper.h"

enum { WARPGROUPS = 2, ROWS = 64 * WARPGROUPS, KEYS = 128, THREADS = 128 * WARPGROUPS };

/* Where things are in shared memory. D: dims, padded with zeros to 64 or 128. */
template <int D> struct tile { enum { Q = 0, K = Q + ROWS * D * 2, V = K + KEYS * D * 2, BYTES = V + KEYS * D * 2 }; };

/* near[COUNT rows] = far, 16 bytes a thread; zeros elsewhere. */
template <int D, int COUNT>
__device__ void load(unsigned char *near, const uint16_t *far, int64_t stride, int64_t count, int dims) {
    for (int n = threadIdx.x; n < COUNT * D / 8; n += THREADS) {
        const int row = n / (D / 8), x = n % (D / 8) * 8;
        uint4 w = {};
        if (row < count && x < dims) w = *(const uint4 *)(far + row * stride + x);
        *(uint4 *)(near + swizzled(COUNT, row, x)) = w;
    }
}

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

template <int D, int BF16>
__global__ void __launch_bounds__(THREADS, 1) flash_wgmma(attn_problem p, attn_tensors x) {
    extern __shared__ unsigned char memory[];
    unsigned char *const near = memory + (-shared_address(memory) & 1023);
    const unsigned base = shared_address(near);
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
    const place at = place_of(p, x);
    const int64_t first = (int64_t)(gridDim.x - 1 - blockIdx.x) * ROWS;     /* causal: the longest rows start first */
    const int64_t mine = first + 64 * warpgroup, row = mine + threadIdx.x % 128 / 32 * 16 + lane / 4;
    const int end = (int)attn_plugin_limit(&p, first + ROWS < p.q_len ? first + ROWS - 1 : p.q_len - 1);
    const int seen = (int)attn_plugin_limit(&p, mine < p.q_len ? mine : p.q_len - 1);  /* keys that all 64 rows see */
    const float scale = p.scale * 1.44269504f;
    float s[KEYS / 2], o[D / 2] = {};
    unsigned w[KEYS / 4];
    part r = {};
    for (int half = 0; half < 2; half++)
        r.m[half] = -INFINITY,
        r.limit[half] = (int)attn_plugin_limit(&p, row + 8 * half < p.q_len ? row + 8 * half : p.q_len - 1);
    load<D, ROWS>(near + tile<D>::Q, at.q + first * p.q_stride.seq, p.q_stride.seq, p.q_len - first, (int)p.qk_dim);
#pragma unroll 1
    for (int j = 0; j < end; j += KEYS) {
        __syncthreads();
        load<D, KEYS>(near + tile<D>::K, at.k + j * p.k_stride.seq, p.k_stride.seq, p.kv_len - j, (int)p.qk_dim);
        load<D, KEYS>(near + tile<D>::V, at.v + j * p.v_stride.seq, p.v_stride.seq, p.kv_len - j, (int)p.v_dim);
        publish_stores();
        __syncthreads();
        scores<D, BF16>(s, base + tile<D>::Q, base + tile<D>::K);   /* hole: where do a warpgroup's 64 queries begin? */
        wgmma_wait<0>(), keep(s);
        if (j + KEYS > seen) hide(s, r, j);
        softmax_step<BF16>(s, r, scale);
        round_p<BF16>(w, s);
        rescale<D>(o, r);
        accumulate<D, BF16>(o, w, base + tile<D>::V);
        wgmma_wait<0>(), keep(o);
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
    if (cudaFuncSetAttribute(flash_wgmma<D, BF16>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes))
        return ATTN_DEVICE_ERROR;
    flash_wgmma<D, BF16><<<dim3(tiles, heads), THREADS, bytes, (cudaStream_t)stream>>>(*p, *t);
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

const attn_plugin attn_plugin_kernel = { sizeof(attn_plugin), ATTN_CUDA, "flash_wgmma",
    "FlashAttention on wgmma, 128 x 128 tiles loaded by all threads, nothing overlaps",
    refuse_plain, NULL, run, traffic };
