/* decode_fwd_pairs.h — decode on bf16 pairs: an instruction multiplies two and two numbers and adds
 * both products to an f32 sum. Q K^T pairs neighbours along a row, P V pairs neighbouring keys, P
 * rounded to bf16; sums stay f32. */
#define DECODE_DTYPES ATTN_DTYPE_BIT(ATTN_BF16)
#define DECODE_SUMMARY "few queries, K and V read once for all heads that share them, products of bf16 pairs"
enum { WIDTH = 2 * LANES };                           /* numbers in a vector */

static int64_t query_words(const attn_problem *p) { return round_up(p->qk_dim, WIDTH) / 2; }

/* With the sign of the scale, zeros behind its end. */
static void load_query(const decode *x, int64_t head, int64_t row, float *to) {
    const attn_problem *p = x->p;
    const void *from = query_row(x, head, row);
    for (int64_t d = 0; d < 2 * x->q_row; d += LANES) {
        const vmask part = v_first(at_least(0, at_most(LANES, p->qk_dim - d)));
        const vec q = v_mul(v_set(x->sign), v_load_part_bf16((const uint16_t *)from + d, part));
        v_store_part_bf16((uint16_t *)to + d, v_first(LANES), q);
    }
}

/* WIDTH numbers of a row; `part`: those before its end, zeros behind.
 * Whole vectors need no mask made at each load. */
SIMD_INLINE vec load_bits(const int part, const char *row, int64_t d, int64_t dim) {
    return part ? pairs_bits((const uint16_t *)(const void *)row + d, dim - d)
                : v_load((const float *)(const void *)(row + 2 * d));
}
SIMD_INLINE pairs load_pairs(const int part, const char *row, int64_t d, int64_t dim) {
    return pairs_of_bits(load_bits(part, row, d, dim));
}

/* sums[i][j] += q[i] . k[j] over WIDTH numbers. */
SIMD_INLINE void pair_score_step(const int part, const int rows, int64_t d, int64_t dim, const float *q,
                                 int64_t q_row, const char *const *row, vec *sums) {
    const int keys = LANES / rows;
    pairs x[ROWS];
    SIMD_UNROLL
    for (int i = 0; i < rows; i++) x[i] = pairs_of_bits(v_load(q + i * q_row + d / 2));
    SIMD_UNROLL
    for (int j = 0; j < keys; j++) {
        const pairs y = load_pairs(part, row[j], d, dim);
        SIMD_UNROLL
        for (int i = 0; i < rows; i++) sums[i * keys + j] = pairs_dot(y, x[i], sums[i * keys + j]);
    }
}

/* s[i][j] = q[i] . k[j] for `rows` query rows and LANES / rows keys. */
SIMD_INLINE void pair_score_tile(const int rows, int64_t dim, const float *q, int64_t q_row, rows_at k,
                                 float *s) {
    const int keys = LANES / rows;
    vec sums[LANES];
    const char *row[LANES];
    SIMD_UNROLL
    for (int i = 0; i < LANES; i++) sums[i] = v_zero();
    SIMD_UNROLL
    for (int j = 0; j < keys; j++) row[j] = k.row[j] + k.at;
    if (rows == 1) {
        SIMD_UNROLL
        for (int j = 0; j < LANES; j++) {
            int64_t d = 0;
            for (; d + WIDTH <= dim; d += WIDTH)
                sums[j] = pairs_dot(load_pairs(0, row[j], d, dim), pairs_of_bits(v_load(q + d / 2)), sums[j]);
            if (d < dim)
                sums[j] = pairs_dot(load_pairs(1, row[j], d, dim), pairs_of_bits(v_load(q + d / 2)), sums[j]);
        }
        v_store(s, v_sum_each(sums));
        return;
    }
    int64_t d = 0;
    SIMD_UNROLL_BY(2)
    for (; d + WIDTH <= dim; d += WIDTH) pair_score_step(0, rows, d, dim, q, q_row, row, sums);
    if (d < dim) pair_score_step(1, rows, d, dim, q, q_row, row, sums);
    float all[LANES];
    v_store(all, v_sum_each(sums));
    SIMD_UNROLL
    for (int i = 0; i < rows; i++) memcpy(s + i * CHUNK, all + i * keys, (size_t)keys * sizeof(float));
}

SIMD_INLINE void pair_score_rows(const int rows, int64_t dim, const float *q, int64_t q_row, rows_at k,
                                 int64_t from, int64_t to, rows_ahead ahead, float *s) {
    const int keys = LANES / rows;
    for (int64_t j = from; j < to; j += keys) {
        for (int i = 0; i < keys && ahead.bytes; i++) fetch_row(ahead, j + i);
        pair_score_tile(rows, dim, q, q_row, (rows_at){ k.row + j, k.at }, s + j);
    }
}

