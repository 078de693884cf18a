/* mla_decode_sm90.cu — multi-head latent attention decode for Hopper: K rows of 576, V their first
 * 512 columns, 64 (query, head) rows a block. One warpgroup feeds; two hold a half of O each and take
 * turns at the K tiles' scores; pairs of blocks share each K tile by multicast.
 * docs/decode-and-mla.md explains the schedule. */
#include "mla_decode_sm90_feed.h"

/* A consumer's place. */
struct consumer {
    uint32_t base, record;      /* shared memory; record: of the part at hand */
    int warpgroup;              /* 0 holds V's columns 0 .. 255 and takes the first K tile of a
                                   pair, 1 the rest */
    int row;                    /* this thread's first row in the tile; the other is row + 8 */
    int high[2];                /* keys seen by both */
    int masked;                 /* from K tile number this on scores are masked */
    float c;
    uint32_t own, other, q;     /* parities: of K in this warpgroup's buffer, of P in the other one's, of Q */
};

/* K tiles of a part go in turns to buffer 0 and 1; warpgroup g computes the scores of those in buffer g. */
ATTN_DEVICE uint32_t tile_at(const consumer &x, int buffer) { return x.base + AT_K + buffer * MLA_TILE; }
ATTN_DEVICE uint32_t state_at(const consumer &x, int buffer) {
    return x.base + AT_STATE + buffer * MLA_STATE_BYTES;
}

/* The two rows of a thread: maximum so far over all K tiles, c times it; this warpgroup's part of the sum. */
struct softmax { float m[2], b[2], l[2]; };

/* ---- scores and probabilities of this warpgroup's own K tiles ---- */

/* The same value, but the compiler doesn't know:
 * it would keep the 72 operand addresses of one use for the next. */
ATTN_DEVICE uint64_t renewed(uint64_t descriptor) {
    asm volatile("" : "+l"(descriptor));
    return descriptor;
}

/* Start chunks FIRST .. LAST - 1 of s = Q K^T as they land. expected 0: no K comes, s may become anything. */
template <int BF16, int BUFFER, int FIRST, int LAST>
ATTN_DEVICE void start_scores(const consumer &x, float (&s)[32], int expected = 1) {
    const uint64_t q = renewed(wgmma_descriptor(x.base + AT_Q, 16));
    const uint64_t k = renewed(wgmma_descriptor(tile_at(x, BUFFER), 16));
#pragma unroll
    for (int d = FIRST; d < LAST; d++) {
        if (expected) mbarrier_wait(x.base + K_FULL + 8 * (MLA_CHUNKS * BUFFER + d), x.own);
        wgmma_fence();
#pragma unroll
        for (int e = 0; e < 4; e++)
            wgmma_ss<BF16, 0, 0>(s, wgmma_advance(q, d * MLA_CHUNK + e * 32),
                                 wgmma_advance(k, d * MLA_CHUNK + e * 32), d + e > 0);
        wgmma_commit();
    }
}
ATTN_DEVICE void wait_scores(consumer &x, float (&s)[32]) {
    wgmma_wait<0>();
    registers_pin(s);
    x.own ^= 1;
}

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

ATTN_DEVICE void mask_scores(const consumer &x, float (&s)[32], int block) {
    const int column = block * MLA_KEYS + 2 * (threadIdx.x & 3);
#pragma unroll
    for (int e = 0; e < 32; e++)
        if (column + e / 4 * 8 + e % 2 >= x.high[e / 2 % 2]) s[e] = -INF;
}

/* New maxima. @return whether O and l are due `factor` (the same for a warp); both go to the K
 * tile's state. A row keeps its old maximum while the new one is less than 2^8 above: P stays below
 * 2^8, the quotient is the same. */
