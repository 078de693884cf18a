/* flash_fwd_sm80.cu — FlashAttention-2 on mma.sync for f16 and bf16: O and LSE, tile by tile, from sm_80 on.
 * The idea: sums of Q K^T become the left factor of P V without leaving the registers; 16 keys of P are made
 * while the 16 before meet V; O is rescaled only when it must be. learn/flash_attention/flash_mma.cu */
#include "flash_fwd_sm80.h"
#include "flash_rows_sm80.h"
#include <float.h>

/* The running maximum m of a row is only raised when it has grown by more than 2^8 (in log2 units): p <= 256
 * stays exact enough in f16 and bf16, and almost no step needs to rescale O. Each row decides for itself. */
static constexpr float max_growth = 8;

PTX_INLINE row_steps load_steps(uint32_t from_smem) {
    uint32_t r[4];
    load_smem_16(r, from_smem);
    return row_steps{ (int)r[0], (int)r[1], (int)r[2], (int)r[3] };
}

/* ---- shared memory tiles: rows of DIM elements; 16-byte chunks are permuted so that 8 rows of a column of
 * chunks lie in 8 different bank groups ---- */

template <int DIM> PTX_INLINE uint32_t tile_offset(int row, int chunk) {
    const int mix = DIM % 64 == 0 ? row & 7 : row >> 1 & 3;
    return (uint32_t)(row * DIM * 2 + ((chunk ^ mix) << 4));
}
/* Address of 16-bit columns 16 * pair .. + 15 for a lane whose row and half `lane_smem` = tile_offset(row,
 * half) names. */
template <int DIM> PTX_INLINE uint32_t fragment(uint32_t lane_smem, int pair) {
    const int period = DIM % 64 == 0 ? 4 : 2;
    return (lane_smem ^ (uint32_t)(pair % period << 5)) + (uint32_t)(pair / period * period * 32);
}

/* Where this lane's rows of the fragments of K and of V begin in a tile: cheaper to find than to keep. */
template <int DIM> PTX_INLINE uint32_t k_lane(void) {
    const int lane = recompute((int)threadIdx.x) % 32;
    return tile_offset<DIM>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}
template <int DIM> PTX_INLINE uint32_t v_lane(void) {
    const int lane = recompute((int)threadIdx.x) % 32;
    return tile_offset<DIM>(lane % 16, lane / 16);
}

/* Rows 0 .. ROWS - 1 of a matrix; rows from `valid` on and columns from `dim` on become zeros. */
template <int DIM, int ROWS, int THREADS>
PTX_INLINE void load_tile(uint32_t tile_smem, const uint16_t *from, int64_t stride, int valid, int dim) {
    const int chunks = DIM / 8, total = ROWS * chunks, thread = recompute((int)threadIdx.x);
    if (THREADS % chunks == 0) {            /* a thread keeps its column of chunks */
        const int chunk = thread % chunks, row = thread / chunks, step = THREADS / chunks;
        const uint16_t *source = from + row * stride + chunk * 8;
#pragma unroll
        for (int n = 0; n < total / THREADS; n++, source += step * stride)
            copy_async_16(tile_smem + tile_offset<DIM>(row + n * step, chunk), source,
                          row + n * step < valid && chunk * 8 < dim ? 16 : 0);
    } else {
#pragma unroll
        for (int n = 0; n < (total + THREADS - 1) / THREADS; n++) {
            const int item = n * THREADS + thread, row = item / chunks, chunk = item % chunks;
            if (total % THREADS && item >= total) break;
            copy_async_16(tile_smem + tile_offset<DIM>(row, chunk), from + row * stride + chunk * 8,
                          row < valid && chunk * 8 < dim ? 16 : 0);
        }
    }
}

/* The same row by row, for K and V in pages and for rows that can't be copied 16 bytes at a time. A key whose
 * page id is out of range gets a K of NaN: the rows that see it become NaN. */
enum { LOAD_Q, LOAD_K, LOAD_V };

