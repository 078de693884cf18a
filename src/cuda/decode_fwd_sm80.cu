/* decode_fwd_sm80.cu — few queries against a long cache: split-KV decode on mma.sync for f16 and bf16,
 * from sm_80 on. The idea: all query heads of a K/V head are rows of one tile, so that K and V are read
 * once; every warp streams its own keys through its own ring without waiting for the others, and the
 * warps' sums meet once per part. */
#include "decode_fwd_sm80_feed.h"
#include <float.h>

/* A row's maximum is raised only when it has grown by more than 2^8, as in flash_fwd_sm80.cu. */
static constexpr float max_growth = 8;
static constexpr int PASS_ROWS = DECODE_FWD_SM80_PASS_ROWS;
/* -0 in P: not a probability, the row doesn't see the key. */
static constexpr uint32_t hidden_pair = 0x80008000u;

/* ---- scores ---- */

/* What the options make of q . k, in log2 units; -inf: hidden. */
template <int DTYPE>
PTX_INLINE float rich_score(const decode_fwd_args &a, const block_rows &rows, int64_t h, int i, int j,
                            float dot) {
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

template <int DTYPE, int ROWS, int RICH>
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

/* s = Q K^T of one step. q: the fragments of Q in registers, or none: they come from q_smem.
 * Fragments are requested four multiplications ahead, and two sums run side by side: a warp alone
 * must not wait for each in turn. */
template <int DTYPE, int DK, int ROWS, int IN_REGISTERS>
PTX_INLINE void scores(float (&s)[ROWS][KEYS / 8][4], const uint32_t (&q)[IN_REGISTERS ? DK / 16 : 1][4],
                       uint32_t q_lane_smem, uint32_t k_lane_smem) {
    const int AHEAD = ROWS == 1 && DK <= 128 ? 4 : 2, CHAINS = ROWS == 1 ? 2 : 1;
    float sum[CHAINS][ROWS][2][4];
#pragma unroll
    for (int c = 0; c < CHAINS; c++)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int n = 0; n < 2; n++)
                sum[c][r][n][0] = sum[c][r][n][1] = sum[c][r][n][2] = sum[c][r][n][3] = 0;
#pragma unroll
    for (int first = 0; first < DK / 16; first += AHEAD) {
        uint32_t b[AHEAD][4], left[AHEAD][ROWS][4];
#pragma unroll
        for (int d = 0; d < AHEAD; d++) {
            load_matrix_x4(b[d], fragment(k_lane_smem, first + d));
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                if (!IN_REGISTERS)
                    load_matrix_x4(left[d][r], fragment(q_lane_smem, first + d) + r * 16 * DK * 2);
        }
#pragma unroll
        for (int d = 0; d < AHEAD; d++)
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const uint32_t *rows = IN_REGISTERS ? q[IN_REGISTERS ? first + d : 0] : left[d][r];
                mma_16x8x16<DTYPE>(sum[d % CHAINS][r][0], rows, b[d][0], b[d][1]);
                mma_16x8x16<DTYPE>(sum[d % CHAINS][r][1], rows, b[d][2], b[d][3]);
            }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[r][n][e] = CHAINS == 1 ? sum[0][r][n][e] : sum[0][r][n][e] + sum[CHAINS - 1][r][n][e];
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

/* Raise m where a row's maximum grew by more than max_growth,
 * and rescale what was summed with the old one. */
template <int ROWS, int DV>
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

/* p = exp2(s * scale - m) of 16 keys, narrowed: the left factor of P V. l += p.
 * hidden: mark what isn't seen. */
template <int DTYPE, int ROWS, int DV>
PTX_INLINE void probabilities(uint32_t (&p)[ROWS][4], row_sums<ROWS, DV> &x,
                              const float (&s)[ROWS][KEYS / 8][4], int step, float scale) {
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
template <int DTYPE, int DV, int ROWS>
PTX_INLINE void accumulate(row_sums<ROWS, DV> &x, const float (&s)[ROWS][KEYS / 8][4], float scale,
                           uint32_t v_lane_smem) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        uint32_t p[ROWS][4];
        probabilities<DTYPE, ROWS, DV>(p, x, s, step, scale);
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

template <int DTYPE, int DV> PTX_INLINE int has_nonfinite(uint32_t v_smem) {
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

/* The same sums key by key, each row only over what it sees. P goes through the step's K tile,
 * which is done with: [row][key], 16 bits each; -0 = hidden. */
template <int DTYPE, int DV, int ROWS>
PTX_INLINE void accumulate_seen(row_sums<ROWS, DV> &x, const float (&s)[ROWS][KEYS / 8][4], float scale,
                                uint32_t p_smem, uint32_t v_smem) {
    const int lane = (int)threadIdx.x % 32;
    warp_barrier();
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        uint32_t p[ROWS][4];
        probabilities<DTYPE, ROWS, DV>(p, x, s, step, scale);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float *y = &s[r][2 * step + n][2 * half];
                    const uint32_t seen = (y[0] == -INFINITY ? 0 : 0xffffu) |
                                          (y[1] == -INFINITY ? 0 : 0xffff0000u);
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
                    x.o[r][n][2 * half + 1] =
                        fmaf(weight, widen<DTYPE>((uint16_t)(v >> 16)), x.o[r][n][2 * half + 1]);
                }
            }
}

/* ---- the end of a part: the warps' sums become one, written to O or to the workspace,
 * PASS_ROWS rows at a time. The rings are left alone: they are being filled for what comes next ---- */

/* Float offset in a warp's [PASS_ROWS][DV] sums: groups of 8 columns permuted so that 4 rows
 * lie in different banks. */
template <int DV> PTX_INLINE int sum_offset(int row, int column) {
    return row * DV + ((column / 8 ^ (row & 3)) * 8 + column % 8);
}

/* Packed row 16 r + 8 half + 4 quarter + n, n < 4, is lane / 4 = 4 quarter + n of this half. */
template <int ROWS, int DV>
PTX_INLINE void hand_over(const row_sums<ROWS, DV> &x, int r, int half, int quarter, float *sums,
                          float2 *stats) {
    const int lane = (int)threadIdx.x % 32, row = lane / 4;
    const float l = quad_sum(x.l[r][half]);
    if (row / PASS_ROWS != quarter) return;
    if (lane % 4 == 0) stats[row % PASS_ROWS] = make_float2(x.m[r][half], l);
#pragma unroll
    for (int n = 0; n < DV / 8; n++)
        *(float2 *)(sums + sum_offset<DV>(row % PASS_ROWS, 8 * n + 2 * (lane % 4))) =
            make_float2(x.o[r][n][2 * half], x.o[r][n][2 * half + 1]);
}

template <int DTYPE> PTX_INLINE void store_o(const decode_fwd_args &a, int64_t at, int column, float4 x) {
    if (column >= a.p.v_dim) return;
    if (a.p.o_dtype == ATTN_F32) *(float4 *)((float *)a.t.o + at + column) = x;
    else
        *(uint2 *)((uint16_t *)a.t.o + at + column) =
            make_uint2(pack_halves<DTYPE>(x.x, x.y), pack_halves<DTYPE>(x.z, x.w));
}

/* Rows first .. first + PASS_ROWS - 1 of the tile. slot < 0: straight to O and LSE. */
template <int DTYPE, int ROWS, int DV>
PTX_INLINE void write_rows(const decode_fwd_args &a, const decode_item &item, int first, const float *sums,
                           const float2 *stats, int slot) {
    const int warps = (int)blockDim.x / 32, count = min(item.valid_rows - first, PASS_ROWS);
#pragma unroll 1
    for (int n = (int)threadIdx.x; n < count * (DV / 4); n += (int)blockDim.x) {
        const int r = n / (DV / 4), column = n % (DV / 4) * 4, packed = item.rows.block_row + first + r;
        const int i = query_of(a, packed);
        float m = -FLT_MAX, l = 0;
        float4 o = make_float4(0, 0, 0, 0);
        for (int w = 0; w < warps; w++) m = fmaxf(m, stats[w * PASS_ROWS + r].x);
#pragma unroll 4
        for (int w = 0; w < warps; w++) {
            const float2 stat = stats[w * PASS_ROWS + r];
            const float factor = exp2_approx(stat.x - m);
            const float4 x = *(const float4 *)(sums + w * PASS_ROWS * DV + sum_offset<DV>(r, column));
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
            const int64_t at = (int64_t)slot * ROWS * 16 + first + r;
            if (column < a.o_stride) *(float4 *)(a.o_parts + at * a.o_stride + column) = o;
            if (column == 0) a.lse_parts[at] = lse;
        } else {
            store_o<DTYPE>(a, attn_q_offset(&item.rows.s, a.p.o_stride, i, h), column, o);
            if (column == 0 && a.t.lse) a.t.lse[attn_lse_offset(&a.p, &item.rows.s, i, h)] = lse * ln_2;
        }
    }
}

/* All warps call it; after it the sums have been read. slot -2: nothing is written. */
template <int DTYPE, int ROWS, int DV>
PTX_INLINE void finish_part(const row_sums<ROWS, DV> &x, const decode_fwd_args &a, const decode_item &item,
                            float *sums, float2 *stats, int slot) {
    const int warp = (int)threadIdx.x / 32;
    int pass = 0;
#pragma unroll 1
    do {
#pragma unroll
        for (int n = 0; n < ROWS * 16 / PASS_ROWS; n++)     /* registers are named at compile time */
            if (n == pass)
                hand_over(x, n / 4, n / 2 % 2, n % 2, sums + warp * PASS_ROWS * DV, stats + warp * PASS_ROWS);
        block_barrier();
        if (slot > -2) write_rows<DTYPE, ROWS, DV>(a, item, pass * PASS_ROWS, sums, stats, slot);
        block_barrier();
    } while (++pass * PASS_ROWS < item.valid_rows);
}

/* ---- the kernel ---- */

/* Q of an item, 16-byte chunks of packed rows: chunk n of the tile; zeros where there is none. */
template <int DK> PTX_INLINE uint4 fetch_q(const decode_fwd_args &a, const decode_item &item, int n) {
    const int row = n / (DK / 8), chunk = n % (DK / 8), packed = item.rows.block_row + row,
              i = query_of(a, packed);
    if (i >= item.rows.q_len || chunk * 8 >= a.p.qk_dim) return make_uint4(0, 0, 0, 0);
    return *(const uint4 *)((const uint16_t *)a.t.q + chunk * 8 +
                            attn_q_offset(&item.rows.s, a.p.q_stride, i, head_of(a, item.rows, packed)));
}
template <int DK> PTX_INLINE void put_q(uint32_t q_smem, int n, uint4 x) {
    const uint32_t words[4] = { x.x, x.y, x.z, x.w };
    store_smem_16(q_smem + tile_offset<DK>(n / (DK / 8), n % (DK / 8)), words);
}
/* Chunks from the first-th of each thread on. */
template <int DK, int ROWS>
PTX_INLINE void load_q(const decode_fwd_args &a, const decode_item &item, uint32_t q_smem, int first) {
#pragma unroll 1
    for (int n = (int)threadIdx.x + first * (int)blockDim.x; n < ROWS * 16 * (DK / 8); n += (int)blockDim.x)
        put_q<DK>(q_smem, n, fetch_q<DK>(a, item, n));
}

/* A schedule for another shape: NaN everywhere rather than something that looks right. */
PTX_INLINE void write_nan(const decode_fwd_args &a) {
    const float nan = __int_as_float(0x7fffffff);
    for (int64_t b = 0; b < a.p.batch; b++) {
        const attn_sequence s = attn_sequence_at(&a.p, &a.t, b);
        const int64_t count = s.q_rows * a.p.q_heads * a.p.v_dim;
        for (int64_t n = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; n < count;
             n += (int64_t)gridDim.x * blockDim.x) {
            const int64_t i = n / (a.p.q_heads * a.p.v_dim), h = n / a.p.v_dim % a.p.q_heads,
                          d = n % a.p.v_dim;
            const int64_t to = attn_q_offset(&s, a.p.o_stride, i, h) + d;
            if (a.p.o_dtype == ATTN_F32) ((float *)a.t.o)[to] = nan;
            else ((uint16_t *)a.t.o)[to] = 0x7fff;
            if (d == 0 && a.t.lse) a.t.lse[attn_lse_offset(&a.p, &s, i, h)] = nan;
        }
    }
}

/* One step of a warp: 16 keys meet the tile's rows. */
template <int DTYPE, int DK, int DV, int ROWS, int IN_REGISTERS, int RICH>
PTX_INLINE void one_step(row_sums<ROWS, DV> &x, const uint32_t (&q)[IN_REGISTERS ? DK / 16 : 1][4],
                         uint32_t q_lane_smem, uint32_t k_smem, const decode_fwd_args &a,
                         const decode_item &item, int key) {
    const int lane = recompute((int)threadIdx.x) % 32;
    const uint32_t v_smem = k_smem + KEYS * DK * 2;
    float s[ROWS][KEYS / 8][4];
    scores<DTYPE, DK, ROWS, IN_REGISTERS>(s, q, q_lane_smem,
                                          k_smem + tile_offset<DK>(lane % 8 + lane / 16 * 8, lane / 8 % 2));
    const bool partial = key < item.full_low || key + KEYS > item.full_high;
    bool careful = false;
    if (RICH || __builtin_expect(partial, 0)) {
        mask_scores<DTYPE, ROWS, RICH>(s, a, item, key);
        const bool hides = key < item.full_low || min(key + KEYS, item.high) > item.full_high ||
                           (RICH && (a.p.has_mask || a.p.bias_dtype));
        careful = hides && has_nonfinite<DTYPE, DV>(v_smem);
    }
    raise_maxima<ROWS, DV>(x, s, a.scale_log2);
    if (__builtin_expect(careful, 0)) accumulate_seen<DTYPE, DV, ROWS>(x, s, a.scale_log2, k_smem, v_smem);
    else accumulate<DTYPE, DV, ROWS>(x, s, a.scale_log2, v_smem + tile_offset<DV>(lane % 16, lane / 16));
}

/* What a warp begins with: its block's stretch, the first keys asked for, a thread's first 16 bytes of Q. */
struct started { attn_decode_work work; feed f; uint4 q_chunk; };

/* Nothing that earlier kernels write says what to do (a block table without schedule: see the launch). Or it
 * does, but what it says by now will hardly change: then a block gets ready with that, and looks once more
 * when these kernels have ended. For all threads. */
template <int DK, int DV, int ROWS>
PTX_INLINE started start(const decode_fwd_args &a, decode_item *items, attn_decode_work &stretch,
                         uint32_t ring_smem) {
    const int warp = (int)threadIdx.x / 32;
    const bool early = !a.schedule && !a.p.has_kv_batch_index;
    started x;
    x.q_chunk = make_uint4(0, 0, 0, 0);
    if (!early && !a.guesses) wait_for_earlier_kernels();
#pragma unroll 1
    for (bool sure = !a.guesses;; sure = true) {
        if (warp == 0) open_stretch(stretch, items, a, ROWS * 16);
        block_barrier();
        x.work = stretch;
        const int index = x.work.first_item, known = min(x.work.last_item, index + 1);
        const bool any = index <= known;
        x.f = feed{ ring_smem, index - 1, 0, 0, 0, 0, 0, 0,
                    a.m_tiles > 1 ? cache_policy_normal() : cache_policy_once() };
        if (any) enter_item(x.f, a, items, warp * KEYS);
        if (early || !sure) {
            if (any) bring_first_steps(x.f, a, items[index % ITEMS], warp * KEYS);
            wait_for_earlier_kernels();
        }
        let_next_kernel_start();                /* it may read the schedule at once */
        /* The second look is asked for before Q, and Q before K and V: the larger would be in the way. */
        const int2 pages = make_int2(x.f.page, x.f.next_page);
        second_look now = {};
        if (!sure) now = look_again(a, x.work, items, known, warp * KEYS);
        if (any) {
            if ((int)threadIdx.x < ROWS * 16 * (DK / 8))
                x.q_chunk = fetch_q<DK>(a, items[index % ITEMS], (int)threadIdx.x);
#pragma unroll 1
            while (x.f.asked < a.stages && request<DK, DV>(x.f, a, items, known, warp * KEYS)) {}
        }
        if (sure || !block_any(has_changed(now, x.work, items, known, pages))) return x;
        copy_wait<0>();                         /* what was asked for is wrong */
        block_barrier();
    }
}

template <int DTYPE, int DK, int DV, int ROWS, int RICH>
PTX_INLINE void decode_fwd(const decode_fwd_args &a) {
    extern __shared__ __align__(1024) unsigned char smem[];
    __shared__ decode_item items[ITEMS];
    __shared__ attn_decode_work stretch;
    __shared__ float2 stats[DECODE_FWD_SM80_WARPS_MOST * PASS_ROWS];
    const int TILE_ROWS = ROWS * 16, IN_REGISTERS = ROWS == 1 && DK <= 128;
    const uint32_t stage_bytes = KEYS * (DK + DV) * 2;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    const uint32_t q_smem = smem_address(smem), q_lane_smem = q_smem + tile_offset<DK>(lane % 16, lane / 16);
    float *sums = (float *)(smem + TILE_ROWS * DK * 2);
    const uint32_t rings_smem = q_smem + TILE_ROWS * DK * 2 + (uint32_t)(warps * PASS_ROWS * DV * 4);

    started begun = start<DK, DV, ROWS>(a, items, stretch,
                                        rings_smem + (uint32_t)(warp * a.stages) * stage_bytes);
    const attn_decode_work work = begun.work;
    feed f = begun.f;
    if (work.last_item == FOREIGN) write_nan(a);
    if (work.first_item > work.last_item) return;
    int done = 0, slot = 0;                 /* steps of this warp; the stage that the next one is in */
    if ((int)threadIdx.x < ROWS * 16 * (DK / 8)) put_q<DK>(q_smem, (int)threadIdx.x, begun.q_chunk);
    load_q<DK, ROWS>(a, items[work.first_item % ITEMS], q_smem, 1);
    block_barrier();

#pragma unroll 1
    for (int index = work.first_item; index <= work.last_item; index++) {
        const decode_item &item = items[index % ITEMS];
        const int known = min(index + 1, work.last_item);
        /* Items without keys ask for nothing: their records may be gone by now. */
        f.index = max(f.index, index - 1);
        uint32_t q[IN_REGISTERS ? DK / 16 : 1][4];
        if (IN_REGISTERS)
#pragma unroll
            for (int d = 0; d < (IN_REGISTERS ? DK / 16 : 1); d++)
                load_matrix_x4(q[d], fragment(q_lane_smem, d));
        /* The item after the next, into the place of the one before;
         * the barriers of a part's end show it to all. */
        if (threadIdx.x == 0 && index + 2 <= work.last_item)
            open_item(items[(index + 2) % ITEMS], a, work, index + 2, TILE_ROWS);
        warp_barrier();

        int block = item.block, part = item.part;
#pragma unroll 1
        for (; block < item.last; part++) {
            const int end = min((block / item.length + 1) * item.length, item.last);
            const int end_step = min(end, item.end_step);
            row_sums<ROWS, DV> x;
            clear_sums(x);
#pragma unroll 1
            for (int step = max(block, item.first_step); step < end_step; step++, done++) {
                warp_barrier();             /* all lanes are done with the step before */
#pragma unroll 1
                while (f.asked - done < a.stages && request<DK, DV>(f, a, items, known, warp * KEYS)) {}
                wait_for_step(f.asked - done - 1);
                warp_barrier();             /* all lanes' copies have landed */
                one_step<DTYPE, DK, DV, ROWS, IN_REGISTERS, RICH>(
                    x, q, q_lane_smem, f.ring_smem + (uint32_t)slot * stage_bytes, a, item,
                    item.first_key + (step << a.block_shift) + warp * KEYS);
                slot = slot + 1 == a.stages ? 0 : slot + 1;
            }
            const int to = item.slots.parts < 2 ? -1
                         : part < item.slots.parts ? attn_decode_slot(item.slots, part) : -2;
            finish_part<DTYPE, ROWS, DV>(x, a, item, sums, stats, to);
            block = end;
        }
        if (index < work.last_item) {       /* all warps are done with this item's Q */
            load_q<DK, ROWS>(a, items[(index + 1) % ITEMS], q_smem, 0);
            block_barrier();
        }
    }
}

#define ENTRY(name, dtype, qk, v, rows, rich)                                                                \
    extern "C" __global__ void __launch_bounds__(DECODE_FWD_SM80_WARPS_MOST * 32, 1)                         \
        name(const __grid_constant__ decode_fwd_args a) {                                                    \
        decode_fwd<dtype, qk, v, rows, rich>(a);                                                             \
    }
#define RICH_0(...)
#define RICH_1(...) ENTRY(__VA_ARGS__)
#define TILE(qk, v, rows, rich)                                                                              \
    ENTRY(decode_fwd_sm80_bf16_##qk##_##v##_##rows, PTX_BF16, qk, v, rows, 0)                                \
    ENTRY(decode_fwd_sm80_f16_##qk##_##v##_##rows, PTX_F16, qk, v, rows, 0)                                  \
    RICH_##rich(decode_fwd_sm80_bf16_##qk##_##v##_rich, PTX_BF16, qk, v, rows, 1)                            \
    RICH_##rich(decode_fwd_sm80_f16_##qk##_##v##_rich, PTX_F16, qk, v, rows, 1)
DECODE_FWD_SM80_TILES(TILE)
