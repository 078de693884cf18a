/* flash_fwd_sm90.cu — flash attention forward for Hopper: TMA copies, wgmma, one producer and 2-3 consumer warpgroups.
 * A block lives as long as the kernel: its producer fetches tiles (64 query rows per consumer x all keys they see) and
 * keeps the rings of K and V full; consumers overlap QK of one key tile with PV of the last. docs/hopper-forward.md. */
#include "flash_fwd_sm90.h"
#include <stddef.h>
#include "../sequence.h"
#include "ptx_sm90.h"

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
    int q, k, v;                /* Q: a part per warpgroup; K, V: a ring of tiles; boxes of 64 columns one after another */
    int q_bytes, k_bytes, v_bytes;
    int q_full, q_empty, k_full, k_empty, v_full, v_empty, v_clean, tile_full, tile_empty, tile_done, tile_wanted, tiles;
};

template <int QK, int V, int KEYS, int WARPGROUPS, int STAGES> __host__ __device__ constexpr smem_map map_smem() {
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
    at.tiles = at.q_full + 256;
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

/* Key tiles are visited in this order: those that the diagonal cuts, last first; those that the window's low end cuts;
 * then the ones in between, last first. The first `scan` visited ones hold V rows that not every query may see. */
struct tile {
    int blocks;                 /* key tiles; 0 = no row sees a key, -1 = no more tiles */
    int first, last, high, low; /* key tiles first .. last - 1; those >= high or < low are masked */
    int row;                    /* first row of the tile: query << pack_shift | head */
    int shift, kv_len, q_len, q_rows, head, head_kv, sequence, scan;
    int q_first, q_batch, kv_first, kv_batch;   /* where the sequence starts in the tensors */
    int64_t o, lse;             /* offsets of its query 0, head `head` */
    const int32_t *pages;
};
static_assert(sizeof(tile) <= SM90_TILE_BYTES, "tile record");

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
    t.q_first = (int)s.q_first, t.q_batch = (int)s.q_batch, t.kv_first = (int)s.kv_first, t.kv_batch = (int)s.kv_batch;
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

/* Tile `place` of a run of `heads` (sequence, head) pairs starting at pair `first`, all of the same height in tiles:
 * longest rows first within a group of pairs whose K and V stay in L2. */
template <int ROWS>
ATTN_DEVICE void find_place(const flash_fwd_sm90_args &a, int place, int heads, int heights, tile &t, int &pair) {
    const int group = place / (heights * a.group_heads), start = group * a.group_heads;
    const int in_group = min(a.group_heads, heads - start), rest = place - start * heights, height = rest / in_group;
    pair = start + rest - height * in_group;
    t.row = (heights - 1 - height) * ROWS;
}

/* Tile number `index` of the launch, blocks = -1 past the last. Packed sequences differ in height: they are passed one
 * by one, `start` and `tiles` are those of t.sequence, and index only grows. Others form one run. */
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

template <int QK, int V, int KEYS, int WARPGROUPS, int STAGES, int KIND>
ATTN_DEVICE void schedule(const flash_fwd_sm90_args &a, uint32_t base) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    constexpr int ROWS = 64 * WARPGROUPS;
    ring slot = { 0, 1 };
    tile t;
    int start = 0, tiles = enter_sequence<ROWS>(a, 0, t);
    for (int index = blockIdx.x, wanted = 0;; wanted ^= 1) {
        find_tile<KIND, ROWS, KEYS>(a, index, start, tiles, t);
        mbarrier_wait(base + at.tile_empty + 8 * slot.index, slot.parity);
        smem_store_words(base + at.tiles + slot.index * SM90_TILE_BYTES, &t.blocks, sizeof t / 4);
        mbarrier_arrive(base + at.tile_full + 8 * slot.index);
        if (t.blocks < 0) return;
        ring_next<SM90_TILE_SLOTS>(slot);
        mbarrier_wait(base + at.tile_wanted, wanted);       /* not earlier: a tile taken is lost to idle blocks */
        index = a.counter ? atomicAdd(a.counter, 1) + (int)gridDim.x : index + (int)gridDim.x;
    }
}

/* ---- producer: one thread feeds the copy engine ---- */

/* Fetch one key tile of K or V. A record outlives the copies of its tile: consumers release it at the very end. */
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
        if (blocks == 0) mbarrier_arrive(base + at.tile_wanted);
        if (blocks == 0) continue;
