/* mla_decode_sm80.cu — multi-head latent attention decode on mma.sync, from sm_80 on: K rows of 576, V their
 * first 512 columns. The idea: a ring of 32-key tiles, each read once by cp.async; eight warps divide scores
 * by rows, keys and depth, meet in shared memory, then divide O by columns: each reads an eighth of V. */
#include "mla_decode_sm80.h"
#include "ptx_decode.h"
#include "ptx_sm80.h"
#include <math.h>

static constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;
/* A row's maximum is raised only when it has grown by more than 2^8, as in flash_fwd_sm80.cu. */
static constexpr float max_growth = 8;
static constexpr int KEYS = MLA80_KEYS, THREADS = MLA80_THREADS, WARPS = THREADS / 32;
static constexpr int ITEMS = 3;         /* known at once: the one before, this one, the next */

/* How the work on a tile is divided; TILES: of 16 rows.
 *   scores   (OF_WARP row tiles) x 16 keys x (every DEPTH_PARTS-th step of 16 columns) a warp
 *   softmax  ROW_KEYS keys of one row a thread
 *   O        all rows x 64 columns a warp */
template <int TILES> struct share {
    static constexpr int ROWS = TILES * 16;
    static constexpr int OF_WARP = TILES == 4 ? 2 : 1, ROW_PARTS = TILES / OF_WARP;
    static constexpr int DEPTH_PARTS = WARPS / (2 * ROW_PARTS), STEPS = MLA80_QK / 16 / DEPTH_PARTS;
    static constexpr int HELD = TILES == 4 ? 4 : STEPS;     /* steps whose Q stays in registers */
    static constexpr int AHEAD = TILES == 4 ? 2 : 3;        /* steps whose fragments are asked for together */
    static constexpr int ROW_THREADS = THREADS / ROWS, ROW_KEYS = KEYS / ROW_THREADS;
    static_assert(STEPS % AHEAD == 0 && HELD % AHEAD == 0 && 4 % DEPTH_PARTS == 0, "steps");
};

/* ---- shared memory: Q, the ring of K tiles, S, state ---- */

typedef struct mla_item {
    const uint16_t *k;          /* of key 0, or of page 0 */
    const int32_t *pages;
    attn_decode_slots slots;
    int kv_head, q_len, q_rows, kv_len, shift, q_batch, q_first;
    int high;                   /* no row of this tile sees keys from here on */
    int seen_by_all;            /* keys from here on are not seen by every row of this tile */
    /* what this worker does of it, in blocks */
    int block, last, part, length;
    int end_step;               /* one past the last that a row sees */
} mla_item;

typedef struct mla_state {
    mla_item items[ITEMS];
    float factor[64];           /* what O is due before this tile's P V */
    int unclean;                /* was anything cleaned out of V? */
} mla_state;
static_assert(sizeof(mla_state) <= MLA80_STATE_BYTES, "state");

/* What the threads that hold O need to know of a row at the end of a part; in the place of S. */
typedef struct row_end {
    int64_t o_at;               /* where the row goes, in elements; -1: nowhere */
    float inverse;
    int high;                   /* first key that it doesn't see */
} row_end;

/* Rows of 576 elements; 16-byte chunks permuted so that those of 8 rows lie in different banks. */
PTX_INLINE uint32_t tile_offset(int row, int chunk) {
    return (uint32_t)(row * MLA80_ROW_BYTES + ((chunk ^ (row & 7)) << 4));
}
/* Columns 16 * pair .. + 15 for a lane whose row and half `lane_smem` = tile_offset(row, half) names. */
PTX_INLINE uint32_t fragment(uint32_t lane_smem, int pair) {
    return (lane_smem ^ (uint32_t)(pair % 4 << 5)) + (uint32_t)(pair / 4 * 128);
}

/* ---- items ---- */

/* First key that query i doesn't see. */
PTX_INLINE int keys_seen(const mla_decode_sm80_args &a, const mla_item &item, int i) {
    return a.p.causal ? max(0, min(item.kv_len, i + item.shift + 1)) : item.kv_len;
}

