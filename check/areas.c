/* areas.c — the memory of a case: how many bytes each tensor spans, a guarded area and a host image for each.
 * Whatever isn't written later stays 0xFF: NaN in every float dtype, visible in a mask, out of range in a
 * table. */
#include "data.h"
#include <stdlib.h>
#include <unistd.h>

const char *const check_area_names[AREAS] = {
    "q", "k", "v", "o", "lse", "bias", "mask", "alibi_slopes", "sinks", "cu_seqlens_q", "cu_seqlens_kv",
    "seqused_q", "seqused_kv", "leftpad_kv", "kv_batch_index", "block_table", "workspace"
};

/* Elements from the first to the last, or 0 if the tensor has none. */
static int64_t span(int64_t batch, int64_t seq, int64_t heads, int64_t dim, attn_stride s) {
    if (!batch || !seq || !heads || !dim) return 0;
    return (batch - 1) * s.batch + (seq - 1) * s.seq + (heads - 1) * s.head + dim;
}

static int64_t span_q(const attn_problem *p, int64_t dim, attn_stride s) {
    return span(p->packed_q ? 1 : p->batch, p->packed_q ? p->q_total : p->q_len, p->q_heads, dim, s);
}

static int64_t span_kv(const attn_problem *p, int64_t dim, attn_stride s) {
    if (p->page_size) return span(p->pages, p->page_size, p->kv_heads, dim, s);
    return span(p->packed_kv ? 1 : p->kv_batch, p->packed_kv ? p->kv_total : p->kv_len, p->kv_heads, dim, s);
}

static int64_t span_scores(const attn_problem *p, attn_score_stride s) {
    if (!p->batch || !p->q_heads || !p->q_len || !p->kv_len) return 0;
    return (p->batch - 1) * s.batch + (p->q_heads - 1) * s.head + (p->q_len - 1) * s.q +
           (p->kv_len - 1) * s.kv + 1;
}

static int64_t span_lse(const attn_problem *p) {
    const attn_stride s = { p->lse_stride.batch, p->lse_stride.seq, p->lse_stride.head };
    return span_q(p, 1, s);
}

static int64_t span_table(const attn_problem *p) {
    return p->page_size && p->batch ? (p->batch - 1) * p->block_table_stride + p->block_table_cols : 0;
}

size_t check_area_bytes(const check_data *data, area_name name) {
    const attn_problem *p = &data->problem;
    const int64_t size = check_element_size(p->dtype);
    int64_t n = 0;
    switch (name) {
    case AREA_Q:       n = span_q(p, p->qk_dim, p->q_stride) * size; break;
    case AREA_K:       n = span_kv(p, p->qk_dim, p->k_stride) * size; break;
    case AREA_V:       n = p->v_in_k ? 0 : span_kv(p, p->v_dim, p->v_stride) * size; break;
    case AREA_O:       n = span_q(p, p->v_dim, p->o_stride) * check_element_size(p->o_dtype); break;
    case AREA_LSE:     n = data->what.no_lse ? 0 : span_lse(p) * 4; break;
    case AREA_BIAS:
        n = p->bias_dtype ? span_scores(p, p->bias_stride) * check_element_size(p->bias_dtype) : 0;
        break;
    case AREA_MASK:    n = p->has_mask ? span_scores(p, p->mask_stride) : 0; break;
    case AREA_ALIBI:
        n = p->alibi ? p->q_heads * (p->alibi == ATTN_ALIBI_PER_BATCH_HEAD ? p->batch : 1) * 4 : 0;
        break;
    case AREA_SINKS:   n = p->has_sinks ? p->q_heads * 4 : 0; break;
    case AREA_CU_Q:    n = p->packed_q ? (p->batch + 1) * 4 : 0; break;
    case AREA_CU_KV:   n = p->packed_kv ? (p->batch + 1) * 4 : 0; break;
    case AREA_USED_Q:  n = p->has_seqused_q ? p->batch * 4 : 0; break;
    case AREA_USED_KV: n = p->has_seqused_kv ? p->batch * 4 : 0; break;
    case AREA_LEFTPAD: n = p->has_leftpad_kv ? p->batch * 4 : 0; break;
    case AREA_INDEX:   n = p->has_kv_batch_index ? p->batch * 4 : 0; break;
    case AREA_TABLE:   n = span_table(p) * 4; break;
    default:           break;
    }
    return (size_t)n;
}

