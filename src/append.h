/* append.h — where the new rows of a sequence go in the cache, and at which position of the rotary
 * tables they are: the one place that knows it, for the CPU and the GPU. Whatever lengths, tables and
 * ids hold, no place lies outside. */
#ifndef ATTN_APPEND_H
#define ATTN_APPEND_H
#include "sequence.h"

/* a / b for a, b >= 0: a GPU has no divider, and 32 bits are several times as fast there. */
ATTN_INLINE int64_t attn_divide(int64_t a, int64_t b) {
    return ((uint64_t)a | (uint64_t)b) >> 32 ? a / b : (int64_t)((uint32_t)a / (uint32_t)b);
}

typedef struct attn_append {
    int64_t slot;                  /* of new row 0 */
    int64_t position;              /* of new row 0 in the rotary tables */
    int64_t kv_batch;              /* batch index of the cache, where it isn't paged */
    const int32_t *pages;          /* this sequence's row of the block table, or NULL */
} attn_append;

ATTN_INLINE attn_append attn_append_at(const attn_problem *p, const attn_tensors *t, int64_t b) {
    attn_append a;
    a.slot = p->has_seqused_kv ? t->seqused_kv[b] : 0;
    a.position = a.slot + (p->rotary_dim && p->has_rotary_offsets ? t->rotary_offsets[b] : 0);
    a.kv_batch = p->has_kv_batch_index ? t->kv_batch_index[b] : b;
    a.pages = p->page_size ? t->block_table + b * p->block_table_stride : NULL;
    return a;
}

/* Element offset of head 0 in the slot of new row i; -1: the cache has no such slot, the row is dropped. */
ATTN_INLINE int64_t attn_append_place(const attn_problem *p, const attn_append *a, attn_stride stride,
                                      int64_t i) {
    const int64_t slot = a->slot + i;
    if (a->slot < 0 || slot >= p->kv_len) return -1;
    if (a->pages) {
        const int64_t column = attn_divide(slot, p->page_size), page = a->pages[column];
        return page < 0 || page >= p->pages
               ? -1 : page * stride.batch + (slot - column * p->page_size) * stride.seq;
    }
    return a->kv_batch < 0 || a->kv_batch >= p->kv_batch
           ? -1 : a->kv_batch * stride.batch + slot * stride.seq;
}

/* Element offset in the rotary tables of the position `step` rows on. */
ATTN_INLINE int64_t attn_append_turn(const attn_problem *p, const attn_append *a, int64_t step) {
    return attn_clamp(a->position + step, 0, p->rotary_rows - 1) * p->rotary_stride;
}

/* How many rows on query i is turned. */
ATTN_INLINE int64_t attn_append_q_step(const attn_problem *p, int64_t i) { return p->rotary_q_fixed ? 0 : i; }
#endif
