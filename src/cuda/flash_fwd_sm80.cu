/* flash_fwd_sm80.cu — FlashAttention-2 on mma.sync for f16 and bf16: O and LSE, tile by tile, for sm_80 and later.
 * The idea: a warp multiplies Q by the next step's K while the special function unit makes the probabilities of this
 * step, and finds the next maximum while it multiplies P by V. Lesson: learn/flash_attention/flash_mma.cu. */
#include "flash_fwd_sm80.h"
#include "ptx_sm80.h"
#include "sequence.h"
#include <float.h>
#include <math.h>

/* The running maximum m of a row is only raised when it has grown by more than 2^8 (in log2 units): p <= 256 stays
 * exact enough in f16 and bf16, and almost no step needs to rescale O. Each row decides for itself. */
static constexpr float max_growth = 8;
static constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

/* What a block knows about its rows, in tokens. It lives in shared memory: registers are for the tiles. */
typedef struct block_rows {
    attn_sequence s;
    int64_t h;
    float slope;
    int q_len, kv_len, q_rows;
    int low_offset, high_offset;    /* query i sees max(0, i + low_offset) <= j < min(kv_len, i + high_offset) */
} block_rows;
/* Steps that a warp computes, and those that all its rows see in full: low <= step < high. */
typedef struct warp_steps { int low, high, full_low, full_high; } warp_steps;

PTX_INLINE int row_low(const block_rows &rows, int i) { return max(0, i + rows.low_offset); }
PTX_INLINE int row_high(const block_rows &rows, int i) { return min(rows.kv_len, i + rows.high_offset); }

PTX_INLINE int clamp_offset(int64_t x) {
    const int64_t limit = 1 << 30;
    return (int)(x < -limit ? -limit : x > limit ? limit : x);
}

PTX_INLINE block_rows rows_of(const attn_problem &p, const attn_tensors &t, int64_t b, int64_t h) {
    block_rows rows;
    rows.s = attn_sequence_at(&p, &t, b);
    rows.h = h;
    rows.slope = p.alibi ? attn_slope(&p, &t, b, h) : 0;
    rows.q_len = (int)rows.s.q_len, rows.kv_len = (int)rows.s.kv_len, rows.q_rows = (int)rows.s.q_rows;
    const int64_t right = p.causal ? 0 : p.window_right;
    rows.high_offset = right < 0 ? 1 << 30 : clamp_offset(rows.s.shift + right + 1);
    rows.low_offset = p.window_left < 0 ? -(1 << 30) : clamp_offset(rows.s.shift - p.window_left);
    return rows;
}

/* Steps of KEYS keys for rows first .. last. */
template <int KEYS> PTX_INLINE warp_steps steps_of(const block_rows &rows, int first, int last) {
    warp_steps w;
    last = min(last, rows.q_len - 1);
    w.low = row_low(rows, first) / KEYS;
    w.high = last < first ? w.low : (row_high(rows, last) + KEYS - 1) / KEYS;
    if (w.high <= w.low) w.low = w.high = 0;
    w.full_low = (row_low(rows, last) + KEYS - 1) / KEYS;
    w.full_high = max(row_high(rows, first), 0) / KEYS;
    return w;
}

/* ---- shared memory tiles: rows of DIM elements; 16-byte chunks are permuted so that 8 rows of a column of chunks lie
 * in 8 different bank groups ---- */

