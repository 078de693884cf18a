/* mla_decode_sm90_feed.h — the feeding warpgroup of mla_decode_sm90.cu: a walker turns the schedule into
 * parts, two copiers keep the K tiles full, a warp fetches Q. Also what all roles share: the map of
 * shared memory, the records. */
#ifndef ATTN_MLA_DECODE_SM90_FEED_H
#define ATTN_MLA_DECODE_SM90_FEED_H
#include "mla_decode_sm90.h"
#include "ptx_mla_sm90.h"
#include <stddef.h>

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define INF __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fffffff)

/* ---- shared memory, from a 1024-byte boundary: Q, two tiles of K, their state, barriers, records ---- */

enum {
    AT_Q = 0,
    AT_K = AT_Q + MLA_TILE,
    AT_STATE = AT_K + MLA_BUFFERS * MLA_TILE,
    AT_SUMS = AT_STATE + MLA_BUFFERS * MLA_STATE_BYTES,
    AT_BARRIERS = AT_SUMS + MLA_SUM_BYTES,
    AT_PARTS = AT_BARRIERS + MLA_BARRIER_BYTES,
    /* of a K tile's state: */
    STATE_FACTOR = 0,       /* f32 [64]: what O is due before this tile's P V, and */
    STATE_MAXIMUM = 256,    /* f32 [64]: the rows' maxima, where a warp says so in */
    STATE_RESCALE = 512,    /* [4] a warp: 1 = yes */
    STATE_UNCLEAN = 528,    /* [4] a warp: did it clean anything out of keys in use? */
    /* barriers: */
    Q_FULL = AT_BARRIERS, Q_EMPTY = Q_FULL + 8,
    K_FULL = Q_EMPTY + 8,                               /* a chunk */
    LEFT_EMPTY = K_FULL + 8 * MLA_BUFFERS * MLA_CHUNKS, /* chunks 0 .. 3: V's left half */
    RIGHT_EMPTY = LEFT_EMPTY + 8 * MLA_BUFFERS,         /* chunks 4 .. 7 */
    P_FULL = RIGHT_EMPTY + 8 * MLA_BUFFERS,
    PART_FULL = P_FULL + 8 * MLA_BUFFERS, PART_EMPTY = PART_FULL + 8 * MLA_PART_SLOTS,
    SUMS_FULL = PART_EMPTY + 8 * MLA_PART_SLOTS,        /* both warpgroups' sums of the part in that slot */
    BARRIERS_END = SUMS_FULL + 8 * MLA_PART_SLOTS
};
static_assert(BARRIERS_END <= AT_PARTS && STATE_UNCLEAN + 16 <= MLA_STATE_BYTES, "shared memory");

/* Threads that release a record: all that read it (a lane for its warp would do,
 * but racecheck doesn't follow that). */
enum { PART_READERS = 2 + 32 + 256 };

/* A place in a ring of barriers: which one, and the parity of the phase waited for next. */
struct ring { uint32_t index, parity; };
template <int SLOTS> ATTN_DEVICE void ring_next(ring &r) {
    if (++r.index == SLOTS) {
        r.index = 0;
        r.parity ^= 1;
    }
}

/* Which 64 of an item's rows are this block's. Read where it is needed:
 * there is no register to keep it in. */
ATTN_DEVICE int row_tile(void) {
    int tile;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(tile));
    return tile;
}

/* ---- parts ---- */

struct part {
    int blocks;                 /* K tiles; 0 = no row sees a key, -1 = no more parts, -2 = and the
                                   schedule is foreign */
    int first;                  /* number of the first one in its sequence */
    int seen_by_all;            /* keys from here on are not seen by every row of the tile */
    int kv_len, shift, q_len, q_rows, head_kv;
    int q_first, q_batch, kv_first, kv_batch;
    int slot;                   /* of the workspace; -1: straight to O and LSE */
    const int32_t *pages;
};
static_assert(sizeof(part) <= MLA_PART_BYTES, "record");

/* A field of the record at shared-memory address `record`. */
#define PART(field) ((int)smem_load(record + offsetof(part, field)))
#define PART_PAGES ((const int32_t *)smem_load64(record + offsetof(part, pages)))

