/* flash_fwd_item.h — what one work item of the flash kernels sees: a sequence, a K/V head, up to
 * PANELS panels of query rows (row r = position r / group, head r % group of that K/V head), and
 * its slice of the workspace. */
enum { PANELS = 32 };                                 /* per item, at most */

typedef struct panel {
    int64_t row;                                      /* first row */
    int64_t rows;                                     /* lanes in use */
    int vecs;                                         /* vectors that they fill */
    int64_t low, high;                                /* keys that some lane sees lie in low .. high - 1 */
    int64_t all_low, all_high;                        /* keys that causal and window let every lane see */
    int64_t *lane_low, *lane_high;                    /* [PANEL], both ascending;
                                                         lanes not in use repeat the last */
    word *q;                                          /* [words of a row][PANEL] */
    float *o, *m, *l;                                 /* o [PANEL][o_row], m and l [PANEL] */
} panel;

typedef struct flash {
    const attn_problem *p;
    const attn_tensors *t;
    attn_sequence s;
    int64_t kv_head, group;
    int64_t o_row;                                    /* v_dim rounded up to whole vectors */
    int edited;                                       /* scores change between Q K^T and the softmax */
    float c;                                          /* scale log2(e): the softmax works in powers of two */
    panel panels[PANELS];
    int64_t count;
    int64_t high;                                     /* keys from here on are seen by no panel */
    int64_t block, from, keys;                        /* current keys: block + from .. block + keys - 1 */
    int v_finite;                                     /* of the current block: -1 not looked at yet */
    const void **k;                                   /* [BLOCK] rows of the block, in words */
    const word **v;                                   /* [BLOCK / KEYS] the same of V:
                                                         a word is KEYS keys deep */
    const char **k_next, **v_next;                    /* [BLOCK] where the next block's rows lie, */
    int64_t next_keys;                                /* this many of them */
    word *k_rows, *v_rows;                            /* where rows become words that
                                                         don't lie in memory as such */
    float *scores, *top, *alpha;                      /* [BLOCK + TILE][PANEL], [PANEL], [PANEL] */
    word *weights;                                    /* P, in place of the scores: [BLOCK / KEYS][PANEL] */
} flash;

enum { GATHER_K = 1, GATHER_V = 2 };                  /* schedule: which rows are rewritten as words */

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
static int64_t q_words(const attn_problem *p) { return (p->qk_dim + KEYS - 1) / KEYS; }
static int64_t k_words(const attn_problem *p) { return whole_vectors(q_words(p)); }

static flash_layout lay_out(const attn_problem *p, int64_t block, int64_t panels, int gathers) {
    flash_layout a = { 0 };
    const int64_t f = sizeof(float);
    a.k = carve(&a.bytes, block * (int64_t)sizeof(void *));
    a.v = carve(&a.bytes, block * (int64_t)sizeof(void *));
    a.k_next = carve(&a.bytes, block * (int64_t)sizeof(char *));
    a.v_next = carve(&a.bytes, block * (int64_t)sizeof(char *));
    a.k_rows = carve(&a.bytes, gathers & GATHER_K ? block * k_words(p) * f : 0);
    a.v_rows = carve(&a.bytes, gathers & GATHER_V ? block / KEYS * whole_vectors(p->v_dim) * f : 0);
    a.scores = carve(&a.bytes, (block + TILE) * PANEL * f);
    a.top = carve(&a.bytes, PANEL * f);
    a.alpha = carve(&a.bytes, PANEL * f);
    a.panels = a.bytes;
    a.q = carve(&a.panel_bytes, q_words(p) * PANEL * f);
    a.o = carve(&a.panel_bytes, PANEL * whole_vectors(p->v_dim) * f);
    a.m = carve(&a.panel_bytes, PANEL * f);
    a.l = carve(&a.panel_bytes, PANEL * f);
    a.lane_low = carve(&a.panel_bytes, PANEL * (int64_t)sizeof(int64_t));
    a.lane_high = carve(&a.panel_bytes, PANEL * (int64_t)sizeof(int64_t));
    a.bytes += panels * a.panel_bytes;
    return a;
}

static void place(flash *f, char *at, const flash_layout *a) {
    f->k = (const void **)(void *)(at + a->k);
    f->v = (const word **)(void *)(at + a->v);
    f->k_next = (const char **)(void *)(at + a->k_next);
    f->v_next = (const char **)(void *)(at + a->v_next);
    f->k_rows = (word *)(void *)(at + a->k_rows);
    f->v_rows = (word *)(void *)(at + a->v_rows);
    f->scores = (float *)(void *)(at + a->scores);
    f->weights = (word *)(void *)(at + a->scores);
    f->top = (float *)(void *)(at + a->top);
    f->alpha = (float *)(void *)(at + a->alpha);
    for (int64_t i = 0; i < f->count; i++) {
        panel *x = &f->panels[i];
        char *base = at + a->panels + i * a->panel_bytes;
        x->q = (word *)(void *)(base + a->q);
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
    attn_range r = { 0, 0 };
    for (int64_t lane = 0, last = -1; lane < PANEL; lane++) {
        const int64_t i = row_position(f, x->row + at_most(lane, x->rows - 1));
        if (i != last) r = attn_visible(f->p, &f->s, i);
        if (r.high <= r.low) r.low = r.high = at_most(r.low, f->s.kv_len);
        last = i;
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

static void pack_queries(const flash *f, panel *x);    /* flash_fwd_f32.h or flash_fwd_dot.h */

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

static char *output_row(const flash *f, int64_t row) {
    const int64_t at = attn_q_offset(&f->s, f->p->o_stride, row_position(f, row), row_head(f, row));
    return (char *)f->t->o + at * attn_dtype_size(f->p->o_dtype);
}

static void prefetch_outputs(const flash *f) {
    for (int64_t i = 0; i < f->count; i++)
        for (int64_t lane = 0; lane < f->panels[i].rows; lane++)
            prefetch_row(output_row(f, f->panels[i].row + lane),
                         f->p->v_dim * attn_dtype_size(f->p->o_dtype));
}

/* O and LSE of one row out of the sums. The sink is one more term below the fraction, not of LSE. */
static void close_row(const flash *f, const panel *x, int64_t lane) {
    const attn_problem *p = f->p;
    const int64_t i = row_position(f, x->row + lane), h = row_head(f, x->row + lane);
    const float m = x->m[lane], l = x->l[lane];
    const double natural = m * 0.69314718055994531;   /* m counts powers of two */
    float factor = 0;
    if (l != 0) {
        const float sink = p->has_sinks ? expf((float)(f->t->sinks[h] - natural)) : 0;
        factor = 1 / (l + sink);
    }
    char *o = output_row(f, x->row + lane);
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