template <int DIM> PTX_INLINE uint32_t tile_offset(int row, int chunk) {
    const int mix = DIM % 64 == 0 ? row & 7 : row >> 1 & 3;
    return (uint32_t)(row * DIM * 2 + ((chunk ^ mix) << 4));
}
/* Address of 16-bit columns 16 * pair .. + 15 for a lane whose row and half `lane_smem` = tile_offset(row, half) names. */
template <int DIM> PTX_INLINE uint32_t fragment(uint32_t lane_smem, int pair) {
    const int period = DIM % 64 == 0 ? 4 : 2;
    return (lane_smem ^ (uint32_t)(pair % period << 5)) + (uint32_t)(pair / period * period * 32);
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

/* The same for keys first .. first + ROWS - 1 of K or V when their rows lie in pages or can't be copied 16 bytes at a
 * time. (Q goes through it too, as one page: paged = 0.) */
template <int DIM, int ROWS, int THREADS>
PTX_INLINE void load_rows(const flash_fwd_args &a, const block_rows &rows, uint32_t tile_smem, const uint16_t *from,
                          attn_stride stride, int64_t head, int first, int end, int dim, int is_q) {
    const int chunks = DIM / 8, total = ROWS * chunks;
#pragma unroll 1
    for (int item = (int)threadIdx.x; item < total; item += THREADS) {
        const int row = item / chunks, chunk = item % chunks;
        const int count = first + row < end ? min(8, dim - chunk * 8) : 0;
        const uint32_t to_smem = tile_smem + tile_offset<DIM>(row, chunk);
        const uint16_t *source = from;
        if (count > 0)
            source += chunk * 8 + (is_q ? attn_q_offset(&rows.s, stride, first + row, head)
                                        : attn_kv_offset(&a.p, &rows.s, stride, first + row, head));
        if (a.vector) {
            copy_async_16(to_smem, source, count > 0 ? 16 : 0);
        } else {
            uint32_t r[4];
#pragma unroll
            for (int n = 0; n < 4; n++)
                r[n] = (2 * n < count ? source[2 * n] : 0u) | (2 * n + 1 < count ? source[2 * n + 1] : 0u) << 16;
            store_smem_16(to_smem, r);
        }
    }
}

/* ---- softmax ---- */

/* p = exp2(s * scale - m) of one 16 x 8 block, narrowed; l += p. */
template <int DTYPE>
PTX_INLINE void probabilities(uint32_t (&p)[2], float (&l)[2], const float (&s)[4], const float (&m)[2], float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float a = exp2_approx(fmaf(s[2 * half], scale, -m[half]));
        const float b = exp2_approx(fmaf(s[2 * half + 1], scale, -m[half]));
        l[half] += a + b;
        p[half] = pack_halves<DTYPE>(a, b);
    }
}

PTX_INLINE void raise_top(float (&top)[2], const float (&s)[4]) {
    top[0] = fmaxf(top[0], fmaxf(s[0], s[1]));
    top[1] = fmaxf(top[1], fmaxf(s[2], s[3]));
}

template <int ROWS, int KEYS> PTX_INLINE void tops(float (&top)[ROWS][2], const float (&s)[ROWS][KEYS / 8][4]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) raise_top(top[r], s[r][n]);
}

/* The last step's p and l, without a next step; s_next becomes "no keys". */
template <int DTYPE, int ROWS, int KEYS>
PTX_INLINE void softmax_only(float (&s_next)[ROWS][KEYS / 8][4], uint32_t (&p)[ROWS][KEYS / 8][2], float (&l)[ROWS][2],
                             const float (&s)[ROWS][KEYS / 8][4], const float (&m)[ROWS][2], float scale) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            probabilities<DTYPE>(p[r][n], l[r], s[r][n], m[r], scale);
            s_next[r][n][0] = s_next[r][n][1] = s_next[r][n][2] = s_next[r][n][3] = -INFINITY;
        }
}

