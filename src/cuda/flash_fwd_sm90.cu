/* flash_fwd_sm90.cu — flash attention forward for Hopper. A block lives as long as the kernel: the producer
 * side (flash_fwd_sm90_feed.h) keeps rings of K and V full, 2-3 consumer warpgroups overlap QK of one key
 * tile with PV of the last by wgmma. docs/hopper-forward.md explains the schedule. */
#include "flash_fwd_sm90_feed.h"

/* ---- consumers: the steps of the algorithm, on fragments (ptx_sm90.h says which thread holds what) ---- */

/* s = Q K^T of one key tile; accumulators s[keys / 2]. */
template <int BF16, int QK, int KEYS> ATTN_DEVICE void scores(float (&s)[KEYS / 2], uint64_t q, uint64_t k) {
#pragma unroll
    for (int d = 0; d < QK / 16; d++)
        wgmma_ss<BF16, 0, 0>(s, wgmma_advance(q, d / 4 * 64 * 128 + d % 4 * 32),
                             wgmma_advance(k, d / 4 * KEYS * 128 + d % 4 * 32), d > 0);
}

/* o += P V of one key tile. */
template <int BF16, int V, int KEYS>
ATTN_DEVICE void accumulate(float (&o)[V / 2], uint32_t (&p)[KEYS / 4], uint64_t v) {
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++)
        wgmma_rs<BF16, 1>(o, p[4 * j], p[4 * j + 1], p[4 * j + 2], p[4 * j + 3], wgmma_advance(v, j * 2048),
                          1);
}

/* The two rows of a thread: maximum so far, this thread's part of the sum, factor that O is due. */
struct softmax { float m[2], l[2], factor[2]; };

ATTN_DEVICE float quad_max(float x) {
    x = max_nan(x, __shfl_xor_sync(~0u, x, 1));
    return max_nan(x, __shfl_xor_sync(~0u, x, 2));
}
ATTN_DEVICE float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/* m * c as the exponent's offset: 0 for a row without keys yet, NaN for a row with a score of +inf or NaN. */
ATTN_DEVICE float offset(float m, float c) { return m == -INF ? 0.f : m == INF ? NOT_A_NUMBER : m * c; }

/* s becomes p = 2^(c s - c m); @return 0 if O needn't be rescaled (only LAZY; the same for a warp). LAZY
 * keeps a row's old maximum while the new one is less than 2^8 above: p stays below 2^8, the quotient is the
 * same. */
template <int KEYS, int FIRST, int LAZY>
ATTN_DEVICE int softmax_step(float (&s)[KEYS / 2], softmax &r, float c) {
    float m[2] = { FIRST ? -INF : r.m[0], FIRST ? -INF : r.m[1] };
#pragma unroll
    for (int e = 0; e < KEYS / 2; e += 4) {
        m[0] = max_nan(m[0], max_nan(s[e], s[e + 1]));
        m[1] = max_nan(m[1], max_nan(s[e + 2], s[e + 3]));
    }
    int rescale = !FIRST;
#pragma unroll
    for (int i = 0; i < 2; i++) m[i] = quad_max(m[i]);
    if (LAZY && !FIRST) {
        if ((m[0] - r.m[0]) * c <= 8.f) m[0] = r.m[0];
        if ((m[1] - r.m[1]) * c <= 8.f) m[1] = r.m[1];
        rescale = __any_sync(~0u, m[0] != r.m[0] || m[1] != r.m[1]);
    }
    const float b[2] = { offset(m[0], c), offset(m[1], c) };
    if (FIRST) {
        r.l[0] = r.l[1] = 0.f;
    } else if (rescale) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            r.factor[i] = LAZY && m[i] == r.m[i] ? 1.f : exp2_fast(fmaf(r.m[i], c, -b[i]));
            r.l[i] *= r.factor[i];
        }
    }
    r.m[0] = m[0], r.m[1] = m[1];
#pragma unroll
    for (int e = 0; e < KEYS / 2; e++) {
        const float x = fmaf(s[e], c, -b[e / 2 % 2]);
        s[e] = exp2_fast(x);
    }
