/* decode_fwd_sm80.cu — few queries against a long cache: split-KV decode on mma.sync for f16 and bf16, from sm_80 on.
 * The idea: all query heads of a K/V head are rows of one tile, so that K and V are read once; every warp streams its
 * own keys through its own ring without waiting for the others, and the warps' sums meet once per part. */
#include "decode_fwd_sm80.h"
#include "flash_rows_sm80.h"
#include "ptx_decode.h"
#include <float.h>

/* A row's maximum is raised only when it has grown by more than 2^8, as in flash_fwd_sm80.cu. */
static constexpr float max_growth = 8;
static constexpr uint32_t hidden_pair = 0x80008000u;    /* -0 in P: not a probability, the row doesn't see the key */

/* ---- an item, in shared memory ---- */

typedef struct decode_item {
    block_rows rows;            /* block_row: the first packed row */
    attn_decode_slots slots;
    const uint16_t *k, *v;      /* of key 0, or of page 0 */
    int valid_rows;             /* packed rows of the tile that exist */
    int low_block, blocks;      /* the item's blocks of keys begin at block low_block of the sequence */
    int first_block, end_block; /* those that a row of the tile sees */
    int high;                   /* no row of the tile sees keys from here on */
    int full_low, full_high;    /* keys that all its rows see */
} decode_item;

PTX_INLINE void find_slots(decode_item &item, const decode_fwd_args &a, int index) {
    if (a.schedule) item.slots = attn_decode_slots_of(&a.shape, a.schedule, index);
    else item.slots = attn_decode_even_slots(&a.shape, &a.even, index);
}

/* What a block knows about item `index`; by one thread. */
template <int BLOCK>
PTX_INLINE void open_item(decode_item &item, const decode_fwd_args &a, int index, int tile_rows) {
    const int b = index / a.shape.tiles, tile = index % a.shape.tiles;
    block_rows &rows = item.rows;
    rows.s = attn_sequence_at(&a.p, &a.t, b);
    rows.kv_head = tile / a.m_tiles;
    rows.block_row = tile % a.m_tiles * tile_rows;
    rows.q_len = (int)rows.s.q_len, rows.kv_len = (int)rows.s.kv_len, rows.q_rows = (int)rows.s.q_rows;
    const int64_t right = a.p.causal ? 0 : a.p.window_right;
    rows.high_offset = right < 0 ? 1 << 30 : clamp_offset(rows.s.shift + right + 1);
    rows.low_offset = a.p.window_left < 0 ? -(1 << 30) : clamp_offset(rows.s.shift - a.p.window_left);
    item.valid_rows = min(max(rows.q_rows * a.group - rows.block_row, 0), tile_rows);
    const attn_range span = attn_decode_span(&a.p, &rows.s);
    item.low_block = (int)span.low / BLOCK;
    item.blocks = a.schedule ? attn_decode_blocks(span, BLOCK) : a.even.blocks;
    const int first = rows.block_row / a.group,
              last = min((rows.block_row + tile_rows - 1) / a.group, rows.q_len - 1);
    const int low = row_low(rows, first);
    item.high = first <= last ? max(row_high(rows, last), 0) : 0;
    item.full_low = row_low(rows, last), item.full_high = row_high(rows, first);
    item.first_block = low / BLOCK - item.low_block;
    item.end_block = item.high > low ? (item.high - 1) / BLOCK + 1 - item.low_block : item.first_block;
    const attn_stride ks = a.p.k_stride, vs = a.p.v_stride;
    item.k = (const uint16_t *)a.t.k + rows.kv_head * ks.head;
    item.v = (const uint16_t *)a.t.v + rows.kv_head * vs.head;
    if (!rows.s.pages) {
        item.k += rows.s.kv_batch * ks.batch + rows.s.kv_first * ks.seq;
        item.v += rows.s.kv_batch * vs.batch + rows.s.kv_first * vs.seq;
    }
    find_slots(item, a, index);
}

