/* row_kernel.h — a correct kernel, one query at a time over tiles of 16 keys, with a switch for every bug of
 * mutants.def. BUG(name) is true in the mutant of that name only; without one the kernel is right and must
 * pass. */
#ifndef MUTANTS_ROW_KERNEL_H
#define MUTANTS_ROW_KERNEL_H
#include "check.h"
#include "half.h"
#include "sequence.h"
#include <math.h>
#include <string.h>

typedef enum mutant {
    MUTANT_none,
#define MUTANT(name, description) MUTANT_##name,
#include "mutants.def"
#undef MUTANT
    MUTANTS
} mutant;

static const struct { const char *name, *description; } mutant_table[MUTANTS] = {
    { "none", "the kernel without a bug" },
#define MUTANT(name, description) { #name, description },
#include "mutants.def"
#undef MUTANT
};

enum { TILE = 16 };

typedef struct row_kernel {
    mutant       bug;
    attn_problem problem;
    int          calls;
} row_kernel;

typedef struct row {
    const row_kernel   *kernel;
    const attn_problem *p;
    const attn_tensors *t;
    attn_sequence       s;
    int64_t             i, h, kv_head;
    float              *o;          /* workspace, [v_dim] */
    float               m, l;
} row;

#define BUG(name) (kernel->bug == MUTANT_##name)

/* ---- where and which ---- */

static int64_t key_place(const row *r, attn_stride stride, int64_t j, int is_k) {
    const row_kernel *kernel = r->kernel;
    const attn_problem *p = r->p;
    attn_sequence s = r->s;
    if (BUG(batch_index_ignored) && p->has_kv_batch_index) s.kv_batch = s.b;
    if (BUG(leftpad_ignored) && p->has_leftpad_kv) s.kv_first = 0;
    if (BUG(v_by_k_strides) && !is_k) stride = p->k_stride;
    if (BUG(strides_swapped) && is_k) stride = (attn_stride){ stride.batch, stride.head, stride.seq };
    if (BUG(dense_batch) && is_k && !s.pages) stride.batch = p->kv_len * p->kv_heads * p->qk_dim;
    if (s.pages) {
        const int64_t slot = j % p->page_size * stride.seq + r->kv_head * stride.head;
        if (BUG(page_stride)) return s.pages[j / p->page_size] * p->page_size * p->kv_heads *
                                     (is_k ? p->qk_dim : p->v_dim) + slot;
        if (BUG(page_entry_of_key)) return s.pages[j] * stride.batch + slot;
        if (BUG(page_slot_wrong)) return (s.pages[0] + j / p->page_size) * stride.batch + slot;
    }
    return attn_kv_offset(p, &s, stride, j, r->kv_head);
}

static attn_range row_range(const row *r) {
    const row_kernel *kernel = r->kernel;
    attn_problem p = *r->p;
    attn_sequence s = r->s;
    if (BUG(causal_ignored)) p.causal = 0;
    if (BUG(top_left)) s.shift = 0;
    if (BUG(seqused_ignored) && p.has_seqused_kv) s.kv_len = p.kv_len;
    if (BUG(window_left_short) && p.window_left > 0) p.window_left--;
    if (BUG(window_right_long) && p.window_right >= 0) p.window_right++;
    attn_range range = attn_visible(&p, &s, r->i);
    if (BUG(causal_off_by_one) && p.causal && range.high == r->i + s.shift + 1 && range.high > range.low)
        range.high--;
    if (BUG(drop_last_key) && range.high > range.low) range.high--;
    if (BUG(drop_first_key) && range.high > range.low + 1) range.low++;
    if (BUG(extra_key) && range.high < s.kv_len && range.high > range.low) range.high++;
    if (BUG(tile_tail_dropped) && range.high - range.low > TILE)
        range.high -= (range.high - range.low) % TILE;
    return range;
}

static float bias_at(const row *r, int64_t j) {
    const row_kernel *kernel = r->kernel;
    const attn_problem *p = r->p;
    const int64_t i = BUG(bias_row_reused) ? 0 : r->i;
    return p->bias_dtype
               ? attn_load(r->t->bias, p->bias_dtype, attn_score_offset(&r->s, p->bias_stride, r->h, i, j))
               : 0;
}

static int is_masked(const row *r, int64_t j) {
    const row_kernel *kernel = r->kernel;
    const attn_problem *p = r->p;
    if (p->has_mask) {
        const int64_t h = BUG(mask_head_stride_ignored) ? 0 : r->h;
        const uint8_t byte = r->t->mask[attn_score_offset(&r->s, p->mask_stride, h, r->i, j)];
        if (BUG(mask_byte_must_be_one) ? byte != 1 : !byte) return 1;
    }
    return !BUG(bias_inf_is_a_score) && bias_at(r, j) == -INFINITY;
}

