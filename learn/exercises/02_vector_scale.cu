// 02_vector_scale.cu — exercise: y = factor * x for any n and any grid, with float4 loads.
// Fill the hole, then: learn check 02 --my FILE
#include "02_scale.h"

__global__ void scale(const float *x, float *y, float factor, int n) {
    const int step = gridDim.x * blockDim.x, first = blockIdx.x * blockDim.x + threadIdx.x;
    for (int i = first; i < n; i += step) y[i] = factor * x[i];     // hole: right, but four times too many loads
}