template <int DTYPE, int DIM, int ROWS, int THREADS>
PTX_INLINE void load_rows(const flash_fwd_args &a, const block_rows &rows, uint32_t tile_smem,
                          const uint16_t *from, attn_stride stride, int first, int end, int dim, int what) {
    const int chunks = DIM / 8, total = ROWS * chunks;
#pragma unroll 1
    for (int item = (int)threadIdx.x; item < total; item += THREADS) {
        const int i = first + item / chunks, chunk = item % chunks,
                  count = i < end ? min(8, dim - chunk * 8) : 0;
        const uint32_t to_smem = tile_smem + tile_offset<DIM>(item / chunks, chunk);
        const uint16_t *source = from;
        if (count > 0)
            source += chunk * 8 + (what == LOAD_Q ? attn_q_offset(&rows.s, stride, i, rows.h)
                                                  : attn_kv_offset(&a.p, &rows.s, stride, i, rows.kv_head));
        if (what == LOAD_K && count > 0 && !attn_page_valid(&a.p, &rows.s, i)) {
            const uint32_t nan[4] = { 0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu };
            store_smem_16(to_smem, nan);
        } else if (a.vector) {
            copy_async_16(to_smem, source, count > 0 ? 16 : 0);
        } else {
            uint32_t r[4];
#pragma unroll
            for (int n = 0; n < 4; n++)
                r[n] = (2 * n < count ? source[2 * n] : 0u) |
                       (2 * n + 1 < count ? source[2 * n + 1] : 0u) << 16;
            store_smem_16(to_smem, r);
        }
    }
}

/* Ask for K or V of a step; pointers_smem holds where the sequence's K and V begin. */
template <int DTYPE, int DIM, int KEYS, int THREADS, int RICH>
PTX_INLINE void request(const flash_fwd_args &a, const block_rows &rows, uint32_t tile_smem,
                        uint32_t pointers_smem, int step, int kv_len, int what) {
    const attn_stride stride = what == LOAD_K ? a.p.k_stride : a.p.v_stride;
    const int first = step * KEYS, dim = (int)(what == LOAD_K ? a.p.qk_dim : a.p.v_dim);
    uint32_t at[4];
    load_smem_16(at, pointers_smem);
    const uint64_t address = what == LOAD_K ? (uint64_t)at[1] << 32 | at[0] : (uint64_t)at[3] << 32 | at[2];
    const uint16_t *from = (const uint16_t *)address;
    if (RICH)
        load_rows<DTYPE, DIM, KEYS, THREADS>(a, rows, tile_smem, from, stride, first, kv_len, dim, what);
    else load_tile<DIM, KEYS, THREADS>(tile_smem, from + first * stride.seq, stride.seq, kv_len - first, dim);
}

/* ---- softmax ---- */

/* p = exp2(s * scale - m) of one 16 x 8 block, narrowed; l += p. */
template <int DTYPE>
PTX_INLINE void probabilities(uint32_t *p, float (&l)[2], const float (&s)[4], const float (&m)[2],
                              float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float a = exp2_approx(fmaf(s[2 * half], scale, -m[half]));
        const float b = exp2_approx(fmaf(s[2 * half + 1], scale, -m[half]));
        l[half] += a + b;
        p[half] = pack_halves<DTYPE>(a, b);
    }
}

/* This thread's share of the row maxima. */
template <int ROWS, int KEYS>
PTX_INLINE void tops(float (&top)[ROWS][2], const float (&s)[ROWS][KEYS / 8][4]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            top[r][half] = fmaxf(s[r][0][2 * half], s[r][0][2 * half + 1]);
#pragma unroll
            for (int n = 1; n < KEYS / 8; n++)
                top[r][half] = fmaxf(top[r][half], fmaxf(s[r][n][2 * half], s[r][n][2 * half + 1]));
        }
}

/* Some row's maximum grew: raise m of the rows where it grew by more than max_growth, and rescale them. */
template <int ROWS, int DV>
PTX_INLINE void rescale(float (&o)[ROWS][DV / 8][4], float (&l)[ROWS][2], float (&m)[ROWS][2],
                        float (&top)[ROWS][2], float scale) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float seen = quad_max(top[r][half]) * scale;
            const float raised = seen > m[r][half] + max_growth ? seen : m[r][half];
            const float factor = exp2_approx(m[r][half] - raised);
            m[r][half] = raised;
            l[r][half] *= factor;
#pragma unroll
            for (int n = 0; n < DV / 8; n++) o[r][n][2 * half] *= factor, o[r][n][2 * half + 1] *= factor;
        }
}

/* ---- the two products; fragments are requested one multiplication ahead ---- */

/* s = Q K^T. */
template <int DTYPE, int DK, int ROWS, int KEYS>
PTX_INLINE void scores(float (&s)[ROWS][KEYS / 8][4], uint32_t q_lane_smem, uint32_t k_lane_smem) {
    const int steps = DK / 16, columns = KEYS / 16;
    uint32_t a[2][ROWS][4], b[2][4];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        load_matrix_x4(a[0][r], q_lane_smem + r * 16 * DK * 2);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) s[r][n][0] = s[r][n][1] = s[r][n][2] = s[r][n][3] = 0;
    }
    load_matrix_x4(b[0], k_lane_smem);