#pragma unroll
    for (int e = 0; e < KEYS / 2; e += 4) {
        r.l[0] += s[e] + s[e + 1];
        r.l[1] += s[e + 2] + s[e + 3];
    }
    return rescale;
}

template <int BF16, int KEYS> ATTN_DEVICE void round_p(uint32_t (&p)[KEYS / 4], float (&s)[KEYS / 2]) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) p[i] = pack16<BF16>(s[2 * i], s[2 * i + 1]);
}

template <int V> ATTN_DEVICE void rescale_o(float (&o)[V / 2], const softmax &r) {
#pragma unroll
    for (int e = 0; e < V / 2; e++) o[e] *= r.factor[e / 2 % 2];
}

/* Scores of keys outside low .. high - 1 become -inf. column: this thread's first key. */
template <int KEYS, int KIND>
ATTN_DEVICE void mask_scores(float (&s)[KEYS / 2], int column, const int (&low)[2], const int (&high)[2]) {
#pragma unroll
    for (int e = 0; e < KEYS / 2; e++) {
        const int j = e / 4 * 8 + e % 2, row = e / 2 % 2;
        if (j >= high[row] - column || (KIND >= SM90_GENERAL && j < low[row] - column)) s[e] = -INF;
    }
}

/* One row of a GENERAL kernel: what its scores need besides q . k. */
struct row_options { int64_t bias_at, mask_at; float slope; int here; };

ATTN_DEVICE row_options row_options_at(const flash_fwd_sm90_args &a, uint32_t record, int row) {
    const attn_problem &p = a.problem;
    const int i = min(row >> a.pack_shift, RECORD(q_len) - 1),
              head = RECORD(head) + (row & ((1 << a.pack_shift) - 1));
    attn_sequence s;
    s.b = RECORD(sequence);
    row_options r;
    r.bias_at = p.bias_dtype ? attn_score_offset(&s, p.bias_stride, head, i, 0) : 0;
    r.mask_at = p.has_mask ? attn_score_offset(&s, p.mask_stride, head, i, 0) : 0;
    r.slope = p.alibi ? attn_slope(&p, &a.tensors, s.b, head) * LOG2E : 0.f;
    r.here = (row >> a.pack_shift) + RECORD(shift);
    return r;
}

/* s = score in powers of 2: scale, softcap, bias, ALiBi, boolean mask. */
template <int KEYS, int KIND>
ATTN_DEVICE void score_options(const flash_fwd_sm90_args &a, float (&s)[KEYS / 2], int column,
                               const int (&low)[2], const int (&high)[2], const row_options (&rows)[2]) {
    const attn_problem &p = a.problem;
    const float turn = 2.f * LOG2E * p.scale / p.softcap, cap = p.softcap * LOG2E;
    if (p.softcap > 0) {            /* cap * tanh(x) = cap - 2 cap / (e^2x + 1) */
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++)
            s[e] = fmaf(-2.f * cap, __frcp_rn(exp2_fast(s[e] * turn) + 1.f), cap);
    } else {
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++) s[e] *= a.scale_log2;
    }
    if (p.alibi) {
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++)
            s[e] -= rows[e / 2 % 2].slope * fabsf((float)(rows[e / 2 % 2].here - column - e / 4 * 8 - e % 2));
    }
    if (KIND == SM90_BIASED && p.bias_dtype) {
        const int wide = p.bias_dtype == ATTN_F32, bf16 = p.bias_dtype == ATTN_BF16;
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++) {
            const int j = column + e / 4 * 8 + e % 2, i = e / 2 % 2, visible = j >= low[i] && j < high[i];
            const char *from =
                (const char *)a.tensors.bias + ((rows[i].bias_at + j * p.bias_stride.kv) << (1 + wide));
            const uint32_t half = visible && !wide ? *(const uint16_t *)from : 0;
            const float word = visible && wide ? *(const float *)from : 0.f;
            const float bias = wide ? word : bf16 ? unpack16<1>(half) : unpack16<0>(half);
            s[e] = bias == -INF ? -INF : fmaf(bias, LOG2E, s[e]);
        }
    }
    if (KIND == SM90_BIASED && p.has_mask) {
#pragma unroll
        for (int e = 0; e < KEYS / 2; e++) {
            const int j = column + e / 4 * 8 + e % 2, i = e / 2 % 2, visible = j >= low[i] && j < high[i];
            const uint8_t *from = a.tensors.mask + rows[i].mask_at + j * p.mask_stride.kv;
            if (visible && !*from) s[e] = -INF;
        }
    }
}

