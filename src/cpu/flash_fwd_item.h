/* flash_fwd_item.h — what one work item of the flash kernels sees: a sequence, a K/V head, up to PANELS panels of
 * query rows (row r = position r / group, head r % group of that K/V head), and its slice of the workspace. */
enum { PANELS = 8 };                                  /* per item, at most */

typedef struct panel {
    int64_t row;                                      /* first row */
    int64_t rows;                                     /* lanes in use */
    int vecs;                                         /* vectors that they fill */
    int64_t low, high;                                /* keys that some lane sees lie in low .. high - 1 */
    int64_t all_low, all_high;                        /* keys that causal and window let every lane see */
    int64_t *lane_low, *lane_high;                    /* [PANEL], both ascending; lanes not in use repeat the last */
    float *q, *o, *m, *l;                             /* q [qk_dim][PANEL], o [PANEL][o_row], m and l [PANEL] */
} panel;

typedef struct flash {
    const attn_problem *p;
    const attn_tensors *t;
    attn_sequence s;
    int64_t kv_head, group;
    int64_t o_row;                                    /* v_dim rounded up to whole vectors */
    int edited;                                       /* softcap, bias or ALiBi: Q K^T isn't the whole score */
    float q_scale;                                    /* of Q as packed: scores come out in powers of two */
    panel panels[PANELS];
    int64_t count;
    int64_t high;                                     /* keys from here on are seen by no panel */
    int64_t block, from, keys;                        /* current keys: block + from .. block + keys - 1 */
    int v_finite;                                     /* of the current block: -1 not looked at yet */
    const float **k, **v;                             /* [BLOCK] rows of the block in f32 */
    const char **k_next, **v_next;                    /* [BLOCK] where the next block's rows lie, */
    int64_t next_keys;                                /* this many of them */
    float *k_rows, *v_rows;                           /* where rows are converted or gathered to */
    float *scores, *top, *alpha;                      /* [BLOCK + TILE][PANEL], [PANEL], [PANEL] */
} flash;

/* ---- workspace: every slot has the same layout ---- */

typedef struct flash_layout {
    int64_t k, v, k_next, v_next, k_rows, v_rows, scores, top, alpha; /* offsets in bytes */
    int64_t panels, q, o, m, l, lane_low, lane_high;  /* first panel; offsets within a panel */
    int64_t panel_bytes, bytes;
} flash_layout;

static int64_t carve(int64_t *used, int64_t bytes) {
    const int64_t at = *used;
    *used += (bytes + 63) / 64 * 64;
    return at;
}

