/* half.h — f16 and bf16 in 16-bit words, converted in plain C:
 * exact widening, round to nearest even narrowing. */
#ifndef ATTN_HALF_H
#define ATTN_HALF_H
#include "attn/attn.h"
#include <string.h>

static inline float attn_bits_to_f32(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t attn_f32_to_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

static inline float attn_bf16_to_f32(uint16_t h) { return attn_bits_to_f32((uint32_t)h << 16); }

static inline uint16_t attn_f32_to_bf16(float x) {
    const uint32_t bits = attn_f32_to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);   /* keep NaN a NaN */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static inline float attn_f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return attn_bits_to_f32(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return attn_bits_to_f32(sign | (exponent + 112) << 23 | mantissa << 13);
    const float tiny = (float)mantissa * 0x1p-24f;                                   /* zero and subnormals */
    return sign ? -tiny : tiny;
}

static inline uint16_t attn_f32_to_f16(float x) {
    const uint32_t bits = attn_f32_to_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00);   /* >= 65520 rounds to inf */
    if (magnitude < 0x38800000u) {                                    /* below 2^-14: subnormal */
        const float scaled = attn_bits_to_f32(magnitude) * 0x1p24f;
        const uint32_t whole = (uint32_t)scaled;
        const float rest = scaled - (float)whole;
        return (uint16_t)(sign | (whole + (rest > 0.5f || (rest == 0.5f && (whole & 1)))));
    }
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13));
}

static inline float attn_load(const void *x, attn_dtype dtype, int64_t i) {
    if (dtype == ATTN_F32) return ((const float *)x)[i];
    const uint16_t h = ((const uint16_t *)x)[i];
    return dtype == ATTN_F16 ? attn_f16_to_f32(h) : attn_bf16_to_f32(h);
}

static inline void attn_store(void *x, attn_dtype dtype, int64_t i, float value) {
    if (dtype == ATTN_F32) ((float *)x)[i] = value;
    else ((uint16_t *)x)[i] = dtype == ATTN_F16 ? attn_f32_to_f16(value) : attn_f32_to_bf16(value);
}
#endif