/* ---- consumers: the end of a tile ---- */

/* Where row r of a tile goes; used: it is a query, written: it is a row of O. */
struct row_place { int64_t o, lse; int used, written, head; };

ATTN_DEVICE row_place row_place_at(const flash_fwd_sm90_args &a, uint32_t record, int row) {
    const attn_problem &p = a.problem;
    const int i = row >> a.pack_shift, h = row & ((1 << a.pack_shift) - 1);
    row_place at;
    at.used = i < RECORD(q_len);
    at.written = i < RECORD(q_rows);
    at.head = RECORD(head) + h;
    at.o = RECORD64(o) + i * p.o_stride.seq + h * p.o_stride.head;
    at.lse = RECORD64(lse) + i * p.lse_stride.seq + h * p.lse_stride.head;
    return at;
}

/* A row of O, 16 bytes a thread: the quad's threads exchange pairs of columns until each has 8 in a row. */
template <int BF16, int V, int HALF>
ATTN_DEVICE void store_row(const flash_fwd_sm90_args &a, float (&o)[V / 2], const row_place &at,
                           float inverse) {
    const int lane = threadIdx.x & 3;
    uint16_t *to = (uint16_t *)a.tensors.o + at.o + lane * 8;
#pragma unroll
    for (int g = 0; g < V / 32; g++) {
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int e = 16 * g + 4 * i + 2 * HALF;
            x[i] = inverse == 0.f ? 0 : pack16<BF16>(o[e] * inverse, o[e + 1] * inverse);
        }
#pragma unroll
        for (int bit = 1; bit < 4; bit <<= 1)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (!(i & bit)) {
                    const uint32_t y = __shfl_xor_sync(~0u, lane & bit ? x[i] : x[i | bit], bit);
                    if (lane & bit) x[i] = y;
                    else x[i | bit] = y;
                }
        if (at.written && 32 * g + lane * 8 < a.problem.v_dim)
            *(uint4 *)(to + 32 * g) = make_uint4(x[0], x[1], x[2], x[3]);
    }
}

/* 1 / l of both rows, 0 for a row that sees no key; writes the logarithm of l. c: exponent units of r.m. */
ATTN_DEVICE void close_rows(const flash_fwd_sm90_args &a, const softmax &r, uint32_t record, int row, float c,
                            float (&inverse)[2]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float l = quad_sum(r.l[i]), b = offset(r.m[i], c);
        const row_place at = row_place_at(a, record, row + 8 * i);
        const bool empty = l == 0.f || !at.used;
        float below = l;
        if (a.problem.has_sinks && at.written) below += exp2_fast(a.tensors.sinks[at.head] * LOG2E - b);
        if (a.tensors.lse && at.written && threadIdx.x % 4 == 0)
            a.tensors.lse[at.lse] = empty ? -INF : (b + log2_fast(l)) * LN2;
        inverse[i] = empty ? 0.f : __frcp_rn(below);
    }
}

template <int BF16, int V>
ATTN_DEVICE void store_rows(const flash_fwd_sm90_args &a, float (&o)[V / 2], uint32_t record, int row,
                            const float (&inverse)[2]) {
    store_row<BF16, V, 0>(a, o, row_place_at(a, record, row), inverse[0]);
    store_row<BF16, V, 1>(a, o, row_place_at(a, record, row + 8), inverse[1]);
}

/* ---- consumers: the schedule ---- */

#define SM90_TEMPLATE \
    template <int BF16, int QK, int V, int KEYS, int WARPGROUPS, int STAGES, int KIND, int PINGPONG, \
              int LAZY>
