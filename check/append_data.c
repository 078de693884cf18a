/* append_data.c — the memory of an append case and what it holds before a run. */
#include "append_check.h"
#include "data.h"
#include "memory.h"
#include <stdio.h>
#include <stdlib.h>

enum { MARGIN = 4096 };

static int64_t span(int64_t batch, int64_t seq, int64_t heads, int64_t dim, attn_stride s) {
    if (!batch || !seq || !heads || !dim) return 0;
    return (batch - 1) * s.batch + (seq - 1) * s.seq + (heads - 1) * s.head + dim;
}

static int64_t span_kv(const attn_problem *p, int64_t dim, attn_stride s) {
    return span(p->page_size ? p->pages : p->kv_batch, p->page_size ? p->page_size : p->kv_len, p->kv_heads,
                dim, s);
}

static int64_t span_new(const attn_problem *p, int64_t dim, attn_stride s) {
    return span(p->packed_new ? 1 : p->batch, p->packed_new ? p->new_total : p->new_len, p->kv_heads, dim, s);
}

static int64_t span_q(const attn_problem *p, attn_stride s) {
    return span(p->packed_q ? 1 : p->batch, p->packed_q ? p->q_total : p->q_len, p->q_heads, p->qk_dim, s);
}

/* Bytes; -1: the pointer is NULL. */
static int64_t bytes_of(const check_append *a, append_area name) {
    const attn_problem *p = &a->problem;
    const int64_t cache = check_element_size(p->dtype), fresh = check_element_size(p->new_dtype);
    const int64_t table = p->rotary_dim ? (p->rotary_rows - 1) * p->rotary_stride + p->rotary_dim / 2 : -1;
    switch (name) {
    case APPEND_K:       return span_kv(p, p->qk_dim, p->k_stride) * cache;
    case APPEND_V:       return p->v_in_k ? -1 : span_kv(p, p->v_dim, p->v_stride) * cache;
    case APPEND_Q:       return p->write_q && !a->what.in_place ? span_q(p, p->q_stride) * fresh : -1;
    case APPEND_Q_OUT:   return p->write_q ? span_q(p, p->q_out_stride) * cache : -1;
    case APPEND_K_NEW:   return span_new(p, p->qk_dim, p->k_new_stride) * fresh;
    case APPEND_V_NEW:   return p->v_in_k ? -1 : span_new(p, p->v_dim, p->v_new_stride) * fresh;
    case APPEND_COS:
    case APPEND_SIN:     return table < 0 ? -1 : table * check_element_size(p->rotary_dtype);
    case APPEND_LENGTHS: return a->what.no_length ? -1 : p->batch * 4;
    case APPEND_OFFSETS: return p->rotary_dim && p->has_rotary_offsets ? p->batch * 4 : -1;
    case APPEND_CU_NEW:  return p->packed_new ? (p->batch + 1) * 4 : -1;
    case APPEND_CU_Q:    return p->packed_q ? (p->batch + 1) * 4 : -1;
    case APPEND_USED_Q:  return p->has_seqused_q ? p->batch * 4 : -1;
    case APPEND_USED_KV: return p->has_seqused_kv ? p->batch * 4 : -1;
    case APPEND_LEFTPAD: return p->has_leftpad_kv ? p->batch * 4 : -1;
    case APPEND_INDEX:   return p->has_kv_batch_index ? p->batch * 4 : -1;
    case APPEND_TABLE:
        return p->page_size ? ((p->batch - 1) * p->block_table_stride + p->block_table_cols) * 4 : -1;
    default:             return -1;
    }
}

/* Tensors of numbers are moved off 16 bytes by the case's shift, as far as their own alignment goes. */
static attn_status create_area(check_append *a, append_area name) {
    append_memory *m = &a->areas[name];
    const int64_t bytes = bytes_of(a, name);
    if (bytes < 0) return ATTN_OK;
    const int guarded = a->memory.alloc == check_host_memory.alloc;
    const int is_new = name == APPEND_Q || name == APPEND_K_NEW || name == APPEND_V_NEW;
    const attn_dtype dtype = is_new ? a->problem.new_dtype : a->problem.dtype;
    const size_t page = 4096;
    const size_t element = is_new || name < APPEND_LENGTHS ? (size_t)check_element_size(dtype) : 4;
    const size_t shift = (size_t)a->what.shift * element;
    m->bytes = (size_t)bytes;
    m->total = guarded ? (m->bytes + shift + 16 + page - 1) / page * page : m->bytes + 2 * MARGIN;
    m->offset = guarded ? (m->total - m->bytes) / 16 * 16 - (shift ? 16 - shift : 0) : MARGIN + shift;
    m->base = a->memory.alloc(a->memory.context, m->total);
    m->before = malloc(m->total);
    m->after = malloc(m->total);
    return m->base && m->before && m->after ? ATTN_OK : ATTN_NO_MEMORY;
}

