// 04_parallel_reduction.cu — the sum of many numbers in seven rungs.
// nvcc -O3 04_parallel_reduction.cu -o reduction && ./reduction        (without a GPU: learn run 04 --sim)
// One idea: threads must agree on when a partial sum is ready: barriers for a block, shuffles for a warp, a second
// launch or a counter for the grid. And sums in another order round differently: compare with float64.
#include "lesson.h"

enum { THREADS = 256 };

// Rung 1: one thread does it all.
__global__ void sum_one_thread(const float *x, float *out, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    out[0] = sum;
}

// Rung 2: pairs at distance 1, 2, 4, ...: the working threads are scattered over all warps (divergence).
__global__ void sum_interleaved(const float *x, float *out, int n) {
    __shared__ float s[THREADS];
    const int t = threadIdx.x, i = blockIdx.x * THREADS + t;
    s[t] = i < n ? x[i] : 0;
    __syncthreads();
    for (int distance = 1; distance < THREADS; distance *= 2) {
        if (t % (2 * distance) == 0) s[t] += s[t + distance];
        __syncthreads();
    }
    if (t == 0) out[blockIdx.x] = s[0];
}

// Rung 3: halves: the working threads stay together, banks don't collide.
__global__ void sum_halving(const float *x, float *out, int n) {
    __shared__ float s[THREADS];
    const int t = threadIdx.x, i = blockIdx.x * THREADS + t;
    s[t] = i < n ? x[i] : 0;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half) s[t] += s[t + half];
        __syncthreads();
    }
    if (t == 0) out[blockIdx.x] = s[0];
}

// Rung 4: every thread first adds many elements on its way (grid-stride): most of the work needs no barrier at all.
__global__ void sum_grid_stride(const float *x, float *out, int n) {
    __shared__ float s[THREADS];
    const int t = threadIdx.x;
    float sum = 0;
    for (int i = blockIdx.x * THREADS + t; i < n; i += gridDim.x * THREADS) sum += x[i];
    s[t] = sum;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (t < half) s[t] += s[t + half];
        __syncthreads();
    }
    if (t == 0) out[blockIdx.x] = s[0];
}

// Sum over the 32 lanes of a warp: registers to registers, no shared memory, no barrier.
__device__ float warp_sum(float value) {
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_down_sync(0xffffffffu, value, distance);
    return value;
}

// Rung 5: shuffles within warps, shared memory only between them: one barrier.
__device__ float block_sum(float value) {
    __shared__ float partial[THREADS / 32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    value = warp_sum(value);
    if (lane == 0) partial[warp] = value;
    __syncthreads();
    if (warp == 0) value = warp_sum(lane < THREADS / 32 ? partial[lane] : 0);
    return value;                           // right in thread 0
}

__global__ void sum_shuffle(const float *x, float *out, int n) {
    float sum = 0;
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < n; i += gridDim.x * THREADS) sum += x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// Rung 6: float4 loads: a quarter of the load instructions for the same bytes.
__global__ void sum_vectorised(const float *x, float *out, int n) {
    const float4 *x4 = (const float4 *)x;
    float sum = 0;
    const int first = blockIdx.x * THREADS + threadIdx.x, step = gridDim.x * THREADS;
    for (int i = first; i < n / 4; i += step) {
        const float4 v = x4[i];
        sum += (v.x + v.y) + (v.z + v.w);
    }
    for (int i = n / 4 * 4 + first; i < n; i += step) sum += x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// Rung 7: one launch: the block that finishes last adds the partial sums, in block order, so the bits never change.
// __threadfence() makes a block's partial sum visible before its ticket is drawn.
__global__ void sum_last_block(const float *x, float *partial, float *out, unsigned *tickets, int n) {
    __shared__ bool last;
    float sum = 0;
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < n; i += gridDim.x * THREADS) sum += x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        __threadfence();
        last = atomicInc(tickets, gridDim.x - 1) == gridDim.x - 1;      // wraps to 0: ready for the next launch
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    sum = 0;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += THREADS) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[0] = sum;
}

static const char *const names[] = { "", "sum_one_thread", "sum_interleaved", "sum_halving", "sum_grid_stride",
                                     "sum_shuffle", "sum_vectorised", "sum_last_block" };

// Leaves the total in out[0]. `partial` has room for n / THREADS + 1 floats, twice.
static void launch(int rung, const float *x, float *partial, float *out, unsigned *tickets, int n) {
    const int all = (n + THREADS - 1) / THREADS, some = simulated ? 8 : 132 * 8, blocks = all < some ? all : some;
    switch (rung) {
    case 1: sum_one_thread<<<1, 1>>>(x, out, n); return;
    case 2: sum_interleaved<<<all, THREADS>>>(x, partial, n); break;
    case 3: sum_halving<<<all, THREADS>>>(x, partial, n); break;
    case 4: sum_grid_stride<<<blocks, THREADS>>>(x, partial, n); break;
    case 5: sum_shuffle<<<blocks, THREADS>>>(x, partial, n); break;
    case 6: sum_vectorised<<<blocks, THREADS>>>(x, partial, n); break;
    case 7: sum_last_block<<<blocks, THREADS>>>(x, partial, out, tickets, n); return;
    }
    sum_shuffle<<<1, THREADS>>>(partial, out, rung < 4 ? all : blocks);      // second pass over the partial sums
}

int main() {
    lesson_begin("Lesson 04: parallel reduction");
    const int n = simulated ? 20011 : 1 << 26;
    const std::vector<float> x = random_floats(n, 7);
    double want = 0, magnitude = 0;
    for (float v : x) {
        want += v;
        magnitude += std::fabs(v);
    }
    float *dx = to_device(x), *partial = poisoned<float>(n / THREADS + 2), *out = poisoned<float>(1);
    unsigned *tickets = to_device(std::vector<unsigned>(1, 0u));
    printf("sum of %d numbers; float64 says %.6f\n", n, want);
    for (int rung = simulated ? 1 : 2; rung <= 7; rung++) {
        CHECK(cudaMemset(out, 0xff, sizeof(float)));
        launch(rung, dx, partial, out, tickets, n);
        CHECK_LAUNCH();
        // A float sum of n terms in any order is off by at most (n - 1) half ulps of sum |x|; trees do far better.
        compare(names[rung], to_host(out, 1), { want }, magnitude * 6e-8 * (rung == 1 ? n : 40));
        float first = to_host(out, 1)[0];
        bool same = true;
        for (int i = 0; i < (simulated ? 2 : 20); i++) {
            launch(rung, dx, partial, out, tickets, n);
            same = same && to_host(out, 1)[0] == first;
        }
        if (!same) expect(false, "the same bits every time");
        if (simulated) continue;
        const double ms = milliseconds([&] { launch(rung, dx, partial, out, tickets, n); });
        printf("       %8.3f ms  %7.1f GB/s\n", ms, 4.0 * n / ms * 1e-6);
    }
#if defined(CUDA_SIMULATED)
    predict("barriers a block, halving (log2 256 + 1)", 9,
            (double)sim_count("sum_halving").barriers / (double)sim_count("sum_halving").blocks, 0);
    predict("barriers a block, shuffle", 1,
            (double)sim_count("sum_vectorised").barriers / (double)sim_count("sum_vectorised").blocks, 0);
    fact("barriers halving", (double)sim_count("sum_halving").barriers / (double)sim_count("sum_halving").blocks);
#endif
    CHECK(cudaFree(dx));
    CHECK(cudaFree(partial));
    CHECK(cudaFree(out));
    CHECK(cudaFree(tickets));
    return lesson_end();
}
