// Solution of exercise 01.
#include "../01_image.h"

__global__ void invert(const float *in, float *out, int width, int height) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x < width && y < height) out[y * width + x] = 1 - in[y * width + x];
}
