/* flash_fwd_f32.h — words of the flash kernels that compute in f32: a word is one number. Rows of f32 are
 * read where they lie; f16 and bf16 become f32 block by block, once for all panels of an item. */
#define FLASH_DTYPES ATTN_DTYPE_BITS_ALL
#define FLASH_SUMMARY "tiles of queries in lanes, f32 arithmetic, online softmax, nothing packed but Q"

static int flash_gathers(const attn_problem *p) {
    const int all = p->v_in_k ? GATHER_K : GATHER_K | GATHER_V;
    if (p->dtype != ATTN_F32) return all;
    /* Narrow panels return to a block so often that it pays to bring far rows together. */
    return LANES < 16 && (p->k_stride.seq >= FAR_ROW / 4 || p->v_stride.seq >= FAR_ROW / 4) ? all : 0;
}

/* Transpose the panel's rows of Q into lanes; lanes not in use are 0. */
static void pack_queries(const flash *f, panel *x) {
    const attn_problem *p = f->p;
    const char *rows[PANEL];
    for (int64_t lane = 0; lane < x->rows; lane++) {
        rows[lane] = query_row(f, x->row + lane);
        prefetch_row(rows[lane], p->qk_dim * attn_dtype_size(p->dtype));
    }
    for (int64_t lane = 0; lane < PANEL; lane += LANES)
        for (int64_t d = 0; d < p->qk_dim; d += LANES) {
            const int64_t n = at_most(LANES, p->qk_dim - d);
            vec q[LANES];
            for (int64_t i = 0; i < LANES; i++)
                q[i] = lane + i >= x->rows ? v_zero()
                     : n < LANES ? v_load_part_any(rows[lane + i], p->dtype, d, v_first(n))
                                 : v_load_any(rows[lane + i], p->dtype, d);
            v_transpose(q);
            for (int64_t i = 0; i < n; i++) v_store(x->q + (d + i) * PANEL + lane, q[i]);
        }
}

static void widen_rows(const flash *f, const char *const *rows, int64_t dim, float *to) {
    const int64_t width = whole_vectors(dim);
    for (int64_t j = f->from; j < f->keys; j++) {
        float *row = to + j * width;
        int64_t d = 0;
        for (; d + LANES <= dim; d += LANES) v_store(row + d, v_load_any(rows[j], f->p->dtype, d));
        if (d < dim) v_store(row + d, v_load_part_any(rows[j], f->p->dtype, d, v_first(dim - d)));
    }
}

/* The next block becomes the current one: f->k and f->v point at its rows in f32. */
static void load_block(flash *f, int64_t n, int gathers) {
    const attn_problem *p = f->p;
    const int64_t k_row = k_words(p), v_row = whole_vectors(p->v_dim);
    f->keys = f->next_keys;
    f->v_finite = -1;
    if (gathers & GATHER_K) widen_rows(f, f->k_next, p->qk_dim, f->k_rows);
    if (gathers & GATHER_V) widen_rows(f, f->v_next, p->v_dim, f->v_rows);
    for (int64_t j = f->from; j < f->keys; j++) {
        f->k[j] = gathers & GATHER_K ? (const void *)(f->k_rows + j * k_row) : f->k_next[j];
        f->v[j] = gathers & GATHER_V ? f->v_rows + j * v_row
                : p->v_in_k ? f->k[j] : (const float *)(const void *)f->v_next[j];
    }
    find_next_block(f, f->block + n, n);
}

/* One vector of lanes, n keys: w = 2^(c s - base), and its sum. */
SIMD_INLINE vec weigh(const int careful, const float *s, word *w, int64_t n, vec c, vec base) {
    const exp2_constants k = v_exp2_constants();
    vec sum0 = v_zero(), sum1 = v_zero();
    int64_t j = 0;
    for (; j + 2 <= n; j += 2) {
        const vec p0 = v_exp2_with(k, score_below(careful, c, v_load(s + j * PANEL), base));
        const vec p1 = v_exp2_with(k, score_below(careful, c, v_load(s + (j + 1) * PANEL), base));
        v_store(w + j * PANEL, p0);
        v_store(w + (j + 1) * PANEL, p1);
        sum0 = v_add(sum0, p0);
        sum1 = v_add(sum1, p1);
    }
    if (j < n) {
        const vec p0 = v_exp2_with(k, score_below(careful, c, v_load(s + j * PANEL), base));
        v_store(w + j * PANEL, p0);
        sum0 = v_add(sum0, p0);
    }
    return v_add(sum0, sum1);
}

/* ---- P V past NaN and infinities of masked keys ---- */

/* Is every V of the block finite? x 0 is NaN where x is not. */
static int block_is_finite(flash *f) {
    if (f->v_finite >= 0) return f->v_finite;
    vec sum = v_zero();
    for (int64_t j = f->from; j < f->keys; j++) {
        const float *row = f->v[j];
        int64_t d = 0;
        for (; d + LANES <= f->p->v_dim; d += LANES) sum = v_fma(v_load(row + d), v_zero(), sum);
        if (d < f->p->v_dim) sum = v_fma(v_load_part(row + d, v_first(f->p->v_dim - d)), v_zero(), sum);
    }
    return f->v_finite = !v_any_nan(sum);
}

/* The same sums as value_tile, in the same order, over the keys that each row sees and no others. */
static void values_exact(const flash *f, const panel *x, int64_t first, int64_t last) {
    for (int64_t lane = 0; lane < x->rows; lane++)
        for (int64_t d = 0; d < f->p->v_dim; d += LANES) {
            const vmask part = v_first(at_most(LANES, f->p->v_dim - d));
            float *o = x->o + lane * f->o_row + d;
            vec sum = v_mul(v_set(f->alpha[lane]), v_load(o));
            for (int64_t j = first; j < last; j++)
                if (lane_sees(f, x, lane, j))
                    sum = v_fma(v_set(f->weights[j * PANEL + lane]), v_load_part(f->v[j] + d, part), sum);
            v_store(o, sum);
        }
}