ATTN_DEVICE int update_maxima(const consumer &x, uint32_t state, const float (&s)[32], softmax &r,
                              float (&factor)[2]) {
    float m[2] = { r.m[0], r.m[1] };
#pragma unroll
    for (int e = 0; e < 32; e += 4) {
        m[0] = max_nan(m[0], max_nan(s[e], s[e + 1]));
        m[1] = max_nan(m[1], max_nan(s[e + 2], s[e + 3]));
    }
    m[0] = quad_max(m[0]), m[1] = quad_max(m[1]);
    if ((m[0] - r.m[0]) * x.c <= 8.f) m[0] = r.m[0];
    if ((m[1] - r.m[1]) * x.c <= 8.f) m[1] = r.m[1];
    const int rescale = __any_sync(~0u, m[0] != r.m[0] || m[1] != r.m[1]);
    if (rescale) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float b = offset(m[i], x.c);
            factor[i] = m[i] == r.m[i] ? 1.f : exp2_fast(fmaf(r.m[i], x.c, -b));
            r.l[i] *= factor[i], r.m[i] = m[i], r.b[i] = b;
            if (threadIdx.x % 4 == 0) {
                smem_store(state + STATE_FACTOR + 4 * (x.row + 8 * i), __float_as_uint(factor[i]));
                smem_store(state + STATE_MAXIMUM + 4 * (x.row + 8 * i), __float_as_uint(m[i]));
            }
        }
    }
    if (threadIdx.x % 32 == 0)
        smem_store(state + STATE_RESCALE + threadIdx.x / 32 % 4 * 4, (uint32_t)rescale);
    return rescale;
}

/* s becomes P, in registers for this warpgroup's half of O and in the K tile's last
 * chunk for the other one's. */
template <int BF16, int BUFFER>
ATTN_DEVICE void make_p(const consumer &x, float (&s)[32], softmax &r, uint32_t (&p)[16]) {
    const int lane = threadIdx.x & 31, row = threadIdx.x / 32 % 4 * 16 + (lane & 15);
    const uint32_t to = tile_at(x, BUFFER) + 8 * MLA_CHUNK + row * 128;
#pragma unroll
    for (int g = 0; g < 4; g++) {
#pragma unroll
        for (int e = 8 * g; e < 8 * g + 8; e++) s[e] = exp2_fast(fmaf(s[e], x.c, -r.b[e / 2 % 2]));
#pragma unroll
        for (int e = 8 * g; e < 8 * g + 8; e += 4) {
            r.l[0] += s[e] + s[e + 1];
            r.l[1] += s[e + 2] + s[e + 3];
        }
#pragma unroll
        for (int i = 4 * g; i < 4 * g + 4; i++) p[i] = pack16<BF16>(s[2 * i], s[2 * i + 1]);
        smem_store_matrices(to + (((2 * g + (lane >> 4)) ^ (row & 7)) << 4), p[4 * g], p[4 * g + 1],
                            p[4 * g + 2], p[4 * g + 3]);
    }
    async_proxy_fence();
    __syncwarp();
    if (lane == 0) mbarrier_arrive(x.base + P_FULL + 8 * BUFFER);
}

/* Both 16-bit values of x, infinities and NaNs replaced by 0. */
template <int BF16> ATTN_DEVICE uint32_t finite16(uint32_t x) {
    constexpr uint32_t EXPONENT = BF16 ? 0x7f80u : 0x7c00u;
    if ((x & EXPONENT) == EXPONENT) x &= 0xffff0000u;
    if ((x >> 16 & EXPONENT) == EXPONENT) x &= 0xffffu;
    return x;
}

/* V of keys that not every row sees: P = 0 times NaN would be NaN. Keys out of use become 0, of the others
 * what isn't finite; the state then says so, and it is added to the rows that see it in the end. */
template <int BF16, int BUFFER> ATTN_DEVICE void clean_values(const consumer &x, int block) {
    const uint32_t record = x.record;
    const int thread = threadIdx.x & 127, kv_len = PART(kv_len), first = block * MLA_KEYS;
    int unclean = 0;
    named_barrier_sync(1 + BUFFER, 128);   /* all four warps have read this tile as K */
#pragma unroll 1
    for (int r = max(0, PART(seen_by_all) - first) + thread / 64; r < MLA_KEYS; r += 2) {
        const uint32_t at = tile_at(x, BUFFER) + thread % 64 / 8 * MLA_CHUNK + r * 128 + thread % 8 * 16;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (first + r < kv_len) {
            const uint4 y = smem_load16(at);
            v = make_uint4(finite16<BF16>(y.x), finite16<BF16>(y.y), finite16<BF16>(y.z),
                           finite16<BF16>(y.w));
            unclean |= (v.x != y.x) | (v.y != y.y) | (v.z != y.z) | (v.w != y.w);
        }
        smem_store16(at, v);
    }
    unclean = __any_sync(~0u, unclean);
    if (thread % 32 == 0)
        smem_store(state_at(x, BUFFER) + STATE_UNCLEAN + thread / 32 * 4, (uint32_t)unclean);
    async_proxy_fence();
    named_barrier_sync(1 + BUFFER, 128);
}

