/* kv_append_scalar.c — new rows into the cache: copied bit for bit, or widened to f32, turned by
 * the rotary tables and rounded once. Plain loops that the compiler vectorises; memory-bound.
 * Where a row goes: append.h. */
#include "append.h"
#include "half.h"
#include "kernel.h"

enum { MAX_DIM = 1024, BLOCK = 16 };    /* rows of an item */

typedef struct work {
    const attn_plan    *plan;
    const attn_tensors *t;
    int64_t             new_blocks, q_blocks;  /* items per sequence; those of Q come after all others */
} work;

/* ---- one row of one head ---- */

static void widen(float *x, const void *from, attn_dtype dtype, int64_t at, int64_t count) {
    const uint16_t *h = (const uint16_t *)from + at;
    if (dtype == ATTN_F32) memcpy(x, (const float *)from + at, (size_t)count * 4);
    else if (dtype == ATTN_BF16) for (int64_t d = 0; d < count; d++) x[d] = attn_bf16_to_f32(h[d]);
    else for (int64_t d = 0; d < count; d++) x[d] = attn_f16_to_f32(h[d]);
}

static void narrow(void *to, attn_dtype dtype, int64_t at, const float *x, int64_t count) {
    uint16_t *h = (uint16_t *)to + at;
    if (dtype == ATTN_F32) memcpy((float *)to + at, x, (size_t)count * 4);
    else if (dtype == ATTN_BF16) for (int64_t d = 0; d < count; d++) h[d] = attn_f32_to_bf16(x[d]);
    else for (int64_t d = 0; d < count; d++) h[d] = attn_f32_to_f16(x[d]);
}

/* (a, b) becomes (a cos - b sin, a sin + b cos). */
static void turn(float *x, const float *cosines, const float *sines, int64_t half, int interleaved) {
    for (int64_t r = 0; r < half; r++) {
        float *a = x + (interleaved ? 2 * r : r), *b = interleaved ? a + 1 : a + half;
        const float first = *a * cosines[r] - *b * sines[r], second = *a * sines[r] + *b * cosines[r];
        *a = first;
        *b = second;
    }
}

typedef struct rotation { const float *cosines, *sines; } rotation;     /* NULL: none */

static void copy_row(const attn_problem *p, void *to, int64_t to_at, const void *from, int64_t from_at,
                     int64_t count, const rotation *r) {
    float x[MAX_DIM];
    if (!r->cosines && p->dtype == p->new_dtype) {
        const size_t size = (size_t)attn_dtype_size(p->dtype);
        memmove((char *)to + (size_t)to_at * size, (const char *)from + (size_t)from_at * size,
                (size_t)count * size);
        return;
    }
    const int64_t first = p->rotary_first, turned = r->cosines ? p->rotary_dim : 0;
    widen(x, from, p->new_dtype, from_at, count);
    if (turned) turn(x + first, r->cosines, r->sines, turned / 2, p->rotary_interleaved);
    if (p->dtype != p->new_dtype) {
        narrow(to, p->dtype, to_at, x, count);
        return;
    }
    const size_t size = (size_t)attn_dtype_size(p->dtype);       /* what isn't turned keeps its bits */
    char *out = (char *)to + (size_t)to_at * size;
    const char *in = (const char *)from + (size_t)from_at * size;
    memmove(out, in, (size_t)first * size);
    memmove(out + (size_t)(first + turned) * size, in + (size_t)(first + turned) * size,
            (size_t)(count - first - turned) * size);
    narrow(to, p->dtype, to_at + first, x + first, turned);
}

/* ---- rows of a sequence ---- */

/* The tables' row `at`, widened into room[2][MAX_DIM / 2]. */
static rotation tables(const attn_problem *p, const attn_tensors *t, int64_t at, float room[2][MAX_DIM / 2]) {
    if (!p->rotary_dim) return (rotation){ NULL, NULL };
    widen(room[0], t->rotary_cos, p->rotary_dtype, at, p->rotary_dim / 2);
    widen(room[1], t->rotary_sin, p->rotary_dtype, at, p->rotary_dim / 2);
    return (rotation){ room[0], room[1] };
}

