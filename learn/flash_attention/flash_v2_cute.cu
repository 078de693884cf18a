/* flash_v2_cute.cu — FlashAttention-2 in CuTe: the twin of flash_mma.cu with layouts instead of index arithmetic.
 *     pip install nvidia-cutlass
 *     export ATTN_PLUGIN_FLAGS="$(python3 learn/flash_attention/cute_flags.py)"
 *     attn bench --backend cuda --kernel learn/flash_attention/flash_v2_cute.cu --dtype bf16 --sq 1k --d 64
 * Idea: a layout is a function from coordinates to an offset. The swizzle, the fragment map of mma.sync and the
 * transpose of V are layouts; what flash_mma.cu computes with % and / is said once, and composed. */
#include "attn/attn_plugin.h"
#include <cute/tensor.hpp>
#include <math.h>

using namespace cute;

enum { ROWS = 64, KEYS = 64, THREADS = 128 };   /* 4 warps of 16 queries; 64 keys a tile */

template <class Type, int D> struct layouts {
    /* Shared memory: rows of D numbers in blocks of 8 x 64; the swizzle exchanges their 16-byte columns by row, so
     * that 8 rows of one column lie in 8 groups of banks. flash_mma.cu pads rows for that; nothing is padded here. */
    using block = decltype(composition(Swizzle<3, 3, 3>{}, Layout<Shape<_8, _64>, Stride<_64, _1>>{}));
    using rows = decltype(tile_to_shape(block{}, Shape<_64, Int<D>>{}));
    using columns = decltype(composition(rows{}, Layout<Shape<Int<D>, _64>, Stride<_64, _1>>{}));  /* the transpose */
    using plain_columns = decltype(get_nonswizzle_portion(columns{}));
    using multiply = std::conditional_t<std::is_same_v<Type, bfloat16_t>, SM80_16x8x16_F32BF16BF16F32_TN,
                                        SM80_16x8x16_F32F16F16F32_TN>;
    using product = TiledMMA<MMA_Atom<multiply>, Layout<Shape<_4, _1, _1>>, Tile<_64, _16, _16>>;  /* 4 warps */
    using load = Copy_Atom<SM75_U32x4_LDSM_N, Type>;
    using load_transposed = Copy_Atom<SM75_U16x8_LDSM_T, Type>;
};

template <class Type, int D> struct tile { Type q[ROWS * D], k[KEYS * D], v[KEYS * D]; float p[ROWS * KEYS]; };

/* ---- two views of registers ---- */

/* Sums of a product, (4, M, N) a thread: the same registers as (row, column). */
template <class L> __device__ auto rows_and_columns(L sums) {
    const auto pairs = logical_divide(sums, Shape<_2>{});                       /* ((2, 2), M, N) */
    return make_layout(make_layout(get<0, 1>(pairs), get<1>(pairs)),
                       make_layout(get<0, 0>(pairs), get<2>(pairs)));
}

/* The same registers as left factor of the next product, ((4, 2), M, N / 2): no number changes its thread. */
template <class L> __device__ auto as_left_factor(L sums) {
    const auto pairs = logical_divide(sums, Shape<Underscore, Underscore, _2>{});       /* (4, M, (2, N / 2)) */
    return make_layout(make_layout(get<0>(pairs), get<2, 0>(pairs)), get<1>(pairs), get<2, 1>(pairs));
}

/* ---- steps ---- */

/* near = far, 16 bytes a thread; rows from `count` and columns from `dims` on are zeros. Nonzero: one isn't finite. */
template <class Type, class Near>
__device__ int load(Near near, const Type *far, int64_t stride, int64_t count, int dims) {
    constexpr int D = size<1>(Near{});
    int strange = 0;
    for (int n = threadIdx.x; n < 64 * D / 8; n += THREADS) {
        const int row = n / (D / 8), x = n % (D / 8) * 8;
        uint128_t w = {};
        if (row < count && x < dims) w = *(const uint128_t *)(far + row * stride + x);
        *(uint128_t *)&near(row, x) = w;                  /* the swizzle moves 16 bytes at a time */
        for (int i = 0; i < 8; i++) strange |= !isfinite((float)((const Type *)&w)[i]);
    }
    return strange;
}

/* s becomes p; m, l and o follow. A row lies in four neighbouring threads. */
template <class S, class O, class M> __device__ void softmax_step(S &s, O &o, M &m, M &l) {
#pragma unroll
    for (int i = 0; i < size<0>(s); i++) {
        float top = m(i), sum = 0;
#pragma unroll
        for (int j = 0; j < size<1>(s); j++) top = fmaxf(top, s(i, j));
        for (int n = 1; n < 4; n *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, n));
        const float safe = top == -INFINITY ? 0 : top, old = exp2f(m(i) - safe);
#pragma unroll
        for (int j = 0; j < size<1>(s); j++) sum += s(i, j) = exp2f(s(i, j) - safe);
        for (int n = 1; n < 4; n *= 2) sum += __shfl_xor_sync(~0u, sum, n);
        l(i) = l(i) * old + sum, m(i) = top;
#pragma unroll
        for (int x = 0; x < size<1>(o); x++) o(i, x) *= old;
    }
}