/* Scores to P of this warpgroup's K tile, number `block` of its sequence. @return as update_maxima. */
template <int BF16, int BUFFER>
ATTN_DEVICE int soften(const consumer &x, int block, float (&s)[32], softmax &r, uint32_t (&p)[16],
                       float (&factor)[2], int &unclean) {
    const uint32_t state = state_at(x, BUFFER);
    if (block >= x.masked) {
        clean_values<BF16, BUFFER>(x, block);
        for (int w = 0; w < 4; w++) unclean |= (int)smem_load(state + STATE_UNCLEAN + 4 * w);
        mask_scores(x, s, block);
    }
    const int rescale = update_maxima(x, state, s, r, factor);
    make_p<BF16, BUFFER>(x, s, r, p);
    return rescale;
}

/* ---- O += P V, half of the 512 columns ---- */

ATTN_DEVICE void scale_o(float (&o)[128], const float (&factor)[2]) {
#pragma unroll
    for (int e = 0; e < 128; e++) o[e] *= factor[e / 2 % 2];
}

/* G: the warpgroup, BUFFER: of the K tile. */
template <int BF16, int G, int BUFFER>
ATTN_DEVICE void start_own(const consumer &x, float (&o)[128], uint32_t (&p)[16], int accumulate) {
    const uint64_t v = wgmma_descriptor(tile_at(x, BUFFER) + G * 4 * MLA_CHUNK, MLA_CHUNK);
    registers_pin(o);
    registers_pin(p);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; j++)
        wgmma_rs<BF16, 1>(o, p[4 * j], p[4 * j + 1], p[4 * j + 2], p[4 * j + 3], wgmma_advance(v, j * 2048),
                          j > 0 || accumulate);
    wgmma_commit();
}

/* The other warpgroup's tile: wait for its P; its maxima become ours. */
template <int BUFFER>
ATTN_DEVICE void adopt_other(consumer &x, int block, float (&o)[128], softmax &r, int accumulate,
                             int &unclean) {
    const uint32_t state = state_at(x, BUFFER);
    mbarrier_wait(x.base + P_FULL + 8 * BUFFER, x.other);
    x.other ^= 1;
    if (smem_load(state + STATE_RESCALE + threadIdx.x / 32 % 4 * 4)) {
        float factor[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            factor[i] = __uint_as_float(smem_load(state + STATE_FACTOR + 4 * (x.row + 8 * i)));
            r.m[i] = __uint_as_float(smem_load(state + STATE_MAXIMUM + 4 * (x.row + 8 * i)));
            r.b[i] = offset(r.m[i], x.c);
            r.l[i] *= factor[i];
        }
        if (accumulate) scale_o(o, factor);
    }
    if (block >= x.masked)
        for (int w = 0; w < 4; w++) unclean |= (int)smem_load(state + STATE_UNCLEAN + 4 * w);
}

template <int BF16, int G, int BUFFER>
ATTN_DEVICE void multiply_other(const consumer &x, float (&o)[128], int accumulate) {
    const uint64_t p = wgmma_descriptor(tile_at(x, BUFFER) + 8 * MLA_CHUNK, 16);
    const uint64_t v = wgmma_descriptor(tile_at(x, BUFFER) + G * 4 * MLA_CHUNK, MLA_CHUNK);
    registers_pin(o);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; j++)
        wgmma_ss<BF16, 0, 1>(o, wgmma_advance(p, j * 32), wgmma_advance(v, j * 2048), j > 0 || accumulate);
    wgmma_commit();
}

template <int BF16, int G, int BUFFER>
ATTN_DEVICE void start_other(consumer &x, int block, float (&o)[128], softmax &r, int accumulate,
                             int &unclean) {
    adopt_other<BUFFER>(x, block, o, r, accumulate, unclean);
    multiply_other<BF16, G, BUFFER>(x, o, accumulate);
}