#pragma unroll
    for (int d = 0; d < steps; d++)
#pragma unroll
        for (int n = 0; n < columns; n++) {
            const int now = (d * columns + n) % 2, next_d = n + 1 < columns ? d : d + 1,
                      next_n = (n + 1) % columns;
            if (next_d < steps)
                load_matrix_x4(b[1 - now], fragment<DK>(k_lane_smem, next_d) + next_n * 16 * DK * 2);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                if (n == 0 && d + 1 < steps)
                    load_matrix_x4(a[(d + 1) % 2][r], fragment<DK>(q_lane_smem, d + 1) + r * 16 * DK * 2);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                mma_16x8x16<DTYPE>(s[r][2 * n], a[d % 2][r], b[now][0], b[now][1]);
                mma_16x8x16<DTYPE>(s[r][2 * n + 1], a[d % 2][r], b[now][2], b[now][3]);
            }
        }
}

/* o += P V with P = exp2(s * scale - m), made 16 keys ahead of its use. */
template <int DTYPE, int DV, int ROWS, int KEYS>
PTX_INLINE void accumulate(float (&o)[ROWS][DV / 8][4], float (&l)[ROWS][2],
                           const float (&s)[ROWS][KEYS / 8][4], const float (&m)[ROWS][2], float scale,
                           uint32_t v_smem) {
    const int steps = KEYS / 16, columns = DV / 16, blocks = 2 * ROWS;
    uint32_t p[2][ROWS][4], b[2][4];
    load_matrix_x4_transposed(b[0], v_smem);
#pragma unroll
    for (int block = 0; block < blocks; block++)
        probabilities<DTYPE>(&p[0][block / 2][block % 2 * 2], l[block / 2], s[block / 2][block % 2],
                             m[block / 2], scale);
#pragma unroll
    for (int j = 0; j < steps; j++)
#pragma unroll
        for (int d = 0; d < columns; d++) {
            const int now = (j * columns + d) % 2, next_j = d + 1 < columns ? j : j + 1,
                      next_d = (d + 1) % columns;
            if (next_j < steps)
                load_matrix_x4_transposed(b[1 - now], fragment<DV>(v_smem, next_d) + next_j * 16 * DV * 2);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                mma_16x8x16<DTYPE>(o[r][2 * d], p[j % 2][r], b[now][0], b[now][1]);
                mma_16x8x16<DTYPE>(o[r][2 * d + 1], p[j % 2][r], b[now][2], b[now][3]);
            }
            if (j + 1 < steps)
#pragma unroll
                for (int block = d * blocks / columns; block < (d + 1) * blocks / columns; block++) {
                    const int r = block / 2, n = block % 2;
                    probabilities<DTYPE>(&p[(j + 1) % 2][r][n * 2], l[r], s[r][2 * (j + 1) + n], m[r], scale);
                }
        }
}

/* ---- options on scores (rich) and masks ---- */

template <int DTYPE, int ROWS, int KEYS, int RICH>
PTX_INLINE void mask_scores(float (&x)[ROWS][KEYS / 8][4], const flash_fwd_args &a, const block_rows &rows,
                            int first_key) {
    const int thread = recompute((int)threadIdx.x), lane = thread % 32;
    const int first_row = rows.block_row + thread / 32 * ROWS * 16;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int i = first_row + 16 * r + 8 * half + lane / 4;
            const int low = row_low(rows, i), high = i < rows.q_len ? row_high(rows, i) : 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int j = first_key + 8 * n + 2 * (lane % 4) + e;
                    float &y = x[r][n][2 * half + e];
                    if (j < low || j >= high || (RICH && !sees<RICH>(a, rows, i, j))) y = -INFINITY;
                    else if (RICH) y = rich_score<DTYPE>(a, rows, i, j, y);
                }
        }
}

/* ---- NaN and infinity in V. Where some row of the block doesn't see all keys of a step, p = 0 and 0 * NaN
 * would leak: such steps set the non-finite elements of their V tile to 0 first. If there were any,
 * add_nonfinite puts them into the finished rows that see them. ---- */

