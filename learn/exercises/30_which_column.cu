/* 30_which_column.cu — exercise: flash_mma.cu with a hole. Which key does a register's score belong to?
 * Find it, fill it, then: learn check 30 --my FILE */
#include "attn/attn_plugin.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>

enum { ROWS = 64, KEYS = 64, THREADS = 128 };   /* 4 warps of 16 queries; 64 keys a tile */

/* ---- one instruction each ----
 * A warp holds a 16 x 8 sum in 4 registers a thread: with g = lane / 4, q = lane % 4, register i is row g + 8 (i / 2),
 * column 2 q + i % 2. The left factor (16 x 16, two numbers a register) has the same rows; so two sums side by side,
 * rounded and packed, are a left factor: no number changes its thread. */
template <int BF16> __device__ void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    if (BF16)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};" : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};" : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8 x 8 blocks from shared memory: lane n gives the address of row n % 8 of block n / 8. */
template <int TRANSPOSED> __device__ void load_blocks(unsigned (&r)[4], const uint16_t *row) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(row);
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

template <int BF16> __device__ unsigned pack(float low, float high) {
    if (BF16) {
        const __nv_bfloat162 x = __floats2bfloat162_rn(low, high);
        return *(const unsigned *)&x;
    }
    const __half2 x = __floats2half2_rn(low, high);
    return *(const unsigned *)&x;
}

template <int BF16> __device__ float widen(uint16_t x) {
    return BF16 ? __uint_as_float((unsigned)x << 16) : __half2float(__ushort_as_half(x));
}

/* ---- steps ---- */

/* D: dims, padded with zeros to 64 or 128. A row has D + 8 numbers: 8 rows at a time hit all 32 banks once. */
template <int D> struct tile { uint16_t q[ROWS][D + 8], k[KEYS][D + 8], v[KEYS][D + 8]; float p[ROWS][KEYS]; };
template <int D> struct part {
    unsigned q[D / 16][4];
    float s[KEYS / 8][4], o[D / 8][4], m[2], l[2];
    int64_t limit[2];
};

/* near[count rows] = far, 16 bytes a thread; zeros elsewhere. Nonzero: a number isn't finite. */
template <int D, int BF16>
__device__ int load(uint16_t (*near)[D + 8], const uint16_t *far, int64_t stride, int64_t count, int dims) {
    const unsigned exponent = BF16 ? 0x7f807f80u : 0x7c007c00u;
    int strange = 0;
    for (int n = threadIdx.x; n < 64 * D / 8; n += THREADS) {
        const int row = n / (D / 8), x = n % (D / 8) * 8;
        uint4 w = {};
        if (row < count && x < dims) w = *(const uint4 *)(far + row * stride + x);
        *(uint4 *)&near[row][x] = w;
        const unsigned words[4] = { w.x, w.y, w.z, w.w };
        for (int i = 0; i < 4; i++)
            strange |= (words[i] & exponent & 0xffffu) == (exponent & 0xffffu) ||
                       (words[i] & exponent) >> 16 == exponent >> 16;
    }
    return strange;
}

/* s = q k^T, then scaled to powers of two; hidden ones -inf. */
template <int D, int BF16> __device__ void scores(part<D> &r, const tile<D> &t, int64_t j, float scale) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
        for (int i = 0; i < 4; i++) r.s[n][i] = 0;
#pragma unroll
    for (int x = 0; x < D / 16; x++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += 2) {
            unsigned k[4];
            load_blocks<0>(k, &t.k[8 * n + lane % 8 + lane / 16 * 8][16 * x + lane / 8 % 2 * 8]);
            multiply<BF16>(r.s[n], r.q[x], k[0], k[1]);
            multiply<BF16>(r.s[n + 1], r.q[x], k[2], k[3]);
        }
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            r.s[n][i] = j + 8 * n + i < r.limit[i / 2] ? r.s[n][i] * scale : -INFINITY;   /* hole: register i's column */
}

/* s becomes p. A row lies in four neighbouring threads, two rows in each. */
template <int D> __device__ void softmax_step(part<D> &r) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = r.m[half], sum = 0;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(r.s[n][2 * half], r.s[n][2 * half + 1]));
        for (int n = 1; n < 4; n *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, n));
        const float safe = top == -INFINITY ? 0 : top, old = exp2f(r.m[half] - safe);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            for (int i = 2 * half; i < 2 * half + 2; i++) sum += r.s[n][i] = exp2f(r.s[n][i] - safe);
        for (int n = 1; n < 4; n *= 2) sum += __shfl_xor_sync(~0u, sum, n);
        r.l[half] = r.l[half] * old + sum, r.m[half] = top;
