/* flash_fwd_f32_sm80.cu — flash attention in f32 on the CUDA cores: O and LSE, every option, for sm_80 and
 * later. The idea: a thread owns ROWS x KEYS scores and ROWS x v/16 outputs in registers, so that one 16-byte
 * load from shared memory feeds 10 to 16 multiply-adds. Lesson: learn/flash_attention/flash_v2.cu. */
#include "flash_rows_sm80.h"
#include <float.h>

/* Threads of a half warp (16) own the same rows: row r of half h of warp w is 2 * ROWS * w + 2 * r + h, and
 * key c of lane x is x + 16 * c. Tile rows are padded by 16 bytes, so that neighbouring rows lie in different
 * bank groups. */
enum { WARPS = 8, THREADS = 32 * WARPS };

template <int DIM> PTX_INLINE constexpr int pitch() { return DIM + 4; }     /* floats */

/* Rows first .. first + ROWS - 1 of Q, K or V; rows from `end` on and columns from `dim` on become zeros. A
 * key whose page id is out of range gets a K of NaN: the rows that see it become NaN. */
enum { LOAD_Q, LOAD_K, LOAD_V };

template <int DIM, int ROWS>
PTX_INLINE void load_tile(const flash_fwd_args &a, const block_rows &rows, float *tile, const void *base,
                          attn_stride stride, int first, int end, int dim, int what) {
    const int64_t kv_head = rows.kv_head;
    if (a.vector && !rows.s.pages) {        /* rows a stride apart */
        const float *start =
            (const float *)base + (what == LOAD_Q ? attn_q_offset(&rows.s, stride, first, rows.h)
                                                  : attn_kv_offset(&a.p, &rows.s, stride, first, kv_head));
#pragma unroll 4
        for (int item = (int)threadIdx.x; item < ROWS * DIM / 4; item += THREADS) {
            const int row = item / (DIM / 4), d = item % (DIM / 4) * 4;
            copy_async_16(smem_address(tile + row * pitch<DIM>() + d), start + row * stride.seq + d,
                          first + row < end && d < dim ? 16 : 0);
        }
        return;
    }
#pragma unroll 1
    for (int item = (int)threadIdx.x; item < ROWS * DIM / 4; item += THREADS) {
        const int i = first + item / (DIM / 4), d = item % (DIM / 4) * 4,
                  count = i < end ? min(4, dim - d) : 0;
        float *to = tile + item / (DIM / 4) * pitch<DIM>() + d;
        const float *from = (const float *)base;
        if (count > 0)
            from += d + (what == LOAD_Q ? attn_q_offset(&rows.s, stride, i, rows.h)
                                        : attn_kv_offset(&a.p, &rows.s, stride, i, kv_head));
        if (what == LOAD_K && count > 0 && !attn_page_valid(&a.p, &rows.s, i))
            to[0] = to[1] = to[2] = to[3] = NAN;
        else if (a.vector)
            copy_async_16(smem_address(to), from, count > 0 ? 16 : 0);
        else
            for (int e = 0; e < 4; e++)
                copy_async_4(smem_address(to + e), (const float *)(e < count ? from + e : base),
                             e < count ? 4 : 0);
    }
}

/* s = Q K^T for this thread's rows and keys. */
template <int DK, int ROWS, int KEYS>
PTX_INLINE void scores(float (&s)[ROWS][KEYS], const float *q_smem, const float *k_smem) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int c = 0; c < KEYS; c++) s[r][c] = 0;
#pragma unroll 2
    for (int d = 0; d < DK; d += 4) {
        float4 k[KEYS];
#pragma unroll
        for (int c = 0; c < KEYS; c++) k[c] = *(const float4 *)(k_smem + 16 * c * pitch<DK>() + d);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float4 q = *(const float4 *)(q_smem + 2 * r * pitch<DK>() + d);
#pragma unroll
            for (int c = 0; c < KEYS; c++) {
                s[r][c] = fmaf(q.x, k[c].x, s[r][c]);
                s[r][c] = fmaf(q.y, k[c].y, s[r][c]);
                s[r][c] = fmaf(q.z, k[c].z, s[r][c]);
                s[r][c] = fmaf(q.w, k[c].w, s[r][c]);
            }
        }
    }
}

/* o += P V for this thread's rows and columns 64 * c + 4 * (lane % 16) .. + 3. */
template <int DV, int ROWS, int KEYS>
PTX_INLINE void accumulate(float4 (&o)[ROWS][DV / 64], const float *p_smem, const float *v_smem) {
    const int p_pitch = pitch<16 * KEYS>();
#pragma unroll 1
    for (int j = 0; j < 16 * KEYS; j += 4) {
        float4 p[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) p[r] = *(const float4 *)(p_smem + 2 * r * p_pitch + j);
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int c = 0; c < DV / 64; c++) {
                const float4 v = *(const float4 *)(v_smem + (j + e) * pitch<DV>() + 64 * c);
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    const float x = e == 0 ? p[r].x : e == 1 ? p[r].y : e == 2 ? p[r].z : p[r].w;
                    o[r][c].x = fmaf(x, v.x, o[r][c].x);
                    o[r][c].y = fmaf(x, v.y, o[r][c].y);
                    o[r][c].z = fmaf(x, v.z, o[r][c].z);
                    o[r][c].w = fmaf(x, v.w, o[r][c].w);
                }
            }
    }
}

