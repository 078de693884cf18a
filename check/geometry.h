/* geometry.h — the checker's own reading of a problem: which rows a sequence has, where an element lies,
 * whether a query sees a key. Written from the header's words as one predicate per key; shares nothing with
 * src/. */
#ifndef CHECK_GEOMETRY_H
#define CHECK_GEOMETRY_H
#include "number.h"

/* Rows that sequence b has in Q and O. */
static inline int64_t check_q_rows(const attn_problem *p, const attn_tensors *t, int64_t b) {
    return p->packed_q ? (int64_t)t->cu_seqlens_q[b + 1] - t->cu_seqlens_q[b] : p->q_len;
}

/* Queries among them that are in use. */
static inline int64_t check_queries(const attn_problem *p, const attn_tensors *t, int64_t b) {
    return p->has_seqused_q ? t->seqused_q[b] : check_q_rows(p, t, b);
}

/* Rows that sequence b has in K and V, padding on the left included. */
static inline int64_t check_kv_rows(const attn_problem *p, const attn_tensors *t, int64_t b) {
    if (p->has_seqused_kv) return t->seqused_kv[b];
    return p->packed_kv ? (int64_t)t->cu_seqlens_kv[b + 1] - t->cu_seqlens_kv[b] : p->kv_len;
}

static inline int64_t check_padding(const attn_problem *p, const attn_tensors *t, int64_t b) {
    return p->has_leftpad_kv ? t->leftpad_kv[b] : 0;
}

static inline int64_t check_keys(const attn_problem *p, const attn_tensors *t, int64_t b) {
    const int64_t keys = check_kv_rows(p, t, b) - check_padding(p, t, b);
    return keys > 0 ? keys : 0;
}

/* Index of query i of sequence b among the rows of O: packed or batch * q_len. */
static inline int64_t check_row_index(const attn_problem *p, const attn_tensors *t, int64_t b, int64_t i) {
    return (p->packed_q ? t->cu_seqlens_q[b] : b * p->q_len) + i;
}

static inline int64_t check_total_rows(const attn_problem *p) {
    return p->packed_q ? p->q_total : p->batch * p->q_len;
}

static inline int64_t check_q_place(const attn_problem *p, attn_stride s, int64_t row, int64_t h) {
    if (p->packed_q) return row * s.seq + h * s.head;
    return row / p->q_len * s.batch + row % p->q_len * s.seq + h * s.head;
}

static inline int64_t check_lse_place(const attn_problem *p, int64_t row, int64_t h) {
    if (p->packed_q) return row * p->lse_stride.seq + h * p->lse_stride.head;
    return row / p->q_len * p->lse_stride.batch + row % p->q_len * p->lse_stride.seq + h * p->lse_stride.head;
}

static inline int64_t check_kv_place(const attn_problem *p, const attn_tensors *t, attn_stride s, int64_t b,
                                     int64_t j, int64_t kv_head) {
    const int64_t row = j + check_padding(p, t, b);
    if (p->page_size) {
        const int64_t page = t->block_table[b * p->block_table_stride + row / p->page_size];
        return page * s.batch + row % p->page_size * s.seq + kv_head * s.head;
    }
    if (p->packed_kv) return (t->cu_seqlens_kv[b] + row) * s.seq + kv_head * s.head;
    return (p->has_kv_batch_index ? t->kv_batch_index[b] : b) * s.batch + row * s.seq + kv_head * s.head;
}

static inline int64_t check_score_place(attn_score_stride s, int64_t b, int64_t h, int64_t i, int64_t j) {
    return b * s.batch + h * s.head + i * s.q + j * s.kv;
}

/* Key that query i is aligned with. */
static inline int64_t check_here(const attn_problem *p, const attn_tensors *t, int64_t b, int64_t i) {
    return p->top_left ? i : i + check_keys(p, t, b) - check_queries(p, t, b);
}

/* Do causal and window let a query aligned with key `here` see key j? */
static inline int check_near(const attn_problem *p, int64_t here, int64_t j) {
    if (p->causal && j > here) return 0;
    if (p->window && p->window_left >= 0 && j < here - p->window_left) return 0;
    if (p->window && p->window_right >= 0 && j > here + p->window_right) return 0;
    return 1;
}

/* Do the boolean mask and the bias (-inf is a mask too) let it? */
static inline int check_let(const attn_problem *p, const attn_tensors *t, int64_t b, int64_t h, int64_t i,
                            int64_t j) {
    if (p->has_mask && !t->mask[check_score_place(p->mask_stride, b, h, i, j)]) return 0;
    if (!p->bias_dtype) return 1;
    return check_widen(t->bias, p->bias_dtype, check_score_place(p->bias_stride, b, h, i, j)) !=
           (double)-INFINITY;
}

static inline int64_t check_kv_head(const attn_problem *p, int64_t h) { return h * p->kv_heads / p->q_heads; }
#endif