/* Some row's maximum grew: raise m of the rows where it grew by more than max_growth, and rescale them. */
template <int ROWS, int DV>
PTX_INLINE void rescale(float (&o)[ROWS][DV / 8][4], float (&l)[ROWS][2], float (&m)[ROWS][2], float (&top)[ROWS][2],
                        float scale) {
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

/* ---- the two products ---- */

/* s_next = Q K^T of the next step, and beside it p, l from the scores s of this one. */
template <int DTYPE, int DK, int ROWS, int KEYS, int Q_REG>
PTX_INLINE void scores(float (&s_next)[ROWS][KEYS / 8][4], const uint32_t (&q_reg)[ROWS][Q_REG ? DK / 16 : 1][4],
                       uint32_t q_smem, uint32_t k_smem, uint32_t (&p)[ROWS][KEYS / 8][2], float (&l)[ROWS][2],
                       const float (&s)[ROWS][KEYS / 8][4], const float (&m)[ROWS][2], float scale) {
    const int blocks = ROWS * KEYS / 8, steps = DK / 16;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s_next[r][n][e] = 0;
#pragma unroll
    for (int d = 0; d < steps; d++) {
        uint32_t a[ROWS][4];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (Q_REG)
#pragma unroll
                for (int e = 0; e < 4; e++) a[r][e] = q_reg[r][Q_REG ? d : 0][e];
            else load_matrix_x4(a[r], fragment<DK>(q_smem, d) + r * 16 * DK * 2);
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t b[4];
            load_matrix_x4(b, fragment<DK>(k_smem, d) + n * 16 * DK * 2);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                mma_16x8x16<DTYPE>(s_next[r][2 * n], a[r], b[0], b[1]);
                mma_16x8x16<DTYPE>(s_next[r][2 * n + 1], a[r], b[2], b[3]);
            }
        }
#pragma unroll
        for (int block = d * blocks / steps; block < (d + 1) * blocks / steps; block++) {
            const int r = block % ROWS, n = block / ROWS;
            probabilities<DTYPE>(p[r][n], l[r], s[r][n], m[r], scale);
        }
    }
}

/* o += P V, and beside it the row maxima of the next scores. */
template <int DTYPE, int DV, int ROWS, int KEYS>
PTX_INLINE void accumulate(float (&o)[ROWS][DV / 8][4], const uint32_t (&p)[ROWS][KEYS / 8][2], uint32_t v_smem,
                           float (&top)[ROWS][2], const float (&s_next)[ROWS][KEYS / 8][4]) {
    const int blocks = ROWS * KEYS / 8, steps = KEYS / 16 * (DV / 16);
#pragma unroll
    for (int step = 0; step < steps; step++) {
        const int j = step / (DV / 16), d = step % (DV / 16);
        uint32_t b[4];
        load_matrix_x4_transposed(b, fragment<DV>(v_smem, d) + j * 16 * DV * 2);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const uint32_t a[4] = { p[r][2 * j][0], p[r][2 * j][1], p[r][2 * j + 1][0], p[r][2 * j + 1][1] };
            mma_16x8x16<DTYPE>(o[r][2 * d], a, b[0], b[1]);
            mma_16x8x16<DTYPE>(o[r][2 * d + 1], a, b[2], b[3]);
        }
#pragma unroll
        for (int block = step * blocks / steps; block < (step + 1) * blocks / steps; block++)
            raise_top(top[block % ROWS], s_next[block % ROWS][block / ROWS]);
    }
}

/* ---- options on scores (rich) and masks ---- */

/* Which key a query sees, beyond causal and window: the boolean mask, and a bias of -inf. */
PTX_INLINE float bias_at(const flash_fwd_args &a, const block_rows &rows, int i, int j) {
    const int64_t offset = attn_score_offset(&rows.s, a.p.bias_stride, rows.h, i, j);
    if (a.p.bias_dtype == ATTN_F32) return ((const float *)a.t.bias)[offset];
    const uint16_t x = ((const uint16_t *)a.t.bias)[offset];
    return a.p.bias_dtype == ATTN_F16 ? widen<PTX_F16>(x) : widen<PTX_BF16>(x);
}

template <int RICH>
PTX_INLINE bool sees(const flash_fwd_args &a, const block_rows &rows, int i, int j) {
    if (i >= rows.q_len || j < row_low(rows, i) || j >= row_high(rows, i)) return false;
    if (!RICH) return true;
    if (a.p.has_mask && !a.t.mask[attn_score_offset(&rows.s, a.p.mask_stride, rows.h, i, j)]) return false;
    return !a.p.bias_dtype || bias_at(a, rows, i, j) != -INFINITY;
}

