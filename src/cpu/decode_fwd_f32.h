/* decode_fwd_f32.h — decode in f32 arithmetic: K and V are widened as they are read;
 * a word of Q is one number. */
#define DECODE_DTYPES ATTN_DTYPE_BITS_ALL
#define DECODE_SUMMARY "few queries, K and V read once for all heads that share them, f32 arithmetic"

#define WITH_ROWS(f, dtype, dim, ...) \
    do { \
        if (ROWS == 8 && rows == 8) f(dtype, 8, dim, __VA_ARGS__); \
        else if (rows == 4) f(dtype, 4, dim, __VA_ARGS__); \
        else if (rows == 2) f(dtype, 2, dim, __VA_ARGS__); \
        else f(dtype, 1, dim, __VA_ARGS__); \
    } while (0)
#define WITH_DTYPE(f, of, dim, ...) \
    do { \
        if ((of) == ATTN_F32) WITH_ROWS(f, ATTN_F32, dim, __VA_ARGS__); \
        else if ((of) == ATTN_F16) WITH_ROWS(f, ATTN_F16, dim, __VA_ARGS__); \
        else WITH_ROWS(f, ATTN_BF16, dim, __VA_ARGS__); \
    } while (0)

static int64_t query_words(const attn_problem *p) { return round_up(p->qk_dim, LANES); }

/* With the sign of the scale, zeros behind its end. */
static void load_query(const decode *x, int64_t head, int64_t row, float *to) {
    const attn_problem *p = x->p;
    const void *from = query_row(x, head, row);
    for (int64_t d = 0; d < x->q_row; d += LANES) {
        const vmask part = v_first(at_most(LANES, p->qk_dim - d));
        v_store(to + d, v_mul(v_set(x->sign), v_load_part_any(from, p->dtype, d, part)));
    }
}

static void scores_of(const decode *x, int rows, const float *q, rows_at k, rows_ahead ahead) {
    WITH_DTYPE(score_rows, x->p->dtype, x->p->qk_dim, q, x->q_row, k, x->begin, x->end, ahead, x->scores);
}

static void values_of(const decode *x, int rows, const float *p, rows_at v, rows_ahead ahead,
                      const float *alpha, float *o) {
    WITH_DTYPE(value_rows, x->p->dtype, x->p->v_dim, p, v, x->from, x->to, ahead, alpha, o, x->o_row);
}
