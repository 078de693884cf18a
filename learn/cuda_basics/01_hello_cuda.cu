// 01_hello_cuda.cu — a grid of blocks of threads: every thread finds its own number.
// nvcc 01_hello_cuda.cu -o hello_cuda && ./hello_cuda        (without a GPU: learn run 01 --sim)
// One idea: index = block * block size + thread. The order in which threads run is not defined.
#include "lesson.h"

// Each thread reports where it is: one entry per global index.
__global__ void hello(int *block_of, int *thread_of, int *warp_of) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    block_of[i] = blockIdx.x;
    thread_of[i] = threadIdx.x;
    warp_of[i] = threadIdx.x / warpSize;
}

// A grid that is larger than the data: the last block's surplus threads must do nothing.
__global__ void count_visits(int *visits, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) visits[i] = visits[i] + 1;
}

static void every_thread_once() {
    const int blocks = 4, threads = 64, n = blocks * threads;
    int *block_of = poisoned<int>(n), *thread_of = poisoned<int>(n), *warp_of = poisoned<int>(n);
    hello<<<blocks, threads>>>(block_of, thread_of, warp_of);
    CHECK_LAUNCH();
    const std::vector<int> b = to_host(block_of, n), t = to_host(thread_of, n), w = to_host(warp_of, n);
    printf("%d blocks of %d threads: %d threads in %d warps\n", blocks, threads, n, n / 32);
    for (int i = 0; i < n; i += 32) printf("  index %3d .. %3d: block %d, warp %d\n", i, i + 31, b[i], w[i]);
    record("block of each index", b.data(), n * sizeof(int));
    record("warp of each index", w.data(), n * sizeof(int));
    bool right = true;
    for (int i = 0; i < n; i++) right = right && b[i] == i / threads && t[i] == i % threads && w[i] == t[i] / 32;
    expect(right, "every index 0 .. 255 was computed by exactly the thread that owns it");
    CHECK(cudaFree(block_of));
    CHECK(cudaFree(thread_of));
    CHECK(cudaFree(warp_of));
}

static void surplus_threads_do_nothing() {
    const int n = 1000, threads = 256, blocks = (n + threads - 1) / threads;
    printf("\n%d elements, %d threads a block: %d blocks, %d surplus threads\n", n, threads, blocks,
           blocks * threads - n);
    int *visits = to_device(std::vector<int>(n, 0));
    count_visits<<<blocks, threads>>>(visits, n);
    CHECK_LAUNCH();
    bool once = true;
    const std::vector<int> seen = to_host(visits, n);
    record("visits of each element", seen.data(), n * sizeof(int));
    for (int v : seen) once = once && v == 1;
    fact("surplus threads", blocks * threads - n);
    expect(once, "each of the 1000 elements was visited once, none beyond");
    CHECK(cudaFree(visits));
}

// Errors don't stop a program by themselves. Ask after every launch.
static void a_wrong_launch_is_reported() {
    printf("\nA launch with 2048 threads a block (the limit is 1024):\n");
    count_visits<<<1, 2048>>>(nullptr, 0);
    const cudaError_t error = cudaGetLastError();
    printf("  cudaGetLastError() says: %s\n", cudaGetErrorString(error));
    expect(error != cudaSuccess, "the mistake was reported because we asked");
}

int main() {
    lesson_begin("Lesson 01: hello, grid");
    every_thread_once();
    surplus_threads_do_nothing();
    a_wrong_launch_is_reported();
    return lesson_end();
}
