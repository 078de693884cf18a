/* decode_fwd_sm80_feed.h — which keys a block of decode_fwd_sm80.cu reads, and how a warp asks for them
 * ahead of its sums. Also how it starts before the kernels before it have ended: with what schedule, lengths
 * and block table say by then, looked at once more in time. docs/decode-and-mla.md explains both. */
#ifndef ATTN_DECODE_FWD_SM80_FEED_H
#define ATTN_DECODE_FWD_SM80_FEED_H
#include "decode_fwd_sm80.h"
#include "flash_rows_sm80.h"
#include "ptx_decode.h"

static constexpr int KEYS = DECODE_FWD_SM80_KEYS;       /* of a warp's step */
static constexpr int ITEMS = 3;         /* known at once: the one before, this one, the next */
static constexpr int FOREIGN = -2;      /* last_item of a schedule made for another shape */

/* ---- an item, in shared memory ---- */

typedef struct decode_item {
    block_rows rows;            /* block_row: the first packed row */
    attn_decode_slots slots;
    const uint16_t *k, *v;      /* of key 0, or of page 0 */
    int valid_rows;             /* packed rows of the tile that exist */
    int high;                   /* no row of the tile sees keys from here on */
    int full_low, full_high;    /* keys that all its rows see */
    int first_key;              /* of the item's block 0 */
    /* what this worker does of it, in blocks */
    int block, last, part, length;
    int first_step, end_step;   /* those of block .. last - 1 that a row sees */
} decode_item;

/* Packed row -> query and head. Lane's rows: 16 r + 8 half + lane / 4. */
PTX_INLINE int query_of(const decode_fwd_args &a, int packed) { return packed / a.group; }
PTX_INLINE int64_t head_of(const decode_fwd_args &a, const block_rows &rows, int packed) {
    return rows.kv_head * a.group + packed % a.group;
}

/* ---- what memory says, read past L1 so that a second look sees changes ---- */

/* This block's stretch; whatever memory holds, it is within the shape. last_item FOREIGN: of another one. */
PTX_INLINE attn_decode_work read_work(const decode_fwd_args &a) {
    const int4 *at = (const int4 *)(attn_decode_works(a.schedule) + blockIdx.x);
    const int4 x = load_l2_16(at), y = load_l2_16(at + 1);
    const int items = a.shape.batch * a.shape.tiles, is_foreign = y.y != (int)a.hash;
    attn_decode_work work = { min(max(x.x, 0), items - 1), is_foreign ? FOREIGN : min(x.y, items - 1),
                              min(max(x.z, 0), a.shape.max_blocks), x.w, y.x, { 0, 0, 0 } };
    return work;
}
PTX_INLINE bool same_work(const attn_decode_work &a, const attn_decode_work &b) {
    return a.first_item == b.first_item && a.last_item == b.last_item && a.first_block == b.first_block &&
           a.last_block == b.last_block && a.first_part == b.first_part;
}
PTX_INLINE int read_length(const decode_fwd_args &a, int b) {
    const int rows = a.p.page_size && !a.p.pages ? 0 : (int)a.p.kv_len;
    return a.p.has_seqused_kv ? min(max(load_l2_4(a.t.seqused_kv + b), 0), rows) : rows;
}
/* attn_sequence_at where only kv_len differs. */
PTX_INLINE attn_sequence plain_sequence(const decode_fwd_args &a, int b) {
    attn_sequence s;
    s.b = s.q_batch = s.kv_batch = b;
    s.q_first = s.kv_first = 0;
    s.q_len = s.q_rows = a.p.q_len;
    s.kv_len = read_length(a, b);
    s.shift = a.p.top_left ? 0 : s.kv_len - s.q_len;
    s.pages = a.p.page_size ? a.t.block_table + b * a.p.block_table_stride : NULL;
    return s;
}