/* Clear the non-finite elements of a tile. @return 1 if this thread found one. */
template <int DTYPE, int DV, int KEYS, int THREADS> PTX_INLINE int clear_nonfinite(uint32_t tile_smem) {
    const uint32_t exponent = DTYPE == PTX_BF16 ? 0x7f80u : 0x7c00u;
    int found = 0;
#pragma unroll 1
    for (int n = recompute((int)threadIdx.x); n < KEYS * DV / 8; n += THREADS) {
        uint32_t r[4], keep = 0;
        load_smem_16(r, tile_smem + (uint32_t)n * 16);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const uint32_t low = (r[e] & exponent) == exponent ? 0 : 0xffffu;
            const uint32_t high = (r[e] >> 16 & exponent) == exponent ? 0 : 0xffff0000u;
            keep = low | high;
            found |= keep != 0xffffffffu;
            r[e] &= keep;
        }
        if (found) store_smem_16(tile_smem + (uint32_t)n * 16, r);
    }
    return found;
}

/* ---- the end: O / l and LSE ---- */

/* o = O of this lane's rows (0 where a row saw no key), and their LSE. */
template <int DV, int ROWS>
PTX_INLINE void divide(float (&o)[ROWS][DV / 8][4], const float (&l)[ROWS][2], const float (&m)[ROWS][2],
                       const flash_fwd_args &a, const block_rows &rows, int lane_row) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int i = lane_row + 16 * r + 8 * half;
            const float sum = i < rows.q_len ? quad_sum(l[r][half]) : quad_sum(0);
            const float sink = a.p.has_sinks ? exp2_approx(a.t.sinks[rows.h] * log2_e - m[r][half]) : 0;
            const float inverse = 1 / (sum + sink);
            if (a.t.lse && i < rows.q_rows && threadIdx.x % 4 == 0)
                a.t.lse[attn_lse_offset(&a.p, &rows.s, i, rows.h)] =
                    sum == 0 ? -INFINITY : m[r][half] * ln_2 + logf(sum);
#pragma unroll
            for (int n = 0; n < DV / 8; n++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++)
                    o[r][n][e] = sum == 0 ? 0 : o[r][n][e] * inverse;
        }
}

template <int DV, int ROWS>
PTX_INLINE void store_f32(const float (&o)[ROWS][DV / 8][4], const flash_fwd_args &a, const block_rows &rows,
                          int lane_row) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int i = lane_row + 16 * r + 8 * half;
            if (i >= rows.q_rows) continue;
            float *to = (float *)a.t.o + attn_q_offset(&rows.s, a.p.o_stride, i, rows.h);
#pragma unroll
            for (int n = 0; n < DV / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int d = 8 * n + 2 * ((int)threadIdx.x % 4) + e;
                    if (d < a.p.v_dim) to[d] = o[r][n][2 * half + e];
                }
        }
}

/* Through the warp's part of shared memory, so that it leaves in whole rows. */
template <int DTYPE, int DV, int ROWS, int RICH>
PTX_INLINE void store_halves(const float (&o)[ROWS][DV / 8][4], const flash_fwd_args &a,
                             const block_rows &rows, int first_row, uint32_t warp_smem) {
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < DV / 8; n++)
                store_smem_4(warp_smem + tile_offset<DV>(16 * r + 8 * half + lane / 4, n) + 4 * (lane % 4),
                             pack_halves<DTYPE>(o[r][n][2 * half], o[r][n][2 * half + 1]));
    warp_barrier();
#pragma unroll 4
    for (int item = lane; item < ROWS * 16 * DV / 8; item += 32) {
        const int row = item / (DV / 8), chunk = item % (DV / 8), count = min(8, (int)a.p.v_dim - chunk * 8);
        if (first_row + row >= rows.q_rows || count <= 0) continue;
        uint32_t r[4];
        load_smem_16(r, warp_smem + tile_offset<DV>(row, chunk));
        uint16_t *to =
            (uint16_t *)a.t.o + attn_q_offset(&rows.s, a.p.o_stride, first_row + row, rows.h) + chunk * 8;
        if (!RICH || a.vector) *(uint4 *)to = make_uint4(r[0], r[1], r[2], r[3]);
        else
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (e < count) to[e] = (uint16_t)(r[e / 2] >> 16 * (e % 2));
    }
}

