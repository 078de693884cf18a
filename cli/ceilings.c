/* ceilings.c — the loops behind the percentages: enough independent accumulators to hide the latency, nothing
 * else. */
#include "ceilings.h"
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

const char *const ceiling_names[CEILINGS] = {
    "fma_portable", "fma_avx2", "fma_avx512", "dpbf16_avx512", "stream_read", "gpu_read",
    "gpu_ffma", "cublas_bf16"
};

enum { STEPS = 200000, PIECE = 16384 };    /* steps of a loop in one iteration; bytes read from a buffer in
                                              turn */

static _Thread_local volatile float sink;                /* results must go somewhere */

/* ---- arithmetic ---- */

enum { PORTABLE_SUMS = 64 };

static void fma_portable(int64_t steps) {
    float sum[PORTABLE_SUMS];
    for (int i = 0; i < PORTABLE_SUMS; i++) sum[i] = (float)i;
    const float a = 0.999999f, b = 1e-7f;
    for (int64_t n = 0; n < steps; n++)
        for (int i = 0; i < PORTABLE_SUMS; i++) sum[i] = sum[i] * a + b;
    for (int i = 0; i < PORTABLE_SUMS; i++) sink += sum[i];
}

#if defined(__x86_64__)
/* 12 sums fit 16 registers with two operands; 24 fit 32. */
#define SUM12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define SUM24(X) SUM12(X) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)

__attribute__((target("avx2,fma"), noinline)) static void fma_avx2(int64_t steps) {
    const __m256 a = _mm256_set1_ps(0.999999f), b = _mm256_set1_ps(1e-7f);
#define DECLARE(i) __m256 s##i = _mm256_set1_ps((float)i);
#define STEP(i) s##i = _mm256_fmadd_ps(s##i, a, b);
#define TOTAL(i) t = _mm256_add_ps(t, s##i);
    SUM12(DECLARE)
    for (int64_t n = 0; n < steps; n++) { SUM12(STEP) }
    __m256 t = _mm256_setzero_ps();
    SUM12(TOTAL)
    sink += _mm256_cvtss_f32(t);
#undef DECLARE
#undef STEP
#undef TOTAL
}

__attribute__((target("avx512f"), noinline)) static void fma_avx512(int64_t steps) {
    const __m512 a = _mm512_set1_ps(0.999999f), b = _mm512_set1_ps(1e-7f);
#define DECLARE(i) __m512 s##i = _mm512_set1_ps((float)i);
#define STEP(i) s##i = _mm512_fmadd_ps(s##i, a, b);
#define TOTAL(i) t = _mm512_add_ps(t, s##i);
    SUM24(DECLARE)
    for (int64_t n = 0; n < steps; n++) { SUM24(STEP) }
    __m512 t = _mm512_setzero_ps();
    SUM24(TOTAL)
    sink += _mm512_cvtss_f32(t);
}

__attribute__((target("avx512f,avx512bf16"), noinline)) static void dot_bf16(int64_t steps) {
    const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1e-3f), _mm512_set1_ps(1e-3f)), b = a;
#undef STEP
#define STEP(i) s##i = _mm512_dpbf16_ps(s##i, a, b);
    SUM24(DECLARE)
    for (int64_t n = 0; n < steps; n++) { SUM24(STEP) }
    __m512 t = _mm512_setzero_ps();
    SUM24(TOTAL)
    sink += _mm512_cvtss_f32(t);
}

int ceiling_available(ceiling c) {
    switch (c) {
    case CEILING_FMA_PORTABLE: return 0;
    case CEILING_FMA_AVX2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case CEILING_FMA_AVX512: return __builtin_cpu_supports("avx512f") != 0;
    case CEILING_BF16_AVX512: return __builtin_cpu_supports("avx512bf16") != 0;
    default: return 1;
    }
}
#else
static void fma_avx2(int64_t steps) { (void)steps; }
static void fma_avx512(int64_t steps) { (void)steps; }
static void dot_bf16(int64_t steps) { (void)steps; }

int ceiling_available(ceiling c) { return c == CEILING_FMA_PORTABLE || c == CEILING_READ; }
#endif

static ceiling widest_fma(void) {
    if (ceiling_available(CEILING_FMA_AVX512)) return CEILING_FMA_AVX512;
    return ceiling_available(CEILING_FMA_AVX2) ? CEILING_FMA_AVX2 : CEILING_FMA_PORTABLE;
}