/* ---- shared memory tiles: rows of DIM elements, 16-byte chunks permuted so that 8 rows of a column of chunks lie in
 * different banks ---- */

template <int DIM> PTX_INLINE uint32_t tile_offset(int row, int chunk) {
    return (uint32_t)(row * DIM * 2 + ((chunk ^ (row & 7)) << 4));
}
/* Columns 16 * pair .. + 15 for a lane whose row and half `lane_smem` = tile_offset(row, half) names. */
PTX_INLINE uint32_t fragment(uint32_t lane_smem, int pair) {
    return (lane_smem ^ (uint32_t)(pair % 4 << 5)) + (uint32_t)(pair / 4 * 128);
}

/* ---- a warp's feed of K and V ---- */

typedef struct feed {
    uint32_t ring_smem;         /* the warp's first stage */
    int page;                   /* of the next step, looked up one step early */
} feed;

/* Element offset between page 0's first row and key j's, of K or of V. */
PTX_INLINE int64_t key_offset(const decode_fwd_args &a, const decode_item &item, attn_stride stride, int j) {
    const uint32_t page_size = (uint32_t)a.p.page_size, index = (uint32_t)j / page_size;
    const int page = item.rows.s.pages[index];
    return (page >= 0 && page < a.p.pages ? page : 0) * stride.batch + (j - index * page_size) * stride.seq;
}
PTX_INLINE int page_of_step(const decode_fwd_args &a, const decode_item &item, int key) {
    if (!item.rows.s.pages || a.by_row || key >= item.high) return 0;
    const int page = item.rows.s.pages[(uint32_t)key / (uint32_t)a.p.page_size];
    return page >= 0 && page < a.p.pages ? page : 0;
}

/* KEYS rows from `key` on into a tile; rows from item.high and columns from `dim` on become zeros. */
template <int DIM, int KEYS>
PTX_INLINE void load_tile(const decode_fwd_args &a, const decode_item &item, uint32_t tile_smem,
                          const uint16_t *from, attn_stride stride, int page, int key, int dim) {
    const int chunks = DIM / 8, lane = recompute((int)threadIdx.x) % 32, valid = item.high - key;
    if (a.by_row) {
#pragma unroll 4
        for (int n = 0; n < KEYS * chunks / 32; n++) {
            const int i = n * 32 + lane, row = i / chunks, chunk = i % chunks, reads = row < valid && chunk * 8 < dim;
            copy_async_16(tile_smem + tile_offset<DIM>(row, chunk),
                          from + (reads ? key_offset(a, item, stride, key + row) + chunk * 8 : 0), reads ? 16 : 0);
        }
        return;
    }
    from += item.rows.s.pages ? page * stride.batch + (uint32_t)key % (uint32_t)a.p.page_size * stride.seq
                              : key * stride.seq;
    if (32 % chunks == 0) {                 /* a lane keeps its column of chunks */
        const int chunk = lane % chunks, first = lane / chunks, step = 32 / chunks;
        const uint16_t *source = from + first * stride.seq + chunk * 8;
#pragma unroll(DIM == 64 ? 8 : 4)
        for (int n = 0; n < KEYS / step; n++, source += step * stride.seq)
            copy_async_16(tile_smem + tile_offset<DIM>(first + n * step, chunk), source,
                          first + n * step < valid && chunk * 8 < dim ? 16 : 0);
    } else {
#pragma unroll
        for (int n = 0; n < KEYS * chunks / 32; n++) {
            const int i = n * 32 + lane, row = i / chunks, chunk = i % chunks;
            copy_async_16(tile_smem + tile_offset<DIM>(row, chunk), from + row * stride.seq + chunk * 8,
                          row < valid && chunk * 8 < dim ? 16 : 0);
        }
    }
}

/* ---- scores ---- */

/* Packed row -> query and head. Lane's rows: 16 r + 8 half + lane / 4. */
PTX_INLINE int query_of(const decode_fwd_args &a, int packed) { return packed / a.group; }
PTX_INLINE int64_t head_of(const decode_fwd_args &a, const block_rows &rows, int packed) {
    return rows.kv_head * a.group + packed % a.group;
}

