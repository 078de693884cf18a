/* reference_fwd_cuda.cu — the definition on the GPU, every option: one warp per (batch, head, query), keys in
 * groups of 32, online softmax in f32. Simple before fast; computes all that the fast kernels refuse. */
#include "../sequence.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr int WARPS = 4;            /* rows of a block: keep in step with reference_fwd_cuda.c */
constexpr unsigned ALL = 0xffffffffu;

template <int DTYPE> __device__ __forceinline__ float load(const void *x, int64_t i) {
    if (DTYPE == ATTN_F32) return ((const float *)x)[i];
    if (DTYPE == ATTN_F16) return __half2float(((const __half *)x)[i]);
    return __bfloat162float(((const __nv_bfloat16 *)x)[i]);
}

__device__ __forceinline__ float load_any(const void *x, attn_dtype dtype, int64_t i) {
    return dtype == ATTN_F32 ? load<ATTN_F32>(x, i)
         : dtype == ATTN_F16 ? load<ATTN_F16>(x, i) : load<ATTN_BF16>(x, i);
}

template <int DTYPE>
__device__ __forceinline__ void store(void *x, attn_dtype dtype, int64_t i, float value) {
    if (dtype == ATTN_F32) ((float *)x)[i] = value;
    else if (DTYPE == ATTN_F16) ((__half *)x)[i] = __float2half_rn(value);
    else ((__nv_bfloat16 *)x)[i] = __float2bfloat16_rn(value);
}

