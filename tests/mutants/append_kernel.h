/* append_kernel.h — a correct cache append, one element at a time, with a switch for every bug of
 * append_mutants.def. */
#ifndef MUTANTS_APPEND_KERNEL_H
#define MUTANTS_APPEND_KERNEL_H
#include "check.h"
#include "half.h"

typedef enum mutant {
    MUTANT_none,
#define MUTANT(name, description) MUTANT_##name,
#include "append_mutants.def"
#undef MUTANT
    MUTANTS
} mutant;

static const struct { const char *name, *description; } mutant_table[MUTANTS] = {
    { "none", "the append without a bug" },
#define MUTANT(name, description) { #name, description },
#include "append_mutants.def"
#undef MUTANT
};

typedef struct append_kernel { mutant bug; attn_problem problem; } append_kernel;
#define BUG(name) (kernel->bug == MUTANT_##name)

/* One head's row, its source and target, and where it is turned (position < 0: not). */
typedef struct move {
    const void *from;
    void       *to;
    int64_t     from_at, to_at, dim, position;
} move;

static int64_t clamp_position(const attn_problem *p, int64_t position) {
    return position < 0 ? 0 : position >= p->rotary_rows ? p->rotary_rows - 1 : position;
}

static float cut(const append_kernel *kernel, float x) {
    uint16_t h = 0;
    const attn_dtype dtype = kernel->problem.dtype;
    if (!BUG(rounds_twice) || dtype == ATTN_F32) return x;
    attn_store(&h, dtype, 0, x);
    return attn_load(&h, dtype, 0);
}

static void put(const append_kernel *kernel, const move *m, int64_t d, float x) {
    const attn_dtype dtype = kernel->problem.dtype;
    if (BUG(conversion_cuts) && dtype == ATTN_BF16) {
        ((uint16_t *)m->to)[m->to_at + d] = (uint16_t)(attn_f32_to_bits(x) >> 16);
        return;
    }
    if (BUG(conversion_cuts) && dtype == ATTN_F16) x = attn_bits_to_f32(attn_f32_to_bits(x) & ~0xfffu);
    attn_store(m->to, dtype, m->to_at + d, x);
}

static float quiet(float x) { return x * 1.0f; }

static void copy_element(const append_kernel *kernel, const move *m, int64_t d) {
    const attn_problem *p = &kernel->problem;
    const int64_t from = m->from_at + d, to = m->to_at + d;
    if (p->dtype != p->new_dtype) put(kernel, m, d, attn_load(m->from, p->new_dtype, from));
    else if (BUG(copy_through_f32) && p->dtype != ATTN_F32)
        attn_store(m->to, p->dtype, to, quiet(attn_load(m->from, p->dtype, from)));
    else if (p->dtype == ATTN_F32) ((uint32_t *)m->to)[to] = ((const uint32_t *)m->from)[from];
    else ((uint16_t *)m->to)[to] = ((const uint16_t *)m->from)[from];
}

static void turn_row(const append_kernel *kernel, const attn_tensors *t, const move *m) {
    const attn_problem *p = &kernel->problem;
    const int interleaved = BUG(other_pairing) ? !p->rotary_interleaved : p->rotary_interleaved;
    const int64_t half = p->rotary_dim / 2, first = BUG(first_ignored) ? 0 : p->rotary_first;
    const int64_t row = clamp_position(p, m->position) * p->rotary_stride;
    for (int64_t r = 0; r < half; r++) {
        const int64_t a = first + (interleaved ? 2 * r : r), b = interleaved ? a + 1 : a + half;
        const float x = attn_load(m->from, p->new_dtype, m->from_at + a);
        const float y = attn_load(m->from, p->new_dtype, m->from_at + b);
        const float c = attn_load(t->rotary_cos, p->rotary_dtype, row + r);
        const float s =
            attn_load(t->rotary_sin, p->rotary_dtype, row + r) * (BUG(sign_of_sine) ? -1.0f : 1.0f);
        put(kernel, m, a, cut(kernel, x * c) - cut(kernel, y * s));
        put(kernel, m, b, cut(kernel, x * s) + cut(kernel, y * c));
    }
    for (int64_t d = 0; d < m->dim; d++) {
        if (d >= first && d < first + p->rotary_dim) continue;
        if (BUG(all_columns) && d >= p->rotary_dim)
            put(kernel, m, d, attn_load(m->from, p->new_dtype, m->from_at + d) * 0.5f);
        else copy_element(kernel, m, d);
    }
}

