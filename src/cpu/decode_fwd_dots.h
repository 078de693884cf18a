/* decode_fwd_dots.h — the two register kernels of decode in f32: scores of 1, 2, 4 or 8 query rows by dot
 * products along a key's row, and O += P V along a value's row. K and V are read row by row, wherever each
 * row lies; while one block is computed, the lines of a later one are on their way. */
enum { CHUNK = 64,                                    /* keys at a time: two blocks of K and V stay in L2 */
       ROWS = LANES / 2,                              /* query rows at a time:
                                                         half of the registers are sums */
       MOST_VECS = 8 };                               /* vectors of columns at a time */

/* Rows of keys: key j's row is at row[j] + at bytes. */
typedef struct { const char *const *row; int64_t at; } rows_at;

/* The next rows to be read, and how long they are; bytes 0: none. */
typedef struct { rows_at rows; int64_t bytes; } rows_ahead;

SIMD_INLINE void fetch_row(rows_ahead ahead, int64_t j) {
    const char *row = ahead.rows.row[j] + ahead.rows.at;
    for (int64_t i = 0; i < ahead.bytes; i += 64) v_prefetch(row + i);
}

/* ---- s = Q K^T ---- */

/* One query row: each key's row from end to end, two sums. */
SIMD_INLINE vec dot(const attn_dtype dtype, const int64_t dim, const float *q, const char *k) {
    vec a = v_zero(), b = v_zero();
    int64_t d = 0;
    SIMD_UNROLL_BY(4)
    for (; d + 2 * LANES <= dim; d += 2 * LANES) {
        a = v_fma(v_load_any(k, dtype, d), v_load(q + d), a);
        b = v_fma(v_load_any(k, dtype, d + LANES), v_load(q + d + LANES), b);
    }
    if (d + LANES <= dim) {
        a = v_fma(v_load_any(k, dtype, d), v_load(q + d), a);
        d += LANES;
    }
    if (d < dim) b = v_fma(v_load_part_any(k, dtype, d, v_first(dim - d)), v_load(q + d), b);
    return v_add(a, b);
}

/* s[i][j] = q[i] . k[j] for `rows` query rows and LANES / rows keys. */
SIMD_INLINE void score_tile(const attn_dtype dtype, const int rows, const int64_t dim, const float *q,
                            int64_t q_row, rows_at k, float *s) {
    const int keys = LANES / rows;
    vec sums[LANES];
    const char *row[LANES];
    SIMD_UNROLL
    for (int j = 0; j < keys; j++) row[j] = k.row[j] + k.at;
    if (rows == 1) {
        SIMD_UNROLL
        for (int j = 0; j < LANES; j++) sums[j] = dot(dtype, dim, q, row[j]);
        v_store(s, v_sum_each(sums));
        return;
    }
    SIMD_UNROLL
    for (int i = 0; i < LANES; i++) sums[i] = v_zero();
    int64_t d = 0;
    SIMD_UNROLL_BY(2)
    for (; d + LANES <= dim; d += LANES) {
        vec x[ROWS];
        SIMD_UNROLL
        for (int i = 0; i < rows; i++) x[i] = v_load(q + i * q_row + d);
        SIMD_UNROLL
        for (int j = 0; j < keys; j++) {
            const vec y = v_load_any(row[j], dtype, d);
            SIMD_UNROLL
            for (int i = 0; i < rows; i++) sums[i * keys + j] = v_fma(y, x[i], sums[i * keys + j]);
        }
    }
    if (d < dim) {
        const vmask part = v_first(dim - d);
        SIMD_UNROLL
        for (int j = 0; j < keys; j++) {
            const vec y = v_load_part_any(row[j], dtype, d, part);
            SIMD_UNROLL
            for (int i = 0; i < rows; i++)
                sums[i * keys + j] = v_fma(y, v_load(q + i * q_row + d), sums[i * keys + j]);
        }
    }
    float all[LANES];
    v_store(all, v_sum_each(sums));
    SIMD_UNROLL
    for (int i = 0; i < rows; i++) memcpy(s + i * CHUNK, all + i * keys, (size_t)keys * sizeof(float));
}