/* This half of the K tile has been read: every block of the cluster copies into it. */
template <int CLUSTER, int G, int BUFFER> ATTN_DEVICE void release_half(const consumer &x) {
    if (threadIdx.x % 32) return;
    const uint32_t barrier = x.base + (G ? RIGHT_EMPTY : LEFT_EMPTY) + 8 * BUFFER;
    if (CLUSTER == 1) mbarrier_arrive(barrier);
    else {
#pragma unroll
        for (int rank = 0; rank < CLUSTER; rank++) mbarrier_arrive_at(barrier, rank);
    }
}
ATTN_DEVICE void release_q(const consumer &x) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(x.base + Q_EMPTY);
}

/* Wait for the last batch on o, but not for PENDING later ones; give its tile back. */
template <int CLUSTER, int G, int BUFFER, int PENDING>
ATTN_DEVICE void finish(const consumer &x, float (&o)[128]) {
    wgmma_wait<PENDING>();
    registers_pin(o);
    release_half<CLUSTER, G, BUFFER>(x);
}

/* The scores of the next a follow the batch on o that reads b: EAGER under it, if K has come. */
template <int BF16, int CLUSTER, int EAGER>
ATTN_DEVICE void finish_and_score(consumer &x, float (&o)[128], float (&s)[32]) {
    if (EAGER && mbarrier_ended(x.base + K_FULL + 8, x.own)) {
        start_scores<BF16, 0, 0, 2>(x, s);
        finish<CLUSTER, 0, 1, 2>(x, o);
    } else {
        finish<CLUSTER, 0, 1, 0>(x, o);
        start_scores<BF16, 0, 0, 2>(x, s);
    }
    start_scores<BF16, 0, 2, MLA_CHUNKS>(x, s);
    wait_scores(x, s);
}

/* ---- the two schedules: K tiles go in pairs a, b, in buffers 0 and 1; n counts those of the part ---- */

/* scores a | P a, O += P a V a, O += P b V b, scores of the next a | ... */
template <int BF16, int CLUSTER, int EAGER>
ATTN_DEVICE void walk_first(consumer &x, int first, int blocks, float (&s)[32], float (&o)[128], softmax &r,
                            int &unclean) {
    float factor[2];
    if (EAGER < 2) {
        start_scores<BF16, 0, 0, MLA_CHUNKS>(x, s);
        wait_scores(x, s);
    }
#pragma unroll 1
    for (int n = 0; n < blocks; n += 2) {
        uint32_t p[16];
        if (n + 2 >= blocks) release_q(x);
        if (soften<BF16, 0>(x, first + n, s, r, p, factor, unclean) && n > 0) scale_o(o, factor);
        start_own<BF16, 0, 0>(x, o, p, n > 0);
        finish<CLUSTER, 0, 0, 0>(x, o);
        if (n + 1 == blocks) break;
        start_other<BF16, 0, 1>(x, first + n + 1, o, r, 1, unclean);
        if (n + 2 < blocks) finish_and_score<BF16, CLUSTER, EAGER>(x, o, s);
        else finish<CLUSTER, 0, 1, 0>(x, o);
    }
}

/* EAGER 1, 2: scores b, O += P a V a with P b meanwhile, O += P b V b | scores of the next b ...
 * 0: O += P a V a, scores b, P b, O += P b V b: tile a isn't kept until b has come. */
template <int BF16, int CLUSTER, int EAGER>
ATTN_DEVICE void walk_second(consumer &x, int first, int blocks, float (&s)[32], float (&o)[128], softmax &r,
                             int &unclean) {
    float factor[2];
    if (blocks < 2) release_q(x);
#pragma unroll 1
    for (int n = 0; n < blocks; n += 2) {
        uint32_t p[16];
        if (n + 1 < blocks && EAGER && (EAGER == 1 || n > 0)) {
            start_scores<BF16, 1, 0, MLA_CHUNKS>(x, s);
            wait_scores(x, s);
        }
        start_other<BF16, 1, 0>(x, first + n, o, r, n > 0, unclean);
        if (n + 1 == blocks || !EAGER) finish<CLUSTER, 1, 0, 0>(x, o);
        if (n + 1 == blocks) break;
        if (!EAGER) {
            start_scores<BF16, 1, 0, MLA_CHUNKS>(x, s);
            wait_scores(x, s);
        }
        if (n + 3 >= blocks) release_q(x);
        const int rescale = soften<BF16, 1>(x, first + n + 1, s, r, p, factor, unclean);
        if (EAGER) finish<CLUSTER, 1, 0, 0>(x, o);
        if (rescale) scale_o(o, factor);
        start_own<BF16, 1, 1>(x, o, p, 1);
        finish<CLUSTER, 1, 1, 0>(x, o);
    }
}