static void move_row(const append_kernel *kernel, const attn_tensors *t, const move *m) {
    const attn_problem *p = &kernel->problem;
    if (m->position >= 0 && p->rotary_dim) turn_row(kernel, t, m);
    else for (int64_t d = 0; d < m->dim; d++) copy_element(kernel, m, d);
    if (BUG(one_column_more)) attn_store(m->to, p->dtype, m->to_at + m->dim, 7);
}

static int64_t count_of(const attn_problem *p, const int32_t *cu, int64_t b, int64_t len) {
    (void)p;
    return cu ? cu[b + 1] - cu[b] : len;
}

/* Element offset of a slot in the cache; -1 where even a mutant would leave it. */
static int64_t slot_place(const append_kernel *kernel, const attn_tensors *t, attn_stride s, int64_t b,
                          int64_t slot, int64_t first) {
    const attn_problem *p = &kernel->problem;
    if (slot < 0 || slot >= p->kv_len) return -1;
    if (!p->page_size) {
        const int64_t row = p->has_kv_batch_index && !BUG(batch_index_ignored) ? t->kv_batch_index[b] : b;
        return row * s.batch + slot * s.seq;
    }
    const int64_t size = BUG(page_size_256) ? 256 : p->page_size, used = BUG(page_row_ignored) ? 0 : b;
    int64_t column = slot / size + BUG(page_too_far);
    if (column >= p->block_table_cols) column = p->block_table_cols - 1;
    int64_t page = t->block_table[used * p->block_table_stride + column];
    if (BUG(next_page)) {
        const int64_t start = first / p->page_size;
        page = t->block_table[b * p->block_table_stride + start] + slot / p->page_size - start;
    }
    if (page < 0 || page >= p->pages) return -1;
    return page * s.batch + slot % p->page_size * s.seq;
}

/* One past the last element of the cache as it is. A wrong append that would write farther away writes here
 * instead: behind the tensor, where the checker looks, and not into memory that is somebody else's. */
static int64_t cache_end(const attn_problem *p, attn_stride s, int64_t dim) {
    const int64_t rows = p->page_size ? p->pages : p->kv_batch,
                  slots = p->page_size ? p->page_size : p->kv_len;
    return (rows - 1) * s.batch + (slots - 1) * s.seq + (p->kv_heads - 1) * s.head + dim;
}

