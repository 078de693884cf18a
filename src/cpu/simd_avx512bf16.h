/* simd_avx512bf16.h — AVX-512 with BF16: everything of simd_avx512.h, and products of pairs.
 * vdpbf16ps multiplies and adds two bf16 pairs per lane into f32, at twice the rate of f32 FMA;
 * subnormals count as 0 in it. */
#define SIMD_TARGET "avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c,bmi2"
#define SIMD_ISA (ATTN_ISA_AVX512 | ATTN_ISA_AVX512BF16)
#define SIMD_NAME(f) f##_avx512bf16
#define SIMD_STRING "avx512bf16"
#define SIMD_DOT
#include "simd_avx512.h"

typedef __m512bh pairs;                               /* 16 lanes of two bf16, the lower half first */
SIMD_INLINE pairs pairs_load(const uint32_t *x)    { return (pairs)_mm512_loadu_si512(x); }
SIMD_INLINE pairs pairs_load_part(const uint32_t *x, vmask m) {
    return (pairs)_mm512_maskz_loadu_epi32(m, x);
}
SIMD_INLINE pairs pairs_set(const void *x) {          /* any alignment */
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return (pairs)_mm512_set1_epi32(pair);
}
SIMD_INLINE vec pairs_dot(pairs a, pairs b, vec c) { return _mm512_dpbf16_ps(c, a, b); }

/* `count` numbers of a row, at most 32, as the bits of 16 words; 0 beyond. */
SIMD_INLINE vec pairs_bits(const uint16_t *x, int64_t count) {
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(count >= 32 ? 0xffffffffu : (1u << count) - 1, x));
}
SIMD_INLINE void pairs_store_bits(uint32_t *x, vec bits) {
    _mm512_storeu_si512(x, _mm512_castps_si512(bits));
}

/* Two vectors of f32 as 16 pairs, rounded to nearest even. */
SIMD_INLINE void pairs_store_rounded(uint32_t *x, vec lower, vec upper) {
    const __m512i interleave = _mm512_set_epi32(0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a,
                                                0x190009, 0x180008, 0x170007, 0x160006, 0x150005, 0x140004,
                                                0x130003, 0x120002, 0x110001, 0x100000);
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(upper, lower);
    _mm512_storeu_si512(x, _mm512_permutexvar_epi16(interleave, halves));
}

/* 32 columns of two rows of bf16 (or those below `count`, 0 elsewhere) as 32 pairs, each of one column. */
SIMD_INLINE void pairs_store_zipped(uint32_t *x, const uint16_t *lower, const uint16_t *upper,
                                    int64_t count) {
    const __mmask32 m = count >= 32 ? 0xffffffffu : (1u << count) - 1;
    const __m512i first = _mm512_set_epi32(0x2f000f, 0x2e000e, 0x2d000d, 0x2c000c, 0x2b000b, 0x2a000a,
                                           0x290009, 0x280008, 0x270007, 0x260006, 0x250005, 0x240004,
                                           0x230003, 0x220002, 0x210001, 0x200000);
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    const __m512i a = _mm512_maskz_loadu_epi16(m, lower);
    const __m512i b = upper ? _mm512_maskz_loadu_epi16(m, upper) : _mm512_setzero_si512();
    _mm512_storeu_si512(x, _mm512_permutex2var_epi16(a, first, b));
    if (count > 16) _mm512_storeu_si512(x + 16, _mm512_permutex2var_epi16(a, second, b));
}

/* Two vectors of f32 as 32 bf16 in order, rounded to nearest even. */
SIMD_INLINE void pairs_store_in_order(uint16_t *x, vec first, vec second) {
    _mm512_storeu_si512(x, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/* 32 columns of two rows, as pairs_bits gives them: pairs of the first 16 columns, and of the last 16. */
SIMD_INLINE pairs pairs_zip_low(vec a, vec b) {
    const __m512i columns = _mm512_set_epi32(0x2f000f, 0x2e000e, 0x2d000d, 0x2c000c, 0x2b000b, 0x2a000a,
                                             0x290009, 0x280008, 0x270007, 0x260006, 0x250005, 0x240004,
                                             0x230003, 0x220002, 0x210001, 0x200000);
    return (pairs)_mm512_permutex2var_epi16(_mm512_castps_si512(a), columns, _mm512_castps_si512(b));
}
SIMD_INLINE pairs pairs_zip_high(vec a, vec b) {
    const __m512i columns = _mm512_set_epi32(0x3f001f, 0x3e001e, 0x3d001d, 0x3c001c, 0x3b001b, 0x3a001a,
                                             0x390019, 0x380018, 0x370017, 0x360016, 0x350015, 0x340014,
                                             0x330013, 0x320012, 0x310011, 0x300010);
    return (pairs)_mm512_permutex2var_epi16(_mm512_castps_si512(a), columns, _mm512_castps_si512(b));
}
SIMD_INLINE pairs pairs_of_bits(vec bits)          { return (pairs)_mm512_castps_si512(bits); }

/* Is there an infinity or NaN in it? */
SIMD_INLINE int pairs_any_nonfinite(pairs a) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    return _mm512_cmpeq_epi16_mask(_mm512_and_si512((__m512i)a, exponent), exponent) != 0;
}