ATTN_DEVICE int divide(int x, mla_divider by) { return (int)((uint64_t)(uint32_t)x * by.magic >> by.shift); }

/* Wait for the next record. @return its address. */
ATTN_DEVICE uint32_t next_part(uint32_t base, ring &slot) {
    mbarrier_wait(base + PART_FULL + 8 * slot.index, slot.parity);
    return base + AT_PARTS + slot.index * MLA_PART_BYTES;
}
/* A thread that needs the record no more. */
ATTN_DEVICE void release_part(uint32_t base, ring &slot) {
    mbarrier_arrive(base + PART_EMPTY + 8 * slot.index);
    ring_next<MLA_PART_SLOTS>(slot);
}

/* First key that query i doesn't see. */
ATTN_DEVICE int keys_seen(const mla_decode_sm90_args &a, uint32_t record, int i) {
    const int kv_len = PART(kv_len);
    return a.problem.causal ? max(0, min(kv_len, i + PART(shift) + 1)) : kv_len;
}

/* Where the row goes: i its query, used: the query has a token, written: it is a row of O. */
struct row_place { int64_t o, lse; int i, head, used, written; };

ATTN_DEVICE row_place row_place_at(const mla_decode_sm90_args &a, uint32_t record, int row) {
    const attn_problem &p = a.problem;
    row_place at;
    at.i = divide(row, a.by_group);
    at.head = PART(head_kv) * a.group + row - at.i * a.group;
    at.used = at.i < PART(q_len);
    at.written = at.i < PART(q_rows);
    const int64_t batch = PART(q_batch), seq = PART(q_first) + at.i;
    at.o = batch * p.o_stride.batch + seq * p.o_stride.seq + at.head * p.o_stride.head;
    at.lse = batch * p.lse_stride.batch + seq * p.lse_stride.seq + at.head * p.lse_stride.head;
    return at;
}

/* ---- walker: one thread reads the schedule ---- */

ATTN_DEVICE void emit(uint32_t base, ring &slot, part &x) {
    mbarrier_wait(base + PART_EMPTY + 8 * slot.index, slot.parity);
    smem_store_words(base + AT_PARTS + slot.index * MLA_PART_BYTES, &x.blocks, sizeof x / 4);
    mbarrier_arrive(base + PART_FULL + 8 * slot.index);
    ring_next<MLA_PART_SLOTS>(slot);
}

/* Fill in sequence b. @return its blocks on the line; *seen: those that hold keys. */
ATTN_DEVICE int enter_sequence(const mla_decode_sm90_args &a, int b, part &x, int &seen) {
    const attn_problem &p = a.problem;
    if (__builtin_expect(a.plain, 1)) {     /* attn_sequence_at in few instructions */
        x.kv_len = p.has_seqused_kv ? max(0, min(a.kv_rows, a.tensors.seqused_kv[b])) : a.kv_rows;
        x.q_len = x.q_rows = (int)p.q_len;
        x.q_first = x.kv_first = 0;
        x.q_batch = x.kv_batch = b;
        x.shift = p.top_left ? 0 : x.kv_len - x.q_len;
        x.pages = p.page_size ? a.tensors.block_table + b * p.block_table_stride : nullptr;
    } else {
        const attn_sequence s = attn_sequence_at(&p, &a.tensors, b);
        x.kv_len = (int)s.kv_len, x.shift = (int)s.shift, x.q_len = (int)s.q_len, x.q_rows = (int)s.q_rows;
        x.q_first = (int)s.q_first, x.q_batch = (int)s.q_batch;
        x.kv_first = (int)s.kv_first, x.kv_batch = (int)s.kv_batch;
        x.pages = s.pages;
    }
    int most = x.q_len > 0 ? x.kv_len : 0;      /* keys that the last query sees */
    x.seen_by_all = x.kv_len;
    if (p.causal) {
        most = max(0, min(most, x.q_len + x.shift));
        x.seen_by_all = max(0, min(x.kv_len, divide(row_tile() * MLA_ROWS, a.by_group) + x.shift + 1));
    }
    seen = (most + MLA_KEYS - 1) / MLA_KEYS;
    return max(seen, 1);
}