#pragma unroll 1
        for (int n = 0; n < max(blocks, 1); n++) {
            if (n == max(0, blocks - 3)) mbarrier_arrive(base + at.tile_wanted);
            if (blocks > 0) {
                mbarrier_wait(base + at.k_empty + 8 * k.index, k.parity);
                load_tile<KEYS, SM90_CHUNKS(QK)>(a, k_map, record, base + at.k + k.index * at.k_bytes,
                                                 base + at.k_full + 8 * k.index, record_block<KIND>(record, n));
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

/* Replace what isn't finite in a tile of V by 0, since P = 0 times NaN would be NaN. @return whether keys in use had
 * any (warp-uniform). rows: keys of the tile that are in use. */
template <int BF16, int KEYS> ATTN_DEVICE int clean_tile(uint32_t v, int bytes, int rows, int thread) {
    int unclean = 0;
#pragma unroll 4
    for (int i = thread * 16; i < bytes; i += 64 * 16) {
        const uint4 x = smem_load16(v + i);
        const uint32_t zero = fma16<BF16>(x.x, 0, fma16<BF16>(x.y, 0, fma16<BF16>(x.z, 0, fma16<BF16>(x.w, 0, 0))));
        if (zero & 0x7fff7fffu) {
            unclean |= i / 128 % KEYS < rows;
            smem_store16(v + i, make_uint4(finite16<BF16>(x.x), finite16<BF16>(x.y), finite16<BF16>(x.z),
                                           finite16<BF16>(x.w)));
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
    return p.bias_dtype && load_number(a.tensors.bias, p.bias_dtype, attn_score_offset(&s, p.bias_stride, h, i, j)) == -INF;
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

/* Add to O what was cleaned out of V, in the rows that see it: element by element, after the consumers' stores. Rare. */
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
            uint16_t *o = (uint16_t *)a.tensors.o + RECORD64(o) + i * p.o_stride.seq + h * p.o_stride.head + d;
            const float x = load_number(o, p.dtype, 0) + sum;
            *o = (uint16_t)(p.dtype == ATTN_BF16 ? pack16<1>(x, 0.f) : pack16<0>(x, 0.f));
        }
    }
}

/* Rows of a tile that aren't queries or see no key: O = 0, LSE = -inf. */
template <int ROWS> ATTN_DEVICE void write_keyless(const flash_fwd_sm90_args &a, uint32_t record, int thread) {
    const attn_problem &p = a.problem;
#pragma unroll 1
    for (int r = 0; r < ROWS; r++) {
        const int row = RECORD(row) + r, i = row >> a.pack_shift, h = row & ((1 << a.pack_shift) - 1);
        if (i >= RECORD(q_rows)) return;
        uint16_t *o = (uint16_t *)a.tensors.o + RECORD64(o) + i * p.o_stride.seq + h * p.o_stride.head;
        for (int d = thread; d < p.v_dim; d += 64) o[d] = 0;
        if (a.tensors.lse && thread == 0)
            a.tensors.lse[RECORD64(lse) + i * p.lse_stride.seq + h * p.lse_stride.head] = -INF;
    }
}

template <int QK, int V, int KEYS, int WARPGROUPS, int STAGES, int KIND, int BF16>
ATTN_DEVICE void clean(const flash_fwd_sm90_args &a, uint32_t base, int warp) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    const int lane = threadIdx.x & 31, thread = warp * 32 + lane;
    ring v = { 0, 0 }, slot = { 0, 0 };
    for (;;) {
        mbarrier_wait(base + at.tile_full + 8 * slot.index, slot.parity);
        const uint32_t record = base + at.tiles + slot.index * SM90_TILE_BYTES;
        const int blocks = RECORD(blocks), scan = RECORD(scan);
        int unclean = 0;
        if (blocks < 0) return;
        if (blocks == 0) write_keyless<64 * WARPGROUPS>(a, record, thread);
#pragma unroll 1
        for (int n = 0; n < blocks; n++) {
            mbarrier_wait(base + at.v_full + 8 * v.index, v.parity);
            if (n < scan) {
                const int rows = RECORD(kv_len) - record_block<KIND>(record, n) * KEYS;
                unclean |= clean_tile<BF16, KEYS>(base + at.v + v.index * at.v_bytes, at.v_bytes, rows, thread);
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

/* ---- consumers: the steps of the algorithm, on fragments (ptx_sm90.h, wgmma: which thread holds what) ---- */

/* s = Q K^T of one key tile; accumulators s[keys / 2]. */
template <int BF16, int QK, int KEYS> ATTN_DEVICE void scores(float (&s)[KEYS / 2], uint64_t q, uint64_t k) {
#pragma unroll
    for (int d = 0; d < QK / 16; d++)
        wgmma_ss<BF16, 0, 0>(s, wgmma_advance(q, d / 4 * 64 * 128 + d % 4 * 32),
                             wgmma_advance(k, d / 4 * KEYS * 128 + d % 4 * 32), d > 0);
}

/* o += P V of one key tile. */
template <int BF16, int V, int KEYS> ATTN_DEVICE void accumulate(float (&o)[V / 2], uint32_t (&p)[KEYS / 4], uint64_t v) {
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++)
        wgmma_rs<BF16, 1>(o, p[4 * j], p[4 * j + 1], p[4 * j + 2], p[4 * j + 3], wgmma_advance(v, j * 2048), 1);
}

/* The two rows of a thread: maximum so far, this thread's part of the sum, factor that O is due. */
struct softmax { float m[2], l[2], factor[2]; };

ATTN_DEVICE float quad_max(float x) {
    x = max_nan(x, __shfl_xor_sync(~0u, x, 1));
    return max_nan(x, __shfl_xor_sync(~0u, x, 2));
}
ATTN_DEVICE float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/* m * c as the exponent's offset: 0 for a row without keys yet, NaN for a row with an infinite or NaN score. */
ATTN_DEVICE float offset(float m, float c) { return m == -INF ? 0.f : m == INF ? NOT_A_NUMBER : m * c; }

/* s becomes p = 2^(c s - c m); @return 0 if O needn't be rescaled (only LAZY; the same for a warp). LAZY keeps a row's
 * old maximum while the new one is less than 2^8 above: p stays below 2^8, the quotient is the same. */
template <int KEYS, int FIRST, int LAZY>
ATTN_DEVICE int softmax_step(float (&s)[KEYS / 2], softmax &r, float c) {
    float m[2] = { FIRST ? -INF : r.m[0], FIRST ? -INF : r.m[1] };
#pragma unroll
    for (int e = 0; e < KEYS / 2; e += 4) {
        m[0] = max_nan(m[0], max_nan(s[e], s[e + 1]));
        m[1] = max_nan(m[1], max_nan(s[e + 2], s[e + 3]));
    }
    int rescale = !FIRST;
#pragma unroll
    for (int i = 0; i < 2; i++) m[i] = quad_max(m[i]);
    if (LAZY && !FIRST) {
        if ((m[0] - r.m[0]) * c <= 8.f) m[0] = r.m[0];
        if ((m[1] - r.m[1]) * c <= 8.f) m[1] = r.m[1];
        rescale = __any_sync(~0u, m[0] != r.m[0] || m[1] != r.m[1]);
    }
    const float b[2] = { offset(m[0], c), offset(m[1], c) };
    if (FIRST) {
        r.l[0] = r.l[1] = 0.f;
    } else if (rescale) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            r.factor[i] = LAZY && m[i] == r.m[i] ? 1.f : exp2_fast(fmaf(r.m[i], c, -b[i]));
            r.l[i] *= r.factor[i];
        }
    }
    r.m[0] = m[0], r.m[1] = m[1];
#pragma unroll
    for (int e = 0; e < KEYS / 2; e++) {
        const float x = fmaf(s[e], c, -b[e / 2 % 2]);
        s[e] = exp2_fast(x);
    }
#pragma unroll
    for (int e = 0; e < KEYS / 2; e += 4) {
        r.l[0] += s[e] + s[e + 1];
        r.l[1] += s[e + 2] + s[e + 3];
    }
    return rescale;
}

template <int BF16, int KEYS> ATTN_DEVICE void round_p(uint32_t (&p)[KEYS / 4], float (&s)[KEYS / 2]) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) p[i] = pack16<BF16>(s[2 * i], s[2 * i + 1]);
}