__device__ __forceinline__ float warp_sum(float x) {
    for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(ALL, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {   /* fmaxf drops NaN: a NaN score comes
                                                          back through exp */
    for (int step = 16; step; step >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL, x, step));
    return x;
}

/* One row's place and state. q and o are in shared memory: dims lane, lane + 32, ... belong to `lane`. */
struct row_state {
    attn_sequence s;
    int64_t h, kv_head, i;
    int lane;
    float *q_smem, *o_smem;
    float m, l;
};

/* A key is out of the row if a mask says so; then its K and V may be anything and aren't touched. */
__device__ bool masked(const attn_problem &p, const attn_tensors &t, const row_state &r, int64_t j) {
    if (p.has_mask && !t.mask[attn_score_offset(&r.s, p.mask_stride, r.h, r.i, j)]) return true;
    return p.bias_dtype &&
           load_any(t.bias, p.bias_dtype, attn_score_offset(&r.s, p.bias_stride, r.h, r.i, j)) == -INFINITY;
}

/* q . k of one key, by the whole warp; every lane gets it. */
template <int DTYPE>
__device__ __forceinline__ float dot(const attn_problem &p, const attn_tensors &t, const row_state &r,
                                     int64_t j) {
    const int64_t k = attn_kv_offset(&p, &r.s, p.k_stride, j, r.kv_head);
    float sum = 0;
    for (int64_t d = r.lane; d < p.qk_dim; d += 32) sum += r.q_smem[d] * load<DTYPE>(t.k, k + d);
    return warp_sum(sum);
}

__device__ float finish_score(const attn_problem &p, const attn_tensors &t, const row_state &r, int64_t j,
                              float x) {
    x *= p.scale;
    if (p.softcap > 0) x = p.softcap * tanhf(x / p.softcap);
    if (p.bias_dtype)
        x += load_any(t.bias, p.bias_dtype, attn_score_offset(&r.s, p.bias_stride, r.h, r.i, j));
    if (p.alibi) x -= attn_slope(&p, &t, r.s.b, r.h) * fabsf((float)(r.i + r.s.shift - j));
    return attn_page_valid(&p, &r.s, j) ? x : NAN;
}

/* Keys first .. first + count - 1 (count <= 32): lane n holds the score of key first + n. */
template <int DTYPE>
__device__ void step(const attn_problem &p, const attn_tensors &t, row_state &r, int64_t first, int count) {
    const bool mine = r.lane < count && !masked(p, t, r, first + r.lane);
    const unsigned seen = __ballot_sync(ALL, mine);
    float x = -INFINITY;
    for (int n = 0; n < count; n++)
        if (seen >> n & 1) {
            const float product = dot<DTYPE>(p, t, r, first + n);
            if (n == r.lane) x = product;
        }
    if (mine) x = finish_score(p, t, r, first + r.lane, x);
    const float m = fmaxf(r.m, warp_max(x)), top = m == -INFINITY ? 0 : m;
    const float correction = expf(r.m - top), weight = mine ? expf(x - top) : 0;
    r.m = m;
    r.l = r.l * correction + warp_sum(weight);
    for (int64_t d = r.lane; d < p.v_dim; d += 32) r.o_smem[d] *= correction;
    for (int n = 0; n < count; n++)
        if (seen >> n & 1) {
            const float probability = __shfl_sync(ALL, weight, n);
            const int64_t v = attn_kv_offset(&p, &r.s, p.v_stride, first + n, r.kv_head);
            for (int64_t d = r.lane; d < p.v_dim; d += 32)
                r.o_smem[d] += probability * load<DTYPE>(t.v, v + d);
        }
}

template <int DTYPE> __device__ void write(const attn_problem &p, const attn_tensors &t, const row_state &r) {
    const float top = r.m == -INFINITY ? 0 : r.m;
    const float sink = p.has_sinks && r.l != 0 ? expf(t.sinks[r.h] - top) : 0;
    const int64_t o = attn_q_offset(&r.s, p.o_stride, r.i, r.h);
    for (int64_t d = r.lane; d < p.v_dim; d += 32)
        store<DTYPE>(t.o, p.o_dtype, o + d, r.l == 0 ? 0 : r.o_smem[d] / (r.l + sink));
    if (t.lse && !r.lane) t.lse[attn_lse_offset(&p, &r.s, r.i, r.h)] = r.l == 0 ? -INFINITY : r.m + logf(r.l);
}

template <int DTYPE>
__device__ void row(const attn_problem &p, const attn_tensors &t, int64_t item, float *smem) {
    row_state r;
    r.lane = (int)threadIdx.x & 31;
    r.i = item % p.q_len;
    r.h = item / p.q_len % p.q_heads;
    r.kv_head = r.h / (p.q_heads / p.kv_heads);
    r.s = attn_sequence_at(&p, &t, item / p.q_len / p.q_heads);
    if (r.i >= r.s.q_rows) return;
    r.q_smem = smem;
    r.o_smem = smem + p.qk_dim;
    r.m = -INFINITY;
    r.l = 0;
    for (int64_t d = r.lane; d < p.v_dim; d += 32) r.o_smem[d] = 0;
    if (r.i < r.s.q_len) {
        const int64_t q = attn_q_offset(&r.s, p.q_stride, r.i, r.h);
        for (int64_t d = r.lane; d < p.qk_dim; d += 32) r.q_smem[d] = load<DTYPE>(t.q, q + d);
        const attn_range range = attn_visible(&p, &r.s, r.i);
        for (int64_t j = range.low; j < range.high; j += 32)
            step<DTYPE>(p, t, r, j, range.high - j < 32 ? (int)(range.high - j) : 32);
    }
    write<DTYPE>(p, t, r);
}

template <int DTYPE> __device__ void rows(const attn_problem &p, const attn_tensors &t) {
    extern __shared__ float smem[];
    const int warp = (int)threadIdx.x / 32;
    const int64_t items = p.batch * p.q_heads * p.q_len;
    for (int64_t item = (int64_t)blockIdx.x * WARPS + warp; item < items; item += (int64_t)gridDim.x * WARPS)
        row<DTYPE>(p, t, item, smem + warp * (p.qk_dim + p.v_dim));
}

#define ENTRY(name, dtype) \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) \
    name(const __grid_constant__ attn_problem p, const __grid_constant__ attn_tensors t) { \
        rows<dtype>(p, t); \
    }
ENTRY(reference_fwd_f32, ATTN_F32)
ENTRY(reference_fwd_f16, ATTN_F16)
ENTRY(reference_fwd_bf16, ATTN_BF16)
