/* decode_schedule.h — who reads which keys: cuts a batch of sequences of any lengths into equal stretches of
 * work. The idea: lay all items end to end on a line, each as long as its cost in blocks; worker w takes
 * what lies between w * payload and (w + 1) * payload. Every question then has a closed form, so that
 * threads answer them in parallel.
 *
 *   item    sequence b, tile t of it (a K/V head's query rows): index b * tiles + t
 *   block   block_keys keys; an item's blocks are counted from the first block that one of its rows sees
 *   worker  what walks blocks one after the other: a block of threads, or a cluster
 *   part    blocks of one item, done by one worker in one go. An item of one part is written straight to O
 *           and LSE; the parts of others go to the workspace, slot part_begin[item] + part, and are merged
 *           in this order.
 * Host and device; tests/test_decode_schedule.c runs it on the CPU. */
#ifndef ATTN_DECODE_SCHEDULE_H
#define ATTN_DECODE_SCHEDULE_H
#include "../sequence.h"

typedef struct attn_decode_shape {      /* all that a schedule depends on besides the lengths */
    int32_t batch, tiles, block_keys, workers;
    int32_t overhead_blocks;            /* what starting an item costs, in blocks */
    int32_t least_blocks;               /* no worker is given less than this and the overhead, but
                                           for the last */
    int32_t split_blocks;               /* > 0: parts of this many blocks, whatever the batch */
    int32_t forced_splits;              /* > 0: (also) at most this many parts an item; both 0:
                                           balance the workers */
    int32_t max_blocks;                 /* blocks of the longest sequence that the plan allows, >= 1 */
    int32_t reserved;
} attn_decode_shape;

typedef struct attn_decode_work {       /* a worker's stretch over items in order */
    int32_t first_item, last_item;      /* inclusive; first_item > last_item: nothing to do */
    int32_t first_block, last_block;    /* first block in first_item; one past the last block in last_item */
    int32_t first_part;                 /* index of the first part within first_item */
    int32_t reserved[3];                /* [0]: in a schedule in memory, the hash of the shape */
} attn_decode_work;

typedef struct attn_decode_header {     /* of a schedule in memory; then work[workers],
                                           part_begin[items + 1] */
    uint32_t magic, hash;               /* a consumer whose own hash differs must not compute with it */
    int32_t  items, workers, parts;     /* parts: slots of the workspace in use */
    int32_t  reserved[11];
} attn_decode_header;

enum { ATTN_DECODE_MAGIC = 0x5c4ed01e };

/* ---- on the host: sizes ---- */

ATTN_INLINE int64_t attn_decode_items(const attn_decode_shape *shape) {
    return (int64_t)shape->batch * shape->tiles;
}

/* Where part_begin starts, in bytes. */
ATTN_INLINE int64_t attn_decode_part_begin_at(const attn_decode_shape *shape) {
    return (int64_t)sizeof(attn_decode_header) + (int64_t)sizeof(attn_decode_work) * shape->workers;
}
/* Behind part_begin the scheduler keeps blocks[batch] and start[batch + 1] for itself. */
ATTN_INLINE int64_t attn_decode_schedule_bytes(const attn_decode_shape *shape) {
    const int64_t words = attn_decode_items(shape) + 1 + 2 * (int64_t)shape->batch + 1;
    const int64_t least = 8192, bytes = (attn_decode_part_begin_at(shape) + 4 * words + 255) / 256 * 256;
    return bytes > least ? bytes : least;       /* any worker finds its own entry within any schedule */
}

ATTN_INLINE uint32_t attn_decode_hash(const attn_decode_shape *shape) {
    const int32_t words[] = { shape->batch, shape->tiles, shape->block_keys, shape->workers,
                              shape->overhead_blocks, shape->least_blocks, shape->split_blocks,
                              shape->forced_splits, shape->max_blocks };
    uint32_t hash = 2166136261u;
    for (int i = 0; i < 9; i++) hash = (hash ^ (uint32_t)words[i]) * 16777619u;
    return hash ^ hash >> 15;
}

/* ---- an item ---- */

ATTN_INLINE int32_t attn_decode_divide_up(int32_t a, int32_t b) { return (a + b - 1) / b; }

/* Keys that some row of the sequence sees. */
ATTN_INLINE attn_range attn_decode_span(const attn_problem *p, const attn_sequence *s) {
    attn_range span = { 0, 0 };
    if (s->q_len <= 0) return span;
    const attn_range first = attn_visible(p, s, 0), last = attn_visible(p, s, s->q_len - 1);
    span.low = first.low < s->kv_len ? first.low : s->kv_len;
    span.high = last.high > span.low ? last.high : span.low;
    return span;
}
/* Blocks of an item, at least one, so that a row without keys is written too. Block n has the keys from
 * (span.low / block_keys + n) * block_keys on. Keys below 2^31. */