template <int V> ATTN_DEVICE void rescale_o(float (&o)[V / 2], const softmax &r) {
#pragma unroll
    for (int e = 0; e < V / 2; e++) o[e] *= r.factor[e / 2 % 2];
}

/* Scores of keys outside low .. high - 1 become -inf. column: this thread's first key. */
template <int KEYS, int KIND>
ATTN_DEVICE void mask_scores(float (&s)[KEYS / 2], int column, const int (&low)[2], const int (&high)[2]) {
#pragma unroll
    for (int e = 0; e < KEYS / 2; e++) {
        const int j = e / 4 * 8 + e % 2, row = e / 2 % 2;
        if (j >= high[row] - column || (KIND >= SM90_GENERAL && j < low[row] - column)) s[e] = -INF;
    }
}

/* One row of a GENERAL kernel: what its scores need besides q . k. */
struct row_options { int64_t bias_at, mask_at; float slope; int here; };

ATTN_DEVICE row_options row_options_at(const flash_fwd_sm90_args &a, uint32_t record, int row) {
    const attn_problem &p = a.problem;
    const int i = min(row >> a.pack_shift, RECORD(q_len) - 1), head = RECORD(head) + (row & ((1 << a.pack_shift) - 1));
    attn_sequence s;
    s.b = RECORD(sequence);
    row_options r;
    r.bias_at = p.bias_dtype ? attn_score_offset(&s, p.bias_stride, head, i, 0) : 0;
    r.mask_at = p.has_mask ? attn_score_offset(&s, p.mask_stride, head, i, 0) : 0;
    r.slope = p.alibi ? attn_slope(&p, &a.tensors, s.b, head) * LOG2E : 0.f;
    r.here = (row >> a.pack_shift) + RECORD(shift);
    return r;
}