/* Score in log2 units from q . k. */
PTX_INLINE float rich_score(const flash_fwd_args &a, const block_rows &rows, int i, int j,
                            float dot) {
    float x = dot * a.p.scale;
    if (a.p.softcap > 0) {      /* tanh(y) = 1 - 2 / (1 + e^2y) */
        const float e = exp2_approx(2 * log2_e * x / a.p.softcap);
        x = isnan(x) ? x : a.p.softcap * (1 - 2 / (1 + e));
    }
    if (a.p.bias_dtype) x += bias_at(a, rows, i, j);
    if (a.p.alibi) x -= rows.slope * fabsf((float)(i + (int)rows.s.shift - j));
    return x * log2_e;
}

template <int ROWS, int KEYS, int RICH>
PTX_INLINE void mask_scores(float (&x)[ROWS][KEYS / 8][4], const flash_fwd_args &a, const block_rows &rows, int first_row, int first_key) {
    const int lane = (int)threadIdx.x % 32;
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
                    else if (RICH) y = rich_score(a, rows, i, j, y);
                }
        }
}

/* ---- NaN and infinity in V. Where some row of the block doesn't see all keys of a step, p = 0 and 0 * NaN would leak:
 * such steps set the non-finite elements of their V tile to 0 first. If there were any, add_nonfinite puts them into
 * the finished rows that see them. ---- */

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

template <int DTYPE> PTX_INLINE float o_at(const flash_fwd_args &a, int64_t offset) {
    return a.p.o_dtype == ATTN_F32 ? ((const float *)a.t.o)[offset] : widen<DTYPE>(((const uint16_t *)a.t.o)[offset]);
}

/* O += every non-finite V that a row sees, over the keys of partial steps. A thread owns a column of some rows. */
template <int DTYPE, int KEYS, int RICH, int THREADS>
PTX_INLINE void add_nonfinite(const flash_fwd_args &a, const block_rows &rows, const warp_steps &block, int block_row,
                              int block_height, bool holes) {
    const int64_t kv_head = rows.h / (a.p.q_heads / a.p.kv_heads);
#pragma unroll 1
    for (int i = block_row; i < min(block_row + block_height, rows.q_len); i++)
#pragma unroll 1
        for (int d = (int)threadIdx.x; d < a.p.v_dim; d += THREADS) {
            float sum = 0;
            const int end = min(block.high * KEYS, rows.kv_len);
#pragma unroll 1
            for (int j = block.low * KEYS; j < end; j++) {
                const int step = j / KEYS;
                if (!holes && step >= block.full_low && step < block.full_high) continue;
                const uint16_t x = ((const uint16_t *)a.t.v)[attn_kv_offset(&a.p, &rows.s, a.p.v_stride, j, kv_head) + d];
                if (!isfinite(widen<DTYPE>(x)) && sees<RICH>(a, rows, i, j)) sum += widen<DTYPE>(x);
            }
            if (isfinite(sum)) continue;
            const int64_t to = attn_q_offset(&rows.s, a.p.o_stride, i, rows.h) + d;
            sum += o_at<DTYPE>(a, to);
            if (a.p.o_dtype == ATTN_F32) ((float *)a.t.o)[to] = sum;
            else ((uint16_t *)a.t.o)[to] = (uint16_t)pack_halves<DTYPE>(sum, 0);
        }
}

/* ---- the end: O / l and LSE ---- */

