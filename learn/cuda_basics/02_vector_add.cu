// 02_vector_add.cu — adding vectors costs what moving their bytes costs.
// nvcc -O3 02_vector_add.cu -o vector_add && ./vector_add        (without a GPU: learn run 02 --sim)
// One idea: a warp's 32 loads travel as 32-byte sectors. Neighbouring threads should touch neighbouring words.
#include "lesson.h"

// c[i * stride] = a[i * stride] + b[i * stride]: the same work, spread out further and further.
__global__ void add_strided(const float *a, const float *b, float *c, int n, int stride) {
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) * stride;
    if (i < n) c[i] = a[i] + b[i];
}

// Four floats an access, and a loop: any grid size covers any n. The tail is done one by one.
__global__ void add_vectorised(const float4 *a, const float4 *b, float4 *c, int n) {
    const int step = gridDim.x * blockDim.x, first = blockIdx.x * blockDim.x + threadIdx.x;
    for (int i = first; i < n / 4; i += step) {
        const float4 x = a[i], y = b[i];
        c[i] = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
    }
    const float *a1 = (const float *)a, *b1 = (const float *)b;
    for (int i = n / 4 * 4 + first; i < n; i += step) ((float *)c)[i] = a1[i] + b1[i];
}

static void strides(int n) {
    const std::vector<float> a = random_floats(n, 1), b = random_floats(n, 2);
    float *da = to_device(a), *db = to_device(b), *dc = poisoned<float>(n);
    printf("\nPrediction: a warp loads 32 floats. At stride 1 they lie in 128 bytes = 4 sectors; at stride 8 and\n"
           "above each float needs a sector of its own: 32 sectors, 1/8 of every sector useful.\n");
    double base = 0;
    for (int stride : { 1, 2, 8, 32 }) {
        CHECK(cudaMemset(dc, 0xff, n * sizeof(float)));
        const int work = n / stride, blocks = (work + 255) / 256;
#if defined(CUDA_SIMULATED)
        sim_reset();
#endif
        const double ms = milliseconds([&] { add_strided<<<blocks, 256>>>(da, db, dc, n, stride); });
        const std::vector<float> c = to_host(dc, n);
        std::vector<float> got;
        std::vector<double> want;
        for (int i = 0; i < n; i += stride) {
            got.push_back(c[i]);
            want.push_back((double)a[i] + b[i]);
        }
        char text[80];
        snprintf(text, sizeof text, "stride %d: sums", stride);
        compare(text, got, want, 1.2e-7);
#if defined(CUDA_SIMULATED)
        const sim_counters count = sim_count("add_strided");
        predict("         sectors per load request", stride == 1 ? 4 : stride == 2 ? 8 : 32,
                (double)count.load_sectors / (double)count.load_requests, 0);
        snprintf(text, sizeof text, "sectors at stride %d", stride);
        fact(text, (double)count.load_sectors / (double)count.load_requests);
#endif
        const double useful = 12.0 * work / ms * 1e-6;
        if (stride == 1) base = useful;
        if (!simulated) printf("       %8.3f ms, %7.1f GB/s useful, %4.0f %% of stride 1\n", ms, useful, 100 * useful / base);
    }
    CHECK(cudaFree(da));
    CHECK(cudaFree(db));
    CHECK(cudaFree(dc));
}

static void vectorised(int n) {
    const std::vector<float> a = random_floats(n, 3), b = random_floats(n, 4);
    float *da = to_device(a), *db = to_device(b), *dc = poisoned<float>(n);
#if defined(CUDA_SIMULATED)
    sim_reset();
#endif
    const int blocks = simulated ? 8 : 132 * 8;
    const double ms = milliseconds([&] {
        add_vectorised<<<blocks, 256>>>((const float4 *)da, (const float4 *)db, (float4 *)dc, n);
    });
    std::vector<double> want(n);
    for (int i = 0; i < n; i++) want[i] = (double)a[i] + b[i];
    printf("\nfloat4, grid-stride loop, n = %d (not a multiple of 4):\n", n);
    compare("sums, tail included", to_host(dc, n), want, 1.2e-7);
    // The ceiling: what this machine's own copy moves (it reads and writes every byte once).
    const double copy_ms = milliseconds([&] {
        CHECK(cudaMemcpyAsync(dc, da, n * sizeof(float), cudaMemcpyDeviceToDevice));
    });
    if (simulated) printf("       (times are meaningless in the simulator; on a GPU this prints GB/s and %% of its copy speed)\n");
    else printf("       %.1f GB/s, %.0f %% of the device's own copy\n", 12.0 * n / ms * 1e-6,
                100 * (12.0 * n / ms) / (8.0 * n / copy_ms));
    CHECK(cudaFree(da));
    CHECK(cudaFree(db));
    CHECK(cudaFree(dc));
}

int main() {
    lesson_begin("Lesson 02: vector add, or: bytes are the unit of cost");
    strides(simulated ? 1 << 14 : 1 << 26);
    vectorised(simulated ? 10003 : 100000003);
    return lesson_end();
}
