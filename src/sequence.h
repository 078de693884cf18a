/* sequence.h — where sequence b's rows are and which keys a query sees: the one place that knows cu_seqlens, seqused,
 * left padding, batch index, pages and the mask alignment. */
#ifndef ATTN_SEQUENCE_H
#define ATTN_SEQUENCE_H
#include "attn/attn.h"

/* Kernels on the GPU use the very same functions. */
#if defined(__CUDACC__)
#define ATTN_INLINE static __host__ __device__ __forceinline__
#else
#define ATTN_INLINE static inline
#endif

typedef struct attn_sequence {
    int64_t b;
    int64_t q_len, kv_len;         /* tokens in use */
    int64_t q_rows;                /* nominal rows; those from q_len on get O = 0, LSE = -inf */
    int64_t q_batch, q_first;      /* batch index and first row of Q and O */
    int64_t kv_batch, kv_first;    /* the same of K and V */
    int64_t shift;                 /* query i is aligned with key i + shift */
    const int32_t *pages;          /* this sequence's row of the block table, or NULL */
} attn_sequence;

typedef struct attn_range { int64_t low, high; } attn_range;   /* low <= j < high */

ATTN_INLINE attn_sequence attn_sequence_at(const attn_problem *p, const attn_tensors *t, int64_t b) {
    attn_sequence s;
    s.b = s.q_batch = s.kv_batch = b;
    s.q_first = s.kv_first = 0;
    s.q_rows = p->q_len;
    s.kv_len = p->kv_len;
    s.pages = NULL;
    if (p->packed_q) {
        s.q_batch = 0;
        s.q_first = t->cu_seqlens_q[b];
        s.q_rows = t->cu_seqlens_q[b + 1] - s.q_first;
    }
    s.q_len = p->has_seqused_q ? t->seqused_q[b] : s.q_rows;
    if (p->packed_kv) {
        s.kv_batch = 0;
        s.kv_first = t->cu_seqlens_kv[b];
        s.kv_len = t->cu_seqlens_kv[b + 1] - s.kv_first;
    }
    if (p->has_seqused_kv) s.kv_len = t->seqused_kv[b];
    if (p->has_kv_batch_index) s.kv_batch = t->kv_batch_index[b];
    if (p->has_leftpad_kv) {
        s.kv_first = t->leftpad_kv[b];
        s.kv_len = s.kv_len > s.kv_first ? s.kv_len - s.kv_first : 0;
    }
    if (p->page_size) s.pages = t->block_table + b * p->block_table_stride;
    s.shift = p->top_left ? 0 : s.kv_len - s.q_len;
    return s;
}

/* Element offset of query i, head h. */
ATTN_INLINE int64_t attn_q_offset(const attn_sequence *s, attn_stride stride, int64_t i, int64_t h) {
    return s->q_batch * stride.batch + (s->q_first + i) * stride.seq + h * stride.head;
}

/* Element offset of key j, K/V head h. */
ATTN_INLINE int64_t attn_kv_offset(const attn_problem *p, const attn_sequence *s, attn_stride stride, int64_t j,
                                     int64_t h) {
    if (s->pages) return s->pages[j / p->page_size] * stride.batch + (j % p->page_size) * stride.seq + h * stride.head;
    return s->kv_batch * stride.batch + (s->kv_first + j) * stride.seq + h * stride.head;
}

ATTN_INLINE int64_t attn_lse_offset(const attn_problem *p, const attn_sequence *s, int64_t i, int64_t h) {
    return s->q_batch * p->lse_stride.batch + (s->q_first + i) * p->lse_stride.seq + h * p->lse_stride.head;
}

/* Element offset of (query i, head h, key j) in the bias or the boolean mask. */
ATTN_INLINE int64_t attn_score_offset(const attn_sequence *s, attn_score_stride stride, int64_t h, int64_t i,
                                        int64_t j) {
    return s->b * stride.batch + h * stride.head + i * stride.q + j * stride.kv;
}

/* Keys that causal and window let query i see; high <= low: none. */
ATTN_INLINE attn_range attn_visible(const attn_problem *p, const attn_sequence *s, int64_t i) {
    attn_range r;
    r.low = 0;
    r.high = s->kv_len;
    const int64_t here = i + s->shift;
    if (p->causal && here + 1 < r.high) r.high = here + 1;
    if (p->window_right >= 0 && here + p->window_right + 1 < r.high) r.high = here + p->window_right + 1;
    if (p->window_left >= 0 && here - p->window_left > 0) r.low = here - p->window_left;
    if (r.high < r.low) r.high = r.low;
    return r;
}

ATTN_INLINE float attn_slope(const attn_problem *p, const attn_tensors *t, int64_t b, int64_t h) {
    return t->alibi_slopes[(p->alibi == ATTN_ALIBI_PER_BATCH_HEAD ? b * p->q_heads : 0) + h];
}
#endif
