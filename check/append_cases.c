/* append_cases.c — the number of a case to its problem: page sizes, rotary kinds and dtypes in turn, the rest
 * drawn. */
#include "append_check.h"
#include "number.h"
#include <stdio.h>

typedef struct dice { uint64_t state; } dice;

static uint64_t roll(dice *d) { return check_mix(d->state++); }
static int chance(dice *d, int percent) { return (int)(roll(d) % 100) < percent; }
static int64_t up_to(dice *d, int64_t most) { return check_pick(roll(d), most + 1); }

#define COUNT(list) (int64_t)(sizeof (list) / sizeof *(list))
static const int64_t page_sizes[] = { 0, 1, 2, 3, 16, 17, 64, 256 };
static const int64_t dims[] = { 8, 16, 40, 64, 64, 80, 128, 128, 256, 5, 33, 576 };

/* Packed K/V rows and heads with gaps, each tensor its own; multiples of 8 keep 16-byte moves possible. */
static attn_stride strides(dice *d, int64_t batch_rows, int64_t heads, int64_t dim, int gaps) {
    const int64_t unit = chance(d, 50) ? 8 : 1;
    const int64_t head = dim + (gaps ? unit * up_to(d, 2) : 0),
                  seq = heads * head + (gaps ? unit * up_to(d, 3) : 0);
    if (chance(d, 30))      /* heads before tokens */
        return (attn_stride){ .head = batch_rows * head, .seq = head,
                              .batch = heads * batch_rows * head + (gaps ? unit * up_to(d, 3) : 0) };
    return (attn_stride){ .head = head, .seq = seq,
                          .batch = batch_rows * seq + (gaps ? unit * up_to(d, 3) : 0) };
}

static void draw_sizes(dice *d, attn_problem *p) {
    p->batch = 1 + up_to(d, 4);
    p->kv_heads = 1 + up_to(d, 3);
    p->q_heads = p->kv_heads * (1 + up_to(d, 3));
    p->qk_dim = dims[up_to(d, COUNT(dims) - 1)];
    p->v_dim = p->qk_dim == 576 ? 512 : chance(d, 70) ? p->qk_dim : dims[up_to(d, COUNT(dims) - 1)];
    p->new_len = chance(d, 50) ? 1 + up_to(d, 2) : 1 + up_to(d, 40);
    p->q_len = chance(d, 60) ? p->new_len : 1 + up_to(d, 5);
    p->kv_len = p->new_len + 1 + up_to(d, chance(d, 30) ? 600 : 70);
    p->v_in_k = p->v_dim <= p->qk_dim && chance(d, p->qk_dim == 576 ? 70 : 5);
    if (chance(d, 3)) p->new_len = 0;
}

static void draw_batching(dice *d, attn_problem *p) {
    p->has_seqused_kv = chance(d, 85);
    p->packed_new = chance(d, 30);
    p->packed_q = chance(d, 25);
    p->has_seqused_q = chance(d, 15);
    if (p->packed_new) p->new_total = p->batch * p->new_len + up_to(d, 3);
    if (p->packed_q) p->q_total = p->batch * p->q_len + up_to(d, 3);
    if (p->page_size) {
        p->block_table_cols = (p->kv_len + p->page_size - 1) / p->page_size + up_to(d, 2);
        p->block_table_stride = p->block_table_cols + up_to(d, 2);
        p->pages = p->batch * p->block_table_cols + up_to(d, 3);
        return;
    }
    p->has_leftpad_kv = chance(d, 20);
    p->has_kv_batch_index = chance(d, 40);
    if (p->has_kv_batch_index) p->kv_batch = p->batch + up_to(d, 3);
}

