/* spilling.cu — a kernel that needs more registers than it may have: the build's gate must reject it
 * (ci_cuda.sh). */
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float *x) {
    float a[64];
#pragma unroll
    for (int i = 0; i < 64; i++) a[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 64; i++) x[threadIdx.x * 64 + i] = a[i] * a[(i * 7 + 3) % 64] + a[63 - i];
}
