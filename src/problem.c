/* problem.c — defaults, validation and the features that a problem needs. */
#include "float_mode.h"
#include "kernel.h"
#include <math.h>
#include <string.h>

enum { MAX_DIM = 1024 };
static const int64_t max_length = (int64_t)1 << 40;   /* tokens, heads, strides in elements:
                                                         keeps offsets in 63 bits */

int attn_multiply(int64_t a, int64_t b, int64_t *out) {
    if (a < 0 || b < 0) return 0;
    if (a && b > INT64_MAX / a) return 0;
    *out = a * b;
    return 1;
}

int64_t attn_dtype_size(attn_dtype dtype) {
    return dtype == ATTN_F32 ? 4 : dtype == ATTN_F16 || dtype == ATTN_BF16 ? 2 : 0;
}

/* ---- checks that name the field ---- */

attn_status attn_check_range(const char *field, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return ATTN_OK;
    return attn_fail(ATTN_INVALID, "%s = %lld: must be %lld .. %lld", field, (long long)value, (long long)low,
                     (long long)high);
}

static attn_status check_flag(const char *field, int32_t value) {
    if (value == 0 || value == 1) return ATTN_OK;
    return attn_fail(ATTN_INVALID, "%s = %d: must be 0 or 1", field, (int)value);
}

typedef struct { const char *field; int64_t value, low, high; } range_row;

static attn_status check_ranges(const range_row *rows, int count) {
    for (int i = 0; i < count; i++)
        if (attn_check_range(rows[i].field, rows[i].value, rows[i].low, rows[i].high)) return ATTN_INVALID;
    return ATTN_OK;
}

/* ---- struct versions ---- */

attn_status attn_struct_import(void *to, size_t to_size, const void *from, size_t from_size,
                               const char *name) {
    const unsigned char *bytes = from;
    if (from_size < 8 || from_size > 4096)
        return attn_fail(ATTN_INVALID, "%s.struct_size = %zu: use the ATTN_..._INIT macro", name, from_size);
    for (size_t i = to_size; i < from_size; i++)
        if (bytes[i])
            return attn_fail(ATTN_INVALID,
                             "%s.struct_size = %zu: a field that this library (%s) doesn't know is set", name,
                             from_size, attn_version_string());
    memset(to, 0, to_size);
    memcpy(to, from, from_size < to_size ? from_size : to_size);
    return ATTN_OK;
}

/* ---- defaults ---- */

static int stride_is_default(attn_stride s) { return !s.batch && !s.seq && !s.head; }
static int score_stride_is_default(attn_score_stride s) { return !s.batch && !s.head && !s.q && !s.kv; }

static attn_stride dense(int64_t rows, int64_t heads, int64_t dim) {
    return (attn_stride){ .batch = rows * heads * dim, .seq = heads * dim, .head = dim };
}

static attn_score_stride dense_scores(const attn_problem *p) {
    return (attn_score_stride){ .batch = p->q_heads * p->q_len * p->kv_len, .head = p->q_len * p->kv_len,
                                .q = p->kv_len, .kv = 1 };
}

static void default_values(attn_problem *p) {
    if (p->dtype == ATTN_DTYPE_DEFAULT) p->dtype = ATTN_F32;
    if (p->o_dtype == ATTN_DTYPE_DEFAULT) p->o_dtype = p->dtype;
    if (!p->kv_heads) p->kv_heads = p->q_heads;
    if (!p->kv_len && p->kv_empty == 0) p->kv_len = p->q_len;
    if (!p->v_dim) p->v_dim = p->qk_dim;
    if (!p->kv_batch) p->kv_batch = p->batch;
    if (!p->block_table_stride) p->block_table_stride = p->block_table_cols;
    if (p->scale == 0 && p->qk_dim > 0) p->scale = (float)(1 / sqrt((double)p->qk_dim));
    if (!p->window) p->window_left = p->window_right = -1;
}

static void default_strides(attn_problem *p) {
    const int64_t kv_rows = p->page_size ? p->page_size : p->kv_len;
    if (stride_is_default(p->q_stride)) p->q_stride = dense(p->q_len, p->q_heads, p->qk_dim);
    if (stride_is_default(p->o_stride)) p->o_stride = dense(p->q_len, p->q_heads, p->v_dim);
    if (stride_is_default(p->k_stride)) p->k_stride = dense(kv_rows, p->kv_heads, p->qk_dim);
    if (p->v_in_k) p->v_stride = p->k_stride;
    if (stride_is_default(p->v_stride)) p->v_stride = dense(kv_rows, p->kv_heads, p->v_dim);
    if (!p->lse_stride.batch && !p->lse_stride.head && !p->lse_stride.seq) {
        const int64_t rows = p->packed_q ? p->q_total : p->q_len;
        p->lse_stride.batch = p->q_heads * rows;
        p->lse_stride.head = rows;
        p->lse_stride.seq = 1;
    }
    if (p->bias_dtype && score_stride_is_default(p->bias_stride)) p->bias_stride = dense_scores(p);
    if (p->has_mask && score_stride_is_default(p->mask_stride)) p->mask_stride = dense_scores(p);
}

