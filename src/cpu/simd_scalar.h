/* simd_scalar.h — 4 lanes in portable C, any compiler, any processor. The same names as every other simd_*.h.
 * v_min and v_max return their second argument where either is NaN. */
#include "half.h"
#include "kernel.h"
#include "sequence.h"
#include <math.h>
#define SIMD_END
#define SIMD_ISA ATTN_ISA_BASE
#define SIMD_NAME(f) f##_scalar
#define SIMD_STRING "scalar"
#define SIMD_UNROLL
#define SIMD_UNROLL_BY(n)
#if defined(__GNUC__)
#define SIMD_INLINE static inline __attribute__((always_inline))
#else
#define SIMD_INLINE static inline
#endif

/* LANES of a vector; a register tile is TILE rows by VECS vectors: compilers make 4-wide registers of it. */
#define SIMD_VECS 2
enum { LANES = 4, TILE = 6, VECS = SIMD_VECS };
typedef struct { float x[LANES]; } vec;
typedef struct { int x[LANES]; } vmask;
#define SIMD_EACH(type, expression) \
    type r; \
    for (int i = 0; i < LANES; i++) r.x[i] = (expression); \
    return r

SIMD_INLINE vec  v_hold(vec a)                     { return a; }        /* see simd_avx512.h */
SIMD_INLINE vec  v_set(float x)                    { SIMD_EACH(vec, x); }
SIMD_INLINE vec  v_zero(void)                      { return v_set(0); }
SIMD_INLINE vec  v_load(const float *x)            { SIMD_EACH(vec, x[i]); }
SIMD_INLINE void v_store(float *x, vec a)          { for (int i = 0; i < LANES; i++) x[i] = a.x[i]; }
SIMD_INLINE vec  v_add(vec a, vec b)               { SIMD_EACH(vec, a.x[i] + b.x[i]); }
SIMD_INLINE vec  v_sub(vec a, vec b)               { SIMD_EACH(vec, a.x[i] - b.x[i]); }
SIMD_INLINE vec  v_mul(vec a, vec b)               { SIMD_EACH(vec, a.x[i] * b.x[i]); }
SIMD_INLINE vec  v_div(vec a, vec b)               { SIMD_EACH(vec, a.x[i] / b.x[i]); }
SIMD_INLINE vec  v_fma(vec a, vec b, vec c)        { SIMD_EACH(vec, a.x[i] * b.x[i] + c.x[i]); }
SIMD_INLINE vec  v_fms(vec a, vec b, vec c)        { SIMD_EACH(vec, a.x[i] * b.x[i] - c.x[i]); }
SIMD_INLINE vec  v_max(vec a, vec b)               { SIMD_EACH(vec, a.x[i] > b.x[i] ? a.x[i] : b.x[i]); }
SIMD_INLINE vec  v_min(vec a, vec b)               { SIMD_EACH(vec, a.x[i] < b.x[i] ? a.x[i] : b.x[i]); }
SIMD_INLINE vec  v_abs(vec a)                      { SIMD_EACH(vec, fabsf(a.x[i])); }
SIMD_INLINE vec  v_copysign(vec size, vec sign)    { SIMD_EACH(vec, copysignf(size.x[i], sign.x[i])); }
SIMD_INLINE vec  v_iota(void)                      { SIMD_EACH(vec, (float)i); }
/* Adding 1.5 * 2^23 leaves no bits below the point;
 * beyond 2^22 a float that v_exp2 can use is whole anyway. */
SIMD_INLINE vec  v_round(vec a) {
    SIMD_EACH(vec, fabsf(a.x[i]) < 0x1p22f ? (a.x[i] + 0x1.8p23f) - 0x1.8p23f : a.x[i]);
}
/* p 2^n; +0 where x < -126 (so that nothing subnormal comes out), NaN stays. Needs x <= 127. */
SIMD_INLINE vec  v_exp2_end(vec p, vec n, vec x) {
    vec r;
    for (int i = 0; i < LANES; i++) {
        const int whole = x.x[i] >= -126 && x.x[i] <= 127 ? (int)n.x[i] : 0;
        r.x[i] = x.x[i] < -126 ? 0 : p.x[i] * attn_bits_to_f32((uint32_t)(whole + 127) << 23);
    }
    return r;
}