template <int DTYPE, int DV, int ROWS, int RICH>
PTX_INLINE void store(float (&o)[ROWS][DV / 8][4], float (&l)[ROWS][2], const float (&m)[ROWS][2],
                      const flash_fwd_args &a, const block_rows &rows, int first_row, uint32_t warp_smem) {
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = 16 * r + 8 * half + lane / 4, i = first_row + row;
            const float sum = i < rows.q_len ? quad_sum(l[r][half]) : quad_sum(0);
            const float sink = a.p.has_sinks ? exp2_approx(a.t.sinks[rows.h] * log2_e - m[r][half]) : 0;
            const float inverse = 1 / (sum + sink);
            if (a.t.lse && i < rows.q_rows && lane % 4 == 0)
                a.t.lse[attn_lse_offset(&a.p, &rows.s, i, rows.h)] = sum == 0 ? -INFINITY : m[r][half] * ln_2 + logf(sum);
#pragma unroll
            for (int n = 0; n < DV / 8; n++) {
                const float x = sum == 0 ? 0 : o[r][n][2 * half] * inverse;
                const float y = sum == 0 ? 0 : o[r][n][2 * half + 1] * inverse;
                if (a.p.o_dtype == ATTN_F32) {
                    const int d = 8 * n + 2 * (lane % 4);
                    float *to = (float *)a.t.o + attn_q_offset(&rows.s, a.p.o_stride, i, rows.h) + d;
                    if (i < rows.q_rows && d < a.p.v_dim) to[0] = x;
                    if (i < rows.q_rows && d + 1 < a.p.v_dim) to[1] = y;
                } else {
                    store_smem_4(warp_smem + tile_offset<DV>(row, n) + 4 * (lane % 4), pack_halves<DTYPE>(x, y));
                }
            }
        }
    if (a.p.o_dtype == ATTN_F32) return;
    warp_barrier();
#pragma unroll 4
    for (int item = lane; item < ROWS * 16 * DV / 8; item += 32) {
        const int row = item / (DV / 8), chunk = item % (DV / 8), count = min(8, (int)a.p.v_dim - chunk * 8);
        if (first_row + row >= rows.q_rows || count <= 0) continue;
        uint32_t r[4];
        load_smem_16(r, warp_smem + tile_offset<DV>(row, chunk));
        uint16_t *to = (uint16_t *)a.t.o + attn_q_offset(&rows.s, a.p.o_stride, first_row + row, rows.h) + chunk * 8;
        if (!RICH || a.vector) *(uint4 *)to = make_uint4(r[0], r[1], r[2], r[3]);
        else
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (e < count) to[e] = (uint16_t)(r[e / 2] >> 16 * (e % 2));
    }
}

/* ---- the kernel ---- */