ATTN_INLINE int32_t attn_decode_blocks(attn_range span, int32_t block_keys) {
    if (span.high <= span.low) return 1;
    return ((int32_t)span.high - 1) / block_keys - (int32_t)span.low / block_keys + 1;
}

ATTN_INLINE int attn_decode_balances(const attn_decode_shape *shape) {
    return shape->split_blocks <= 0 && shape->forced_splits <= 0;
}
/* Length of the parts of an item: a worker closes a part at every multiple of it.
 * All blocks when balancing. */
ATTN_INLINE int32_t attn_decode_split_blocks(const attn_decode_shape *shape, int32_t blocks) {
    if (attn_decode_balances(shape)) return blocks;
    int32_t length = shape->split_blocks > 0 ? shape->split_blocks : 1;
    if (shape->forced_splits > 0) {
        const int32_t least = attn_decode_divide_up(blocks, shape->forced_splits);
        if (length < least) length = least;
    }
    return length < blocks ? length : blocks;
}
/* Length of an item on the line: each part that is known beforehand costs the overhead. */
ATTN_INLINE int32_t attn_decode_cost(const attn_decode_shape *shape, int32_t blocks) {
    return attn_decode_divide_up(blocks, attn_decode_split_blocks(shape, blocks)) * shape->overhead_blocks +
           blocks;
}

/* Slots of the workspace that no lengths can exceed. */
ATTN_INLINE int64_t attn_decode_parts_max(const attn_decode_shape *shape) {
    if (attn_decode_balances(shape)) return 2 * (int64_t)shape->workers;
    int64_t most = shape->max_blocks;
    if (shape->split_blocks > 0) most = (most + shape->split_blocks - 1) / shape->split_blocks;
    if (shape->forced_splits > 0 && shape->forced_splits < most) most = shape->forced_splits;
    return most < 2 ? 0 : attn_decode_items(shape) * most;
}

/* 1 if all positions on the line fit 32 bits. */
ATTN_INLINE int attn_decode_fits(const attn_decode_shape *shape) {
    const int64_t limit = (int64_t)1 << 30, items = attn_decode_items(shape);
    return items <= limit && shape->workers > 0 && shape->workers <= 1 << 20 &&
           items <= limit / ((int64_t)shape->max_blocks * (1 + shape->overhead_blocks));
}

/* ---- the line ---- */

typedef struct attn_decode_line {
    const int32_t *start;       /* [batch + 1]: where sequence b's first item begins; NULL: all have
                                   `blocks` blocks */
    const int32_t *blocks_of;   /* [batch] */
    int32_t blocks, payload, total;
    int32_t cost;               /* of every item, where start is NULL: divisions are slow on a GPU */
} attn_decode_line;

ATTN_INLINE int32_t attn_decode_payload(const attn_decode_shape *shape, int32_t total) {
    const int32_t least = shape->overhead_blocks + (shape->least_blocks > 0 ? shape->least_blocks : 1);
    const int32_t even = attn_decode_divide_up(total, shape->workers);
    return even > least ? even : least;
}
/* The same where every item costs `cost`: whole items, if that makes the longest stretch hardly longer.
 * Nothing is left to merge then, and memory, not the workers, sets the pace. */
ATTN_INLINE int32_t attn_decode_payload_of_equals(const attn_decode_shape *shape, int32_t total,
                                                  int32_t cost) {
    const int32_t payload = attn_decode_payload(shape, total);
    const int64_t stretch = ((attn_decode_items(shape) - 1) / shape->workers + 1) * cost;
    if (!attn_decode_balances(shape) || stretch < payload || stretch - payload > payload / 16) return payload;
    return (int32_t)stretch;
}
/* The line of a batch whose sequences all have `blocks` blocks: nothing to look up. */
ATTN_INLINE attn_decode_line attn_decode_even_line(const attn_decode_shape *shape, int32_t blocks) {
    attn_decode_line line = { 0, 0, blocks, 0, 0, attn_decode_cost(shape, blocks) };
    line.total = line.cost * shape->tiles * shape->batch;
    line.payload = attn_decode_payload_of_equals(shape, line.total, line.cost);
    return line;
}
/* 1: every item of an even line is done by one worker, none has parts. */
ATTN_INLINE int attn_decode_even_whole(const attn_decode_shape *shape, const attn_decode_line *line) {
    return attn_decode_balances(shape) && line->payload % line->cost == 0;
}
ATTN_INLINE int32_t attn_decode_line_blocks(const attn_decode_line *line, int32_t b) {
    return line->start ? line->blocks_of[b] : line->blocks;
}
ATTN_INLINE int32_t attn_decode_line_cost(const attn_decode_shape *shape, const attn_decode_line *line,
                                          int32_t blocks) {
    return line->start ? attn_decode_cost(shape, blocks) : line->cost;
}
/* Where item b * tiles + t begins. */
ATTN_INLINE int32_t attn_decode_line_start(const attn_decode_shape *shape, const attn_decode_line *line,
                                           int32_t b, int32_t t) {
    if (!line->start) return (b * shape->tiles + t) * line->cost;
    return line->start[b] + t * attn_decode_cost(shape, line->blocks_of[b]);
}

