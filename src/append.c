/* append.c — the cache append's own fields: defaults, validation, features; its pointers, lengths and page
 * ids. What it shares with the forward pass (sizes, cache, pages) is checked in problem.c. */
#include "append.h"
#include "kernel.h"

/* ---- the problem ---- */

static int is_default(attn_stride s) { return !s.batch && !s.seq && !s.head; }

static attn_stride dense(int64_t rows, int64_t heads, int64_t dim) {
    return (attn_stride){ .batch = rows * heads * dim, .seq = heads * dim, .head = dim };
}

void attn_append_sizes(attn_problem *p) {
    int64_t tokens;
    if (!p->q_heads) p->q_heads = p->kv_heads;
    if (!p->kv_len && p->page_size && attn_multiply(p->block_table_cols, p->page_size, &tokens))
        p->kv_len = tokens;
    if (!p->kv_len) p->kv_empty = 1;       /* no capacity is not "as long as Q" */
    if (!p->new_dtype) p->new_dtype = p->dtype ? p->dtype : ATTN_F32;
    if (!p->rotary_dtype) p->rotary_dtype = p->new_dtype;
    if (!p->rotary_stride) p->rotary_stride = p->rotary_dim / 2;
}

static attn_status check_fields(const attn_problem *p) {
    const struct { const char *field; int64_t value, low, high; } rows[] = {
        { "new_len", p->new_len, 0, (int64_t)1 << 40 }, { "new_total", p->new_total, 0, (int64_t)1 << 40 },
        { "packed_new", p->packed_new, 0, 1 }, { "new_dtype", p->new_dtype, ATTN_F32, ATTN_BF16 },
        { "write_q", p->write_q, 0, 1 }, { "rotary_dim", p->rotary_dim, 0, p->qk_dim },
        { "rotary_first", p->rotary_first, 0, p->qk_dim - p->rotary_dim },
        { "rotary_interleaved", p->rotary_interleaved, 0, 1 }, { "rotary_q_fixed", p->rotary_q_fixed, 0, 1 },
        { "has_rotary_offsets", p->has_rotary_offsets, 0, 1 },
        { "rotary_dtype", p->rotary_dtype, ATTN_F32, ATTN_BF16 },
        { "reserved_append", p->reserved_append, 0, 0 },
        { "rotary_rows", p->rotary_rows, p->rotary_dim > 0, (int64_t)1 << 40 },
        { "rotary_stride", p->rotary_stride, p->rotary_dim / 2, (int64_t)1 << 40 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (attn_check_range(rows[i].field, rows[i].value, rows[i].low, rows[i].high)) return ATTN_INVALID;
    if (p->rotary_dim % 2)
        return attn_fail(ATTN_INVALID, "rotary_dim = %d: must be even", (int)p->rotary_dim);
    if (p->packed_kv) return attn_fail(ATTN_INVALID, "packed_kv = 1: packed K/V have no room for new rows");
    return ATTN_OK;
}

static attn_status check_overlap(const char *field, attn_stride s, int64_t batch, int64_t seq, int64_t heads,
                                 int64_t dim) {
    const int64_t extents[3] = { batch, seq, heads }, strides[3] = { s.batch, s.seq, s.head };
    if (!attn_rows_overlap(extents, strides, dim)) return ATTN_OK;
    return attn_fail(ATTN_INVALID, "%s = {%lld, %lld, %lld}: rows that are written may not share memory",
                     field, (long long)s.batch, (long long)s.seq, (long long)s.head);
}

static attn_status check_written(const char *field, attn_problem *p, attn_stride s, int64_t batch,
                                 int64_t seq, int64_t heads, int64_t dim) {
    if (attn_check_tensor(field, p->dtype, s, batch, seq, heads, dim)) return ATTN_INVALID;
    return check_overlap(field, s, batch, seq, heads, dim);
}

attn_status attn_append_complete(attn_problem *p) {
    int64_t n;
    if (check_fields(p)) return ATTN_INVALID;
    if (!attn_multiply(p->new_len > p->new_total ? p->new_len : p->new_total, p->kv_heads, &n) ||
        !attn_multiply(n, 1024, &n) || !attn_multiply(p->batch, p->new_len, &n))
        return attn_fail(ATTN_INVALID,
                         "new_len = %lld, new_total = %lld: times the heads or the batch overflows 64 bits",
                         (long long)p->new_len, (long long)p->new_total);
    if (is_default(p->k_new_stride)) p->k_new_stride = dense(p->new_len, p->kv_heads, p->qk_dim);
    if (is_default(p->v_new_stride)) p->v_new_stride = dense(p->new_len, p->kv_heads, p->v_dim);
    if (is_default(p->q_out_stride)) p->q_out_stride = dense(p->q_len, p->q_heads, p->qk_dim);
    const int64_t new_batch = p->packed_new ? 1 : p->batch,
                  new_seq = p->packed_new ? p->new_total : p->new_len;
    const int64_t kv_batch = p->page_size ? p->pages : p->kv_batch,
                  kv_seq = p->page_size ? p->page_size : p->kv_len;
    const int64_t q_batch = p->packed_q ? 1 : p->batch, q_seq = p->packed_q ? p->q_total : p->q_len;
    if (attn_check_tensor("k_new_stride", p->new_dtype, p->k_new_stride, new_batch, new_seq, p->kv_heads,
                          p->qk_dim) ||
        check_written("k_stride", p, p->k_stride, kv_batch, kv_seq, p->kv_heads, p->qk_dim))
        return ATTN_INVALID;
    if (!p->v_in_k &&
        (attn_check_tensor("v_new_stride", p->new_dtype, p->v_new_stride, new_batch, new_seq, p->kv_heads,
                           p->v_dim) ||
         check_written("v_stride", p, p->v_stride, kv_batch, kv_seq, p->kv_heads, p->v_dim)))
        return ATTN_INVALID;
    if (p->write_q &&
        (attn_check_tensor("q_stride", p->new_dtype, p->q_stride, q_batch, q_seq, p->q_heads, p->qk_dim) ||
         check_written("q_out_stride", p, p->q_out_stride, q_batch, q_seq, p->q_heads, p->qk_dim)))
        return ATTN_INVALID;
    const attn_stride table = { 0, p->rotary_stride, 0 };
    return p->rotary_dim ? attn_check_tensor("rotary_stride", p->rotary_dtype, table, 1, p->rotary_rows, 1,
                                             p->rotary_dim / 2) : ATTN_OK;
}

unsigned attn_append_needs(const attn_problem *p) {
    unsigned needs = 0;
    if (p->packed_new || (p->write_q && p->packed_q)) needs |= ATTN_NEEDS_PACKED;
    if (p->has_seqused_kv)                            needs |= ATTN_NEEDS_SEQUSED;
    if (p->has_leftpad_kv)                            needs |= ATTN_NEEDS_LEFTPAD;
    if (p->has_kv_batch_index)                        needs |= ATTN_NEEDS_KV_INDEX;
    if (p->page_size)                                 needs |= ATTN_NEEDS_PAGES;
    if (p->qk_dim != p->v_dim)                        needs |= ATTN_NEEDS_V_DIM;
    if (p->v_in_k)                                    needs |= ATTN_NEEDS_V_IN_K;
    if (p->rotary_dim)                                needs |= ATTN_NEEDS_ROTARY;
    if (p->new_dtype != p->dtype)                     needs |= ATTN_NEEDS_CONVERT;
    return needs;
}

/* Below 256 KB a second thread isn't worth waking. */
int attn_append_is_tiny(const attn_problem *p) {
    const int64_t rows = p->packed_new ? p->new_total : p->batch * p->new_len;
    const int64_t q_rows = !p->write_q ? 0 : p->packed_q ? p->q_total : p->batch * p->q_len;
    int64_t k, q;
    if (!attn_multiply(rows, p->kv_heads * (p->qk_dim + p->v_dim), &k)) return 0;
    if (!attn_multiply(q_rows, p->q_heads * p->qk_dim, &q)) return 0;
    return k < 131072 && q < 131072;
}

/* ---- a run ---- */

attn_status attn_append_check_pointers(const attn_problem *p, const attn_tensors *t) {
    const size_t cache = (size_t)attn_dtype_size(p->dtype), fresh = (size_t)attn_dtype_size(p->new_dtype);
    const size_t table = (size_t)attn_dtype_size(p->rotary_dtype);
    const int batch = p->batch != 0, rows = batch && (p->packed_new ? p->new_total : p->new_len) > 0;
    const int q_rows = batch && p->write_q && (p->packed_q ? p->q_total : p->q_len) > 0;
    const int turned = p->rotary_dim && (rows || q_rows);
    const struct { const char *field; const void *pointer; int needed; size_t alignment; } fields[] = {
        { "k_new", t->k_new, rows, fresh }, { "v_new", t->v_new, rows && !p->v_in_k, fresh },
        { "k", t->k, rows && p->kv_len, cache }, { "v", t->v, rows && p->kv_len && !p->v_in_k, cache },
        { "q", t->q, q_rows, fresh }, { "q_out", t->q_out, q_rows, cache },
        { "rotary_cos", t->rotary_cos, turned, table }, { "rotary_sin", t->rotary_sin, turned, table },
        { "rotary_offsets", t->rotary_offsets, batch && p->rotary_dim && p->has_rotary_offsets, 4 },
        { "cu_seqlens_new", t->cu_seqlens_new, p->packed_new && batch, 4 },
        { "cu_seqlens_q", t->cu_seqlens_q, p->packed_q && q_rows, 4 },
        { "seqused_q", t->seqused_q, p->has_seqused_q && q_rows, 4 },
        { "leftpad_kv", t->leftpad_kv, p->has_leftpad_kv && q_rows, 4 },
        { "seqused_kv", t->seqused_kv, p->has_seqused_kv && batch, 4 },
        { "kv_batch_index", t->kv_batch_index, p->has_kv_batch_index && batch, 4 },
        { "block_table", t->block_table, p->page_size && batch, 4 },
        { "seqused_kv_out", t->seqused_kv_out, 0, 4 },
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (attn_check_pointer(fields[i].field, fields[i].pointer, fields[i].needed, fields[i].alignment))
            return ATTN_INVALID;
    if (t->seqused_kv_out && p->has_seqused_kv && t->seqused_kv_out == t->seqused_kv)
        return attn_fail(ATTN_INVALID, "tensors.seqused_kv_out: must not be seqused_kv itself");
    if (!q_rows || t->q_out != t->q) return ATTN_OK;
    if (p->dtype != p->new_dtype || p->q_out_stride.batch != p->q_stride.batch ||
        p->q_out_stride.seq != p->q_stride.seq || p->q_out_stride.head != p->q_stride.head)
        return attn_fail(ATTN_INVALID, "tensors.q_out = q: in place needs the same dtype and strides");
    return ATTN_OK;
}

static attn_status check_positions(const attn_problem *p, const attn_append *a, int64_t b, int64_t rows) {
    if (!p->rotary_dim || rows <= 0) return ATTN_OK;
    if (a->position >= 0 && a->position + rows <= p->rotary_rows) return ATTN_OK;
    return attn_fail(ATTN_INVALID,
                     "sequence %lld: positions %lld .. %lld, but the rotary tables have rotary_rows = %lld",
                     (long long)b, (long long)a->position, (long long)(a->position + rows - 1),
                     (long long)p->rotary_rows);
}

static attn_status check_slots(const attn_problem *p, const attn_append *a, int64_t b, int64_t rows) {
    if (attn_check_entry("seqused_kv", b, a->slot, 0, p->kv_len)) return ATTN_INVALID;
    if (a->slot + rows > p->kv_len)
        return attn_fail(ATTN_INVALID,
                         "%s[%lld] = %lld: the cache has kv_len = %lld slots a sequence, %lld new rows "
                         "need %lld", a->pages ? "block_table: seqused_kv" : "seqused_kv", (long long)b,
                         (long long)a->slot, (long long)p->kv_len, (long long)rows,
                         (long long)(a->slot + rows));
    if (p->has_kv_batch_index && attn_check_entry("kv_batch_index", b, a->kv_batch, 0, p->kv_batch - 1))
        return ATTN_INVALID;
    for (int64_t i = 0; a->pages && i < rows; i += p->page_size - (a->slot + i) % p->page_size) {
        const int64_t column = (a->slot + i) / p->page_size;
        if (a->pages[column] < 0 || a->pages[column] >= p->pages)
            return attn_fail(ATTN_INVALID, "block_table[%lld][%lld] = %d: page ids are 0 .. %lld",
                             (long long)b, (long long)column, (int)a->pages[column], (long long)p->pages - 1);
    }
    return ATTN_OK;
}

attn_status attn_append_check_lengths(const attn_problem *p, const attn_tensors *t) {
    if (p->packed_new &&
        attn_check_offsets("cu_seqlens_new", t->cu_seqlens_new, p->batch, p->new_total, p->new_len,
                           "new_len"))
        return ATTN_INVALID;
    const int q = p->write_q && (p->packed_q ? p->q_total : p->q_len) > 0;
    if (q && p->packed_q &&
        attn_check_offsets("cu_seqlens_q", t->cu_seqlens_q, p->batch, p->q_total, p->q_len, "q_len"))
        return ATTN_INVALID;
    for (int64_t b = 0; b < p->batch; b++) {
        const attn_append a = attn_append_at(p, t, b);
        const int64_t rows = p->packed_new ? t->cu_seqlens_new[b + 1] - t->cu_seqlens_new[b] : p->new_len;
        int64_t q_rows = !q ? 0 : p->packed_q ? t->cu_seqlens_q[b + 1] - t->cu_seqlens_q[b] : p->q_len;
        if (q && p->has_seqused_q && attn_check_entry("seqused_q", b, t->seqused_q[b], 0, q_rows))
            return ATTN_INVALID;
        if (q && p->has_seqused_q) q_rows = t->seqused_q[b];
        if (p->rotary_q_fixed && q_rows > 1) q_rows = 1;
        if (check_slots(p, &a, b, rows) || check_positions(p, &a, b, rows) ||
            check_positions(p, &a, b, q_rows))
            return ATTN_INVALID;
    }
    return ATTN_OK;
}