#define SM90_CONFIG BF16, QK, V, KEYS, WARPGROUPS, STAGES, KIND, PINGPONG, LAZY

/* A consumer warpgroup's place in the rings and in its tile. */
struct consumer {
    uint32_t base, record;      /* shared memory; record: of the tile at hand */
    ring k, v, slot;
    uint32_t q_parity, clean_parity;    /* clean_parity: one bit per stage */
    int warpgroup, lead;        /* lead: the thread that releases what the warpgroup has read */
    int row;                    /* this thread's first row; the other is row + 8 */
    int n, blocks, masked, scan;    /* key tiles: at hand, all, with masked scores, with cleaned V */
    float c;
};

/* Wait for the next V; cleaned: it is one that must be cleaned first. */
SM90_TEMPLATE ATTN_DEVICE void wait_v(consumer &x, int cleaned) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    const uint32_t bit = 1u << x.v.index;
    if (!cleaned) mbarrier_wait(x.base + at.v_full + 8 * x.v.index, x.v.parity);
    else {
        mbarrier_wait(x.base + at.v_clean + 8 * x.v.index, (x.clean_parity & bit) != 0);
        x.clean_parity ^= bit;
    }
}

SM90_TEMPLATE ATTN_DEVICE void release_k(consumer &x, int last) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    if (x.lead) {
        mbarrier_arrive(x.base + at.k_empty + 8 * x.k.index);
        if (last) mbarrier_arrive(x.base + at.q_empty + 8 * x.warpgroup);
    }
    ring_next<STAGES>(x.k);
}
SM90_TEMPLATE ATTN_DEVICE void release_v(consumer &x) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    if (x.lead) mbarrier_arrive(x.base + at.v_empty + 8 * x.v.index);
    ring_next<STAGES>(x.v);
}
/* This warp has stored its rows of a tile and needs the record no more. */
SM90_TEMPLATE ATTN_DEVICE void release_record(const consumer &x, uint32_t record) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    const uint32_t slot = (record - x.base - at.tiles) / SM90_TILE_BYTES;
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        mbarrier_arrive(x.base + at.tile_done + 8 * slot);
        mbarrier_arrive(x.base + at.tile_empty + 8 * slot);
    }
}

SM90_TEMPLATE ATTN_DEVICE void start_scores(const consumer &x, float (&s)[KEYS / 2]) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    wgmma_fence();
    scores<BF16, QK, KEYS>(
        s, wgmma_descriptor(x.base + at.q + x.warpgroup * at.q_bytes, 16),
        wgmma_descriptor(x.base + at.k + x.k.index * at.k_bytes, 16));
    wgmma_commit();
}
SM90_TEMPLATE ATTN_DEVICE void start_accumulate(const consumer &x, float (&o)[V / 2],
                                                uint32_t (&p)[KEYS / 4]) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    registers_pin(o);
    registers_pin(p);
    wgmma_fence();
    accumulate<BF16, V, KEYS>(o, p, wgmma_descriptor(x.base + at.v + x.v.index * at.v_bytes, KEYS * 128));
    wgmma_commit();
}

/* Options and masks of key tile x.n. */
template <int KEYS, int KIND, int MASKED>
ATTN_DEVICE void finish_scores(const flash_fwd_sm90_args &a, const consumer &x, float (&s)[KEYS / 2]) {
    if (KIND < SM90_GENERAL && !MASKED) return;
    const int column = record_block<KIND>(x.record, x.n) * KEYS + 2 * (threadIdx.x & 3);
    int low[2], high[2];
    record_limits<KIND>(a, x.record, x.row, low[0], high[0]);
    record_limits<KIND>(a, x.record, x.row + 8, low[1], high[1]);
    if (KIND >= SM90_GENERAL) {
        const row_options rows[2] = {row_options_at(a, x.record, x.row),
                                     row_options_at(a, x.record, x.row + 8)};
        score_options<KEYS, KIND>(a, s, column, low, high, rows);
    }
    if (MASKED) mask_scores<KEYS, KIND>(s, column, low, high);
}

