/* hopper.h — the Hopper instructions of flash_wgmma.cu, flash_tma.cu and flash_hopper.cu, one function each.
 * Idea: a lesson shows a schedule; what an instruction wants to hear is said here once. The simulator has its own
 * versions of the same names. A shared-memory address is a 32-bit number (shared_address). */
#ifndef LEARN_HOPPER_H
#define LEARN_HOPPER_H
#include "attn/attn_plugin.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>

/* A tile in shared memory: boxes of 64 columns, one after another; a box has 128 bytes a row and begins on a multiple
 * of 1024. The 16-byte pieces of row r are permuted by r % 8, so that eight rows of one column hit all 32 banks:
 * where a piece lies: */
ATTN_PLUGIN_INLINE int swizzled(int rows, int row, int column) {
    return column / 64 * rows * 128 + row * 128 + (column % 64 / 8 ^ row % 8) * 16;
}

#if defined(CUDA_SIMULATED)
#include "sim_hopper.hpp"
#else
#include <cuda.h>

#define HOPPER static __device__ __forceinline__

HOPPER unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

/* ---- wgmma: D[64][N] (+)= A[64][16] B[16][N] by a warpgroup: 4 warps, which start it and go on ----
 * Warp w of the four has rows 16 w ... as in mma.sync: with g = lane / 4, q = lane % 4, register i of D is row
 * g + 8 (i / 2 % 2), column 8 (i / 4) + 2 q + i % 2. Nobody touches registers of one that runs: wgmma_wait first. */

/* How wgmma finds a matrix: its address; `stride`: bytes between boxes of 64 columns (V only). Moved by bytes / 16. */
HOPPER uint64_t matrix_at(unsigned address, unsigned stride) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(stride >> 4) << 16 | (uint64_t)64 << 32 | 1ull << 62;
}

HOPPER void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }     /* registers are ready */
HOPPER void wgmma_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }     /* a batch is complete */
template <int LEFT> HOPPER void wgmma_wait() {                   /* until at most LEFT batches run */
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(LEFT) : "memory");
}
/* No instruction: keeps the compiler from moving uses of x across. */
template <int N> HOPPER void keep(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i]) :: "memory");
}
template <int N> HOPPER void keep(unsigned (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i]) :: "memory");
}

#define EIGHT(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
                    "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS_64(d) EIGHT(d, 0), EIGHT(d, 8), EIGHT(d, 16), EIGHT(d, 24)
#define SUMS_128(d) SUMS_64(d), EIGHT(d, 32), EIGHT(d, 40), EIGHT(d, 48), EIGHT(d, 56)
#define TEXT_64 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
                "%27,%28,%29,%30,%31"
#define TEXT_128 TEXT_64 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
                 "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define SHARED(n, type, a, b, add) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." \
                 type "." type " {" TEXT_##n "}, %" #a ", %" #b ", p, 1, 1, 0, 0;\n}" : SUMS_##n(d) \
                 : "l"(left), "l"(right), "r"(more))
#define REGISTERS(n, type, a, b, c, e, v) \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" TEXT_##n "}, {%" #a ", %" #b \
                 ", %" #c ", %" #e "}, %" #v ", 1, 1, 1, 1;" : SUMS_##n(d) \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right))

/* D = A B, or D += A B if `more`. Both are rows along the sum: q and k as they are. N = 2 x registers of D. */
template <int BF16, int N> HOPPER void wgmma_rows(float (&d)[N], uint64_t left, uint64_t right, int more) {
    if constexpr (N == 32 && BF16) SHARED(64, "bf16", 32, 33, 34);
    else if constexpr (N == 32) SHARED(64, "f16", 32, 33, 34);
    else if constexpr (BF16) SHARED(128, "bf16", 64, 65, 66);
    else SHARED(128, "f16", 64, 65, 66);
}
/* D += A B, A in registers (as mma.sync wants it), the rows of B across the sum: p and v as they are. */
template <int BF16, int N> HOPPER void wgmma_columns(float (&d)[N], const unsigned *left, uint64_t right) {
    if constexpr (N == 32 && BF16) REGISTERS(64, "bf16", 32, 33, 34, 35, 36);
    else if constexpr (N == 32) REGISTERS(64, "f16", 32, 33, 34, 35, 36);
    else if constexpr (BF16) REGISTERS(128, "bf16", 64, 65, 66, 67, 68);
    else REGISTERS(128, "f16", 64, 65, 66, 67, 68);
}

/* wgmma and the copy engine read past the path of ordinary stores: the storing threads call this, then a barrier. */
HOPPER void publish_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* ---- mbarrier: 8 bytes that count arrivals and bytes. A phase ends when all have come; phases alternate 0, 1 ---- */

