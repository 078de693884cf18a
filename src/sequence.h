/* sequence.h — where sequence b's rows are and which keys a query sees: the one place that knows cu_seqlens,
 * seqused, left padding, batch index, pages and the mask alignment. */
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

ATTN_INLINE int64_t attn_clamp(int64_t x, int64_t low, int64_t high) {
    return x < low ? low : x > high ? high : x;
}

/* The host can't check lengths that live on the device: force any content of them into the tensors,
 * so that nothing outside is read or written. For valid lengths this changes nothing. */
ATTN_INLINE void attn_sequence_bound(const attn_problem *p, attn_sequence *s) {
    if (p->packed_q) s->q_first = attn_clamp(s->q_first, 0, p->q_total);
    const int64_t q_rows = p->packed_q && p->q_total - s->q_first < p->q_len
                           ? p->q_total - s->q_first : p->q_len;
    s->q_rows = attn_clamp(s->q_rows, 0, q_rows);
    s->q_len = attn_clamp(s->q_len, 0, s->q_rows);
    s->kv_batch = p->packed_kv ? 0 : attn_clamp(s->kv_batch, 0, p->kv_batch > 0 ? p->kv_batch - 1 : 0);
    s->kv_first = attn_clamp(s->kv_first, 0, p->packed_kv ? p->kv_total : p->kv_len);
    int64_t kv_rows = p->page_size && !p->pages ? 0 : p->kv_len;
    if (p->packed_kv && p->kv_total - s->kv_first < kv_rows) kv_rows = p->kv_total - s->kv_first;
    if (p->has_leftpad_kv) kv_rows -= s->kv_first;
    s->kv_len = attn_clamp(s->kv_len, 0, kv_rows);
}

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
#if defined(__CUDA_ARCH__)
    attn_sequence_bound(p, &s);
#endif
    s.shift = p->top_left ? 0 : s.kv_len - s.q_len;
    return s;
}

/* Element offset of query i, head h. */
ATTN_INLINE int64_t attn_q_offset(const attn_sequence *s, attn_stride stride, int64_t i, int64_t h) {
    return s->q_batch * stride.batch + (s->q_first + i) * stride.seq + h * stride.head;
}

/* The page of key j. On the device ids are unchecked: one out of range becomes page 0,
 * so that nothing outside the pool is read, and attn_page_valid lets a kernel make the rows concerned NaN. */
ATTN_INLINE int64_t attn_page(const attn_problem *p, const attn_sequence *s, int64_t j) {
    const int64_t page = s->pages[j / p->page_size];
#if defined(__CUDA_ARCH__)
    return page >= 0 && page < p->pages ? page : 0;
#else
    return page;
#endif
}

ATTN_INLINE int attn_page_valid(const attn_problem *p, const attn_sequence *s, int64_t j) {
    return !s->pages || (s->pages[j / p->page_size] >= 0 && s->pages[j / p->page_size] < p->pages);
}

/* Element offset of key j, K/V head h. */
ATTN_INLINE int64_t attn_kv_offset(const attn_problem *p, const attn_sequence *s, attn_stride stride,
                                   int64_t j, int64_t h) {
    if (s->pages)
        return attn_page(p, s, j) * stride.batch + (j % p->page_size) * stride.seq + h * stride.head;
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
