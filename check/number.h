/* number.h — the checker's own arithmetic on stored numbers and its random numbers. Nothing here is shared
 * with the library: a mistake in its conversions must not hide here too. Random numbers are hashes of (seed,
 * place). */
#ifndef CHECK_NUMBER_H
#define CHECK_NUMBER_H
#include "attn/attn.h"
#include <math.h>
#include <string.h>

static inline uint64_t check_mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* [0, 1) */
static inline double check_uniform(uint64_t hash) { return (double)(hash >> 11) * 0x1p-53; }

/* Four uniforms summed: mean 0, variance 1, bell-shaped, within +-3.5. */
static inline double check_normal(uint64_t hash) {
    const double sum = (double)(hash & 0xffff) + (double)(hash >> 16 & 0xffff) +
                       (double)(hash >> 32 & 0xffff) + (double)(hash >> 48);
    return (sum * 0x1p-16 - 2) * 1.7320508075688772;
}

/* 0 .. count - 1 */
static inline int64_t check_pick(uint64_t hash, int64_t count) {
    return count > 0 ? (int64_t)(hash % (uint64_t)count) : 0;
}

static inline int64_t check_element_size(attn_dtype dtype) { return dtype == ATTN_F32 ? 4 : 2; }

static inline double check_widen_f16(uint16_t h) {
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const double sign = h >> 15 ? -1.0 : 1.0;
    if (exponent == 31) return mantissa ? (double)NAN : sign * (double)INFINITY;
    if (!exponent) return sign * mantissa * 0x1p-24;
    const uint64_t bits = (uint64_t)(exponent - 15 + 1023) << 52 | (uint64_t)mantissa << 42;
    double x;
    memcpy(&x, &bits, sizeof x);
    return sign * x;
}

static inline double check_widen(const void *x, attn_dtype dtype, int64_t i) {
    float f;
    if (dtype == ATTN_F32) {
        memcpy(&f, (const unsigned char *)x + 4 * i, 4);
        return (double)f;
    }
    uint16_t h;
    memcpy(&h, (const unsigned char *)x + 2 * i, 2);
    if (dtype == ATTN_F16) return check_widen_f16(h);
    const uint32_t bits = (uint32_t)h << 16;
    memcpy(&f, &bits, 4);
    return (double)f;
}

static inline uint16_t check_narrow_f16(double value) {
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    const double a = fabs(value);
    if (isnan(value)) return 0x7e00;
    if (a >= 65520) return (uint16_t)(sign | 0x7c00);
    if (a < 0x1p-14) return (uint16_t)(sign | (unsigned)rint(a * 0x1p24));
    int exponent;
    const double fraction = frexp(a, &exponent);                       /* 0.5 <= fraction < 1 */
    return (uint16_t)(sign | (unsigned)((exponent + 14 - 1) * 1024 + (int)rint(fraction * 2048)));
}

static inline void check_narrow(void *x, attn_dtype dtype, int64_t i, double value) {
    const float f = (float)value;
    if (dtype == ATTN_F32) {
        memcpy((unsigned char *)x + 4 * i, &f, 4);
        return;
    }
    uint16_t h = 0;
    if (dtype == ATTN_F16) {
        h = check_narrow_f16(value);
    } else {
        uint32_t bits;
        memcpy(&bits, &f, 4);
        h = isnan(f) ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    memcpy((unsigned char *)x + 2 * i, &h, 2);
}
#endif
