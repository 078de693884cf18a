// 05_streams.h — the checker of exercise 05. Define: void pipeline(in, out, host_in, host_out, n, load, run): copy host_in to
// `in` in stream `load`, call increment() in stream `run`, copy back to host_out; done when both streams are idle.
#include "lesson.h"

__global__ void increment(const float *in, float *out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = in[i] + 1;
}

void pipeline(float *in, float *out, const float *host_in, float *host_out, int n, cudaStream_t load, cudaStream_t run);

int main() {
    lesson_begin("Exercise 05: two streams, in the right order");
    const int n = 4096;
    const std::vector<float> x = random_floats(n, 3);
    float *host_in, *host_out, *in = poisoned<float>(n), *out = poisoned<float>(n);
    CHECK(cudaMallocHost(&host_in, n * sizeof(float)));
    CHECK(cudaMallocHost(&host_out, n * sizeof(float)));
    cudaStream_t streams[3];
    for (cudaStream_t &s : streams) CHECK(cudaStreamCreate(&s));
    for (int round = 0; round < 2; round++) {      // both orders of creation: luck helps at most once
        std::vector<double> want;
        for (int i = 0; i < n; i++) {
            host_in[i] = x[i] + (float)round;
            host_out[i] = NAN;
            want.push_back((double)host_in[i] + 1);
        }
        CHECK(cudaMemset(in, 0xff, n * sizeof(float)));
        pipeline(in, out, host_in, host_out, n, streams[round], streams[1 - round]);
        CHECK(cudaDeviceSynchronize());
        compare(round ? "second round" : "first round", std::vector<float>(host_out, host_out + n), want, 1e-6);
    }
    for (cudaStream_t s : streams) CHECK(cudaStreamDestroy(s));
    CHECK(cudaFreeHost(host_in));
    CHECK(cudaFreeHost(host_out));
    CHECK(cudaFree(in));
    CHECK(cudaFree(out));
    return lesson_end();
}