/* Lengths and the diagonal; scores come out in log2 units. */
template <int ROWS, int KEYS>
PTX_INLINE void mask_scores(float (&s)[ROWS][KEYS], float scale_log2, const block_rows &rows, int first_row,
                            int first_key) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int i = first_row + 2 * r;
        const int low = row_low(rows, i), high = i < rows.q_len ? row_high(rows, i) : 0;
#pragma unroll
        for (int c = 0; c < KEYS; c++) {
            const int j = first_key + 16 * c;
            s[r][c] = j < low || j >= high ? -INFINITY : s[r][c] * scale_log2;
        }
    }
}

/* The same with options: hundreds of instructions a score. */
template <int ROWS, int KEYS>
PTX_INLINE void rich_scores(float (&s)[ROWS][KEYS], const flash_fwd_args &a, const block_rows &rows,
                            int first_row, int first_key) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int i = first_row + 2 * r;
        const int low = row_low(rows, i), high = i < rows.q_len ? row_high(rows, i) : 0;
#pragma unroll
        for (int c = 0; c < KEYS; c++) {
            const int j = first_key + 16 * c;
            if (j < low || j >= high || (has_holes<1>(a) && !sees<1>(a, rows, i, j))) s[r][c] = -INFINITY;
            else s[r][c] = rich_score<PTX_F32>(a, rows, i, j, s[r][c]);
        }
    }
}

/* Raise m to the rows' maxima; rescale l and o. */
template <int DV, int ROWS, int KEYS>
PTX_INLINE void rescale(const float (&top)[ROWS], float4 (&o)[ROWS][DV / 64], float (&l)[ROWS],
                        float (&m)[ROWS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float higher = fmaxf(half_warp_max(top[r]), m[r]), factor = exp2_approx(m[r] - higher);
        m[r] = higher;
        l[r] *= factor;
#pragma unroll
        for (int c = 0; c < DV / 64; c++)
            o[r][c].x *= factor, o[r][c].y *= factor, o[r][c].z *= factor, o[r][c].w *= factor;
    }
}

/* Turn scores into probabilities and put them into shared memory. m is only raised when a score exceeds it by
 * more than 2^8 (in log2 units): p <= 256, and most steps need neither a maximum
 * across lanes nor a rescale. */
template <int DV, int ROWS, int KEYS>
PTX_INLINE void softmax_step(float (&s)[ROWS][KEYS], float4 (&o)[ROWS][DV / 64], float (&l)[ROWS],
                             float (&m)[ROWS], float *p_smem) {
    float top[ROWS];
    int grown = 0;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        top[r] = s[r][0];
#pragma unroll
        for (int c = 1; c < KEYS; c++) top[r] = fmaxf(top[r], s[r][c]);
        grown |= top[r] > m[r] + 8;
    }
    if (warp_any(grown)) rescale<DV, ROWS, KEYS>(top, o, l, m);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int c = 0; c < KEYS; c++) {
            const float p = exp2_approx(s[r][c] - m[r]);
            l[r] += p;
            p_smem[2 * r * pitch<16 * KEYS>() + 16 * c] = p;
        }
}

/* Clear the non-finite elements of a V tile. @return 1 if this thread found one. */
template <int DV, int COUNT> PTX_INLINE int clear_nonfinite(float *tile) {
    int found = 0;
#pragma unroll 1
    for (int item = (int)threadIdx.x; item < COUNT * DV; item += THREADS) {
        float *x = tile + item / DV * pitch<DV>() + item % DV;
        if (!isfinite(*x)) *x = 0, found = 1;
    }
    return found;
}

template <int DV, int ROWS>
PTX_INLINE void store(const float4 (&o)[ROWS][DV / 64], const float (&l)[ROWS], const float (&m)[ROWS],
                      const flash_fwd_args &a, const block_rows &rows, int first_row) {
    const int lane = (int)threadIdx.x % 16;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int i = first_row + 2 * r;
        float sum = half_warp_sum(l[r]);
        if (i >= rows.q_len) sum = 0;
        if (i >= rows.q_rows) continue;
        const float sink = a.p.has_sinks ? exp2f(a.t.sinks[rows.h] * log2_e - m[r]) : 0,
                    inverse = 1 / (sum + sink);
        if (a.t.lse && lane == 0)
            a.t.lse[attn_lse_offset(&a.p, &rows.s, i, rows.h)] =
                sum == 0 ? -INFINITY : m[r] * ln_2 + logf(sum);
        float *to = (float *)a.t.o + attn_q_offset(&rows.s, a.p.o_stride, i, rows.h);
#pragma unroll
        for (int c = 0; c < DV / 64; c++) {
            const int d = 64 * c + 4 * lane;
            const float x[4] = { o[r][c].x, o[r][c].y, o[r][c].z, o[r][c].w };
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (d + e < a.p.v_dim) to[d + e] = sum == 0 ? 0 : x[e] * inverse;
        }
    }
}