/* Is the pointer given at all? A tensor of no bytes still is. */
static int wanted(const check_data *data, area_name name) {
    const attn_problem *p = &data->problem;
    switch (name) {
    case AREA_V:       return !p->v_in_k;
    case AREA_LSE:     return !data->what.no_lse;
    case AREA_BIAS:    return p->bias_dtype != 0;
    case AREA_MASK:    return p->has_mask;
    case AREA_ALIBI:   return p->alibi != 0;
    case AREA_SINKS:   return p->has_sinks;
    case AREA_CU_Q:    return p->packed_q;
    case AREA_CU_KV:   return p->packed_kv;
    case AREA_USED_Q:  return p->has_seqused_q;
    case AREA_USED_KV: return p->has_seqused_kv;
    case AREA_LEFTPAD: return p->has_leftpad_kv;
    case AREA_INDEX:   return p->has_kv_batch_index;
    case AREA_TABLE:   return p->page_size > 0;
    case AREA_WORKSPACE: return data->areas[AREA_WORKSPACE].bytes > 0;
    default:           return 1;
    }
}

enum { MARGIN = 4096 };

attn_status check_area_create(check_data *data, area_name name, size_t bytes, size_t alignment) {
    area *a = &data->areas[name];
    const int guarded = data->memory.alloc == check_host_memory.alloc;
    a->bytes = bytes;
    if (guarded) {
        const size_t page = (size_t)sysconf(_SC_PAGESIZE);
        a->total = (bytes + page - 1) / page * page;
        if (!a->total) a->total = page;
        a->offset = data->align_end || !bytes ? (a->total - bytes) / alignment * alignment : 0;
    } else {
        a->total = bytes + 2 * MARGIN;
        a->offset = MARGIN;
    }
    a->base = data->memory.alloc(data->memory.context, a->total);
    a->image = malloc(a->total);
    if (!a->base || !a->image) return ATTN_NO_MEMORY;
    memset(a->image, 0xFF, a->total);
    return ATTN_OK;
}

void check_area_destroy(check_data *data, area_name name) {
    area *a = &data->areas[name];
    if (a->base) data->memory.free(data->memory.context, a->base);
    free(a->image);
    *a = (area){ 0 };
}

int check_area_upload(check_data *data, area_name name) {
    area *a = &data->areas[name];
    return a->base && data->memory.upload(data->memory.context, a->base, a->image, a->total);
}

static void point(const check_data *data, attn_tensors *t, int host) {
    unsigned char *at[AREAS];
    for (int n = 0; n < AREAS; n++) {
        const area *a = &data->areas[n];
        at[n] = a->base && wanted(data, (area_name)n) ? (host ? a->image : a->base) + a->offset : NULL;
    }
    *t = (attn_tensors)ATTN_TENSORS_INIT;
    t->q = at[AREA_Q];
    t->k = at[AREA_K];
    t->v = at[AREA_V];
    t->o = at[AREA_O];
    t->lse = (float *)(void *)at[AREA_LSE];
    t->bias = at[AREA_BIAS];
    t->mask = at[AREA_MASK];
    t->alibi_slopes = (const float *)(void *)at[AREA_ALIBI];
    t->sinks = (const float *)(void *)at[AREA_SINKS];
    t->cu_seqlens_q = (const int32_t *)(void *)at[AREA_CU_Q];
    t->cu_seqlens_kv = (const int32_t *)(void *)at[AREA_CU_KV];
    t->seqused_q = (const int32_t *)(void *)at[AREA_USED_Q];
    t->seqused_kv = (const int32_t *)(void *)at[AREA_USED_KV];
    t->leftpad_kv = (const int32_t *)(void *)at[AREA_LEFTPAD];
    t->kv_batch_index = (const int32_t *)(void *)at[AREA_INDEX];
    t->block_table = (const int32_t *)(void *)at[AREA_TABLE];
}

void check_areas_point(check_data *data) {
    point(data, &data->tensors, 0);
    point(data, &data->host, 1);
}

static const void *source(const attn_tensors *t, area_name name) {
    const void *const pointers[] = { t->q, t->k, t->v, NULL, NULL, t->bias, t->mask, t->alibi_slopes,
                                     t->sinks, t->cu_seqlens_q, t->cu_seqlens_kv, t->seqused_q, t->seqused_kv,
                                     t->leftpad_kv, t->kv_batch_index, t->block_table };
    return pointers[name];
}

attn_status check_areas_create(check_data *data, const attn_tensors *host) {
    for (int n = 0; n < AREA_WORKSPACE; n++) {
        const area_name name = (area_name)n;
        if (!wanted(data, name)) continue;
        const size_t bytes = check_area_bytes(data, name);
        if (check_area_create(data, name, bytes, 1)) return ATTN_NO_MEMORY;
        if (host && bytes && source(host, name)) memcpy(check_image(data, name), source(host, name), bytes);
    }
    check_areas_point(data);
    return ATTN_OK;
}