ceiling ceiling_of_kernel(const char *kernel, int is_bf16) {
    const char *last = strrchr(kernel, '_');
    if (last && !strcmp(last, "_avx2") && ceiling_available(CEILING_FMA_AVX2)) return CEILING_FMA_AVX2;
    if (last && !strcmp(last, "_avx512bf16") && is_bf16 && ceiling_available(CEILING_BF16_AVX512))
        return CEILING_BF16_AVX512;
    return widest_fma();
}

/* ---- reading ---- */

#if defined(__x86_64__)
__attribute__((target("avx512f"), noinline)) static float read_avx512(const char *at, size_t bytes) {
    __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
    for (size_t i = 0; i + 256 <= bytes; i += 256) {
        a = _mm512_add_ps(a, _mm512_loadu_ps((const float *)(const void *)(at + i)));
        b = _mm512_add_ps(b, _mm512_loadu_ps((const float *)(const void *)(at + i + 64)));
        c = _mm512_add_ps(c, _mm512_loadu_ps((const float *)(const void *)(at + i + 128)));
        d = _mm512_add_ps(d, _mm512_loadu_ps((const float *)(const void *)(at + i + 192)));
    }
    return _mm512_cvtss_f32(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
}
#endif

static float read_portable(const char *at, size_t bytes) {
    uint64_t sum[8] = { 0 };
    for (size_t i = 0; i + sizeof sum <= bytes; i += sizeof sum) {
        uint64_t x[8];
        memcpy(x, at + i, sizeof x);
        for (int n = 0; n < 8; n++) sum[n] ^= x[n];
    }
    uint64_t all = 0;
    for (int n = 0; n < 8; n++) all ^= sum[n];
    return (float)(all & 1);
}

static float read_piece(const char *at, size_t bytes) {
#if defined(__x86_64__)
    if (ceiling_available(CEILING_FMA_AVX512)) return read_avx512(at, bytes);
#endif
    return read_portable(at, bytes);
}

/* One member's share of a buffer. */
static void share(const void *buffer, size_t bytes, int member, int threads, const char **from,
                  size_t *size) {
    const size_t each = bytes / (size_t)threads / 256 * 256;
    *from = (const char *)buffer + each * (size_t)member;
    *size = member == threads - 1 ? bytes - each * (size_t)member : each;
}

static void read_both(const ceiling_buffers *b, int member, int threads) {
    const char *k, *v;
    size_t k_size, v_size;
    share(b->k, b->k_bytes, member, threads, &k, &k_size);
    share(b->v, b->v_bytes, member, threads, &v, &v_size);
    float sum = 0;
    for (size_t at = 0; at < k_size || at < v_size; at += PIECE) {
        if (at < k_size) sum += read_piece(k + at, k_size - at < PIECE ? k_size - at : PIECE);
        if (at < v_size) sum += read_piece(v + at, v_size - at < PIECE ? v_size - at : PIECE);
    }
    sink += sum;
}

/* ---- on a team ---- */

typedef struct { ceiling ceiling; int64_t iterations; int threads; const ceiling_buffers *buffers; } job;

static void work(void *arg, int member) {
    const job *j = arg;
    for (int64_t i = 0; i < j->iterations; i++) {
        switch (j->ceiling) {
        case CEILING_FMA_AVX2: fma_avx2(STEPS); break;
        case CEILING_FMA_AVX512: fma_avx512(STEPS); break;
        case CEILING_BF16_AVX512: dot_bf16(STEPS); break;
        case CEILING_READ: read_both(j->buffers, member, j->threads); break;
        default: fma_portable(STEPS); break;
        }
    }
}

double ceiling_work(ceiling c, int threads, const ceiling_buffers *buffers) {
    const double steps = (double)STEPS * threads;
    switch (c) {
    case CEILING_FMA_AVX2: return steps * 12 * 8 * 2;
    case CEILING_FMA_AVX512: return steps * 24 * 16 * 2;
    case CEILING_BF16_AVX512: return steps * 24 * 32 * 2;
    case CEILING_READ: return (double)(buffers->k_bytes + buffers->v_bytes);
    default: return steps * PORTABLE_SUMS * 2;
    }
}

void ceiling_run(ceiling c, team *t, int64_t iterations, const ceiling_buffers *buffers) {
    job j = { c, iterations, team_threads(t), buffers };
    team_run(t, work, &j);
}