#pragma unroll
        for (int x = 0; x < D / 8; x++) r.o[x][2 * half] *= old, r.o[x][2 * half + 1] *= old;
    }
}

/* o += p v */
template <int D, int BF16> __device__ void accumulate(part<D> &r, const tile<D> &t) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++) {
        const unsigned p[4] = { pack<BF16>(r.s[2 * j][0], r.s[2 * j][1]), pack<BF16>(r.s[2 * j][2], r.s[2 * j][3]),
                                pack<BF16>(r.s[2 * j + 1][0], r.s[2 * j + 1][1]),
                                pack<BF16>(r.s[2 * j + 1][2], r.s[2 * j + 1][3]) };
#pragma unroll
        for (int x = 0; x < D / 8; x += 2) {
            unsigned v[4];
            load_blocks<1>(v, &t.v[16 * j + lane % 16][8 * x + lane / 16 * 8]);
            multiply<BF16>(r.o[x], p, v[0], v[1]);
            multiply<BF16>(r.o[x + 1], p, v[2], v[3]);
        }
    }
}

/* The same, one number at a time: a matrix product can't skip a hidden v, and 0 times NaN is NaN. */
template <int D, int BF16> __device__ void accumulate_strange(part<D> &r, tile<D> &t, int64_t j) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
        for (int i = 0; i < 4; i++) t.p[row + 8 * (i / 2)][8 * n + lane % 4 * 2 + i % 2] = r.s[n][i];
    __syncwarp();
    for (int key = 0; key < KEYS; key++)
#pragma unroll
        for (int x = 0; x < D / 8; x++)
            for (int i = 0; i < 4; i++)
                if (j + key < r.limit[i / 2])
                    r.o[x][i] += t.p[row + 8 * (i / 2)][key] * widen<BF16>(t.v[key][8 * x + lane % 4 * 2 + i % 2]);
    __syncwarp();
}

template <int D, int BF16>
__device__ void store(const part<D> &r, const attn_problem &p, uint16_t *o, float *lse, int64_t i) {
    const int lane = threadIdx.x % 32;
    for (int half = 0; half < 2; half++) {
        const int64_t row = i + lane / 4 + 8 * half;
        if (row >= p.q_len) continue;
        const float divide = r.l[half] == 0 ? 0 : 1 / r.l[half];
#pragma unroll
        for (int x = 0; x < D / 8; x++)
            if (8 * x < p.v_dim) {
                const unsigned two = pack<BF16>(r.o[x][2 * half] * divide, r.o[x][2 * half + 1] * divide);
                *(unsigned *)(o + row * p.o_stride.seq + 8 * x + lane % 4 * 2) = r.l[half] == 0 ? 0 : two;
            }
        if (lse && lane % 4 == 0)
            lse[row * p.lse_stride.seq] = r.l[half] == 0 ? -INFINITY : (r.m[half] + log2f(r.l[half])) * 0.693147181f;
    }
}

template <int D, int BF16> __global__ void __launch_bounds__(THREADS) flash_mma(attn_problem p, attn_tensors x) {
    extern __shared__ __align__(16) unsigned char near[];
    tile<D> &t = *(tile<D> *)near;
    part<D> r = {};
    const int64_t b = blockIdx.y / p.q_heads, h = blockIdx.y % p.q_heads, g = h / (p.q_heads / p.kv_heads);
    const uint16_t *q = (const uint16_t *)x.q + b * p.q_stride.batch + h * p.q_stride.head;
    const uint16_t *k = (const uint16_t *)x.k + b * p.k_stride.batch + g * p.k_stride.head;
    const uint16_t *v = (const uint16_t *)x.v + b * p.v_stride.batch + g * p.v_stride.head;
    const int64_t first = (int64_t)(gridDim.x - 1 - blockIdx.x) * ROWS;     /* causal: the longest rows start first */
    const int64_t rows = p.q_len - first < ROWS ? p.q_len - first : ROWS;
    const int lane = threadIdx.x % 32, mine = threadIdx.x / 32 * 16;
    load<D, BF16>(t.q, q + first * p.q_stride.seq, p.q_stride.seq, rows, (int)p.qk_dim);
    __syncthreads();
    for (int n = 0; n < D / 16; n++) load_blocks<0>(r.q[n], &t.q[mine + lane % 16][16 * n + lane / 16 * 8]);
    for (int half = 0; half < 2; half++) {
        const int64_t row = first + mine + lane / 4 + 8 * half;
        r.m[half] = -INFINITY, r.limit[half] = row < p.q_len ? attn_plugin_limit(&p, row) : 0;
    }
    const int64_t end = attn_plugin_limit(&p, first + rows - 1);
    for (int64_t j = 0; j < end; j += KEYS) {
        const int64_t keys = p.kv_len - j < KEYS ? p.kv_len - j : KEYS;
        __syncthreads();
        load<D, BF16>(t.k, k + j * p.k_stride.seq, p.k_stride.seq, keys, (int)p.qk_dim);
        const int strange = load<D, BF16>(t.v, v + j * p.v_stride.seq, p.v_stride.seq, keys, (int)p.v_dim);
        const int any = __syncthreads_or(strange);
        scores<D, BF16>(r, t, j, p.scale * 1.44269504f);
        softmax_step(r);
        if (any) accumulate_strange<D, BF16>(r, t, j);
        else accumulate<D, BF16>(r, t);
    }
    store<D, BF16>(r, p, (uint16_t *)x.o + b * p.o_stride.batch + h * p.o_stride.head,
                   x.lse ? x.lse + b * p.lse_stride.batch + h * p.lse_stride.head : NULL, first + mine);
}