static void *at(const append_memory *m, unsigned char *image) { return image ? image + m->offset : NULL; }

static void point(const check_append *a, attn_tensors *t, int host) {
    unsigned char *p[APPEND_AREAS];
    for (int n = 0; n < APPEND_AREAS; n++)
        p[n] = at(&a->areas[n], host ? a->areas[n].before : a->areas[n].base);
    *t = (attn_tensors)ATTN_TENSORS_INIT;
    t->k = p[APPEND_K], t->v = p[APPEND_V], t->q_out = p[APPEND_Q_OUT];
    t->q = a->what.in_place ? p[APPEND_Q_OUT] : p[APPEND_Q];
    t->k_new = p[APPEND_K_NEW], t->v_new = p[APPEND_V_NEW];
    t->rotary_cos = p[APPEND_COS], t->rotary_sin = p[APPEND_SIN];
    t->rotary_offsets = (int32_t *)(void *)p[APPEND_OFFSETS];
    t->cu_seqlens_new = (int32_t *)(void *)p[APPEND_CU_NEW],
    t->cu_seqlens_q = (int32_t *)(void *)p[APPEND_CU_Q];
    t->seqused_q = (int32_t *)(void *)p[APPEND_USED_Q], t->seqused_kv = (int32_t *)(void *)p[APPEND_USED_KV];
    t->leftpad_kv = (int32_t *)(void *)p[APPEND_LEFTPAD],
    t->kv_batch_index = (int32_t *)(void *)p[APPEND_INDEX];
    t->block_table = (int32_t *)(void *)p[APPEND_TABLE],
    t->seqused_kv_out = (int32_t *)(void *)p[APPEND_LENGTHS];
}

/* ---- contents ---- */

static uint64_t draw(const check_append *a, uint64_t what, uint64_t n) {
    return check_mix(check_mix(a->what.number * 256 + what) + n);
}

static void random_bits(const check_append *a, append_area name, uint64_t round) {
    const append_memory *m = &a->areas[name];
    const uint64_t what = 32 + (uint64_t)name + 32 * round;
    for (size_t n = 0; m->before && n < m->total; n += sizeof(uint64_t)) {
        const uint64_t hash = draw(a, what, n);
        memcpy(m->before + n, &hash, m->total - n < sizeof hash ? m->total - n : sizeof hash);
    }
}

/* Numbers; every 97th one is special. Where bits are copied anything will do, and stays. */
static void fill_numbers(const check_append *a, append_area name, attn_dtype dtype) {
    static const double special[] = { (double)NAN, 0.0, -0.0, (double)INFINITY, 6e-8, -1e-40, 30000.0 };
    const append_memory *m = &a->areas[name];
    if (!m->before) return;
    unsigned char *x = at(m, m->before);
    for (int64_t n = 0; n < (int64_t)m->bytes / check_element_size(dtype); n++) {
        const uint64_t hash = draw(a, (uint64_t)name, (uint64_t)n);
        check_narrow(x, dtype, n, hash % 97 ? check_normal(hash) : special[hash / 97 % 7]);
    }
}

static void fill_tables(const check_append *a) {
    const attn_problem *p = &a->problem;
    const append_memory *c = &a->areas[APPEND_COS], *s = &a->areas[APPEND_SIN];
    for (int64_t row = 0; p->rotary_dim && row < p->rotary_rows; row++)
        for (int64_t r = 0; r < p->rotary_dim / 2; r++) {
            const double angle = (double)(row + 1) * pow(100.0, -2.0 * (double)r / (double)p->rotary_dim);
            check_narrow(at(c, c->before), p->rotary_dtype, row * p->rotary_stride + r, cos(angle));
            check_narrow(at(s, s->before), p->rotary_dtype, row * p->rotary_stride + r, sin(angle));
        }
}

static int32_t *ints(const check_append *a, append_area name) {
    const append_memory *m = &a->areas[name];
    return m->before ? (int32_t *)at(m, m->before) : NULL;
}

static int64_t draw_count(const check_append *a, uint64_t what, int64_t b, int64_t most) {
    const uint64_t hash = draw(a, what, (uint64_t)b);
    return hash % 4 == 0 ? most : check_pick(hash >> 8, most + 1);
}

