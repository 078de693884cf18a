/* decode_merge.cu — a warp, or some blocks where rows are few, adds the parts of a row in a fixed order; see
 * decode_merge.h. Parts are requested before their weights are known:
 * the latency of memory is all that it costs. */
#include "decode_merge.h"
#include "ptx_decode.h"
#include "ptx_sm80.h"
#include <math.h>

static constexpr int WARPS = 4;
static constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

struct decode_merge_row {
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

__device__ __forceinline__ float part_lse(const decode_merge_row &row, int part) {
    return row.lse[attn_decode_slot(row.slots, part) * row.lse_part];
}
/* 2^(lse - top); NaN stays NaN. */
__device__ __forceinline__ float part_weight(float lse, float top) {
    return lse == -INFINITY ? 0 : exp2f(lse - top);
}

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

/* Parts first, first + step, ... of columns begin + 128 n + 4 lane .. + 3, n < CHUNKS,
 * as many as fit registers. */
template <int CHUNKS> struct part_batch {
    static constexpr int AHEAD = CHUNKS > 2 ? 4 : 8;
    float4 x[AHEAD][CHUNKS];
    float lse[AHEAD];
};

template <int CHUNKS>
__device__ __forceinline__ void request(part_batch<CHUNKS> &batch, const decode_merge_row &row, int first,
                                        int step, int begin, int end) {
#pragma unroll
    for (int k = 0; k < part_batch<CHUNKS>::AHEAD; k++) {
        const int part = first + k * step;
        if (part >= row.slots.parts) break;
        const int64_t slot = attn_decode_slot(row.slots, part);
        batch.lse[k] = row.lse[slot * row.lse_part];
#pragma unroll
        for (int n = 0; n < CHUNKS; n++) {
            const int column = begin + 128 * n + 4 * ((int)threadIdx.x % 32);
            batch.x[k][n] = column < end ? *(const float4 *)(row.o + slot * row.o_part + column)
                                         : make_float4(0, 0, 0, 0);
        }
    }
}

/* sum += this thread's share of the parts; `batch` has been requested. */
template <int CHUNKS>
__device__ __forceinline__ void add_parts(float4 (&sum)[CHUNKS], part_batch<CHUNKS> &batch,
                                          const decode_merge_row &row, int first, int step, int begin,
                                          int end, float top, float inverse) {
    constexpr int AHEAD = part_batch<CHUNKS>::AHEAD;
    for (; first < row.slots.parts; first += AHEAD * step) {
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            if (first + k * step >= row.slots.parts) break;
            const float w = part_weight(batch.lse[k], top) * inverse;
#pragma unroll
            for (int n = 0; n < CHUNKS; n++) {
                const float4 x = batch.x[k][n];
                sum[n].x = fmaf(w, x.x, sum[n].x), sum[n].y = fmaf(w, x.y, sum[n].y);
                sum[n].z = fmaf(w, x.z, sum[n].z), sum[n].w = fmaf(w, x.w, sum[n].w);
            }
        }
        if (first + AHEAD * step < row.slots.parts)
            request(batch, row, first + AHEAD * step, step, begin, end);
    }
}

