// 03_matrix_multiply.cu — C = A B in six rungs: the arithmetic stays the same, the bytes shrink.
// nvcc -O3 03_matrix_multiply.cu -o matmul && ./matmul        (without a GPU: learn run 03 --sim)
// One idea: reuse. A value fetched once and used n times costs 1/n: first in shared memory, then in registers.
// A is [m, k], B is [k, n], C is [m, n], row by row, any sizes.
#include "lesson.h"

// Rung 1: one thread per element, neighbouring threads in a COLUMN: every load of A and store of C is scattered.
__global__ void matmul_scattered(const float *a, const float *b, float *c, int m, int n, int k) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x, col = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= m || col >= n) return;
    float sum = 0;
    for (int i = 0; i < k; i++) sum += a[row * k + i] * b[i * n + col];
    c[row * n + col] = sum;
}

// Rung 2: the same with neighbouring threads in a ROW: B and C coalesced, A broadcast.
__global__ void matmul_coalesced(const float *a, const float *b, float *c, int m, int n, int k) {
    const int col = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= m || col >= n) return;
    float sum = 0;
    for (int i = 0; i < k; i++) sum += a[row * k + i] * b[i * n + col];
    c[row * n + col] = sum;
}

// Rung 3: a block shares tiles of A and B: each global value is fetched once a block and used TILE times.
template <int TILE> __global__ void matmul_shared(const float *a, const float *b, float *c, int m, int n, int k) {
    __shared__ float a_tile[TILE][TILE], b_tile[TILE][TILE];
    const int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * TILE + y, col = blockIdx.x * TILE + x;
    float sum = 0;
    for (int base = 0; base < k; base += TILE) {
        a_tile[y][x] = row < m && base + x < k ? a[row * k + base + x] : 0;
        b_tile[y][x] = base + y < k && col < n ? b[(base + y) * n + col] : 0;
        __syncthreads();
        for (int i = 0; i < TILE; i++) sum += a_tile[y][i] * b_tile[i][x];
        __syncthreads();                    // nobody may overwrite a tile that others still read
    }
    if (row < m && col < n) c[row * n + col] = sum;
}

// Rung 4: a thread keeps ROWS elements of a column: each value of B, once in a register, is used ROWS times.
template <int TILE, int DEPTH, int ROWS>
__global__ void matmul_register_column(const float *a, const float *b, float *c, int m, int n, int k) {
    __shared__ float a_tile[TILE][DEPTH], b_tile[DEPTH][TILE];
    const int threads = TILE * TILE / ROWS, t = threadIdx.x;
    const int x = t % TILE, y = t / TILE * ROWS, row0 = blockIdx.y * TILE, col0 = blockIdx.x * TILE;
    float sum[ROWS] = {};
    for (int base = 0; base < k; base += DEPTH) {
        for (int i = t; i < TILE * DEPTH; i += threads) {
            const int ar = i / DEPTH, ac = i % DEPTH, br = i / TILE, bc = i % TILE;
            a_tile[ar][ac] = row0 + ar < m && base + ac < k ? a[(row0 + ar) * k + base + ac] : 0;
            b_tile[br][bc] = base + br < k && col0 + bc < n ? b[(base + br) * n + col0 + bc] : 0;
        }
        __syncthreads();
        for (int i = 0; i < DEPTH; i++) {
            const float value = b_tile[i][x];
            for (int r = 0; r < ROWS; r++) sum[r] += a_tile[y + r][i] * value;
        }
        __syncthreads();
    }
    for (int r = 0; r < ROWS; r++)
        if (row0 + y + r < m && col0 + x < n) c[(row0 + y + r) * n + col0 + x] = sum[r];
}

