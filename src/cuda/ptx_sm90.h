/* ptx_sm90.h — every PTX instruction that the Hopper kernels use, one documented function each. Shared-memory
 * operands are 32-bit addresses (smem_address). Functions say what they read, write and order; a thread, warp
 * or warpgroup (4 warps, the first a multiple of 4) in a name is who must call it, all together. */
#ifndef ATTN_PTX_SM90_H
#define ATTN_PTX_SM90_H
#include <cuda.h>
#include <stdint.h>

#define ATTN_DEVICE static __device__ __forceinline__

/* Address of shared memory in its own 32-bit space. */
ATTN_DEVICE uint32_t smem_address(const void *pointer) { return (uint32_t)__cvta_generic_to_shared(pointer); }

/* ---- 32-bit and 128-bit shared memory accesses by address ---- */

ATTN_DEVICE void smem_store(uint32_t to, uint32_t value) {
    asm volatile("st.shared.u32 [%0], %1;" :: "r"(to), "r"(value) : "memory");
}
ATTN_DEVICE uint4 smem_load16(uint32_t from) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(from) : "memory");
    return x;
}
ATTN_DEVICE void smem_store16(uint32_t to, uint4 x) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
}
ATTN_DEVICE void smem_store_words(uint32_t to, const int *words, int count) {
#pragma unroll
    for (int i = 0; i < count; i++) smem_store(to + 4 * i, (uint32_t)words[i]);
}
ATTN_DEVICE uint32_t smem_load(uint32_t from) {
    uint32_t value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
    return value;
}
ATTN_DEVICE int64_t smem_load64(uint32_t from) {
    int64_t value;
    asm volatile("ld.shared.u64 %0, [%1];" : "=l"(value) : "r"(from) : "memory");
    return value;
}

#if defined(ATTN_DEBUG_HANG)
__device__ unsigned attn_hang[4]; /* of the wait that gave up: barrier, parity, thread, block */
#endif

/* ---- mbarrier: 8 bytes of shared memory that count arrivals and bytes ----
 * A phase ends when `arrivals` have arrived and all expected bytes have landed; the barrier then re-arms
 * itself. mbarrier_wait(b, parity) returns once the phase of that parity has ended; parity 1 of a fresh one
 * counts as ended. */

ATTN_DEVICE void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals) : "memory");
}
/* By the thread that initialised, before the block barrier that lets others (the copy
 * engine too) use them. */
ATTN_DEVICE void mbarrier_init_fence(void) {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
ATTN_DEVICE void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}
/* Arrive, and make the phase wait for `bytes` more of copies. */
ATTN_DEVICE void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
ATTN_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
#if defined(ATTN_DEBUG_HANG) /* a wait of seconds traps and leaves its barrier in attn_hang: which stage was \
                                stuck */
    for (long tries = 0;; tries++) {
        uint32_t done;
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, "
                     "1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
        if (done) return;
        if (tries > 20000000) {
            attn_hang[0] = barrier, attn_hang[1] = parity, attn_hang[2] = threadIdx.x,
            attn_hang[3] = blockIdx.x;
            __trap();
        }
    }
#else
    asm volatile(
        "{\n.reg .pred p;\nWAIT_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE_%=;\n"
        "bra WAIT_%=;\nDONE_%=:\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
#endif
}

/* ---- named barriers: ids 1 .. 15 (0: __syncthreads); `threads` = those that sync and arrive ---- */

ATTN_DEVICE void named_barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory");
}
/* Doesn't wait; what this thread did before is visible to those that sync. */
ATTN_DEVICE void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

/* Sync, and tell every thread whether any of them said yes. */
ATTN_DEVICE int named_barrier_any(int id, int threads, int yes) {
    int any;
    asm volatile(
        "{\n.reg .pred p, q;\nsetp.ne.s32 p, %3, 0;\nbar.red.or.pred q, %1, %2, p;\nselp.s32 %0, 1, 0, q;\n}"
        : "=r"(any)
        : "r"(id), "r"(threads), "r"(yes)
        : "memory");
    return any;
}

/* ---- registers: a warpgroup gives some to the block's pool or takes some (24 .. 240, in eights) ---- */

template <int REGISTERS> ATTN_DEVICE void warpgroup_registers_give(void) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(REGISTERS));
}
template <int REGISTERS> ATTN_DEVICE void warpgroup_registers_take(void) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(REGISTERS));
}

/* ---- TMA: the copy engine moves boxes of a tensor described by a map; coordinates innermost first ---- */

enum {
    TMA_CACHE_NORMAL,
    TMA_CACHE_FIRST,
    TMA_CACHE_LAST
}; /* what L2 evicts: as usual, these first, these last */