/* What a block knows about item `index`; by one thread. */
PTX_INLINE void open_item(decode_item &item, const decode_fwd_args &a, const attn_decode_work &work,
                          int index, int tile_rows) {
    block_rows &rows = item.rows;
    attn_decode_slots slots;                /* asked for first: memory answers while the rest is computed */
    if (a.schedule) slots = attn_decode_slots_early(&a.shape, a.schedule, index);
    else slots = attn_decode_even_slots(&a.shape, &a.even, index);
    const int shift = a.block_shift, b = index / a.shape.tiles, tile = index - b * a.shape.tiles;
    const int m = a.m_tiles == 1 ? 0 : tile % a.m_tiles;
    rows.s = a.guesses ? plain_sequence(a, b) : attn_sequence_at(&a.p, &a.t, b);
    rows.kv_head = a.m_tiles == 1 ? tile : tile / a.m_tiles;
    rows.block_row = m * tile_rows;
    rows.q_len = (int)rows.s.q_len, rows.kv_len = (int)rows.s.kv_len, rows.q_rows = (int)rows.s.q_rows;
    const int64_t right = a.p.causal ? 0 : a.p.window_right;
    rows.high_offset = right < 0 ? 1 << 30 : clamp_offset(rows.s.shift + right + 1);
    rows.low_offset = a.p.window_left < 0 ? -(1 << 30) : clamp_offset(rows.s.shift - a.p.window_left);
    item.valid_rows = min(max(rows.q_rows * a.group - rows.block_row, 0), tile_rows);
    /* attn_decode_span in 32 bits */
    const int span_low = rows.q_len > 0 ? min(row_low(rows, 0), rows.kv_len) : 0;
    const int span_high = rows.q_len > 0 ? max(row_high(rows, rows.q_len - 1), span_low) : 0;
    const int low_block = span_low >> shift;
    int blocks = span_high > span_low ? (span_high - 1 >> shift) - low_block + 1 : 1;
    if (!a.schedule) blocks = a.even.blocks;
    const int first = m ? rows.block_row / a.group : 0,
              last = min((rows.block_row + tile_rows - 1) / a.group, rows.q_len - 1);
    const int low = row_low(rows, first);
    item.high = first <= last ? max(row_high(rows, last), 0) : 0;
    item.full_low = row_low(rows, last), item.full_high = row_high(rows, first);
    item.first_key = low_block << shift;
    item.block = index == work.first_item ? work.first_block : 0;
    item.part = index == work.first_item ? work.first_part : 0;
    item.last = index == work.last_item ? work.last_block : blocks;
    item.length = attn_decode_split_blocks(&a.shape, blocks);
    item.first_step = max(item.block, (low >> shift) - low_block);
    item.end_step = item.high > low ? min(item.last, (item.high - 1 >> shift) + 1 - low_block)
                                    : item.first_step;
    const attn_stride ks = a.p.k_stride, vs = a.p.v_stride;
    item.k = (const uint16_t *)a.t.k + rows.kv_head * ks.head;
    item.v = (const uint16_t *)a.t.v + rows.kv_head * vs.head;
    if (!rows.s.pages) {
        item.k += rows.s.kv_batch * ks.batch + rows.s.kv_first * ks.seq;
        item.v += rows.s.kv_batch * vs.batch + rows.s.kv_first * vs.seq;
    }
    item.slots = slots;
}

/* The block's stretch, and its first two items; by one warp: what is being written may look different to
 * another one. */
PTX_INLINE void open_stretch(attn_decode_work &stretch, decode_item *items, const decode_fwd_args &a,
                             int tile_rows) {
    attn_decode_work work;
    if (a.schedule) work = read_work(a);
    else work = attn_decode_work_of(&a.shape, &a.even, (int)blockIdx.x);
    const int lane = (int)threadIdx.x % 32, index = work.first_item + lane;
    if (index <= min(work.last_item, work.first_item + 1))
        open_item(items[index % ITEMS], a, work, index, tile_rows);
    if (lane == 0) stretch = work;
}

/* ---- shared memory tiles: rows of DIM elements, 16-byte chunks permuted so that 8 rows of a column
 * of chunks lie in different banks ---- */

template <int DIM> PTX_INLINE uint32_t tile_offset(int row, int chunk) {
    return (uint32_t)(row * DIM * 2 + ((chunk ^ (row & 7)) << 4));
}
/* Columns 16 * pair .. + 15 for a lane whose row and half `lane_smem` = tile_offset(row, half) names. */
PTX_INLINE uint32_t fragment(uint32_t lane_smem, int pair) {
    return (lane_smem ^ (uint32_t)(pair % 4 << 5)) + (uint32_t)(pair / 4 * 128);
}

/* ---- a warp's feed of K and V ---- */