/* ---- validation ---- */

static attn_status check_enums(const attn_problem *p) {
    const range_row rows[] = {
        { "pass", p->pass, ATTN_FORWARD, ATTN_MERGE }, { "device", p->device, ATTN_CPU, ATTN_CUDA },
        { "dtype", p->dtype, ATTN_F32, ATTN_BF16 }, { "o_dtype", p->o_dtype, ATTN_F32, ATTN_BF16 },
        { "bias_dtype", p->bias_dtype, ATTN_DTYPE_DEFAULT, ATTN_BF16 },
        { "alibi", p->alibi, ATTN_ALIBI_NONE, ATTN_ALIBI_PER_BATCH_HEAD },
    };
    if (check_ranges(rows, sizeof rows / sizeof *rows)) return ATTN_INVALID;
    if (p->o_dtype != p->dtype && p->o_dtype != ATTN_F32)
        return attn_fail(ATTN_INVALID, "o_dtype = %d: must be the dtype of Q (%d) or ATTN_F32",
                         (int)p->o_dtype, (int)p->dtype);
    return ATTN_OK;
}

static attn_status check_flags(const attn_problem *p) {
    const struct { const char *field; int32_t value; } flags[] = {
        { "kv_empty", p->kv_empty }, { "v_in_k", p->v_in_k }, { "causal", p->causal },
        { "top_left", p->top_left },
        { "window", p->window }, { "has_mask", p->has_mask }, { "has_sinks", p->has_sinks },
        { "packed_q", p->packed_q }, { "packed_kv", p->packed_kv }, { "has_seqused_q", p->has_seqused_q },
        { "has_seqused_kv", p->has_seqused_kv }, { "has_leftpad_kv", p->has_leftpad_kv },
        { "has_kv_batch_index", p->has_kv_batch_index }, { "strict", p->strict },
    };
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (check_flag(flags[i].field, flags[i].value)) return ATTN_INVALID;
    if (p->reserved) return attn_fail(ATTN_INVALID, "reserved = %d: must be 0", (int)p->reserved);
    return ATTN_OK;
}

static attn_status check_sizes(const attn_problem *p) {
    const range_row rows[] = {
        { "batch", p->batch, 0, max_length }, { "q_heads", p->q_heads, 1, max_length },
        { "kv_heads", p->kv_heads, 1, max_length }, { "q_len", p->q_len, 0, max_length },
        { "kv_len", p->kv_len, 0, max_length }, { "qk_dim", p->qk_dim, 1, MAX_DIM },
        { "v_dim", p->v_dim, 1, MAX_DIM }, { "q_total", p->q_total, 0, max_length },
        { "kv_total", p->kv_total, 0, max_length }, { "kv_batch", p->kv_batch, 0, max_length },
        { "page_size", p->page_size, 0, max_length }, { "pages", p->pages, 0, (int64_t)1 << 31 },
        { "block_table_cols", p->block_table_cols, 0, max_length },
        { "block_table_stride", p->block_table_stride, 0, max_length },
        { "window_left", p->window ? p->window_left : -1, -1, INT64_MAX / 4 },
        { "window_right", p->window ? p->window_right : -1, -1, INT64_MAX / 4 },
    };
    if (check_ranges(rows, sizeof rows / sizeof *rows)) return ATTN_INVALID;
    if (!isfinite(p->scale)) return attn_fail(ATTN_INVALID, "scale = %g: must be finite", (double)p->scale);
    if (!(p->softcap >= 0) || !isfinite(p->softcap))
        return attn_fail(ATTN_INVALID, "softcap = %g: must be finite and >= 0", (double)p->softcap);
    return ATTN_OK;
}