/* ---- the plug-in ---- */

static const char *refuse(const attn_problem *p) {
    const int64_t strides[] = { p->q_stride.batch, p->q_stride.seq, p->q_stride.head, p->k_stride.batch,
                                p->k_stride.seq, p->k_stride.head, p->v_stride.batch, p->v_stride.seq,
                                p->v_stride.head, p->o_stride.batch, p->o_stride.seq, p->o_stride.head,
                                p->qk_dim, p->v_dim };
    attn_problem as_f32 = *p;
    if (p->dtype == ATTN_F32 || p->o_dtype != p->dtype) return "computes f16 and bf16 only";
    for (size_t i = 0; i < sizeof strides / sizeof *strides; i++)
        if (strides[i] % 8) return "loads 16 bytes at a time: dims and strides must be multiples of 8";
    if (p->qk_dim > 128 || p->v_dim > 128) return "keeps o in registers: dims up to 128";
    if (p->batch * p->q_heads > 65535) return "more blocks than a grid has in y";
    as_f32.dtype = as_f32.o_dtype = ATTN_F32;
    return attn_plugin_plain(&as_f32);
}

static attn_traffic moved;
static void traffic(attn_traffic *out) { *out = moved; }

static void count(const attn_problem *p) {
    const int64_t heads = p->batch * p->q_heads;
    moved = {};
    moved.q = 2 * heads * p->q_len * p->qk_dim, moved.o = 2 * heads * p->q_len * p->v_dim;
    for (int64_t i = 0; i < p->q_len; i += ROWS) {
        const int64_t end = attn_plugin_limit(p, i + ROWS < p->q_len ? i + ROWS - 1 : p->q_len - 1);
        const int64_t keys = (end + KEYS - 1) / KEYS * KEYS, read = keys < p->kv_len ? keys : p->kv_len;
        moved.k += 2 * heads * read * p->qk_dim, moved.v += 2 * heads * read * p->v_dim;
    }
}

template <int D, int BF16> static attn_status launch(const attn_problem *p, const attn_tensors *t, void *stream) {
    const unsigned heads = (unsigned)(p->batch * p->q_heads), tiles = (unsigned)((p->q_len + ROWS - 1) / ROWS);
    const int bytes = (int)sizeof(tile<D>);
    if (cudaFuncSetAttribute(flash_mma<D, BF16>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes))
        return ATTN_DEVICE_ERROR;
    flash_mma<D, BF16><<<dim3(tiles, heads), THREADS, bytes, (cudaStream_t)stream>>>(*p, *t);
    return cudaGetLastError() ? ATTN_DEVICE_ERROR : ATTN_OK;
}

static attn_status run(const attn_problem *p, const attn_tensors *t, void *none, void *stream) {
    const int small = p->qk_dim <= 64 && p->v_dim <= 64, bf16 = p->dtype == ATTN_BF16;
    (void)none;
    if (!p->batch || !p->q_len) return ATTN_OK;
    count(p);
    if (small) return bf16 ? launch<64, 1>(p, t, stream) : launch<64, 0>(p, t, stream);
    return bf16 ? launch<128, 1>(p, t, stream) : launch<128, 0>(p, t, stream);
}

const attn_plugin attn_plugin_kernel = { sizeof(attn_plugin), ATTN_CUDA, "flash_mma",
    "FlashAttention-2 on mma.sync, one buffer, no overlap of loads and arithmetic", refuse, NULL, run, traffic };