/* Where sequence b's cache ends: anywhere, at a page's edge, so that the new rows fit exactly. */
static int64_t draw_slot(const check_append *a, int64_t b) {
    const attn_problem *p = &a->problem;
    const int64_t room = p->kv_len - a->rows[b];
    const uint64_t hash = draw(a, 21, (uint64_t)b);
    if (!p->has_seqused_kv) return 0;
    if (hash % 8 == 0) return room;
    if (hash % 8 == 1) return 0;
    int64_t slot = check_pick(hash >> 8, room + 1);
    if (p->page_size && hash % 8 < 5)
        slot = slot / p->page_size * p->page_size + (int64_t)(hash >> 40) % 3 - 1;
    return slot < 0 ? 0 : slot > room ? room : slot;
}

static void fill_pages(const check_append *a) {
    const attn_problem *p = &a->problem;
    int32_t *table = ints(a, APPEND_TABLE), *order = table ? malloc((size_t)p->pages * 4) : NULL;
    if (!order) return;
    for (int64_t n = 0; n < p->pages; n++) order[n] = (int32_t)n;
    for (int64_t n = p->pages - 1; n > 0; n--) {
        const int64_t other = check_pick(draw(a, 22, (uint64_t)n), n + 1);
        const int32_t page = order[n];
        order[n] = order[other];
        order[other] = page;
    }
    for (int64_t b = 0, next = 0; b < p->batch; b++)
        for (int64_t c = 0; c < p->block_table_cols; c++) {
            const int64_t used = (ints(a, APPEND_USED_KV) ? ints(a, APPEND_USED_KV)[b] : 0) + a->rows[b];
            table[b * p->block_table_stride + c] = c * p->page_size < used ? order[next++]
                                                 : c % 2 ? INT32_MAX : -1 - (int32_t)c;
        }
    free(order);
}

static void fill_lengths(check_append *a) {
    const attn_problem *p = &a->problem;
    int32_t *cu_new = ints(a, APPEND_CU_NEW), *cu_q = ints(a, APPEND_CU_Q), *used_q = ints(a, APPEND_USED_Q);
    int32_t *used = ints(a, APPEND_USED_KV), *offsets = ints(a, APPEND_OFFSETS),
            *index = ints(a, APPEND_INDEX);
    int32_t *leftpad = ints(a, APPEND_LEFTPAD);
    if (cu_new) cu_new[0] = 0;
    if (cu_q) cu_q[0] = 0;
    const int64_t turn = index ? check_pick(draw(a, 23, 0), p->kv_batch) : 0;
    for (int64_t b = 0; b < p->batch; b++) {
        a->rows[b] = cu_new ? draw_count(a, 24, b, p->new_len) : p->new_len;
        a->q_rows[b] = cu_q ? draw_count(a, 25, b, p->q_len) : p->q_len;
        if (cu_new) cu_new[b + 1] = cu_new[b] + (int32_t)a->rows[b];
        if (cu_q) cu_q[b + 1] = cu_q[b] + (int32_t)a->q_rows[b];
        if (used_q) used_q[b] = (int32_t)(a->q_rows[b] = draw_count(a, 26, b, a->q_rows[b]));
        if (used) used[b] = (int32_t)draw_slot(a, b);
        if (offsets) {      /* may be negative as long as the position isn't */
            offsets[b] = (int32_t)check_pick(draw(a, 27, (uint64_t)b), 12) - 4;
            if (offsets[b] < 0 && (!used || used[b] < -offsets[b])) offsets[b] = 0;
        }
        if (index) index[b] = (int32_t)((p->kv_batch - 1 - b + turn) % p->kv_batch);
        if (leftpad) leftpad[b] = used ? used[b] / 2 : 0;
    }
    fill_pages(a);
}

static void fill(check_append *a, uint64_t round) {
    const attn_problem *p = &a->problem;
    const int bits = p->dtype == p->new_dtype && !p->rotary_dim;
    for (int n = 0; n < APPEND_AREAS; n++) random_bits(a, (append_area)n, n <= APPEND_LENGTHS ? round : 0);
    fill_lengths(a);
    fill_tables(a);
    if (bits) return;
    fill_numbers(a, APPEND_K_NEW, p->new_dtype);
    fill_numbers(a, APPEND_V_NEW, p->new_dtype);
    fill_numbers(a, a->what.in_place ? APPEND_Q_OUT : APPEND_Q, p->new_dtype);
}

/* ---- life ---- */

