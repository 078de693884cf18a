/* small_case.h — one small dense problem with its tensors, for tests of the interface rather than of the
 * numbers: inputs filled with a fixed sequence, outputs with a pattern that tells whether anything was
 * written. */
#ifndef SMALL_CASE_H
#define SMALL_CASE_H
#include "attn/attn.h"
#include <stdlib.h>
#include <string.h>

#define SMALL_CASE_UNTOUCHED 0x5a

typedef struct {
    attn_problem problem;
    attn_tensors tensors;
    float *memory;              /* q, k, v, o, lse one after the other */
    size_t o_floats, lse_floats;
} small_case;

static inline attn_problem small_problem(int64_t batch, int64_t q_heads, int64_t kv_heads, int64_t q_len,
                                         int64_t kv_len, int64_t qk_dim) {
    attn_problem p = ATTN_PROBLEM_INIT;
    p.batch = batch;
    p.q_heads = q_heads;
    p.kv_heads = kv_heads;
    p.q_len = q_len;
    p.kv_len = kv_len;
    p.qk_dim = qk_dim;
    return p;
}

static inline float small_value(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) * 0x1p-23f - 1.0f;
}

static inline void small_case_poison(small_case *c) {
    memset(c->tensors.o, SMALL_CASE_UNTOUCHED, c->o_floats * sizeof(float));
    memset(c->tensors.lse, SMALL_CASE_UNTOUCHED, c->lse_floats * sizeof(float));
}

/* Dense f32 tensors for a problem with all sizes given (kv_heads, kv_len too; v_dim 0 = qk_dim). */
static inline small_case small_case_create(attn_problem p) {
    small_case c = { .problem = p, .tensors = ATTN_TENSORS_INIT };
    const int64_t v_dim = p.v_dim ? p.v_dim : p.qk_dim, kv_rows = p.batch * p.kv_len * p.kv_heads;
    const size_t q = (size_t)(p.batch * p.q_len * p.q_heads * p.qk_dim), k = (size_t)(kv_rows * p.qk_dim),
                 v = (size_t)(kv_rows * v_dim);
    c.o_floats = (size_t)(p.batch * p.q_len * p.q_heads * v_dim);
    c.lse_floats = (size_t)(p.batch * p.q_heads * p.q_len);
    c.memory = malloc((q + k + v + c.o_floats + c.lse_floats) * sizeof(float));
    if (!c.memory) abort();
    uint32_t state = 1;
    for (size_t i = 0; i < q + k + v; i++) c.memory[i] = small_value(&state);
    c.tensors.q = c.memory;
    c.tensors.k = c.memory + q;
    c.tensors.v = c.memory + q + k;
    c.tensors.o = c.memory + q + k + v;
    c.tensors.lse = c.memory + q + k + v + c.o_floats;
    small_case_poison(&c);
    return c;
}

static inline void small_case_destroy(small_case *c) { free(c->memory); }

static inline uint64_t small_case_hash(const small_case *c) {
    const unsigned char *bytes = c->tensors.o;    /* lse follows o */
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < (c->o_floats + c->lse_floats) * sizeof(float); i++)
        hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

static inline int small_case_untouched(const small_case *c) {
    const unsigned char *bytes = c->tensors.o;
    for (size_t i = 0; i < (c->o_floats + c->lse_floats) * sizeof(float); i++)
        if (bytes[i] != SMALL_CASE_UNTOUCHED) return 0;
    return 1;
}

/* 64-byte aligned memory for the plan's workspace; NULL if it needs none. */
static inline void *small_workspace(const attn_plan *plan) {
    const size_t bytes = (attn_plan_workspace(plan) + 63) / 64 * 64;
    void *workspace = bytes ? aligned_alloc(64, bytes) : NULL;
    if (bytes && !workspace) abort();
    return workspace;
}
#endif