/* s = score in powers of 2: scale, softcap, bias, ALiBi, boolean mask. */
template <int KEYS, int KIND>
ATTN_DEVICE void score_options(const flash_fwd_sm90_args &a, float (&s)[KEYS / 2], int column, const int (&low)[2],
                               const int (&high)[2], const row_options (&rows)[2]) {
    const attn_problem &p = a.problem;
    const float turn = 2.f * LOG2E * p.scale / p.softcap, cap = p.softcap * LOG2E;
    if (p.softcap > 0) {            /* cap * tanh(x) = cap - 2 cap / (e^2x + 1) */
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++) s[e] = fmaf(-2.f * cap, __frcp_rn(exp2_fast(s[e] * turn) + 1.f), cap);
    } else {
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++) s[e] *= a.scale_log2;
    }
    if (p.alibi) {
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++)
            s[e] -= rows[e / 2 % 2].slope * fabsf((float)(rows[e / 2 % 2].here - column - e / 4 * 8 - e % 2));
    }
    if (KIND == SM90_BIASED && p.bias_dtype) {
        const int wide = p.bias_dtype == ATTN_F32, bf16 = p.bias_dtype == ATTN_BF16;
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++) {
            const int j = column + e / 4 * 8 + e % 2, i = e / 2 % 2, visible = j >= low[i] && j < high[i];
            const char *from = (const char *)a.tensors.bias + ((rows[i].bias_at + j * p.bias_stride.kv) << (1 + wide));
            const uint32_t half = visible && !wide ? *(const uint16_t *)from : 0;
            const float word = visible && wide ? *(const float *)from : 0.f;
            const float bias = wide ? word : bf16 ? unpack16<1>(half) : unpack16<0>(half);
            s[e] = bias == -INF ? -INF : fmaf(bias, LOG2E, s[e]);
        }
    }
    if (KIND == SM90_BIASED && p.has_mask) {
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++) {
            const int j = column + e / 4 * 8 + e % 2, i = e / 2 % 2, visible = j >= low[i] && j < high[i];
            const uint8_t *from = a.tensors.mask + rows[i].mask_at + j * p.mask_stride.kv;
            if (visible && !*from) s[e] = -INF;
        }
    }
}

/* ---- consumers: the end of a tile ---- */

/* Where row r of a tile goes; used: it is a query, written: it is a row of O. */
struct row_place { int64_t o, lse; int used, written, head; };

ATTN_DEVICE row_place row_place_at(const flash_fwd_sm90_args &a, uint32_t record, int row) {
    const attn_problem &p = a.problem;
    const int i = row >> a.pack_shift, h = row & ((1 << a.pack_shift) - 1);
    row_place at;
    at.used = i < RECORD(q_len);
    at.written = i < RECORD(q_rows);
    at.head = RECORD(head) + h;
    at.o = RECORD64(o) + i * p.o_stride.seq + h * p.o_stride.head;
    at.lse = RECORD64(lse) + i * p.lse_stride.seq + h * p.lse_stride.head;
    return at;
}

/* A row of O, 16 bytes a thread: the quad's threads exchange pairs of columns until each has 8 in a row. */
template <int BF16, int V, int HALF>
ATTN_DEVICE void store_row(const flash_fwd_sm90_args &a, float (&o)[V / 2], const row_place &at, float inverse) {
    const int lane = threadIdx.x & 3;
    uint16_t *to = (uint16_t *)a.tensors.o + at.o + lane * 8;
#pragma unroll
    for (int g = 0; g < V / 32; g++) {
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int e = 16 * g + 4 * i + 2 * HALF;
            x[i] = inverse == 0.f ? 0 : pack16<BF16>(o[e] * inverse, o[e + 1] * inverse);
        }
#pragma unroll
        for (int bit = 1; bit < 4; bit <<= 1)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (!(i & bit)) {
                    const uint32_t y = __shfl_xor_sync(~0u, lane & bit ? x[i] : x[i | bit], bit);
                    if (lane & bit) x[i] = y;
                    else x[i | bit] = y;
                }
        if (at.written && 32 * g + lane * 8 < a.problem.v_dim)
            *(uint4 *)(to + 32 * g) = make_uint4(x[0], x[1], x[2], x[3]);
    }
}

