/* flash_fwd_masks.h — everything that can happen to a panel of scores between Q K^T and the softmax, and P V where a
 * masked key's V is not finite. Only blocks that need it come here; a masked score is -inf, whatever it was. */

static const float LOG2E = 1.44269504f;

/* Scale, softcap and ALiBi on keys first .. last - 1 of the block; scores then count powers of two. */
static void edit_scores(const flash *f, const panel *x, int64_t first, int64_t last) {
    const attn_problem *p = f->p;
    const vec scale = v_set(f->c), cap = v_set(p->softcap * LOG2E), inverse = v_set(1 / (p->softcap * LOG2E));
    float slope[PANEL], here[PANEL];                  /* here: aligned key, counted from the block's first */
    for (int64_t lane = 0; lane < PANEL && p->alibi; lane++) {
        const int64_t row = x->row + at_most(lane, x->rows - 1);
        slope[lane] = LOG2E * attn_slope(p, f->t, f->s.b, row_head(f, row));
        here[lane] = (float)(row_position(f, row) + f->s.shift - f->block);
    }
    for (int64_t j = first; j < last; j++)
        for (int64_t lane = 0; lane < x->vecs * LANES; lane += LANES) {
            float *s = f->scores + j * PANEL + lane;
            vec a = v_mul(scale, v_load(s));
            if (p->softcap > 0) a = v_mul(cap, v_tanh(v_mul(a, inverse)));
            if (p->alibi)
                a = v_sub(a, v_mul(v_load(slope + lane), v_abs(v_sub(v_load(here + lane), v_set((float)j)))));
            v_store(s, a);
        }
}

static void add_bias(const flash *f, const panel *x, int64_t first, int64_t last) {
    const attn_problem *p = f->p;
    for (int64_t lane = 0; lane < x->rows; lane++) {
        const int64_t row = x->row + lane;
        const int64_t at = attn_score_offset(&f->s, p->bias_stride, row_head(f, row), row_position(f, row), f->block);
        float *s = f->scores + lane;
        for (int64_t j = first; j < last; j++) {
            const float bias = attn_load(f->t->bias, p->bias_dtype, at + j * p->bias_stride.kv);
            s[j * PANEL] = bias == -INFINITY ? -INFINITY : s[j * PANEL] + LOG2E * bias;
        }
    }
}

static void apply_mask(const flash *f, const panel *x, int64_t first, int64_t last) {
    const attn_problem *p = f->p;
    for (int64_t lane = 0; lane < x->rows; lane++) {
        const int64_t row = x->row + lane;
        const uint8_t *mask = f->t->mask + attn_score_offset(&f->s, p->mask_stride, row_head(f, row),
                                                             row_position(f, row), f->block);
        float *s = f->scores + lane;
        for (int64_t j = first; j < last; j++)
            if (!mask[j * p->mask_stride.kv]) s[j * PANEL] = -INFINITY;
    }
}

/* Causal and window, and the maximum of what remains visible. */
static void cut_ranges(const flash *f, const panel *x, int64_t first, int64_t last) {
    for (int64_t lane = 0; lane < x->vecs * LANES; lane += LANES) {
        float low[LANES], high[LANES];
        for (int i = 0; i < LANES; i++) {
            low[i] = (float)at_least(first, at_most(last, x->lane_low[lane + i] - f->block));
            high[i] = (float)at_least(first, at_most(last, x->lane_high[lane + i] - f->block));
        }
        const vec from = v_load(low), to = v_load(high), none = v_set(-INFINITY);
        vec top = none;
        for (int64_t j = first; j < last; j++) {
            float *s = f->scores + j * PANEL + lane;
            const vec a = v_select(v_within(from, v_set((float)j), to), v_load(s), none);
            v_store(s, a);
            top = v_max(top, a);
        }
        v_store(f->top + lane, top);
    }
}

/* For values_exact: does any mask hide key j of the block from this lane? */
static int lane_sees(const flash *f, const panel *x, int64_t lane, int64_t j) {
    const attn_problem *p = f->p;
    const int64_t key = f->block + j;
    if (key < x->lane_low[lane] || key >= x->lane_high[lane]) return 0;
    const int64_t i = row_position(f, x->row + lane), h = row_head(f, x->row + lane);
    if (p->has_mask && !f->t->mask[attn_score_offset(&f->s, p->mask_stride, h, i, key)]) return 0;
    return !p->bias_dtype ||
           attn_load(f->t->bias, p->bias_dtype, attn_score_offset(&f->s, p->bias_stride, h, i, key)) != -INFINITY;
}