SIMD_INLINE float v_sum(vec a)                     { return (a.x[0] + a.x[2]) + (a.x[1] + a.x[3]); }
SIMD_INLINE float v_top(vec a) {                                                         /* no NaN inside */
    float top = a.x[0];
    for (int i = 1; i < LANES; i++) top = a.x[i] > top ? a.x[i] : top;
    return top;
}

SIMD_INLINE int  v_all_less(vec a, vec b) {
    int all = 1;
    for (int i = 0; i < LANES; i++) all &= a.x[i] < b.x[i];
    return all;
}
SIMD_INLINE vmask v_equal(vec a, vec b)            { SIMD_EACH(vmask, a.x[i] == b.x[i]); }
SIMD_INLINE vmask v_less(vec a, vec b)             { SIMD_EACH(vmask, a.x[i] < b.x[i]); }
SIMD_INLINE vmask v_within(vec low, vec x, vec high) {                                   /* low <= x < high */
    SIMD_EACH(vmask, low.x[i] <= x.x[i] && x.x[i] < high.x[i]);
}
SIMD_INLINE vec  v_select(vmask m, vec yes, vec no) { SIMD_EACH(vec, m.x[i] ? yes.x[i] : no.x[i]); }
SIMD_INLINE int  v_any_nan(vec a) {
    int any = 0;
    for (int i = 0; i < LANES; i++) any |= a.x[i] != a.x[i];
    return any;
}

#if defined(__GNUC__)
SIMD_INLINE void v_prefetch(const void *x)         { __builtin_prefetch(x, 0, 2); }   /* into L2 */
#else
SIMD_INLINE void v_prefetch(const void *x)         { (void)x; }
#endif

/* Rows become columns: x[i] lane j <-> x[j] lane i. */
SIMD_INLINE void v_transpose(vec x[LANES]) {
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < i; j++) {
            const float a = x[i].x[j];
            x[i].x[j] = x[j].x[i];
            x[j].x[i] = a;
        }
}

/* The first `count` lanes, 0 .. LANES. A part load touches no memory outside it and gives 0 elsewhere. */
SIMD_INLINE vmask v_first(int64_t count)           { SIMD_EACH(vmask, i < count); }
SIMD_INLINE vec  v_load_part(const float *x, vmask m) { SIMD_EACH(vec, m.x[i] ? x[i] : 0); }
SIMD_INLINE void v_store_part(float *x, vmask m, vec a) {
    for (int i = 0; i < LANES; i++)
        if (m.x[i]) x[i] = a.x[i];
}
SIMD_INLINE vec  v_load_f16(const uint16_t *x)     { SIMD_EACH(vec, attn_f16_to_f32(x[i])); }
SIMD_INLINE vec  v_load_bf16(const uint16_t *x)    { SIMD_EACH(vec, attn_bf16_to_f32(x[i])); }
SIMD_INLINE vec v_load_part_f16(const uint16_t *x, vmask m) {
    SIMD_EACH(vec, m.x[i] ? attn_f16_to_f32(x[i]) : 0);
}
SIMD_INLINE vec v_load_part_bf16(const uint16_t *x, vmask m) {
    SIMD_EACH(vec, m.x[i] ? attn_bf16_to_f32(x[i]) : 0);
}
SIMD_INLINE void v_store_part_f16(uint16_t *x, vmask m, vec a) {
    for (int i = 0; i < LANES; i++)
        if (m.x[i]) x[i] = attn_f32_to_f16(a.x[i]);
}
SIMD_INLINE void v_store_part_bf16(uint16_t *x, vmask m, vec a) {
    for (int i = 0; i < LANES; i++)
        if (m.x[i]) x[i] = attn_f32_to_bf16(a.x[i]);
}
SIMD_INLINE vec  v_load_part_u8(const uint8_t *x, vmask m) { SIMD_EACH(vec, m.x[i] ? (float)x[i] : 0); }
#include "simd_math.h"
