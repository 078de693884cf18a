/* lengths.c — ragged lengths, page tables and the sizes that follow from them. */
#include "data.h"
#include <stdlib.h>

const char *const check_lengths_names[3] = { "full", "random", "edges" };
const char *const check_layout_names[3] = { "bshd", "bhsd", "gaps" };

/* ---- sizes and strides of a case ---- */

static attn_stride laid_out(check_layout layout, int64_t batch_rows, int64_t heads, int64_t dim,
                            int64_t gap) {
    if (layout == CHECK_LAYOUT_BHSD)
        return (attn_stride){ .batch = heads * batch_rows * dim, .seq = dim, .head = batch_rows * dim };
    attn_stride s = { .head = dim + gap };
    s.seq = heads * s.head + gap + 1;
    s.batch = (batch_rows ? batch_rows : 1) * s.seq + 2 * gap;
    return s;
}

static int unset(attn_stride s) { return !s.batch && !s.seq && !s.head; }

static void complete_sizes(attn_problem *p) {
    if (!p->kv_heads) p->kv_heads = p->q_heads;
    if (!p->kv_len && !p->kv_empty) p->kv_len = p->q_len;
    if (!p->v_dim) p->v_dim = p->qk_dim;
    if (p->packed_q && !p->q_total) p->q_total = p->batch * p->q_len + 3;
    if (p->packed_kv && !p->kv_total) p->kv_total = p->batch * p->kv_len + 2;
    if (p->has_kv_batch_index && !p->kv_batch) p->kv_batch = p->batch + 2;
    if (p->page_size > 0) {
        const int64_t needed = (p->kv_len + p->page_size - 1) / p->page_size;
        if (!p->block_table_cols) p->block_table_cols = needed + 1;
        if (!p->block_table_stride) p->block_table_stride = p->block_table_cols + 3;
        if (!p->pages) p->pages = p->batch * needed + 3;
    }
}

void check_case_complete(check_case *c) {
    attn_problem *p = &c->problem;
    complete_sizes(p);
    if (c->layout == CHECK_LAYOUT_BSHD || p->q_len < 0 || p->kv_len < 0) return;
    const int64_t q_rows = p->packed_q ? p->q_total : p->q_len;
    const int64_t kv_rows = p->page_size ? p->page_size : p->packed_kv ? p->kv_total : p->kv_len;
    if (unset(p->q_stride)) p->q_stride = laid_out(c->layout, q_rows, p->q_heads, p->qk_dim, 3);
    if (unset(p->k_stride)) p->k_stride = laid_out(c->layout, kv_rows, p->kv_heads, p->qk_dim, 5);
    if (unset(p->v_stride) && !p->v_in_k)
        p->v_stride = laid_out(c->layout, kv_rows, p->kv_heads, p->v_dim, 1);
    if (unset(p->o_stride)) p->o_stride = laid_out(c->layout, q_rows, p->q_heads, p->v_dim, 7);
    if (c->layout != CHECK_LAYOUT_GAPS) return;
    if (!p->lse_stride.batch && !p->lse_stride.head && !p->lse_stride.seq) {
        p->lse_stride.seq = 2;
        p->lse_stride.head = 2 * q_rows + 3;
        p->lse_stride.batch = p->q_heads * p->lse_stride.head + 1;
    }
    const attn_score_stride s = { .kv = 2, .q = 2 * p->kv_len + 1, .head = p->q_len * (2 * p->kv_len + 1) + 5,
                                  .batch = p->q_heads * (p->q_len * (2 * p->kv_len + 1) + 5) + 1 };
    if (!p->bias_stride.batch && !p->bias_stride.head && !p->bias_stride.q && !p->bias_stride.kv)
        p->bias_stride = s;
    if (!p->mask_stride.batch && !p->mask_stride.head && !p->mask_stride.q && !p->mask_stride.kv)
        p->mask_stride = s;
}

/* ---- drawing lengths ---- */