attn_status check_append_create(check_append **out, const append_case *c, const check_memory *memory) {
    check_append *a = calloc(1, sizeof *a);
    *out = a;
    if (!a) return ATTN_NO_MEMORY;
    a->what = *c;
    a->problem = c->problem;
    a->memory = memory ? *memory : check_host_memory;
    attn_status status = attn_problem_resolve(&a->problem);
    a->rows = calloc((size_t)a->problem.batch + 1, sizeof *a->rows);
    a->q_rows = calloc((size_t)a->problem.batch + 1, sizeof *a->q_rows);
    if (!status && (!a->rows || !a->q_rows)) status = ATTN_NO_MEMORY;
    for (int n = 0; !status && n < APPEND_AREAS; n++) status = create_area(a, (append_area)n);
    if (status) {
        check_append_destroy(a);
        *out = NULL;
        return status;
    }
    point(a, &a->tensors, 0);
    point(a, &a->host, 1);
    return ATTN_OK;
}

void check_append_destroy(check_append *a) {
    if (!a) return;
    for (int n = 0; n < APPEND_AREAS; n++) {
        append_memory *m = &a->areas[n];
        if (m->base) a->memory.free(a->memory.context, m->base);
        free(m->before);
        free(m->after);
        free(m->value);
        free(m->bound);
    }
    free(a->rows);
    free(a->q_rows);
    free(a);
}

double check_append_traffic(const check_append *a) {
    const attn_problem *p = &a->problem;
    const double size = (double)(check_element_size(p->dtype) + check_element_size(p->new_dtype));
    double tokens = 0, q_tokens = 0;
    for (int64_t b = 0; b < p->batch; b++) tokens += (double)a->rows[b], q_tokens += (double)a->q_rows[b];
    return size * (tokens * (double)(p->kv_heads * (p->qk_dim + (p->v_in_k ? 0 : p->v_dim))) +
                   (p->write_q ? q_tokens * (double)(p->q_heads * p->qk_dim) : 0));
}

/* ---- a run ---- */

typedef struct call { check_candidate *candidate; const attn_tensors *tensors; } call;

static attn_status run_call(void *arg) {
    const call *c = arg;
    return c->candidate->run(c->candidate, c->tensors, NULL, NULL);
}

static void describe_fault(const check_append *a, const void *address, char *why, size_t size) {
    static const char *const names[APPEND_AREAS] = {
        "k", "v", "q_out", "seqused_kv_out", "q", "k_new", "v_new", "rotary_cos", "rotary_sin",
        "rotary_offsets", "cu_seqlens_new", "cu_seqlens_q", "seqused_q", "seqused_kv", "leftpad_kv",
        "kv_batch_index", "block_table" };
    snprintf(why, size, "crashed: fault at address %p, no tensor near it", address);
    for (int n = 0; n < APPEND_AREAS; n++) {
        const append_memory *m = &a->areas[n];
        const ptrdiff_t from = m->base ? (const unsigned char *)address - m->base : -1;
        if (m->base && from >= -MARGIN && from < (ptrdiff_t)m->total + MARGIN)
            snprintf(why, size, "touched memory outside %s: byte %lld of %zu", names[n],
                     (long long)from - (long long)m->offset, m->bytes);
    }
}

static attn_status run_round(check_append *a, check_candidate *candidate, uint64_t round, char *why,
                             size_t size) {
    attn_status status = ATTN_OK;
    call c = { candidate, &a->tensors };
    void *address;
    fill(a, round);
    if (check_append_answer(a)) return ATTN_NO_MEMORY;
    for (int n = 0; n < APPEND_AREAS; n++) {
        append_memory *m = &a->areas[n];
        if (m->base && a->memory.upload(a->memory.context, m->base, m->before, m->total))
            return ATTN_DEVICE_ERROR;
    }
    if (check_guarded(run_call, &c, "an append", &status, &address)) {
        describe_fault(a, address, why, size);
        return ATTN_OK;
    }
    if (status) {
        snprintf(why, size, "run returned %s: %s", attn_status_name(status), attn_last_error());
        return status;
    }
    check_append_judge(a, why, size);
    return ATTN_OK;
}

attn_status check_append_run(check_append *a, check_candidate *candidate, const attn_options *options,
                             char *why, size_t size, const char **refusal) {
    size_t workspace = 0;
    *why = 0;
    *refusal = NULL;
    attn_status status = candidate->prepare(candidate, &a->problem, options, &workspace, refusal);
    if (status) {
        snprintf(why, size, "%s", *refusal ? *refusal : attn_last_error());
        return *refusal ? ATTN_UNSUPPORTED : status;
    }
    for (uint64_t round = 0; !status && !*why && round < 2; round++)
        status = run_round(a, candidate, round, why, size);
    candidate->finish(candidate);
    if (!status && *why) status = ATTN_INVALID;
    return status;
}
