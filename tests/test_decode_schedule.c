/* test_decode_schedule.c — the arithmetic of src/cuda/decode_schedule.h on the CPU: every block of every item exactly
 * once, parts in order, slots apart, the load even, for random batches of any lengths. */
#include "../src/cuda/decode_schedule.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { BATCH_MAX = 40, TILES_MAX = 9, ITEMS_MAX = BATCH_MAX * TILES_MAX, WORKERS_MAX = 300, BLOCKS_MAX = 200 };

static uint64_t seed = 1;
static int32_t pick(int32_t low, int32_t high) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return low + (int32_t)((seed >> 33) % (uint64_t)(high - low + 1));
}

typedef struct batch {
    attn_decode_shape shape;
    int32_t blocks[BATCH_MAX], start[BATCH_MAX + 1], part_begin[ITEMS_MAX + 1];
    attn_decode_line line;
} batch;

/* As the kernel does it, one thread after the other. */
static void build(batch *x) {
    int32_t total = 0, parts = 0;
    for (int32_t b = 0; b < x->shape.batch; b++) {
        x->start[b] = total;
        total += attn_decode_cost(&x->shape, x->blocks[b]) * x->shape.tiles;
    }
    x->start[x->shape.batch] = total;
    x->line = (attn_decode_line){ x->start, x->blocks, 0, attn_decode_payload(&x->shape, total), total, 0 };
    for (int32_t i = 0; i < x->shape.batch * x->shape.tiles; i++) {
        x->part_begin[i] = parts;
        parts += attn_decode_item_slots(&x->shape, &x->line, i / x->shape.tiles, i % x->shape.tiles);
    }
    x->part_begin[x->shape.batch * x->shape.tiles] = parts;
    assert_true(parts <= attn_decode_parts_max(&x->shape));
}

typedef struct walk {
    int32_t done[ITEMS_MAX], parts[ITEMS_MAX], load, heaviest;
} walk;

/* One worker, as a kernel walks its stretch. */
static void walk_worker(const batch *x, walk *seen, int32_t w) {
    const attn_decode_work work = attn_decode_work_of(&x->shape, &x->line, w);
    seen->load = 0;
    for (int32_t item = work.first_item; item <= work.last_item; item++) {
        const int32_t blocks = x->blocks[item / x->shape.tiles];
        const int32_t length = attn_decode_split_blocks(&x->shape, blocks);
        int32_t block = item == work.first_item ? work.first_block : 0;
        int32_t part = item == work.first_item ? work.first_part : 0;
        const int32_t end = item == work.last_item ? work.last_block : blocks;
        assert_true(block < end && end <= blocks);
        for (; block < end; part++) {
            const int32_t next = (block / length + 1) * length < end ? (block / length + 1) * length : end;
            assert_int_equal(block, seen->done[item]);          /* in order, nothing twice, nothing left out */
            assert_int_equal(part, seen->parts[item]);
            if (!attn_decode_balances(&x->shape)) assert_true(next - block == length || next == blocks);
            seen->load += x->shape.overhead_blocks + next - block;
            seen->done[item] = block = next;
            seen->parts[item]++;
        }
    }
    if (seen->load > seen->heaviest) seen->heaviest = seen->load;
}

static void check_batch(batch *x) {
    static walk seen;
    memset(&seen, 0, sizeof seen);
    build(x);
    int32_t longest_part = 1;
    for (int32_t w = 0; w < x->shape.workers; w++) walk_worker(x, &seen, w);
    for (int32_t i = 0; i < x->shape.batch * x->shape.tiles; i++) {
        const int32_t blocks = x->blocks[i / x->shape.tiles], slots = x->part_begin[i + 1] - x->part_begin[i];
        const int32_t length = attn_decode_split_blocks(&x->shape, blocks);
        assert_int_equal(seen.done[i], blocks);
        assert_int_equal(slots, seen.parts[i] > 1 ? seen.parts[i] : 0);
        if (!attn_decode_balances(&x->shape) && length > longest_part) longest_part = length;
    }
    /* A worker's own share, the rest of a part it can't give away, and the overhead of coming in midway. */
    const int32_t bound = x->line.payload + longest_part + 2 * x->shape.overhead_blocks;
    assert_true(seen.heaviest <= bound);
}

static batch random_batch(int32_t splits, int32_t split_blocks) {
    batch x = { .shape = { .batch = pick(1, BATCH_MAX), .tiles = pick(1, TILES_MAX), .block_keys = 64,
                           .workers = pick(1, WORKERS_MAX), .overhead_blocks = pick(0, 6), .least_blocks = pick(0, 4),
                           .split_blocks = split_blocks, .forced_splits = splits, .max_blocks = BLOCKS_MAX } };
    const int32_t longest = pick(0, 3) ? pick(1, BLOCKS_MAX) : 2;
    for (int32_t b = 0; b < x.shape.batch; b++) x.blocks[b] = pick(0, 3) ? pick(1, longest) : 1;
    return x;
}

static void test_balanced(void **state) {
    (void)state;
    for (int n = 0; n < 4000; n++) {
        batch x = random_batch(0, 0);
        check_batch(&x);
    }
}

static void test_forced_splits(void **state) {
    const int32_t splits[] = { 1, 2, 3, 7, BLOCKS_MAX, 1 << 20 };
    (void)state;
    for (int n = 0; n < 3000; n++) {
        batch x = random_batch(splits[n % 6], 0);
        check_batch(&x);
    }
}