/* What a warp asks for next: it runs ahead of the sums, over the end of an item into the next one. */
typedef struct feed {
    uint32_t ring_smem;         /* the warp's first stage */
    int index, step, end;       /* item of the stretch, its next step, the end of its steps */
    int page, next_page;        /* of the next step and the one behind it, looked up early */
    int slot, asked;            /* stage that the next step goes to; steps asked for in all */
    uint64_t policy;            /* of L2 */
} feed;

/* Element offset between page 0's first row and key j's, of K or of V. */
PTX_INLINE int64_t key_offset(const decode_fwd_args &a, const decode_item &item, attn_stride stride, int j) {
    const uint32_t page_size = (uint32_t)a.p.page_size, index = (uint32_t)j / page_size;
    const int page = item.rows.s.pages[index];
    return (page >= 0 && page < a.p.pages ? page : 0) * stride.batch + (j - index * page_size) * stride.seq;
}
/* Which page of the sequence key j is in; sizes that are powers of two have a shift. */
PTX_INLINE uint32_t page_index(const decode_fwd_args &a, int j) {
    return a.page_shift >= 0 ? (uint32_t)j >> a.page_shift : (uint32_t)j / (uint32_t)a.p.page_size;
}
template <int EARLY> PTX_INLINE int page_of_step(const decode_fwd_args &a, const decode_item &item, int key) {
    if (!item.rows.s.pages || a.by_row || key >= item.high) return 0;
    const int32_t *at = item.rows.s.pages + page_index(a, key);
    const int page = EARLY ? load_l2_4(at) : *at;
    return page >= 0 && page < a.p.pages ? page : 0;
}

/* KEYS rows from `key` on into a tile; rows from item.high and columns from `dim` on become zeros. */
template <int DIM>
PTX_INLINE void load_tile(const decode_fwd_args &a, const decode_item &item, const feed &f,
                          uint32_t tile_smem, const uint16_t *from, attn_stride stride, int key, int dim) {
    const int chunks = DIM / 8, lane = recompute((int)threadIdx.x) % 32, valid = item.high - key;
    if (a.by_row) {
#pragma unroll 1
        for (int n = 0; n < KEYS * chunks / 32; n++) {
            const int i = n * 32 + lane, row = i / chunks, chunk = i % chunks,
                      reads = row < valid && chunk * 8 < dim;
            copy_async_16(tile_smem + tile_offset<DIM>(row, chunk),
                          from + (reads ? key_offset(a, item, stride, key + row) + chunk * 8 : 0),
                          reads ? 16 : 0);
        }
        return;
    }
    from += item.rows.s.pages
                ? f.page * stride.batch + (key - (int)page_index(a, key) * (int)a.p.page_size) * stride.seq
                : key * stride.seq;
    if (32 % chunks == 0 && __builtin_expect(valid >= KEYS, 1)) {   /* a lane keeps its column of chunks */
        const int chunk = lane % chunks, first = lane / chunks, step = 32 / chunks,
                  bytes = chunk * 8 < dim ? 16 : 0;
        const uint16_t *source = from + first * stride.seq + chunk * 8;
#pragma unroll
        for (int n = 0; n < KEYS / step; n++, source += step * stride.seq)
            copy_async_16_policy(tile_smem + tile_offset<DIM>(first + n * step, chunk), source, bytes,
                                 f.policy);
    } else {
#pragma unroll 2
        for (int n = 0; n < KEYS * chunks / 32; n++) {
            const int i = n * 32 + lane, row = i / chunks, chunk = i % chunks;
            copy_async_16_policy(tile_smem + tile_offset<DIM>(row, chunk),
                                 from + row * stride.seq + chunk * 8,
                                 row < valid && chunk * 8 < dim ? 16 : 0, f.policy);
        }
    }
}

/* The pages of an item's first two steps. */
PTX_INLINE int2 first_pages(const decode_fwd_args &a, const decode_item &item, int warp_key) {
    const int key = item.first_key + (item.first_step << a.block_shift) + warp_key;
    return make_int2(page_of_step<1>(a, item, key), page_of_step<1>(a, item, key + (1 << a.block_shift)));
}
/* Go on to the next item. */
PTX_INLINE void enter_item(feed &f, const decode_fwd_args &a, const decode_item *items, int warp_key) {
    const decode_item &next = items[++f.index % ITEMS];
    const int2 pages = first_pages(a, next, warp_key);
    f.step = next.first_step, f.end = next.end_step;
    f.page = pages.x, f.next_page = pages.y;
}

