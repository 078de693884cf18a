/* kv_append_cuda.cu — new rows into the cache, rotary on K and Q: each thread moves one chunk of a row
 * (16 bytes of a 16-bit type), so that any number of rows fills the device with independent loads.
 * Where a row goes: append.h. */
#include "../append.h"
#include "kv_append_cuda.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

/* W consecutive elements in f32, and to their own type. W is 1 or 8;
 * the dtype is the same for the whole grid. */
template <int W> struct chunk { float x[W]; };

__device__ __forceinline__ float widen(uint32_t bits, attn_dtype dtype) {
    if (dtype == ATTN_BF16) return __uint_as_float(bits << 16);
    return __half2float(__ushort_as_half((unsigned short)bits));
}

__device__ __forceinline__ uint32_t narrow(float x, attn_dtype dtype) {
    if (dtype == ATTN_BF16) return __bfloat16_as_ushort(__float2bfloat16_rn(x));
    return __half_as_ushort(__float2half_rn(x));
}

template <int W> __device__ __forceinline__ chunk<W> load(const void *from, attn_dtype dtype, int64_t at) {
    chunk<W> c;
    if (W == 1) {
        c.x[0] = dtype == ATTN_F32 ? ((const float *)from)[at] : widen(((const uint16_t *)from)[at], dtype);
    } else if (dtype == ATTN_F32) {
        const float4 *p = (const float4 *)((const float *)from + at);
        const float4 a = p[0], b = p[1];
        const float x[8] = { a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w };
#pragma unroll
        for (int n = 0; n < W; n++) c.x[n] = x[n & 7];
    } else {
        const uint4 a = *(const uint4 *)((const uint16_t *)from + at);
        const uint32_t word[4] = { a.x, a.y, a.z, a.w };
#pragma unroll
        for (int n = 0; n < W; n++) c.x[n] = widen(word[n >> 1 & 3] >> 16 * (n & 1) & 0xffff, dtype);
    }
    return c;
}

template <int W>
__device__ __forceinline__ void store(void *to, attn_dtype dtype, int64_t at, const chunk<W> &c) {
    if (W == 1) {
        if (dtype == ATTN_F32) ((float *)to)[at] = c.x[0];
        else ((uint16_t *)to)[at] = (uint16_t)narrow(c.x[0], dtype);
    } else if (dtype == ATTN_F32) {
        float4 *p = (float4 *)((float *)to + at);
        p[0] = make_float4(c.x[0], c.x[1 % W], c.x[2 % W], c.x[3 % W]);
        p[1] = make_float4(c.x[4 % W], c.x[5 % W], c.x[6 % W], c.x[7 % W]);
    } else {
        uint32_t word[4];
#pragma unroll
        for (int n = 0; n < 4; n++)
            word[n] = narrow(c.x[2 * n % W], dtype) | narrow(c.x[(2 * n + 1) % W], dtype) << 16;
        *(uint4 *)((uint16_t *)to + at) = make_uint4(word[0], word[1], word[2], word[3]);
    }
}

/* The same type and nothing to turn: the bits as they are, NaN payloads included. */
template <int W>
__device__ __forceinline__ void copy(void *to, int64_t to_at, const void *from, int64_t from_at,
                                     attn_dtype dtype) {
    if (W == 1) {
        if (dtype == ATTN_F32) ((uint32_t *)to)[to_at] = ((const uint32_t *)from)[from_at];
        else ((uint16_t *)to)[to_at] = ((const uint16_t *)from)[from_at];
    } else if (dtype == ATTN_F32) {
        const uint4 *p = (const uint4 *)((const float *)from + from_at);
        uint4 *q = (uint4 *)((float *)to + to_at);
        const uint4 a = p[0], b = p[1];
        q[0] = a;
        q[1] = b;
    } else {
        *(uint4 *)((uint16_t *)to + to_at) = *(const uint4 *)((const uint16_t *)from + from_at);
    }
}

/* One row of one tensor, for the threads of a block. `table`: offset in the rotary tables,
 * -1: nothing is turned. */
struct row_move {
    void       *to;
    const void *from;
    int64_t     to_at, from_at, to_head, from_head, table;
    int64_t     heads;
    int         per_head;           /* chunks that threads start from, of one head */
};

template <int W>
__device__ __forceinline__ void put(const attn_problem &p, const row_move &r, int64_t to, int64_t from) {
    if (p.dtype == p.new_dtype) copy<W>(r.to, to, r.from, from, p.dtype);
    else store<W>(r.to, p.dtype, to, load<W>(r.from, p.new_dtype, from));
}