/* 1 / l of both rows, 0 for a row that sees no key; writes the logarithm of l. c: exponent units of r.m. */
ATTN_DEVICE void close_rows(const flash_fwd_sm90_args &a, const softmax &r, uint32_t record, int row, float c,
                            float (&inverse)[2]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float l = quad_sum(r.l[i]), b = offset(r.m[i], c);
        const row_place at = row_place_at(a, record, row + 8 * i);
        const bool empty = l == 0.f || !at.used;
        float below = l;
        if (a.problem.has_sinks && at.written) below += exp2_fast(a.tensors.sinks[at.head] * LOG2E - b);
        if (a.tensors.lse && at.written && threadIdx.x % 4 == 0)
            a.tensors.lse[at.lse] = empty ? -INF : (b + log2_fast(l)) * LN2;
        inverse[i] = empty ? 0.f : __frcp_rn(below);
    }
}

template <int BF16, int V>
ATTN_DEVICE void store_rows(const flash_fwd_sm90_args &a, float (&o)[V / 2], uint32_t record, int row,
                            const float (&inverse)[2]) {
    store_row<BF16, V, 0>(a, o, row_place_at(a, record, row), inverse[0]);
    store_row<BF16, V, 1>(a, o, row_place_at(a, record, row + 8), inverse[1]);
}

/* ---- consumers: the schedule ---- */

#define SM90_TEMPLATE template <int BF16, int QK, int V, int KEYS, int WARPGROUPS, int STAGES, int KIND, int PINGPONG, \
                                int LAZY>
#define SM90_CONFIG BF16, QK, V, KEYS, WARPGROUPS, STAGES, KIND, PINGPONG, LAZY

/* A consumer warpgroup's place in the rings and in its tile. */
struct consumer {
    uint32_t base, record;      /* shared memory; record: of the tile at hand */
    ring k, v, slot;
    uint32_t q_parity, clean_parity;    /* clean_parity: one bit per stage */
    int warpgroup, lead;        /* lead: the thread that releases what the warpgroup has read */
    int row;                    /* this thread's first row; the other is row + 8 */
    int n, blocks, masked, scan;    /* key tiles: at hand, all, with masked scores, with cleaned V */
    float c;
};

/* Wait for the next V; cleaned: it is one that must be cleaned first. */
SM90_TEMPLATE ATTN_DEVICE void wait_v(consumer &x, int cleaned) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    const uint32_t bit = 1u << x.v.index;
    if (!cleaned) mbarrier_wait(x.base + at.v_full + 8 * x.v.index, x.v.parity);
    else {
        mbarrier_wait(x.base + at.v_clean + 8 * x.v.index, (x.clean_parity & bit) != 0);
        x.clean_parity ^= bit;
    }
}

SM90_TEMPLATE ATTN_DEVICE void release_k(consumer &x, int last) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    if (x.lead) {
        mbarrier_arrive(x.base + at.k_empty + 8 * x.k.index);
        if (last) mbarrier_arrive(x.base + at.q_empty + 8 * x.warpgroup);
    }
    ring_next<STAGES>(x.k);
}
SM90_TEMPLATE ATTN_DEVICE void release_v(consumer &x) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    if (x.lead) mbarrier_arrive(x.base + at.v_empty + 8 * x.v.index);
    ring_next<STAGES>(x.v);
}
/* This warp has stored its rows of a tile and needs the record no more. */
SM90_TEMPLATE ATTN_DEVICE void release_record(const consumer &x, uint32_t record) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    const uint32_t slot = (record - x.base - at.tiles) / SM90_TILE_BYTES;
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        mbarrier_arrive(x.base + at.tile_done + 8 * slot);
        mbarrier_arrive(x.base + at.tile_empty + 8 * slot);
    }
}