/* Strict: an item's parts are the same in any company. */
static void test_fixed_length(void **state) {
    (void)state;
    for (int n = 0; n < 3000; n++) {
        batch x = random_batch(n % 2 ? 16 : 0, pick(1, 20)), alone = x;
        check_batch(&x);
        alone.shape.batch = 1;
        alone.shape.workers = pick(1, WORKERS_MAX);
        build(&alone);
        for (int32_t t = 0; t < x.shape.tiles; t++)
            assert_int_equal(x.part_begin[t + 1] - x.part_begin[t], alone.part_begin[t + 1] - alone.part_begin[t]);
    }
}

static void check_even_slots(const batch *x, const attn_decode_line *line) {
    static char taken[ITEMS_MAX * BLOCKS_MAX];
    const int64_t slots = attn_decode_parts_max(&x->shape);
    assert_true(slots <= (int64_t)sizeof taken);
    memset(taken, 0, sizeof taken);
    for (int32_t i = 0; i < x->shape.batch * x->shape.tiles; i++) {
        const attn_decode_slots at = attn_decode_even_slots(&x->shape, line, i);
        for (int32_t part = 0; part < at.parts && at.parts > 1; part++) {
            const int32_t slot = attn_decode_slot(at, part);
            assert_true(slot >= 0 && slot < slots && !taken[slot]);
            taken[slot] = 1;
        }
    }
}

/* The closed form for equal lengths says what the prefix sums say. */
static void test_even_line(void **state) {
    (void)state;
    for (int n = 0; n < 3000; n++) {
        batch x = random_batch(n % 3 == 1 ? pick(1, 9) : 0, n % 3 == 2 ? pick(1, 9) : 0);
        for (int32_t b = 1; b < x.shape.batch; b++) x.blocks[b] = x.blocks[0];
        check_batch(&x);
        const attn_decode_line line = attn_decode_even_line(&x.shape, x.blocks[0]);
        assert_int_equal(line.total, x.line.total);
        assert_true(line.payload >= x.line.payload && line.payload <= x.line.payload + x.line.payload / 16);
        x.line.payload = line.payload;      /* perhaps longer: whole items */
        for (int32_t w = 0; w < x.shape.workers; w++) {
            const attn_decode_work a = attn_decode_work_of(&x.shape, &x.line, w),
                                   b = attn_decode_work_of(&x.shape, &line, w);
            assert_memory_equal(&a, &b, sizeof a);
        }
        for (int32_t i = 0; i < x.shape.batch * x.shape.tiles; i++)
            assert_int_equal(attn_decode_item_parts(&x.shape, &line, i / x.shape.tiles, i % x.shape.tiles),
                             attn_decode_item_parts(&x.shape, &x.line, i / x.shape.tiles, i % x.shape.tiles));
        check_even_slots(&x, &line);
        int32_t parts = 0;
        for (int32_t i = 0; i < x.shape.batch * x.shape.tiles; i++)
            parts += attn_decode_item_parts(&x.shape, &line, i / x.shape.tiles, i % x.shape.tiles);
        if (attn_decode_even_whole(&x.shape, &line)) assert_int_equal(parts, x.shape.batch * x.shape.tiles);
    }
}

/* 128 sequences on 132 workers are not cut; one sequence is. */
static void test_whole_items(void **state) {
    (void)state;
    attn_decode_shape shape = { .batch = 128, .tiles = 1, .block_keys = 64, .workers = 132, .overhead_blocks = 2,
                                .least_blocks = 1, .max_blocks = 128 };
    attn_decode_line line = attn_decode_even_line(&shape, 128);
    assert_int_equal(line.payload, 130);
    assert_true(attn_decode_even_whole(&shape, &line));
    shape.batch = 1;
    line = attn_decode_even_line(&shape, 128);
    assert_false(attn_decode_even_whole(&shape, &line));
}

/* Blocks of a sequence: empty, edges, a window that begins within a block. */
static void test_blocks(void **state) {
    const struct { int64_t low, high; int32_t blocks; } cases[] = {
        { 0, 0, 1 }, { 0, 1, 1 }, { 0, 63, 1 }, { 0, 64, 1 }, { 0, 65, 2 }, { 63, 65, 2 }, { 64, 128, 1 },
        { 70, 70, 1 },
        { 100, 200, 3 } };
    (void)state;
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++)
        assert_int_equal(attn_decode_blocks((attn_range){ cases[n].low, cases[n].high }, 64), cases[n].blocks);
}

static void test_validity(void **state) {
    (void)state;
    attn_decode_shape shape = { .batch = 2, .tiles = 8, .block_keys = 64, .workers = 264, .max_blocks = 100 };
    attn_decode_header header = { .magic = ATTN_DECODE_MAGIC, .hash = attn_decode_hash(&shape) };
    assert_true(attn_decode_valid(&shape, &header));
    shape.max_blocks++;
    assert_false(attn_decode_valid(&shape, &header));
    assert_true(attn_decode_fits(&shape));
    shape.max_blocks = 1 << 30;
    assert_false(attn_decode_fits(&shape));
    assert_int_equal(sizeof(attn_decode_header), 64);
    assert_int_equal(sizeof(attn_decode_work), 32);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_balanced), cmocka_unit_test(test_forced_splits), cmocka_unit_test(test_fixed_length),
        cmocka_unit_test(test_even_line), cmocka_unit_test(test_whole_items), cmocka_unit_test(test_blocks), cmocka_unit_test(test_validity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