/* Pairs whose halves lie in two chunks: column c with c + partner. Each is read and written by one thread,
 * so that Q may be turned in place. */
template <int W>
__device__ __forceinline__ void turn_two(const attn_problem &p, const attn_tensors &t, const row_move &r,
                                         int64_t to, int64_t from, int64_t partner, int64_t table) {
    const chunk<W> a = load<W>(r.from, p.new_dtype, from), b = load<W>(r.from, p.new_dtype, from + partner);
    const chunk<W> c = load<W>(t.rotary_cos, p.rotary_dtype, table),
                   s = load<W>(t.rotary_sin, p.rotary_dtype, table);
    chunk<W> first, second;
#pragma unroll
    for (int n = 0; n < W; n++) {
        first.x[n] = a.x[n] * c.x[n] - b.x[n] * s.x[n];
        second.x[n] = a.x[n] * s.x[n] + b.x[n] * c.x[n];
    }
    store<W>(r.to, p.dtype, to, first);
    store<W>(r.to, p.dtype, to + partner, second);
}

/* Pairs that lie in one chunk, side by side. */
template <int W>
__device__ __forceinline__ void turn_one(const attn_problem &p, const attn_tensors &t, const row_move &r,
                                         int64_t to, int64_t from, int64_t table) {
    chunk<W> x = load<W>(r.from, p.new_dtype, from);
#pragma unroll
    for (int n = 0; n + 1 < W; n += 2) {
        const float c = load<1>(t.rotary_cos, p.rotary_dtype, table + n / 2).x[0];
        const float s = load<1>(t.rotary_sin, p.rotary_dtype, table + n / 2).x[0];
        const float a = x.x[n], b = x.x[n + 1];
        x.x[n] = a * c - b * s;
        x.x[n + 1] = a * s + b * c;
    }
    store<W>(r.to, p.dtype, to, x);
}

/* Chunk number `index` of the row: head by head; second halves are not numbered. */
template <int W>
__device__ __forceinline__ void move_chunk(const attn_problem &p, const attn_tensors &t, const row_move &r,
                                           int64_t index) {
    const int64_t h = attn_divide(index, r.per_head);
    const int half = p.rotary_dim / 2;
    int column = (int)(index - h * r.per_head) * W;
    if (h >= r.heads) return;
    if (r.table >= 0 && !p.rotary_interleaved && column >= p.rotary_first + half) column += half;
    const int c = column - p.rotary_first;
    const int64_t to = r.to_at + h * r.to_head + column, from = r.from_at + h * r.from_head + column;
    if (r.table < 0 || c < 0 || c >= p.rotary_dim) {
        put<W>(p, r, to, from);
    } else if (W > 1 && p.rotary_interleaved) {
        turn_one<W>(p, t, r, to, from, r.table + c / 2);
    } else if (p.rotary_interleaved) {
        if (c % 2 == 0) turn_two<W>(p, t, r, to, from, 1, r.table + c / 2);
    } else {
        turn_two<W>(p, t, r, to, from, half, r.table + c);
    }
}

/* A thread's chunks of a part. */
template <int W>
__device__ __forceinline__ void move_part(const attn_problem &p, const attn_tensors &t, const row_move &r,
                                          int64_t part, int chunks) {
    int64_t index = part * chunks * APPEND_THREADS + threadIdx.x;
#pragma unroll 1
    for (int n = 0; n < chunks; n++, index += APPEND_THREADS) move_chunk<W>(p, t, r, index);
}

/* The sequence whose rows first[b] .. first[b + 1] - 1 hold `row`; `batch` if none does. */
__device__ __forceinline__ int64_t sequence_of(const int32_t *first, int64_t batch, int64_t row) {
    int64_t low = 0, high = batch;              /* first[low] <= row, as far as the entries ascend */
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (first[middle] <= row) low = middle;
        else high = middle - 1;
    }
    return low;
}

struct token { int64_t b, i, batch, row; };     /* new row i of sequence b; its place in its tensor */

__device__ __forceinline__ token token_at(const int32_t *first, int64_t batch, int64_t len, int64_t row) {
    token k;
    if (!first) {
        k.b = k.batch = attn_divide(row, len);
        k.i = k.row = row - k.b * len;
        return k;
    }
    k.b = sequence_of(first, batch, row);
    k.batch = 0;
    k.row = row;
    k.i = k.b < batch ? row - first[k.b] : -1;
    if (k.i >= len) k.i = -1;
    return k;
}

