/* flash_fwd_body.h — tiled attention with an online softmax, queries in lanes; included once per
 * instruction set. An item walks its keys block by block: scores of a panel, masks at the edges, softmax,
 * O += P V. Blocks start at multiples of BLOCK whatever the item, so that a row's bits depend on nothing
 * but the row and its keys. */
#include "flash_fwd_tiles.h"
#include "flash_fwd_item.h"
#include "flash_fwd_masks.h"

/* Tuned on a Zen 4 core (32 KiB L1, 1 MiB L2); bench/notes/cpu-prefill.md has the measurements. */
enum {
    BLOCK = KEYS > 1 ? 144 : 96,                      /* keys: scores and a block of V stay near L1 */
    ITEM_ROWS = LANES < 16 ? 128 : 256,               /* rows that share a block of K and V in L2 */
    FAR_ROW = 2048                                    /* bytes from row to row that make rows collide in L1 */
};
enum { ITEM_PANELS, ITEMS_PER_HEAD, GATHERS };        /* schedule[] */

#if defined(SIMD_DOT)
#include "flash_fwd_dot.h"
#else
#include "flash_fwd_f32.h"
#endif

typedef struct { const attn_plan *plan; const attn_tensors *t; char *workspace; } flash_job;

/* ---- one panel, one block ---- */

/* Vectors of lanes that see any of keys from .. to - 1: low .. high - 1. */
static attn_range seeing_vectors(const panel *x, int64_t from, int64_t to) {
    attn_range r = { 0, x->vecs };
    while (r.low < r.high && x->lane_high[r.low * LANES + LANES - 1] <= from) r.low++;
    while (r.low < r.high && x->lane_low[(r.high - 1) * LANES] >= to) r.high--;
    return r;
}

static void fill_unseen(const flash *f, int64_t j, int64_t from, int64_t to) {
    for (int64_t r = j; r < j + TILE; r++)
        for (int64_t c = from; c < to; c++) v_store(f->scores + r * PANEL + c * LANES, v_set(-INFINITY));
}

static void panel_scores(const flash *f, const panel *x, int64_t first, int64_t last, int edge) {
    const int prefetches = x == &f->panels[f->count - 1];
    const void *rows[TILE];
    for (int64_t c = 0; c < PANEL; c += LANES) v_store(f->top + c, v_set(-INFINITY));
    for (int64_t j = first; j < last; j += TILE) {
        const void *const *k = f->k + j;
        if (prefetches) prefetch_next(f, j, j + TILE);
        if (j + TILE > last) {   /* repeat the last key; its copies are never looked at */
            for (int r = 0; r < TILE; r++) rows[r] = f->k[at_most(j + r, last - 1)];
            k = rows;
        }
        attn_range c = { 0, x->vecs };
        if (edge) {
            c = seeing_vectors(x, f->block + j, f->block + at_most(j + TILE, last));
            fill_unseen(f, j, 0, c.low);
            fill_unseen(f, j, c.high, x->vecs);
            if (c.low >= c.high) continue;
        }
        score_tile_any((int)(c.high - c.low), q_words(f->p), x->q + c.low * LANES, k,
                       f->scores + j * PANEL + c.low * LANES, f->top + c.low * LANES);
    }
}

/* O += P V for rows q .. q + TILE - 1 over words first .. last - 1 of the block. */
static void value_rows(const flash *f, const panel *x, int64_t q, int64_t first, int64_t last) {
    const int64_t rows = at_most(TILE, x->rows - q), n = last - first;
    const int64_t whole = f->p->v_dim / (VECS * LANES) * (VECS * LANES), rest = f->p->v_dim - whole;
    float *o = x->o + q * f->o_row;
    const word *p = f->weights + first * PANEL + q;
    for (int64_t d = 0; d < whole; d += VECS * LANES)
        value_tile_full(rows, n, p, f->v + first, d, f->alpha + q, o + d, f->o_row);
    if (!rest) return;
    const int vecs = (int)((rest + LANES - 1) / LANES);
    value_tile_last(vecs, v_first(rest - (vecs - 1) * LANES), rows, n, p, f->v + first, whole, f->alpha + q,
                    o + whole, f->o_row);
}

static void panel_values(const flash *f, const panel *x, int64_t first, int64_t last) {
    for (int64_t q = 0; q < x->rows; q += TILE) {
        const int64_t end = at_most(q + TILE, x->rows) - 1;
        const int64_t from = at_least(first, x->lane_low[q] - f->block);
        const int64_t to = at_most(last, x->lane_high[end] - f->block);
        if (from < to) value_rows(f, x, q, from / KEYS, (to + KEYS - 1) / KEYS);
    }
}

/* One vector of lanes: scores become weights 2^(c s - m), m and l move on,
 * alpha is what older sums shrink by. */
static void softmax_lanes(const float *s, word *w, int64_t n, float scale, const float *top, float *m,
                          float *l, float *alpha) {
    const vec c = v_set(scale), old = v_load(m), now = v_max(old, v_mul(c, v_load(top)));
    const vec base = v_select(v_equal(now, v_set(-INFINITY)), v_zero(), now);      /* no visible key so far */
    const vec keep = v_exp2(v_sub(old, base));
    const vec sum = v_all_less(v_abs(base), v_set(0x1p20f)) ? weigh(0, s, w, n, c, base)
                                                            : weigh(1, s, w, n, c, base);
    v_store(m, now);
    v_store(l, v_add(v_mul(keep, v_load(l)), sum));
    v_store(alpha, keep);
}

static void panel_softmax(const flash *f, const panel *x, int64_t first, int64_t last) {
    for (int64_t i = 0; i < x->vecs * LANES; i += LANES)
        softmax_lanes(f->scores + first * PANEL + i, f->weights + first / KEYS * PANEL + i, last - first,
                      f->edited ? 1 : f->c, f->top + i, x->m + i, x->l + i, f->alpha + i);
}