/* What a block knows about item `index`, by one thread. tile: which of the item's rows are its own. */
PTX_INLINE void open_item(mla_item &item, const mla_decode_sm80_args &a, const attn_decode_work &work,
                          int index, int tile, int tile_rows) {
    attn_decode_slots slots;                /* asked for first: memory answers while the rest is computed */
    if (a.schedule) slots = attn_decode_slots_of(&a.shape, a.schedule, index);
    else slots = attn_decode_even_slots(&a.shape, &a.even, index);
    const int b = index / a.shape.tiles;
    const attn_sequence s = attn_sequence_at(&a.p, &a.t, b);
    const attn_range span = attn_decode_span(&a.p, &s);
    item.kv_head = index - b * a.shape.tiles;
    item.q_len = (int)s.q_len, item.q_rows = (int)s.q_rows;
    item.kv_len = (int)s.kv_len, item.shift = (int)s.shift;
    item.q_batch = (int)s.q_batch, item.q_first = (int)s.q_first;
    item.pages = s.pages;
    item.k = (const uint16_t *)a.t.k + item.kv_head * a.p.k_stride.head;
    if (!s.pages) item.k += s.kv_batch * a.p.k_stride.batch + s.kv_first * a.p.k_stride.seq;
    const int first = tile * tile_rows / a.group;
    const int last = min((tile * tile_rows + tile_rows - 1) / a.group, item.q_len - 1);
    item.high = first <= last ? keys_seen(a, item, last) : 0;
    item.seen_by_all = keys_seen(a, item, first);
    const int blocks = attn_decode_blocks(span, KEYS);
    item.block = index == work.first_item ? work.first_block : 0;
    item.part = index == work.first_item ? work.first_part : 0;
    item.last = index == work.last_item ? work.last_block : blocks;
    item.length = attn_decode_split_blocks(&a.shape, blocks);
    item.end_step = min(item.last, (item.high + KEYS - 1) / KEYS);
    item.slots = slots;
}

/* ---- the ring: all threads copy; a thread always has the same row of a tile, and 9 chunks of it ---- */

/* What is asked for next: it runs ahead of the sums, over the end of an item into the next one. */
typedef struct feed {
    int index, step, end;       /* item of the stretch, its next step, the end of its steps */
    int page;                   /* of this thread's key in the next step, looked up one step early */
    int slot, asked;            /* stage that the next step goes to; steps asked for in all */
    uint32_t to_smem;           /* this thread's first chunk in stage 0 */
    uint64_t policy;            /* of L2 */
} feed;

PTX_INLINE uint32_t page_index(const mla_decode_sm80_args &a, int key) {
    return a.page_shift >= 0 ? (uint32_t)key >> a.page_shift : (uint32_t)key / (uint32_t)a.p.page_size;
}
/* No table entry behind the last page is read. */
PTX_INLINE int page_of(const mla_decode_sm80_args &a, const mla_item &item, int key) {
    if (!item.pages || key >= item.high) return 0;
    const int page = item.pages[page_index(a, key)];
    return page >= 0 && page < a.p.pages ? page : 0;
}
/* Elements from item.k to a key's row. */
PTX_INLINE int64_t key_offset(const mla_decode_sm80_args &a, const mla_item &item, int key, int page) {
    if (!item.pages) return key * a.p.k_stride.seq;
    const int in_page = key - (int)page_index(a, key) * (int)a.p.page_size;
    return page * a.p.k_stride.batch + in_page * a.p.k_stride.seq;
}

/* Ask for the next step of the stretch, if there is one and its item is known (up to item `known`). */
PTX_INLINE bool request(feed &f, const mla_decode_sm80_args &a, const mla_item *items, int known) {
    const int row = recompute((int)threadIdx.x) / 8, chunk = recompute((int)threadIdx.x) % 8;
    while (f.step >= f.end) {
        if (f.index >= known) return false;
        const mla_item &next = items[++f.index % ITEMS];
        f.step = next.block, f.end = next.end_step;
        f.page = page_of(a, next, f.step * KEYS + row);
    }
    const mla_item &item = items[f.index % ITEMS];
    const int key = f.step * KEYS + row, bytes = key < item.high ? 16 : 0;
    const uint16_t *from = item.k + (bytes ? key_offset(a, item, key, f.page) : 0) + chunk * 8;
    const uint32_t to_smem = f.to_smem + (uint32_t)(f.slot * MLA80_TILE_BYTES);
#pragma unroll
    for (int n = 0; n < MLA80_ROW_BYTES / 128; n++)
        copy_async_16_policy(to_smem + n * 128, from + n * 64, (uint32_t)bytes, f.policy);
    copy_commit();
    f.page = page_of(a, item, key + KEYS);
    f.step++, f.asked++;
    f.slot = f.slot + 1 == a.stages ? 0 : f.slot + 1;
    return true;
}