/* What the options make of q . k, in log2 units; -inf: hidden. */
template <int DTYPE>
PTX_INLINE float rich_score(const decode_fwd_args &a, const block_rows &rows, int64_t h, int i, int j, float dot) {
    float x = dot * a.p.scale;
    if (a.p.has_mask && !a.t.mask[attn_score_offset(&rows.s, a.p.mask_stride, h, i, j)]) return -INFINITY;
    if (a.p.softcap > 0 && !isnan(x))       /* tanh, absolute 2^-22 */
        x = a.p.softcap * (1 - 2 / (1 + exp2_approx(2 * log2_e / a.p.softcap * x)));
    if (a.p.bias_dtype) {
        const int64_t at = attn_score_offset(&rows.s, a.p.bias_stride, h, i, j);
        const float bias = a.p.bias_dtype == ATTN_F32 ? ((const float *)a.t.bias)[at]
                         : a.p.bias_dtype == ATTN_F16 ? widen<PTX_F16>(((const uint16_t *)a.t.bias)[at])
                                                      : widen<PTX_BF16>(((const uint16_t *)a.t.bias)[at]);
        if (bias == -INFINITY) return bias;
        x += bias;
    }
    if (a.p.alibi) x -= attn_slope(&a.p, &a.t, rows.s.b, h) * fabsf((float)(i + (int)rows.s.shift - j));
    x *= log2_e;
    return x == -INFINITY ? -FLT_MAX : x;   /* seen, with weight 0 */
}

template <int DTYPE, int ROWS, int KEYS, int RICH>
PTX_INLINE void mask_scores(float (&s)[ROWS][KEYS / 8][4], const decode_fwd_args &a, const decode_item &item,
                            int key) {
    const int lane = recompute((int)threadIdx.x) % 32;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int packed = item.rows.block_row + 16 * r + 8 * half + lane / 4, i = query_of(a, packed);
            const int64_t h = RICH ? head_of(a, item.rows, packed) : 0;
            const int low = row_low(item.rows, i), high = i < item.rows.q_len ? row_high(item.rows, i) : 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int j = key + 8 * n + 2 * (lane % 4) + e;
                    float &x = s[r][n][2 * half + e];
                    if (j < low || j >= high) x = -INFINITY;
                    else if (RICH) x = rich_score<DTYPE>(a, item.rows, h, i, j, x);
                }
        }
}

/* s = Q K^T of one step. q: the fragments of Q in registers, or none: they come from q_smem. */
template <int DTYPE, int DK, int ROWS, int KEYS, int IN_REGISTERS>
PTX_INLINE void scores(float (&s)[ROWS][KEYS / 8][4], const uint32_t (&q)[IN_REGISTERS ? DK / 16 : 1][4],
                       uint32_t q_lane_smem, uint32_t k_lane_smem) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) s[r][n][0] = s[r][n][1] = s[r][n][2] = s[r][n][3] = 0;
#pragma unroll
    for (int d = 0; d < DK / 16; d++) {
        uint32_t left[ROWS][4];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (!IN_REGISTERS) load_matrix_x4(left[r], fragment(q_lane_smem, d) + r * 16 * DK * 2);
            else
#pragma unroll
                for (int e = 0; e < 4; e++) left[r][e] = q[d][e];
        }
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t b[4];
            load_matrix_x4(b, fragment(k_lane_smem, d) + n * 16 * DK * 2);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                mma_16x8x16<DTYPE>(s[r][2 * n], left[r], b[0], b[1]);
                mma_16x8x16<DTYPE>(s[r][2 * n + 1], left[r], b[2], b[3]);
            }
        }
    }
}

/* ---- sums ---- */

template <int ROWS, int DV> struct row_sums { float o[ROWS][DV / 8][4], l[ROWS][2], m[ROWS][2]; };