/* ---- scores ---- */

static float row_scale(const row_kernel *kernel, const attn_problem *p) {
    const float usual = 1 / sqrtf((float)p->qk_dim);
    if (BUG(scale_off)) return p->scale * 1.001f;
    if (BUG(scale_ignored)) return usual;
    if (BUG(scale_of_v_dim) && p->scale == usual) return 1 / sqrtf((float)p->v_dim);
    return p->scale;
}

static float row_score(const row *r, int64_t j) {
    const row_kernel *kernel = r->kernel;
    const attn_problem *p = r->p;
    const int64_t q = attn_q_offset(&r->s, p->q_stride, r->i, r->h), k = key_place(r, p->k_stride, j, 1);
    const int64_t dims = BUG(last_dim_dropped) && p->qk_dim > 1 ? p->qk_dim / 2 * 2 : p->qk_dim;
    float x = 0;
    for (int64_t d = 0; d < dims; d++)
        x += attn_load(r->t->q, p->dtype, q + d) * attn_load(r->t->k, p->dtype, k + d);
    x *= row_scale(kernel, p);
    if (BUG(softcap_after_bias)) x += bias_at(r, j);
    if (p->softcap > 0) x = (BUG(softcap_missing_factor) ? 1 : p->softcap) * tanhf(x / p->softcap);
    if (!BUG(softcap_after_bias)) x += bias_at(r, j);
    if (p->alibi) {
        const float distance = (float)(r->i + r->s.shift - j);
        const float slope = attn_slope(p, r->t, BUG(alibi_batch_ignored) ? 0 : r->s.b, r->h);
        x -= slope * (BUG(alibi_sign)              ? -fabsf(distance)
                      : BUG(alibi_signed_distance) ? -distance
                                                   : fabsf(distance));
    }
    return x;
}

/* ---- online softmax ---- */

static float row_exp(const row_kernel *kernel, float x) {
    if (BUG(exp_inexact)) return expf(x * (1 + 1e-5f));
    if (BUG(exp_clamped)) return x < -10 ? 0 : expf(x);
    return expf(x);
}

/* Through the storage type and back. */
static float stored(attn_dtype dtype, float x) {
    float word = 0;
    attn_store(&word, dtype, 0, x);
    return attn_load(&word, dtype, 0);
}

static void scale_o(row *r, float factor) {
    for (int64_t d = 0; d < r->p->v_dim; d++) r->o[d] *= factor;
}

static void add_key(row *r, int64_t j, float weight) {
    const row_kernel *kernel = r->kernel;
    const attn_problem *p = r->p;
    const int64_t v = key_place(r, p->v_stride, j, 0);
    for (int64_t d = 0; d < p->v_dim; d++) r->o[d] += weight * attn_load(r->t->v, p->dtype, v + d);
    if (BUG(o_in_storage_type))
        for (int64_t d = 0; d < p->v_dim; d++) r->o[d] = stored(p->dtype, r->o[d]);
}

static void row_tile(row *r, int64_t first, int64_t end) {
    const row_kernel *kernel = r->kernel;
    const float lowest = BUG(finite_minus_infinity) ? -5e3f : -INFINITY;
    float x[TILE], m = r->m;
    for (int64_t j = first; j < end; j++) {
        x[j - first] = is_masked(r, j) ? lowest : row_score(r, j);
        if (BUG(nan_key_ignored) && isnan(x[j - first])) x[j - first] = -INFINITY;
        if (!isnan(m) && !(x[j - first] <= m)) m = x[j - first];       /* a NaN stays */
    }
    if (m == -INFINITY && !BUG(empty_tile_nan)) return;
    const float top = BUG(no_max) ? 0 : m, rescale = BUG(no_max) ? 1 : expf(r->m - m);
    if (!BUG(no_rescale_of_l)) r->l *= rescale;
    if (!BUG(no_rescale_of_o) && !BUG(rescale_after_adding)) scale_o(r, rescale);
    for (int64_t j = first; j < end; j++) {
        if (is_masked(r, j) && !BUG(masked_v_leaks) && !BUG(finite_minus_infinity)) continue;
        const float weight = row_exp(kernel, x[j - first] - top);
        r->l += weight;
        if (BUG(sum_in_storage_type)) r->l = stored(r->p->dtype, r->l);
        add_key(r, j, weight);
    }
    if (BUG(rescale_after_adding)) scale_o(r, rescale);
    r->m = m;
}

/* ---- outputs ---- */

static float row_denominator(const row *r) {
    const row_kernel *kernel = r->kernel;
    if (!r->p->has_sinks || BUG(sink_ignored)) return r->l;
    const float sink = r->t->sinks[r->h] * (BUG(sink_scaled) ? r->p->scale : 1);
    return r->l + expf(sink - (BUG(no_max) ? 0 : r->m));
}