typedef struct attn_decode_place { int32_t b, t, block, blocks, start; } attn_decode_place;

/* What is cut by `position` (0 .. total - 1): the block that the later worker begins with. Cuts in
 * the overhead fall back to the item's first block, and where parts are given, to the beginning of a part. */
ATTN_INLINE attn_decode_place attn_decode_find(const attn_decode_shape *shape, const attn_decode_line *line,
                                               int32_t position) {
    attn_decode_place place;
    /* The last sequence that begins at or before the position. */
    int32_t low = 0, high = shape->batch - 1;
    while (line->start && low < high) {
        const int32_t middle = low + (high - low + 1) / 2;
        if (line->start[middle] <= position) low = middle;
        else high = middle - 1;
    }
    if (!line->start) low = position / line->cost / shape->tiles;
    place.b = low;
    place.blocks = attn_decode_line_blocks(line, low);
    const int32_t cost = attn_decode_line_cost(shape, line, place.blocks);
    place.t = (position - attn_decode_line_start(shape, line, low, 0)) / cost;
    place.start = attn_decode_line_start(shape, line, low, place.t);
    const int32_t offset = position - place.start;
    if (attn_decode_balances(shape)) {
        place.block = offset > shape->overhead_blocks ? offset - shape->overhead_blocks : 0;
    } else {
        const int32_t length = attn_decode_split_blocks(shape, place.blocks);
        place.block = offset / (length + shape->overhead_blocks) * length;
    }
    return place;
}

/* How many cuts lie at or before an item's first block:
 * also the worker that begins with this block (balancing). */
ATTN_INLINE int32_t attn_decode_cuts_before(const attn_decode_shape *shape, const attn_decode_line *line,
                                            int32_t start) {
    return (start + shape->overhead_blocks) / line->payload;
}

/* Worker w's stretch. */
ATTN_INLINE attn_decode_work attn_decode_work_of(const attn_decode_shape *shape, const attn_decode_line *line,
                                                 int32_t w) {
    attn_decode_work work = { 0, -1, 0, 0, 0, { 0, 0, 0 } };
    if ((int64_t)w * line->payload >= line->total) return work;
    const int32_t begin = w * line->payload, items = shape->batch * shape->tiles;
    const attn_decode_place first = attn_decode_find(shape, line, begin);
    work.first_item = first.b * shape->tiles + first.t;
    work.first_block = first.block;
    if (!attn_decode_balances(shape))
        work.first_part = first.block / attn_decode_split_blocks(shape, first.blocks);
    else if (first.block > 0) work.first_part = w - attn_decode_cuts_before(shape, line, first.start);
    if (line->total - begin <= line->payload) {
        work.last_item = items - 1;
        work.last_block = attn_decode_line_blocks(line, shape->batch - 1);
        return work;
    }
    const attn_decode_place end = attn_decode_find(shape, line, begin + line->payload);
    work.last_item = end.b * shape->tiles + end.t;
    work.last_block = end.block;
    if (end.block == 0) {           /* the end is that of the item before */
        work.last_item--;
        if (work.last_item >= 0)
            work.last_block = attn_decode_line_blocks(line, work.last_item / shape->tiles);
    }
    if (work.first_item == work.last_item && work.first_block >= work.last_block) work.last_item = -1;
    return work;
}

/* Parts of item b * tiles + t. */
ATTN_INLINE int32_t attn_decode_item_parts(const attn_decode_shape *shape, const attn_decode_line *line,
                                           int32_t b, int32_t t) {
    const int32_t blocks = attn_decode_line_blocks(line, b);
    if (!attn_decode_balances(shape))
        return attn_decode_divide_up(blocks, attn_decode_split_blocks(shape, blocks));
    const int32_t start = attn_decode_line_start(shape, line, b, t),
                  end = start + attn_decode_line_cost(shape, line, blocks);
    return 1 + (end - 1) / line->payload - attn_decode_cuts_before(shape, line, start);
}
/* Slots that item's parts take: none if it is written directly. */
ATTN_INLINE int32_t attn_decode_item_slots(const attn_decode_shape *shape, const attn_decode_line *line,
                                           int32_t b, int32_t t) {
    const int32_t parts = attn_decode_item_parts(shape, line, b, t);
    return parts > 1 ? parts : 0;
}