template <int ROWS, int DV> PTX_INLINE void clear_sums(row_sums<ROWS, DV> &x) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        x.l[r][0] = x.l[r][1] = 0;
        x.m[r][0] = x.m[r][1] = -FLT_MAX;   /* finite, so that exp2(-inf - m) = 0 before the first key */
#pragma unroll
        for (int n = 0; n < DV / 8; n++) x.o[r][n][0] = x.o[r][n][1] = x.o[r][n][2] = x.o[r][n][3] = 0;
    }
}

/* Raise m where a row's maximum grew by more than max_growth, and rescale what was summed with the old one. */
template <int ROWS, int DV, int KEYS>
PTX_INLINE void raise_maxima(row_sums<ROWS, DV> &x, const float (&s)[ROWS][KEYS / 8][4], float scale) {
    float top[ROWS][2];
    int grown = 0;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            top[r][half] = fmaxf(s[r][0][2 * half], s[r][0][2 * half + 1]);
#pragma unroll
            for (int n = 1; n < KEYS / 8; n++)
                top[r][half] = fmaxf(top[r][half], fmaxf(s[r][n][2 * half], s[r][n][2 * half + 1]));
            top[r][half] *= scale;
            grown |= top[r][half] > x.m[r][half] + max_growth;
        }
    if (__builtin_expect(!warp_any(grown), 1)) return;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float seen = quad_max(top[r][half]);
            const float raised = seen > x.m[r][half] + max_growth ? seen : x.m[r][half];
            const float factor = exp2_approx(x.m[r][half] - raised);
            x.m[r][half] = raised;
            x.l[r][half] *= factor;
#pragma unroll
            for (int n = 0; n < DV / 8; n++) x.o[r][n][2 * half] *= factor, x.o[r][n][2 * half + 1] *= factor;
        }
}

/* p = exp2(s * scale - m) of 16 keys, narrowed: the left factor of P V. l += p. hidden: mark what isn't seen. */
template <int DTYPE, int ROWS, int DV, int KEYS>
PTX_INLINE void probabilities(uint32_t (&p)[ROWS][4], row_sums<ROWS, DV> &x, const float (&s)[ROWS][KEYS / 8][4],
                              int step, float scale) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float *y = &s[r][2 * step + n][2 * half];
                const float a = exp2_approx(fmaf(y[0], scale, -x.m[r][half]));
                const float b = exp2_approx(fmaf(y[1], scale, -x.m[r][half]));
                x.l[r][half] += a + b;
                p[r][2 * n + half] = pack_halves<DTYPE>(a, b);
            }
}

/* o += P V of one step. */
template <int DTYPE, int DV, int ROWS, int KEYS>
PTX_INLINE void accumulate(row_sums<ROWS, DV> &x, const float (&s)[ROWS][KEYS / 8][4], float scale,
                           uint32_t v_lane_smem) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        uint32_t p[ROWS][4];
        probabilities<DTYPE, ROWS, DV, KEYS>(p, x, s, step, scale);
#pragma unroll
        for (int d = 0; d < DV / 16; d++) {
            uint32_t b[4];
            load_matrix_x4_transposed(b, fragment(v_lane_smem, d) + step * 16 * DV * 2);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                mma_16x8x16<DTYPE>(x.o[r][2 * d], p[r], b[0], b[1]);
                mma_16x8x16<DTYPE>(x.o[r][2 * d + 1], p[r], b[2], b[3]);
            }
        }
    }
}

/* ---- NaN and infinity in V under keys that only some rows see: 0 * NaN must not reach the others ---- */

template <int DTYPE, int DV, int KEYS> PTX_INLINE int has_nonfinite(uint32_t v_smem) {
    const uint32_t exponent = DTYPE == PTX_BF16 ? 0x7f80u : 0x7c00u;
    int found = 0;
#pragma unroll 1
    for (int n = (int)threadIdx.x % 32; n < KEYS * DV / 8; n += 32) {
        uint32_t x[4];
        load_smem_16(x, v_smem + (uint32_t)n * 16);
#pragma unroll
        for (int e = 0; e < 4; e++)
            found |= (x[e] & exponent) == exponent || (x[e] >> 16 & exponent) == exponent;
    }
    return warp_any(found);
}