static attn_status check_relations(const attn_problem *p) {
    if (p->q_heads % p->kv_heads)
        return attn_fail(ATTN_INVALID, "q_heads = %lld: must be a multiple of kv_heads = %lld",
                         (long long)p->q_heads, (long long)p->kv_heads);
    if (p->kv_empty && p->kv_len)
        return attn_fail(ATTN_INVALID, "kv_empty = 1: kv_len = %lld must be 0", (long long)p->kv_len);
    if (p->v_in_k && p->v_dim > p->qk_dim)
        return attn_fail(ATTN_INVALID, "v_dim = %lld: with v_in_k at most qk_dim = %lld", (long long)p->v_dim,
                         (long long)p->qk_dim);
    if (p->page_size && p->packed_kv)
        return attn_fail(ATTN_INVALID, "packed_kv = 1: paged K/V (page_size = %lld) can't be packed too",
                         (long long)p->page_size);
    if (p->page_size && p->has_kv_batch_index)
        return attn_fail(ATTN_INVALID,
                         "has_kv_batch_index = 1: paged K/V name their pages by block_table instead");
    if (p->page_size && p->has_leftpad_kv)
        return attn_fail(ATTN_INVALID, "has_leftpad_kv = 1: not with paged K/V");
    if (p->packed_kv && (p->has_kv_batch_index || p->has_leftpad_kv))
        return attn_fail(ATTN_INVALID, "packed_kv = 1: not with kv_batch_index or leftpad_kv");
    if (!p->has_kv_batch_index && !p->page_size && !p->packed_kv && p->kv_batch != p->batch)
        return attn_fail(ATTN_INVALID, "kv_batch = %lld: must be batch = %lld unless has_kv_batch_index",
                         (long long)p->kv_batch, (long long)p->batch);
    if (p->page_size && (p->kv_len + p->page_size - 1) / p->page_size > p->block_table_cols)
        return attn_fail(ATTN_INVALID, "block_table_cols = %lld: kv_len = %lld needs %lld pages of %lld",
                         (long long)p->block_table_cols, (long long)p->kv_len,
                         (long long)((p->kv_len + p->page_size - 1) / p->page_size), (long long)p->page_size);
    if (p->page_size && p->block_table_stride < p->block_table_cols)
        return attn_fail(ATTN_INVALID, "block_table_stride = %lld: must be >= block_table_cols = %lld",
                         (long long)p->block_table_stride, (long long)p->block_table_cols);
    return ATTN_OK;
}

/* The highest element offset a tensor can reach must fit 62 bits; strides may not be negative. */
static attn_status check_extent(const char *field, int64_t element_size, const int64_t extents[4],
                                const int64_t strides[4]) {
    static const char *const dims[] = { "batch", "seq or q", "head", "dim or kv" };
    int64_t sum = 0, part = 0;
    for (int i = 0; i < 4; i++) {
        if (strides[i] < 0)
            return attn_fail(ATTN_INVALID, "%s (%s) = %lld: must be >= 0", field, dims[i],
                             (long long)strides[i]);
        if (extents[i] > 1 && (!attn_multiply(extents[i] - 1, strides[i], &part) ||
                               part > (INT64_MAX >> 3) - sum))
            return attn_fail(ATTN_INVALID, "%s (%s) = %lld: offsets of %lld rows overflow 64 bits", field,
                             dims[i], (long long)strides[i], (long long)extents[i]);
        if (extents[i] > 1) sum += part;
    }
    if (sum > (INT64_MAX >> 2) / element_size)
        return attn_fail(ATTN_INVALID, "%s: offsets in bytes overflow 64 bits", field);
    return ATTN_OK;
}

attn_status attn_check_tensor(const char *field, attn_dtype dtype, attn_stride s, int64_t batch, int64_t seq,
                              int64_t heads, int64_t dim) {
    const int64_t extents[4] = { batch, seq, heads, dim }, strides[4] = { s.batch, s.seq, s.head, 1 };
    return check_extent(field, attn_dtype_size(dtype), extents, strides);
}

static attn_status check_scores(const char *field, int64_t element_size, attn_score_stride s,
                                const attn_problem *p) {
    const int64_t extents[4] = { p->batch, p->q_len, p->q_heads, p->kv_len },
                  strides[4] = { s.batch, s.q, s.head, s.kv };
    return check_extent(field, element_size, extents, strides);
}

/* Taken from the smallest stride up, every dim must step over all that the dims inside it reach:
 * then no two rows of `width` elements share one. (Extents and strides have passed check_extent:
 * nothing here overflows.) */
int attn_rows_overlap(const int64_t extents[3], const int64_t strides[3], int64_t width) {
    int order[3] = { 0, 1, 2 };
    if (!extents[0] || !extents[1] || !extents[2]) return 0;
    for (int i = 1; i < 3; i++)
        for (int j = i; j > 0 && strides[order[j]] < strides[order[j - 1]]; j--) {
            const int other = order[j];
            order[j] = order[j - 1];
            order[j - 1] = other;
        }
    int64_t reach = width - 1;
    for (int i = 0; i < 3; i++) {
        const int64_t extent = extents[order[i]], stride = strides[order[i]];
        if (extent <= 1) continue;
        if (stride <= reach) return 1;
        reach += (extent - 1) * stride;
    }
    return 0;
}

