// Solution of exercise 02.
#include "../02_scale.h"

__global__ void scale(const float *x, float *y, float factor, int n) {
    const int step = gridDim.x * blockDim.x, first = blockIdx.x * blockDim.x + threadIdx.x;
    const float4 *x4 = (const float4 *)x;
    float4 *y4 = (float4 *)y;
    for (int i = first; i < n / 4; i += step) {
        const float4 v = x4[i];
        y4[i] = make_float4(factor * v.x, factor * v.y, factor * v.z, factor * v.w);
    }
    for (int i = n / 4 * 4 + first; i < n; i += step) y[i] = factor * x[i];
}
