// Wrong on purpose: lanes that hold nothing are left out of the shuffle mask they take part in.
// rejected by: NO
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
    if (threadIdx.x < 8)
        for (int d = 4; d > 0; d /= 2) best = fmaxf(best, __shfl_down_sync(0xffu, best, d));
    if (threadIdx.x == 0) out[0] = best;
}