template <int CACHE> ATTN_DEVICE uint64_t tma_cache_policy(void) {
    return CACHE == TMA_CACHE_FIRST ? 0x12F0000000000000ull
         : CACHE == TMA_CACHE_LAST ? 0x14F0000000000000ull : 0x1000000000000000ull;
}
/* One thread: start copying a box to shared memory; `barrier` gets the whole box's bytes, also for what lies
 * outside the tensor and is filled with zeros. `to` is a multiple of 1024 for 128-byte swizzle. */
template <int CACHE>
ATTN_DEVICE void tma_load(uint32_t to, const CUtensorMap *map, uint32_t barrier, int c0, int c1, int c2,
                          int c3) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;"
                 :: "r"(to), "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3),
                    "l"(tma_cache_policy<CACHE>()) : "memory");
}
/* One thread: copy a box from shared memory to the tensor; what lies outside is dropped. */
ATTN_DEVICE void tma_store(const CUtensorMap *map, uint32_t from, int c0, int c1, int c2, int c3) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];"
                 :: "l"(map), "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory");
}
/* The storing thread: close a group of stores; wait until at most PENDING groups still read shared memory. */
ATTN_DEVICE void tma_store_commit(void) { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int PENDING> ATTN_DEVICE void tma_store_wait_read(void) {
    asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(PENDING) : "memory");
}
ATTN_DEVICE void tma_prefetch_map(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" :: "l"(map) : "memory");
}
/* Ordinary shared-memory accesses of this thread come before later ones of wgmma and the copy engine. */
ATTN_DEVICE void async_proxy_fence(void) { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* ---- arithmetic ---- */

/* 2^x, relative error 2^-22; results below 2^-126 are 0; x = -inf gives 0. */
ATTN_DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* log2(x), absolute error 2^-22 near 1. */
ATTN_DEVICE float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* The larger one; NaN if either is NaN. */
ATTN_DEVICE float max_nan(float a, float b) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
/* Two values rounded to 16 bits, `low` in the lower half. BF16: 1 = bfloat16, 0 = half. */
template <int BF16> ATTN_DEVICE uint32_t pack16(float low, float high) {
    uint32_t y;
    if constexpr (BF16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
/* The 16-bit value in the lower half of x. */
template <int BF16> ATTN_DEVICE float unpack16(uint32_t x) {
    float y;
    if constexpr (BF16) y = __uint_as_float(x << 16);
    else asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.f32.f16 %0, low;\n}" : "=f"(y) : "r"(x));
    return y;
}

/* a * b + c on pairs of 16-bit values. */
template <int BF16> ATTN_DEVICE uint32_t fma16(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t y;
    if constexpr (BF16) asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    else asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    return y;
}

/* ---- wgmma: D[64][N] (+)= A[64][16] B[16][N], 16-bit in, f32 out, by one warpgroup, asynchronously ----
 * Thread t holds d[i]: row 16 * (t / 32) + (t % 32) / 4 + 8 * (i / 2 % 2),
 *                      column 8 * (i / 4) + 2 * (t % 4) + i % 2.
 * A in registers: a[r] holds row .. + 8 * (r % 2), k = 2 * (t % 4) + {0, 1} + 8 * (r / 2): D's own order.
 * Registers of a running wgmma may not be touched before its wait. */

/* Before the first wgmma of a batch: orders this thread's register accesses before it. */
ATTN_DEVICE void wgmma_fence(void) { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/* Close the batch. */
ATTN_DEVICE void wgmma_commit(void) { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* Wait until at most PENDING batches run. */
template <int PENDING> ATTN_DEVICE void wgmma_wait(void) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(PENDING) : "memory");
}
/* No instruction: keeps the compiler from moving uses of these registers across. */
template <int N> ATTN_DEVICE void registers_pin(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}
template <int N> ATTN_DEVICE void registers_pin(uint32_t (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(d[i]) :: "memory");
}

/* A matrix in shared memory, 128-byte swizzle, as the copy engine lays down boxes of [rows][64 elements],
 * 1024-byte aligned. Contraction along the 64 elements (K-major): next k16 step + 32 bytes. Contraction along
 * the rows (MN-major): next k16 step + 2048 bytes; `chunk_stride` = bytes between boxes of 64 columns. */
ATTN_DEVICE uint64_t wgmma_descriptor(uint32_t address, uint32_t chunk_stride) {
    return (uint64_t)((address & 0x3FFFF) >> 4) | (uint64_t)(chunk_stride >> 4) << 16 |
           (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}
/* A descriptor moved by `bytes`. */
ATTN_DEVICE uint64_t wgmma_advance(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

/* The operand lists: eight accumulators a time. */
#define WG_D8(d, i) "+f"((d)[i]), "+f"((d)[i + 1]), "+f"((d)[i + 2]), "+f"((d)[i + 3]), "+f"((d)[i + 4]), \
                    "+f"((d)[i + 5]), "+f"((d)[i + 6]), "+f"((d)[i + 7])
#define WG_D16(d) WG_D8(d, 0), WG_D8(d, 8)
#define WG_D32(d) WG_D16(d), WG_D8(d, 16), WG_D8(d, 24)
#define WG_D40(d) WG_D32(d), WG_D8(d, 32)
#define WG_D48(d) WG_D40(d), WG_D8(d, 40)
#define WG_D56(d) WG_D48(d), WG_D8(d, 48)
#define WG_D64(d) WG_D56(d), WG_D8(d, 56)
#define WG_D72(d) WG_D64(d), WG_D8(d, 64)
#define WG_D80(d) WG_D72(d), WG_D8(d, 72)
#define WG_D88(d) WG_D80(d), WG_D8(d, 80)
#define WG_D96(d) WG_D88(d), WG_D8(d, 88)
#define WG_D128(d) WG_D96(d), WG_D8(d, 96), WG_D8(d, 104), WG_D8(d, 112), WG_D8(d, 120)
#define WG_T16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define WG_T32 WG_T16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WG_T40 WG_T32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define WG_T48 WG_T40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define WG_T56 WG_T48 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define WG_T64 WG_T56 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define WG_T72 WG_T64 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define WG_T80 WG_T72 ",%72,%73,%74,%75,%76,%77,%78,%79"
#define WG_T88 WG_T80 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define WG_T96 WG_T88 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define WG_T128 WG_T96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
                "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

/* wgmma_ss: A and B in shared memory; wgmma_rs: A in registers. BF16: dtype as in pack16. A_MN, B_MN: 1 = MN-
 * major. accumulate 0: D = A B, D isn't read. N follows from the accumulator's size; x0 .. x6 are the operand
 * numbers after it. N / 2 accumulators a thread. */
#define WG_DEFINE(N, R, x0, x1, x2, x3, x4, x5, x6) \
    template <int BF16, int A_MN, int B_MN> \
    ATTN_DEVICE void wgmma_ss(float (&d)[R], uint64_t a, uint64_t b, int accumulate) { \
        if constexpr (BF16) asm volatile(WG_SS(N, R, "bf16", x0, x1, x2, x3, x4) : WG_D##R(d) \
                                         : "l"(a), "l"(b), "r"(accumulate), "n"(A_MN), "n"(B_MN)); \
        else asm volatile(WG_SS(N, R, "f16", x0, x1, x2, x3, x4) : WG_D##R(d) \
                          : "l"(a), "l"(b), "r"(accumulate), "n"(A_MN), "n"(B_MN)); \
    } \
    template <int BF16, int B_MN> \
    ATTN_DEVICE void wgmma_rs(float (&d)[R], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, \
                              int accumulate) { \
        if constexpr (BF16) asm volatile(WG_RS(N, R, "bf16", x0, x1, x2, x3, x4, x5, x6) : WG_D##R(d) \
                                         : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(accumulate), \
                                           "n"(B_MN)); \
        else asm volatile(WG_RS(N, R, "f16", x0, x1, x2, x3, x4, x5, x6) : WG_D##R(d) \
                          : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(accumulate), "n"(B_MN)); \
    }
#define WG_SS(N, R, type, x0, x1, x2, x3, x4) \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %" #x2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type \
    "." type " {" WG_T##R "}, %" #x0 ", %" #x1 ", p, 1, 1, %" #x3 ", %" #x4 ";\n}"
#define WG_RS(N, R, type, x0, x1, x2, x3, x4, x5, x6) \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %" #x5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type \
    "." type " {" WG_T##R "}, {%" #x0 ", %" #x1 ", %" #x2 ", %" #x3 "}, %" #x4 ", p, 1, 1, %" #x6 ";\n}"
WG_DEFINE(32, 16, 16, 17, 18, 19, 20, 21, 22)
WG_DEFINE(64, 32, 32, 33, 34, 35, 36, 37, 38)
WG_DEFINE(80, 40, 40, 41, 42, 43, 44, 45, 46)
WG_DEFINE(96, 48, 48, 49, 50, 51, 52, 53, 54)
WG_DEFINE(112, 56, 56, 57, 58, 59, 60, 61, 62)
WG_DEFINE(128, 64, 64, 65, 66, 67, 68, 69, 70)
WG_DEFINE(144, 72, 72, 73, 74, 75, 76, 77, 78)
WG_DEFINE(160, 80, 80, 81, 82, 83, 84, 85, 86)
WG_DEFINE(176, 88, 88, 89, 90, 91, 92, 93, 94)
WG_DEFINE(192, 96, 96, 97, 98, 99, 100, 101, 102)
WG_DEFINE(256, 128, 128, 129, 130, 131, 132, 133, 134)
#undef WG_DEFINE
#endif
