// 03_tile.cu — exercise: fetch each value once a block, not once a thread.
// Fill the hole, then: learn check 03 --my FILE
#include "03_tile.h"

__global__ void matmul(const float *a, const float *b, float *c, int m, int n, int k) {
    const int col = blockIdx.x * 16 + threadIdx.x, row = blockIdx.y * 16 + threadIdx.y;
    if (row >= m || col >= n) return;
    float sum = 0;
    for (int i = 0; i < k; i++) sum += a[row * k + i] * b[i * n + col];   // hole: right, but 16 times the bytes
    c[row * n + col] = sum;
}
