/* flash_fwd_sm90_feed.h — the producer warpgroup of flash_fwd_sm90.cu: a scheduler thread hands out tiles, a
 * producer thread feeds the copy engine, two warps clean V. Also what both sides share: the map of shared
 * memory, the records of tiles. docs/hopper-forward.md draws who waits for whom. */
#ifndef ATTN_FLASH_FWD_SM90_FEED_H
#define ATTN_FLASH_FWD_SM90_FEED_H
#include "flash_fwd_sm90.h"
#include "../sequence.h"
#include "ptx_sm90.h"
#include <stddef.h>

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define INF __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fffffff)

/* Both 16-bit values of x, infinities and NaNs replaced by 0. */
template <int BF16> ATTN_DEVICE uint32_t finite16(uint32_t x) {
    constexpr uint32_t EXPONENT = BF16 ? 0x7f80u : 0x7c00u;
    if ((x & EXPONENT) == EXPONENT) x &= 0xffff0000u;
    if ((x >> 16 & EXPONENT) == EXPONENT) x &= 0xffffu;
    return x;
}

/* ---- where things are in shared memory ---- */

struct smem_map {
    int q, k, v; /* Q: a part per warpgroup; K, V: a ring of tiles; boxes of 64 columns one after another */
    int q_bytes, k_bytes, v_bytes;
    int q_full, q_empty, k_full, k_empty, v_full, v_empty, v_clean, tile_full, tile_empty, tile_done,
        tile_wanted, tiles;
};

template <int QK, int V, int KEYS, int WARPGROUPS, int STAGES>
__host__ __device__ constexpr smem_map map_smem() {
    smem_map at = {};
    at.q_bytes = SM90_CHUNKS(QK) * 64 * 128;
    at.k_bytes = SM90_CHUNKS(QK) * KEYS * 128;
    at.v_bytes = SM90_CHUNKS(V) * KEYS * 128;
    at.k = WARPGROUPS * at.q_bytes;
    at.v = at.k + STAGES * at.k_bytes;
    at.q_full = at.v + STAGES * at.v_bytes;
    at.q_empty = at.q_full + 8 * WARPGROUPS;
    at.k_full = at.q_empty + 8 * WARPGROUPS;
    at.k_empty = at.k_full + 8 * STAGES;
    at.v_full = at.k_empty + 8 * STAGES;
    at.v_empty = at.v_full + 8 * STAGES;
    at.v_clean = at.v_empty + 8 * STAGES;
    at.tile_full = at.v_clean + 8 * STAGES;
    at.tile_empty = at.tile_full + 8 * SM90_TILE_SLOTS;
    at.tile_done = at.tile_empty + 8 * SM90_TILE_SLOTS;
    at.tile_wanted = at.tile_done + 8 * SM90_TILE_SLOTS;
    at.tiles = at.q_full + SM90_BARRIER_BYTES;
    return at;
}

/* A place in a ring of barriers: which one, and the parity of the phase waited for next. */
struct ring { uint32_t index, parity; };

template <int STAGES> ATTN_DEVICE void ring_next(ring &r) {
    if (++r.index == STAGES) {
        r.index = 0;
        r.parity ^= 1;
    }
}

/* ---- tiles: the scheduler finds them and leaves a record, everybody else reads it ---- */

/* Key tiles are visited in this order: those that the diagonal cuts, last first; those that the window's low
 * end cuts; then the ones in between, last first. The first `scan` visited ones hold V rows that not every
 * query may see. */
struct tile {
    int blocks;                 /* key tiles; -1 = no more tiles. Tiles whose rows see no key
                                   leave no record */
    int first, last, high, low; /* key tiles first .. last - 1; those >= high or < low are masked */
    int row;                    /* first row of the tile: query << pack_shift | head */
    int shift, kv_len, q_len, q_rows, head, head_kv, sequence, scan;
    int q_first, q_batch, kv_first, kv_batch;   /* where the sequence starts in the tensors */
    int64_t o, lse;             /* offsets of its query 0, head `head` */
    const int32_t *pages;
};
static_assert(sizeof(tile) <= SM90_TILE_BYTES, "tile record");

/* smem_store_words' opposite. */
ATTN_DEVICE void smem_load_words(uint32_t from, int *words, int count) {
#pragma unroll
    for (int i = 0; i < count; i++) words[i] = (int)smem_load(from + 4 * i);
}

