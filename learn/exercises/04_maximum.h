// 04_maximum.h — the checker of exercise 04. Define: __global__ void maximum(const float *x, float *out, int n), launched
// with one block of 256 threads; out[0] = the largest x.
#include "lesson.h"
__global__ void maximum(const float *x, float *out, int n);

int main() {
    lesson_begin("Exercise 04: the largest of n numbers, warp shuffles and one barrier");
    for (int n : { 1, 31, 256, 5000 }) {
        std::vector<float> x = random_floats(n, 9);
        for (float &v : x) v -= 3;                 // all negative: 0 is not a neutral element
        x[n * 3 / 4] = -1;                         // a needle, in a late warp
        const double want = -1;
        float *dx = to_device(x), *out = poisoned<float>(1);
        maximum<<<1, 256>>>(dx, out, n);
        CHECK_LAUNCH();
        char text[64];
        snprintf(text, sizeof text, "n = %d", n);
        compare(text, to_host(out, 1), { want }, 0);
        CHECK(cudaFree(dx));
        CHECK(cudaFree(out));
    }
#if defined(CUDA_SIMULATED)
    const sim_counters c = sim_count("maximum");
    expect((double)c.barriers / (double)c.blocks <= 1, "at most one barrier a block");
#endif
    return lesson_end();
}