template <int W>
__device__ __forceinline__ void append_part(const attn_problem &p, const attn_tensors &t,
                                            const kv_append_work &w, int64_t row, int64_t part, int is_v) {
    const token k = token_at(p.packed_new ? t.cu_seqlens_new : NULL, p.batch, p.new_len, row);
    if (k.i < 0) return;
    const attn_append a = attn_append_at(&p, &t, k.b);
    const attn_stride stride = is_v ? p.v_new_stride : p.k_new_stride;
    row_move r;
    r.to = (void *)(is_v ? t.v : t.k);
    r.from = is_v ? t.v_new : t.k_new;
    r.to_head = is_v ? p.v_stride.head : p.k_stride.head;
    r.from_head = stride.head;
    r.to_at = attn_append_place(&p, &a, is_v ? p.v_stride : p.k_stride, k.i);
    r.from_at = k.batch * stride.batch + k.row * stride.seq;
    r.table = is_v || !p.rotary_dim ? -1 : attn_append_turn(&p, &a, k.i);
    r.heads = p.kv_heads;
    r.per_head = is_v ? w.v_head : w.k_head;
    if (r.to_at >= 0) move_part<W>(p, t, r, part, w.chunks);
}

template <int W>
__device__ __forceinline__ void turn_q_part(const attn_problem &p, const attn_tensors &t,
                                            const kv_append_work &w, int64_t row, int64_t part) {
    const token k = token_at(p.packed_q ? t.cu_seqlens_q : NULL, p.batch, p.q_len, row);
    if (k.i < 0 || (p.has_seqused_q && k.i >= t.seqused_q[k.b])) return;
    const attn_append a = attn_append_at(&p, &t, k.b);
    row_move r;
    r.to = t.q_out;
    r.from = t.q;
    r.to_head = p.q_out_stride.head;
    r.from_head = p.q_stride.head;
    r.to_at = k.batch * p.q_out_stride.batch + k.row * p.q_out_stride.seq;
    r.from_at = k.batch * p.q_stride.batch + k.row * p.q_stride.seq;
    r.table = p.rotary_dim ? attn_append_turn(&p, &a, attn_append_q_step(&p, k.i)) : -1;
    r.heads = p.q_heads;
    r.per_head = w.q_head;
    move_part<W>(p, t, r, part, w.chunks);
}

__device__ __forceinline__ void write_length(const attn_problem &p, const attn_tensors &t, int64_t b) {
    if (b >= p.batch) return;
    int64_t rows = p.new_len;
    if (p.packed_new) rows = attn_clamp((int64_t)t.cu_seqlens_new[b + 1] - t.cu_seqlens_new[b], 0, p.new_len);
    t.seqused_kv_out[b] = (int32_t)attn_clamp(attn_append_at(&p, &t, b).slot + rows, 0, p.kv_len);
}

template <int W>
__device__ __forceinline__ void append(const attn_problem &p, const attn_tensors &t,
                                       const kv_append_work &w) {
    const int64_t k_units = w.rows * w.k_parts, v_units = w.rows * w.v_parts, q_units = w.q_rows * w.q_parts;
    for (int64_t unit = blockIdx.x; unit < w.units; unit += gridDim.x) {
        int64_t u = unit, row;
        if (u < k_units) {
            row = attn_divide(u, w.k_parts);
            append_part<W>(p, t, w, row, u - row * w.k_parts, 0);
        } else if ((u -= k_units) < v_units) {
            row = attn_divide(u, w.v_parts);
            append_part<W>(p, t, w, row, u - row * w.v_parts, 1);
        } else if ((u -= v_units) < q_units) {
            row = attn_divide(u, w.q_parts);
            turn_q_part<W>(p, t, w, row, u - row * w.q_parts);
        } else {
            write_length(p, t, (u - q_units) * APPEND_THREADS + threadIdx.x);
        }
    }
}

#define ENTRY(name, width) \
    extern "C" __global__ void __launch_bounds__(APPEND_THREADS, 8) \
    name(const __grid_constant__ attn_problem p, const __grid_constant__ attn_tensors t, \
         const __grid_constant__ kv_append_work w) { append<width>(p, t, w); }
ENTRY(kv_append_wide, APPEND_WIDE)
ENTRY(kv_append_any, 1)