static int64_t whole_vectors(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

static flash_layout lay_out(const attn_problem *p, int64_t block, int64_t panels, int gathers) {
    flash_layout a = { 0 };
    const int64_t f = sizeof(float);
    a.k = carve(&a.bytes, block * (int64_t)sizeof(float *));
    a.v = carve(&a.bytes, block * (int64_t)sizeof(float *));
    a.k_next = carve(&a.bytes, block * (int64_t)sizeof(char *));
    a.v_next = carve(&a.bytes, block * (int64_t)sizeof(char *));
    a.k_rows = carve(&a.bytes, gathers ? block * whole_vectors(p->qk_dim) * f : 0);
    a.v_rows = carve(&a.bytes, gathers ? block * whole_vectors(p->v_dim) * f : 0);
    a.scores = carve(&a.bytes, (block + TILE) * PANEL * f);
    a.top = carve(&a.bytes, PANEL * f);
    a.alpha = carve(&a.bytes, PANEL * f);
    a.panels = a.bytes;
    a.q = carve(&a.panel_bytes, p->qk_dim * PANEL * f);
    a.o = carve(&a.panel_bytes, PANEL * whole_vectors(p->v_dim) * f);
    a.m = carve(&a.panel_bytes, PANEL * f);
    a.l = carve(&a.panel_bytes, PANEL * f);
    a.lane_low = carve(&a.panel_bytes, PANEL * (int64_t)sizeof(int64_t));
    a.lane_high = carve(&a.panel_bytes, PANEL * (int64_t)sizeof(int64_t));
    a.bytes += panels * a.panel_bytes;
    return a;
}

static void place(flash *f, char *at, const flash_layout *a) {
    f->k = (const float **)(void *)(at + a->k);
    f->v = (const float **)(void *)(at + a->v);
    f->k_next = (const char **)(void *)(at + a->k_next);
    f->v_next = (const char **)(void *)(at + a->v_next);
    f->k_rows = (float *)(void *)(at + a->k_rows);
    f->v_rows = (float *)(void *)(at + a->v_rows);
    f->scores = (float *)(void *)(at + a->scores);
    f->top = (float *)(void *)(at + a->top);
    f->alpha = (float *)(void *)(at + a->alpha);
    for (int64_t i = 0; i < f->count; i++) {
        panel *x = &f->panels[i];
        char *base = at + a->panels + i * a->panel_bytes;
        x->q = (float *)(void *)(base + a->q);
        x->o = (float *)(void *)(base + a->o);
        x->m = (float *)(void *)(base + a->m);
        x->l = (float *)(void *)(base + a->l);
        x->lane_low = (int64_t *)(void *)(base + a->lane_low);
        x->lane_high = (int64_t *)(void *)(base + a->lane_high);
    }
}

/* ---- rows ---- */

static int64_t row_position(const flash *f, int64_t row) { return row / f->group; }
static int64_t row_head(const flash *f, int64_t row) { return f->kv_head * f->group + row % f->group; }

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

static void prefetch_row(const char *row, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) v_prefetch(row + i);
}

/* Keys that causal and window let each lane see. Positions ascend with lanes, so both ends do too. */
static void find_ranges(flash *f, panel *x) {
    for (int64_t lane = 0; lane < PANEL; lane++) {
        const int64_t row = x->row + at_most(lane, x->rows - 1);
        attn_range r = attn_visible(f->p, &f->s, row_position(f, row));
        if (r.high <= r.low) r.low = r.high = at_most(r.low, f->s.kv_len);
        x->lane_low[lane] = r.low;
        x->lane_high[lane] = r.high;
    }
    x->low = x->lane_low[0];
    x->high = x->lane_high[PANEL - 1];
    x->all_low = x->lane_low[PANEL - 1];
    x->all_high = x->lane_high[0];
}

static const char *query_row(const flash *f, int64_t row) {
    const int64_t at = attn_q_offset(&f->s, f->p->q_stride, row_position(f, row), row_head(f, row));
    return (const char *)f->t->q + at * attn_dtype_size(f->p->dtype);
}

/* Transpose the panel's rows of Q into lanes; lanes not in use are 0. */
static void pack_queries(const flash *f, panel *x) {
    const attn_problem *p = f->p;
    const vec scale = v_set(f->q_scale);
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
                     : n < LANES ? v_mul(scale, v_load_part_any(rows[lane + i], p->dtype, d, v_first(n)))
                                 : v_mul(scale, v_load_any(rows[lane + i], p->dtype, d));
            v_transpose(q);
            for (int64_t i = 0; i < n; i++) v_store(x->q + (d + i) * PANEL + lane, q[i]);
        }
}

static void open_panel(flash *f, panel *x) {
    x->vecs = (int)((x->rows + LANES - 1) / LANES);
    find_ranges(f, x);
    pack_queries(f, x);
    for (int64_t i = 0; i < PANEL; i += LANES) {
        v_store(x->m + i, v_set(-INFINITY));
        v_store(x->l + i, v_zero());
    }
    memset(x->o, 0, (size_t)(PANEL * f->o_row) * sizeof(float));
}