static void panel_block(flash *f, panel *x) {
    const attn_problem *p = f->p;
    /* even: softmax sums go by parity */
    const int64_t first = at_least(x->low - f->block, 0) & ~(int64_t)1;
    const int64_t last = at_most(x->high - f->block, f->keys);
    if (first >= last) return;
    const int edge = f->block + first < x->all_low || f->block + last > x->all_high;
    const int masked = edge || p->has_mask || p->bias_dtype;
    panel_scores(f, x, first, last, edge);
    if (f->edited) edit_scores(f, x, first, last);
    if (p->bias_dtype) add_bias(f, x, first, last);
    if (p->has_mask) apply_mask(f, x, first, last);
    if (masked || f->edited) cut_ranges(f, x, first, last);
    panel_softmax(f, x, first, last);
    if (masked && !block_is_finite(f)) values_exact(f, x, first, last);
    else panel_values(f, x, first, last);
}

/* ---- one item ---- */

static void flash_item(void *arg, int64_t index, int slot) {
    const flash_job *job = arg;
    const int64_t *schedule = job->plan->schedule, per_head = schedule[ITEMS_PER_HEAD];
    const attn_problem *p = &job->plan->problem;
    /* causal: longest first */
    const int64_t head = index / per_head, part = per_head - 1 - index % per_head;
    flash f = { .p = p, .t = job->t, .s = attn_sequence_at(p, job->t, head / p->kv_heads) };
    f.kv_head = head % p->kv_heads;
    f.group = p->q_heads / p->kv_heads;
    const int64_t rows = f.s.q_len * f.group, row = part * schedule[ITEM_PANELS] * PANEL;
    if (row >= rows) return;
    f.o_row = whole_vectors(p->v_dim);
    f.edited = p->softcap > 0 || p->bias_dtype || p->alibi || p->scale < 0;   /* < 0: the top is the bottom */
    f.c = (float)(1.4426950408889634 * p->scale);
    f.count = at_most(schedule[ITEM_PANELS], (rows - row + PANEL - 1) / PANEL);
    const flash_layout layout = lay_out(p, BLOCK, schedule[ITEM_PANELS], (int)schedule[GATHERS]);
    place(&f, job->workspace + slot * layout.bytes, &layout);
    int64_t low = INT64_MAX;
    for (int64_t i = 0; i < f.count; i++) {
        panel *x = &f.panels[i];
        x->row = row + i * PANEL;
        x->rows = at_most(PANEL, rows - x->row);
        open_panel(&f, x);
        low = at_most(low, x->low);
        f.high = at_least(f.high, x->high);
    }
    f.block = low / BLOCK * BLOCK;
    f.from = (low - f.block) & ~(int64_t)1;
    if (f.block < f.high) find_next_block(&f, f.block, BLOCK);
    for (; f.block < f.high; f.block += BLOCK, f.from = 0) {
        load_block(&f, BLOCK, (int)schedule[GATHERS]);
        if (f.block + f.keys >= f.high) prefetch_outputs(&f);
        for (int64_t i = 0; i < f.count; i++) panel_block(&f, &f.panels[i]);
    }
    for (int64_t i = 0; i < f.count; i++)
        for (int64_t lane = 0; lane < f.panels[i].rows; lane++) close_row(&f, &f.panels[i], lane);
}

/* ---- the record ---- */

static attn_status flash_prepare(attn_plan *plan) {
    const attn_problem *p = &plan->problem;
    const int64_t group = p->q_heads / p->kv_heads, gathers = flash_gathers(p);
    int64_t rows, items, heads;
    if (!attn_multiply(group, p->q_len, &rows) || rows > INT64_MAX - PANELS * PANEL)
        return attn_fail(ATTN_INVALID, "q_len = %lld: times heads per K/V head overflows",
                         (long long)p->q_len);
    int64_t panels = at_least(at_most(ITEM_ROWS / PANEL, (rows + PANEL - 1) / PANEL), 1), per_head;
    for (;; panels /= 2) {   /* enough items for all threads; a row's bits stay the same */
        per_head = (rows + panels * PANEL - 1) / (panels * PANEL);
        if (!attn_multiply(p->batch, p->kv_heads, &heads) || !attn_multiply(heads, per_head, &items))
            return attn_fail(ATTN_INVALID, "batch = %lld: too many work items", (long long)p->batch);
        if (panels == 1 || plan->threads == 1 || items >= 4 * (int64_t)plan->threads) break;
    }
    plan->schedule[ITEM_PANELS] = panels;
    plan->schedule[ITEMS_PER_HEAD] = per_head;
    plan->schedule[GATHERS] = gathers;
    plan->workspace = lay_out(p, BLOCK, panels, (int)gathers).bytes * plan->threads;
    return ATTN_OK;
}

static attn_status flash_run(const attn_plan *plan, const attn_tensors *t, void *workspace, void *stream) {
    (void)stream;
    const attn_problem *p = &plan->problem;
    flash_job job = { plan, t, workspace };
    attn_parallel(plan, p->batch * p->kv_heads * plan->schedule[ITEMS_PER_HEAD], flash_item, &job);
    return ATTN_OK;
}
SIMD_END

const attn_kernel SIMD_NAME(attn_flash_fwd) = {
    .name = "flash_fwd_" SIMD_STRING, .summary = FLASH_SUMMARY,
    .pass = ATTN_FORWARD, .device = ATTN_CPU, .isa = SIMD_ISA, .dtypes = FLASH_DTYPES,
    .features = ATTN_NEEDS_ALL, .prepare = flash_prepare, .run = flash_run,
};
