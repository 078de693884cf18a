// 02_scale.h — the checker of exercise 02. Define: __global__ void scale(const float *x, float *y, float factor, int n),
// launched with any number of blocks of 256 threads; x and y are aligned to 16 bytes.
#include "lesson.h"
__global__ void scale(const float *x, float *y, float factor, int n);

int main() {
    lesson_begin("Exercise 02: y = factor * x with float4 loads, a grid-stride loop and a tail");
    for (int n : { 1, 3, 1000, 10003 }) {
        const std::vector<float> x = random_floats(n, 6);
        std::vector<double> want;
        for (float v : x) want.push_back(2.5 * v);
        float *dx = to_device(x), *dy = poisoned<float>(n);
        scale<<<2, 256>>>(dx, dy, 2.5f, n);
        CHECK_LAUNCH();
        char text[64];
        snprintf(text, sizeof text, "n = %d", n);
        compare(text, to_host(dy, n), want, 2e-7);
        CHECK(cudaFree(dx));
        CHECK(cudaFree(dy));
    }
#if defined(CUDA_SIMULATED)
    const sim_counters c = sim_count("scale");
    const double useful = (double)c.load_bytes / (32.0 * (double)c.load_sectors);
    const double bytes_a_request = (double)c.load_bytes / (double)c.load_requests;
    expect(useful > 0.97, "every sector that is fetched is used");
    expect(bytes_a_request > 400, "most requests of a warp ask for 512 bytes (float4)");
#endif
    return lesson_end();
}
