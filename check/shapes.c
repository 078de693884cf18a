/* shapes.c — the named shapes, random ones, and the command line that repeats a case. */
#include "data.h"
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

const check_case check_shapes[] = {
#define CHECK_SHAPE(name, ...)                                                                               \
    { .shape = #name, .problem = { .struct_size = sizeof(attn_problem), __VA_ARGS__ } },
#include "shapes.def"
#undef CHECK_SHAPE
};
const int check_shape_count = (int)(sizeof check_shapes / sizeof *check_shapes);

/* ---- random problems ---- */

typedef struct dice { uint64_t state; } dice;

static uint64_t roll(dice *d) { return check_mix(d->state++); }
static int64_t up_to(dice *d, int64_t most) { return check_pick(roll(d), most + 1); }
static int chance(dice *d, int percent) { return (int)(roll(d) % 100) < percent; }

static int64_t from(dice *d, const int64_t *list, int64_t count) { return list[check_pick(roll(d), count)]; }
#define ONE_OF(d, ...) from(d, (const int64_t[]){ __VA_ARGS__ }, \
                            (int64_t)(sizeof (const int64_t[]){ __VA_ARGS__ } / sizeof(int64_t)))

static int64_t random_length(dice *d) {
    return chance(d, 40) ? ONE_OF(d, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)
         : chance(d, 80) ? 1 + up_to(d, 149) : 1 + up_to(d, 999);
}

static int64_t random_dim(dice *d) {
    return chance(d, 60) ? ONE_OF(d, 16, 32, 64, 64, 80, 96, 128, 128, 192, 256) : 1 + up_to(d, 149);
}

static void random_sizes(dice *d, attn_problem *p) {
    p->batch = 1 + up_to(d, 3);
    p->kv_heads = 1 + up_to(d, 2);
    p->q_heads = p->kv_heads * ONE_OF(d, 1, 1, 1, 2, 3, 4, 5, 8);
    p->qk_dim = random_dim(d);
    p->v_dim = chance(d, 70) ? p->qk_dim : random_dim(d);
    p->kv_len = random_length(d);
    p->q_len = chance(d, 30) ? p->kv_len : chance(d, 30) ? 1 + up_to(d, 3) : random_length(d);
    if (chance(d, 3)) {
        p->kv_len = 0;
        p->kv_empty = 1;
    }
    p->dtype = (attn_dtype)(1 + up_to(d, 2));
    if (chance(d, 25)) p->o_dtype = ATTN_F32;
    /* Keep the work of one case bounded: halve what is largest. */
    while (p->batch * p->q_heads * p->q_len * (p->kv_len + 1) * (p->qk_dim + p->v_dim) > (int64_t)1 << 22) {
        if (p->batch > 1) p->batch--;
        else if (p->kv_heads > 1) {
            p->q_heads = p->q_heads / p->kv_heads * (p->kv_heads - 1);
            p->kv_heads--;
        }
        else if (p->q_len > p->kv_len) p->q_len = (p->q_len + 1) / 2;
        else if (p->kv_len > 64) p->kv_len = (p->kv_len + 1) / 2;
        else p->q_heads = 1;
    }
}

static void random_scores(dice *d, attn_problem *p) {
    if (chance(d, 45)) p->causal = 1;
    if (chance(d, 25)) {
        p->window = 1;
        p->window_left = chance(d, 30) ? -1 : up_to(d, p->kv_len + 3);
        p->window_right = chance(d, 30) ? -1 : up_to(d, 20);
    }
    if (chance(d, 12)) p->top_left = 1;
    if (chance(d, 12)) p->softcap = (float)(1 + up_to(d, 50));
    if (chance(d, 12)) p->scale = (float)(0.01 + check_uniform(roll(d))) * (chance(d, 15) ? -1.0f : 1.0f);
    if (chance(d, 10)) p->bias_dtype = (attn_dtype)(1 + up_to(d, 2));
    if (chance(d, 10)) p->has_mask = 1;
    if (chance(d, 10)) p->alibi = (attn_alibi)(1 + up_to(d, 1));
    if (chance(d, 10)) p->has_sinks = 1;
}

static void random_batching(dice *d, attn_problem *p) {
    if (chance(d, 15)) p->v_in_k = p->v_dim <= p->qk_dim;
    if (chance(d, 12)) p->packed_q = 1;
    if (chance(d, 12)) p->packed_kv = 1;
    if (chance(d, 10)) p->has_seqused_q = 1;
    if (chance(d, 15)) p->has_seqused_kv = 1;
    if (p->packed_kv) return;
    if (chance(d, 25)) {
        p->page_size = ONE_OF(d, 1, 2, 3, 8, 16, 17, 64, 256);
        return;
    }
    if (chance(d, 8)) p->has_leftpad_kv = 1;
    if (chance(d, 8)) p->has_kv_batch_index = 1;
}

