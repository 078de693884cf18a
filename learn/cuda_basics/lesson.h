/* lesson.h — what the lessons share: error checks that stop, data, a float64 comparison that NaN can't pass, timing
 * beside the machine's own copy speed, and predictions that are compared with what was counted. */
#ifndef LESSON_H
#define LESSON_H
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>
#include <vector>

#if defined(CUDA_SIMULATED) || defined(LESSON_SMALL)      /* LESSON_SMALL: the simulator's sizes on a GPU (conformance) */
static const bool simulated = true;
#else
static const bool simulated = false;
#endif

static int failures;    /* main returns lesson_end(), so that the exit code tells the truth */

#define CHECK(call)                                                                                              \
    do {                                                                                                         \
        const cudaError_t error_ = (call);                                                                       \
        if (error_ != cudaSuccess) {                                                                             \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_));           \
            exit(1);                                                                                             \
        }                                                                                                        \
    } while (0)

/* A launch reports its own mistakes (configuration) at once and the kernel's (memory) when we wait. */
#define CHECK_LAUNCH()                                                                                           \
    do {                                                                                                         \
        CHECK(cudaGetLastError());                                                                               \
        CHECK(cudaDeviceSynchronize());                                                                          \
    } while (0)

static inline void expect(bool truth, const char *claim) {
    printf("  %s  %s\n", truth ? "yes" : "NO ", claim);
    failures += !truth;
}

/* A number that came out of this run, for `learn quiz`: one line in the file that LEARN_FACTS names. */
static inline void fact(const char *name, double value) {
    const char *path = getenv("LEARN_FACTS");
    FILE *file = path ? fopen(path, "a") : nullptr;
    if (!file) return;
    fprintf(file, "%s\t%.17g\n", name, value);
    fclose(file);
}

/* The bits of a result, for sim/conformance.py: one line in the file that LEARN_RESULTS names. */
static inline void record(const char *name, const void *data, size_t bytes) {
    const char *path = getenv("LEARN_RESULTS");
    FILE *file = path ? fopen(path, "a") : nullptr;
    if (!file) return;
    uint64_t hash = 14695981039346656037ull;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 1099511628211ull;
    fprintf(file, "%s\t%zu\t%016llx\n", name, bytes, (unsigned long long)hash);
    fclose(file);
}

/* A number that the lesson predicts before it runs, and what came out. */
static inline void predict(const char *what, double predicted, double counted, double tolerance) {
    const bool ok = std::fabs(counted - predicted) <= tolerance * std::fabs(predicted);   /* false for NaN */
    printf("  %s  %-44s predicted %10.2f  counted %10.2f\n", ok ? "yes" : "NO ", what, predicted, counted);
    failures += !ok;
}

static inline std::vector<float> random_floats(size_t n, uint64_t seed) {
    std::vector<float> x(n);
    for (float &v : x) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        v = (float)((double)(seed >> 33) / (double)(1u << 30) - 1);
    }
    return x;
}

template <class T> T *to_device(const std::vector<T> &host) {
    T *device;
    CHECK(cudaMalloc(&device, host.size() * sizeof(T)));
    CHECK(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
    return device;
}

/* Device memory full of NaN: what a kernel forgets to write can't look right. */
template <class T> T *poisoned(size_t n) {
    T *device;
    CHECK(cudaMalloc(&device, n * sizeof(T)));
    CHECK(cudaMemset(device, 0xff, n * sizeof(T)));
    return device;
}

template <class T> std::vector<T> to_host(const T *device, size_t n) {
    std::vector<T> host(n);
    CHECK(cudaMemcpy(host.data(), device, n * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
}

/* Largest |x - reference| must be within `allowed`; the first wrong element is named. */
static inline bool compare(const char *what, const std::vector<float> &x, const std::vector<double> &reference,
                           double allowed) {
    double worst = 0;
    size_t wrong = x.size();
    for (size_t i = 0; i < x.size(); i++) {
        const double error = std::fabs(x[i] - reference[i]);
        if (!(error <= allowed) && wrong == x.size()) wrong = i;
        if (!(error <= worst)) worst = error;
    }
    const bool ok = wrong == x.size();
    record(what, x.data(), x.size() * sizeof(float));
    printf("  %s  %-44s max error %.2e (allowed %.2e)\n", ok ? "yes" : "NO ", what, worst, allowed);
    if (!ok) printf("       first wrong: [%zu] = %g, expected %g\n", wrong, x[wrong], reference[wrong]);
    failures += !ok;
    return ok;
}

/* Median milliseconds of `run` (which launches on the default stream) by events, after a warm-up. */
template <class F> double milliseconds(F run) {
    const int rounds = simulated ? 1 : 21;
    std::vector<float> times;
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    if (!simulated) run();
    for (int i = 0; i < rounds; i++) {
        CHECK(cudaEventRecord(begin));
        run();
        CHECK(cudaEventRecord(end));
        CHECK(cudaEventSynchronize(end));
        float ms;
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        times.push_back(ms);
    }
    CHECK(cudaGetLastError());
    CHECK(cudaEventDestroy(begin));
    CHECK(cudaEventDestroy(end));
    for (size_t i = 1; i < times.size(); i++)
        for (size_t j = i; j && times[j] < times[j - 1]; j--) std::swap(times[j], times[j - 1]);
    return times[times.size() / 2];
}

static inline void lesson_begin(const char *title) {
    cudaDeviceProp prop;
    CHECK(cudaGetDeviceProperties(&prop, 0));
    printf("%s\non: %s\n\n", title, prop.name);
}

/* @return the exit code */
static inline int lesson_end() {
    CHECK(cudaDeviceSynchronize());
#if defined(CUDA_SIMULATED)
    if (sim_errors()) failures++;
#endif
    printf("\n%s\n", failures ? "FAILED: see the lines marked NO" : "All of it holds.");
    return failures != 0;
}
#endif