template <class Type, int D> __global__ void __launch_bounds__(THREADS) flash_v2_cute(attn_problem p, attn_tensors x) {
    extern __shared__ __align__(128) unsigned char memory[];
    tile<Type, D> &t = *(tile<Type, D> *)memory;
    using L = layouts<Type, D>;
    const int64_t b = blockIdx.y / p.q_heads, h = blockIdx.y % p.q_heads, g = h / (p.q_heads / p.kv_heads);
    const Type *q = (const Type *)x.q + b * p.q_stride.batch + h * p.q_stride.head;
    const Type *k = (const Type *)x.k + b * p.k_stride.batch + g * p.k_stride.head;
    const Type *v = (const Type *)x.v + b * p.v_stride.batch + g * p.v_stride.head;
    const int64_t first = (int64_t)(gridDim.x - 1 - blockIdx.x) * ROWS;     /* causal: the longest rows start first */
    const int64_t rows = p.q_len - first < ROWS ? p.q_len - first : ROWS;

    /* Tensors: memory and layout. */
    const auto near_q = make_tensor(make_smem_ptr(t.q), typename L::rows{});
    const auto near_k = make_tensor(make_smem_ptr(t.k), typename L::rows{});
    const auto near_v = make_tensor(make_smem_ptr(t.v), typename L::rows{});
    const auto near_vt = make_tensor(make_smem_ptr(t.v), typename L::columns{});
    const auto plain_vt = make_tensor(make_smem_ptr(t.v), typename L::plain_columns{});
    const auto near_p = make_tensor(make_smem_ptr(t.p), Layout<Shape<_64, _64>, Stride<_64, _1>>{});

    /* This thread's part of each, as the product wants it. */
    typename L::product product;
    const auto mine = product.get_thread_slice(threadIdx.x);
    auto rq = mine.partition_fragment_A(near_q);                            /* (registers of an atom, atoms, steps) */
    auto rk = mine.partition_fragment_B(near_k);
    auto rv = mine.partition_fragment_B(plain_vt);
    auto s_sums = partition_fragment_C(product, Shape<Int<ROWS>, Int<KEYS>>{});
    auto o_sums = partition_fragment_C(product, Shape<Int<ROWS>, Int<D>>{});
    auto s = make_tensor(s_sums.data(), rows_and_columns(s_sums.layout()));
    auto o = make_tensor(o_sums.data(), rows_and_columns(o_sums.layout()));
    /* Where does s(i, j) lie in the tile? Ask the same partition of a tensor whose elements are their coordinates. */
    const auto s_parts = mine.partition_C(make_identity_tensor(Shape<Int<ROWS>, Int<KEYS>>{}));
    const auto o_parts = mine.partition_C(make_identity_tensor(Shape<Int<ROWS>, Int<D>>{}));
    const auto s_place = make_tensor(s_parts.data(), rows_and_columns(s_parts.layout()));
    const auto o_place = make_tensor(o_parts.data(), rows_and_columns(o_parts.layout()));
    const auto copy_q = make_tiled_copy_A(typename L::load{}, product);
    const auto copy_k = make_tiled_copy_B(typename L::load{}, product);
    const auto copy_v = make_tiled_copy_B(typename L::load_transposed{}, product);
    const auto my_q = copy_q.get_thread_slice(threadIdx.x);
    const auto my_k = copy_k.get_thread_slice(threadIdx.x);
    const auto my_v = copy_v.get_thread_slice(threadIdx.x);

    auto m = make_tensor<float>(Shape<Int<decltype(size<0>(s))::value>>{}), l = make_fragment_like(m);
    int64_t limit[decltype(size<0>(s))::value];
    for (int i = 0; i < size<0>(s); i++) {
        const int64_t row = first + get<0>(s_place(i, 0));
        limit[i] = row < p.q_len ? attn_plugin_limit(&p, row) : 0;
        m(i) = -INFINITY, l(i) = 0;
    }
    clear(o_sums);
    load(near_q, q + first * p.q_stride.seq, p.q_stride.seq, rows, (int)p.qk_dim);
    __syncthreads();
    copy(copy_q, my_q.partition_S(near_q), my_q.retile_D(rq));

    const float scale = p.scale * 1.44269504f;                             /* powers of two */
    const int64_t end = attn_plugin_limit(&p, first + rows - 1);
    for (int64_t j = 0; j < end; j += KEYS) {
        const int64_t keys = p.kv_len - j < KEYS ? p.kv_len - j : KEYS;
        __syncthreads();
        load(near_k, k + j * p.k_stride.seq, p.k_stride.seq, keys, (int)p.qk_dim);
        const int strange = load(near_v, v + j * p.v_stride.seq, p.v_stride.seq, keys, (int)p.v_dim);
        const int any = __syncthreads_or(strange);
        /* s = q k^T, hidden ones -inf */
        clear(s_sums);
        copy(copy_k, my_k.partition_S(near_k), my_k.retile_D(rk));
        gemm(product, rq, rk, s_sums);
#pragma unroll
        for (int i = 0; i < size<0>(s); i++)
#pragma unroll
            for (int c = 0; c < size<1>(s); c++)
                s(i, c) = j + get<1>(s_place(i, c)) < limit[i] ? s(i, c) * scale : -INFINITY;
        softmax_step(s, o, m, l);
        if (!any) {                                                         /* o += p v */
            auto rounded = make_tensor<Type>(s_sums.layout());
#pragma unroll
            for (int n = 0; n < size(s_sums); n++) rounded(n) = (Type)s_sums(n);
            copy(copy_v, my_v.partition_S(near_vt), my_v.retile_D(rv));
            gemm(product, make_tensor(rounded.data(), as_left_factor(rounded.layout())), rv, o_sums);
            continue;
        }
        /* A matrix product can't skip a hidden v, and 0 times NaN is NaN: the same, one number at a time. */
        for (int i = 0; i < size<0>(s); i++)
            for (int c = 0; c < size<1>(s); c++) near_p(get<0>(s_place(i, c)), get<1>(s_place(i, c))) = s(i, c);
        __syncwarp();
        for (int key = 0; key < KEYS; key++)
#pragma unroll
            for (int i = 0; i < size<0>(o); i++)
#pragma unroll
                for (int c = 0; c < size<1>(o); c++)
                    if (j + key < limit[i])
                        o(i, c) += near_p(get<0>(o_place(i, c)), key) * (float)near_v(key, get<1>(o_place(i, c)));
        __syncwarp();
    }

    Type *out = (Type *)x.o + b * p.o_stride.batch + h * p.o_stride.head;
    float *lse = x.lse ? x.lse + b * p.lse_stride.batch + h * p.lse_stride.head : nullptr;
    for (int i = 0; i < size<0>(o); i++) {
        const int64_t row = first + get<0>(o_place(i, 0));
        if (row >= p.q_len) continue;
        const float divide = l(i) == 0 ? 0 : 1 / l(i);
        for (int c = 0; c < size<1>(o); c++) {
            const int column = get<1>(o_place(i, c));
            const Type rounded = l(i) == 0 ? Type(0) : (Type)(o(i, c) * divide);
            if (column < p.v_dim) out[row * p.o_stride.seq + column] = rounded;
        }
        if (lse && threadIdx.x % 4 == 0)
            lse[row * p.lse_stride.seq] = l(i) == 0 ? -INFINITY : (m(i) + log2f(l(i))) * 0.693147181f;
    }
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

template <class Type, int D> static attn_status launch(const attn_problem *p, const attn_tensors *t, void *stream) {
    const unsigned heads = (unsigned)(p->batch * p->q_heads), tiles = (unsigned)((p->q_len + ROWS - 1) / ROWS);
    const int bytes = (int)sizeof(tile<Type, D>);
    if (cudaFuncSetAttribute(flash_v2_cute<Type, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes))
        return ATTN_DEVICE_ERROR;
    flash_v2_cute<Type, D><<<dim3(tiles, heads), THREADS, bytes, (cudaStream_t)stream>>>(*p, *t);
    return cudaGetLastError() ? ATTN_DEVICE_ERROR : ATTN_OK;
}

static attn_status run(const attn_problem *p, const attn_tensors *t, void *, void *stream) {
    const bool small = p->qk_dim <= 64 && p->v_dim <= 64, bf16 = p->dtype == ATTN_BF16;
    if (!p->batch || !p->q_len) return ATTN_OK;
    count(p);
    if (small) return bf16 ? launch<bfloat16_t, 64>(p, t, stream) : launch<half_t, 64>(p, t, stream);
    return bf16 ? launch<bfloat16_t, 128>(p, t, stream) : launch<half_t, 128>(p, t, stream);
}

const attn_plugin attn_plugin_kernel = { sizeof(attn_plugin), ATTN_CUDA, "flash_v2_cute",
    "FlashAttention-2 in CuTe: layouts instead of index arithmetic", refuse, nullptr, run, traffic };