template <int DTYPE, int DK, int DV, int WARPS, int ROWS, int KEYS, int STAGES, int Q_REG, int RICH>
PTX_INLINE void flash_fwd(const flash_fwd_args &a) {
    extern __shared__ __align__(1024) unsigned char smem[];
    __shared__ block_rows rows;
    __shared__ int v_nonfinite;
    __shared__ __align__(16) warp_steps steps_of_warp[WARPS];
    const int threads = WARPS * 32, warp_height = ROWS * 16, block_height = WARPS * warp_height;
    const uint32_t k_bytes = KEYS * DK * 2, v_bytes = KEYS * DV * 2;
    const uint32_t q_smem = smem_address(smem), k_smem = q_smem + block_height * DK * 2;
    const uint32_t v_smem = k_smem + STAGES * k_bytes;

    /* Which rows: longest first within a group of heads. */
    const uint32_t group_blocks = a.group * a.row_blocks, group = blockIdx.x / group_blocks;
    const uint32_t within = blockIdx.x % group_blocks, group_size = min(a.group, a.heads - group * a.group);
    const uint32_t head = group * a.group + within % group_size;
    const int block_row = (int)(a.row_blocks - 1 - within / group_size) * block_height;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, first_row = block_row + warp * warp_height;
    if (threadIdx.x == 0) v_nonfinite = 0, rows = rows_of(a.p, a.t, head / (uint32_t)a.p.q_heads, head % (uint32_t)a.p.q_heads);
    block_barrier();
    if (block_row >= rows.q_rows) return;
    if (lane == 0) steps_of_warp[warp] = steps_of<KEYS>(rows, first_row, first_row + warp_height - 1);
    const bool holes = RICH && (a.p.has_mask || a.p.bias_dtype);    /* keys may be hidden anywhere */
    const warp_steps block = steps_of<KEYS>(rows, block_row, block_row + block_height - 1);

    const uint16_t *k = (const uint16_t *)a.t.k, *v = (const uint16_t *)a.t.v, *q = (const uint16_t *)a.t.q;
    const int64_t kv_head = rows.h / (a.p.q_heads / a.p.kv_heads);
    if (RICH) {
        load_rows<DK, block_height, threads>(a, rows, q_smem, q, a.p.q_stride, rows.h, block_row, rows.q_len,
                                             (int)a.p.qk_dim, 1);
    } else {
        k += rows.s.kv_batch * a.p.k_stride.batch + rows.s.kv_first * a.p.k_stride.seq + kv_head * a.p.k_stride.head;
        v += rows.s.kv_batch * a.p.v_stride.batch + rows.s.kv_first * a.p.v_stride.seq + kv_head * a.p.v_stride.head;
        q += attn_q_offset(&rows.s, a.p.q_stride, block_row, rows.h);
        load_tile<DK, block_height, threads>(q_smem, q, a.p.q_stride.seq, rows.q_len - block_row, (int)a.p.qk_dim);
    }
#define LOAD(matrix, DIM, dim, step, slot) do { \
        const int first_ = (step) * KEYS; \
        const uint32_t tile_ = matrix##_smem + (slot) * matrix##_bytes; \
        if (RICH) \
            load_rows<DIM, KEYS, threads>(a, rows, tile_, matrix, a.p.matrix##_stride, \
                                          rows.h / (a.p.q_heads / a.p.kv_heads), first_, rows.kv_len, (int)a.p.dim, 0); \
        else \
            load_tile<DIM, KEYS, threads>(tile_, matrix + first_ * a.p.matrix##_stride.seq, a.p.matrix##_stride.seq, \
                                          rows.kv_len - first_, (int)a.p.dim); \
    } while (0)

    /* In the pass for step t, K of t + 1 and V of t are used, K of t + STAGES and V of t + STAGES - 1 are requested.
     * The first pass, t = low - 1, only makes scores. Step t lives in slot (t - low + 1) % STAGES. */
#pragma unroll
    for (int n = 0; n < STAGES - 1; n++) {
        if (block.low + n < block.high) LOAD(k, DK, qk_dim, block.low + n, n + 1);
        if (n && block.low + n - 1 < block.high) LOAD(v, DV, v_dim, block.low + n - 1, n);
        copy_commit();
    }
    const uint32_t q_lane = q_smem + tile_offset<DK>(warp * warp_height + lane % 16, lane / 16);
    const uint32_t k_lane = k_smem + tile_offset<DK>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    const uint32_t v_lane = v_smem + tile_offset<DV>(lane % 16, lane / 16);
    uint32_t q_reg[ROWS][Q_REG ? DK / 16 : 1][4];
    if (Q_REG) {
        copy_wait<STAGES - 2>();
        block_barrier();
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int d = 0; d < (Q_REG ? DK / 16 : 1); d++)
                load_matrix_x4(q_reg[r][d], fragment<DK>(q_lane, d) + r * 16 * DK * 2);
    }

    float o[ROWS][DV / 8][4], s_now[ROWS][KEYS / 8][4], l[ROWS][2], m[ROWS][2];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        l[r][0] = l[r][1] = 0;
        m[r][0] = m[r][1] = -FLT_MAX;       /* finite, so that exp2(-inf - m) = 0 before the first key */
#pragma unroll
        for (int n = 0; n < DV / 8; n++) o[r][n][0] = o[r][n][1] = o[r][n][2] = o[r][n][3] = 0;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            s_now[r][n][0] = s_now[r][n][1] = s_now[r][n][2] = s_now[r][n][3] = -INFINITY;
    }

    uint32_t slot = 0;