HOPPER void barrier_init(unsigned barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals) : "memory");
}
HOPPER void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
HOPPER void barrier_arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}
HOPPER void barrier_expect(unsigned barrier, unsigned bytes) {          /* arrive; the phase waits for bytes too */
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}
/* Until the phase of this parity has ended. The one before the first counts as ended: parity 1 doesn't wait. */
HOPPER void barrier_wait(unsigned barrier, unsigned parity) {
    asm volatile("{\n.reg .pred p;\nWAIT_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra DONE_%=;\nbra WAIT_%=;\nDONE_%=:\n}" :: "r"(barrier), "r"(parity) : "memory");
}

/* ---- the copy engine (TMA): one thread asks for a box, its bytes arrive at a barrier, swizzled, zeros outside ---- */

HOPPER void copy_box(unsigned to, const CUtensorMap *map, unsigned barrier, int column, int head, int row, int batch) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%3, %4, %5, %6}], [%2];"
                 :: "r"(to), "l"(map), "r"(barrier), "r"(column), "r"(head), "r"(row), "r"(batch) : "memory");
}

/* ---- registers move between the warpgroups of a block ---- */
template <int N> HOPPER void registers_give() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N)); }
template <int N> HOPPER void registers_take() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N)); }

/* ---- host: describe [batch, rows, heads, dims] to the copy engine; boxes of 64 columns x `box` rows ---- */
static int describe(CUtensorMap *map, const void *at, int bf16, int64_t batch, int64_t rows, int64_t heads,
                    int64_t dims, attn_stride stride, int box) {
    typedef CUresult (*encode)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                               const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                               CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    const cuuint64_t sizes[] = { (cuuint64_t)dims, (cuuint64_t)heads, (cuuint64_t)rows, (cuuint64_t)batch };
    const cuuint64_t strides[] = { heads > 1 ? (cuuint64_t)stride.head * 2 : 16,
                                   rows > 1 ? (cuuint64_t)stride.seq * 2 : 16,
                                   batch > 1 ? (cuuint64_t)stride.batch * 2 : 16 };
    const cuuint32_t shape[] = { 64, 1, (cuuint32_t)box, 1 }, ones[] = { 1, 1, 1, 1 };
    void *found = NULL;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result) || !found)
        return 1;
    const CUtensorMapDataType type = bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    return ((encode)found)(map, type, 4, (void *)at, sizes, strides, shape, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                           CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS;
}
#endif

/* ---- what the three have in common: numbers, the end of a row, what they refuse ---- */

template <int BF16> static __device__ unsigned pack(float low, float high) {
    if (BF16) {
        const __nv_bfloat162 x = __floats2bfloat162_rn(low, high);
        return *(const unsigned *)&x;
    }
    const __half2 x = __floats2half2_rn(low, high);
    return *(const unsigned *)&x;
}
template <int BF16> static __device__ float widen(uint16_t x) {
    return BF16 ? __uint_as_float((unsigned)x << 16) : __half2float(__ushort_as_half(x));
}

/* A thread has two rows, and of each the columns 8 n + 2 (lane % 4) + 0, 1. l: of these columns, until finish. */
struct part { float m[2], l[2], factor[2]; int limit[2]; };

struct place { const uint16_t *q, *k, *v; uint16_t *o; float *lse; int b, h, g; };

static __device__ place place_of(const attn_problem &p, const attn_tensors &x) {
    const int64_t b = blockIdx.y / p.q_heads, h = blockIdx.y % p.q_heads, g = h / (p.q_heads / p.kv_heads);
    return { (const uint16_t *)x.q + b * p.q_stride.batch + h * p.q_stride.head,
             (const uint16_t *)x.k + b * p.k_stride.batch + g * p.k_stride.head,
             (const uint16_t *)x.v + b * p.v_stride.batch + g * p.v_stride.head,
             (uint16_t *)x.o + b * p.o_stride.batch + h * p.o_stride.head,
             x.lse ? x.lse + b * p.lse_stride.batch + h * p.lse_stride.head : NULL, (int)b, (int)h, (int)g };
}

/* A row once more, one number at a time: a matrix product can't skip a hidden v, and 0 times NaN is NaN. */
template <int D, int BF16, int HALF>
static __device__ void again(float (&o)[D / 2], part &r, const attn_problem &p, const place &at, int64_t row,
                             float scale) {
    r.m[HALF] = -INFINITY, r.l[HALF] = 0;
#pragma unroll
    for (int e = 2 * HALF; e < D / 2; e += 4) o[e] = o[e + 1] = 0;
#pragma unroll 1
    for (int64_t j = 0; j < r.limit[HALF]; j++) {
        float s = 0;
        for (int x = 0; x < p.qk_dim; x++)
            s += widen<BF16>(at.q[row * p.q_stride.seq + x]) * widen<BF16>(at.k[j * p.k_stride.seq + x]);
        const float top = fmaxf(r.m[HALF], s), safe = top == -INFINITY ? 0 : top * scale;
        const float old = top == r.m[HALF] ? 1 : exp2f(r.m[HALF] * scale - safe), mine = exp2f(s * scale - safe);
        r.m[HALF] = top, r.l[HALF] = r.l[HALF] * old + mine;
#pragma unroll
        for (int e = 2 * HALF; e < D / 2; e += 4)
            for (int i = 0; i < 2; i++) {
                const int x = e / 4 * 8 + threadIdx.x % 4 * 2 + i;
                if (x < p.v_dim) o[e + i] = o[e + i] * old + mine * widen<BF16>(at.v[j * p.v_stride.seq + x]);
            }
    }
}