/* Keys from .. to - 1, both multiples of LANES. */
SIMD_INLINE void score_rows(const attn_dtype dtype, const int rows, const int64_t dim, const float *q,
                            int64_t q_row, rows_at k, int64_t from, int64_t to, rows_ahead ahead, float *s) {
    const int keys = LANES / rows;
    for (int64_t j = from; j < to; j += keys) {
        for (int i = 0; i < keys && ahead.bytes; i++) fetch_row(ahead, j + i);
        score_tile(dtype, rows, dim, q, q_row, (rows_at){ k.row + j, k.at }, s + j);
    }
}

/* ---- O += P V ---- */

/* o[i][column ..] = alpha[i] o[i] + sum over keys of p[i][j] v[j] for `rows` rows and
 * `vecs` vectors of columns. */
SIMD_INLINE void value_tile(const attn_dtype dtype, const int rows, const int vecs, const int part,
                            vmask tail, const float *p, rows_at v, int64_t from, int64_t to, rows_ahead ahead,
                            int64_t column, const float *alpha, float *o, int64_t o_row) {
    vec sums[ROWS][MOST_VECS];
    SIMD_UNROLL
    for (int i = 0; i < rows; i++)
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++)
            sums[i][c] = v_mul(v_set(alpha[i]), v_load(o + i * o_row + column + c * LANES));
    SIMD_UNROLL_BY(2)
    for (int64_t j = from; j < to; j++) {
        const char *row = v.row[j] + v.at;
        vec x[MOST_VECS];
        if (ahead.bytes) fetch_row(ahead, j);
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++)
            x[c] = part ? v_load_part_any(row, dtype, column + c * LANES, tail)
                        : v_load_any(row, dtype, column + c * LANES);
        SIMD_UNROLL
        for (int i = 0; i < rows; i++) {
            const vec y = v_set(p[i * CHUNK + j]);
            SIMD_UNROLL
            for (int c = 0; c < vecs; c++) sums[i][c] = v_fma(y, x[c], sums[i][c]);
        }
    }
    SIMD_UNROLL
    for (int i = 0; i < rows; i++)
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++) v_store(o + i * o_row + column + c * LANES, sums[i][c]);
}

SIMD_INLINE void value_rows(const attn_dtype dtype, const int rows, const int64_t dim, const float *p,
                            rows_at v, int64_t from, int64_t to, rows_ahead ahead, const float *alpha,
                            float *o, int64_t o_row) {
    /* Sums fill half of the registers, or three quarters: then a number of V is widened for 8 rows,
     * and 3 vectors of it share the fetching of P. */
    const int wide = rows == 8 ? 3 : LANES / rows < 8 ? LANES / rows : 8;
    const rows_ahead none = { ahead.rows, 0 };
    int64_t d = 0;
    for (; d + wide * LANES <= dim; d += wide * LANES, ahead = none)
        value_tile(dtype, rows, wide, 0, v_first(LANES), p, v, from, to, ahead, d, alpha, o, o_row);
    if (wide == 3 && d + 2 * LANES <= dim) {
        value_tile(dtype, rows, 2, 0, v_first(LANES), p, v, from, to, ahead, d, alpha, o, o_row);
        d += 2 * LANES;
        ahead = none;
    }
    if (wide > 4 && d + 4 * LANES <= dim) {
        value_tile(dtype, rows, 4, 0, v_first(LANES), p, v, from, to, ahead, d, alpha, o, o_row);
        d += 4 * LANES;
        ahead = none;
    }
    for (; d < dim; d += LANES, ahead = none)
        value_tile(dtype, rows, 1, 1, v_first(dim - d < LANES ? dim - d : LANES), p, v, from, to, ahead, d,
                   alpha, o, o_row);
}