SM90_TEMPLATE ATTN_DEVICE void start_scores(const consumer &x, float (&s)[KEYS / 2]) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    wgmma_fence();
    scores<BF16, QK, KEYS>(s, wgmma_descriptor(x.base + at.q + x.warpgroup * at.q_bytes, 16),
                           wgmma_descriptor(x.base + at.k + x.k.index * at.k_bytes, 16));
    wgmma_commit();
}
SM90_TEMPLATE ATTN_DEVICE void start_accumulate(const consumer &x, float (&o)[V / 2], uint32_t (&p)[KEYS / 4]) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    registers_pin(o);
    registers_pin(p);
    wgmma_fence();
    accumulate<BF16, V, KEYS>(o, p, wgmma_descriptor(x.base + at.v + x.v.index * at.v_bytes, KEYS * 128));
    wgmma_commit();
}

/* Options and masks of key tile x.n. */
template <int KEYS, int KIND, int MASKED>
ATTN_DEVICE void finish_scores(const flash_fwd_sm90_args &a, const consumer &x, float (&s)[KEYS / 2]) {
    if (KIND < SM90_GENERAL && !MASKED) return;
    const int column = record_block<KIND>(x.record, x.n) * KEYS + 2 * (threadIdx.x & 3);
    int low[2], high[2];
    record_limits<KIND>(a, x.record, x.row, low[0], high[0]);
    record_limits<KIND>(a, x.record, x.row + 8, low[1], high[1]);
    if (KIND >= SM90_GENERAL) {
        const row_options rows[2] = { row_options_at(a, x.record, x.row), row_options_at(a, x.record, x.row + 8) };
        score_options<KEYS, KIND>(a, s, column, low, high, rows);
    }
    if (MASKED) mask_scores<KEYS, KIND>(s, column, low, high);
}

/* QK of key tile n and PV of n - 1 run together; the softmax of n runs under PV. */
template <int BF16, int QK, int V, int KEYS, int WARPGROUPS, int STAGES, int KIND, int PINGPONG, int LAZY,
          int MASKED>
ATTN_DEVICE void step(const flash_fwd_sm90_args &a, consumer &x, float (&o)[V / 2], uint32_t (&p)[KEYS / 4],
                      softmax &r) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    float s[KEYS / 2];
    mbarrier_wait(x.base + at.k_full + 8 * x.k.index, x.k.parity);
    if (PINGPONG) named_barrier_sync(1 + x.warpgroup, 256);
    start_scores<SM90_CONFIG>(x, s);
    wait_v<SM90_CONFIG>(x, x.n - 1 < x.scan);
    start_accumulate<SM90_CONFIG>(x, o, p);
    if (PINGPONG) named_barrier_arrive(1 + (x.warpgroup + 1) % WARPGROUPS, 256);
    wgmma_wait<1>();
    registers_pin(s);
    release_k<SM90_CONFIG>(x, x.n == x.blocks - 1);
    finish_scores<KEYS, KIND, MASKED>(a, x, s);
    const int rescale = softmax_step<KEYS, 0, LAZY>(s, r, x.c);
    wgmma_wait<0>();
    registers_pin(o);
    registers_pin(p);
    release_v<SM90_CONFIG>(x);
    round_p<BF16, KEYS>(p, s);
    if (!LAZY || rescale) rescale_o<V>(o, r);
}

/* Read the next record with keys. @return 0 at the end. */
SM90_TEMPLATE ATTN_DEVICE int next_tile(consumer &x, uint32_t &record) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    for (;;) {
        mbarrier_wait(x.base + at.tile_full + 8 * x.slot.index, x.slot.parity);
        record = x.base + at.tiles + x.slot.index * SM90_TILE_BYTES;
        ring_next<SM90_TILE_SLOTS>(x.slot);
        const int blocks = RECORD(blocks);
        if (blocks) return blocks > 0;
        release_record<SM90_CONFIG>(x, record);
    }
}

/* Take up the tile of `record`: which scores are masked; @return how many key tiles this warpgroup can leave out. */
SM90_TEMPLATE ATTN_DEVICE int enter_tile(const flash_fwd_sm90_args &a, consumer &x, uint32_t record) {
    const int first = RECORD(row) + 64 * x.warpgroup, thread = threadIdx.x & 127;
    x.record = record, x.row = first + thread / 32 * 16 + thread % 32 / 4;
    x.blocks = RECORD(blocks), x.scan = RECORD(scan), x.masked = 1, x.n = 0;
    if (KIND >= SM90_GENERAL) x.masked = RECORD(last) - RECORD(high) + RECORD(low) - RECORD(first);
    if (KIND == SM90_CAUSAL) {
        const int last = RECORD(last), kv_len = RECORD(kv_len), shift = RECORD(shift);
        const int high = min(kv_len, ((first + 63) >> a.pack_shift) + shift + 1);
        x.masked = last - max(0, min(kv_len, (first >> a.pack_shift) + shift + 1)) / KEYS;
        if (!PINGPONG)
            x.n = max(0, min(2, min(x.blocks - 1, last - (max(high, 0) + KEYS - 1) / KEYS)));
    }
    return x.n;
}

