/* gpu_ceilings.cu — loops that do nothing else: read memory, multiply-add. Measured beside the kernels, so
 * that a speed can be given as a share of what this card does. */
#include <stdint.h>

/* Each thread keeps 8 loads of 16 bytes in flight. The sum is stored only if it is one value that no data
 * has. */
extern "C" __global__ void __launch_bounds__(512)
    ceiling_read(const uint4 *data, int64_t count, unsigned *sink) {
    constexpr int DEEP = 8;
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    unsigned sum = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += DEEP * stride) {
        uint4 x[DEEP];
#pragma unroll
        for (int n = 0; n < DEEP; n++)
            x[n] = i + n * stride < count ? __ldcs(&data[i + n * stride]) : uint4{};
#pragma unroll
        for (int n = 0; n < DEEP; n++) sum ^= x[n].x ^ x[n].y ^ x[n].z ^ x[n].w;
    }
    if (sum == 0x9e3779b9u) *sink = sum;
}

/* 16 independent chains a thread. */
extern "C" __global__ void __launch_bounds__(256)
    ceiling_ffma(float a, float b, int64_t rounds, float *sink) {
    constexpr int CHAINS = 16;
    float x[CHAINS];
#pragma unroll
    for (int n = 0; n < CHAINS; n++) x[n] = (float)(threadIdx.x + n);
    for (int64_t i = 0; i < rounds; i++) {
#pragma unroll
        for (int repeat = 0; repeat < 16; repeat++)
#pragma unroll
            for (int n = 0; n < CHAINS; n++) x[n] = fmaf(x[n], a, b);
    }
    float sum = 0;
#pragma unroll
    for (int n = 0; n < CHAINS; n++) sum += x[n];
    if (sum == 1.0e-37f) *sink = sum;
}