template <int DTYPE, int DV, int ROWS, int RICH>
PTX_INLINE void store(float (&o)[ROWS][DV / 8][4], const float (&l)[ROWS][2], const float (&m)[ROWS][2],
                      const flash_fwd_args &a, const block_rows &rows, uint32_t o_smem, uint32_t warp_bytes) {
    const int thread = recompute((int)threadIdx.x), first_row = rows.block_row + thread / 32 * ROWS * 16;
    divide<DV, ROWS>(o, l, m, a, rows, first_row + thread % 32 / 4);
    if (a.p.o_dtype == ATTN_F32) store_f32<DV, ROWS>(o, a, rows, first_row + thread % 32 / 4);
    else store_halves<DTYPE, DV, ROWS, RICH>(o, a, rows, first_row, o_smem + thread / 32 * warp_bytes);
}

/* ---- the kernel ---- */

template <int DTYPE, int DK, int DV, int WARPS, int ROWS, int KEYS, int STAGES, int RICH>
PTX_INLINE void flash_fwd(const flash_fwd_args &a) {
    extern __shared__ __align__(1024) unsigned char smem[];
    __shared__ block_rows rows;
    __shared__ int v_nonfinite;
    const int threads = WARPS * 32, warp_height = ROWS * 16, block_height = WARPS * warp_height;
    const uint32_t k_bytes = KEYS * DK * 2, v_bytes = KEYS * DV * 2;
    const uint32_t q_smem = smem_address(smem), k_smem = q_smem + block_height * DK * 2;
    const uint32_t v_smem = k_smem + STAGES * k_bytes, steps_smem = v_smem + STAGES * v_bytes;
    const uint32_t pointers_smem = steps_smem + 16 * (1 + WARPS);

    if (threadIdx.x == 0) {
        rows = rows_of(a, block_height);
        v_nonfinite = 0;
    }
    block_barrier();
    const int block_row = rows.block_row;
    if (block_row >= rows.q_rows) return;

    /* What the loop looks up rather than keep in registers. */
    row_steps *steps = (row_steps *)(smem + steps_smem - q_smem); /* of the block, of each warp */
    const uint16_t **kv = (const uint16_t **)(smem + pointers_smem - q_smem);   /* where K and V begin */
    const int low = steps_of<KEYS>(rows, block_row, block_row + block_height - 1).low;
    if (threadIdx.x < WARPS) {
        const int first_row = block_row + (int)threadIdx.x * warp_height;
        steps[1 + threadIdx.x] = steps_of<KEYS>(rows, first_row, first_row + warp_height - 1);
    }
    if (threadIdx.x == 0) {
        const attn_stride ks = a.p.k_stride, vs = a.p.v_stride;
        steps[0] = steps_of<KEYS>(rows, block_row, block_row + block_height - 1);
        steps[0].low = rows.kv_len;                                             /* its low is known above */
        kv[0] = (const uint16_t *)a.t.k, kv[1] = (const uint16_t *)a.t.v;
        if (!RICH) {
            kv[0] += rows.s.kv_batch * ks.batch + rows.s.kv_first * ks.seq + rows.kv_head * ks.head;
            kv[1] += rows.s.kv_batch * vs.batch + rows.s.kv_first * vs.seq + rows.kv_head * vs.head;
        }
    }
    block_barrier();

    const uint16_t *q = (const uint16_t *)a.t.q;
    if (RICH)
        load_rows<DTYPE, DK, block_height, threads>(a, rows, q_smem, q, a.p.q_stride, block_row, rows.q_len,
                                                    (int)a.p.qk_dim, LOAD_Q);
    else
        load_tile<DK, block_height, threads>(q_smem,
                                             q + attn_q_offset(&rows.s, a.p.q_stride, block_row, rows.h),
                                             a.p.q_stride.seq, rows.q_len - block_row, (int)a.p.qk_dim);
    float o[ROWS][DV / 8][4], l[ROWS][2], m[ROWS][2];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        l[r][0] = l[r][1] = 0;
        m[r][0] = m[r][1] = -FLT_MAX;       /* finite, so that exp2(-inf - m) = 0 before the first key */
#pragma unroll
        for (int n = 0; n < DV / 8; n++) o[r][n][0] = o[r][n][1] = o[r][n][2] = o[r][n][3] = 0;
    }
    const uint32_t q_lane_smem = q_smem + threadIdx.x / 32 * warp_height * DK * 2 + v_lane<DK>();

    /* Two stages: K and V of step t + 1 are requested at the start of step t. One stage: V of step t is, and
     * K of t + 1 once all warps are done with K of t. The first pass, t = low - 1, only requests. */
    uint32_t slot = 0;
