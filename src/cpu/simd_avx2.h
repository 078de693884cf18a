/* simd_avx2.h — 8 lanes, AVX2 + FMA + F16C. Everything the CPU kernels know about this instruction set. From
 * here to SIMD_END all functions are compiled for it, whatever the build flags; isa.c says where it may run.
 * v_min and v_max return their second argument where either is NaN. */
#include "half.h"
#include "kernel.h"
#include "sequence.h"
#include <immintrin.h>
#include <math.h>
#define SIMD_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#define SIMD_END _Pragma("clang attribute pop")
#define SIMD_UNROLL _Pragma("clang loop unroll(full)")   /* all of it, early: arrays become registers */
#define SIMD_UNROLL_BY(n) SIMD_PRAGMA(clang loop unroll_count(n))
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define SIMD_END _Pragma("GCC pop_options")
#define SIMD_UNROLL _Pragma("GCC unroll 16")
#define SIMD_UNROLL_BY(n) SIMD_PRAGMA(GCC unroll n)
#endif
#define SIMD_ISA ATTN_ISA_AVX2
#define SIMD_NAME(f) f##_avx2
#define SIMD_STRING "avx2"
#define SIMD_INLINE static inline __attribute__((always_inline))

/* LANES of a vector; a register tile is TILE rows by VECS vectors: 12 accumulators,
 * 2 operands, 1 broadcast of 16. */
#define SIMD_VECS 2
enum { LANES = 8, TILE = 6, VECS = SIMD_VECS };
typedef __m256 vec;
typedef __m256 vmask;                                 /* all bits of a lane set or none */

/* Constants: 16 registers are too few to hold them, so memory it is (wider instruction sets: a register). */
SIMD_INLINE vec  v_hold(vec a)                     { return a; }
SIMD_INLINE vec  v_zero(void)                      { return _mm256_setzero_ps(); }
SIMD_INLINE vec  v_set(float x)                    { return _mm256_set1_ps(x); }
SIMD_INLINE vec  v_load(const float *x)            { return _mm256_loadu_ps(x); }
SIMD_INLINE void v_store(float *x, vec a)          { _mm256_storeu_ps(x, a); }
SIMD_INLINE vec  v_add(vec a, vec b)               { return _mm256_add_ps(a, b); }
SIMD_INLINE vec  v_sub(vec a, vec b)               { return _mm256_sub_ps(a, b); }
SIMD_INLINE vec  v_mul(vec a, vec b)               { return _mm256_mul_ps(a, b); }
SIMD_INLINE vec  v_div(vec a, vec b)               { return _mm256_div_ps(a, b); }
SIMD_INLINE vec  v_fma(vec a, vec b, vec c)        { return _mm256_fmadd_ps(a, b, c); }  /* a b + c */
SIMD_INLINE vec  v_fms(vec a, vec b, vec c)        { return _mm256_fmsub_ps(a, b, c); }  /* a b - c */
SIMD_INLINE vec  v_max(vec a, vec b)               { return _mm256_max_ps(a, b); }
SIMD_INLINE vec  v_min(vec a, vec b)               { return _mm256_min_ps(a, b); }
SIMD_INLINE vec  v_abs(vec a)                      { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
SIMD_INLINE vec  v_round(vec a)                    { return _mm256_round_ps(a, 8); }
SIMD_INLINE vec  v_iota(void)                      { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
SIMD_INLINE vec  v_copysign(vec size, vec sign) {
    return _mm256_or_ps(v_abs(size), _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
}
/* p 2^n; +0 where x < -126 (so that nothing subnormal comes out), NaN stays. Needs x <= 127. */
SIMD_INLINE vec  v_exp2_end(vec p, vec n, vec x) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    const vec power = _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
    return _mm256_and_ps(_mm256_mul_ps(p, power), _mm256_cmp_ps(x, _mm256_set1_ps(-126), _CMP_NLT_UQ));
}

SIMD_INLINE float v_sum(vec a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
SIMD_INLINE float v_top(vec a) {                                                         /* no NaN inside */
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

/* Lane i = the sum of a[i]'s lanes, all LANES sums in one shuffle tree;
 * the order of additions is the same in each. */
SIMD_INLINE vec v_sum_each(vec *a) {
    SIMD_UNROLL
    for (int i = 0; i < 4; i++)
        a[i] = _mm256_add_ps(_mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]),
                             _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]));
    SIMD_UNROLL
    for (int i = 0; i < 2; i++) {
        const __m256d x = _mm256_castps_pd(a[2 * i]), y = _mm256_castps_pd(a[2 * i + 1]);
        a[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)),
                             _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
    }
    return _mm256_add_ps(_mm256_permute2f128_ps(a[0], a[1], 0x20), _mm256_permute2f128_ps(a[0], a[1], 0x31));
}