/* The same sums key by key, each row only over what it sees. P goes through the step's K tile, which is done with:
 * [row][key], 16 bits each; -0 = hidden. */
template <int DTYPE, int DV, int ROWS, int KEYS>
PTX_INLINE void accumulate_seen(row_sums<ROWS, DV> &x, const float (&s)[ROWS][KEYS / 8][4], float scale,
                                uint32_t p_smem, uint32_t v_smem) {
    const int lane = (int)threadIdx.x % 32;
    warp_barrier();
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        uint32_t p[ROWS][4];
        probabilities<DTYPE, ROWS, DV, KEYS>(p, x, s, step, scale);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float *y = &s[r][2 * step + n][2 * half];
                    const uint32_t seen = (y[0] == -INFINITY ? 0 : 0xffffu) | (y[1] == -INFINITY ? 0 : 0xffff0000u);
                    const int row = 16 * r + 8 * half + lane / 4, column = 16 * step + 8 * n + 2 * (lane % 4);
                    store_smem_4(p_smem + (uint32_t)(row * KEYS + column) * 2,
                                 (p[r][2 * n + half] & seen) | (hidden_pair & ~seen));
                }
    }
    warp_barrier();
#pragma unroll 1
    for (int j = 0; j < KEYS; j++)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t at = p_smem + (uint32_t)((16 * r + 8 * half + lane / 4) * KEYS + j) * 2;
                const uint32_t bits = load_smem_2(at);
                if (bits == (hidden_pair & 0xffffu)) continue;
                const float weight = widen<DTYPE>((uint16_t)bits);
#pragma unroll
                for (int n = 0; n < DV / 8; n++) {
                    const uint32_t v = load_smem_4(v_smem + tile_offset<DV>(j, n) + 4 * (lane % 4));
                    x.o[r][n][2 * half] = fmaf(weight, widen<DTYPE>((uint16_t)v), x.o[r][n][2 * half]);
                    x.o[r][n][2 * half + 1] = fmaf(weight, widen<DTYPE>((uint16_t)(v >> 16)), x.o[r][n][2 * half + 1]);
                }
            }
}

/* ---- the end of a part: the warps' sums become one, written to O or to the workspace ---- */

/* Float offset in a warp's [rows][DV] sums: groups of 8 columns permuted as above. */
template <int DV> PTX_INLINE int sum_offset(int row, int column) {
    return row * DV + ((column / 8 ^ (row & 7)) * 8 + column % 8);
}

template <int ROWS, int DV>
PTX_INLINE void hand_over(row_sums<ROWS, DV> &x, float *sums, float2 *stats, int valid_rows) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = 16 * r + 8 * half + lane / 4;
            const float l = quad_sum(x.l[r][half]);
            if (row >= valid_rows) continue;
            if (lane % 4 == 0) stats[warp * ROWS * 16 + row] = make_float2(x.m[r][half], l);
            float *to = sums + warp * ROWS * 16 * DV;
#pragma unroll
            for (int n = 0; n < DV / 8; n++)
                *(float2 *)(to + sum_offset<DV>(row, 8 * n + 2 * (lane % 4))) =
                    make_float2(x.o[r][n][2 * half], x.o[r][n][2 * half + 1]);
        }
}

template <int DTYPE> PTX_INLINE void store_o(const decode_fwd_args &a, int64_t at, int column, float4 x) {
    if (column >= a.p.v_dim) return;
    if (a.p.o_dtype == ATTN_F32) *(float4 *)((float *)a.t.o + at + column) = x;
    else
        *(uint2 *)((uint16_t *)a.t.o + at + column) =
            make_uint2(pack_halves<DTYPE>(x.x, x.y), pack_halves<DTYPE>(x.z, x.w));
}

