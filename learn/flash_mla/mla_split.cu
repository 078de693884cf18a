/* mla_split.cu — absorbed MLA decoding on the GPU's CUDA cores: blocks share the tokens, a merge joins their answers.
 *     nvcc -O3 -I../cuda_basics mla_split.cu -o mla_split && ./mla_split        (without a GPU: learn run 38 --sim)
 * Idea: one step has one query but many tokens, so the grid cuts the tokens. A block reads a cache row once for all
 * heads. Twin of mla_split.c; src/cuda/mla_decode_sm90.cu does the same with tensor cores and the copy engine. */
#include "lesson.h"

enum { HEADS = 16, LATENT = 512, ROPE = 64, WIDTH = LATENT + ROPE, TILE = 8, THREADS = 256, WARPS = THREADS / 32 };
enum { MINE = HEADS / WARPS, PER_LANE = WIDTH / 32, OUT_LANE = LATENT / 32 };  /* heads a warp, numbers of a row a lane */

__device__ float warp_sum(float x) {
    for (int n = 16; n; n /= 2) x += __shfl_xor_sync(~0u, x, n);
    return x;
}

/* One head's state: each lane has every 32nd column. */
struct head { float q[PER_LANE], o[OUT_LANE], m, l; };

/* A tile of rows that lie in shared memory: scores, new maximum, then o, for one head. */
__device__ void step(head &h, const float (*rows)[WIDTH], int count, float scale) {
    float s[TILE], top = h.m;
    for (int t = 0; t < TILE; t++) {
        float sum = 0;
        for (int i = 0; i < PER_LANE; i++) sum += h.q[i] * rows[t][threadIdx.x % 32 + 32 * i];
        s[t] = t < count ? scale * warp_sum(sum) : -INFINITY;
        top = fmaxf(top, s[t]);
    }
    const float keep = expf(h.m - top);
    h.l *= keep, h.m = top;
    for (int i = 0; i < OUT_LANE; i++) h.o[i] *= keep;
    for (int t = 0; t < count; t++) {
        const float p = expf(s[t] - top);
        h.l += p;
        for (int i = 0; i < OUT_LANE; i++) h.o[i] += p * rows[t][threadIdx.x % 32 + 32 * i];   /* V: the latent part */
    }
}

/* Block b has tokens b * share .. : o [parts][HEADS][LATENT] divided, lse [parts][HEADS]; no tokens: (0, -infinity). */
__global__ void part(const float *q, const float *cache, float *o, float *lse, int tokens, int share, float scale) {
    __shared__ float rows[TILE][WIDTH];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, begin = blockIdx.x * share;
    const int end = begin + share < tokens ? begin + share : tokens;
    head h[MINE];
#pragma unroll
    for (int n = 0; n < MINE; n++) {
        for (int i = 0; i < PER_LANE; i++) h[n].q[i] = q[(warp * MINE + n) * WIDTH + lane + 32 * i];
        for (int i = 0; i < OUT_LANE; i++) h[n].o[i] = 0;
        h[n].m = -INFINITY, h[n].l = 0;
    }
    for (int first = begin; first < end; first += TILE) {
        const int count = end - first < TILE ? end - first : TILE;
        __syncthreads();                                        /* everyone has used the last tile */
        for (int i = threadIdx.x; i < TILE * WIDTH; i += THREADS)
            rows[i / WIDTH][i % WIDTH] = i < count * WIDTH ? cache[(size_t)first * WIDTH + i] : 0;
        __syncthreads();
#pragma unroll
        for (int n = 0; n < MINE; n++) step(h[n], rows, count, scale);
    }
#pragma unroll
    for (int n = 0; n < MINE; n++) {
        const int at = blockIdx.x * HEADS + warp * MINE + n;
        for (int i = 0; i < OUT_LANE; i++)
            o[(size_t)at * LATENT + lane + 32 * i] = h[n].l > 0 ? h[n].o[i] / h[n].l : 0;
        if (lane == 0) lse[at] = h[n].l > 0 ? h[n].m + logf(h[n].l) : -INFINITY;
    }
}