static void append_rows(const work *job, int64_t b, int64_t from, int64_t to) {
    const attn_problem *p = &job->plan->problem;
    const attn_tensors *t = job->t;
    const attn_append a = attn_append_at(p, t, b);
    const rotation none = { NULL, NULL };
    void *const k = (void *)(uintptr_t)t->k, *const v = (void *)(uintptr_t)t->v;
    float room[2][MAX_DIM / 2];
    const int64_t batch = p->packed_new ? 0 : b, base = p->packed_new ? t->cu_seqlens_new[b] : 0;
    for (int64_t i = from; i < to; i++) {
        const int64_t k_at = attn_append_place(p, &a, p->k_stride, i),
                      v_at = attn_append_place(p, &a, p->v_stride, i);
        if (k_at < 0) continue;
        const rotation r = tables(p, t, attn_append_turn(p, &a, i), room);
        const int64_t k_from = batch * p->k_new_stride.batch + (base + i) * p->k_new_stride.seq;
        const int64_t v_from = batch * p->v_new_stride.batch + (base + i) * p->v_new_stride.seq;
        for (int64_t h = 0; h < p->kv_heads; h++) {
            copy_row(p, k, k_at + h * p->k_stride.head, t->k_new, k_from + h * p->k_new_stride.head,
                     p->qk_dim, &r);
            if (!p->v_in_k)
                copy_row(p, v, v_at + h * p->v_stride.head, t->v_new, v_from + h * p->v_new_stride.head,
                         p->v_dim, &none);
        }
    }
}

static void turn_q(const work *job, int64_t b, int64_t from, int64_t to) {
    const attn_problem *p = &job->plan->problem;
    const attn_tensors *t = job->t;
    const attn_append a = attn_append_at(p, t, b);
    const attn_sequence s = attn_sequence_at(p, t, b);
    float room[2][MAX_DIM / 2];
    for (int64_t i = from; i < to && i < s.q_len; i++) {
        const rotation r = tables(p, t, attn_append_turn(p, &a, attn_append_q_step(p, i)), room);
        for (int64_t h = 0; h < p->q_heads; h++)
            copy_row(p, t->q_out, attn_q_offset(&s, p->q_out_stride, i, h), t->q,
                     attn_q_offset(&s, p->q_stride, i, h), p->qk_dim, &r);
    }
}

static void item(void *arg, int64_t index, int slot) {
    const work *job = arg;
    const attn_problem *p = &job->plan->problem;
    const int64_t news = p->batch * job->new_blocks;
    (void)slot;
    if (index >= news) {
        const int64_t b = (index - news) / job->q_blocks, from = (index - news) % job->q_blocks * BLOCK;
        turn_q(job, b, from, from + BLOCK);
        return;
    }
    const int64_t b = index / job->new_blocks, from = index % job->new_blocks * BLOCK;
    const int64_t rows = p->packed_new ? job->t->cu_seqlens_new[b + 1] - job->t->cu_seqlens_new[b]
                                       : p->new_len;
    append_rows(job, b, from, from + BLOCK < rows ? from + BLOCK : rows);
}

static attn_status run(const attn_plan *plan, const attn_tensors *t, void *workspace, void *stream) {
    const attn_problem *p = &plan->problem;
    const work job = { plan, t, (p->new_len + BLOCK - 1) / BLOCK,
                       p->write_q ? (p->q_len + BLOCK - 1) / BLOCK : 0 };
    (void)workspace;
    (void)stream;
    attn_parallel(plan, p->batch * (job.new_blocks + job.q_blocks), item, (void *)(uintptr_t)&job);
    for (int64_t b = 0; t->seqused_kv_out && b < p->batch; b++) {
        const int64_t rows = p->packed_new ? t->cu_seqlens_new[b + 1] - t->cu_seqlens_new[b] : p->new_len;
        t->seqused_kv_out[b] = (int32_t)(attn_append_at(p, t, b).slot + rows);
    }
    return ATTN_OK;
}

const attn_kernel attn_kv_append_scalar = {
    .name = "kv_append_scalar",
    .summary = "new K, V rows into a cache, rotary on K and Q; contiguous and paged",
    .pass = ATTN_KV_APPEND, .device = ATTN_CPU, .dtypes = ATTN_DTYPE_BITS_ALL, .features = ATTN_NEEDS_ALL,
    .run = run,
};
