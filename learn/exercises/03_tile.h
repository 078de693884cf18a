// 03_tile.h — the checker of exercise 03. Define: __global__ void matmul(a, b, c, m, n, k), blocks of 16 x 16 threads, each
// computing a 16 x 16 tile of C[m, n] = A[m, k] B[k, n].
#include "lesson.h"
__global__ void matmul(const float *a, const float *b, float *c, int m, int n, int k);

int main() {
    lesson_begin("Exercise 03: matrix multiply through shared tiles of 16 x 16");
    const int sizes[3][3] = { { 33, 65, 129 }, { 16, 16, 16 }, { 64, 64, 64 } };
    for (const auto &s : sizes) {
        const int m = s[0], n = s[1], k = s[2];
        const std::vector<float> a = random_floats((size_t)m * k, 1), b = random_floats((size_t)k * n, 2);
        std::vector<double> want((size_t)m * n, 0.0);
        for (int i = 0; i < m; i++)
            for (int p = 0; p < k; p++)
                for (int j = 0; j < n; j++) want[(size_t)i * n + j] += (double)a[(size_t)i * k + p] * b[(size_t)p * n + j];
        float *da = to_device(a), *db = to_device(b), *dc = poisoned<float>((size_t)m * n);
#if defined(CUDA_SIMULATED)
        sim_reset();
#endif
        matmul<<<dim3((n + 15) / 16, (m + 15) / 16), dim3(16, 16)>>>(da, db, dc, m, n, k);
        CHECK_LAUNCH();
        char text[64];
        snprintf(text, sizeof text, "m = %d, n = %d, k = %d", m, n, k);
        compare(text, to_host(dc, (size_t)m * n), want, 6e-8 * k);
#if defined(CUDA_SIMULATED)
        if (m == 64) predict("KB fetched from global memory", 4e-3 * 64 * 64 * 2 * (64 / 16), (double)sim_count("matmul").load_bytes * 1e-3, 0.01);
#endif
        CHECK(cudaFree(da));
        CHECK(cudaFree(db));
        CHECK(cudaFree(dc));
    }
    return lesson_end();
}
