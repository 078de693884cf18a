// Solution of exercise 03.
#include "../03_tile.h"

__global__ void matmul(const float *a, const float *b, float *c, int m, int n, int k) {
    __shared__ float a_tile[16][16], b_tile[16][16];
    const int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * 16 + y, col = blockIdx.x * 16 + x;
    float sum = 0;
    for (int base = 0; base < k; base += 16) {
        a_tile[y][x] = row < m && base + x < k ? a[row * k + base + x] : 0;
        b_tile[y][x] = base + y < k && col < n ? b[(base + y) * n + col] : 0;
        __syncthreads();
        for (int i = 0; i < 16; i++) sum += a_tile[y][i] * b_tile[i][x];
        __syncthreads();
    }
    if (row < m && col < n) c[row * n + col] = sum;
}