// Rung 5: a thread keeps a SIDE x SIDE square: 2 SIDE loads from shared memory feed SIDE * SIDE multiply-adds.
// The columns of a thread are TILE / SIDE apart, so that neighbouring threads read neighbouring words.
template <int TILE, int DEPTH, int SIDE>
__global__ void matmul_register_square(const float *a, const float *b, float *c, int m, int n, int k) {
    __shared__ float a_tile[TILE][DEPTH + 1], b_tile[DEPTH][TILE];
    const int across = TILE / SIDE, threads = across * across, t = threadIdx.x;
    const int x = t % across, y = t / across * SIDE, row0 = blockIdx.y * TILE, col0 = blockIdx.x * TILE;
    float sum[SIDE][SIDE] = {};
    for (int base = 0; base < k; base += DEPTH) {
        for (int i = t; i < TILE * DEPTH; i += threads) {
            const int ar = i / DEPTH, ac = i % DEPTH, br = i / TILE, bc = i % TILE;
            a_tile[ar][ac] = row0 + ar < m && base + ac < k ? a[(row0 + ar) * k + base + ac] : 0;
            b_tile[br][bc] = base + br < k && col0 + bc < n ? b[(base + br) * n + col0 + bc] : 0;
        }
        __syncthreads();
        for (int i = 0; i < DEPTH; i++) {
            float left[SIDE], top[SIDE];
            for (int r = 0; r < SIDE; r++) left[r] = a_tile[y + r][i];
            for (int q = 0; q < SIDE; q++) top[q] = b_tile[i][x + q * across];
            for (int r = 0; r < SIDE; r++)
                for (int q = 0; q < SIDE; q++) sum[r][q] += left[r] * top[q];
        }
        __syncthreads();
    }
    for (int r = 0; r < SIDE; r++)
        for (int q = 0; q < SIDE; q++)
            if (row0 + y + r < m && col0 + x + q * across < n)
                c[(row0 + y + r) * n + col0 + x + q * across] = sum[r][q];
}

// Rung 6: two tiles in shared memory. The next one is on its way in registers while this one is used, and one barrier
// a tile is enough: the buffer that gets overwritten was last read before the previous barrier.
template <int TILE, int DEPTH, int SIDE>
__global__ void matmul_double_buffer(const float *a, const float *b, float *c, int m, int n, int k) {
    __shared__ float a_tile[2][TILE][DEPTH + 1], b_tile[2][DEPTH][TILE];
    const int across = TILE / SIDE, threads = across * across, t = threadIdx.x;
    const int x = t % across, y = t / across * SIDE, row0 = blockIdx.y * TILE, col0 = blockIdx.x * TILE;
    constexpr int PART = DEPTH * SIDE * SIDE / TILE;            // values of each tile that a thread carries
    float a_next[PART], b_next[PART], sum[SIDE][SIDE] = {};
    for (int base = -DEPTH; base < k; base += DEPTH) {
        for (int p = 0; p < PART; p++) {
            const int i = t + p * threads, next = base + DEPTH;
            const int ar = i / DEPTH, ac = i % DEPTH, br = i / TILE, bc = i % TILE;
            a_next[p] = row0 + ar < m && next + ac < k ? a[(row0 + ar) * k + next + ac] : 0;
            b_next[p] = next + br < k && col0 + bc < n ? b[(next + br) * n + col0 + bc] : 0;
        }
        const int now = (base / DEPTH) & 1;
        for (int i = 0; i < DEPTH && base >= 0; i++) {
            float left[SIDE], top[SIDE];
            for (int r = 0; r < SIDE; r++) left[r] = a_tile[now][y + r][i];
            for (int q = 0; q < SIDE; q++) top[q] = b_tile[now][i][x + q * across];
            for (int r = 0; r < SIDE; r++)
                for (int q = 0; q < SIDE; q++) sum[r][q] += left[r] * top[q];
        }
        for (int p = 0; p < PART; p++) {
            const int i = t + p * threads;
            a_tile[1 - now][i / DEPTH][i % DEPTH] = a_next[p];
            b_tile[1 - now][i / TILE][i % TILE] = b_next[p];
        }
        __syncthreads();
    }
    for (int r = 0; r < SIDE; r++)
        for (int q = 0; q < SIDE; q++)
            if (row0 + y + r < m && col0 + x + q * across < n)
                c[(row0 + y + r) * n + col0 + x + q * across] = sum[r][q];
}

static int up(int a, int b) { return (a + b - 1) / b; }

static void launch(int rung, const float *a, const float *b, float *c, int m, int n, int k) {
    const dim3 square(32, 32);
    switch (rung) {
    case 1: matmul_scattered<<<dim3(up(m, 32), up(n, 32)), square>>>(a, b, c, m, n, k); break;
    case 2: matmul_coalesced<<<dim3(up(n, 32), up(m, 32)), square>>>(a, b, c, m, n, k); break;
    case 3: matmul_shared<32><<<dim3(up(n, 32), up(m, 32)), square>>>(a, b, c, m, n, k); break;
    case 4: matmul_register_column<64, 8, 8><<<dim3(up(n, 64), up(m, 64)), 512>>>(a, b, c, m, n, k); break;
    case 5: matmul_register_square<64, 8, 4><<<dim3(up(n, 64), up(m, 64)), 256>>>(a, b, c, m, n, k); break;
    case 6: matmul_double_buffer<128, 8, 8><<<dim3(up(n, 128), up(m, 128)), 256>>>(a, b, c, m, n, k); break;
    }
}