check_case check_random_case(uint64_t seed) {
    dice d = { check_mix(seed ^ 0xd1ceu) };
    check_case c = { .problem = ATTN_PROBLEM_INIT, .shape = "random", .seed = seed };
    random_sizes(&d, &c.problem);
    random_scores(&d, &c.problem);
    if (chance(&d, 60)) random_batching(&d, &c.problem);
    if (chance(&d, 5)) c.problem.strict = 1;
    c.fill = (check_fill)up_to(&d, CHECK_FILLS - 1);
    c.lengths = (check_lengths)up_to(&d, 2);
    c.layout = (check_layout)up_to(&d, 2);
    c.no_lse = chance(&d, 10);
    return c;
}

/* ---- the command line ---- */

typedef struct line { char *text; size_t size; int length; } line;

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static void append(line *l, const char *format, ...) {
    const size_t used = (size_t)l->length < l->size ? (size_t)l->length : l->size;
    va_list arguments;
    va_start(arguments, format);
    l->length += vsnprintf(l->size ? l->text + used : NULL, l->size - used, format, arguments);
    va_end(arguments);
}

static const char *dtype_name(attn_dtype dtype) {
    return dtype == ATTN_F16 ? "f16" : dtype == ATTN_BF16 ? "bf16" : "f32";
}

static void append_sizes(line *l, const attn_problem *p) {
    const int64_t kv_len = p->kv_len || p->kv_empty ? p->kv_len : p->q_len;
    append(l, " --b %" PRId64 " --hq %" PRId64, p->batch, p->q_heads);
    append(l, " --hkv %" PRId64, p->kv_heads ? p->kv_heads : p->q_heads);
    append(l, " --sq %" PRId64 " --sk %" PRId64, p->q_len, kv_len);
    append(l, " --d %" PRId64, p->qk_dim);
    if (p->v_dim && p->v_dim != p->qk_dim) append(l, " --dv %" PRId64, p->v_dim);
    append(l, " --dtype %s", dtype_name(p->dtype));
    if (p->o_dtype && p->o_dtype != p->dtype) append(l, " --o-dtype %s", dtype_name(p->o_dtype));
}

static void append_scores(line *l, const attn_problem *p) {
    if (p->causal) append(l, " --causal");
    if (p->top_left) append(l, " --top-left");
    if (p->window) append(l, " --window %" PRId64 ",%" PRId64, p->window_left, p->window_right);
    if (p->softcap > 0) append(l, " --softcap %.9g", (double)p->softcap);
    if (p->scale != 0) append(l, " --scale %.9g", (double)p->scale);
    if (p->bias_dtype) append(l, " --bias %s", dtype_name(p->bias_dtype));
    if (p->has_mask) append(l, " --mask");
    if (p->alibi) append(l, " --alibi %d", (int)p->alibi);
    if (p->has_sinks) append(l, " --sinks");
}

static void append_batching(line *l, const attn_problem *p) {
    if (p->packed_q) append(l, " --packed");
    if (p->packed_kv) append(l, " --packed-kv");
    if (p->has_seqused_q) append(l, " --seqused-q");
    if (p->has_seqused_kv) append(l, " --seqused");
    if (p->has_leftpad_kv) append(l, " --leftpad");
    if (p->has_kv_batch_index) append(l, " --batch-index");
    if (p->page_size) append(l, " --page-size %" PRId64, p->page_size);
    if (p->v_in_k) append(l, " --v-in-k");
    if (p->strict) append(l, " --strict");
}

/* Named shapes keep their name: some hold strides that no option says. */
static int is_named(const check_case *c) {
    for (int i = 0; c->shape && i < check_shape_count; i++)
        if (!strcmp(check_shapes[i].shape, c->shape)) return 1;
    return 0;
}

int check_case_command(const check_case *c, const char *kernel, char *text, size_t size) {
    line l = { text, size, 0 };
    if (size) text[0] = 0;
    append(&l, "attn check --kernel %s", kernel);
    if (is_named(c)) {
        append(&l, " --shape %s --dtype %s", c->shape, dtype_name(c->problem.dtype));
        if (c->problem.o_dtype && c->problem.o_dtype != c->problem.dtype)
            append(&l, " --o-dtype %s", dtype_name(c->problem.o_dtype));
    } else {
        append_sizes(&l, &c->problem);
        append_scores(&l, &c->problem);
        append_batching(&l, &c->problem);
    }
    if (c->problem.device == ATTN_CUDA) append(&l, " --backend cuda");
    if (c->layout) append(&l, " --layout %s", check_layout_names[c->layout]);
    if (c->lengths) append(&l, " --lengths %s", check_lengths_names[c->lengths]);
    if (c->no_lse) append(&l, " --no-lse");
    append(&l, " --fill %s --seed %" PRIu64, check_fill_names[c->fill], c->seed);
    return l.length;
}