static void store_lse(const row *r) {
    const row_kernel *kernel = r->kernel;
    if (!r->t->lse || BUG(lse_not_written)) return;
    float lse = r->l == 0 ? -INFINITY : (BUG(no_max) ? 0 : r->m) + logf(r->l);
    if (BUG(lse_base_2)) lse /= 0.69314718f;
    if (BUG(lse_without_max)) lse -= r->m;
    if (BUG(lse_with_sink) && r->l != 0) lse = r->m + logf(row_denominator(r));
    if (BUG(empty_row_lse) && r->l == 0) lse = INFINITY;
    r->t->lse[attn_lse_offset(r->p, &r->s, r->i, r->h)] = lse;
}

static void store_o(const row *r) {
    const row_kernel *kernel = r->kernel;
    const attn_problem *p = r->p;
    const int64_t o = attn_q_offset(&r->s, BUG(o_by_q_strides) ? p->q_stride : p->o_stride, r->i, r->h);
    const int64_t dims = BUG(tail_columns_dropped) ? p->v_dim / 8 * 8 : p->v_dim + BUG(one_past_write);
    for (int64_t d = 0; d < dims; d++) {
        float x = r->l == 0 && !BUG(nan_on_empty_rows) ? 0 : r->o[d % p->v_dim] / row_denominator(r);
        if (BUG(nan_output)) x = NAN;
        if (BUG(nan_swallowed) && isnan(x)) x = 0;
        if (BUG(not_repeatable)) x *= 1 + 0x1p-23f * (float)(kernel->calls % 2);
        if (BUG(rounds_down) && p->o_dtype == ATTN_BF16)
            x = attn_bits_to_f32(attn_f32_to_bits(x) & 0xffff0000u);
        attn_store(r->t->o, p->o_dtype, o + d, x);
    }
}

static void run_row(row *r) {
    const row_kernel *kernel = r->kernel;
    const attn_range range = row_range(r);
    r->m = BUG(max_starts_at_zero) ? 0 : -INFINITY;
    r->l = 0;
    if (!BUG(workspace_not_cleared)) memset(r->o, 0, (size_t)r->p->v_dim * sizeof *r->o);
    for (int64_t first = range.low; first < range.high; first += TILE)
        row_tile(r, first, range.high < first + TILE ? range.high : first + TILE);
    if (BUG(empty_row_not_written) && r->l == 0) return;
    store_o(r);
    store_lse(r);
}

/* ---- the candidate ---- */

static attn_status mutant_prepare(check_candidate *c, const attn_problem *problem,
                                  const attn_options *options, size_t *workspace, const char **refusal) {
    row_kernel *kernel = c->state;
    (void)options;
    kernel->problem = *problem;
    *workspace = (size_t)problem->v_dim * sizeof(float);
    *refusal = NULL;
    return ATTN_OK;
}

static void scale_q(const attn_problem *p, const attn_tensors *t, const row *r) {
    const int64_t q = attn_q_offset(&r->s, p->q_stride, r->i, r->h);
    unsigned char *words;
    memcpy(&words, &t->q, sizeof words);
    for (int64_t d = 0; d < p->qk_dim; d++)
        attn_store(words, p->dtype, q + d, attn_load(words, p->dtype, q + d) * p->scale);
}

static attn_status mutant_run(check_candidate *c, const attn_tensors *tensors, void *workspace,
                              void *stream) {
    row_kernel *kernel = c->state;
    const attn_problem *p = &kernel->problem;
    attn_tensors t = *tensors;
    (void)stream;
    kernel->calls++;
    if (p->v_in_k) t.v = t.k;
    if (BUG(no_op)) return ATTN_OK;
    for (int64_t b = 0; b < p->batch; b++) {
        row r = { .kernel = kernel, .p = p, .t = &t, .s = attn_sequence_at(p, &t, b), .o = workspace };
        const int64_t queries = r.s.q_len;
        for (int64_t n = 0; n < r.s.q_rows * p->q_heads; n++) {
            r.i = n / p->q_heads;
            r.h = n % p->q_heads;
            r.kv_head = BUG(gqa_modulo) ? r.h % p->kv_heads : r.h / (p->q_heads / p->kv_heads);
            if (BUG(writes_input)) scale_q(p, &t, &r);
            if (r.i >= queries) r.s.kv_len = 0;        /* past seqused_q: a row that sees no key */
            run_row(&r);
        }
    }
    return ATTN_OK;
}

static void mutant_finish(check_candidate *c) { (void)c; }

static check_candidate mutant_candidate(row_kernel *kernel) {
    return (check_candidate){ mutant_table[kernel->bug].name, mutant_prepare, mutant_run, mutant_finish,
                              kernel };
}
#undef BUG
#endif
