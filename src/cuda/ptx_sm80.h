/* ptx_sm80.h — every PTX instruction that the sm_80 class of kernels uses (A100 and later), one small wrapper
 * each. Side effects are explicit: what a wrapper reads and writes is in its parameters, or it says so.
 * Shared memory is addressed by its 32-bit address (smem_address); lanes are numbered 0 .. 31; a quad is 4
 * lanes. */
#ifndef ATTN_PTX_SM80_H
#define ATTN_PTX_SM80_H
#include <stdint.h>

#define PTX_INLINE static __device__ __forceinline__

/* ---- addresses ---- */

/* Generic pointer into shared memory -> 32-bit shared address. */
PTX_INLINE uint32_t smem_address(const void *pointer) {
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* ---- asynchronous copies, global to shared ---- */

/* Copy 16 bytes past L1; bytes = 16, or 0 to write zeros without reading `from`. Both addresses 16-byte
 * aligned. */
PTX_INLINE void copy_async_16(uint32_t to_smem, const void *from, uint32_t bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :: "r"(to_smem), "l"(__cvta_generic_to_global(from)), "r"(bytes) : "memory");
}
/* Copy 4 bytes through L1; bytes = 4, or 0 to write zeros. */
PTX_INLINE void copy_async_4(uint32_t to_smem, const void *from, uint32_t bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(to_smem), "l"(__cvta_generic_to_global(from)), "r"(bytes) : "memory");
}
/* Close this thread's group of copies. */
PTX_INLINE void copy_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Wait until at most PENDING of this thread's newest groups are under way. Others' copies need
 * a barrier too. */
template <int PENDING> PTX_INLINE void copy_wait(void) {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}

/* ---- shared memory ---- */

/* Four 8x8 matrices of 16-bit elements. Lane n supplies the address of row n % 8 of matrix n / 8 (16 bytes,
 * aligned). r[m]: of matrix m, row lane / 4, columns 2 * (lane % 4) and + 1 (low half first). Reads shared
 * memory. */
PTX_INLINE void load_matrix_x4(uint32_t (&r)[4], uint32_t row_smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row_smem) : "memory");
}
/* The same, each matrix transposed: r[m] holds rows 2 * (lane % 4) and + 1, column lane / 4. */
PTX_INLINE void load_matrix_x4_transposed(uint32_t (&r)[4], uint32_t row_smem) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row_smem) : "memory");
}
PTX_INLINE void load_smem_16(uint32_t (&r)[4], uint32_t from_smem) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from_smem) : "memory");
}
PTX_INLINE void store_smem_16(uint32_t to_smem, const uint32_t (&r)[4]) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "r"(to_smem), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
PTX_INLINE void store_smem_4(uint32_t to_smem, uint32_t x) {
    asm volatile("st.shared.u32 [%0], %1;" :: "r"(to_smem), "r"(x) : "memory");
}

/* ---- tensor cores ---- */

enum { PTX_F32 = 1, PTX_F16 = 2, PTX_BF16 = 3 };     /* the values of attn_dtype */

/* c += a b for one warp: a is 16 x 16 (rows x k), b is 16 x 8 (k x columns), c is 16 x 8 in f32.
 * With g = lane / 4 and q = lane % 4:
 *     a[r], half h: row g + 8 * (r & 1), k = 2 q + h + 8 * (r >> 1)
 *     b0 | b1, half h: k = 2 q + h | + 8, column g
 *     c[i]: row g + 8 * (i >> 1), column 2 q + (i & 1)
 * so that the c of two neighbouring column blocks, narrowed, is the a of one 16-deep step. */
template <int DTYPE> PTX_INLINE void mma_16x8x16(float (&c)[4], const uint32_t *a, uint32_t b0, uint32_t b1) {
    if (DTYPE == PTX_BF16)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, "
                     "%7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Narrow two f32 to one register, round to nearest even: `low` in the low half. */
template <int DTYPE> PTX_INLINE uint32_t pack_halves(float low, float high) {
    uint32_t r;
    if (DTYPE == PTX_BF16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
/* Widen one 16-bit element. */
template <int DTYPE> PTX_INLINE float widen(uint16_t x) {
    float r;
    if (DTYPE == PTX_BF16) return __uint_as_float((uint32_t)x << 16);
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
    return r;
}

/* 2^x to about 2 ulp; subnormal results become 0. */
PTX_INLINE float exp2_approx(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

/* ---- lanes ---- */

/* Largest / sum over the four lanes of a quad, in all of them. NaN loses against a number in quad_max. */
PTX_INLINE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
PTX_INLINE float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
/* The same over 16 lanes: 0 .. 15 and 16 .. 31 apart. */
PTX_INLINE float half_warp_max(float x) {
#pragma unroll
    for (int step = 1; step < 16; step *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
PTX_INLINE float half_warp_sum(float x) {
#pragma unroll
    for (int step = 1; step < 16; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
/* 1 in every lane if any lane's x is not 0. */
PTX_INLINE int warp_any(int x) { return __any_sync(0xffffffffu, x); }
/* x, but hidden from the optimizer: what is computed from it is computed where it stands, not kept in
 * registers. */
PTX_INLINE int recompute(int x) { asm volatile("" : "+r"(x)); return x; }

/* Order shared-memory accesses among the lanes of a warp / the threads of a block. */
PTX_INLINE void warp_barrier(void) { __syncwarp(); }
PTX_INLINE void block_barrier(void) { __syncthreads(); }
#endif