/* A field of the record at shared-memory address `record`. */
#define RECORD(field) ((int)smem_load(record + offsetof(tile, field)))
#define RECORD64(field) smem_load64(record + offsetof(tile, field))

/* The key tile that is visited as number n. */
template <int KIND> ATTN_DEVICE int record_block(uint32_t record, int n) {
    const int last = RECORD(last);
    if (KIND < SM90_GENERAL) return last - 1 - n;
    const int first = RECORD(first), high = RECORD(high), highs = last - high, lows = RECORD(low) - first;
    return n < highs ? last - 1 - n : n < highs + lows ? first + n - highs : high - 1 - (n - highs - lows);
}

/* Keys that query i sees: low <= j < high. */
template <int KIND>
ATTN_DEVICE void row_limits(const attn_problem &p, int shift, int kv_len, int i, int &low, int &high) {
    low = 0;
    high = kv_len;
    const int here = i + shift;
    if (KIND == SM90_CAUSAL || (KIND >= SM90_GENERAL && p.causal)) high = min(high, here + 1);
    if (KIND >= SM90_GENERAL) {
        if (p.window_right >= 0 && p.window_right < high - here - 1) high = here + (int)p.window_right + 1;
        if (p.window_left >= 0 && p.window_left < here) low = here - (int)p.window_left;
    }
}
template <int KIND>
ATTN_DEVICE void record_limits(const flash_fwd_sm90_args &a, uint32_t record, int row, int &low, int &high) {
    row_limits<KIND>(a.problem, RECORD(shift), RECORD(kv_len), row >> a.pack_shift, low, high);
}

/* ---- scheduler: one thread hands out tiles ---- */

/* Fill in sequence b. @return its tiles. */
template <int ROWS> ATTN_DEVICE int enter_sequence(const flash_fwd_sm90_args &a, int b, tile &t) {
    t.sequence = b;
    if (b >= a.problem.batch) return 0;
    const attn_sequence s = attn_sequence_at(&a.problem, &a.tensors, b);
    t.shift = (int)s.shift, t.kv_len = (int)s.kv_len, t.q_len = (int)s.q_len, t.q_rows = (int)s.q_rows;
    t.q_first = (int)s.q_first, t.q_batch = (int)s.q_batch, t.kv_first = (int)s.kv_first,
    t.kv_batch = (int)s.kv_batch;
    t.pages = s.pages;
    return ((t.q_rows << a.pack_shift) + ROWS - 1) / ROWS * a.tile_heads;
}

/* Which key tiles the tile's rows need. */
template <int KIND, int ROWS, int KEYS> ATTN_DEVICE void find_blocks(const flash_fwd_sm90_args &a, tile &t) {
    const attn_problem &p = a.problem;
    const int i_first = t.row >> a.pack_shift, i_last = min((t.row + ROWS - 1) >> a.pack_shift, t.q_len - 1);
    int low, high, full_low, full_high;     /* keys that some row sees; that all rows see */
    row_limits<KIND>(p, t.shift, t.kv_len, i_first, low, full_high);
    row_limits<KIND>(p, t.shift, t.kv_len, i_last, full_low, high);
    if (i_first >= t.q_len || high <= low) {
        t.blocks = t.first = t.last = t.high = t.low = t.scan = 0;
        return;
    }
    t.first = low / KEYS;
    t.last = (high + KEYS - 1) / KEYS;
    t.high = min(t.last, max(t.first, max(full_high, 0) / KEYS));
    t.low = min(t.high, max(t.first, (full_low + KEYS - 1) / KEYS));
    if (KIND == SM90_BIASED) t.high = t.low = t.first;     /* any key may be masked */
    t.blocks = t.last - t.first;
    t.scan = KIND == SM90_FULL && !a.scan_tail ? 0 : t.last - t.high + t.low - t.first;
}

/* Tile `place` of a run of `heads` (sequence, head) pairs starting at pair `first`, all of the same height in
 * tiles: longest rows first within a group of pairs whose K and V stay in L2. */
