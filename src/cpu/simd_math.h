/* simd_math.h — exp2, tanh and loads by dtype out of the operations that every simd_*.h defines;
 * they include it.
 * Polynomials are minimax fits of this project (relative error, constant term fixed to
 * 1 so that 2^0 is exact). */

/* The constants of v_exp2, to be fetched once before a loop. */
typedef struct { vec c1, c2, c3, c4, c5, one; } exp2_constants;
SIMD_INLINE exp2_constants v_exp2_constants(void) {
    return (exp2_constants){ v_hold(v_set(0x1.62e42ap-1f)), v_hold(v_set(0x1.ebf9bcp-3f)),
                             v_hold(v_set(0x1.c6b752p-5f)), v_hold(v_set(0x1.3cea88p-7f)),
                             v_hold(v_set(0x1.5bba14p-10f)), v_hold(v_set(1)) };
}

/* 2^x, relative error 1e-7 (polynomial 9.2e-8 on [-1/2, 1/2]);
 * 0 below 2^-126, NaN stays NaN. Needs x <= 127. */
SIMD_INLINE vec v_exp2_with(exp2_constants k, vec x) {
    const vec n = v_round(x), f = v_sub(x, n);
    vec p = v_fma(k.c5, f, k.c4);
    p = v_fma(p, f, k.c3);
    p = v_fma(p, f, k.c2);
    p = v_fma(p, f, k.c1);
    p = v_fma(p, f, k.one);
    return v_exp2_end(p, n, x);
}
SIMD_INLINE vec v_exp2(vec x) { return v_exp2_with(v_exp2_constants(), x); }

/* The same with a polynomial of degree 3, relative error 1.0e-4:
 * where the result is rounded to bf16 anyway. */
SIMD_INLINE vec v_exp2_coarse(vec x) {
    const vec n = v_round(x), f = v_sub(x, n);
    vec p = v_set(0x1.c2a218p-5f);
    p = v_fma(p, f, v_set(0x1.f00c4cp-3f));
    p = v_fma(p, f, v_set(0x1.62f5fap-1f));
    p = v_fma(p, f, v_set(1));
    return v_exp2_end(p, n, x);
}

/* tanh, relative error 5e-7 also for tiny x: a polynomial in x^2 below 0.55, 1 - 2 / (e^2|x| + 1) above. */
SIMD_INLINE vec v_tanh(vec x) {
    const vec a = v_abs(x), y = v_mul(x, x);
    vec p = v_set(-0x1.acc5a4p-8f);
    p = v_fma(p, y, v_set(0x1.5c8860p-6f));
    p = v_fma(p, y, v_set(-0x1.b99384p-5f));
    p = v_fma(p, y, v_set(0x1.110fc0p-3f));
    p = v_fma(p, y, v_set(-0x1.555554p-2f));
    const vec e = v_exp2(v_mul(v_min(v_set(10), a), v_set(0x1.715476p+1f)));
    const vec big = v_sub(v_set(1), v_div(v_set(2), v_add(e, v_set(1))));
    return v_select(v_less(a, v_set(0.55f)), v_fma(v_mul(p, y), x, x), v_copysign(big, x));
}

/* Elements 0 .. LANES - 1 (or those of the mask) of a row of any dtype, as f32. */
SIMD_INLINE vec v_load_any(const void *row, attn_dtype dtype, int64_t at) {
    if (dtype == ATTN_F32) return v_load((const float *)row + at);
    const uint16_t *x = (const uint16_t *)row + at;
    return dtype == ATTN_F16 ? v_load_f16(x) : v_load_bf16(x);
}
SIMD_INLINE vec v_load_part_any(const void *row, attn_dtype dtype, int64_t at, vmask m) {
    if (dtype == ATTN_F32) return v_load_part((const float *)row + at, m);
    const uint16_t *x = (const uint16_t *)row + at;
    return dtype == ATTN_F16 ? v_load_part_f16(x, m) : v_load_part_bf16(x, m);
}
SIMD_INLINE void v_store_part_any(void *row, attn_dtype dtype, int64_t at, vmask m, vec a) {
    if (dtype == ATTN_F32) v_store_part((float *)row + at, m, a);
    else if (dtype == ATTN_F16) v_store_part_f16((uint16_t *)row + at, m, a);
    else v_store_part_bf16((uint16_t *)row + at, m, a);
}
