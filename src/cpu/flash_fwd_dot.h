/* flash_fwd_dot.h — words of the bf16 flash kernel: a word is two bf16 that are multiplied together.
 * K lies in memory as such; pairs of V rows are zipped block by block, once for all panels of an
 * item; P is rounded to bf16. */
#define FLASH_DTYPES ATTN_DTYPE_BIT(ATTN_BF16)
#define FLASH_SUMMARY "tiles of queries in lanes, products of bf16 pairs (vdpbf16ps), online softmax"

/* An odd row would end in half a word. */
static int flash_gathers(const attn_problem *p) { return p->qk_dim % 2 ? GATHER_K | GATHER_V : GATHER_V; }

/* Transpose the panel's rows of Q, two elements at a time; lanes not in use are 0. */
static void pack_queries(const flash *f, panel *x) {
    const int64_t dim = f->p->qk_dim;
    const char *rows[PANEL];
    for (int64_t lane = 0; lane < x->rows; lane++) {
        rows[lane] = query_row(f, x->row + lane);
        prefetch_row(rows[lane], dim * 2);
    }
    for (int64_t lane = 0; lane < PANEL; lane += LANES)
        for (int64_t d = 0; d < dim; d += 2 * LANES) {
            const int64_t n = at_most(2 * LANES, dim - d);
            vec q[LANES];                             /* bits only: 16 words each */
            for (int64_t i = 0; i < LANES; i++)
                q[i] = lane + i < x->rows ? pairs_bits((const uint16_t *)(const void *)rows[lane + i] + d, n)
                                          : v_zero();
            v_transpose(q);
            for (int64_t i = 0; 2 * i < n; i++) pairs_store_bits(x->q + (d / 2 + i) * PANEL + lane, q[i]);
        }
}

static void load_block(flash *f, int64_t n, int gathers) {
    const attn_problem *p = f->p;
    const int64_t v_row = whole_vectors(p->v_dim);
    const char *const *v = p->v_in_k ? f->k_next : f->v_next;
    f->keys = f->next_keys;
    f->v_finite = -1;
    for (int64_t j = f->from; j < f->keys; j++) {
        f->k[j] = f->k_next[j];
        if (gathers & GATHER_K) {
            uint16_t *row = (uint16_t *)(f->k_rows + j * k_words(p));
            memcpy(row, f->k_next[j], (size_t)p->qk_dim * 2);
            row[p->qk_dim] = 0;
            f->k[j] = row;
        }
    }
    for (int64_t j = f->from; j < f->keys; j += 2) {
        word *to = f->v_rows + j / 2 * v_row;
        const uint16_t *lower = (const uint16_t *)(const void *)v[j];
        const uint16_t *upper = j + 1 < f->keys ? (const uint16_t *)(const void *)v[j + 1] : NULL;
        for (int64_t d = 0; d < p->v_dim; d += 32)
            pairs_store_zipped(to + d, lower + d, upper ? upper + d : NULL, p->v_dim - d);
        f->v[j / 2] = to;
    }
    find_next_block(f, f->block + n, n);
}

/* One vector of lanes, n keys: w = 2^(c s - base) rounded to bf16, and the sum before rounding. */
SIMD_INLINE vec weigh(const int careful, const float *s, word *w, int64_t n, vec c, vec base) {
    const exp2_constants k = v_exp2_constants();
    vec sum0 = v_zero(), sum1 = v_zero();
    int64_t j = 0;
    for (; j + 2 <= n; j += 2) {
        const vec p0 = v_exp2_with(k, score_below(careful, c, v_load(s + j * PANEL), base));
        const vec p1 = v_exp2_with(k, score_below(careful, c, v_load(s + (j + 1) * PANEL), base));
        pairs_store_rounded(w + j / 2 * PANEL, p0, p1);
        sum0 = v_add(sum0, p0);
        sum1 = v_add(sum1, p1);
    }
    if (j < n) {
        const vec p0 = v_exp2_with(k, score_below(careful, c, v_load(s + j * PANEL), base));
        pairs_store_rounded(w + j / 2 * PANEL, p0, v_zero());
        sum0 = v_add(sum0, p0);
    }
    return v_add(sum0, sum1);
}

/* ---- P V past NaN and infinities of masked keys ---- */

static int block_is_finite(flash *f) {
    if (f->v_finite >= 0) return f->v_finite;
    const int64_t v_row = whole_vectors(f->p->v_dim);
    int found = 0;
    for (int64_t j = f->from; j < f->keys; j += 2)
        for (int64_t d = 0; d < v_row; d += LANES) found |= pairs_any_nonfinite(pairs_load(f->v[j / 2] + d));
    return f->v_finite = !found;
}

static float half_of(word w, int64_t j) { return attn_bf16_to_f32((uint16_t)(j % 2 ? w >> 16 : w)); }

/* P V in f32 over the keys that each row sees and no others. */
static void values_exact(const flash *f, const panel *x, int64_t first, int64_t last) {
    for (int64_t lane = 0; lane < x->rows; lane++) {
        float *o = x->o + lane * f->o_row;
        for (int64_t d = 0; d < f->p->v_dim; d++) o[d] *= f->alpha[lane];
        for (int64_t j = first; j < last; j++) {
            if (!lane_sees(f, x, lane, j)) continue;
            const float p = half_of(f->weights[j / 2 * PANEL + lane], j);
            for (int64_t d = 0; d < f->p->v_dim; d++) o[d] += p * half_of(f->v[j / 2][d], j);
        }
    }
}