template <int ROWS>
ATTN_DEVICE void find_place(const flash_fwd_sm90_args &a, int place, int heads, int heights, tile &t,
                            int &pair) {
    const int group = place / (heights * a.group_heads), start = group * a.group_heads;
    const int in_group = min(a.group_heads, heads - start), rest = place - start * heights,
              height = rest / in_group;
    pair = start + rest - height * in_group;
    t.row = (heights - 1 - height) * ROWS;
}

/* Tile number `index` of the launch, blocks = -1 past the last. Packed sequences differ in height: they are
 * passed one by one, `start` and `tiles` are those of t.sequence; index only grows. Others form one run. */
template <int KIND, int ROWS, int KEYS>
ATTN_DEVICE void find_tile(const flash_fwd_sm90_args &a, int index, int &start, int &tiles, tile &t) {
    const attn_problem &p = a.problem;
    int pair;
    if (p.packed_q) {
        while (t.sequence < p.batch && index >= start + tiles) {
            start += tiles;
            tiles = enter_sequence<ROWS>(a, t.sequence + 1, t);
        }
        t.blocks = -1;
        if (t.sequence >= p.batch) return;
        find_place<ROWS>(a, index - start, a.tile_heads, tiles / a.tile_heads, t, pair);
    } else {
        const int heads = a.tile_heads * (int)p.batch, heights = tiles / a.tile_heads;
        t.blocks = -1;
        if (index >= heads * heights) return;
        find_place<ROWS>(a, index, heads, heights, t, pair);
        const int sequence = pair / a.tile_heads;
        pair -= sequence * a.tile_heads;
        if (sequence != t.sequence) enter_sequence<ROWS>(a, sequence, t);
    }
    t.head = pair << a.pack_shift;
    t.head_kv = t.head / (int)(p.q_heads / p.kv_heads);
    t.o = t.q_batch * p.o_stride.batch + t.q_first * p.o_stride.seq + t.head * p.o_stride.head;
    t.lse = t.q_batch * p.lse_stride.batch + t.q_first * p.lse_stride.seq + t.head * p.lse_stride.head;
    find_blocks<KIND, ROWS, KEYS>(a, t);
}

/* Rows of a tile that aren't queries or see no key: O = 0, LSE = -inf. The scheduler writes them by
 * itself: consumers finish a tile under the beginning of the next, so that two records in a row without
 * work would stop the ring. */
template <int ROWS> ATTN_DEVICE void write_keyless(const flash_fwd_sm90_args &a, uint32_t record) {
    const attn_problem &p = a.problem;
#pragma unroll 1
    for (int r = 0; r < ROWS; r++) {
        const int row = RECORD(row) + r, i = row >> a.pack_shift, h = row & ((1 << a.pack_shift) - 1);
        if (i >= RECORD(q_rows)) return;
        uint16_t *o = (uint16_t *)a.tensors.o + RECORD64(o) + i * p.o_stride.seq + h * p.o_stride.head;
#pragma unroll 1
        for (int d = 0; d < p.v_dim; d += 8) *(uint4 *)(o + d) = make_uint4(0, 0, 0, 0);
        if (a.tensors.lse)
            a.tensors.lse[RECORD64(lse) + i * p.lse_stride.seq + h * p.lse_stride.head] = -INF;
    }
}

template <int QK, int V, int KEYS, int WARPGROUPS, int STAGES, int KIND>
ATTN_DEVICE void schedule(const flash_fwd_sm90_args &a, uint32_t base) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    constexpr int ROWS = 64 * WARPGROUPS;
    ring slot = { 0, 1 };
    tile t;
    int start = 0, tiles = enter_sequence<ROWS>(a, 0, t);
    for (int index = blockIdx.x, wanted = 0;;) {
        find_tile<KIND, ROWS, KEYS>(a, index, start, tiles, t);
        const uint32_t record = base + at.tiles + slot.index * SM90_TILE_BYTES;
        mbarrier_wait(base + at.tile_empty + 8 * slot.index, slot.parity);
        smem_store_words(record, &t.blocks, sizeof t / 4);
        if (t.blocks == 0) {                /* nobody else hears of it; the place is used again */
            write_keyless<ROWS>(a, record);
            smem_load_words(record, &t.blocks, sizeof t / 4);       /* registers are few */
        } else {
            mbarrier_arrive(base + at.tile_full + 8 * slot.index);
            if (t.blocks < 0) return;
            ring_next<SM90_TILE_SLOTS>(slot);
            /* Not earlier: a tile taken is lost to idle blocks. */
            mbarrier_wait(base + at.tile_wanted, wanted);
            wanted ^= 1;
        }
        index = a.counter ? atomicAdd(a.counter, 1) + (int)gridDim.x : index + (int)gridDim.x;
    }
}