/* slot < 0: straight to O and LSE. */
template <int DTYPE, int ROWS, int DV, int WARPS>
PTX_INLINE void write_part(const decode_fwd_args &a, const decode_item &item, const float *sums, const float2 *stats,
                           int slot) {
#pragma unroll 1
    for (int n = (int)threadIdx.x; n < item.valid_rows * (DV / 4); n += WARPS * 32) {
        const int row = n / (DV / 4), column = n % (DV / 4) * 4, packed = item.rows.block_row + row;
        const int i = query_of(a, packed);
        float m = -FLT_MAX, l = 0;
        float4 o = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int w = 0; w < WARPS; w++) m = fmaxf(m, stats[w * ROWS * 16 + row].x);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float2 stat = stats[w * ROWS * 16 + row];
            const float factor = exp2_approx(stat.x - m);
            const float4 x = *(const float4 *)(sums + w * ROWS * 16 * DV + sum_offset<DV>(row, column));
            l = fmaf(stat.y, factor, l);
            o.x = fmaf(x.x, factor, o.x), o.y = fmaf(x.y, factor, o.y);
            o.z = fmaf(x.z, factor, o.z), o.w = fmaf(x.w, factor, o.w);
        }
        const bool empty = l == 0 || i >= item.rows.q_len;      /* rows without keys; rows without a query */
        const int64_t h = head_of(a, item.rows, packed);
        const float sink = slot < 0 && a.p.has_sinks ? exp2_approx(a.t.sinks[h] * log2_e - m) : 0;
        const float inverse = 1 / (l + sink);
        o.x = empty ? 0 : o.x * inverse, o.y = empty ? 0 : o.y * inverse;
        o.z = empty ? 0 : o.z * inverse, o.w = empty ? 0 : o.w * inverse;
        const float lse = empty ? -INFINITY : m + log2f(l);
        if (slot >= 0) {
            const int64_t at = (int64_t)slot * ROWS * 16 + row;
            if (column < a.o_stride) *(float4 *)(a.o_parts + at * a.o_stride + column) = o;
            if (column == 0) a.lse_parts[at] = lse;
        } else {
            store_o<DTYPE>(a, attn_q_offset(&item.rows.s, a.p.o_stride, i, h), column, o);
            if (column == 0 && a.t.lse) a.t.lse[attn_lse_offset(&a.p, &item.rows.s, i, h)] = lse * ln_2;
        }
    }
}

/* ---- the kernel ---- */

/* Q of an item: packed rows, zeros where there is none. */
template <int DK, int ROWS, int THREADS>
PTX_INLINE void load_q(const decode_fwd_args &a, const decode_item &item, uint32_t q_smem) {
#pragma unroll 1
    for (int n = (int)threadIdx.x; n < ROWS * 16 * (DK / 8); n += THREADS) {
        const int row = n / (DK / 8), chunk = n % (DK / 8), packed = item.rows.block_row + row;
        const int i = query_of(a, packed), reads = i < item.rows.q_len && chunk * 8 < a.p.qk_dim;
        const int64_t at = reads ? attn_q_offset(&item.rows.s, a.p.q_stride, i, head_of(a, item.rows, packed)) : 0;
        copy_async_16(q_smem + tile_offset<DK>(row, chunk), (const uint16_t *)a.t.q + at + (reads ? chunk * 8 : 0),
                      reads ? 16 : 0);
    }
}

/* A schedule for another shape: NaN everywhere rather than something that looks right. */
template <int THREADS> PTX_INLINE void write_nan(const decode_fwd_args &a) {
    const float nan = __int_as_float(0x7fffffff);
    for (int64_t b = 0; b < a.p.batch; b++) {
        const attn_sequence s = attn_sequence_at(&a.p, &a.t, b);
        const int64_t count = s.q_rows * a.p.q_heads * a.p.v_dim;
        for (int64_t n = (int64_t)blockIdx.x * THREADS + threadIdx.x; n < count; n += (int64_t)gridDim.x * THREADS) {
            const int64_t i = n / (a.p.q_heads * a.p.v_dim), h = n / a.p.v_dim % a.p.q_heads, d = n % a.p.v_dim;
            const int64_t to = attn_q_offset(&s, a.p.o_stride, i, h) + d;
            if (a.p.o_dtype == ATTN_F32) ((float *)a.t.o)[to] = nan;
            else ((uint16_t *)a.t.o)[to] = 0x7fff;
            if (d == 0 && a.t.lse) a.t.lse[attn_lse_offset(&a.p, &s, i, h)] = nan;
        }
    }
}