#pragma unroll 1
    for (int t = low - 1;; t++) {
        if (STAGES == 2) slot ^= 1;
        copy_wait<0>();
        block_barrier();
        const row_steps b = load_steps(steps_smem);
        const row_steps w = load_steps(steps_smem + 16 + recompute((int)threadIdx.x) / 32 * 16);
        if (t >= b.high) break;
        if (STAGES == 2 && t + 1 < b.high) {
            request<DTYPE, DK, KEYS, threads, RICH>(a, rows, k_smem + (slot ^ 1) * k_bytes, pointers_smem,
                                                    t + 1, b.low, LOAD_K);
            request<DTYPE, DV, KEYS, threads, RICH>(a, rows, v_smem + (slot ^ 1) * v_bytes, pointers_smem,
                                                    t + 1, b.low, LOAD_V);
        }
        if (STAGES == 1 && t >= low)
            request<DTYPE, DV, KEYS, threads, RICH>(a, rows, v_smem, pointers_smem, t, b.low, LOAD_V);
        copy_commit();                      /* Q belongs to the first group */
        const bool active = t >= max(w.low, low) && t < w.high,
                   partial = RICH || t < w.full_low || t >= w.full_high;
        const bool clear = t >= low && (t < b.full_low || t >= b.full_high || has_holes<RICH>(a));
        if (STAGES == 2 && __builtin_expect(clear, 0)) {
            if (clear_nonfinite<DTYPE, DV, KEYS, threads>(v_smem + slot * v_bytes)) v_nonfinite = 1;
            block_barrier();
        }
        if (STAGES == 2 && !active) continue;

        float s[ROWS][KEYS / 8][4];
        if (STAGES == 2 || active) {
            float top[ROWS][2];
            scores<DTYPE, DK, ROWS, KEYS>(s, q_lane_smem, k_smem + slot * k_bytes + k_lane<DK>());
            if (__builtin_expect(partial, RICH)) mask_scores<DTYPE, ROWS, KEYS, RICH>(s, a, rows, t * KEYS);
            tops<ROWS, KEYS>(top, s);
            int grown = 0;
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                grown |= top[r][0] * a.scale_log2 > m[r][0] + max_growth ||
                         top[r][1] * a.scale_log2 > m[r][1] + max_growth;
            if (__builtin_expect(warp_any(grown), 0)) rescale<ROWS, DV>(o, l, m, top, a.scale_log2);
        }
        if (STAGES == 1) {
            copy_wait<0>();
            block_barrier();
            if (t + 1 < b.high)
                request<DTYPE, DK, KEYS, threads, RICH>(a, rows, k_smem, pointers_smem, t + 1, b.low, LOAD_K);
            copy_commit();
            if (__builtin_expect(clear, 0)) {
                if (clear_nonfinite<DTYPE, DV, KEYS, threads>(v_smem)) v_nonfinite = 1;
                block_barrier();
            }
        }
        if (STAGES == 2 || active)
            accumulate<DTYPE, DV, ROWS, KEYS>(o, l, s, m, a.scale_log2,
                                              v_smem + slot * v_bytes + v_lane<DV>());
    }
    store<DTYPE, DV, ROWS, RICH>(o, l, m, a, rows, q_smem, warp_height * DK * 2);
    block_barrier();
    if (v_nonfinite) add_nonfinite<DTYPE, KEYS, RICH, threads>(a, rows, block_height);
}

#define ENTRY(name, dtype, rich, qk, v, warps, rows, keys, stages, blocks)                                   \
    extern "C" __global__ void __launch_bounds__(warps * 32, blocks)                                         \
        name(const __grid_constant__ flash_fwd_args a) {                                                     \
        flash_fwd<dtype, qk, v, warps, rows, keys, stages, rich>(a);                                         \
    }
#define TILE(qk, v, warps, rows, keys, stages, blocks, rich_warps, rich_rows, rich_keys, rich_blocks)        \
    ENTRY(flash_fwd_sm80_bf16_##qk##_##v, PTX_BF16, 0, qk, v, warps, rows, keys, stages, blocks)             \
    ENTRY(flash_fwd_sm80_f16_##qk##_##v, PTX_F16, 0, qk, v, warps, rows, keys, stages, blocks)               \
    ENTRY(flash_fwd_sm80_bf16_##qk##_##v##_rich, PTX_BF16, 1, qk, v, rich_warps, rich_rows, rich_keys, 2,    \
          rich_blocks)                                                                                       \
    ENTRY(flash_fwd_sm80_f16_##qk##_##v##_rich, PTX_F16, 1, qk, v, rich_warps, rich_rows, rich_keys, 2,      \
          rich_blocks)
FLASH_FWD_SM80_TILES(TILE)