/* Two rows of an output at the same address would be written twice, by two threads. */
static attn_status check_outputs(const attn_problem *p) {
    const int64_t batch = p->packed_q ? 1 : p->batch, seq = p->packed_q ? p->q_total : p->q_len;
    const int64_t extents[4] = { batch, seq, p->q_heads, 1 },
                  o[3] = { p->o_stride.batch, p->o_stride.seq, p->o_stride.head },
                  lse[4] = { p->lse_stride.batch, p->lse_stride.seq, p->lse_stride.head, 1 };
    if (check_extent("lse_stride", 4, extents, lse)) return ATTN_INVALID;
    if (!batch || !seq) return ATTN_OK;
    if (attn_rows_overlap(extents, o, p->v_dim))
        return attn_fail(ATTN_INVALID, "o_stride = {%lld, %lld, %lld}: rows of O may not share memory",
                         (long long)o[0], (long long)o[1], (long long)o[2]);
    if (attn_rows_overlap(extents, lse, 1))
        return attn_fail(ATTN_INVALID, "lse_stride = {%lld, %lld, %lld}: rows of LSE may not share memory",
                         (long long)lse[0], (long long)lse[2], (long long)lse[1]);
    return ATTN_OK;
}

static attn_status check_strides(const attn_problem *p) {
    const int64_t q_batch = p->packed_q ? 1 : p->batch, q_seq = p->packed_q ? p->q_total : p->q_len;
    const int64_t kv_batch = p->page_size ? p->pages : p->packed_kv ? 1 : p->kv_batch;
    const int64_t kv_seq = p->page_size ? p->page_size : p->packed_kv ? p->kv_total : p->kv_len;
    if (attn_check_tensor("q_stride", p->dtype, p->q_stride, q_batch, q_seq, p->q_heads, p->qk_dim) ||
        attn_check_tensor("k_stride", p->dtype, p->k_stride, kv_batch, kv_seq, p->kv_heads, p->qk_dim) ||
        attn_check_tensor("v_stride", p->dtype, p->v_stride, kv_batch, kv_seq, p->kv_heads, p->v_dim) ||
        attn_check_tensor("o_stride", p->o_dtype, p->o_stride, q_batch, q_seq, p->q_heads, p->v_dim) ||
        check_outputs(p))
        return ATTN_INVALID;
    if (p->bias_dtype && check_scores("bias_stride", attn_dtype_size(p->bias_dtype), p->bias_stride, p))
        return ATTN_INVALID;
    return p->has_mask ? check_scores("mask_stride", 1, p->mask_stride, p) : ATTN_OK;
}

/* The dense defaults multiply extents; refuse sizes whose product would overflow before it is formed. */
static attn_status check_products(const attn_problem *p) {
    const struct { const char *field; int64_t rows; const char *by; int64_t heads; } products[] = {
        { "q_len", p->q_len, "q_heads", p->q_heads }, { "q_total", p->q_total, "q_heads", p->q_heads },
        { "kv_len", p->kv_len, "kv_heads", p->kv_heads },
        { "page_size", p->page_size, "kv_heads", p->kv_heads },
    };
    int64_t n;
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        if (!attn_multiply(products[i].rows, products[i].heads, &n) || !attn_multiply(n, MAX_DIM, &n))
            return attn_fail(ATTN_INVALID, "%s = %lld: times %s = %lld overflows 64 bits", products[i].field,
                             (long long)products[i].rows, products[i].by, (long long)products[i].heads);
    if (!attn_multiply(p->batch, p->q_heads, &n) || !attn_multiply(n, p->q_len, &n))
        return attn_fail(ATTN_INVALID,
                         "batch = %lld: times q_heads = %lld times q_len = %lld overflows 64 bits",
                         (long long)p->batch, (long long)p->q_heads, (long long)p->q_len);
    if ((p->bias_dtype || p->has_mask) && (!attn_multiply(p->q_len, p->kv_len, &n) ||
                                           !attn_multiply(n, p->q_heads, &n)))
        return attn_fail(ATTN_INVALID, "q_len * kv_len * q_heads overflows 64 bits");
    return ATTN_OK;
}