/* ---- the end of a part ---- */

/* What was cleaned out of V goes to the rows that see it. Rare. */
template <int BF16>
ATTN_DEVICE void add_unclean(const mla_decode_sm90_args &a, const consumer &x, float (&o)[128]) {
    const attn_problem &p = a.problem;
    const uint32_t record = x.record;
    attn_sequence s;
    s.kv_batch = PART(kv_batch), s.kv_first = PART(kv_first), s.pages = PART_PAGES;
    const int first = max(PART(seen_by_all), PART(first) * MLA_KEYS);
    const int last = min(PART(kv_len), (PART(first) + PART(blocks)) * MLA_KEYS);
#pragma unroll 1
    for (int j = first; j < last; j++) {
        const uint32_t *v = (const uint32_t *)a.tensors.k +
            (attn_kv_offset(&p, &s, p.k_stride, j, PART(head_kv)) + x.warpgroup * 256 +
             2 * (threadIdx.x & 3)) / 2;
#pragma unroll
        for (int g = 0; g < 32; g++) {
            const uint32_t y = v[4 * g];
            const float odd[2] = { unpack16<BF16>(y), unpack16<BF16>(y >> 16) };
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (!(fabsf(odd[e % 2]) < INF) && j < x.high[e / 2]) o[4 * g + e] += odd[e % 2];
        }
    }
}

/* Add up the warpgroups' sums, write LSE; 1 / l, 0 for a row that sees no key. */
ATTN_DEVICE void close_rows(const mla_decode_sm90_args &a, const consumer &x, const softmax &r, ring here,
                            float (&inverse)[2]) {
    const uint32_t record = x.record, sums = x.base + AT_SUMS + 512 * here.index;
    const int slot = PART(slot);
    float l[2] = { quad_sum(r.l[0]), quad_sum(r.l[1]) };
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (threadIdx.x % 4 == 0)
            smem_store(sums + 256 * x.warpgroup + 4 * (x.row + 8 * i), __float_as_uint(l[i]));
    mbarrier_arrive(x.base + SUMS_FULL + 8 * here.index);
    mbarrier_wait(x.base + SUMS_FULL + 8 * here.index, here.parity);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const row_place at = row_place_at(a, record, row_tile() * MLA_ROWS + x.row + 8 * i);
        /* The same sum in both warpgroups: a + b = b + a. */
        l[i] += __uint_as_float(smem_load(sums + 256 * (1 - x.warpgroup) + 4 * (x.row + 8 * i)));
        const float lse = r.b[i] + log2_fast(l[i]);
        const bool empty = l[i] == 0.f || !at.used;
        float below = l[i];
        if (slot < 0 && a.problem.has_sinks && at.written)
            below += exp2_fast(a.tensors.sinks[at.head] * LOG2E - r.b[i]);
        inverse[i] = empty ? 0.f : __frcp_rn(below);
        if (threadIdx.x % 4 || x.warpgroup || !at.written) continue;
        if (slot >= 0)
            a.lse_part[((int64_t)slot * a.tiles + row_tile()) * MLA_ROWS + x.row + 8 * i] =
                empty ? -INF : lse;
        else if (a.tensors.lse) a.tensors.lse[at.lse] = empty ? -INF : lse * LN2;
    }
}