/* QK of key tile n and PV of n - 1 run together; the softmax of n runs under PV. */
template <int BF16, int QK, int V, int KEYS, int WARPGROUPS, int STAGES, int KIND, int PINGPONG,
          int LAZY, int MASKED>
ATTN_DEVICE void step(const flash_fwd_sm90_args &a, consumer &x, float (&o)[V / 2], uint32_t (&p)[KEYS / 4],
                      softmax &r) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    float s[KEYS / 2];
    mbarrier_wait(x.base + at.k_full + 8 * x.k.index, x.k.parity);
    if (PINGPONG) named_barrier_sync(1 + x.warpgroup, 256);
    start_scores<SM90_CONFIG>(x, s);
    wait_v<SM90_CONFIG>(x, x.n - 1 < x.scan);
    start_accumulate<SM90_CONFIG>(x, o, p);
    if (PINGPONG) named_barrier_arrive(1 + (x.warpgroup + 1) % WARPGROUPS, 256);
    wgmma_wait<1>();
    registers_pin(s);
    release_k<SM90_CONFIG>(x, x.n == x.blocks - 1);
    finish_scores<KEYS, KIND, MASKED>(a, x, s);
    const int rescale = softmax_step<KEYS, 0, LAZY>(s, r, x.c);
    wgmma_wait<0>();
    registers_pin(o);
    registers_pin(p);
    release_v<SM90_CONFIG>(x);
    round_p<BF16, KEYS>(p, s);
    if (!LAZY || rescale) rescale_o<V>(o, r);
}

/* Read the next record. @return 0 at the end. */
SM90_TEMPLATE ATTN_DEVICE int next_tile(consumer &x, uint32_t &record) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    mbarrier_wait(x.base + at.tile_full + 8 * x.slot.index, x.slot.parity);
    record = x.base + at.tiles + x.slot.index * SM90_TILE_BYTES;
    ring_next<SM90_TILE_SLOTS>(x.slot);
    return RECORD(blocks) > 0;
}

/* Take up the tile of `record`: which scores are masked; @return how many key tiles this warpgroup can leave
 * out. */
SM90_TEMPLATE ATTN_DEVICE int enter_tile(const flash_fwd_sm90_args &a, consumer &x, uint32_t record) {
    const int first = RECORD(row) + 64 * x.warpgroup, thread = threadIdx.x & 127;
    x.record = record, x.row = first + thread / 32 * 16 + thread % 32 / 4;
    x.blocks = RECORD(blocks), x.scan = RECORD(scan), x.masked = 1, x.n = 0;
    if (KIND >= SM90_GENERAL) x.masked = RECORD(last) - RECORD(high) + RECORD(low) - RECORD(first);
    if (KIND == SM90_CAUSAL) {
        const int last = RECORD(last), kv_len = RECORD(kv_len), shift = RECORD(shift);
        const int high = min(kv_len, ((first + 63) >> a.pack_shift) + shift + 1);
        x.masked = last - max(0, min(kv_len, (first >> a.pack_shift) + shift + 1)) / KEYS;
        if (!PINGPONG)
            x.n = max(0, min(2, min(x.blocks - 1, last - (max(high, 0) + KEYS - 1) / KEYS)));
    }
    return x.n;
}

SM90_TEMPLATE ATTN_DEVICE void skip_k(consumer &x, int skip) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
#pragma unroll 1
    for (int n = 0; n < skip; n++) {
        mbarrier_wait(x.base + at.k_full + 8 * x.k.index, x.k.parity);
        release_k<SM90_CONFIG>(x, 0);
    }
}
SM90_TEMPLATE ATTN_DEVICE void skip_v(consumer &x, int skip) {
#pragma unroll 1
    for (int n = 0; n < skip; n++) {
        wait_v<SM90_CONFIG>(x, n < x.scan);
        release_v<SM90_CONFIG>(x);
    }
}