static attn_status complete(attn_problem *p) {
    if (p->pass == ATTN_KV_APPEND) attn_append_sizes(p);
    default_values(p);
    if (check_enums(p) || check_flags(p) || check_sizes(p)) return ATTN_INVALID;
    if (check_relations(p) || check_products(p)) return ATTN_INVALID;
    default_strides(p);
    return p->pass == ATTN_KV_APPEND ? attn_append_complete(p) : check_strides(p);
}

attn_status attn_problem_import(attn_problem *to, const attn_problem *from) {
    if (!from) return attn_fail(ATTN_INVALID, "problem = NULL");
    attn_problem p;
    if (attn_struct_import(&p, sizeof p, from, from->struct_size, "problem")) return ATTN_INVALID;
    p.struct_size = (uint32_t)sizeof p;
    const attn_float_mode mode = attn_float_enter();
    const attn_status status = complete(&p);
    attn_float_leave(mode);
    if (!status) *to = p;
    return status;
}

attn_status attn_problem_resolve(attn_problem *problem) {
    attn_problem p;
    if (attn_problem_import(&p, problem)) return ATTN_INVALID;
    p.struct_size = problem->struct_size;
    memcpy(problem, &p, p.struct_size < sizeof p ? p.struct_size : sizeof p);
    return ATTN_OK;
}

/* ---- features ---- */

unsigned attn_problem_needs(const attn_problem *p) {
    unsigned needs = 0;
    if (p->pass == ATTN_KV_APPEND) return attn_append_needs(p);
    if (p->causal)                                 needs |= ATTN_NEEDS_CAUSAL;
    if (p->window && (p->window_left >= 0 || p->window_right >= 0)) needs |= ATTN_NEEDS_WINDOW;
    if (p->bias_dtype)                             needs |= ATTN_NEEDS_BIAS;
    if (p->has_mask)                               needs |= ATTN_NEEDS_MASK;
    if (p->alibi)                                  needs |= ATTN_NEEDS_ALIBI;
    if (p->softcap > 0)                            needs |= ATTN_NEEDS_SOFTCAP;
    if (p->has_sinks)                              needs |= ATTN_NEEDS_SINKS;
    if (p->packed_q || p->packed_kv)               needs |= ATTN_NEEDS_PACKED;
    if (p->has_seqused_q || p->has_seqused_kv)     needs |= ATTN_NEEDS_SEQUSED;
    if (p->has_leftpad_kv)                         needs |= ATTN_NEEDS_LEFTPAD;
    if (p->has_kv_batch_index)                     needs |= ATTN_NEEDS_KV_INDEX;
    if (p->page_size)                              needs |= ATTN_NEEDS_PAGES;
    if (p->q_heads != p->kv_heads)                 needs |= ATTN_NEEDS_GQA;
    if (p->qk_dim != p->v_dim)                     needs |= ATTN_NEEDS_V_DIM;
    if (p->v_in_k)                                 needs |= ATTN_NEEDS_V_IN_K;
    if (p->o_dtype != p->dtype)                    needs |= ATTN_NEEDS_O_F32;
    if (p->strict)                                 needs |= ATTN_NEEDS_STRICT;
    return needs;
}

const char *attn_needs_sentence(unsigned bit) {
    switch (bit) {
    case ATTN_NEEDS_CAUSAL:   return "no causal mask";
    case ATTN_NEEDS_WINDOW:   return "no sliding window";
    case ATTN_NEEDS_BIAS:     return "no additive bias";
    case ATTN_NEEDS_MASK:     return "no boolean mask";
    case ATTN_NEEDS_ALIBI:    return "no ALiBi";
    case ATTN_NEEDS_SOFTCAP:  return "no softcap";
    case ATTN_NEEDS_SINKS:    return "no attention sinks";
    case ATTN_NEEDS_PACKED:   return "no packed sequences (cu_seqlens)";
    case ATTN_NEEDS_SEQUSED:  return "no per-sequence used lengths (seqused)";
    case ATTN_NEEDS_LEFTPAD:  return "no left padding";
    case ATTN_NEEDS_KV_INDEX: return "no kv_batch_index";
    case ATTN_NEEDS_PAGES:    return "no paged K/V";
    case ATTN_NEEDS_GQA:      return "needs kv_heads == q_heads";
    case ATTN_NEEDS_V_DIM:    return "needs v_dim == qk_dim";
    case ATTN_NEEDS_V_IN_K:   return "no V inside K";
    case ATTN_NEEDS_O_F32:    return "O only in the dtype of Q";
    case ATTN_NEEDS_STRICT:   return "no strict mode";
    case ATTN_NEEDS_ROTARY:   return "no rotary embedding";
    case ATTN_NEEDS_CONVERT:  return "new rows only in the dtype of the cache";
    default:                  return "a feature is missing";
    }
}