static void scores_of(const decode *x, int rows, const float *q, rows_at k, rows_ahead ahead) {
    const int64_t dim = x->p->qk_dim, from = x->begin, to = x->end;
    if (ROWS == 8 && rows == 8) pair_score_rows(8, dim, q, x->q_row, k, from, to, ahead, x->scores);
    else if (rows == 4) pair_score_rows(4, dim, q, x->q_row, k, from, to, ahead, x->scores);
    else if (rows == 2) pair_score_rows(2, dim, q, x->q_row, k, from, to, ahead, x->scores);
    else pair_score_rows(1, dim, q, x->q_row, k, from, to, ahead, x->scores);
}

/* One step of pair_value_tile: two keys (the second may be none),
 * `vecs` vectors of columns, an even number. */
SIMD_INLINE void pair_value_step(const int part, const int rows, const int vecs, const uint16_t *p,
                                 int single, const char *lower, const char *upper, int64_t column,
                                 int64_t dim, vec (*sums)[MOST_VECS]) {
    pairs x[MOST_VECS];
    SIMD_UNROLL
    for (int c = 0; c < vecs; c += 2) {
        const int64_t d = column + c * LANES;
        const vec a = load_bits(part, lower, d, dim), b = single ? v_zero() : load_bits(part, upper, d, dim);
        x[c] = pairs_zip_low(a, b);
        x[c + 1] = pairs_zip_high(a, b);
    }
    SIMD_UNROLL
    for (int i = 0; i < rows; i++) {
        const uint16_t alone[2] = { p[i * CHUNK], 0 };
        const pairs y = pairs_set(single ? alone : p + i * CHUNK);
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++) sums[i][c] = pairs_dot(y, x[c], sums[i][c]);
    }
}

/* o[i][column ..] = alpha[i] o[i] + sum over keys of p[i][j] v[j] for `rows` rows and
 * `vecs` vectors of columns. */
SIMD_INLINE void pair_value_tile(const int part, const int rows, const int vecs, const uint16_t *p, rows_at v,
                                 int64_t from, int64_t to, rows_ahead ahead, int64_t column, int64_t dim,
                                 const float *alpha, float *o, int64_t o_row) {
    vec sums[ROWS][MOST_VECS];
    SIMD_UNROLL
    for (int i = 0; i < rows; i++)
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++)
            sums[i][c] = v_mul(v_set(alpha[i]), v_load(o + i * o_row + column + c * LANES));
    int64_t j = from;
    for (; j + 2 <= to; j += 2) {
        if (ahead.bytes) fetch_row(ahead, j);
        if (ahead.bytes) fetch_row(ahead, j + 1);
        pair_value_step(part, rows, vecs, p + j, 0, v.row[j] + v.at, v.row[j + 1] + v.at, column, dim, sums);
    }
    if (j < to) pair_value_step(part, rows, vecs, p + j, 1, v.row[j] + v.at, NULL, column, dim, sums);
    SIMD_UNROLL
    for (int i = 0; i < rows; i++)
        SIMD_UNROLL
        for (int c = 0; c < vecs; c++) v_store(o + i * o_row + column + c * LANES, sums[i][c]);
}

SIMD_INLINE void pair_value_rows(const int rows, int64_t dim, const uint16_t *p, rows_at v, int64_t from,
                                 int64_t to, rows_ahead ahead, const float *alpha, float *o, int64_t o_row) {
    const int wide = rows == 1 ? 8 : LANES / rows;    /* at most 16 sums */
    const rows_ahead none = { ahead.rows, 0 };
    int64_t d = 0;
    for (; d + wide * LANES <= dim; d += wide * LANES, ahead = none)
        pair_value_tile(0, rows, wide, p, v, from, to, ahead, d, dim, alpha, o, o_row);
    for (; d < dim; d += WIDTH, ahead = none)
        pair_value_tile(1, rows, 2, p, v, from, to, ahead, d, dim, alpha, o, o_row);
}

static void values_of(const decode *x, int rows, const float *p, rows_at v, rows_ahead ahead,
                      const float *alpha, float *o) {
    uint16_t rounded[ROWS * CHUNK];
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = i * CHUNK + x->begin / WIDTH * WIDTH; j < i * CHUNK + x->end; j += WIDTH)
            pairs_store_in_order(rounded + j, v_load(p + j), v_load(p + j + LANES));
    const int64_t dim = x->p->v_dim;
    if (ROWS == 8 && rows == 8)
        pair_value_rows(8, dim, rounded, v, x->from, x->to, ahead, alpha, o, x->o_row);
    else if (rows == 4) pair_value_rows(4, dim, rounded, v, x->from, x->to, ahead, alpha, o, x->o_row);
    else if (rows == 2) pair_value_rows(2, dim, rounded, v, x->from, x->to, ahead, alpha, o, x->o_row);
    else pair_value_rows(1, dim, rounded, v, x->from, x->to, ahead, alpha, o, x->o_row);
}