/* Wait until at most `pending` of this thread's newest groups are under way. */
PTX_INLINE void wait_for_step(int pending) {
    switch (pending) {
    case 0: copy_wait<0>(); break;
    case 1: copy_wait<1>(); break;
    case 2: copy_wait<2>(); break;
    case 3: copy_wait<3>(); break;
    default: copy_wait<4>(); break;
    }
}

/* ---- Q ---- */

/* Rows of the tile; zeros where there is none. */
template <int TILES>
PTX_INLINE void load_q(const mla_decode_sm80_args &a, const mla_item &item, unsigned char *q, int tile) {
    const int chunk = (int)threadIdx.x % 8;
#pragma unroll 1
    for (int row = (int)threadIdx.x / 8; row < share<TILES>::ROWS; row += THREADS / 8) {
        const int packed = tile * share<TILES>::ROWS + row, i = packed / a.group;
        const int64_t h = (int64_t)item.kv_head * a.group + packed % a.group;
        const int64_t seq = item.q_first + (int64_t)i;
        const int64_t at = item.q_batch * a.p.q_stride.batch + seq * a.p.q_stride.seq + h * a.p.q_stride.head;
        uint4 x[MLA80_ROW_BYTES / 128];
#pragma unroll
        for (int n = 0; n < MLA80_ROW_BYTES / 128; n++)
            x[n] = i < item.q_len ? *(const uint4 *)((const uint16_t *)a.t.q + at + chunk * 8 + n * 64)
                                  : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int n = 0; n < MLA80_ROW_BYTES / 128; n++)
            *(uint4 *)(q + tile_offset(row, chunk) + n * 128) = x[n];
    }
}

/* ---- scores ---- */

/* A warp's place in the scores: what it adds to the addresses of Q and of a K tile, and where its sums go. */
typedef struct score_place { uint32_t q_smem, k_offset; int s_at; } score_place;

template <int TILES> PTX_INLINE score_place place_in_scores(uint32_t q_smem) {
    typedef share<TILES> W;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int rows = warp % W::ROW_PARTS * W::OF_WARP * 16, keys = warp / W::ROW_PARTS % 2 * 16;
    const int depth = warp / W::ROW_PARTS / 2;
    score_place x;
    x.q_smem = q_smem + (tile_offset(rows + lane % 16, lane / 16) ^ (uint32_t)(depth << 5));
    x.k_offset = tile_offset(keys + lane % 8 + lane / 16 * 8, lane / 8 % 2) ^ (uint32_t)(depth << 5);
    x.s_at = (depth * W::ROWS + rows + lane / 4) * MLA80_S_STRIDE + (keys + lane % 4 * 2) * 4;
    return x;
}

template <int TILES> struct held_q { uint32_t q[share<TILES>::OF_WARP][share<TILES>::HELD][4]; };

template <int TILES> PTX_INLINE void hold_q(held_q<TILES> &held, const score_place &place) {
    typedef share<TILES> W;
#pragma unroll
    for (int r = 0; r < W::OF_WARP; r++)
#pragma unroll
        for (int e = 0; e < W::HELD; e++)
            load_matrix_x4(held.q[r][e],
                           fragment(place.q_smem, e * W::DEPTH_PARTS) + (uint32_t)(r * 16 * MLA80_ROW_BYTES));
}

