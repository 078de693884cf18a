// Wrong on purpose: the kernel does nothing: what was there before must not look right.
// rejected by: NO
#include "../01_image.h"

__global__ void invert(const float *in, float *out, int width, int height) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    (void)x, (void)y, (void)in, (void)out;
}