/* Ask for the next step of the stretch, if there is one and its item is known (up to item `known`). */
template <int DK, int DV>
PTX_INLINE bool request(feed &f, const decode_fwd_args &a, const decode_item *items, int known,
                        int warp_key) {
    while (f.step >= f.end) {
        if (f.index >= known) return false;
        enter_item(f, a, items, warp_key);
    }
    const decode_item &item = items[f.index % ITEMS];
    const int key = item.first_key + (f.step << a.block_shift) + warp_key;
    const uint32_t to_smem = f.ring_smem + (uint32_t)f.slot * (KEYS * (DK + DV) * 2);
    load_tile<DK>(a, item, f, to_smem, item.k, a.p.k_stride, key, (int)a.p.qk_dim);
    load_tile<DV>(a, item, f, to_smem + KEYS * DK * 2, item.v, a.p.v_stride, key, (int)a.p.v_dim);
    f.page = f.next_page;
    f.next_page = page_of_step<0>(a, item, key + (2 << a.block_shift));
    copy_commit();
    f.step++, f.asked++;
    f.slot = f.slot + 1 == a.stages ? 0 : f.slot + 1;
    return true;
}

/* ---- a block starts before the kernels before it have ended, with what memory says by then ---- */

/* A warp's first two steps to L2, a lane has a row of K or of V. Where parts are merged it would be in the
 * way of the merge before. */
PTX_INLINE void bring_first_steps(const feed &f, const decode_fwd_args &a, const decode_item &item,
                                  int warp_key) {
    const int lane = (int)threadIdx.x % 32, is_v = lane / KEYS;
    const attn_stride stride = is_v ? a.p.v_stride : a.p.k_stride;
    const int bytes = 2 * (int)(is_v ? a.p.v_dim : a.p.qk_dim);
    if (item.slots.parts > 1 || a.by_row) return;
#pragma unroll 1
    for (int n = 0; n < 2; n++) {
        const int first = item.first_key + (f.step + n << a.block_shift) + warp_key,
                  key = first + lane % KEYS;
        if (f.step + n >= f.end || key >= item.high) return;
        const int64_t at = item.rows.s.pages
            ? (n ? f.next_page : f.page) * stride.batch +
                  (key - (int)page_index(a, first) * (int)a.p.page_size) * stride.seq
            : key * stride.seq;
        const char *row = (const char *)((is_v ? item.v : item.k) + at);
#pragma unroll 1
        for (int b = 0; b < bytes; b += 128) bring_to_l2(row + b);
    }
}

/* What memory says when those kernels have ended: thread 0 looks at the stretch, one thread an item at the
 * items, each warp at its pages. */
struct second_look {
    attn_decode_work work;
    attn_decode_slots slots;
    int length;
    int2 pages;
};
PTX_INLINE second_look look_again(const decode_fwd_args &a, const attn_decode_work &work,
                                  const decode_item *items, int known, int warp_key) {
    const int index = work.first_item + (int)threadIdx.x;
    second_look now = { work, { 0, 0, 0, 0 }, 0, { 0, 0 } };
    if (threadIdx.x == 0) now.work = read_work(a);
    if (index <= known) {
        now.slots = attn_decode_slots_early(&a.shape, a.schedule, index);
        now.length = read_length(a, index / a.shape.tiles);
    }
    if (work.first_item <= known) now.pages = first_pages(a, items[work.first_item % ITEMS], warp_key);
    return now;
}
PTX_INLINE bool has_changed(const second_look &now, const attn_decode_work &work, const decode_item *items,
                            int known, int2 pages) {
    const int index = work.first_item + (int)threadIdx.x;
    if (!same_work(now.work, work)) return true;
    if (work.first_item <= known && (now.pages.x != pages.x || now.pages.y != pages.y)) return true;
    if (index > known) return false;
    const decode_item &item = items[index % ITEMS];
    return now.length != item.rows.kv_len || now.slots.base != item.slots.base ||
           now.slots.parts != item.slots.parts;
}

/* Wait until at most `pending` of this thread's newest groups are under way. */
PTX_INLINE void wait_for_step(int pending) {
    switch (pending) {
    case 0: copy_wait<0>(); break;
    case 1: copy_wait<1>(); break;
    case 2: copy_wait<2>(); break;
    case 3: copy_wait<3>(); break;
    case 4: copy_wait<4>(); break;
    default: copy_wait<5>(); break;
    }
}
#endif