SIMD_INLINE int v_all_less(vec a, vec b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)) == 255;
}
SIMD_INLINE vmask v_equal(vec a, vec b)            { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
SIMD_INLINE vmask v_less(vec a, vec b)             { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
SIMD_INLINE vmask v_within(vec low, vec x, vec high) {                                   /* low <= x < high */
    return _mm256_and_ps(_mm256_cmp_ps(low, x, _CMP_LE_OQ), _mm256_cmp_ps(x, high, _CMP_LT_OQ));
}
SIMD_INLINE vec  v_select(vmask m, vec yes, vec no) { return _mm256_blendv_ps(no, yes, m); }
SIMD_INLINE int v_any_nan(vec a) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)) != 0;
}

/* into L2 */
SIMD_INLINE void v_prefetch(const void *x)         { _mm_prefetch((const char *)x, _MM_HINT_T1); }

/* Rows become columns: x[i] lane j <-> x[j] lane i. */
SIMD_INLINE void v_transpose(vec x[8]) {
    vec y[8];
    SIMD_UNROLL
    for (int i = 0; i < 8; i += 2) {
        y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    SIMD_UNROLL
    for (int i = 0; i < 8; i += 4)   /* x[i + k]: element 4 g + k of rows i .. i + 3 in half g */
        SIMD_UNROLL
        for (int k = 0; k < 4; k++) {
            const __m256d a = _mm256_castps_pd(y[i + k / 2]), b = _mm256_castps_pd(y[i + k / 2 + 2]);
            x[i + k] = _mm256_castpd_ps(k % 2 ? _mm256_unpackhi_pd(a, b) : _mm256_unpacklo_pd(a, b));
        }
    SIMD_UNROLL
    for (int k = 0; k < 4; k++) {
        const vec a = x[k], b = x[4 + k];
        x[k] = _mm256_permute2f128_ps(a, b, 0x20);
        x[4 + k] = _mm256_permute2f128_ps(a, b, 0x31);
    }
}

/* The first `count` lanes, 0 .. LANES. A part load touches no memory outside it and gives 0 elsewhere. */
SIMD_INLINE vmask v_first(int64_t count)           { return v_less(v_iota(), v_set((float)count)); }
SIMD_INLINE vec v_load_part(const float *x, vmask m) {
    return _mm256_maskload_ps(x, _mm256_castps_si256(m));
}
SIMD_INLINE void v_store_part(float *x, vmask m, vec a) { _mm256_maskstore_ps(x, _mm256_castps_si256(m), a); }

SIMD_INLINE vec  simd_widen_bf16(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
SIMD_INLINE __m128i simd_narrow_bf16(vec a) {                                            /* to nearest even */
    const __m256i bits = _mm256_castps_si256(a), one = _mm256_set1_epi32(1);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const vec nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
    const __m256i x = _mm256_srli_epi32(_mm256_castps_si256(
        _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), nan)), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
/* 16-bit parts go through a buffer: AVX2 has no masks that fine. */
SIMD_INLINE int64_t simd_count(vmask m) {
    return __builtin_popcount((unsigned)_mm256_movemask_ps(m));
}
SIMD_INLINE __m128i simd_load_part16(const uint16_t *x, vmask m) {
    uint16_t all[8] = { 0 };
    const int64_t count = simd_count(m);
    for (int64_t i = 0; i < count; i++) all[i] = x[i];
    return _mm_loadu_si128((const void *)all);
}
SIMD_INLINE void simd_store_part16(uint16_t *x, vmask m, __m128i h) {
    uint16_t all[8];
    const int64_t count = simd_count(m);
    if (count == LANES) {
        _mm_storeu_si128((void *)x, h);
        return;
    }
    _mm_storeu_si128((void *)all, h);
    for (int64_t i = 0; i < count; i++) x[i] = all[i];
}
SIMD_INLINE vec v_load_f16(const uint16_t *x) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)x));
}
SIMD_INLINE vec v_load_bf16(const uint16_t *x) {
    return simd_widen_bf16(_mm_loadu_si128((const void *)x));
}
SIMD_INLINE vec v_load_part_f16(const uint16_t *x, vmask m) {
    return _mm256_cvtph_ps(simd_load_part16(x, m));
}
SIMD_INLINE vec v_load_part_bf16(const uint16_t *x, vmask m) {
    return simd_widen_bf16(simd_load_part16(x, m));
}
SIMD_INLINE void v_store_part_f16(uint16_t *x, vmask m, vec a) {
    simd_store_part16(x, m, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
SIMD_INLINE void v_store_part_bf16(uint16_t *x, vmask m, vec a) {
    simd_store_part16(x, m, simd_narrow_bf16(a));
}
SIMD_INLINE vec  v_load_part_u8(const uint8_t *x, vmask m) {
    uint8_t all[8] = { 0 };
    const int64_t count = simd_count(m);
    if (count == LANES) memcpy(all, x, LANES);
    else
        for (int64_t i = 0; i < count; i++) all[i] = x[i];
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)all)));
}
#include "simd_math.h"