template <int DTYPE, int DK, int DV, int ROWS, int WARPS, int KEYS, int STAGES, int RICH>
PTX_INLINE void decode_fwd(const decode_fwd_args &a) {
    extern __shared__ __align__(1024) unsigned char smem[];
    __shared__ decode_item item;
    __shared__ float2 stats[WARPS * ROWS * 16];
    const int THREADS = WARPS * 32, BLOCK = WARPS * KEYS, TILE_ROWS = ROWS * 16;
    const int IN_REGISTERS = ROWS == 1 && DK <= 64;
    const uint32_t k_bytes = KEYS * DK * 2, stage_bytes = KEYS * (DK + DV) * 2;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const uint32_t q_smem = smem_address(smem), all_rings = q_smem + TILE_ROWS * DK * 2;
    const uint32_t ring_smem = all_rings + (uint32_t)warp * STAGES * stage_bytes;
    const uint32_t q_lane_smem = q_smem + tile_offset<DK>(lane % 16, lane / 16);
    const uint32_t k_lane = tile_offset<DK>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    const uint32_t v_lane = tile_offset<DV>(lane % 16, lane / 16);
    float *sums = (float *)(smem + TILE_ROWS * DK * 2);

    let_next_kernel_start();
    wait_for_earlier_kernels();
    if (a.schedule && !attn_decode_valid(&a.shape, a.schedule)) {
        write_nan<THREADS>(a);
        return;
    }
    attn_decode_work work;
    if (a.schedule) work = attn_decode_works(a.schedule)[blockIdx.x];
    else work = attn_decode_work_of(&a.shape, &a.even, (int)blockIdx.x);

#pragma unroll 1
    for (int index = work.first_item; index <= work.last_item; index++) {
        block_barrier();                    /* the item before has been written */
        if (threadIdx.x == 0) open_item<BLOCK>(item, a, index, TILE_ROWS);
        block_barrier();
        int block = index == work.first_item ? work.first_block : 0;
        int part = index == work.first_item ? work.first_part : 0;
        const int last = index == work.last_item ? work.last_block : item.blocks;
        const int length = attn_decode_split_blocks(&a.shape, item.blocks);
        load_q<DK, ROWS, THREADS>(a, item, q_smem);
        copy_commit();
        uint32_t q[IN_REGISTERS ? DK / 16 : 1][4];
        bool q_ready = false;

#pragma unroll 1
        for (; block < last; part++) {
            const int end = min((block / length + 1) * length, last);
            const int first_step = max(block, item.first_block), end_step = min(end, item.end_block);
            const int first_key = item.low_block * BLOCK + warp * KEYS;
            row_sums<ROWS, DV> x;
            clear_sums(x);

            int page = page_of_step(a, item, first_key + first_step * BLOCK), filled = 0;
            const auto request = [&](int step) {
                const int key = first_key + step * BLOCK;
                const uint32_t to = ring_smem + (uint32_t)filled * stage_bytes;
                if (step < end_step) {
                    load_tile<DK, KEYS>(a, item, to, item.k, a.p.k_stride, page, key, (int)a.p.qk_dim);
                    load_tile<DV, KEYS>(a, item, to + k_bytes, item.v, a.p.v_stride, page, key, (int)a.p.v_dim);
                    page = page_of_step(a, item, key + BLOCK);
                }
                copy_commit();
                filled = filled + 1 == STAGES ? 0 : filled + 1;
            };
#pragma unroll 1
            for (int n = 0; n < STAGES - 1; n++) request(first_step + n);
            if (!q_ready) {                 /* Q was asked for before the first STAGES - 1 steps */
                copy_wait<STAGES - 1>();
                block_barrier();
                if (IN_REGISTERS)
#pragma unroll
                    for (int d = 0; d < (IN_REGISTERS ? DK / 16 : 1); d++)
                        load_matrix_x4(q[d], fragment(q_lane_smem, d));
                q_ready = true;
            }
            int slot = 0;
#pragma unroll 1
            for (int step = first_step; step < end_step; step++) {
                copy_wait<STAGES - 2>();
                warp_barrier();
                request(step + STAGES - 1);
                const int key = first_key + step * BLOCK;
                const uint32_t k_smem = ring_smem + (uint32_t)slot * stage_bytes, v_smem = k_smem + k_bytes;
                slot = slot + 1 == STAGES ? 0 : slot + 1;
                float s[ROWS][KEYS / 8][4];
                scores<DTYPE, DK, ROWS, KEYS, IN_REGISTERS>(s, q, q_lane_smem, k_smem + k_lane);
                const bool partial = key < item.full_low || key + KEYS > item.full_high;
                bool careful = false;
                if (RICH || __builtin_expect(partial, 0)) {
                    mask_scores<DTYPE, ROWS, KEYS, RICH>(s, a, item, key);
                    const bool hides = key < item.full_low || min(key + KEYS, item.high) > item.full_high ||
                                       (RICH && (a.p.has_mask || a.p.bias_dtype));
                    careful = hides && has_nonfinite<DTYPE, DV, KEYS>(v_smem);
                }
                raise_maxima<ROWS, DV, KEYS>(x, s, a.scale_log2);
                if (__builtin_expect(careful, 0))
                    accumulate_seen<DTYPE, DV, ROWS, KEYS>(x, s, a.scale_log2, k_smem, v_smem);
                else accumulate<DTYPE, DV, ROWS, KEYS>(x, s, a.scale_log2, v_smem + v_lane);
            }

            copy_wait<0>();
            block_barrier();                /* all rings are done with */
            hand_over(x, sums, stats, item.valid_rows);
            block_barrier();
            if (item.slots.parts < 2 || part < item.slots.parts)
                write_part<DTYPE, ROWS, DV, WARPS>(a, item, sums, stats,
                                                   item.slots.parts < 2 ? -1 : attn_decode_slot(item.slots, part));
            block = end;
            if (block < last) block_barrier();
        }
    }
}

