/* decode_merge.cu — a warp per row adds the parts of its item in order; see decode_merge.h. */
#include "decode_merge.h"
#include "ptx_decode.h"
#include "ptx_sm80.h"
#include <math.h>

static constexpr int WARPS = 4;     /* rows of a block */
static constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

struct merge_row {
    const float *o, *lse;       /* this row in slot 0 */
    int64_t o_part, lse_part;   /* floats from slot to slot */
    attn_decode_slots slots;
};

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ __forceinline__ float part_lse(const merge_row &row, int part) {
    return row.lse[attn_decode_slot(row.slots, part) * row.lse_part];
}
/* 2^(lse - top); NaN stays NaN. */
__device__ __forceinline__ float part_weight(float lse, float top) { return lse == -INFINITY ? 0 : exp2f(lse - top); }

__device__ __forceinline__ uint32_t narrow(attn_dtype dtype, float low, float high) {
    return dtype == ATTN_F16 ? pack_halves<PTX_F16>(low, high) : pack_halves<PTX_BF16>(low, high);
}

__device__ __forceinline__ void store_4(const attn_decode_merge_args &a, int64_t at, int column, float4 x) {
    const int count = min(4, (int)a.p.v_dim - column);
    const float values[4] = { x.x, x.y, x.z, x.w };
    if (a.p.o_dtype == ATTN_F32) {
        float *to = (float *)a.t.o + at + column;
        if (count == 4 && (uintptr_t)to % 16 == 0) *(float4 *)to = x;
        else
            for (int e = 0; e < 4; e++)
                if (e < count) to[e] = values[e];
        return;
    }
    uint16_t *to = (uint16_t *)a.t.o + at + column;
    const uint32_t low = narrow(a.p.o_dtype, x.x, x.y), high = narrow(a.p.o_dtype, x.z, x.w);
    if (count == 4 && (uintptr_t)to % 8 == 0) *(uint2 *)to = make_uint2(low, high);
    else
        for (int e = 0; e < 4; e++)
            if (e < count) to[e] = (uint16_t)((e < 2 ? low : high) >> 16 * (e % 2));
}

/* Columns first + 128 n + 4 lane .. + 3 for n < CHUNKS. */
template <int CHUNKS>
__device__ __forceinline__ void merge_columns(const attn_decode_merge_args &a, const merge_row &row, int first,
                                              float top, float inverse, int64_t o_at) {
    const int lane = (int)threadIdx.x % 32;
    constexpr int AHEAD = CHUNKS > 2 ? 4 : 8;       /* parts requested before the first is used */
    float4 sum[CHUNKS];
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) sum[n] = make_float4(0, 0, 0, 0);
    for (int begin = 0; begin < row.slots.parts; begin += AHEAD) {
        float4 x[AHEAD][CHUNKS];
        float weight[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int part = begin + k;
            if (part >= row.slots.parts) break;
            const int64_t slot = attn_decode_slot(row.slots, part);
            weight[k] = row.lse[slot * row.lse_part];
#pragma unroll
            for (int n = 0; n < CHUNKS; n++) {
                const int column = first + 128 * n + 4 * lane;
                if (column < a.o_stride) x[k][n] = *(const float4 *)(row.o + slot * row.o_part + column);
                else x[k][n] = make_float4(0, 0, 0, 0);
            }
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            if (begin + k >= row.slots.parts) break;
            const float w = part_weight(weight[k], top) * inverse;
#pragma unroll
            for (int n = 0; n < CHUNKS; n++) {
                sum[n].x = fmaf(w, x[k][n].x, sum[n].x), sum[n].y = fmaf(w, x[k][n].y, sum[n].y);
                sum[n].z = fmaf(w, x[k][n].z, sum[n].z), sum[n].w = fmaf(w, x[k][n].w, sum[n].w);
            }
        }
    }
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        const int column = first + 128 * n + 4 * lane;
        if (column < a.p.v_dim) store_4(a, o_at, column, sum[n]);
    }
}

template <int CHUNKS> __device__ __forceinline__ void merge(const attn_decode_merge_args &a) {
    const int row_blocks = (a.tile_rows + WARPS - 1) / WARPS, lane = (int)threadIdx.x % 32;
    const int r = (int)blockIdx.x % row_blocks * WARPS + (int)threadIdx.x / 32;
    const int item = (int)blockIdx.x / row_blocks;
    merge_row row;
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int b = item / a.shape.tiles, tile = item % a.shape.tiles;
    if (a.schedule && !attn_decode_valid(&a.shape, a.schedule)) return;
    if (a.schedule) row.slots = attn_decode_slots_of(&a.shape, a.schedule, item);
    else row.slots = attn_decode_even_slots(&a.shape, &a.even, item);
    if (row.slots.parts < 2 || r >= a.tile_rows) return;

    const int group = (int)(a.p.q_heads / a.p.kv_heads), packed = tile % a.m_tiles * a.tile_rows + r;
    const int i = packed / group, h = tile / a.m_tiles * group + packed % group;
    const attn_sequence s = attn_sequence_at(&a.p, &a.t, b);
    if (i >= s.q_rows) return;
    row.o_part = (int64_t)a.tile_rows * a.o_stride, row.lse_part = a.tile_rows;
    row.o = a.o + (int64_t)r * a.o_stride, row.lse = a.lse + r;

    float top = -INFINITY, sum = 0;
    for (int part = lane; part < row.slots.parts; part += 32) top = fmaxf(top, part_lse(row, part));
    top = warp_max(top);
    if (top == -INFINITY) top = 0;
    for (int part = lane; part < row.slots.parts; part += 32) sum += part_weight(part_lse(row, part), top);
    sum = warp_sum(sum);
    const float sink = a.p.has_sinks && sum != 0 ? exp2f(a.t.sinks[h] * log2_e - top) : 0;
    if (a.t.lse && lane == 0)
        a.t.lse[attn_lse_offset(&a.p, &s, i, h)] = sum == 0 ? -INFINITY : (top + log2f(sum)) * ln_2;
    const float inverse = sum == 0 ? 0 : 1 / (sum + sink);
    const int64_t o_at = attn_q_offset(&s, a.p.o_stride, i, h);
    for (int first = 0; first < a.p.v_dim; first += 128 * CHUNKS)
        merge_columns<CHUNKS>(a, row, first, top, inverse, o_at);
}

#define ENTRY(columns) \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) \
    decode_merge_##columns(const __grid_constant__ attn_decode_merge_args a) { merge<columns / 128>(a); }
ENTRY(128)
ENTRY(256)
ENTRY(512)