static void draw_rotary(dice *d, attn_problem *p, int kind) {
    p->write_q = chance(d, 55);
    if (!kind) return;
    const int64_t pairs = p->qk_dim / 2, most = pairs < 64 ? pairs : 64;
    int64_t half = chance(d, 40) ? pairs : chance(d, 60) ? (most + 7) / 8 * 8 : 1 + up_to(d, most - 1);
    if (half > pairs) half = pairs;
    p->rotary_dim = (int32_t)(2 * half);
    if (p->qk_dim == 576) p->rotary_dim = 64;
    if (p->qk_dim == 576) p->rotary_first = 512;
    else if (chance(d, 15)) p->rotary_first = (int32_t)up_to(d, p->qk_dim - p->rotary_dim);
    p->rotary_interleaved = kind == 2;
    p->rotary_q_fixed = chance(d, 25);
    p->has_rotary_offsets = chance(d, 25);
    p->rotary_rows = p->kv_len + 64 + up_to(d, 5);      /* slots + offsets of at most 8, queries beyond the
                                                           new rows */
    p->rotary_stride = p->rotary_dim / 2 + (chance(d, 30) ? up_to(d, 9) : 0);
    if (chance(d, 30)) p->rotary_dtype = (attn_dtype)(1 + up_to(d, 2));
}

append_case check_append_case(uint64_t number, attn_device device) {
    dice d = { check_mix(number ^ 0xa99e2du) };
    append_case c = { .number = number, .problem = ATTN_PROBLEM_INIT };
    attn_problem *p = &c.problem;
    p->pass = ATTN_KV_APPEND;
    p->device = device;
    p->page_size = page_sizes[number % 8];
    p->dtype = (attn_dtype)(1 + number / 8 % 3);
    draw_sizes(&d, p);
    draw_batching(&d, p);
    draw_rotary(&d, p, (int)(number / 24 % 3));
    if (number / 8 % 4 == 1) p->new_dtype = (attn_dtype)(1 + up_to(&d, 2));
    const int gaps = chance(&d, 50);
    const int64_t kv_rows = p->page_size ? p->page_size : p->kv_len;
    p->k_stride = strides(&d, kv_rows, p->kv_heads, p->qk_dim, gaps);
    p->v_stride = strides(&d, kv_rows, p->kv_heads, p->v_dim, gaps);
    p->k_new_stride = strides(&d, p->packed_new ? p->new_total : p->new_len, p->kv_heads, p->qk_dim, gaps);
    p->v_new_stride = strides(&d, p->packed_new ? p->new_total : p->new_len, p->kv_heads, p->v_dim, gaps);
    p->q_stride = strides(&d, p->packed_q ? p->q_total : p->q_len, p->q_heads, p->qk_dim, gaps);
    c.in_place = p->write_q && (!p->new_dtype || p->new_dtype == p->dtype) && chance(&d, 40);
    p->q_out_stride = p->q_stride;
    if (!c.in_place)
        p->q_out_stride = strides(&d, p->packed_q ? p->q_total : p->q_len, p->q_heads, p->qk_dim, gaps);
    c.no_length = chance(&d, 30);
    c.shift = chance(&d, 20) ? (int)up_to(&d, 3) : 0;
    return c;
}

int check_append_text(const append_case *c, char *text, size_t size) {
    static const char *const names[] = { "as the cache", "f32", "f16", "bf16" };
    const attn_problem *p = &c->problem;
    char rotary[64] = "no rotary", place[32] = "contiguous";
    if (p->rotary_dim)
        snprintf(rotary, sizeof rotary, "rotary %s %d from %d",
                 p->rotary_interleaved ? "interleaved" : "half", (int)p->rotary_dim, (int)p->rotary_first);
    if (p->page_size) snprintf(place, sizeof place, "pages of %lld", (long long)p->page_size);
    return snprintf(text, size,
                    "append %llu: %s cache of %lld, %s, b%lld h%lld d%lld/%lld, %s%lld new rows (%s)%s, %s",
                    (unsigned long long)c->number, names[p->dtype], (long long)p->kv_len, place,
                    (long long)p->batch, (long long)p->kv_heads, (long long)p->qk_dim, (long long)p->v_dim,
                    p->packed_new ? "packed " : "", (long long)p->new_len, names[p->new_dtype],
                    p->write_q ? c->in_place ? ", q in place" : ", q" : "", rotary);
}