static const char *const names[] = { "", "matmul_scattered", "matmul_coalesced", "matmul_shared",
                                     "matmul_register_column", "matmul_register_square", "matmul_double_buffer" };

static void check(int m, int n, int k) {
    const std::vector<float> a = random_floats((size_t)m * k, 1), b = random_floats((size_t)k * n, 2);
    std::vector<double> want((size_t)m * n, 0.0);
    for (int i = 0; i < m; i++)
        for (int p = 0; p < k; p++)
            for (int j = 0; j < n; j++) want[(size_t)i * n + j] += (double)a[(size_t)i * k + p] * b[(size_t)p * n + j];
    float *da = to_device(a), *db = to_device(b);
    printf("\nC[%d, %d] = A[%d, %d] B[%d, %d]\n", m, n, m, k, k, n);
    for (int rung = 1; rung <= 6; rung++) {
        float *dc = poisoned<float>((size_t)m * n);
        launch(rung, da, db, dc, m, n, k);
        CHECK_LAUNCH();
        compare(names[rung], to_host(dc, (size_t)m * n), want, 6e-8 * k);
        CHECK(cudaFree(dc));
    }
    CHECK(cudaFree(da));
    CHECK(cudaFree(db));
}

// How often each input value is fetched from global memory: n / tile for A, m / tile for B.
static void count_bytes(int s) {
    if (!simulated) return;
    const std::vector<float> x = random_floats((size_t)s * s, 3);
    float *da = to_device(x), *db = to_device(x), *dc = poisoned<float>((size_t)s * s);
    printf("\nA and B of %d x %d are %.0f KB. Fetched by the rungs (predicted from the tile size):\n", s, s, 8e-3 * s * s);
    for (int rung = 3; rung <= 6; rung++) {
#if defined(CUDA_SIMULATED)
        sim_reset();
#endif
        launch(rung, da, db, dc, s, s, s);
        CHECK_LAUNCH();
#if defined(CUDA_SIMULATED)
        const int tile[] = { 0, 1, 1, 32, 64, 64, 128 };
        const sim_counters c = sim_count(names[rung]);
        char text[80];
        snprintf(text, sizeof text, "%s, KB", names[rung]);
        predict(text, 8e-3 * s * s * (s / tile[rung]), (double)c.load_bytes * 1e-3, 0.01);
        if (rung == 3) fact("KB fetched with tiles of 32", (double)c.load_bytes * 1e-3);
#endif
    }
    CHECK(cudaFree(da));
    CHECK(cudaFree(db));
    CHECK(cudaFree(dc));
}

static void race(int s) {
    if (simulated) return;
    cudaDeviceProp prop;
    CHECK(cudaGetDeviceProperties(&prop, 0));
    const std::vector<float> x = random_floats((size_t)s * s, 3);
    float *da = to_device(x), *db = to_device(x), *dc = poisoned<float>((size_t)s * s);
    printf("\n%d x %d x %d, against rung 1:\n", s, s, s);
    double first = 0;
    for (int rung = 1; rung <= 6; rung++) {
        const double ms = milliseconds([&] { launch(rung, da, db, dc, s, s, s); });
        const double gflops = 2.0 * s * s * s / ms * 1e-6;
        if (rung == 1) first = gflops;
        printf("  %-26s %9.3f ms  %9.1f GFLOP/s  %6.1f x\n", names[rung], ms, gflops, gflops / first);
    }
    printf("  (%d multiprocessors; the ceiling without tensor cores is 256 FLOP a clock on each)\n",
           prop.multiProcessorCount);
    CHECK(cudaFree(da));
    CHECK(cudaFree(db));
    CHECK(cudaFree(dc));
}

int main() {
    lesson_begin("Lesson 03: matrix multiply, or: reuse");
    check(33, 65, 129);
    check(1, 1, 1);
    count_bytes(128);
    race(4096);
    return lesson_end();
}