SM90_TEMPLATE ATTN_DEVICE void skip_k(consumer &x, int skip) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
#pragma unroll 1
    for (int n = 0; n < skip; n++) {
        mbarrier_wait(x.base + at.k_full + 8 * x.k.index, x.k.parity);
        release_k<SM90_CONFIG>(x, 0);
    }
}
SM90_TEMPLATE ATTN_DEVICE void skip_v(consumer &x, int skip) {
#pragma unroll 1
    for (int n = 0; n < skip; n++) {
        wait_v<SM90_CONFIG>(x, n < x.scan);
        release_v<SM90_CONFIG>(x);
    }
}

/* Wait for Q and the first K that this warpgroup needs of a new tile. */
SM90_TEMPLATE ATTN_DEVICE void wait_first_scores(consumer &x, int skip) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    skip_k<SM90_CONFIG>(x, skip);
    mbarrier_wait(x.base + at.q_full + 8 * x.warpgroup, x.q_parity);
    x.q_parity ^= 1;
    mbarrier_wait(x.base + at.k_full + 8 * x.k.index, x.k.parity);
}

/* Its first probabilities. */
SM90_TEMPLATE ATTN_DEVICE void first_probabilities(const flash_fwd_sm90_args &a, consumer &x, float (&s)[KEYS / 2],
                                                   float (&o)[V / 2], uint32_t (&p)[KEYS / 4], softmax &r, int skip) {
    wgmma_wait<0>();
    registers_pin(s);
    release_k<SM90_CONFIG>(x, x.n == x.blocks - 1);
    skip_v<SM90_CONFIG>(x, skip);
    finish_scores<KEYS, KIND, 1>(a, x, s);
    softmax_step<KEYS, 1, LAZY>(s, r, x.c);
    round_p<BF16, KEYS>(p, s);
#pragma unroll
    for (int e = 0; e < V / 2; e++) o[e] = 0.f;
}

SM90_TEMPLATE ATTN_DEVICE void finish_tile(const flash_fwd_sm90_args &a, const consumer &x, float (&o)[V / 2],
                                           const softmax &r, uint32_t record, int row) {
    float inverse[2];
    close_rows(a, r, record, row, x.c, inverse);
    store_rows<BF16, V>(a, o, record, row, inverse);
    release_record<SM90_CONFIG>(x, record);
}

SM90_TEMPLATE ATTN_DEVICE void consume(const flash_fwd_sm90_args &a, uint32_t base, int warpgroup) {
    const int turn = 1 + warpgroup, next_turn = 1 + (warpgroup + 1) % WARPGROUPS;
    float o[V / 2];
    uint32_t p[KEYS / 4], record;
    softmax r;
    consumer x = {};
    x.base = base, x.warpgroup = warpgroup, x.lead = threadIdx.x % 128 == 0;
    x.c = KIND >= SM90_GENERAL ? 1.f : a.scale_log2;
    if (PINGPONG && warpgroup == 0) named_barrier_arrive(1, 256);       /* the first turn */
    if (!next_tile<SM90_CONFIG>(x, record)) return;
    int skip = enter_tile<SM90_CONFIG>(a, x, record);
    {
        float s[KEYS / 2];
        if (PINGPONG) named_barrier_sync(turn, 256);
        wait_first_scores<SM90_CONFIG>(x, skip);
        start_scores<SM90_CONFIG>(x, s);
        if (PINGPONG) named_barrier_arrive(next_turn, 256);
        first_probabilities<SM90_CONFIG>(a, x, s, o, p, r, skip);
    }
    for (;;) {
        if (KIND != SM90_FULL) {
#pragma unroll 1
            for (; x.n + 1 < x.masked; ) {
                x.n++;
                step<SM90_CONFIG, 1>(a, x, o, p, r);
            }
        }
#pragma unroll 1
        for (; x.n + 1 < x.blocks; ) {
            x.n++;
            step<SM90_CONFIG, 0>(a, x, o, p, r);
        }
        wait_v<SM90_CONFIG>(x, x.n < x.scan);
        if (!next_tile<SM90_CONFIG>(x, record)) break;
        /* The last PV of this tile and the first QK of the next; O is stored under the latter. */
        float s[KEYS / 2];
        if (PINGPONG) named_barrier_sync(turn, 256);
        start_accumulate<SM90_CONFIG>(x, o, p);
        const uint32_t done = x.record;
        const int row = x.row;
        skip = enter_tile<SM90_CONFIG>(a, x, record);
        wait_first_scores<SM90_CONFIG>(x, skip);
        start_scores<SM90_CONFIG>(x, s);
        if (PINGPONG) named_barrier_arrive(next_turn, 256);
        wgmma_wait<1>();
        registers_pin(o);
        release_v<SM90_CONFIG>(x);
        finish_tile<SM90_CONFIG>(a, x, o, r, done, row);
        first_probabilities<SM90_CONFIG>(a, x, s, o, p, r, skip);
    }
    start_accumulate<SM90_CONFIG>(x, o, p);
    wgmma_wait<0>();
    registers_pin(o);
    finish_tile<SM90_CONFIG>(a, x, o, r, x.record, x.row);
}