#pragma unroll 1
    for (int t = block.low - 1; t < block.high; t++) {
        const uint32_t next_slot = slot + 1 == STAGES ? 0 : slot + 1, last_slot = slot ? slot - 1 : STAGES - 1;
        copy_wait<STAGES - 2>();
        block_barrier();
        if (t + STAGES < block.high) LOAD(k, DK, qk_dim, t + STAGES, slot);
        if (t + STAGES - 1 < block.high) LOAD(v, DV, v_dim, t + STAGES - 1, last_slot);
        copy_commit();

        if (t >= block.low && (t < block.full_low || t >= block.full_high || holes)) {
            if (clear_nonfinite<DTYPE, DV, KEYS, threads>(v_smem + slot * v_bytes)) v_nonfinite = 1;
            block_barrier();
        }

        uint32_t w[4], p[ROWS][KEYS / 8][2];                                /* w: low, high, full_low, full_high */
        load_smem_16(w, smem_address(&steps_of_warp[warp]));
        const bool now = t >= (int)w[0] && t < (int)w[1], next = t + 1 >= (int)w[0] && t + 1 < (int)w[1];
        const bool next_partial = t + 1 < (int)w[2] || t + 1 >= (int)w[3] || RICH;
        float s_next[ROWS][KEYS / 8][4], top[ROWS][2];
        if (next) {
            scores<DTYPE, DK, ROWS, KEYS, Q_REG>(s_next, q_reg, q_lane, k_lane + next_slot * k_bytes, p, l, s_now, m,
                                                 a.scale_log2);
            if (next_partial) mask_scores<ROWS, KEYS, RICH>(s_next, a, rows, first_row, (t + 1) * KEYS);
        } else {
            softmax_only<DTYPE, ROWS, KEYS>(s_next, p, l, s_now, m, a.scale_log2);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) top[r][0] = top[r][1] = -INFINITY;
        if (now) accumulate<DTYPE, DV, ROWS, KEYS>(o, p, v_lane + slot * v_bytes, top, s_next);
        else tops<ROWS, KEYS>(top, s_next);
        int grown = 0;
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            grown |= top[r][0] * a.scale_log2 > m[r][0] + max_growth || top[r][1] * a.scale_log2 > m[r][1] + max_growth;
        if (warp_any(grown)) rescale<ROWS, DV>(o, l, m, top, a.scale_log2);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) s_now[r][n][e] = s_next[r][n][e];
        slot = next_slot;
    }
#undef LOAD
    copy_wait<0>();
    store<DTYPE, DV, ROWS, RICH>(o, l, m, a, rows, first_row, q_smem + warp * warp_height * DK * 2);
    block_barrier();
    if (v_nonfinite) add_nonfinite<DTYPE, KEYS, RICH, threads>(a, rows, block, block_row, block_height, holes);
}

#define ENTRY(name, dtype, rich, qk, v, warps, rows, keys, stages, q_reg, blocks) \
    extern "C" __global__ void __launch_bounds__(warps * 32, blocks) \
    name(const __grid_constant__ flash_fwd_args a) { \
        flash_fwd<dtype, qk, v, warps, rows, keys, stages, q_reg, rich>(a); \
    }
#define TILE(qk, v, warps, rows, keys, stages, q_reg, blocks) \
    ENTRY(flash_fwd_sm80_bf16_##qk##_##v, PTX_BF16, 0, qk, v, warps, rows, keys, stages, q_reg, blocks) \
    ENTRY(flash_fwd_sm80_f16_##qk##_##v, PTX_F16, 0, qk, v, warps, rows, keys, stages, q_reg, blocks) \
    ENTRY(flash_fwd_sm80_rich_bf16_##qk##_##v, PTX_BF16, 1, qk, v, warps, rows, keys, stages, 0, blocks) \
    ENTRY(flash_fwd_sm80_rich_f16_##qk##_##v, PTX_F16, 1, qk, v, warps, rows, keys, stages, 0, blocks)
FLASH_FWD_SM80_TILES(TILE)