/* No schedule in memory, nothing prescribed: of the line worker w has w * payload .. (w + 1) * payload - 1,
 * and slot 2 w + 1 for the part that begins an item, 2 w for one that goes on (decode_schedule.h). */
ATTN_DEVICE void walk_even(const mla_decode_sm90_args &a, uint32_t base, int worker, ring &slot, part &x) {
    const int cost = a.even.cost, begin = worker * a.even.payload,
              end = min(begin + a.even.payload, a.even.total);
    const int first = begin / cost;
    int b = a.shape.tiles == 1 ? first : first / a.shape.tiles;
    x.head_kv = first - b * a.shape.tiles;
#pragma unroll 1
    for (int at = first * cost + a.shape.overhead_blocks; at < end; at += cost) {
        int seen;
        const int blocks = enter_sequence(a, b, x, seen);
        const int from = max(0, begin - at), stop = min(blocks, end - at);
        x.first = from;
        x.blocks = max(0, min(stop, seen) - from);
        x.slot = from == 0 && stop == blocks ? -1 : 2 * worker + (from == 0);
        if (from < stop) emit(base, slot, x);
        if (++x.head_kv == a.shape.tiles) x.head_kv = 0, b++;
    }
}

ATTN_DEVICE attn_decode_slots slots_of(const mla_decode_sm90_args &a, int item) {
    return a.schedule ? attn_decode_slots_of(&a.shape, a.schedule, item)
                      : attn_decode_even_slots(&a.shape, &a.even, item);
}

/* By a schedule in memory, or in parts of a prescribed length. */
ATTN_DEVICE void walk_schedule(const mla_decode_sm90_args &a, uint32_t base, int worker, ring &slot,
                               part &x) {
    attn_decode_work work =
        a.schedule ? attn_decode_works(a.schedule)[worker] : attn_decode_work_of(&a.shape, &a.even, worker);
#pragma unroll 1
    for (int item = work.first_item; item <= work.last_item; item++) {
        int seen;
        const int b = a.shape.tiles == 1 ? item : item / a.shape.tiles;
        const int blocks = enter_sequence(a, b, x, seen), split = attn_decode_split_blocks(&a.shape, blocks);
        const attn_decode_slots slots = slots_of(a, item);
        x.head_kv = item - b * a.shape.tiles;
        int begin = item == work.first_item ? work.first_block : 0;
        int number = item == work.first_item ? work.first_part : 0;
        const int end = item == work.last_item ? work.last_block : blocks;
#pragma unroll 1
        for (; begin < end; number++) {
            const int stop = split == blocks ? end : min(end, (begin / split + 1) * split);
            x.first = begin;
            x.blocks = max(0, min(stop, seen) - begin);
            x.slot = slots.parts > 1 ? attn_decode_slot(slots, min(number, slots.parts - 1)) : -1;
            emit(base, slot, x);
            begin = stop;
        }
    }
}

ATTN_DEVICE void walk(const mla_decode_sm90_args &a, uint32_t base, int worker) {
    ring slot = { 0, 1 };
    part x = {};
    const int foreign = a.schedule && !attn_decode_has_hash(a.hash, a.schedule);
    if (!foreign) {
        if (!a.schedule && attn_decode_balances(&a.shape)) walk_even(a, base, worker, slot, x);
        else walk_schedule(a, base, worker, slot, x);
    }
    x.blocks = foreign ? -2 : -1;
    emit(base, slot, x);
}

/* ---- copiers: a thread for each half feeds the copy engine ---- */

/* Where keys are in the tensor: row and batch (or slot and page) of key `row` of K tile `block`. */
struct box { int seq, batch; };

ATTN_DEVICE box box_at(const mla_decode_sm90_args &a, uint32_t record, int block, int row) {
    const int32_t *pages = PART_PAGES;
    box x = { PART(kv_first) + block * MLA_KEYS + row, PART(kv_batch) };
    if (!pages) return x;
    /* No table entry behind the last page is read. */
    const int key = min(block * MLA_KEYS + row, PART(kv_len) - 1), page = divide(key, a.by_page);
    x.batch = pages[page];
    if (x.batch < 0 || x.batch >= a.problem.pages) x.batch = 0;
    x.seq = (key - page * (int)a.problem.page_size) & -a.box_rows;
    return x;
}