template <int CHUNKS> __device__ __forceinline__ void merge(const attn_decode_merge_args &a) {
    __shared__ float4 shares[WARPS - 1][32 * CHUNKS];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int rows_of_block = WARPS / a.share, row_blocks = (a.rows + rows_of_block - 1) / rows_of_block;
    const int item = (int)blockIdx.x / row_blocks,
              r = (int)blockIdx.x % row_blocks * rows_of_block + warp / a.share;
    const int first = warp % a.share, b = item / a.shape.tiles, tile = item - b * a.shape.tiles,
              o_end = a.o_stride;
    const int group = (int)a.p.q_heads / (int)a.p.kv_heads, head = a.m_tiles == 1 ? tile : tile / a.m_tiles;
    const int packed = (tile - head * a.m_tiles) * a.tile_rows + r;
    const int i = packed / group, h = head * group + packed % group;
    decode_merge_row row;
    row.o_part = (int64_t)a.tile_rows * a.o_stride, row.lse_part = a.tile_rows;
    row.o = a.o + (int64_t)r * a.o_stride, row.lse = a.lse + r;
    let_next_kernel_start();
    /* The kernel before lets this one start only when the schedule is there. */
    const bool known = !a.schedule || attn_decode_has_hash_early(a.hash, a.schedule);
    row.slots = attn_decode_slots{};
    if (!a.schedule) row.slots = attn_decode_even_slots(&a.shape, &a.even, item);
    else if (known) row.slots = attn_decode_slots_early(&a.shape, a.schedule, item);
    /* Whole groups of warps that share a row. One block must stay, or the next kernel would not wait for
     * the one before. */
    const bool idle = row.slots.parts < 2 || r >= a.rows;
    if (idle && (blockIdx.x || blockIdx.y)) return;
    wait_for_earlier_kernels();
    if (idle) return;
    /* Few rows: a block for each 128 columns of one. */
    const int columns = CHUNKS > 1 ? 0 : 128 * (int)blockIdx.y, v_dim = (int)a.p.v_dim;
    const int columns_end = CHUNKS > 1 || gridDim.y == 1 ? v_dim : min(columns + 128, v_dim);
    part_batch<CHUNKS> batch;
    request(batch, row, first, a.share, columns, o_end);
    const attn_sequence s = attn_sequence_at(&a.p, &a.t, b);
    const bool exists = i < s.q_rows;

    /* More than 32: read twice. */
    const float mine = lane < row.slots.parts ? part_lse(row, lane) : -INFINITY;
    float top = mine, sum = 0;
    for (int part = 32 + lane; part < row.slots.parts; part += 32) top = fmaxf(top, part_lse(row, part));
    top = warp_max(top);
    if (!(top > -INFINITY)) top = 0;
    sum = part_weight(mine, top);
    for (int part = 32 + lane; part < row.slots.parts; part += 32)
        sum += part_weight(part_lse(row, part), top);
    sum = warp_sum(sum);
    const float sink = a.p.has_sinks && sum != 0 ? exp2f(a.t.sinks[h] * log2_e - top) : 0;
    if (exists && a.t.lse && lane == 0 && first == 0 && columns == 0)
        a.t.lse[attn_lse_offset(&a.p, &s, i, h)] = sum == 0 ? -INFINITY : (top + log2f(sum)) * ln_2;
    const float inverse = sum == 0 ? 0 : 1 / (sum + sink);
    const int64_t o_at = exists ? attn_q_offset(&s, a.p.o_stride, i, h) : 0;
    for (int begin = columns; begin < columns_end; begin += 128 * CHUNKS) {
        float4 o[CHUNKS];
#pragma unroll
        for (int n = 0; n < CHUNKS; n++) o[n] = make_float4(0, 0, 0, 0);
        if (begin > columns) request(batch, row, first, a.share, begin, o_end);
        add_parts(o, batch, row, first, a.share, begin, o_end, top, inverse);
        if (a.share > 1) {                  /* all warps have this row: they meet, and the first
                                               adds in order */
            __syncthreads();
#pragma unroll
            for (int n = 0; n < CHUNKS; n++)
                if (warp) shares[warp - 1][32 * n + lane] = o[n];
            __syncthreads();
            if (warp) continue;
#pragma unroll
            for (int n = 0; n < CHUNKS; n++)
#pragma unroll
                for (int w = 0; w < WARPS - 1; w++) {
                    const float4 x = shares[w][32 * n + lane];
                    o[n].x += x.x, o[n].y += x.y, o[n].z += x.z, o[n].w += x.w;
                }
        }
#pragma unroll
        for (int n = 0; n < CHUNKS; n++) {
            const int column = begin + 128 * n + 4 * lane;
            if (exists && column < v_dim) store_4(a, o_at, column, o[n]);
        }
    }
}

/* Few registers, so that a block waits beside one of the main kernel's. */
#define ENTRY(columns, blocks) \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, blocks) \
    decode_merge_##columns(const __grid_constant__ attn_decode_merge_args a) { merge<columns / 128>(a); }
ENTRY(128, 6)
ENTRY(256, 4)
ENTRY(512, 4)
