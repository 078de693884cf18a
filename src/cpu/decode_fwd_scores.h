/* decode_fwd_scores.h — what happens to up to ROWS rows of scores of a chunk between Q K^T and P V:
 * scale, softcap, bias, ALiBi, masks, softmax; and P V where a masked key's V is not finite. A masked
 * score is -inf, whatever it was. */

/* Scale, softcap, ALiBi: scores become natural logarithms. */
static void edit_row(const decode *x, float *s, int64_t head, int64_t row) {
    const attn_problem *p = x->p;
    const vec scale = v_set(p->scale), cap = v_set(p->softcap), inverse = v_set(1 / p->softcap);
    const vec slope = v_set(p->alibi ? attn_slope(p, x->t, x->s.b, row_head(x, head, row)) : 0);
    const float here = (float)(row_position(x, row) + x->s.shift - x->chunk);
    for (int64_t j = x->begin; j < x->end; j += LANES) {
        vec a = v_mul(scale, v_load(s + j));
        if (p->softcap > 0) a = v_mul(cap, v_tanh(v_mul(a, inverse)));
        if (p->alibi) {
            const vec distance = v_sub(v_set(here - (float)j), v_iota());
            a = v_sub(a, v_mul(slope, v_abs(distance)));
        }
        v_store(s + j, a);
    }
}

/* @return whether a key of from .. to - 1 is masked; the same below. */
static int add_bias(const decode *x, float *s, int64_t head, int64_t row) {
    const attn_problem *p = x->p;
    const int64_t at = attn_score_offset(&x->s, p->bias_stride, row_head(x, head, row),
                                         row_position(x, row), x->chunk);
    int masked = 0;
    for (int64_t j = x->from; j < x->to; j++) {
        const float bias = attn_load(x->t->bias, p->bias_dtype, at + j * p->bias_stride.kv);
        const int hides = bias == -INFINITY;
        s[j] = hides ? -INFINITY : s[j] + bias;
        masked |= hides;
    }
    return masked;
}

static int apply_mask(const decode *x, float *s, int64_t head, int64_t row) {
    const attn_problem *p = x->p;
    const uint8_t *mask = x->t->mask + attn_score_offset(&x->s, p->mask_stride, row_head(x, head, row),
                                                         row_position(x, row), x->chunk);
    int masked = 0;
    for (int64_t j = x->from; j < x->to; j++) {
        const int hides = !mask[j * p->mask_stride.kv];
        if (hides) s[j] = -INFINITY;
        masked |= hides;
    }
    return masked;
}

/* -inf outside the row's range, also on the lanes of begin .. end - 1 before `from` and from `to` on. */
static int cut_range(const decode *x, float *s, int64_t row) {
    const int64_t low = at_least(x->from, at_most(CHUNK, x->row_low[row] - x->chunk));
    const int64_t high = at_most(x->to, at_least(0, x->row_high[row] - x->chunk));
    if (low <= x->begin && high >= x->end) return 0;
    const vec from = v_set((float)low), to = v_set((float)high), none = v_set(-INFINITY);
    for (int64_t j = x->begin; j < x->end; j += LANES) {
        const vec here = v_add(v_set((float)j), v_iota());
        v_store(s + j, v_select(v_within(from, here, to), v_load(s + j), none));
    }
    return low > x->from || high < x->to;
}

/* Everything that the problem does to a row of scores. The ends of the last chunk are always cut. */
static int mask_row(const decode *x, float *s, int64_t head, int64_t row) {
    int masked = 0;
    if (x->edited) edit_row(x, s, head, row);
    if (x->p->bias_dtype) masked |= add_bias(x, s, head, row);
    if (x->p->has_mask) masked |= apply_mask(x, s, head, row);
    return cut_range(x, s, row) | masked;
}

static float top_score(const decode *x, const float *s) {
    vec top = v_load(s + x->begin);
    for (int64_t j = x->begin + LANES; j < x->end; j += LANES) top = v_max(top, v_load(s + j));
    return v_top(top);
}

/* Scores become p = 2^(c (s - m)); m and l move on, alpha is what older sums shrink by. Differences first:
 * exact 1 for the top score, and the error grows with s - m instead of s. A NaN may slip through the
 * maximum, but not through l. */
static void softmax_rows(const decode *x, const int rows, float *s, float *m, float *l, float *alpha) {
    float base[LANES] = { 0 }, shift[LANES] = { 0 };
    for (int i = 0; i < rows; i++) {
        const float old = m[i], top = top_score(x, s + i * CHUNK), now = old > top ? old : top;
        base[i] = now == -INFINITY ? 0 : now;         /* no visible key so far */
        shift[i] = old - base[i];
        m[i] = now;
    }
    v_store(shift, v_exp2(v_mul(v_set(x->c), v_load(shift))));
    for (int i = 0; i < rows; i++) {
        const vec top = v_set(base[i]), c = v_set(x->c);
        vec sum = v_zero();
        SIMD_UNROLL_BY(2)
        for (int64_t j = x->begin; j < x->end; j += LANES) {
            const vec p = v_exp2(v_mul(c, v_sub(v_load(s + i * CHUNK + j), top)));
            v_store(s + i * CHUNK + j, p);
            sum = v_add(sum, p);
        }
        alpha[i] = shift[i];
        l[i] = alpha[i] * l[i] + v_sum(sum);
    }
}

/* ---- P V past NaN and infinities of masked keys ---- */

/* Is V of this head finite on all keys of the chunk? x 0 is NaN where x is not. */
static int chunk_is_finite(decode *x, rows_at v) {
    if (x->finite >= 0) return x->finite;
    const attn_dtype dtype = x->p->dtype;
    vec sum = v_zero();
    for (int64_t j = x->from; j < x->to; j++) {
        const char *row = v.row[j] + v.at;
        for (int64_t d = 0; d < x->p->v_dim; d += LANES)
            sum = v_fma(v_load_part_any(row, dtype, d, v_first(at_most(LANES, x->p->v_dim - d))),
                        v_zero(), sum);
    }
    return x->finite = !v_any_nan(sum);
}

static int row_sees(const decode *x, int64_t head, int64_t row, int64_t j) {
    const attn_problem *p = x->p;
    const int64_t key = x->chunk + j, i = row_position(x, row), h = row_head(x, head, row);
    if (key < x->row_low[row] || key >= x->row_high[row]) return 0;
    if (p->has_mask && !x->t->mask[attn_score_offset(&x->s, p->mask_stride, h, i, key)]) return 0;
    return !p->bias_dtype ||
           attn_load(x->t->bias, p->bias_dtype,
                     attn_score_offset(&x->s, p->bias_stride, h, i, key)) != -INFINITY;
}

/* The rows of V for one query row, zeros in the place of keys that it doesn't see. */
static void visible_values(const decode *x, int64_t head, int64_t row, rows_at v, const char **rows) {
    static const float zeros[1024 + LANES];
    for (int64_t j = x->from; j < x->to; j++)
        rows[j] = row_sees(x, head, row, j) ? v.row[j] + v.at : (const char *)zeros;
}
