/* flash_rows_sm80.h — which rows a block computes, which keys they see, what options do to a score: shared by
 * the f16/bf16 and the f32 kernel. Positions (causal, window, lengths) are two offsets; the rest is looked
 * up. */
#ifndef ATTN_FLASH_ROWS_SM80_H
#define ATTN_FLASH_ROWS_SM80_H
#include "../sequence.h"
#include "flash_fwd_sm80.h"
#include "ptx_sm80.h"
#include <math.h>

static constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

/* What a block knows about its rows, in tokens. It lives in shared memory: registers are for the tiles. */
typedef struct block_rows {
    attn_sequence s;
    int64_t h, kv_head;
    float slope;
    int q_len, kv_len, q_rows;
    int block_row;
    int low_offset, high_offset; /* query i sees max(0, i + low_offset) <= j < min(kv_len, i + high_offset) */
} block_rows;
/* Steps that a warp or the block computes, low <= step < high, and those that all its rows see in full. */
typedef struct row_steps { int low, high, full_low, full_high; } row_steps;

PTX_INLINE int row_low(const block_rows &rows, int i) { return max(0, i + rows.low_offset); }
PTX_INLINE int row_high(const block_rows &rows, int i) { return min(rows.kv_len, i + rows.high_offset); }

PTX_INLINE int clamp_offset(int64_t x) {
    const int64_t limit = 1 << 30;
    return (int)(x < -limit ? -limit : x > limit ? limit : x);
}

/* Block blockIdx.x's rows: within a group of heads the longest first, so that the last blocks to run are
 * short. */
PTX_INLINE block_rows rows_of(const flash_fwd_args &a, int block_height) {
    const uint32_t group_blocks = a.group * a.row_blocks, group = blockIdx.x / group_blocks;
    const uint32_t within = blockIdx.x % group_blocks, size = min(a.group, a.heads - group * a.group);
    const uint32_t head = group * a.group + within % size, q_heads = (uint32_t)a.p.q_heads;
    block_rows rows;
    rows.s = attn_sequence_at(&a.p, &a.t, head / q_heads);
    rows.h = head % q_heads;
    rows.kv_head = head % q_heads / (q_heads / (uint32_t)a.p.kv_heads);
    rows.slope = a.p.alibi ? attn_slope(&a.p, &a.t, head / q_heads, rows.h) : 0;
    rows.block_row = (int)(a.row_blocks - 1 - within / size) * block_height;
    rows.q_len = (int)rows.s.q_len, rows.kv_len = (int)rows.s.kv_len, rows.q_rows = (int)rows.s.q_rows;
    const int64_t right = a.p.causal ? 0 : a.p.window_right;
    rows.high_offset = right < 0 ? 1 << 30 : clamp_offset(rows.s.shift + right + 1);
    rows.low_offset = a.p.window_left < 0 ? -(1 << 30) : clamp_offset(rows.s.shift - a.p.window_left);
    return rows;
}

/* Steps of KEYS keys for rows first .. last. */
template <int KEYS> PTX_INLINE row_steps steps_of(const block_rows &rows, int first, int last) {
    row_steps w;
    last = min(last, rows.q_len - 1);
    w.low = row_low(rows, first) / KEYS;
    w.high = last < first ? w.low : (row_high(rows, last) + KEYS - 1) / KEYS;
    if (w.high <= w.low) w.low = w.high = 0;
    w.full_low = (row_low(rows, last) + KEYS - 1) / KEYS;
    w.full_high = max(row_high(rows, first), 0) / KEYS;
    return w;
}

/* ---- elements ---- */

template <int DTYPE> PTX_INLINE float element(const void *x, int64_t i) {
    return DTYPE == PTX_F32 ? ((const float *)x)[i] : widen<DTYPE>(((const uint16_t *)x)[i]);
}

/* ---- masks and options ---- */

