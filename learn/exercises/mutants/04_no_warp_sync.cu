// Wrong on purpose: a warp reduction in shared memory without __syncwarp.
// rejected by: race
#include "../04_maximum.h"

__device__ float warp_maximum(float v) {
    for (int distance = 16; distance > 0; distance /= 2) v = fmaxf(v, __shfl_down_sync(0xffffffffu, v, distance));
    return v;
}

__global__ void maximum(const float *x, float *out, int n) {
    __shared__ float partial[8];
    float best = -INFINITY;
    for (int i = threadIdx.x; i < n; i += 256) best = fmaxf(best, x[i]);
    __shared__ float s[256];
    s[threadIdx.x] = best;
    for (int d = 16; d > 0; d /= 2)
        if (threadIdx.x % 32 < d) s[threadIdx.x] = fmaxf(s[threadIdx.x], s[threadIdx.x + d]);
    best = s[threadIdx.x];
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x < 32) best = warp_maximum(threadIdx.x < 8 ? partial[threadIdx.x] : -INFINITY);
    if (threadIdx.x == 0) out[0] = best;
}