/* Wait for Q and the first K that this warpgroup needs of a new tile. */
SM90_TEMPLATE ATTN_DEVICE void wait_first_scores(consumer &x, int skip) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    skip_k<SM90_CONFIG>(x, skip);
    mbarrier_wait(x.base + at.q_full + 8 * x.warpgroup, x.q_parity);
    x.q_parity ^= 1;
    mbarrier_wait(x.base + at.k_full + 8 * x.k.index, x.k.parity);
}

/* Its first probabilities. */
SM90_TEMPLATE ATTN_DEVICE void first_probabilities(const flash_fwd_sm90_args &a, consumer &x,
                                                   float (&s)[KEYS / 2], float (&o)[V / 2],
                                                   uint32_t (&p)[KEYS / 4], softmax &r, int skip) {
    wgmma_wait<0>();
    registers_pin(s);
    release_k<SM90_CONFIG>(x, x.n == x.blocks - 1);
    skip_v<SM90_CONFIG>(x, skip);
    finish_scores<KEYS, KIND, 1>(a, x, s);
    softmax_step<KEYS, 1, LAZY>(s, r, x.c);
    round_p<BF16, KEYS>(p, s);
#pragma unroll
    for (int e = 0; e < V / 2; e++) o[e] = 0.f;
}

SM90_TEMPLATE ATTN_DEVICE void finish_tile(const flash_fwd_sm90_args &a, const consumer &x, float (&o)[V / 2],
                                           const softmax &r, uint32_t record, int row) {
    float inverse[2];
    close_rows(a, r, record, row, x.c, inverse);
    store_rows<BF16, V>(a, o, record, row, inverse);
    release_record<SM90_CONFIG>(x, record);
}

SM90_TEMPLATE ATTN_DEVICE void consume(const flash_fwd_sm90_args &a, uint32_t base, int warpgroup) {
    const int turn = 1 + warpgroup, next_turn = 1 + (warpgroup + 1) % WARPGROUPS;
    float o[V / 2];
    uint32_t p[KEYS / 4], record;
    softmax r;
    consumer x = {};
    x.base = base, x.warpgroup = warpgroup, x.lead = threadIdx.x % 128 == 0;
    x.c = KIND >= SM90_GENERAL ? 1.f : a.scale_log2;
    if (PINGPONG && warpgroup == 0) named_barrier_arrive(1, 256);       /* the first turn */
    if (!next_tile<SM90_CONFIG>(x, record)) return;
    int skip = enter_tile<SM90_CONFIG>(a, x, record);
    {
        float s[KEYS / 2];
        if (PINGPONG) named_barrier_sync(turn, 256);
        wait_first_scores<SM90_CONFIG>(x, skip);
        start_scores<SM90_CONFIG>(x, s);
        if (PINGPONG) named_barrier_arrive(next_turn, 256);
        first_probabilities<SM90_CONFIG>(a, x, s, o, p, r, skip);
    }
    for (;;) {
        if (KIND != SM90_FULL) {
#pragma unroll 1
            for (; x.n + 1 < x.masked; ) {
                x.n++;
                step<SM90_CONFIG, 1>(a, x, o, p, r);
            }
        }
#pragma unroll 1
        for (; x.n + 1 < x.blocks; ) {
            x.n++;
            step<SM90_CONFIG, 0>(a, x, o, p, r);
        }
        wait_v<SM90_CONFIG>(x, x.n < x.scan);
        if (!next_tile<SM90_CONFIG>(x, record)) break;
        /* The last PV of this tile and the first QK of the next; O is stored under the latter. */
        float s[KEYS / 2];
        if (PINGPONG) named_barrier_sync(turn, 256);
        start_accumulate<SM90_CONFIG>(x, o, p);
        const uint32_t done = x.record;
        const int row = x.row;
        skip = enter_tile<SM90_CONFIG>(a, x, record);
        wait_first_scores<SM90_CONFIG>(x, skip);
        start_scores<SM90_CONFIG>(x, s);
        if (PINGPONG) named_barrier_arrive(next_turn, 256);
        wgmma_wait<1>();
        registers_pin(o);
        release_v<SM90_CONFIG>(x);
        finish_tile<SM90_CONFIG>(a, x, o, r, done, row);
        first_probabilities<SM90_CONFIG>(a, x, s, o, p, r, skip);
    }
    start_accumulate<SM90_CONFIG>(x, o, p);
    wgmma_wait<0>();
    registers_pin(o);
    finish_tile<SM90_CONFIG>(a, x, o, r, x.record, x.row);
}

