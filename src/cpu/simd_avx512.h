/* simd_avx512.h — 16 lanes, AVX-512 F, DQ, BW, VL. Everything the CPU kernels know about this
 * instruction set. From here to SIMD_END all functions are compiled for it, whatever the build flags;
 * isa.c says where it may run.
 * v_min and v_max return their second argument where either is NaN. */
#include "half.h"
#include "kernel.h"
#include "sequence.h"
#include <immintrin.h>
#include <math.h>
#if !defined(SIMD_TARGET)                             /* simd_avx512bf16.h adds to it */
#define SIMD_TARGET "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,bmi2"
#define SIMD_ISA ATTN_ISA_AVX512
#define SIMD_NAME(f) f##_avx512
#define SIMD_STRING "avx512"
#endif
#define SIMD_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define SIMD_BEGIN(target_list) \
    SIMD_PRAGMA(clang attribute push(__attribute__((target(target_list))), apply_to = function))
SIMD_BEGIN(SIMD_TARGET)
#define SIMD_END _Pragma("clang attribute pop")
#define SIMD_UNROLL _Pragma("clang loop unroll(full)")   /* all of it, early: arrays become registers */
#define SIMD_UNROLL_BY(n) SIMD_PRAGMA(clang loop unroll_count(n))
#else
#define SIMD_BEGIN(target_list) SIMD_PRAGMA(GCC target(target_list))
#pragma GCC push_options
SIMD_BEGIN(SIMD_TARGET)
#define SIMD_END _Pragma("GCC pop_options")
#define SIMD_UNROLL _Pragma("GCC unroll 16")
#define SIMD_UNROLL_BY(n) SIMD_PRAGMA(GCC unroll n)
#endif
#define SIMD_INLINE static inline __attribute__((always_inline))

/* LANES of a vector; a register tile is TILE rows by VECS vectors: 24 accumulators,
 * 4 operands, 1 broadcast of 32. */
#define SIMD_VECS 4
enum { LANES = 16, TILE = 6, VECS = SIMD_VECS };
typedef __m512 vec;
typedef __mmask16 vmask;

/* The same value, but in a register: compilers fetch constants from memory in loops,
 * one load port's time each. */
SIMD_INLINE vec  v_hold(vec a)                     { __asm__("" : "+v"(a)); return a; }
SIMD_INLINE vec  v_zero(void)                      { return _mm512_setzero_ps(); }
SIMD_INLINE vec  v_set(float x)                    { return _mm512_set1_ps(x); }
SIMD_INLINE vec  v_load(const float *x)            { return _mm512_loadu_ps(x); }
SIMD_INLINE void v_store(float *x, vec a)          { _mm512_storeu_ps(x, a); }
SIMD_INLINE vec  v_add(vec a, vec b)               { return _mm512_add_ps(a, b); }
SIMD_INLINE vec  v_sub(vec a, vec b)               { return _mm512_sub_ps(a, b); }
SIMD_INLINE vec  v_mul(vec a, vec b)               { return _mm512_mul_ps(a, b); }
SIMD_INLINE vec  v_div(vec a, vec b)               { return _mm512_div_ps(a, b); }
SIMD_INLINE vec  v_fma(vec a, vec b, vec c)        { return _mm512_fmadd_ps(a, b, c); }  /* a b + c */
SIMD_INLINE vec  v_fms(vec a, vec b, vec c)        { return _mm512_fmsub_ps(a, b, c); }  /* a b - c */
SIMD_INLINE vec  v_max(vec a, vec b)               { return _mm512_max_ps(a, b); }
SIMD_INLINE vec  v_min(vec a, vec b)               { return _mm512_min_ps(a, b); }
SIMD_INLINE vec  v_abs(vec a)                      { return _mm512_abs_ps(a); }
SIMD_INLINE vec  v_round(vec a)                    { return _mm512_roundscale_ps(a, 8); }
SIMD_INLINE vec  v_iota(void) {
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
SIMD_INLINE vec  v_copysign(vec size, vec sign) {
    return _mm512_or_ps(v_abs(size), _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}
/* p 2^n; +0 where x < -126 (so that nothing subnormal comes out), NaN stays. */
SIMD_INLINE vec  v_exp2_end(vec p, vec n, vec x) {
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-126), _CMP_NLT_UQ), p, n);
}

SIMD_INLINE float v_sum(vec a)                     { return _mm512_reduce_add_ps(a); }
SIMD_INLINE float v_top(vec a)                     { return _mm512_reduce_max_ps(a); }   /* no NaN inside */

/* Lane i = the sum of a[i]'s lanes, all LANES sums in one shuffle tree;
 * the order of additions is the same in each. */