template <int D, int BF16, int HALF>
static __device__ void finish(float (&o)[D / 2], part &r, const attn_problem &p, const place &at, int64_t row,
                              float scale) {
    float &l = r.l[HALF], check = 0;
    for (int n = 1; n < 4; n *= 2) l += __shfl_xor_sync(~0u, l, n);
#pragma unroll
    for (int e = 2 * HALF; e < D / 2; e += 4) check += 0 * o[e] + 0 * o[e + 1];        /* NaN if one isn't finite */
    for (int n = 1; n < 4; n *= 2) check += __shfl_xor_sync(~0u, check, n);
    if (row >= p.q_len) return;
    if (check != 0) again<D, BF16, HALF>(o, r, p, at, row, scale);
    const float divide = l == 0 ? 0 : 1 / l;
#pragma unroll
    for (int e = 2 * HALF; e < D / 2; e += 4)
        if (e * 2 < p.v_dim)
            *(unsigned *)(at.o + row * p.o_stride.seq + e / 4 * 8 + threadIdx.x % 4 * 2) =
                l == 0 ? 0 : pack<BF16>(o[e] * divide, o[e + 1] * divide);
    if (at.lse && threadIdx.x % 4 == 0)
        at.lse[row * p.lse_stride.seq] = l == 0 ? -INFINITY : (r.m[HALF] * scale + log2f(l)) * 0.693147181f;
}

static const char *refuse_plain(const attn_problem *p) {
    const int64_t strides[] = { p->q_stride.batch, p->q_stride.seq, p->q_stride.head, p->k_stride.batch,
                                p->k_stride.seq, p->k_stride.head, p->v_stride.batch, p->v_stride.seq,
                                p->v_stride.head, p->o_stride.batch, p->o_stride.seq, p->o_stride.head,
                                p->qk_dim, p->v_dim };
    attn_problem as_f32 = *p;
    if (p->dtype == ATTN_F32 || p->o_dtype != p->dtype) return "computes f16 and bf16 only";
    for (size_t i = 0; i < sizeof strides / sizeof *strides; i++)
        if (strides[i] % 8) return "loads 16 bytes at a time: dims and strides must be multiples of 8";
    if (p->qk_dim > 128 || p->v_dim > 128) return "keeps o in registers: dims up to 128";
    if (!(p->scale > 0)) return "takes the maximum before it scales: scale must be positive";
    if (p->batch * p->q_heads > 65535) return "more blocks than a grid has in y";
    if (p->kv_len > 1 << 30 || p->q_len > 1 << 30) return "counts keys in 32 bits";
    as_f32.dtype = as_f32.o_dtype = ATTN_F32;
    return attn_plugin_plain(&as_f32);
}

/* And the copy engine can't repeat a row. */
static const char *refuse_boxes(const attn_problem *p) {
    const int64_t strides[] = { p->q_stride.batch, p->q_stride.seq, p->q_stride.head, p->k_stride.batch,
                                p->k_stride.seq, p->k_stride.head, p->v_stride.batch, p->v_stride.seq,
                                p->v_stride.head };
    for (size_t i = 0; i < sizeof strides / sizeof *strides; i++)
        if (strides[i] <= 0 || strides[i] >= (int64_t)1 << 39) return "the copy engine wants strides that are positive";
    return refuse_plain(p);
}

/* Bytes of far memory: q and o once, k and v once for each tile of queries. */
static attn_traffic count(const attn_problem *p, int rows, int keys) {
    const int64_t heads = p->batch * p->q_heads;
    attn_traffic moved = { 2 * heads * p->q_len * p->qk_dim, 0, 0, 2 * heads * p->q_len * p->v_dim, 0 };
    for (int64_t i = 0; i < p->q_len; i += rows) {
        const int64_t end = attn_plugin_limit(p, i + rows < p->q_len ? i + rows - 1 : p->q_len - 1);
        const int64_t whole = (end + keys - 1) / keys * keys, read = whole < p->kv_len ? whole : p->kv_len;
        moved.k += 2 * heads * read * p->qk_dim, moved.v += 2 * heads * read * p->v_dim;
    }
    return moved;
}
#endif
