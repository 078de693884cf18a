// Wrong on purpose: writes NaN: a comparison that NaN passes would accept it.
// rejected by: NO
#include "../01_image.h"

__global__ void invert(const float *in, float *out, int width, int height) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x < width && y < height) out[y * width + x] = NAN * in[y * width + x];
}