/* O and LSE of one row out of the sums. The sink is one more term below the fraction, not of LSE. */
static void close_row(const flash *f, const panel *x, int64_t lane) {
    const attn_problem *p = f->p;
    const int64_t i = row_position(f, x->row + lane), h = row_head(f, x->row + lane);
    const float m = x->m[lane], l = x->l[lane];
    const double natural = m * 0.69314718055994531;   /* scores are powers of two */
    float factor = 0;
    if (l != 0) {
        const float sink = p->has_sinks ? expf((float)(f->t->sinks[h] - natural)) : 0;
        factor = 1 / (l + sink);
    }
    char *o = (char *)f->t->o + attn_q_offset(&f->s, p->o_stride, i, h) * attn_dtype_size(p->o_dtype);
    for (int64_t d = 0; d < p->v_dim; d += LANES) {
        const vec sum = v_load(x->o + lane * f->o_row + d);
        v_store_part_any(o, p->o_dtype, d, v_first(at_most(LANES, p->v_dim - d)),
                         l != 0 ? v_mul(sum, v_set(factor)) : v_zero());
    }
    if (f->t->lse)
        f->t->lse[attn_lse_offset(p, &f->s, i, h)] = l != 0 ? (float)(natural + logf(l)) : -INFINITY;
}

/* ---- rows of K and V ---- */

/* Find keys first .. first + n - 1 in memory. */
static void find_rows(const flash *f, const void *base, attn_stride stride, int64_t first, int64_t n,
                      const char **rows) {
    const attn_problem *p = f->p;
    const int64_t size = attn_dtype_size(p->dtype);
    int64_t j = 0;
    while (j < n) {
        const int64_t key = first + j;
        const char *row = (const char *)base + attn_kv_offset(p, &f->s, stride, key, f->kv_head) * size;
        const int64_t end = f->s.pages ? at_most(n, j + p->page_size - key % p->page_size) : n;
        for (; j < end; j++, row += stride.seq * size) rows[j] = row;
    }
}

static void find_next_block(flash *f, int64_t first, int64_t n) {
    f->next_keys = at_most(n, f->high - first);
    find_rows(f, f->t->k, f->p->k_stride, first, f->next_keys, f->k_next);
    find_rows(f, f->t->v, f->p->v_stride, first, f->next_keys, f->v_next);
}

/* Bring a few rows of the next block nearer while this one is computed. */
static void prefetch_next(const flash *f, int64_t from, int64_t to) {
    const int64_t size = attn_dtype_size(f->p->dtype);
    for (int64_t j = from; j < at_most(to, f->next_keys); j++) {
        prefetch_row(f->k_next[j], f->p->qk_dim * size);
        if (!f->p->v_in_k) prefetch_row(f->v_next[j], f->p->v_dim * size);
    }
}

static void widen_rows(const flash *f, const char *const *rows, int64_t dim, float *to, const float **widened) {
    const int64_t width = whole_vectors(dim);
    for (int64_t j = f->from; j < f->keys; j++) {
        float *row = to + j * width;
        int64_t d = 0;
        for (; d + LANES <= dim; d += LANES) v_store(row + d, v_load_any(rows[j], f->p->dtype, d));
        if (d < dim) v_store(row + d, v_load_part_any(rows[j], f->p->dtype, d, v_first(dim - d)));
        widened[j] = row;
    }
}

/* The next block becomes the current one: f->k and f->v point at its rows in f32. */
static void load_block(flash *f, int64_t n, int gathers) {
    const attn_problem *p = f->p;
    f->keys = f->next_keys;
    f->v_finite = -1;
    if (gathers) {
        widen_rows(f, f->k_next, p->qk_dim, f->k_rows, f->k);
        if (!p->v_in_k) widen_rows(f, f->v_next, p->v_dim, f->v_rows, f->v);
        for (int64_t j = f->from; j < f->keys && p->v_in_k; j++) f->v[j] = f->k[j];
    } else {
        memcpy(f->k, f->k_next, (size_t)f->keys * sizeof *f->k);
        memcpy(f->v, f->v_next, (size_t)f->keys * sizeof *f->v);
    }
    find_next_block(f, f->block + n, n);
}
