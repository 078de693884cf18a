/* attn_plugin.h — your own kernel, checked, timed and ranked beside the library's:
 *     attn check --kernel ./mine.c        attn bench --kernel ./mine.c
 * A plug-in is one file that defines `attn_plugin attn_plugin_kernel`.
 * It needs this header and no library. */
#ifndef ATTN_PLUGIN_H
#define ATTN_PLUGIN_H
#include "attn/attn.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes that a run moved between far memory (the tensors) and near memory (tiles, registers),
 * counted by the kernel. */
typedef struct attn_traffic { int64_t q, k, v, o, scores; } attn_traffic;

typedef struct attn_plugin {
    uint32_t    struct_size;  /* sizeof(attn_plugin) */
    attn_device device;
    const char *name;
    const char *summary;      /* one line */
    /* NULL if it computes this (resolved) problem, else one sentence. */
    const char *(*refuse)(const attn_problem *problem);
    /* Bytes of workspace; may be NULL: none. */
    int64_t     (*workspace)(const attn_problem *problem);
    /* Compute O and, if tensors->lse is set, LSE. `stream` is NULL on the CPU. */
    attn_status (*run)(const attn_problem *problem, const attn_tensors *tensors, void *workspace,
                       void *stream);
    /* What the last run moved; may be NULL. */
    void        (*traffic)(attn_traffic *out);
} attn_plugin;

extern
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const attn_plugin attn_plugin_kernel;

/* ---- for plug-ins that compute dense f32 attention ---- */

#if defined(__CUDACC__)
#define ATTN_PLUGIN_INLINE static inline __host__ __device__    /* kernels may call these */
#else
#define ATTN_PLUGIN_INLINE static inline
#endif

/* A refuse function: NULL for dense f32 batches without a mask or with a causal one, else the reason. */
static inline const char *attn_plugin_plain(const attn_problem *p) {
    if (p->pass != ATTN_FORWARD) return "computes the forward pass only";
    if (p->dtype != ATTN_F32 || p->o_dtype != ATTN_F32) return "computes f32 only";
    if (p->window || p->bias_dtype || p->has_mask || p->alibi || p->softcap > 0 || p->has_sinks)
        return "knows no mask but causal";
    if (p->packed_q || p->packed_kv || p->has_seqused_q || p->has_seqused_kv || p->has_leftpad_kv ||
        p->has_kv_batch_index || p->page_size || p->v_in_k)
        return "reads dense batches only";
    return NULL;
}

/* Row i sees the keys 0 .. limit - 1. */
ATTN_PLUGIN_INLINE int64_t attn_plugin_limit(const attn_problem *p, int64_t i) {
    const int64_t n = p->causal ? i + 1 + (p->top_left ? 0 : p->kv_len - p->q_len) : p->kv_len;
    return n < 0 ? 0 : n > p->kv_len ? p->kv_len : n;
}

/* Where query head h of sequence b begins in each tensor; K and V of the head group that it belongs to. */
typedef struct attn_plugin_head { const float *q, *k, *v; float *o, *lse; } attn_plugin_head;

ATTN_PLUGIN_INLINE attn_plugin_head attn_plugin_head_at(const attn_problem *p, const attn_tensors *t,
                                                        int64_t b, int64_t h) {
    const int64_t g = h / (p->q_heads / p->kv_heads);
    attn_plugin_head at;
    at.q = (const float *)t->q + b * p->q_stride.batch + h * p->q_stride.head;
    at.k = (const float *)t->k + b * p->k_stride.batch + g * p->k_stride.head;
    at.v = (const float *)t->v + b * p->v_stride.batch + g * p->v_stride.head;
    at.o = (float *)t->o + b * p->o_stride.batch + h * p->o_stride.head;
    at.lse = t->lse ? t->lse + b * p->lse_stride.batch + h * p->lse_stride.head : NULL;
    return at;
}

#ifdef __cplusplus
}
#endif
#endif