/* One step: V of this step arrives under Q K^T, K of the next one under P V. */
template <int DK, int DV, int ROWS, int KEYS> PTX_INLINE void flash_fwd(const flash_fwd_args &a) {
    extern __shared__ __align__(16) float smem[];
    __shared__ block_rows rows;
    __shared__ int v_nonfinite;
    const int height = 2 * WARPS * ROWS, width = 16 * KEYS;
    float *q_smem = smem, *k_smem = q_smem + height * pitch<DK>(), *v_smem = k_smem + width * pitch<DK>();
    float *p_smem = v_smem + width * pitch<DV>();
    if (threadIdx.x == 0) {
        rows = rows_of(a, height);
        v_nonfinite = 0;
    }
    block_barrier();
    if (rows.block_row >= rows.q_rows) return;

    const row_steps block = steps_of<width>(rows, rows.block_row, rows.block_row + height - 1);
    const int x = (int)threadIdx.x % 16, row = (int)threadIdx.x / 32 * 2 * ROWS + (int)threadIdx.x / 16 % 2;
    const int qk_dim = (int)a.p.qk_dim, v_dim = (int)a.p.v_dim;
    float4 o[ROWS][DV / 64];
    float l[ROWS], m[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        l[r] = 0;
        m[r] = -FLT_MAX;                    /* finite, so that exp2(-inf - m) = 0 before the first key */
#pragma unroll
        for (int c = 0; c < DV / 64; c++) o[r][c] = make_float4(0, 0, 0, 0);
    }
    load_tile<DK, height>(a, rows, q_smem, a.t.q, a.p.q_stride, rows.block_row, rows.q_len, qk_dim, LOAD_Q);
    if (block.low < block.high)
        load_tile<DK, width>(a, rows, k_smem, a.t.k, a.p.k_stride, block.low * width, rows.kv_len, qk_dim,
                             LOAD_K);
    copy_commit();
#pragma unroll 1
    for (int t = block.low; t < block.high; t++) {
        copy_wait<0>();
        block_barrier();                    /* K is there; all are done with V and P of the step before */
        load_tile<DV, width>(a, rows, v_smem, a.t.v, a.p.v_stride, t * width, rows.kv_len, v_dim, LOAD_V);
        copy_commit();
        float s[ROWS][KEYS];
        scores<DK, ROWS, KEYS>(s, q_smem + row * pitch<DK>(), k_smem + x * pitch<DK>());
        const bool partial = t < block.full_low || t >= block.full_high || has_holes<1>(a);
        if (a.scale_log2 == 0) {
            rich_scores<ROWS, KEYS>(s, a, rows, rows.block_row + row, t * width + x);
        } else if (partial) {
            mask_scores<ROWS, KEYS>(s, a.scale_log2, rows, rows.block_row + row, t * width + x);
        } else {
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int c = 0; c < KEYS; c++) s[r][c] *= a.scale_log2;
        }
        softmax_step<DV, ROWS, KEYS>(s, o, l, m, p_smem + row * pitch<width>() + x);
        copy_wait<0>();
        block_barrier();                    /* V and P are there; all are done with K */
        if (t + 1 < block.high)
            load_tile<DK, width>(a, rows, k_smem, a.t.k, a.p.k_stride, (t + 1) * width, rows.kv_len, qk_dim,
                                 LOAD_K);
        copy_commit();
        if (partial) {
            if (clear_nonfinite<DV, width>(v_smem)) v_nonfinite = 1;
            block_barrier();
        }
        accumulate<DV, ROWS, KEYS>(o, p_smem + row * pitch<width>(), v_smem + 4 * x);
    }
    store<DV, ROWS>(o, l, m, a, rows, rows.block_row + row);
    block_barrier();
    if (v_nonfinite) add_nonfinite<PTX_F32, width, 1, THREADS>(a, rows, height);
}

#define TILE(qk, v, rows, keys)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                 \
        flash_fwd_f32_sm80_##qk##_##v(const __grid_constant__ flash_fwd_args a) {                            \
        flash_fwd<qk, v, rows, keys>(a);                                                                     \
    }
FLASH_FWD_F32_SM80_TILES(TILE)