static uint64_t draw(const check_data *data, area_name what, int64_t b) {
    return check_mix(check_mix(data->what.seed + 0x1e46u) + (uint64_t)what * 1000003u + (uint64_t)b);
}

static int64_t draw_length(const check_data *data, area_name what, int64_t b, int64_t most) {
    const int64_t edges[] = { most, 0, 1, 16, most - 1, 17, 63, 64, 65, 15, most / 2, 33 };
    const uint64_t hash = draw(data, what, b);
    int64_t length = most;
    if (data->what.lengths == CHECK_LENGTHS_RANDOM)
        length = hash % 6 == 0 ? 0 : check_pick(hash >> 8, most + 1);
    if (data->what.lengths == CHECK_LENGTHS_EDGES)
        length = edges[(uint64_t)(b + (int64_t)(data->what.seed % 12) + (int64_t)what) % 12];
    return length < 0 ? 0 : length > most ? most : length;
}

static void put(check_data *data, area_name name, int64_t i, int64_t value) {
    const int32_t x = (int32_t)value;
    memcpy(check_image(data, name) + 4 * i, &x, 4);
}

static void draw_offsets(check_data *data, area_name name, int64_t most, int64_t total) {
    int64_t at = 0;
    put(data, name, 0, 0);
    for (int64_t b = 0; b < data->problem.batch; b++) {
        const int64_t length = draw_length(data, name, b, most);
        at += length < total - at ? length : total - at;
        put(data, name, b + 1, at);
    }
}

/* Pages are handed out shuffled; entries that no key needs stay out of range. */
static void draw_table(check_data *data) {
    const attn_problem *p = &data->problem;
    int32_t *order = malloc((size_t)(p->pages + 1) * sizeof *order);
    if (!order) return;
    for (int64_t i = 0; i < p->pages; i++) order[i] = (int32_t)i;
    for (int64_t i = p->pages - 1; i > 0; i--) {
        const int64_t other = check_pick(draw(data, AREA_TABLE, i), i + 1);
        const int32_t kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
    int64_t next = 0;
    for (size_t i = 0; i < data->areas[AREA_TABLE].bytes / 4; i++)
        put(data, AREA_TABLE, (int64_t)i, INT32_MAX);
    for (int64_t b = 0; b < p->batch; b++) {
        const int64_t needed = (check_kv_rows(p, &data->host, b) + p->page_size - 1) / p->page_size;
        for (int64_t i = 0; i < needed && p->pages; i++)
            put(data, AREA_TABLE, b * p->block_table_stride + i, order[next++ % p->pages]);
    }
    free(order);
}

void check_fill_lengths(check_data *data) {
    const attn_problem *p = &data->problem;
    if (p->packed_q) draw_offsets(data, AREA_CU_Q, p->q_len, p->q_total);
    if (p->packed_kv) draw_offsets(data, AREA_CU_KV, p->kv_len, p->kv_total);
    for (int64_t b = 0; b < p->batch; b++) {
        if (p->has_seqused_q)
            put(data, AREA_USED_Q, b, draw_length(data, AREA_USED_Q, b, check_q_rows(p, &data->host, b)));
        if (p->has_seqused_kv) {
            const int32_t *cu = data->host.cu_seqlens_kv;
            put(data, AREA_USED_KV, b,
                draw_length(data, AREA_USED_KV, b, p->packed_kv ? cu[b + 1] - cu[b] : p->kv_len));
        }
        if (p->has_leftpad_kv) {
            const int64_t rows = check_kv_rows(p, &data->host, b),
                          padding = check_pick(draw(data, AREA_LEFTPAD, b), 9);
            put(data, AREA_LEFTPAD, b, padding < rows ? padding : rows);
        }
        if (p->has_kv_batch_index)
            put(data, AREA_INDEX, b, check_pick(draw(data, AREA_INDEX, b), p->kv_batch));
    }
    if (p->page_size) draw_table(data);
}