/* ---- the kernels ---- */

SM90_TEMPLATE ATTN_DEVICE void block(const flash_fwd_sm90_args &a, const CUtensorMap *q_map,
                                     const CUtensorMap *k_map, const CUtensorMap *v_map) {
    constexpr smem_map at = map_smem<QK, V, KEYS, WARPGROUPS, STAGES>();
    constexpr int GIVE = WARPGROUPS == 3 ? 32 : 56,
                  TAKE = WARPGROUPS == 3 ? 160 : 224; /* of 512 and 504 a lane */
    extern __shared__ uint8_t memory[];
    const uint32_t base = (smem_address(memory) + 1023) & ~1023u;
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0); /* tells the compiler that it is uniform */
    if (threadIdx.x == 0) {
        for (int i = 0; i < WARPGROUPS; i++) {
            mbarrier_init(base + at.q_full + 8 * i, 1);
            mbarrier_init(base + at.q_empty + 8 * i, 1);
        }
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(base + at.k_full + 8 * i, 1);
            mbarrier_init(base + at.k_empty + 8 * i, WARPGROUPS);
            mbarrier_init(base + at.v_full + 8 * i, 1);
            mbarrier_init(base + at.v_empty + 8 * i, WARPGROUPS + 2);
            mbarrier_init(base + at.v_clean + 8 * i, 2);
        }
        for (int i = 0; i < SM90_TILE_SLOTS; i++) {
            mbarrier_init(base + at.tile_full + 8 * i, 1);
            mbarrier_init(base + at.tile_empty + 8 * i, 4 * WARPGROUPS + 3);
            mbarrier_init(base + at.tile_done + 8 * i, 4 * WARPGROUPS);
        }
        mbarrier_init(base + at.tile_wanted, 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    if (warpgroup == 0) {
        warpgroup_registers_give<GIVE>();
        const int warp = threadIdx.x / 32;
        if (warp >= 2) clean<QK, V, KEYS, WARPGROUPS, STAGES, KIND, BF16>(a, base, warp - 2);
        else if (threadIdx.x == 0)
            produce<QK, V, KEYS, WARPGROUPS, STAGES, KIND>(a, q_map, k_map, v_map, base);
        else if (threadIdx.x == 32)
            schedule<QK, V, KEYS, WARPGROUPS, STAGES, KIND>(a, base);
    } else {
        warpgroup_registers_take<TAKE>();
        consume<SM90_CONFIG>(a, base, warpgroup - 1);
    }
}

#define SM90_ENTRY(bf16, symbol, qk, v, kind, keys, warpgroups, stages, pingpong, lazy) \
    extern "C" __global__ void __launch_bounds__(128 * (warpgroups + 1), 1) \
    symbol(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map, \
           const __grid_constant__ CUtensorMap v_map, const __grid_constant__ flash_fwd_sm90_args a) { \
        block<bf16, qk, v, keys, warpgroups, stages, kind, pingpong, lazy>(a, &q_map, &k_map, \
                                                                                    &v_map); \
    }
#define SM90_BF16(...) SM90_ENTRY(1, SM90_SYMBOL(bf16, __VA_ARGS__), __VA_ARGS__)
#define SM90_F16(...) SM90_ENTRY(0, SM90_SYMBOL(f16, __VA_ARGS__), __VA_ARGS__)
#if defined(SM90_ONLY_BF16)     /* half the compile time while tuning */
#define SM90_ENTRIES(...) SM90_BF16(__VA_ARGS__)
#else
#define SM90_ENTRIES(...) SM90_BF16(__VA_ARGS__) SM90_F16(__VA_ARGS__)
#endif
ATTN_SM90_TILES(SM90_ENTRIES)