/* Where an item's parts are in the workspace. */
typedef struct attn_decode_slots { int32_t parts, base, step, extra; } attn_decode_slots;

ATTN_INLINE int32_t attn_decode_slot(attn_decode_slots slots, int32_t part) {
    return slots.base + part * slots.step + (part ? 0 : slots.extra);
}
/* Without a schedule in memory, on an even line: a worker has at most two parts that are merged,
 * its first and its last. */
ATTN_INLINE attn_decode_slots attn_decode_even_slots(const attn_decode_shape *shape,
                                                     const attn_decode_line *line, int32_t item) {
    attn_decode_slots slots = { attn_decode_item_parts(shape, line, 0, item), 0, 1, 0 };
    if (!attn_decode_balances(shape)) {
        slots.base = item * slots.parts;
    } else {
        slots.base = 2 * attn_decode_cuts_before(shape, line, attn_decode_line_start(shape, line, 0, item));
        slots.step = 2, slots.extra = 1;
    }
    return slots;
}

/* ---- reading a schedule ---- */

ATTN_INLINE int attn_decode_has_hash(uint32_t hash, const void *schedule) {
    const attn_decode_header *header = (const attn_decode_header *)schedule;
    return header->magic == ATTN_DECODE_MAGIC && header->hash == hash;
}
ATTN_INLINE int attn_decode_valid(const attn_decode_shape *shape, const void *schedule) {
    return attn_decode_has_hash(attn_decode_hash(shape), schedule);
}
ATTN_INLINE const attn_decode_work *attn_decode_works(const void *schedule) {
    return (const attn_decode_work *)((const attn_decode_header *)schedule + 1);
}
ATTN_INLINE const int32_t *attn_decode_part_begin(const attn_decode_shape *shape, const void *schedule) {
    return (const int32_t *)((const char *)schedule + attn_decode_part_begin_at(shape));
}

/* Of an item: parts = 0 or 1 means that it is written directly. */
ATTN_INLINE attn_decode_slots attn_decode_slots_of(const attn_decode_shape *shape, const void *schedule,
                                                   int32_t item) {
    const int32_t *begin = attn_decode_part_begin(shape, schedule) + item;
    attn_decode_slots slots = { begin[1] - begin[0], begin[0], 1, 0 };
    return slots;
}

/* ---- device side ---- */
#if defined(__CUDACC__)
#include "ptx_decode.h"

/* The two above for a kernel that reads before it has waited for those before it: until then what L1 holds
 * may be of any age. */
static __device__ __forceinline__ int attn_decode_has_hash_early(uint32_t hash, const void *schedule) {
    const int32_t *header = (const int32_t *)schedule;
    return load_l2_4(header) == ATTN_DECODE_MAGIC && load_l2_4(header + 1) == (int32_t)hash;
}
static __device__ __forceinline__ attn_decode_slots attn_decode_slots_early(const attn_decode_shape *shape,
                                                                            const void *schedule,
                                                                            int32_t item) {
    const int32_t *begin = attn_decode_part_begin(shape, schedule) + item;
    const int32_t first = load_l2_4(begin), end = load_l2_4(begin + 1);
    const attn_decode_slots slots = { end - first, first, 1, 0 };
    return slots;
}
#endif

/* ---- host side (decode_schedule.c) ---- */
#if !defined(__CUDACC__)
#include "../kernel.h"

/* Put the scheduling kernel into a slot of the plan / queue it: `schedule` (device memory) is then ready for
 * the kernels queued behind it. */
attn_status attn_decode_schedule_prepare(attn_plan *plan, int slot);
attn_status attn_decode_schedule_launch(const attn_plan *plan, int slot, const attn_decode_shape *shape,
                                        const attn_tensors *tensors, void *schedule, void *stream);
/* The same, started before what is queued has ended (sm_9x devices only): it waits before it reads. */
attn_status attn_decode_schedule_launch_early(const attn_plan *plan, int slot, const attn_decode_shape *shape,
                                              const attn_tensors *tensors, void *schedule, void *stream);
/* The checked mode: wait for `stream`, then ATTN_INVALID unless the schedule was made for this shape. */
attn_status attn_decode_schedule_check(const attn_decode_shape *shape, const void *schedule, void *stream);
#endif
#endif