/* ---- the kernels ---- */

SM90_TEMPLATE ATTN_DEVICE void block(const flash_fwd_sm90_args &a, const CUtensorMap *q_map, const CUtensorMap *k_map,
                                     const CUtensorMap *v_map) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    constexpr int GIVE = WARPGROUPS == 3 ? 32 : 56, TAKE = WARPGROUPS == 3 ? 160 : 224;   /* of 512 and 504 a lane */
    extern __shared__ uint8_t memory[];
    const uint32_t base = (smem_address(memory) + 1023) & ~1023u;
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);      /* tells the compiler that it is uniform */
    if (threadIdx.x == 0) {
        for (int i = 0; i < WARPGROUPS; i++) {
            mbarrier_init(base + at.q_full + 8 * i, 1);
            mbarrier_init(base + at.q_empty + 8 * i, 1);
        }
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(base + at.k_full + 8 * i, 1);
            mbarrier_init(base + at.k_empty + 8 * i, WARPGROUPS);
            mbarrier_init(base + at.v_full + 8 * i, 1);
            mbarrier_init(base + at.v_empty + 8 * i, WARPGROUPS + 2);
            mbarrier_init(base + at.v_clean + 8 * i, 2);
        }
        for (int i = 0; i < SM90_TILE_SLOTS; i++) {
            mbarrier_init(base + at.tile_full + 8 * i, 1);
            mbarrier_init(base + at.tile_empty + 8 * i, 4 * WARPGROUPS + 3);
            mbarrier_init(base + at.tile_done + 8 * i, 4 * WARPGROUPS);
        }
        mbarrier_init(base + at.tile_wanted, 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    if (warpgroup == 0) {
        warpgroup_registers_give<GIVE>();
        const int warp = threadIdx.x / 32;
        if (warp >= 2) clean<QK, V, KEYS, WARPGROUPS, STAGES, KIND, BF16>(a, base, warp - 2);
        else if (threadIdx.x == 0) produce<QK, V, KEYS, WARPGROUPS, STAGES, KIND>(a, q_map, k_map, v_map, base);
        else if (threadIdx.x == 32)
            schedule<QK, V, KEYS, WARPGROUPS, STAGES, KIND>(a, base);
    } else {
        warpgroup_registers_take<TAKE>();
        consume<SM90_CONFIG>(a, base, warpgroup - 1);
    }
}

#define SM90_ENTRY(bf16, symbol, qk, v, kind, keys, warpgroups, stages, pingpong, lazy) \
    extern "C" __global__ void __launch_bounds__(128 * (warpgroups + 1), 1) \
    symbol(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map, \
           const __grid_constant__ CUtensorMap v_map, const __grid_constant__ flash_fwd_sm90_args a) { \
        block<bf16, qk, v, keys, warpgroups, stages, kind, pingpong, lazy>(a, &q_map, &k_map, &v_map); \
    }
#define SM90_BF16(...) SM90_ENTRY(1, SM90_SYMBOL(bf16, __VA_ARGS__), __VA_ARGS__)
#define SM90_F16(...) SM90_ENTRY(0, SM90_SYMBOL(f16, __VA_ARGS__), __VA_ARGS__)
#if defined(SM90_ONLY_BF16)     /* half the compile time while tuning */
#define SM90_ENTRIES(...) SM90_BF16(__VA_ARGS__)
#else
#define SM90_ENTRIES(...) SM90_BF16(__VA_ARGS__) SM90_F16(__VA_ARGS__)
#endif
ATTN_SM90_TILES(SM90_ENTRIES)