/* Half of a row, a quad's 8 columns at a time: few instructions matter more here than wide ones. */
template <int BF16, int SECOND>
ATTN_DEVICE void store_row(float (&o)[128], uint16_t *to, int written, float inverse) {
#pragma unroll
    for (int g = 0; g < 32; g++) {
        const float *x = &o[4 * g + 2 * SECOND];
        const uint32_t y = inverse == 0.f ? 0 : pack16<BF16>(x[0] * inverse, x[1] * inverse);
        if (written) *(uint32_t *)(to + 8 * g) = y;
    }
}
template <int SECOND> ATTN_DEVICE void store_part_row(float (&o)[128], float *to, float inverse) {
#pragma unroll
    for (int g = 0; g < 32; g++) {
        const float *x = &o[4 * g + 2 * SECOND];
        *(float2 *)(to + 8 * g) = inverse == 0.f ? make_float2(0.f, 0.f)
                                                 : make_float2(x[0] * inverse, x[1] * inverse);
    }
}

template <int BF16>
ATTN_DEVICE void store_o(const mla_decode_sm90_args &a, const consumer &x, float (&o)[128],
                         const float (&inverse)[2]) {
    const uint32_t record = x.record;
    const int slot = PART(slot), columns = x.warpgroup * 256 + 2 * (threadIdx.x & 3);
    if (slot >= 0) {
        float *to = a.o_part + (((int64_t)slot * a.tiles + row_tile()) * MLA_ROWS + x.row) * MLA_V + columns;
        store_part_row<0>(o, to, inverse[0]);
        store_part_row<1>(o, to + 8 * MLA_V, inverse[1]);
        return;
    }
    uint16_t *to = (uint16_t *)a.tensors.o + columns;
    const row_place first = row_place_at(a, record, row_tile() * MLA_ROWS + x.row);
    store_row<BF16, 0>(o, to + first.o, first.written, inverse[0]);
    const row_place second = row_place_at(a, record, row_tile() * MLA_ROWS + x.row + 8);
    store_row<BF16, 1>(o, to + second.o, second.written, inverse[1]);
}

/* ---- a consumer's life ---- */

/* EAGER 2: a part's first scores of this warpgroup are started under the end of the part before. No wgmma
 * may be conditional: where a part has no tile for this warpgroup they run on what happens to be there,
 * and nobody looks at them. */
template <int BF16, int G> ATTN_DEVICE void start_part(consumer &x, uint32_t record, float (&s)[32]) {
    const int blocks = PART(blocks);
    if (blocks > 0) mbarrier_wait(x.base + Q_FULL, x.q);
    start_scores<BF16, G, 0, MLA_CHUNKS>(x, s, blocks > G);
}

template <int BF16, int CLUSTER, int EAGER, int G>
ATTN_DEVICE void consume(const mla_decode_sm90_args &a, uint32_t base) {
    const int thread = threadIdx.x & 127;
    consumer x = {};
    ring slot = { 0, 0 };
    float o[128], s[32];
    x.base = base, x.warpgroup = G, x.c = a.scale_log2;
    x.row = thread / 32 * 16 + thread % 32 / 4;
    uint32_t following = next_part(base, slot);
    if (EAGER == 2) start_part<BF16, G>(x, following, s);
    for (;;) {
        const uint32_t record = x.record = following;
        const int blocks = PART(blocks), row = row_tile() * MLA_ROWS + x.row;
        if (EAGER == 2) {
            wgmma_wait<0>();
            registers_pin(s);
            x.own ^= blocks > G;
        }
        if (blocks < 0) return;
        softmax r = { { -INF, -INF }, { 0.f, 0.f }, { 0.f, 0.f } };
        int unclean = 0;
        float inverse[2];
        x.high[0] = keys_seen(a, record, divide(row, a.by_group));
        x.high[1] = keys_seen(a, record, divide(row + 8, a.by_group));
        x.masked = PART(seen_by_all) / MLA_KEYS;
        if (blocks > 0) {
            if (EAGER < 2) mbarrier_wait(base + Q_FULL, x.q);
            x.q ^= 1;
            if (G == 0) walk_first<BF16, CLUSTER, EAGER>(x, PART(first), blocks, s, o, r, unclean);
            else walk_second<BF16, CLUSTER, EAGER>(x, PART(first), blocks, s, o, r, unclean);
        }
        const ring here = slot;
        ring_next<MLA_PART_SLOTS>(slot);
        if (EAGER == 2) {
            following = next_part(base, slot);
            start_part<BF16, G>(x, following, s);
        }
        if (unclean) add_unclean<BF16>(a, x, o);
        close_rows(a, x, r, here, inverse);
        store_o<BF16>(a, x, o, inverse);
        mbarrier_arrive(base + PART_EMPTY + 8 * here.index);
        if (EAGER < 2) following = next_part(base, slot);
    }
}