/* A copier: chunks first, first + CLUSTER, .. last - 1 of each K tile, in all blocks of the cluster;
 * the cluster's other block has those in between. */
struct copier {
    const CUtensorMap *map;
    uint64_t policy;            /* of L2 */
    uint32_t tile, full;        /* shared memory: of the K tile at hand */
    int first, last, head;
};

template <int CLUSTER> ATTN_DEVICE void copy_box(const copier &x, int row, box from) {
#pragma unroll 1
    for (int d = x.first; d < x.last; d += CLUSTER) {
        const uint32_t to = x.tile + d * MLA_CHUNK + row * 128, full = x.full + 8 * d;
        if (CLUSTER == 1) tma_load_policy(to, x.map, full, d * 64, x.head, from.seq, from.batch, x.policy);
        else tma_load_multicast(to, x.map, full, d * 64, x.head, from.seq, from.batch,
                                (1 << CLUSTER) - 1, x.policy);
    }
}
template <int CLUSTER> ATTN_DEVICE void prefetch_tile(const copier &x, box from) {
#pragma unroll 1
    for (int d = x.first; d < x.last; d += CLUSTER) tma_prefetch(x.map, d * 64, x.head, from.seq, from.batch);
}

/* Pairs bring K tiles to L2 this many ahead of their copy: giving a buffer back and its new contents'
 * arrival lie on the critical path, and L2 is nearer than memory. A block by itself waits for memory as
 * such: there it costs 8 %. */
enum { MLA_AHEAD = 1 };

/* The K tiles of a part: boxes are looked up, pages and all, MLA_AHEAD tiles before they are copied. */
template <int CLUSTER>
ATTN_DEVICE void copy_part(const mla_decode_sm90_args &a, copier &x, uint32_t base, uint32_t record, int half,
                           uint32_t &parities) {
    const int blocks = PART(blocks), begin = PART(first), whole = a.box_rows == MLA_KEYS,
              first = half ? 4 : 0;
    box ahead[MLA_AHEAD + 1] = {};
#pragma unroll 1
    for (int n = -MLA_AHEAD; n < blocks; n++) {
#pragma unroll
        for (int i = 0; i < MLA_AHEAD; i++) ahead[i] = ahead[i + 1];
        if (whole) ahead[MLA_AHEAD] = box_at(a, record, begin + min(n + MLA_AHEAD, blocks - 1), 0);
        if (n < 0) continue;
        const int buffer = n & 1, parity = parities >> buffer & 1;
        x.tile = base + AT_K + buffer * MLA_TILE, x.full = base + K_FULL + 8 * MLA_CHUNKS * buffer;
        parities ^= 1u << buffer;
        /* The last chunk's place holds P, which both halves read. */
        if (half) mbarrier_wait(base + RIGHT_EMPTY + 8 * buffer, parity);
        mbarrier_wait(base + LEFT_EMPTY + 8 * buffer, parity);
#pragma unroll 1
        for (int d = first; d < x.last; d++) mbarrier_arrive_expect(x.full + 8 * d, MLA_CHUNK);
        if (whole) {
            copy_box<CLUSTER>(x, 0, ahead[0]);
            if (CLUSTER > 1 && n + MLA_AHEAD < blocks) prefetch_tile<CLUSTER>(x, ahead[MLA_AHEAD]);
        } else {
#pragma unroll 1
            for (int row = 0; row < MLA_KEYS; row += a.box_rows)
                copy_box<CLUSTER>(x, row, box_at(a, record, begin + n, row));
        }
    }
}

template <int CLUSTER>
ATTN_DEVICE void copy_keys(const mla_decode_sm90_args &a, const CUtensorMap *map, uint32_t base, int half) {
    ring slot = { 0, 0 };
    uint32_t parities = 3;          /* bit b: of the phase of buffer b that is waited for next */
    copier x;
    x.map = map,
    x.policy = a.cache_first ? tma_cache_policy<TMA_CACHE_FIRST>() : tma_cache_policy<TMA_CACHE_NORMAL>();
    x.first = (half ? 4 : 0) + (CLUSTER == 1 ? 0 : (int)cluster_rank()), x.last = half ? MLA_CHUNKS : 4;
    for (;;) {
        const uint32_t record = next_part(base, slot);
        if (PART(blocks) < 0) return;
        x.head = PART(head_kv);
        if (PART(blocks) > 0) copy_part<CLUSTER>(a, x, base, record, half, parities);
        release_part(base, slot);
    }
}