/* ---- producer: one thread feeds the copy engine ---- */

/* Fetch one key tile of K or V. A record outlives the copies of its tile: consumers release it at the very
 * end. */
template <int KEYS, int CHUNKS>
ATTN_DEVICE void load_tile(const flash_fwd_sm90_args &a, const CUtensorMap *map, uint32_t record, uint32_t to,
                           uint32_t full, int block) {
    const int32_t *pages = (const int32_t *)RECORD64(pages);
    const int head = RECORD(head_kv);
    mbarrier_arrive_expect(full, CHUNKS * KEYS * 128);
    if (!pages) {
        const int seq = RECORD(kv_first) + block * KEYS, batch = RECORD(kv_batch);
#pragma unroll 1
        for (int d = 0; d < CHUNKS; d++)
            tma_load<TMA_CACHE_LAST>(to + d * KEYS * 128, map, full, d * 64, head, seq, batch);
        return;
    }
    const int size = (int)a.problem.page_size, last = RECORD(kv_len) - 1;
#pragma unroll 1
    for (int row = 0; row < KEYS; row += a.page_rows) {
        const int key = min(block * KEYS + row, last);      /* no table entry behind the last page is read */
        int page = pages[key / size];
        if (page < 0 || page >= a.problem.pages) page = 0;
#pragma unroll 1
        for (int d = 0; d < CHUNKS; d++)
            tma_load<TMA_CACHE_LAST>(to + d * KEYS * 128 + row * 128, map, full, d * 64, head,
                                     key % size / a.page_rows * a.page_rows, page);
    }
}

template <int QK, int V, int KEYS, int WARPGROUPS, int STAGES>
ATTN_DEVICE void load_q(const flash_fwd_sm90_args &a, const CUtensorMap *map, uint32_t record, uint32_t base,
                        uint32_t parity) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
#pragma unroll 1
    for (int w = 0; w < WARPGROUPS; w++) {
        const int i = RECORD(q_first) + ((RECORD(row) + 64 * w) >> a.pack_shift);
        const uint32_t full = base + at.q_full + 8 * w, to = base + at.q + w * at.q_bytes;
        mbarrier_wait(base + at.q_empty + 8 * w, parity);
        mbarrier_arrive_expect(full, at.q_bytes);
#pragma unroll 1
        for (int d = 0; d < SM90_CHUNKS(QK); d++)
            tma_load<TMA_CACHE_FIRST>(to + d * 64 * 128, map, full, d * 64, RECORD(head), i, RECORD(q_batch));
    }
}

/* K, and V one key tile behind it: the first K of a tile comes before the last V of the tile before. */
template <int QK, int V, int KEYS, int WARPGROUPS, int STAGES, int KIND>
ATTN_DEVICE void produce(const flash_fwd_sm90_args &a, const CUtensorMap *q_map, const CUtensorMap *k_map,
                         const CUtensorMap *v_map, uint32_t base) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    ring k = { 0, 1 }, v = { 0, 1 }, slot = { 0, 0 };
    uint32_t q_parity = 1, late_record = 0;
    int late = -1;                  /* the key tile whose V comes next */
    for (;;) {
        mbarrier_wait(base + at.tile_full + 8 * slot.index, slot.parity);
        const uint32_t record = base + at.tiles + slot.index * SM90_TILE_BYTES;
        const int blocks = RECORD(blocks);
        mbarrier_arrive(base + at.tile_empty + 8 * slot.index);
        ring_next<SM90_TILE_SLOTS>(slot);
#pragma unroll 1
        for (int n = 0; n < max(blocks, 1); n++) {
            if (n == max(0, blocks - 3)) mbarrier_arrive(base + at.tile_wanted);
            if (blocks > 0) {
                mbarrier_wait(base + at.k_empty + 8 * k.index, k.parity);
                load_tile<KEYS, SM90_CHUNKS(QK)>(a, k_map, record, base + at.k + k.index * at.k_bytes,
                                                 base + at.k_full + 8 * k.index,
                                                 record_block<KIND>(record, n));
                ring_next<STAGES>(k);
            }
            if (late >= 0) {
                mbarrier_wait(base + at.v_empty + 8 * v.index, v.parity);
                load_tile<KEYS, SM90_CHUNKS(V)>(a, v_map, late_record, base + at.v + v.index * at.v_bytes,
                                                base + at.v_full + 8 * v.index, late);
                ring_next<STAGES>(v);
            }
            if (blocks < 0) return;
            if (n == 0) {
                load_q<QK, V, KEYS, WARPGROUPS, STAGES>(a, q_map, record, base, q_parity);
                q_parity ^= 1;
                late_record = record;
            }
            late = record_block<KIND>(record, n);
        }
    }
}