/* ---- the kernels ---- */

template <int CLUSTER> ATTN_DEVICE void make_barriers(uint32_t base) {
    mbarrier_init(base + Q_FULL, 1);
    mbarrier_init(base + Q_EMPTY, 8);
    for (int i = 0; i < MLA_BUFFERS * MLA_CHUNKS; i++) mbarrier_init(base + K_FULL + 8 * i, 1);
    for (int i = 0; i < MLA_BUFFERS; i++) {
        mbarrier_init(base + LEFT_EMPTY + 8 * i, 4 * CLUSTER);
        mbarrier_init(base + RIGHT_EMPTY + 8 * i, 4 * CLUSTER);
        mbarrier_init(base + P_FULL + 8 * i, 4);
    }
    for (int i = 0; i < MLA_PART_SLOTS; i++) {
        mbarrier_init(base + PART_FULL + 8 * i, 1);
        mbarrier_init(base + PART_EMPTY + 8 * i, PART_READERS);
        mbarrier_init(base + SUMS_FULL + 8 * i, 256);
    }
    mbarrier_init_fence();
}

template <int CLUSTER>
ATTN_DEVICE void feed(const mla_decode_sm90_args &a, const CUtensorMap *map, const CUtensorMap *q_map,
                      uint32_t base) {
    const int warp = threadIdx.x / 32;
    if (warp == 3) load_q(a, q_map, base);
    else if (threadIdx.x == 64) walk(a, base, blockIdx.y);
    else if (threadIdx.x % 32 == 0) copy_keys<CLUSTER>(a, map, base, warp);
}

template <int BF16, int CLUSTER, int EAGER>
ATTN_DEVICE void block(const mla_decode_sm90_args &a, const CUtensorMap *map, const CUtensorMap *q_map) {
    extern __shared__ uint8_t memory[];
    const uint32_t base = (smem_address(memory) + 1023) & ~1023u;
    /* Tells the compiler that it is uniform. */
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        make_barriers<CLUSTER>(base);
        tma_prefetch_map(map);
        tma_prefetch_map(q_map);
    }
    if (CLUSTER > 1) cluster_sync();
    else __syncthreads();
    grid_wait();
    grid_release();
    if (warpgroup == 0) {
        warpgroup_registers_give<56>();     /* 504 of a lane's in all */
        feed<CLUSTER>(a, map, q_map, base);
    } else {
        warpgroup_registers_take<224>();
        if (warpgroup == 1) consume<BF16, CLUSTER, EAGER, 0>(a, base);
        else consume<BF16, CLUSTER, EAGER, 1>(a, base);
    }
    if (CLUSTER > 1) {      /* no block ends while another one copies into it or arrives at its barriers */
        __syncwarp();
        cluster_sync();
    }
}

#define MLA_ENTRY(name, bf16, cluster, eager) \
    extern "C" __global__ void __launch_bounds__(MLA_THREADS, 1) \
    name(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap q_map, \
         const __grid_constant__ mla_decode_sm90_args a) { \
        block<bf16, cluster, eager>(a, &map, &q_map); \
    }
MLA_ENTRY(mla_decode_bf16_single, 1, 1, 0)
MLA_ENTRY(mla_decode_bf16_several, 1, 1, 2)
MLA_ENTRY(mla_decode_bf16_pair, 1, 2, 1)
MLA_ENTRY(mla_decode_bf16_pairs, 1, 2, 2)
#if !defined(MLA_ONLY_BF16)
MLA_ENTRY(mla_decode_f16_single, 0, 1, 0)
MLA_ENTRY(mla_decode_f16_several, 0, 1, 2)
MLA_ENTRY(mla_decode_f16_pair, 0, 2, 1)
MLA_ENTRY(mla_decode_f16_pairs, 0, 2, 2)
#endif
