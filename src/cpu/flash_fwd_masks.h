/* flash_fwd_masks.h — everything that can happen to a panel of scores between Q K^T and the softmax,
 * and P V where a masked key's V is not finite. Only blocks that need it come here; a masked score
 * is -inf, whatever it was. */

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

/* Offset of lane's row at the block's first key in the bias or the mask;
 * lanes not in use repeat the last row. */
static int64_t score_row(const flash *f, const panel *x, attn_score_stride stride, int64_t lane) {
    const int64_t row = x->row + at_most(lane, x->rows - 1);
    return attn_score_offset(&f->s, stride, row_head(f, row), row_position(f, row), f->block);
}

/* LANES rows of the bias, keys j .. j + n - 1 of the block, as n vectors of lanes. */
static void load_bias(const flash *f, const int64_t *rows, int64_t j, int64_t n, vec *b) {
    const attn_problem *p = f->p;
    const int64_t step = p->bias_stride.kv;
    for (int i = 0; i < LANES; i++) {
        float line[LANES] = { 0 };
        if (step == 1) {
            b[i] = v_load_part_any(f->t->bias, p->bias_dtype, rows[i] + j, v_first(n));
            continue;
        }
        for (int64_t k = 0; k < n; k++)
            line[k] = attn_load(f->t->bias, p->bias_dtype, rows[i] + (j + k) * step);
        b[i] = v_load(line);
    }
    v_transpose(b);
}

static void add_bias(const flash *f, const panel *x, int64_t first, int64_t last) {
    const vec none = v_set(-INFINITY), unit = v_set(LOG2E);
    for (int64_t lane = 0; lane < x->vecs * LANES; lane += LANES) {
        int64_t rows[LANES];
        for (int i = 0; i < LANES; i++) rows[i] = score_row(f, x, f->p->bias_stride, lane + i);
        for (int64_t j = first; j < last; j += LANES) {
            vec b[LANES];
            const int64_t n = at_most(LANES, last - j);
            load_bias(f, rows, j, n, b);
            for (int64_t i = 0; i < n; i++) {
                float *s = f->scores + (j + i) * PANEL + lane;
                v_store(s, v_select(v_equal(b[i], none), none, v_add(v_load(s), v_mul(unit, b[i]))));
            }
        }
    }
}

/* The same of the mask: 0 where it hides a key. */
static void load_mask(const flash *f, const int64_t *rows, int64_t j, int64_t n, vec *b) {
    const int64_t step = f->p->mask_stride.kv;
    for (int i = 0; i < LANES; i++) {
        const uint8_t *from = f->t->mask + rows[i] + j * step;
        uint8_t line[LANES] = { 0 };
        for (int64_t k = 0; k < n && step != 1; k++) line[k] = from[k * step];
        b[i] = v_load_part_u8(step == 1 ? from : line, v_first(n));
    }
    v_transpose(b);
}

static void apply_mask(const flash *f, const panel *x, int64_t first, int64_t last) {
    const vec none = v_set(-INFINITY);
    for (int64_t lane = 0; lane < x->vecs * LANES; lane += LANES) {
        int64_t rows[LANES];
        for (int i = 0; i < LANES; i++) rows[i] = score_row(f, x, f->p->mask_stride, lane + i);
        for (int64_t j = first; j < last; j += LANES) {
            vec b[LANES];
            const int64_t n = at_most(LANES, last - j);
            load_mask(f, rows, j, n, b);
            for (int64_t i = 0; i < n; i++) {
                float *s = f->scores + (j + i) * PANEL + lane;
                v_store(s, v_select(v_equal(b[i], v_zero()), none, v_load(s)));
            }
        }
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
           attn_load(f->t->bias, p->bias_dtype,
                     attn_score_offset(&f->s, p->bias_stride, h, i, key)) != -INFINITY;
}
