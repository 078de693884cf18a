/* openblas_softmax.c — maximum, exp and sum of a row of scores, 16 lanes at a time where the CPU has them. */
#include "openblas_softmax.h"
#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static void row_portable(float *s, int64_t seen, float *m, float *l, float *c) {
    float top = *m, sum = 0;
    for (int64_t j = 0; j < seen; j++) top = s[j] > top ? s[j] : top;
    const float zero = top == -INFINITY ? 0 : top;
    for (int64_t j = 0; j < seen; j++) sum += s[j] = expf(s[j] - zero);
    *c = expf(*m - zero);
    *l = *l * *c + sum;
    *m = top;
}

#if defined(__x86_64__)
/* exp(x) = 2^n 2^f with |f| <= 1/2, 2^f by a polynomial of degree 6: relative error 2e-8. */
static const float series[] = { 1.340042800e-3f, 9.618056938e-3f, 5.550327152e-2f, 2.402265072e-1f,
                                6.931471825e-1f, 1.0f };

__attribute__((target("avx2,fma"))) static inline __m256 exp_avx2(__m256 x) {
    const __m256 y = _mm256_max_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _mm256_set1_ps(-127));
    const __m256 n = _mm256_round_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 f = _mm256_sub_ps(y, n);
    __m256 e = _mm256_set1_ps(1.546144485e-4f);
    for (int i = 0; i < 6; i++) e = _mm256_fmadd_ps(e, f, _mm256_set1_ps(series[i]));
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(e, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));    /* n = -127: 0 */
}

__attribute__((target("avx2,fma"))) static void row_avx2(float *s, int64_t seen, float *m, float *l,
                                                         float *c) {
    float lanes[8], top = *m, sum = 0;
    __m256 best = _mm256_set1_ps(*m), total = _mm256_setzero_ps();
    int64_t j = 0;
    for (; j + 8 <= seen; j += 8) best = _mm256_max_ps(best, _mm256_loadu_ps(s + j));
    _mm256_storeu_ps(lanes, best);
    for (int i = 0; i < 8; i++) top = lanes[i] > top ? lanes[i] : top;
    for (; j < seen; j++) top = s[j] > top ? s[j] : top;
    const float zero = top == -INFINITY ? 0 : top;
    for (j = 0; j + 8 <= seen; j += 8) {
        const __m256 e = exp_avx2(_mm256_sub_ps(_mm256_loadu_ps(s + j), _mm256_set1_ps(zero)));
        _mm256_storeu_ps(s + j, e);
        total = _mm256_add_ps(total, e);
    }
    for (; j < seen; j++) sum += s[j] = expf(s[j] - zero);
    _mm256_storeu_ps(lanes, total);
    for (int i = 0; i < 8; i++) sum += lanes[i];
    *c = expf(*m - zero);
    *l = *l * *c + sum;
    *m = top;
}

__attribute__((target("avx512f"))) static inline __m512 exp_avx512(__m512 x) {
    const __m512 y = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    const __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(y, n);
    __m512 e = _mm512_set1_ps(1.546144485e-4f);
    for (int i = 0; i < 6; i++) e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(series[i]));
    return _mm512_scalef_ps(e, n);
}

__attribute__((target("avx512f"))) static void row_avx512(float *s, int64_t seen, float *m, float *l,
                                                          float *c) {
    const __m512 low = _mm512_set1_ps(-INFINITY);
    __m512 top = _mm512_set1_ps(*m), sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < seen; j += 16) {
        const __mmask16 in = (__mmask16)(seen - j >= 16 ? 0xffff : (1u << (seen - j)) - 1);
        top = _mm512_max_ps(top, _mm512_mask_loadu_ps(low, in, s + j));
    }
    const float highest = _mm512_reduce_max_ps(top), zero = highest == -INFINITY ? 0 : highest;
    const __m512 base = _mm512_set1_ps(zero);
    for (int64_t j = 0; j < seen; j += 16) {
        const __mmask16 in = (__mmask16)(seen - j >= 16 ? 0xffff : (1u << (seen - j)) - 1);
        const __m512 e = exp_avx512(_mm512_sub_ps(_mm512_maskz_loadu_ps(in, s + j), base));
        _mm512_mask_storeu_ps(s + j, in, e);
        sum = _mm512_mask_add_ps(sum, in, sum, e);
    }
    *c = expf(*m - zero);
    *l = *l * *c + _mm512_reduce_add_ps(sum);
    *m = highest;
}
#endif

void openblas_softmax_row(float *s, int64_t n, int64_t seen, float *m, float *l, float *c) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) row_avx512(s, seen, m, l, c);
    else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) row_avx2(s, seen, m, l, c);
    else row_portable(s, seen, m, l, c);
#else
    row_portable(s, seen, m, l, c);
#endif
    if (seen < n) memset(s + seen, 0, sizeof *s * (size_t)(n - seen));
}