/* ---- cleaners: two warps keep what no row may see out of O ---- */

ATTN_DEVICE float load_number(const void *from, attn_dtype dtype, int64_t at) {
    if (dtype == ATTN_F32) return ((const float *)from)[at];
    const uint32_t bits = ((const uint16_t *)from)[at];
    return dtype == ATTN_BF16 ? unpack16<1>(bits) : unpack16<0>(bits);
}

/* Replace what isn't finite in a tile of V by 0, since P = 0 times NaN would be NaN. @return whether keys in
 * use had any (warp-uniform). rows: keys of the tile that are in use. */
template <int BF16, int KEYS, int BYTES, int AHEAD>
ATTN_DEVICE int clean_tile(uint32_t v, int rows, int thread) {
    constexpr int STEP = 64 * 16;       /* bytes that both warps load at once; AHEAD of these in flight */
    int unclean = 0;
#pragma unroll 1
    for (int i = thread * 16; i < BYTES; i += AHEAD * STEP) {
        uint4 x[AHEAD];
        uint32_t zero[AHEAD];       /* 0 times each number, added up: 0, or NaN */
#pragma unroll
        for (int n = 0; n < AHEAD; n++) x[n] = smem_load16(v + i + n * STEP);
#pragma unroll
        for (int n = 0; n < AHEAD; n++)
            zero[n] = fma16<BF16>(x[n].x, 0,
                                  fma16<BF16>(x[n].y, 0, fma16<BF16>(x[n].z, 0, fma16<BF16>(x[n].w, 0, 0))));
        if (!((zero[0] | zero[1] | zero[AHEAD - 2] | zero[AHEAD - 1]) & 0x7fff7fffu)) continue;
#pragma unroll
        for (int n = 0; n < AHEAD; n++) {
            if (!(zero[n] & 0x7fff7fffu)) continue;
            unclean |= (i + n * STEP) / 128 % KEYS < rows;
            smem_store16(v + i + n * STEP, make_uint4(finite16<BF16>(x[n].x), finite16<BF16>(x[n].y),
                                                      finite16<BF16>(x[n].z), finite16<BF16>(x[n].w)));
        }
    }
    async_proxy_fence();
    return __any_sync(~0u, unclean);
}

/* Is key j switched off for this row by the boolean mask or a bias of -inf? */
ATTN_DEVICE int switched_off(const flash_fwd_sm90_args &a, uint32_t record, int row, int j) {
    const attn_problem &p = a.problem;
    const int i = row >> a.pack_shift, h = RECORD(head) + (row & ((1 << a.pack_shift) - 1));
    attn_sequence s;
    s.b = RECORD(sequence);
    if (p.has_mask && !a.tensors.mask[attn_score_offset(&s, p.mask_stride, h, i, j)]) return 1;
    return p.bias_dtype &&
           load_number(a.tensors.bias, p.bias_dtype, attn_score_offset(&s, p.bias_stride, h, i, j)) == -INF;
}

/* Row and column of V in the tensor: key j of the tile's sequence and head. */
ATTN_DEVICE float load_v(const flash_fwd_sm90_args &a, uint32_t record, int j, int d) {
    const attn_problem &p = a.problem;
    const int32_t *pages = (const int32_t *)RECORD64(pages);
    int batch = RECORD(kv_batch), seq = RECORD(kv_first) + j;
    if (pages) {
        batch = pages[j / (int)p.page_size];
        if (batch < 0 || batch >= p.pages) batch = 0;
        seq = j % (int)p.page_size;
    }
    return load_number(a.tensors.v, p.dtype, batch * p.v_stride.batch + seq * p.v_stride.seq +
                                             RECORD(head_kv) * p.v_stride.head + d);
}

