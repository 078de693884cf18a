/* flash_fwd_tiles.h — the two register tiles of the flash kernels, f32 operands, and the softmax between them.
 * Queries live in lanes: a panel of scores is s[key][PANEL]. K and V are read row by row where they lie. */
enum { PANEL = VECS * LANES };

/* s[r][lane] = sum over d of k[r][d] q[d][lane] for TILE keys and the lanes of `vecs` vectors; top: max per lane. */
SIMD_INLINE void score_tile(const int vecs, int64_t dim, const float *q, const float *const *k, float *s, float *top) {
    vec acc[TILE][VECS];
    const float *row[TILE];
    SIMD_UNROLL
    for (int r = 0; r < TILE; r++) {
        row[r] = k[r];
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++) acc[r][c] = v_zero();
    }
    SIMD_UNROLL_BY(4)
    for (int64_t d = 0; d < dim; d++) {
        vec x[VECS];
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++) x[c] = v_load(q + d * PANEL + c * LANES);
        SIMD_UNROLL
        for (int r = 0; r < TILE; r++) {
            const vec y = v_set(row[r][d]);
            SIMD_UNROLL
            for (int c = 0; c < vecs; c++) acc[r][c] = v_fma(y, x[c], acc[r][c]);
        }
    }
    SIMD_UNROLL
    for (int c = 0; c < vecs; c++) {
        vec m = v_load(top + c * LANES);
        SIMD_UNROLL
        for (int r = 0; r < TILE; r++) {
            v_store(s + r * PANEL + c * LANES, acc[r][c]);
            m = v_max(m, acc[r][c]);
        }
        v_store(top + c * LANES, m);
    }
}

static void score_tile_any(int vecs, int64_t dim, const float *q, const float *const *k, float *s, float *top) {
    switch (vecs) {
#if SIMD_VECS > 2
    case 4: score_tile(4, dim, q, k, s, top); break;
    case 3: score_tile(3, dim, q, k, s, top); break;
#endif
    case 2: score_tile(2, dim, q, k, s, top); break;
    default: score_tile(1, dim, q, k, s, top); break;
    }
}

/* o[r][column] = alpha[r] o[r][column] + sum over n keys of p[j][r] v[j][column], `rows` queries by `vecs` vectors of
 * columns; `part`: the last vector of v reaches only as far as `tail`. */
SIMD_INLINE void value_tile(const int rows, const int vecs, const int part, vmask tail, int64_t n, const float *p,
                            const float *const *v, int64_t column, const float *alpha, float *o, int64_t o_row) {
    vec acc[TILE][VECS];
    SIMD_UNROLL
    for (int r = 0; r < rows; r++) {
        const vec scale = v_set(alpha[r]);
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++) acc[r][c] = v_mul(scale, v_load(o + r * o_row + c * LANES));
    }
    SIMD_UNROLL_BY(2)
    for (int64_t j = 0; j < n; j++) {
        const float *row = v[j] + column;
        vec x[VECS];
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++)
            x[c] = part && c == vecs - 1 ? v_load_part(row + c * LANES, tail) : v_load(row + c * LANES);
        SIMD_UNROLL
        for (int r = 0; r < rows; r++) {
            const vec y = v_set(p[j * PANEL + r]);
            SIMD_UNROLL
            for (int c = 0; c < vecs; c++) acc[r][c] = v_fma(y, x[c], acc[r][c]);
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
static void value_tile_full(int64_t rows, int64_t n, const float *p, const float *const *v, int64_t column,
                            const float *alpha, float *o, int64_t o_row) {
    const vmask tail = v_first(LANES);
    if (rows > 4) VALUE_TILE(6, VECS, 0);
    else if (rows > 2) VALUE_TILE(4, VECS, 0);
    else VALUE_TILE(2, VECS, 0);
}

SIMD_INLINE void value_tile_rows(const int vecs, vmask tail, int64_t rows, int64_t n, const float *p,
                                 const float *const *v, int64_t column, const float *alpha, float *o, int64_t o_row) {
    if (rows > 4) VALUE_TILE(6, vecs, 1);
    else if (rows > 2) VALUE_TILE(4, vecs, 1);
    else VALUE_TILE(2, vecs, 1);
}

/* The last columns: `vecs` vectors, the last one up to `tail`. */
static void value_tile_last(int vecs, vmask tail, int64_t rows, int64_t n, const float *p, const float *const *v,
                            int64_t column, const float *alpha, float *o, int64_t o_row) {
    switch (vecs) {
#if SIMD_VECS > 2
    case 4: value_tile_rows(4, tail, rows, n, p, v, column, alpha, o, o_row); break;
    case 3: value_tile_rows(3, tail, rows, n, p, v, column, alpha, o, o_row); break;
#endif
    case 2: value_tile_rows(2, tail, rows, n, p, v, column, alpha, o, o_row); break;
    default: value_tile_rows(1, tail, rows, n, p, v, column, alpha, o, o_row); break;
    }
}

/* One vector of lanes: s becomes p = 2^(s - m), m and l move on, alpha is what older sums shrink by. */
static void softmax_lanes(float *s, int64_t n, const float *top, float *m, float *l, float *alpha) {
    const exp2_constants k = v_exp2_constants();
    const vec old = v_load(m), now = v_max(old, v_load(top));
    const vec base = v_select(v_equal(now, v_set(-INFINITY)), v_zero(), now);      /* no visible key so far */
    const vec keep = v_exp2(v_sub(old, base));
    vec sum0 = v_mul(keep, v_load(l)), sum1 = v_zero();
    int64_t j = 0;
    for (; j + 2 <= n; j += 2) {
        float *x = s + j * PANEL;
        const vec p0 = v_exp2_with(k, v_sub(v_load(x), base)), p1 = v_exp2_with(k, v_sub(v_load(x + PANEL), base));
        v_store(x, p0);
        v_store(x + PANEL, p1);
        sum0 = v_add(sum0, p0);
        sum1 = v_add(sum1, p1);
    }
    if (j < n) {
        const vec p0 = v_exp2_with(k, v_sub(v_load(s + j * PANEL), base));
        v_store(s + j * PANEL, p0);
        sum0 = v_add(sum0, p0);
    }
    v_store(m, now);
    v_store(l, v_add(sum0, sum1));
    v_store(alpha, keep);
}