/* A block a head, a thread a column; parts in order: the same bits every time. */
__global__ void merge(const float *o, const float *lse, float *out, int parts) {
    const int at = blockIdx.x * LATENT + threadIdx.x;
    float top = -INFINITY, total = 0, sum = 0;
    for (int p = 0; p < parts; p++) top = fmaxf(top, lse[p * HEADS + blockIdx.x]);
    for (int p = 0; p < parts; p++) {
        const float weight = expf(lse[p * HEADS + blockIdx.x] - top);
        total += weight;
        sum += weight * o[(size_t)p * HEADS * LATENT + at];
    }
    out[at] = sum / total;
}

/* ---- the lesson ---- */

static std::vector<double> oracle(const std::vector<float> &q, const std::vector<float> &cache, int tokens, double scale) {
    std::vector<double> out(HEADS * LATENT, 0.0), p(tokens);
    for (int h = 0; h < HEADS; h++) {
        double top = -INFINITY, sum = 0;
        for (int t = 0; t < tokens; t++) {
            p[t] = 0;
            for (int x = 0; x < WIDTH; x++) p[t] += scale * q[h * WIDTH + x] * cache[(size_t)t * WIDTH + x];
            top = std::fmax(top, p[t]);
        }
        for (int t = 0; t < tokens; t++) sum += p[t] = std::exp(p[t] - top);
        for (int t = 0; t < tokens; t++)
            for (int x = 0; x < LATENT; x++) out[h * LATENT + x] += p[t] / sum * cache[(size_t)t * WIDTH + x];
    }
    return out;
}

static void decode(int tokens, int parts, bool timed) {
    std::vector<float> q = random_floats(HEADS * WIDTH, 1), cache = random_floats((size_t)tokens * WIDTH, 2);
    for (int t = 0; t < tokens; t++) cache[(size_t)t * WIDTH] = 16.0f * t / tokens - 8;     /* the maximum moves */
    for (int h = 0; h < HEADS; h++) q[h * WIDTH] = 8;
    const float scale = 1 / std::sqrt(192.0f);          /* of the 128 + 64 numbers that a key has before absorption */
    const int share = (tokens + parts - 1) / parts;
    float *dq = to_device(q), *dcache = to_device(cache), *out = poisoned<float>(HEADS * LATENT);
    float *o = poisoned<float>((size_t)parts * HEADS * LATENT), *lse = poisoned<float>(parts * HEADS);
#if defined(CUDA_SIMULATED)
    sim_reset();
    sim_name(dcache, "cache");
#endif
    const auto run = [&] {
        part<<<parts, THREADS>>>(dq, dcache, o, lse, tokens, share, scale);
        merge<<<HEADS, LATENT>>>(o, lse, out, parts);
    };
    run();
    CHECK_LAUNCH();
    char text[80];
    snprintf(text, sizeof text, "%d tokens, %d parts", tokens, parts);
    compare(text, to_host(out, HEADS * LATENT), oracle(q, cache, tokens, scale), 1e-5);
#if defined(CUDA_SIMULATED)
    sim_count(nullptr);                                 /* waits */
    const double read = 1e-3 * (double)sim_tensor_bytes("cache", 0);
    predict("         cache KB: every row once for 16 heads", 4e-3 * tokens * WIDTH, read, 0);
    fact("cache KB read", read);
#endif
    if (timed) {
        const double ms = milliseconds(run);
        printf("       %8.3f ms, %7.1f GB/s of cache\n", ms, 4e-6 * tokens * WIDTH / ms);
    }
    for (float *p : { dq, dcache, out, o, lse }) CHECK(cudaFree(p));
}

int main() {
    lesson_begin("Lesson 38: MLA decoding, split over blocks");
    for (int tokens : { 1, 7, 8, 65 }) decode(tokens, 3, false);        /* some parts have no tokens */
    decode(100, 1, false);
    decode(100, 7, false);
    if (!simulated) {
        printf("\n100000 tokens on more and more blocks:\n");
        for (int parts : { 1, 8, 64, 512 }) decode(100000, parts, true);
    }
    return lesson_end();
}