/* What row r of the tile is due in column d: the values that aren't finite of the keys that it sees. */
template <int KIND, int KEYS>
ATTN_DEVICE float sum_unclean(const flash_fwd_sm90_args &a, uint32_t record, int row, int d) {
    float sum = 0.f;
    int low, high;
    record_limits<KIND>(a, record, row, low, high);
#pragma unroll 1
    for (int n = 0; n < RECORD(scan); n++) {
        const int block = record_block<KIND>(record, n);
#pragma unroll 1
        for (int j = max(low, block * KEYS); j < min(high, (block + 1) * KEYS); j++) {
            const float x = load_v(a, record, j, d);
            if (fabsf(x) < INF) continue;
            if (KIND == SM90_BIASED && switched_off(a, record, row, j)) continue;
            sum += x;
            if (sum != sum) return sum;         /* stays NaN: the rest needn't be read */
        }
    }
    return sum;
}

/* Add to O what was cleaned out of V, in the rows that see it: element by element, after the consumers'
 * stores. Rare. */
template <int KIND, int ROWS, int KEYS>
ATTN_DEVICE void add_unclean(const flash_fwd_sm90_args &a, uint32_t record, int thread) {
    const attn_problem &p = a.problem;
#pragma unroll 1
    for (int r = 0; r < ROWS; r++) {
        const int row = RECORD(row) + r, i = row >> a.pack_shift, h = row & ((1 << a.pack_shift) - 1);
        if (i >= RECORD(q_len)) return;
#pragma unroll 1
        for (int d = thread; d < p.v_dim; d += 64) {
            const float sum = sum_unclean<KIND, KEYS>(a, record, row, d);
            if (sum == 0.f) continue;
            uint16_t *o =
                (uint16_t *)a.tensors.o + RECORD64(o) + i * p.o_stride.seq + h * p.o_stride.head + d;
            const float x = load_number(o, p.dtype, 0) + sum;
            *o = (uint16_t)(p.dtype == ATTN_BF16 ? pack16<1>(x, 0.f) : pack16<0>(x, 0.f));
        }
    }
}

template <int QK, int V, int KEYS, int WARPGROUPS, int STAGES, int KIND, int BF16>
ATTN_DEVICE void clean(const flash_fwd_sm90_args &a, uint32_t base, int warp) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    constexpr int AHEAD = WARPGROUPS == 3 || at.v_bytes % 4096 ? 2 : 4; /* 3: a thread has 32 registers */
    const int lane = threadIdx.x & 31, thread = warp * 32 + lane;
    ring v = { 0, 0 }, slot = { 0, 0 };
    for (;;) {
        mbarrier_wait(base + at.tile_full + 8 * slot.index, slot.parity);
        const uint32_t record = base + at.tiles + slot.index * SM90_TILE_BYTES;
        const int blocks = RECORD(blocks), scan = RECORD(scan);
        int unclean = 0;
        if (blocks < 0) return;
#pragma unroll 1
        for (int n = 0; n < blocks; n++) {
            mbarrier_wait(base + at.v_full + 8 * v.index, v.parity);
            if (n < scan) {
                const int rows = RECORD(kv_len) - record_block<KIND>(record, n) * KEYS;
                unclean |= clean_tile<BF16, KEYS, at.v_bytes, AHEAD>(base + at.v + v.index * at.v_bytes,
                                                                     rows, thread);
                if (lane == 0) mbarrier_arrive(base + at.v_clean + 8 * v.index);
            }
            __syncwarp();
            if (lane == 0) mbarrier_arrive(base + at.v_empty + 8 * v.index);
            ring_next<STAGES>(v);
        }
        /* What one warp found, both add: flags are exchanged by the pair's barrier. */
        if (scan) unclean = named_barrier_any(8, 64, unclean);
        if (unclean) {
            mbarrier_wait(base + at.tile_done + 8 * slot.index, slot.parity);
            add_unclean<KIND, 64 * WARPGROUPS, KEYS>(a, record, thread);
        }
        __syncwarp();
        if (lane == 0) mbarrier_arrive(base + at.tile_empty + 8 * slot.index);
        ring_next<SM90_TILE_SLOTS>(slot);
    }
}
#endif
