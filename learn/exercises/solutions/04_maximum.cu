// Solution of exercise 04.
#include "../04_maximum.h"

__device__ float warp_maximum(float v) {
    for (int distance = 16; distance > 0; distance /= 2) v = fmaxf(v, __shfl_down_sync(0xffffffffu, v, distance));
    return v;
}

__global__ void maximum(const float *x, float *out, int n) {
    __shared__ float partial[8];
    float best = -INFINITY;
    for (int i = threadIdx.x; i < n; i += 256) best = fmaxf(best, x[i]);
    best = warp_maximum(best);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x < 32) best = warp_maximum(threadIdx.x < 8 ? partial[threadIdx.x] : -INFINITY);
    if (threadIdx.x == 0) out[0] = best;
}