static void append_sequence(const append_kernel *kernel, const attn_tensors *t, int64_t b, int is_v) {
    const attn_problem *p = &kernel->problem;
    const int packed = p->packed_new && !BUG(packed_ignored);
    const attn_stride n = is_v ? p->v_new_stride : p->k_new_stride;
    attn_stride s = is_v && !BUG(v_by_k_strides) ? p->v_stride : p->k_stride;
    const int64_t dim = is_v ? p->v_dim : p->qk_dim, old = p->has_seqused_kv ? t->seqused_kv[b] : 0;
    const int64_t end = cache_end(p, is_v ? p->v_stride : p->k_stride, dim);
    int64_t rows = count_of(p, p->packed_new ? t->cu_seqlens_new : NULL, b, p->new_len);
    int64_t slot = BUG(slot_zero) ? 0 : old + BUG(slot_late) - BUG(slot_early);
    if (BUG(head_stride)) s.head = dim;
    if (BUG(leftpad_added) && p->has_leftpad_kv) slot += t->leftpad_kv[b];
    if (BUG(longest)) rows = p->new_len;
    if (BUG(last_row_dropped)) rows--;
    for (int64_t i = 0; i < rows + BUG(one_row_more); i++) {
        int64_t row = packed ? t->cu_seqlens_new[b] + i : i, batch = packed ? 0 : b;
        if (BUG(packed_ignored) && p->packed_new) row = b * p->new_len + i, batch = 0;
        if (p->packed_new && row >= p->new_total) row = p->new_total - 1;
        const int64_t place = slot_place(kernel, t, s, b, slot + i, slot);
        int64_t position = BUG(position_of_row) ? i : old + i + BUG(position_late);
        if (p->rotary_dim && p->has_rotary_offsets && !BUG(offsets_ignored)) position += t->rotary_offsets[b];
        if ((is_v && !(BUG(rotates_v) && p->rotary_first + p->rotary_dim <= dim)) || BUG(rotary_ignored))
            position = -1;
        for (int64_t h = 0; place >= 0 && h < p->kv_heads; h++) {
            const int64_t to_at = place + h * s.head;
            const move m = { .from = is_v ? t->v_new : t->k_new,
                             .to = (void *)(uintptr_t)(is_v ? t->v : t->k),
                             .from_at = batch * n.batch + row * n.seq + h * n.head,
                             .to_at = to_at < end ? to_at : end,
                             .dim = dim, .position = position };
            if (i >= rows) for (int64_t d = 0; d < dim; d++) attn_store(m.to, p->dtype, m.to_at + d, 0);
            else move_row(kernel, t, &m);
            if (BUG(writes_input)) ((uint16_t *)(uintptr_t)m.from)[m.from_at] ^= 1;
        }
    }
}

static void turn_q(const append_kernel *kernel, const attn_tensors *t, int64_t b) {
    const attn_problem *p = &kernel->problem;
    const int64_t old = p->has_seqused_kv ? t->seqused_kv[b] : 0, batch = p->packed_q ? 0 : b;
    const int64_t base = p->packed_q ? t->cu_seqlens_q[b] : 0;
    int64_t rows = count_of(p, p->packed_q ? t->cu_seqlens_q : NULL, b, p->q_len);
    if (p->has_seqused_q) rows = t->seqused_q[b];
    for (int64_t i = 0; i < rows; i++) {
        int64_t position = old + (p->rotary_q_fixed && !BUG(q_fixed_ignored) ? 0 : i) + BUG(q_position);
        if (p->rotary_dim && p->has_rotary_offsets) position += t->rotary_offsets[b];
        for (int64_t h = 0; h < p->q_heads; h++) {
            const attn_stride q = p->q_stride, o = p->q_out_stride;
            move_row(kernel, t, &(move){ .from = t->q, .to = t->q_out, .dim = p->qk_dim, .position = position,
                                         .from_at = batch * q.batch + (base + i) * q.seq + h * q.head,
                                         .to_at = batch * o.batch + (base + i) * o.seq + h * o.head });
        }
    }
}

static attn_status mutant_run(check_candidate *c, const attn_tensors *t, void *workspace, void *stream) {
    const append_kernel *kernel = c->state;
    const attn_problem *p = &kernel->problem;
    (void)workspace;
    (void)stream;
    for (int64_t b = 0; b < p->batch && !BUG(no_op); b++) {
        const int64_t old = p->has_seqused_kv ? t->seqused_kv[b] : 0;
        append_sequence(kernel, t, b, 0);
        if (!p->v_in_k) append_sequence(kernel, t, b, 1);
        if (p->write_q && !BUG(q_ignored)) turn_q(kernel, t, b);
        if (!t->seqused_kv_out || BUG(length_not_written)) continue;
        const int64_t rows = count_of(p, p->packed_new ? t->cu_seqlens_new : NULL, b, p->new_len);
        t->seqused_kv_out[b] = (int32_t)(old + (BUG(length_of_old) ? 0 : rows));
    }
    return ATTN_OK;
}

static attn_status mutant_prepare(check_candidate *c, const attn_problem *problem,
                                  const attn_options *options, size_t *workspace, const char **refusal) {
    (void)options;
    ((append_kernel *)c->state)->problem = *problem;
    *workspace = 0;
    *refusal = NULL;
    return ATTN_OK;
}

static void mutant_finish(check_candidate *c) { (void)c; }
#endif