PTX_INLINE float bias_at(const flash_fwd_args &a, const block_rows &rows, int i, int j) {
    const int64_t offset = attn_score_offset(&rows.s, a.p.bias_stride, rows.h, i, j);
    if (a.p.bias_dtype == ATTN_F32) return ((const float *)a.t.bias)[offset];
    const uint16_t x = ((const uint16_t *)a.t.bias)[offset];
    return a.p.bias_dtype == ATTN_F16 ? widen<PTX_F16>(x) : widen<PTX_BF16>(x);
}

/* Keys may be hidden anywhere. */
template <int RICH> PTX_INLINE bool has_holes(const flash_fwd_args &a) {
    return RICH && (a.p.has_mask || a.p.bias_dtype);
}

template <int RICH>
PTX_INLINE bool sees(const flash_fwd_args &a, const block_rows &rows, int i, int j) {
    if (i >= rows.q_len || j < row_low(rows, i) || j >= row_high(rows, i)) return false;
    if (!RICH) return true;
    if (a.p.has_mask && !a.t.mask[attn_score_offset(&rows.s, a.p.mask_stride, rows.h, i, j)]) return false;
    return !a.p.bias_dtype || bias_at(a, rows, i, j) != -INFINITY;
}

/* Score in log2 units from q . k. */
template <int DTYPE>
PTX_INLINE float rich_score(const flash_fwd_args &a, const block_rows &rows, int i, int j, float dot) {
    float x = dot * a.p.scale;
    if (a.p.softcap > 0) {
        const float y = x / a.p.softcap;
        if (DTYPE == PTX_F32) x = a.p.softcap * tanhf(y);
        else
            x = isnan(x)
                    ? x
                    : a.p.softcap * (1 - 2 / (1 + exp2_approx(2 * log2_e * y))); /* tanh, absolute 2^-22 */
    }
    if (a.p.bias_dtype) x += bias_at(a, rows, i, j);
    if (a.p.alibi) x -= rows.slope * fabsf((float)(i + (int)rows.s.shift - j));
    return x * log2_e;
}

/* ---- NaN and infinity in V. Where some row of the block doesn't see all keys of a step, p = 0 and 0 * NaN
 * would leak: such steps clear the non-finite elements of their V tile first. If there were any,
 * add_nonfinite puts them into the finished rows that see them: O += v, over the keys of such steps. A thread
 * owns columns of O. ---- */

template <int DTYPE, int KEYS, int RICH, int THREADS>
PTX_INLINE void add_nonfinite(const flash_fwd_args &a, const block_rows &rows, int block_height) {
    const row_steps block = steps_of<KEYS>(rows, rows.block_row, rows.block_row + block_height - 1);
    const int last = min(rows.block_row + block_height, rows.q_len),
              end = min(block.high * KEYS, rows.kv_len);
#pragma unroll 1
    for (int i = rows.block_row; i < last; i++)
#pragma unroll 1
        for (int d = (int)threadIdx.x; d < a.p.v_dim; d += THREADS) {
            float sum = 0;
#pragma unroll 1
            for (int j = block.low * KEYS; j < end; j++) {
                const int step = j / KEYS;
                if (!has_holes<RICH>(a) && step >= block.full_low && step < block.full_high) continue;
                const int64_t at = attn_kv_offset(&a.p, &rows.s, a.p.v_stride, j, rows.kv_head) + d;
                const float v = element<DTYPE>(a.t.v, at);
                if (!isfinite(v) && sees<RICH>(a, rows, i, j)) sum += v;
            }
            if (isfinite(sum)) continue;
            const int64_t to = attn_q_offset(&rows.s, a.p.o_stride, i, rows.h) + d;
            if (DTYPE == PTX_F32 || a.p.o_dtype == ATTN_F32) ((float *)a.t.o)[to] += sum;
            else ((uint16_t *)a.t.o)[to] = (uint16_t)pack_halves<DTYPE>(element<DTYPE>(a.t.o, to) + sum, 0);
        }
}
#endif