#define ENTRY(name, dtype, qk, v, rows, warps, keys, stages, blocks, rich)                                            \
    extern "C" __global__ void __launch_bounds__(warps * 32, blocks)                                                  \
        name(const __grid_constant__ decode_fwd_args a) {                                                             \
        decode_fwd<dtype, qk, v, rows, warps, keys, stages, rich>(a);                                                 \
    }
#define RICH_0(...)
#define RICH_1(...) ENTRY(__VA_ARGS__)
#define RICH_2(...) ENTRY(__VA_ARGS__)
#define RICH_3(...) ENTRY(__VA_ARGS__)
#define TILE(qk, v, rows, warps, keys, stages, blocks, rich_blocks)                                                   \
    ENTRY(decode_fwd_sm80_bf16_##qk##_##v##_##rows, PTX_BF16, qk, v, rows, warps, keys, stages, blocks, 0)            \
    ENTRY(decode_fwd_sm80_f16_##qk##_##v##_##rows, PTX_F16, qk, v, rows, warps, keys, stages, blocks, 0)              \
    RICH_##rich_blocks(decode_fwd_sm80_bf16_##qk##_##v##_rich, PTX_BF16, qk, v, rows, warps, keys, stages,            \
                       rich_blocks, 1)                                                                                \
    RICH_##rich_blocks(decode_fwd_sm80_f16_##qk##_##v##_rich, PTX_F16, qk, v, rows, warps, keys, stages,              \
                       rich_blocks, 1)
DECODE_FWD_SM80_TILES(TILE)
