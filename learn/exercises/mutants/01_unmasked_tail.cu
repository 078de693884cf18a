// Wrong on purpose: no guard at the image's edge.
// rejected by: out of range
#include "../01_image.h"

__global__ void invert(const float *in, float *out, int width, int height) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    out[y * width + x] = 1 - in[y * width + x];
}
