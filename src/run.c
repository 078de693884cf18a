/* run.c — attn_run: check the pointers, check what only now is known (lengths, page ids),
 * hand over to the kernel. */
#include "float_mode.h"
#include "half.h"
#include "kernel.h"
#include "sequence.h"
#include <errno.h>
#if defined(ATTN_WITH_CUDA)
#include "cuda/launch.h"
#endif
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- pointers ---- */

attn_status attn_check_pointer(const char *field, const void *pointer, int needed, size_t alignment) {
    if (!pointer)
        return needed ? attn_fail(ATTN_INVALID, "tensors.%s = NULL: the problem needs it", field) : ATTN_OK;
    if ((uintptr_t)pointer % alignment)
        return attn_fail(ATTN_INVALID, "tensors.%s = %p: must be aligned to %zu bytes", field, pointer,
                         alignment);
    return ATTN_OK;
}

static attn_status check_pointers(const attn_problem *p, const attn_tensors *t) {
    if (p->pass == ATTN_KV_APPEND) return attn_append_check_pointers(p, t);
    const size_t element = (size_t)attn_dtype_size(p->dtype);
    const int any_q = p->batch && (p->packed_q ? p->q_total : p->q_len);
    const int any_kv = any_q && (p->packed_kv ? p->kv_total : p->kv_len), any_batch = p->batch != 0;
    const struct { const char *field; const void *pointer; int needed; size_t alignment; } rows[] = {
        { "q", t->q, any_q, element }, { "k", t->k, any_kv, element },
        { "v", t->v, any_kv && !p->v_in_k, element },
        { "o", t->o, any_q, (size_t)attn_dtype_size(p->o_dtype) }, { "lse", t->lse, 0, 4 },
        { "bias", t->bias, p->bias_dtype && any_kv, p->bias_dtype == ATTN_F32 ? 4 : 2 },
        { "mask", t->mask, p->has_mask && any_kv, 1 },
        { "alibi_slopes", t->alibi_slopes, p->alibi && any_q, 4 },
        { "sinks", t->sinks, p->has_sinks && any_q, 4 },
        { "cu_seqlens_q", t->cu_seqlens_q, p->packed_q && any_batch, 4 },
        { "cu_seqlens_kv", t->cu_seqlens_kv, p->packed_kv && any_batch, 4 },
        { "seqused_q", t->seqused_q, p->has_seqused_q && any_batch, 4 },
        { "seqused_kv", t->seqused_kv, p->has_seqused_kv && any_batch, 4 },
        { "leftpad_kv", t->leftpad_kv, p->has_leftpad_kv && any_batch, 4 },
        { "kv_batch_index", t->kv_batch_index, p->has_kv_batch_index && any_batch, 4 },
        { "block_table", t->block_table, p->page_size && any_kv, 4 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (attn_check_pointer(rows[i].field, rows[i].pointer, rows[i].needed, rows[i].alignment))
            return ATTN_INVALID;
    return ATTN_OK;
}

/* ---- lengths and page ids, where the host can read them ---- */

attn_status attn_check_offsets(const char *field, const int32_t *offsets, int64_t batch, int64_t total,
                               int64_t longest, const char *maximum) {
    for (int64_t b = 0; b <= batch; b++) {
        const int64_t length = b ? (int64_t)offsets[b] - offsets[b - 1] : 0;
        if (offsets[b] < 0 || offsets[b] > total || length < 0 || (!b && offsets[b]))
            return attn_fail(ATTN_INVALID, "%s[%lld] = %d: must ascend from 0 within 0 .. %lld", field,
                             (long long)b, (int)offsets[b], (long long)total);
        if (length > longest)
            return attn_fail(ATTN_INVALID, "%s[%lld] = %d: sequence of %lld tokens, planned for %s = %lld",
                             field, (long long)b, (int)offsets[b], (long long)length, maximum,
                             (long long)longest);
    }
    return ATTN_OK;
}

attn_status attn_check_entry(const char *field, int64_t b, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return ATTN_OK;
    return attn_fail(ATTN_INVALID, "%s[%lld] = %lld: must be %lld .. %lld", field, (long long)b,
                     (long long)value, (long long)low, (long long)high);
}

static attn_status check_pages(const attn_problem *p, const attn_tensors *t, int64_t b, int64_t kv_len) {
    const int32_t *row = t->block_table + b * p->block_table_stride;
    const int64_t count = (kv_len + p->page_size - 1) / p->page_size;
    for (int64_t i = 0; i < count; i++)
        if (row[i] < 0 || row[i] >= p->pages)
            return attn_fail(ATTN_INVALID, "block_table[%lld][%lld] = %d: page ids are 0 .. %lld",
                             (long long)b, (long long)i, (int)row[i], (long long)p->pages - 1);
    return ATTN_OK;
}

static attn_status check_sequence(const attn_problem *p, const attn_tensors *t, int64_t b) {
    const int64_t q_rows = p->packed_q ? t->cu_seqlens_q[b + 1] - t->cu_seqlens_q[b] : p->q_len;
    const int64_t kv_rows = p->packed_kv ? t->cu_seqlens_kv[b + 1] - t->cu_seqlens_kv[b] : p->kv_len;
    if (p->has_seqused_q && attn_check_entry("seqused_q", b, t->seqused_q[b], 0, q_rows)) return ATTN_INVALID;
    if (p->has_seqused_kv && attn_check_entry("seqused_kv", b, t->seqused_kv[b], 0, kv_rows))
        return ATTN_INVALID;
    if (p->has_leftpad_kv && attn_check_entry("leftpad_kv", b, t->leftpad_kv[b], 0, kv_rows))
        return ATTN_INVALID;
    if (p->has_kv_batch_index &&
        attn_check_entry("kv_batch_index", b, t->kv_batch_index[b], 0, p->kv_batch - 1))
        return ATTN_INVALID;
    return p->page_size ? check_pages(p, t, b, p->has_seqused_kv ? t->seqused_kv[b] : p->kv_len) : ATTN_OK;
}

attn_status attn_check_lengths(const attn_problem *p, const attn_tensors *t) {
    if (p->pass == ATTN_KV_APPEND) return attn_append_check_lengths(p, t);
    if (p->packed_q && attn_check_offsets("cu_seqlens_q", t->cu_seqlens_q, p->batch, p->q_total,
                                          p->q_len, "q_len"))
        return ATTN_INVALID;
    if (p->packed_kv && attn_check_offsets("cu_seqlens_kv", t->cu_seqlens_kv, p->batch, p->kv_total,
                                           p->kv_len, "kv_len"))
        return ATTN_INVALID;
    if (!p->has_seqused_q && !p->has_seqused_kv && !p->has_leftpad_kv && !p->has_kv_batch_index &&
        !p->page_size)
        return ATTN_OK;
    for (int64_t b = 0; b < p->batch; b++)
        if (check_sequence(p, t, b)) return ATTN_INVALID;
    return ATTN_OK;
}

/* Rows past seqused_q belong to no query: O = 0, LSE = -inf. Kernels write rows below it only. */
static void clear_unused_rows(const attn_problem *p, const attn_tensors *t) {
    for (int64_t b = 0; b < p->batch; b++) {
        const attn_sequence s = attn_sequence_at(p, t, b);
        for (int64_t i = s.q_len; i < s.q_rows; i++)
            for (int64_t h = 0; h < p->q_heads; h++) {
                const int64_t offset = attn_q_offset(&s, p->o_stride, i, h);
                for (int64_t d = 0; d < p->v_dim; d++) attn_store(t->o, p->o_dtype, offset + d, 0);
                if (t->lse) t->lse[attn_lse_offset(p, &s, i, h)] = -INFINITY;
            }
    }
}

static attn_status run_kernel(const attn_plan *plan, const attn_tensors *t, void *workspace, void *stream) {
#if defined(ATTN_WITH_CUDA)
    if (plan->problem.device == ATTN_CUDA) return attn_cuda_run(plan, t, workspace, stream);
#endif
    return plan->kernel->run(plan, t, workspace, stream);
}

/* Nothing of the caller's thread may change but the outputs:
 * not its floating-point mode or flags, not errno. */
static attn_status run_checked(const attn_plan *plan, const attn_tensors *t, void *workspace, void *stream) {
    const int saved = errno;
    const attn_float_mode mode = attn_float_enter();
    const attn_problem *p = &plan->problem;
    if (p->device == ATTN_CPU && p->pass == ATTN_FORWARD && p->has_seqused_q) clear_unused_rows(p, t);
    const attn_status status = run_kernel(plan, t, workspace, stream);
    attn_float_leave(mode);
    errno = saved;
    return status;
}

attn_status attn_run(const attn_plan *plan, const attn_tensors *caller_tensors, void *workspace,
                     void *stream) {
    if (!plan) return attn_fail(ATTN_INVALID, "plan = NULL");
    if (!caller_tensors) return attn_fail(ATTN_INVALID, "tensors = NULL");
    const attn_problem *p = &plan->problem;
    attn_tensors t;
    if (attn_struct_import(&t, sizeof t, caller_tensors, caller_tensors->struct_size, "tensors"))
        return ATTN_INVALID;
    if (t.reserved) return attn_fail(ATTN_INVALID, "tensors.reserved = %u: must be 0", (unsigned)t.reserved);
    if (p->v_in_k) t.v = t.k;
    if (check_pointers(p, &t)) return ATTN_INVALID;
    const size_t alignment = p->device == ATTN_CPU ? 64 : 256;
    if (plan->workspace && (!workspace || (uintptr_t)workspace % alignment))
        return attn_fail(ATTN_INVALID, "workspace = %p: the plan needs %lld bytes aligned to %zu", workspace,
                         (long long)plan->workspace, alignment);
    if (!p->batch) return ATTN_OK;
    if (p->pass == ATTN_FORWARD && !(p->packed_q ? p->q_total : p->q_len)) return ATTN_OK;
    if (p->device == ATTN_CPU && attn_check_lengths(p, &t)) return ATTN_INVALID;
    return run_checked(plan, &t, workspace, stream);
}

attn_status attn_plan_schedule(const attn_plan *plan, const attn_tensors *caller_lengths, void *schedule,
                               void *stream) {
    if (!plan) return attn_fail(ATTN_INVALID, "plan = NULL");
    if (!caller_lengths) return attn_fail(ATTN_INVALID, "lengths = NULL");
    const attn_problem *p = &plan->problem;
    attn_tensors all, t = { .struct_size = sizeof t };
    if (attn_struct_import(&all, sizeof all, caller_lengths, caller_lengths->struct_size, "lengths"))
        return ATTN_INVALID;
    if (!plan->schedule_bytes) return ATTN_OK;
    if (!schedule || (uintptr_t)schedule % 256)
        return attn_fail(ATTN_INVALID, "schedule = %p: the plan's needs %lld bytes aligned to 256", schedule,
                         (long long)plan->schedule_bytes);
    const struct { const char *field; const int32_t **to, *from; int needed; } rows[] = {
        { "cu_seqlens_q", &t.cu_seqlens_q, all.cu_seqlens_q, p->packed_q },
        { "cu_seqlens_kv", &t.cu_seqlens_kv, all.cu_seqlens_kv, p->packed_kv },
        { "seqused_q", &t.seqused_q, all.seqused_q, p->has_seqused_q },
        { "seqused_kv", &t.seqused_kv, all.seqused_kv, p->has_seqused_kv },
        { "leftpad_kv", &t.leftpad_kv, all.leftpad_kv, p->has_leftpad_kv },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (attn_check_pointer(rows[i].field, rows[i].from, rows[i].needed && p->batch, 4))
            return ATTN_INVALID;
        *rows[i].to = rows[i].from;
    }
#if defined(ATTN_WITH_CUDA)
    if (p->device == ATTN_CUDA) return attn_cuda_schedule(plan, &t, schedule, stream);
#endif
    return plan->kernel->schedule(plan, &t, schedule, stream);
}

attn_status attn_attend(const attn_problem *problem, const attn_tensors *tensors, void *stream) {
    attn_plan *plan;
    attn_status status = attn_plan_create(&plan, problem, NULL);
    if (status) return status;
    void *workspace = NULL;
    const size_t bytes = (attn_plan_workspace(plan) + 63) / 64 * 64;
    if (bytes && plan->problem.device != ATTN_CPU)
        status = attn_fail(ATTN_UNSUPPORTED,
                           "attn_attend: this CUDA plan needs a workspace of %zu bytes in device "
                           "memory; use attn_plan_create and attn_run", bytes);
    else if (bytes && !(workspace = aligned_alloc(64, bytes)))
        status = attn_fail(ATTN_NO_MEMORY, "out of memory for a workspace of %zu bytes", bytes);
    if (!status) status = attn_run(plan, tensors, workspace, stream);
    free(workspace);
    attn_plan_destroy(plan);
    return status;
}