/* This warp's share of S = Q K^T, to shared memory: [depth part][row][key]. */
template <int DTYPE, int TILES>
PTX_INLINE void scores(const held_q<TILES> &held, const score_place &place, uint32_t k_smem,
                       unsigned char *s) {
    typedef share<TILES> W;
    const uint32_t k_lane_smem = k_smem + place.k_offset;
    float sum[W::OF_WARP][2][4];
#pragma unroll
    for (int r = 0; r < W::OF_WARP; r++)
#pragma unroll
        for (int n = 0; n < 2; n++) sum[r][n][0] = sum[r][n][1] = sum[r][n][2] = sum[r][n][3] = 0;
#pragma unroll
    for (int first = 0; first < W::STEPS; first += W::AHEAD) {
        uint32_t k[W::AHEAD][4], q[W::AHEAD][W::OF_WARP][4];
#pragma unroll
        for (int e = 0; e < W::AHEAD; e++) {
            load_matrix_x4(k[e], fragment(k_lane_smem, (first + e) * W::DEPTH_PARTS));
#pragma unroll
            for (int r = 0; r < W::OF_WARP; r++)
                if (first >= W::HELD)
                    load_matrix_x4(q[e][r], fragment(place.q_smem, (first + e) * W::DEPTH_PARTS) +
                                                (uint32_t)(r * 16 * MLA80_ROW_BYTES));
        }
#pragma unroll
        for (int e = 0; e < W::AHEAD; e++)
#pragma unroll
            for (int r = 0; r < W::OF_WARP; r++) {
                const uint32_t *rows = first < W::HELD ? held.q[r][first < W::HELD ? first + e : 0] : q[e][r];
                mma_16x8x16<DTYPE>(sum[r][0], rows, k[e][0], k[e][1]);
                mma_16x8x16<DTYPE>(sum[r][1], rows, k[e][2], k[e][3]);
            }
    }
#pragma unroll
    for (int r = 0; r < W::OF_WARP; r++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *(float2 *)(s + place.s_at + (16 * r + 8 * half) * MLA80_S_STRIDE + n * 32) =
                    make_float2(sum[r][n][2 * half], sum[r][n][2 * half + 1]);
}

/* ---- softmax: a thread has ROW_KEYS keys of one row, neighbours the others ---- */

/* m: the row's maximum so far, b: c times it, l: this thread's part of the sum. */
typedef struct row_state { float m, b, l; int high; } row_state;

/* NaN wins. */
PTX_INLINE float max_or_nan(float x, float y) { return x > y || x != x ? x : y; }
template <int N> PTX_INLINE float neighbours_max(float x) {
#pragma unroll
    for (int step = 1; step < N; step *= 2) x = max_or_nan(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
template <int N> PTX_INLINE float neighbours_sum(float x) {
#pragma unroll
    for (int step = 1; step < N; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

template <int TILES> PTX_INLINE void load_scores(float (&x)[share<TILES>::ROW_KEYS], const unsigned char *s) {
    typedef share<TILES> W;
#pragma unroll
    for (int d = 0; d < W::DEPTH_PARTS; d++)
#pragma unroll
        for (int n = 0; n < W::ROW_KEYS; n += 2) {
            const float2 y = *(const float2 *)(s + d * W::ROWS * MLA80_S_STRIDE + n * 4);
            x[n] = d ? x[n] + y.x : y.x, x[n + 1] = d ? x[n + 1] + y.y : y.y;
        }
}
/* P takes the place of S: eight keys of 16 bits where eight of 32 were. */
template <int DTYPE, int N> PTX_INLINE void store_p(unsigned char *to, const float (&p)[N]) {
    uint32_t x[N / 2];
#pragma unroll
    for (int n = 0; n < N / 2; n++) x[n] = pack_halves<DTYPE>(p[2 * n], p[2 * n + 1]);
    if (N == 8) *(uint4 *)to = make_uint4(x[0], x[1 % (N / 2)], x[2 % (N / 2)], x[3 % (N / 2)]);
    else if (N == 4) *(uint2 *)to = make_uint2(x[0], x[1 % (N / 2)]);
    else *(uint32_t *)to = x[0];
}

/* S of the tile that begins with `key` becomes P. @return 1 if O is due a factor other than 1 in this row. */
template <int DTYPE, int TILES>
PTX_INLINE int soften(row_state &x, unsigned char *s, float *factors, float c, int key, bool masked) {
    typedef share<TILES> W;
    const int thread = recompute((int)threadIdx.x), row = thread / W::ROW_THREADS;
    const int first = thread % W::ROW_THREADS * W::ROW_KEYS;
    unsigned char *here = s + row * MLA80_S_STRIDE;
    float y[W::ROW_KEYS];
    load_scores<TILES>(y, here + first * 4);
    if (masked)
#pragma unroll
        for (int n = 0; n < W::ROW_KEYS; n++)
            if (key + first + n >= x.high) y[n] = -INFINITY;
    float m = x.m;
#pragma unroll
    for (int n = 0; n < W::ROW_KEYS; n++) m = max_or_nan(m, y[n]);
    m = neighbours_max<W::ROW_THREADS>(m);
    if ((m - x.m) * c <= max_growth) m = x.m;
    float factor = 1;
    if (m != x.m) {
        /* 0 for a row without keys yet, NaN for a row with a score of +inf or NaN */
        const float b = m == -INFINITY ? 0 : m == INFINITY ? __int_as_float(0x7fffffff) : m * c;
        factor = exp2_approx(fmaf(x.m, c, -b));
        x.m = m, x.b = b, x.l *= factor;
    }
#pragma unroll
    for (int n = 0; n < W::ROW_KEYS; n++) {
        y[n] = exp2_approx(fmaf(y[n], c, -x.b));
        x.l += y[n];
    }
    if (first == 0) factors[row] = factor;
    warp_barrier();             /* the row's other threads have read their scores */
    store_p<DTYPE>(here + first / 8 * 32 + first % 8 * 2, y);
    return factor != 1;
}

/* Both 16-bit values of x, infinities and NaNs replaced by 0. */
template <int DTYPE> PTX_INLINE uint32_t finite_pair(uint32_t x) {
    const uint32_t exponent = DTYPE == PTX_BF16 ? 0x7f80u : 0x7c00u;
    if ((x & exponent) == exponent) x &= 0xffff0000u;
    if ((x >> 16 & exponent) == exponent) x &= 0xffffu;
    return x;
}

/* V of keys that not every row sees: P = 0 times NaN would be NaN. What isn't finite becomes 0, and is added
 * in the end to the rows that see it. The tile has been read as K. */
template <int DTYPE> PTX_INLINE void clean_values(mla_state &state, unsigned char *tile, int first) {
    int unclean = 0;
#pragma unroll 1
    for (int n = max(first, 0) * (MLA80_V / 8) + (int)threadIdx.x; n < KEYS * (MLA80_V / 8); n += THREADS) {
        uint4 *at = (uint4 *)(tile + n / (MLA80_V / 8) * MLA80_ROW_BYTES + n % (MLA80_V / 8) * 16);
        const uint4 x = *at;
        const uint4 y = make_uint4(finite_pair<DTYPE>(x.x), finite_pair<DTYPE>(x.y), finite_pair<DTYPE>(x.z),
                                   finite_pair<DTYPE>(x.w));
        if (x.x == y.x && x.y == y.y && x.z == y.z && x.w == y.w) continue;
        *at = y;
        unclean = 1;
    }
    if (unclean) state.unclean = 1;
}

/* ---- O: a warp has all rows of 64 columns ---- */

template <int TILES> struct sums { float o[TILES][8][4]; };

template <int TILES> PTX_INLINE void scale_o(sums<TILES> &x, const float *factors) {
    const int lane = recompute((int)threadIdx.x) % 32;
#pragma unroll
    for (int r = 0; r < TILES; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float factor = factors[16 * r + 8 * half + lane / 4];
#pragma unroll
            for (int n = 0; n < 8; n++) x.o[r][n][2 * half] *= factor, x.o[r][n][2 * half + 1] *= factor;
        }
}

/* o += P V of a tile. */
template <int DTYPE, int TILES>
PTX_INLINE void accumulate(sums<TILES> &x, uint32_t p_lane_smem, uint32_t v_lane_smem) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        uint32_t p[TILES][4], v[4][4];
#pragma unroll
        for (int r = 0; r < TILES; r++)
            load_matrix_x4(p[r], p_lane_smem + (uint32_t)(r * 16 * MLA80_S_STRIDE + step * 64));
#pragma unroll
        for (int d = 0; d < 4; d++)
            load_matrix_x4_transposed(v[d],
                                      fragment(v_lane_smem, d) + (uint32_t)(step * 16 * MLA80_ROW_BYTES));
#pragma unroll
        for (int d = 0; d < 4; d++)
#pragma unroll
            for (int r = 0; r < TILES; r++) {
                mma_16x8x16<DTYPE>(x.o[r][2 * d], p[r], v[d][0], v[d][1]);
                mma_16x8x16<DTYPE>(x.o[r][2 * d + 1], p[r], v[d][2], v[d][3]);
            }
    }
}

/* ---- the end of a part ---- */

/* What was cleaned out of V goes to the rows that see it. Rare. */
template <int DTYPE, int TILES>
PTX_INLINE void add_unclean(sums<TILES> &x, const mla_decode_sm80_args &a, const mla_item &item,
                            const row_end *ends, int first, int last) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
#pragma unroll 1
    for (int j = first; j < last; j++) {
        const uint16_t *row = item.k + key_offset(a, item, j, page_of(a, item, j));
        const uint32_t *v = (const uint32_t *)row + warp * 32 + lane % 4;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const uint32_t pair = v[4 * n];
            const float odd[2] = { widen<DTYPE>((uint16_t)pair), widen<DTYPE>((uint16_t)(pair >> 16)) };
#pragma unroll
            for (int r = 0; r < TILES; r++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (!(fabsf(odd[i % 2]) < INFINITY) && j < ends[16 * r + i / 2 * 8 + lane / 4].high)
                        x.o[r][n][i] += odd[i % 2];
        }
    }
}

/* By the first of a row's threads. slot: of the workspace, -1: straight to O and LSE, -2: nowhere. */
PTX_INLINE row_end close_row(const mla_decode_sm80_args &a, const mla_item &item, const row_state &x, float l,
                             int packed, int64_t part_row, int slot) {
    const attn_problem &p = a.p;
    const int i = packed / a.group;
    const int64_t h = (int64_t)item.kv_head * a.group + packed % a.group;
    const bool empty = l == 0 || i >= item.q_len;       /* no keys, or no query */
    const float lse = empty ? -INFINITY : x.b + log2f(l);
    float below = l;
    if (slot == -1 && p.has_sinks) below += exp2_approx(a.t.sinks[h] * log2_e - x.b);
    row_end end;
    end.inverse = empty ? 0 : 1 / below;
    end.high = x.high;
    end.o_at = -1;
    if (slot >= 0) {
        end.o_at = part_row * MLA80_V;
        a.lse_parts[part_row] = lse;
    } else if (slot == -1 && i < item.q_rows) {
        const int64_t seq = item.q_first + (int64_t)i;
        const int64_t batch = item.q_batch;
        end.o_at = batch * p.o_stride.batch + seq * p.o_stride.seq + h * p.o_stride.head;
        if (a.t.lse)
            a.t.lse[batch * p.lse_stride.batch + seq * p.lse_stride.seq + h * p.lse_stride.head] = lse * ln_2;
    }
    return end;
}

/* 0 for a row without keys, whatever was summed up. */
PTX_INLINE float weighed(float o, float inverse) { return inverse == 0 ? 0 : o * inverse; }

/* Half a tile's rows, 64 columns a warp, 16 bytes a thread: a quad's lanes exchange pairs of columns until
 * each has 8 in a row. */
template <int DTYPE, int HALF>
PTX_INLINE void store_halves(const float (&o)[8][4], uint16_t *to, const row_end &end) {
    const int lane = (int)threadIdx.x % 4;
#pragma unroll
    for (int g = 0; g < 8; g += 4) {
        uint32_t x[4];
#pragma unroll
        for (int n = 0; n < 4; n++)
            x[n] = pack_halves<DTYPE>(weighed(o[g + n][2 * HALF], end.inverse),
                                      weighed(o[g + n][2 * HALF + 1], end.inverse));
#pragma unroll
        for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
            for (int n = 0; n < 4; n++)
                if (!(n & bit)) {
                    const uint32_t y = __shfl_xor_sync(0xffffffffu, lane & bit ? x[n] : x[n | bit], bit);
                    if (lane & bit) x[n] = y;
                    else x[n | bit] = y;
                }
        if (end.o_at >= 0) *(uint4 *)(to + end.o_at + 8 * (g + lane)) = make_uint4(x[0], x[1], x[2], x[3]);
    }
}
template <int HALF> PTX_INLINE void store_floats(const float (&o)[8][4], float *to, const row_end &end) {
    if (end.o_at < 0) return;
#pragma unroll
    for (int n = 0; n < 8; n++)
        *(float2 *)(to + end.o_at + 8 * n + 2 * ((int)threadIdx.x % 4)) =
            make_float2(weighed(o[n][2 * HALF], end.inverse), weighed(o[n][2 * HALF + 1], end.inverse));
}

template <int DTYPE, int TILES>
PTX_INLINE void store_o(const sums<TILES> &x, const mla_decode_sm80_args &a, const row_end *ends, int slot) {
    const int column = (int)threadIdx.x / 32 * 64, row = (int)threadIdx.x % 32 / 4;
    float *floats = slot >= 0 ? a.o_parts + column : (float *)a.t.o + column;
    uint16_t *halves = (uint16_t *)a.t.o + column;
    const bool wide = slot >= 0 || a.p.o_dtype == ATTN_F32;
#pragma unroll
    for (int r = 0; r < TILES; r++) {
        const row_end first = ends[16 * r + row], second = ends[16 * r + 8 + row];
        if (wide) {
            store_floats<0>(x.o[r], floats, first);
            store_floats<1>(x.o[r], floats, second);
        } else {
            store_halves<DTYPE, 0>(x.o[r], halves, first);
            store_halves<DTYPE, 1>(x.o[r], halves, second);
        }
    }
}

/* All threads call it. first, last: the part's blocks. */
template <int DTYPE, int TILES>
PTX_INLINE void finish_part(sums<TILES> &x, const row_state &row, const mla_decode_sm80_args &a,
                            const mla_item &item, mla_state &state, row_end *ends, int tile, int slot,
                            int first, int last) {
    typedef share<TILES> W;
    const int thread = (int)threadIdx.x, r = thread / W::ROW_THREADS;
    const float l = neighbours_sum<W::ROW_THREADS>(row.l);
    block_barrier();            /* P and what was here before have been read */
    const int unclean = state.unclean;
    if (thread % W::ROW_THREADS == 0) {
        const int64_t part_row = ((int64_t)slot * a.tiles + tile) * W::ROWS + r;
        ends[r] = close_row(a, item, row, l, tile * W::ROWS + r, part_row, slot);
    }
    block_barrier();
    if (thread == 0) state.unclean = 0;
    if (unclean)
        add_unclean<DTYPE, TILES>(x, a, item, ends, max(item.seen_by_all, first * KEYS),
                                  min(item.high, last * KEYS));
    store_o<DTYPE, TILES>(x, a, ends, slot);
}

/* A schedule for another shape: NaN everywhere rather than something that looks right. */
PTX_INLINE void write_nan(const mla_decode_sm80_args &a) {
    const float nan = __int_as_float(0x7fffffff);
    for (int64_t b = blockIdx.x; b < a.p.batch; b += gridDim.x) {
        const attn_sequence s = attn_sequence_at(&a.p, &a.t, b);
        const int64_t count = s.q_rows * a.p.q_heads * MLA80_V;
        for (int64_t n = threadIdx.x; n < count; n += blockDim.x) {
            const int64_t i = n / (a.p.q_heads * MLA80_V), h = n / MLA80_V % a.p.q_heads, d = n % MLA80_V;
            const int64_t to = attn_q_offset(&s, a.p.o_stride, i, h) + d;
            if (a.p.o_dtype == ATTN_F32) ((float *)a.t.o)[to] = nan;
            else ((uint16_t *)a.t.o)[to] = 0x7fff;
            if (d == 0 && a.t.lse) a.t.lse[attn_lse_offset(&a.p, &s, i, h)] = nan;
        }
    }
}

/* ---- the kernel ---- */

template <int DTYPE, int TILES> PTX_INLINE void mla_decode(const mla_decode_sm80_args &a) {
    typedef share<TILES> W;
    extern __shared__ __align__(1024) unsigned char smem[];
    unsigned char *const ring = smem + W::ROWS * MLA80_ROW_BYTES;
    unsigned char *const s = TILES == 4 ? ring + a.stages * MLA80_TILE_BYTES : smem;
    mla_state &state = *(mla_state *)(TILES == 4 ? s + 2 * W::ROWS * MLA80_S_STRIDE
                                                 : ring + a.stages * MLA80_TILE_BYTES);
    const int thread = (int)threadIdx.x, lane = thread % 32;
    const int worker = (int)blockIdx.x / a.tiles, tile = (int)blockIdx.x - worker * a.tiles;

    wait_for_earlier_kernels();
    let_next_kernel_start();
    attn_decode_work work;
    if (a.schedule) work = attn_decode_works(a.schedule)[worker];
    if (a.schedule && work.reserved[0] != (int32_t)a.hash) {
        write_nan(a);
        return;
    }
    if (!a.schedule) work = attn_decode_work_of(&a.shape, &a.even, worker);
    if (work.first_item > work.last_item) return;
    if (thread < min(work.last_item - work.first_item + 1, 2))
        open_item(state.items[(work.first_item + thread) % ITEMS], a, work, work.first_item + thread, tile,
                  W::ROWS);
    if (thread == 0) state.unclean = 0;
    block_barrier();

    const score_place place = place_in_scores<TILES>(smem_address(smem));
    const uint32_t ring_smem = smem_address(ring);
    const uint32_t p_lane_smem = smem_address(s) + (uint32_t)(lane % 16 * MLA80_S_STRIDE + lane / 16 * 32);
    const uint32_t v_lane = tile_offset(lane % 16, lane / 16) + (uint32_t)(thread / 32 * 128);
    feed f = { work.first_item - 1, 0, 0, 0, 0, 0, ring_smem + tile_offset(thread / 8, thread % 8),
               a.tiles > 1 ? cache_policy_normal() : cache_policy_once() };
    int done = 0, slot = 0;                 /* steps computed; the stage that the next one is in */

#pragma unroll 1
    for (int index = work.first_item; index <= work.last_item; index++) {
        const mla_item &item = state.items[index % ITEMS];
        const int known = min(index + 1, work.last_item);
        held_q<TILES> held;
        block_barrier();                    /* the part before has been stored: S and Q are free */
        /* Items without keys ask for nothing: catch up, before the record of one that was passed is gone. */
#pragma unroll 1
        while (f.asked - done < a.stages && request(f, a, state.items, known)) {}
        load_q<TILES>(a, item, smem, tile);
        block_barrier();
        hold_q<TILES>(held, place);
        if (TILES != 4) block_barrier();    /* S takes Q's place */
        /* The item after the next, into the place of the one before; the barriers above show it to all. */
        if (thread == 0 && index + 2 <= work.last_item)
            open_item(state.items[(index + 2) % ITEMS], a, work, index + 2, tile, W::ROWS);

        const int i = (tile * W::ROWS + thread / W::ROW_THREADS) / a.group;
        row_state row = { -INFINITY, 0, 0, i < item.q_len ? keys_seen(a, item, i) : 0 };
        int block = item.block, part = item.part;
#pragma unroll 1
        for (; block < item.last; part++) {
            const int end = min((block / item.length + 1) * item.length, item.last);
            const int end_step = min(end, item.end_step);
            sums<TILES> x;
            row.m = -INFINITY, row.b = row.l = 0;
#pragma unroll
            for (int r = 0; r < TILES; r++)
#pragma unroll
                for (int n = 0; n < 8; n++) x.o[r][n][0] = x.o[r][n][1] = x.o[r][n][2] = x.o[r][n][3] = 0;
#pragma unroll 1
            for (int step = block; step < end_step; step++, done++) {
                wait_for_step(f.asked - done - 1);
                block_barrier();            /* the tile has come; the one before, and P, have been read */
#pragma unroll 1
                while (f.asked - done < a.stages && request(f, a, state.items, known)) {}
                const uint32_t k_smem = ring_smem + (uint32_t)(slot * MLA80_TILE_BYTES);
                scores<DTYPE, TILES>(held, place, k_smem, s);
                block_barrier();
                const bool masked = (step + 1) * KEYS > item.seen_by_all;
                unsigned char *const values = ring + slot * MLA80_TILE_BYTES;
                if (__builtin_expect(masked, 0))
                    clean_values<DTYPE>(state, values, item.seen_by_all - step * KEYS);
                const int grown =
                    soften<DTYPE, TILES>(row, s, state.factor, a.scale_log2, step * KEYS, masked);
                if (__builtin_expect(__syncthreads_or(grown), 0)) scale_o(x, state.factor);
                accumulate<DTYPE, TILES>(x, p_lane_smem, k_smem + v_lane);
                slot = slot + 1 == a.stages ? 0 : slot + 1;
            }
            const int to = item.slots.parts < 2 ? -1
                         : part < item.slots.parts ? attn_decode_slot(item.slots, part) : -2;
            finish_part<DTYPE, TILES>(x, row, a, item, state, (row_end *)s, tile, to, block, end);
            block = end;
        }
    }
}

#define ENTRY(name, dtype, tiles)                                                                           \
    extern "C" __global__ void __launch_bounds__(MLA80_THREADS, 1)                                          \
        name(const __grid_constant__ mla_decode_sm80_args a) {                                              \
        mla_decode<dtype, tiles>(a);                                                                        \
    }
ENTRY(mla_decode_sm80_bf16_16, PTX_BF16, 1)
ENTRY(mla_decode_sm80_bf16_32, PTX_BF16, 2)
ENTRY(mla_decode_sm80_bf16_64, PTX_BF16, 4)
ENTRY(mla_decode_sm80_f16_16, PTX_F16, 1)
ENTRY(mla_decode_sm80_f16_32, PTX_F16, 2)
ENTRY(mla_decode_sm80_f16_64, PTX_F16, 4)
