/* flash_fwd_tiles.h — the two register tiles of the flash kernels. Queries live in lanes: a panel of scores
 * is s[key][PANEL], and K is read row by row where it lies, one broadcast word at a time. A word is one f32,
 * or a pair of bf16 that the processor multiplies and adds in one step (simd_avx512bf16.h); flash_fwd_f32.h
 * and flash_fwd_dot.h make words. */
enum { PANEL = VECS * LANES };

#if defined(SIMD_DOT)
enum { KEYS = 2 };                                    /* numbers in a word */
typedef uint32_t word;
typedef pairs words_of;
SIMD_INLINE words_of w_set(const void *x)                  { return pairs_set(x); }
SIMD_INLINE words_of w_load(const word *x)                 { return pairs_load(x); }
SIMD_INLINE words_of w_load_part(const word *x, vmask m)   { return pairs_load_part(x, m); }
SIMD_INLINE vec w_multiply_add(words_of a, words_of b, vec c) { return pairs_dot(a, b, c); }
#else
enum { KEYS = 1 };
typedef float word;
typedef vec words_of;
SIMD_INLINE words_of w_set(const void *x)                  { return v_set(*(const float *)x); }
SIMD_INLINE words_of w_load(const word *x)                 { return v_load(x); }
SIMD_INLINE words_of w_load_part(const word *x, vmask m)   { return v_load_part(x, m); }
SIMD_INLINE vec w_multiply_add(words_of a, words_of b, vec c) { return v_fma(a, b, c); }
#endif

/* c s - base; the product isn't rounded,
 * unless base is so large that its own rounding would matter (careful). */
SIMD_INLINE vec score_below(const int careful, vec c, vec s, vec base) {
    return careful ? v_sub(v_mul(c, s), base) : v_fms(c, s, base);
}

/* s[r][lane] = sum over words of k[r] q[lane] for TILE keys and the lanes of `vecs` vectors;
 * top: max per lane. */
SIMD_INLINE void score_tile(const int vecs, int64_t words, const word *q, const void *const *k, float *s,
                            float *top) {
    vec acc[TILE][VECS];
    const char *row[TILE];
    SIMD_UNROLL
    for (int r = 0; r < TILE; r++) {
        row[r] = k[r];
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++) acc[r][c] = v_zero();
    }
    SIMD_UNROLL_BY(4)
    for (int64_t d = 0; d < words; d++) {
        words_of x[VECS];
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++) x[c] = w_load(q + d * PANEL + c * LANES);
        SIMD_UNROLL
        for (int r = 0; r < TILE; r++) {
            const words_of y = w_set(row[r] + d * (int64_t)sizeof(word));
            SIMD_UNROLL
            for (int c = 0; c < vecs; c++) acc[r][c] = w_multiply_add(y, x[c], acc[r][c]);
        }
    }
    SIMD_UNROLL
    for (int r = 0; r < TILE; r++) {
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++) v_store(s + r * PANEL + c * LANES, acc[r][c]);
    }
    SIMD_UNROLL
    for (int c = 0; c < vecs; c++) {                  /* a tree: chains of maxima would delay the next tile */
        const vec low = v_max(v_max(acc[0][c], acc[1][c]), acc[2][c]);
        const vec high = v_max(v_max(acc[3][c], acc[4][c]), acc[5][c]);
        v_store(top + c * LANES, v_max(v_load(top + c * LANES), v_max(low, high)));
    }
}

static void score_tile_any(int vecs, int64_t words, const word *q, const void *const *k, float *s,
                           float *top) {
    switch (vecs) {
#if SIMD_VECS > 2
    case 4: score_tile(4, words, q, k, s, top); break;
    case 3: score_tile(3, words, q, k, s, top); break;
#endif
    case 2: score_tile(2, words, q, k, s, top); break;
    default: score_tile(1, words, q, k, s, top); break;
    }
}

/* o[r][column] = alpha[r] o[r][column] + sum over n words of p[j][r] v[j][column],
 * `rows` queries by `vecs` vectors of columns; `part`: the last vector of v reaches only as far as `tail`. */
SIMD_INLINE void value_tile(const int rows, const int vecs, const int part, vmask tail, int64_t n,
                            const word *p, const word *const *v, int64_t column, const float *alpha, float *o,
                            int64_t o_row) {
    vec acc[TILE][VECS];
    SIMD_UNROLL
    for (int r = 0; r < rows; r++) {
        const vec scale = v_set(alpha[r]);
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++) acc[r][c] = v_mul(scale, v_load(o + r * o_row + c * LANES));
    }
    SIMD_UNROLL_BY(2)
    for (int64_t j = 0; j < n; j++) {
        const word *row = v[j] + column;
        words_of x[VECS];
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++)
            x[c] = part && c == vecs - 1 ? w_load_part(row + c * LANES, tail) : w_load(row + c * LANES);
        SIMD_UNROLL
        for (int r = 0; r < rows; r++) {
            const words_of y = w_set(p + j * PANEL + r);
            SIMD_UNROLL
            for (int c = 0; c < vecs; c++) acc[r][c] = w_multiply_add(y, x[c], acc[r][c]);
        }
    }
    SIMD_UNROLL
    for (int r = 0; r < rows; r++) {
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++) v_store(o + r * o_row + c * LANES, acc[r][c]);
    }
}

#define VALUE_TILE(rows, vecs, part) value_tile(rows, vecs, part, tail, n, p, v, column, alpha, o, o_row)
/* Whole vectors of columns: the common case. */
static void value_tile_full(int64_t rows, int64_t n, const word *p, const word *const *v, int64_t column,
                            const float *alpha, float *o, int64_t o_row) {
    const vmask tail = v_first(LANES);
    if (rows > 4) VALUE_TILE(6, VECS, 0);
    else if (rows > 2) VALUE_TILE(4, VECS, 0);
    else VALUE_TILE(2, VECS, 0);
}

SIMD_INLINE void value_tile_rows(const int vecs, vmask tail, int64_t rows, int64_t n, const word *p,
                                 const word *const *v, int64_t column, const float *alpha, float *o,
                                 int64_t o_row) {
    if (rows > 4) VALUE_TILE(6, vecs, 1);
    else if (rows > 2) VALUE_TILE(4, vecs, 1);
    else VALUE_TILE(2, vecs, 1);
}

/* The last columns: `vecs` vectors, the last one up to `tail`. */
static void value_tile_last(int vecs, vmask tail, int64_t rows, int64_t n, const word *p,
                            const word *const *v, int64_t column, const float *alpha, float *o,
                            int64_t o_row) {
    switch (vecs) {
#if SIMD_VECS > 2
    case 4: value_tile_rows(4, tail, rows, n, p, v, column, alpha, o, o_row); break;
    case 3: value_tile_rows(3, tail, rows, n, p, v, column, alpha, o, o_row); break;
#endif
    case 2: value_tile_rows(2, tail, rows, n, p, v, column, alpha, o, o_row); break;
    default: value_tile_rows(1, tail, rows, n, p, v, column, alpha, o, o_row); break;
    }
}
