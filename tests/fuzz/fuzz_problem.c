/* fuzz_problem.c — any bytes as a problem. As they are: resolving and explaining them must answer, never
 * fault. Scaled down to small sizes: what resolves gets a plan, and every kernel that takes it computes the
 * oracle's answer in guarded memory. */
#include "check.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

typedef struct stream { const uint8_t *at; size_t left; } stream;

/* 0 .. most; zeros once the bytes are used up. */
static int64_t next(stream *s, int64_t most) {
    if (!s->left) return 0;
    s->left--;
    return *s->at++ % (most + 1);
}

/* ---- the bytes as a struct ---- */

static void try_raw(const uint8_t *bytes, size_t size) {
    attn_problem p;
    char text[2048];
    memset(&p, 0, sizeof p);
    memcpy(&p, bytes, size < sizeof p ? size : sizeof p);
    if (p.struct_size % 2) p.struct_size = (uint32_t)sizeof p;   /* half the time past the version check */
    else if (p.struct_size > sizeof p)
        return; /* it would promise memory that isn't there */
    attn_problem resolved = p;
    if (attn_problem_resolve(&resolved)) {
        if (!attn_last_error()[0]) abort();
        return;
    }
    attn_problem again = resolved;
    if (attn_problem_resolve(&again) || memcmp(&again, &resolved, sizeof again))
        abort(); /* resolving twice = once */
    attn_explain(&p, NULL, text, sizeof text);
}

/* ---- a small problem ---- */

static check_case small_case(stream *s) {
    check_case c = { .problem = ATTN_PROBLEM_INIT, .shape = "fuzz" };
    attn_problem *p = &c.problem;
    p->batch = next(s, 3);
    p->kv_heads = 1 + next(s, 2);
    p->q_heads = p->kv_heads * (1 + next(s, 3));
    p->q_len = next(s, 20);
    p->kv_len = next(s, 40);
    p->kv_empty = p->kv_len == 0;
    p->qk_dim = 1 + next(s, 40);
    p->v_dim = 1 + next(s, 40);
    p->dtype = (attn_dtype)(1 + next(s, 2));
    p->o_dtype = next(s, 1) ? ATTN_F32 : p->dtype;
    const int64_t scores = next(s, 255), batching = next(s, 255);
    p->causal = scores & 1;
    p->window = scores >> 1 & 1;
    p->top_left = scores >> 2 & 1;
    p->has_mask = scores >> 3 & 1;
    p->has_sinks = scores >> 4 & 1;
    p->bias_dtype = scores >> 5 & 1 ? (attn_dtype)(1 + next(s, 2)) : ATTN_DTYPE_DEFAULT;
    p->alibi = scores >> 6 & 1 ? (attn_alibi)(1 + next(s, 1)) : ATTN_ALIBI_NONE;
    p->softcap = scores >> 7 & 1 ? (float)(1 + next(s, 30)) : 0;
    p->window_left = next(s, 41) - 1;
    p->window_right = next(s, 41) - 1;
    p->packed_q = batching & 1;
    p->packed_kv = batching >> 1 & 1;
    p->has_seqused_q = batching >> 2 & 1;
    p->has_seqused_kv = batching >> 3 & 1;
    p->has_leftpad_kv = batching >> 4 & 1;
    p->has_kv_batch_index = batching >> 5 & 1;
    p->page_size = batching >> 6 & 1 ? 1 + next(s, 20) : 0;
    p->v_in_k = batching >> 7 & 1;
    p->strict = (int32_t)next(s, 1);
    c.fill = (check_fill)next(s, CHECK_FILLS - 1);
    c.lengths = (check_lengths)next(s, 2);
    c.layout = (check_layout)next(s, 2);
    c.no_lse = (int)next(s, 1);
    c.seed = (uint64_t)next(s, 255);
    return c;
}

static void try_kernel(const char *name, const check_case *c, check_data *data) {
    check_candidate candidate = check_library_kernel(name);
    check_verdict verdict = { .ok = 1 };
    const char *refusal = NULL;
    char command[1024];
    const attn_status status = check_run(&candidate, data, NULL, 1, &verdict, &refusal);
    if (refusal || (!status && verdict.ok)) return;
    check_case_command(c, name, command, sizeof command);
    fprintf(stderr, "%s\n%s%s\n", command, verdict.reason, status ? attn_last_error() : "");
    abort();
}

static void try_small(const uint8_t *bytes, size_t size) {
    stream s = { bytes, size };
    const check_case c = small_case(&s);
    check_data *data;
    if (check_data_create(&data, &c, NULL, (int)(size & 1))) return;
    if (!check_data_answer(data)) {
        attn_kernel_info k = { .struct_size = sizeof k };
        for (int i = 0; !attn_kernel_describe(i, &k); i++)
            if (k.device == ATTN_CPU && k.pass == ATTN_FORWARD && !k.unavailable)
                try_kernel(k.name, &c, data);
    }
    check_data_destroy(data);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    try_raw(bytes, size);
    try_small(bytes, size);
    return 0;
}