/* ---- Q: the copy engine where rows are evenly spaced, else a warp gathers them ---- */

/* A row of the item; past its end, the last one. */
ATTN_DEVICE const char *q_row(const mla_decode_sm90_args &a, uint32_t record, int row) {
    const attn_problem &p = a.problem;
    row = min(row, PART(q_len) * a.group - 1);
    const int i = divide(row, a.by_group);
    const int64_t at = PART(q_batch) * p.q_stride.batch + (PART(q_first) + i) * p.q_stride.seq +
                       (PART(head_kv) * a.group + row - i * a.group) * p.q_stride.head;
    return (const char *)a.tensors.q + 2 * at;
}

ATTN_DEVICE void gather_rows(const mla_decode_sm90_args &a, uint32_t base, uint32_t record, int lane) {
    const int piece = lane % 8;
#pragma unroll 1
    for (int r = lane / 8; r < MLA_ROWS; r += 4) {
        const char *from = q_row(a, record, row_tile() * MLA_ROWS + r) + 16 * piece;
        const uint32_t to = base + AT_Q + r * 128 + ((piece ^ (r & 7)) << 4);
#pragma unroll
        for (int d = 0; d < MLA_CHUNKS; d++) async_copy16(to + d * MLA_CHUNK, from + d * 128);
    }
    async_copies_wait();
    async_proxy_fence();
    __syncwarp();
    if (lane == 0) mbarrier_arrive(base + Q_FULL);
}

/* q_map: rows of 576 numbers from the tensor's beginning on, 64 a box. */
ATTN_DEVICE void copy_rows(const mla_decode_sm90_args &a, const CUtensorMap *q_map, uint32_t base,
                           uint32_t record) {
    const int heads = (int)a.problem.q_heads;
    const int row = PART(q_first) * heads + PART(head_kv) * a.group + row_tile() * MLA_ROWS;
    mbarrier_arrive_expect(base + Q_FULL, MLA_TILE);
#pragma unroll 1
    for (int d = 0; d < MLA_CHUNKS; d++)
        tma_load<TMA_CACHE_NORMAL>(base + AT_Q + d * MLA_CHUNK, q_map, base + Q_FULL, d * 64, row,
                                   PART(q_batch), 0);
}

/* The answer to a schedule made for another plan. */
ATTN_DEVICE void write_nan(const mla_decode_sm90_args &a, int lane) {
    const attn_problem &p = a.problem;
#pragma unroll 1
    for (int64_t b = blockIdx.y; b < p.batch; b += gridDim.y) {
        const attn_sequence s = attn_sequence_at(&p, &a.tensors, b);
        for (int64_t row = 0; row < s.q_rows * p.q_heads; row++) {
            const int64_t i = row / p.q_heads, h = row % p.q_heads;
            uint16_t *o = (uint16_t *)a.tensors.o + attn_q_offset(&s, p.o_stride, i, h);
            for (int d = lane; d < MLA_V; d += 32) o[d] = 0x7fff;
            if (a.tensors.lse && lane == 0) a.tensors.lse[attn_lse_offset(&p, &s, i, h)] = NOT_A_NUMBER;
        }
    }
}

ATTN_DEVICE void load_q(const mla_decode_sm90_args &a, const CUtensorMap *q_map, uint32_t base) {
    const int lane = threadIdx.x % 32;
    ring slot = { 0, 0 };
    uint32_t parity = 1;
    for (;;) {
        const uint32_t record = next_part(base, slot);
        const int blocks = PART(blocks);
        if (blocks == -2) write_nan(a, lane);
        if (blocks < 0) return;
        if (blocks > 0) {
            mbarrier_wait(base + Q_EMPTY, parity);
            parity ^= 1;
            if (!a.q_even) gather_rows(a, base, record, lane);
            else if (lane == 0) copy_rows(a, q_map, base, record);
        }
        __syncwarp();
        release_part(base, slot);
    }
}
#endif