SIMD_INLINE vec v_sum_each(vec *a) {
    SIMD_UNROLL
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]),
                             _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
    SIMD_UNROLL
    for (int i = 0; i < 4; i++) {
        const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
        a[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    SIMD_UNROLL
    for (int i = 0; i < 2; i++)
        a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(a[0], a[1], 0x88), _mm512_shuffle_f32x4(a[0], a[1], 0xdd));
}

SIMD_INLINE int  v_all_less(vec a, vec b)          { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) == 0xffff; }
SIMD_INLINE vmask v_equal(vec a, vec b)            { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
SIMD_INLINE vmask v_less(vec a, vec b)             { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
SIMD_INLINE vmask v_within(vec low, vec x, vec high) {                                   /* low <= x < high */
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(low, x, _CMP_LE_OQ), x, high, _CMP_LT_OQ);
}
SIMD_INLINE vec  v_select(vmask m, vec yes, vec no) { return _mm512_mask_blend_ps(m, no, yes); }
SIMD_INLINE int  v_any_nan(vec a)                  { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }

/* into L2 */
SIMD_INLINE void v_prefetch(const void *x)         { _mm_prefetch((const char *)x, _MM_HINT_T1); }

/* Rows become columns: x[i] lane j <-> x[j] lane i. */
SIMD_INLINE void v_transpose(vec x[16]) {
    vec y[16];
    SIMD_UNROLL
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    SIMD_UNROLL
    for (int i = 0; i < 16; i += 4)   /* x[i + k]: element 4 g + k of rows i .. i + 3 in quarter g */
        SIMD_UNROLL
        for (int k = 0; k < 4; k++) {
            const __m512d a = _mm512_castps_pd(y[i + k / 2]), b = _mm512_castps_pd(y[i + k / 2 + 2]);
            x[i + k] = _mm512_castpd_ps(k % 2 ? _mm512_unpackhi_pd(a, b) : _mm512_unpacklo_pd(a, b));
        }
    SIMD_UNROLL
    for (int k = 0; k < 4; k++) {                     /* 4 x 4 transposition of quarters */
        const vec a = _mm512_shuffle_f32x4(x[k], x[4 + k], 0x88),
                  b = _mm512_shuffle_f32x4(x[k], x[4 + k], 0xdd);
        const vec c = _mm512_shuffle_f32x4(x[8 + k], x[12 + k], 0x88);
        const vec d = _mm512_shuffle_f32x4(x[8 + k], x[12 + k], 0xdd);
        y[k] = _mm512_shuffle_f32x4(a, c, 0x88);
        y[4 + k] = _mm512_shuffle_f32x4(b, d, 0x88);
        y[8 + k] = _mm512_shuffle_f32x4(a, c, 0xdd);
        y[12 + k] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
    SIMD_UNROLL
    for (int i = 0; i < 16; i++) x[i] = y[i];
}

/* The first `count` lanes, 0 .. LANES. A part load touches no memory outside it and gives 0 elsewhere. */
SIMD_INLINE vmask v_first(int64_t count)           { return (__mmask16)((1u << count) - 1); }
SIMD_INLINE vec  v_load_part(const float *x, vmask m)       { return _mm512_maskz_loadu_ps(m, x); }
SIMD_INLINE void v_store_part(float *x, vmask m, vec a)     { _mm512_mask_storeu_ps(x, m, a); }

SIMD_INLINE vec  simd_widen_bf16(__m256i h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
SIMD_INLINE __m256i simd_narrow_bf16(vec a) {                                            /* to nearest even */
    const __m512i bits = _mm512_castps_si512(a), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, up, quiet), 16));
}
SIMD_INLINE vec v_load_f16(const uint16_t *x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)x));
}
SIMD_INLINE vec v_load_bf16(const uint16_t *x) {
    return simd_widen_bf16(_mm256_loadu_si256((const void *)x));
}
SIMD_INLINE vec v_load_part_f16(const uint16_t *x, vmask m) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, x));
}
SIMD_INLINE vec v_load_part_bf16(const uint16_t *x, vmask m) {
    return simd_widen_bf16(_mm256_maskz_loadu_epi16(m, x));
}
SIMD_INLINE void v_store_part_f16(uint16_t *x, vmask m, vec a) {
    _mm256_mask_storeu_epi16(x, m, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
SIMD_INLINE void v_store_part_bf16(uint16_t *x, vmask m, vec a) {
    _mm256_mask_storeu_epi16(x, m, simd_narrow_bf16(a));
}
SIMD_INLINE vec  v_load_part_u8(const uint8_t *x, vmask m) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, x)));
}
#include "simd_math.h"
