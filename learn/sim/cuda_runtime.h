/* cuda_runtime.h — the CUDA constructs that the lessons use, for g++: the same .cu file runs on a CPU and is counted.
 * Include path trick: a lesson's #include <cuda_runtime.h> finds this file when it is compiled for the simulator.
 * How it works: sim_threads.cpp, sim_memory.cpp, sim_host.cpp, sim_tensor.cpp. */
#ifndef CUDA_SIM_RUNTIME_H
#define CUDA_SIM_RUNTIME_H
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <tuple>

#define CUDA_SIMULATED 1

/* ---- qualifiers: blocks run one after another, so a block's shared memory can be one static object ---- */
#define __global__
#define __host__
#define __device__
#define __constant__ static
#define __shared__ static
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define SIM_UNCOUNTED __attribute__((no_sanitize("thread")))

/* ---- vector types ---- */
struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float2 make_float2(float x, float y) { return { x, y }; }
static inline float4 make_float4(float x, float y, float z, float w) { return { x, y, z, w }; }
static inline int2 make_int2(int x, int y) { return { x, y }; }
static inline int4 make_int4(int x, int y, int z, int w) { return { x, y, z, w }; }

/* ---- the running thread ---- */
struct sim_position { uint3 thread, block; dim3 block_dim, grid_dim; };
extern sim_position sim_here;
#define threadIdx (sim_here.thread)
#define blockIdx (sim_here.block)
#define blockDim (sim_here.block_dim)
#define gridDim (sim_here.grid_dim)

void *sim_dynamic_shared();
#define SIM_DYNAMIC_SHARED(type, name) type *name = (type *)sim_dynamic_shared()

void __syncthreads();
int __syncthreads_count(int predicate);
static inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) != 0; }
void __syncwarp(unsigned mask = 0xffffffffu);
void __threadfence();
static inline void __threadfence_block() {}
unsigned __activemask();
long long clock64();

/* Every lane of the warp in `mask` gives 8 bytes and gets those of lane `source`. */
uint64_t sim_exchange(unsigned mask, uint64_t bits, int source);
unsigned __ballot_sync(unsigned mask, int predicate);
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
int sim_lane();

template <class T> SIM_UNCOUNTED T sim_shuffle(unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = sim_exchange(mask, bits, source);
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T> T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
    const int me = sim_lane();
    return sim_shuffle(mask, v, (me & ~(width - 1)) | (lane & (width - 1)));
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    const int me = sim_lane(), to = me + (int)delta;
    return sim_shuffle(mask, v, (to & ~(width - 1)) == (me & ~(width - 1)) ? to : me);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    const int me = sim_lane(), to = me - (int)delta;
    return sim_shuffle(mask, v, to >= (me & ~(width - 1)) ? to : me);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
    const int me = sim_lane(), to = me ^ bits;
    return sim_shuffle(mask, v, (to & ~(width - 1)) == (me & ~(width - 1)) ? to : me);
}

/* ---- atomics ---- */
void sim_atomic(const void *address, int bytes, const void *site);
template <class T, class F> SIM_UNCOUNTED T sim_read_modify_write(T *address, F change) {
    sim_atomic(address, (int)sizeof(T), __builtin_return_address(0));
    T old = *address;
    *address = change(old);
    return old;
}
template <class T> T atomicAdd(T *a, T v) { return sim_read_modify_write(a, [v](T x) { return (T)(x + v); }); }
template <class T> T atomicMax(T *a, T v) { return sim_read_modify_write(a, [v](T x) { return x > v ? x : v; }); }
template <class T> T atomicMin(T *a, T v) { return sim_read_modify_write(a, [v](T x) { return x < v ? x : v; }); }
template <class T> T atomicExch(T *a, T v) { return sim_read_modify_write(a, [v](T) { return v; }); }
template <class T> T atomicCAS(T *a, T expected, T v) {
    return sim_read_modify_write(a, [=](T x) { return x == expected ? v : x; });
}
static inline unsigned atomicInc(unsigned *a, unsigned top) {
    return sim_read_modify_write(a, [top](unsigned x) { return x >= top ? 0u : x + 1; });
}

/* ---- numbers of 16 bits, and asm: ldmatrix and mma.sync (sim_tensor.cpp) ---- */
struct __half { uint16_t bits; };
struct __nv_bfloat16 { uint16_t bits; };
float __half2float(__half h);
__half __float2half_rn(float x);
float __bfloat162float(__nv_bfloat16 h);
__nv_bfloat16 __float2bfloat16_rn(float x);
void sim_ptx(const char *text, std::initializer_list<void *> outputs, std::initializer_list<uint64_t> inputs);
size_t __cvta_generic_to_shared(const void *p);          /* shared memory has addresses of its own */
static inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }

/* ---- arithmetic ---- */
#define __expf(x) expf(x)
#define __logf(x) logf(x)
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
template <class T> const T &__ldg(const T *p) { return *p; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }

/* ---- host API ---- */
enum cudaError_t {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInvalidConfiguration = 9,
    cudaErrorIllegalAddress = 700, cudaErrorNotReady = 600, cudaErrorStreamCaptureUnsupported = 900
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrClockRate = 13 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal };
enum { cudaEventDefault = 0, cudaEventDisableTiming = 2, cudaStreamNonBlocking = 1 };

typedef struct sim_stream *cudaStream_t;
typedef struct sim_event *cudaEvent_t;
typedef struct sim_graph *cudaGraph_t;
typedef struct sim_graph *cudaGraphExec_t;

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerMultiprocessor;
    int multiProcessorCount, warpSize, maxThreadsPerBlock, major, minor, l2CacheSize, memoryBusWidth;
    int asyncEngineCount, concurrentKernels;
};

cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char *cudaGetErrorString(cudaError_t error);
const char *cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaDeviceReset();
cudaError_t sim_malloc(void **pointer, size_t bytes);
cudaError_t cudaFree(void *pointer);
cudaError_t sim_malloc_host(void **pointer, size_t bytes);
cudaError_t cudaFreeHost(void *pointer);
template <class T> cudaError_t cudaMalloc(T **p, size_t bytes) { return sim_malloc((void **)p, bytes); }
template <class T> cudaError_t cudaMallocHost(T **p, size_t bytes) { return sim_malloc_host((void **)p, bytes); }
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream = 0);
cudaError_t cudaMemset(void *to, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream = 0);
void sim_constant(const void *p, size_t bytes);
template <class T> cudaError_t cudaMemcpyToSymbol(T &symbol, const void *from, size_t bytes) {
    memcpy((void *)&symbol, from, bytes);
    sim_constant(&symbol, sizeof symbol);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = 0);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
template <class K> cudaError_t cudaFuncSetAttribute(K, cudaFuncAttribute, int) { return cudaSuccess; }

/* ---- launching: the translator turns kernel<<<grid, block, shared, stream>>>(args) into this ---- */
struct sim_call {                   /* a kernel and its arguments, copied at the launch */
    virtual void run() const = 0;
    virtual ~sim_call() {}
};
template <class K, class... A> struct sim_call_of : sim_call {
    K kernel;
    std::tuple<A...> arguments;
    sim_call_of(K k, A... a) : kernel(k), arguments(a...) {}
    void run() const override { std::apply(kernel, arguments); }
};
void sim_launch(const char *name, dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                sim_call *call, size_t call_bytes);      /* takes ownership of the call */
template <class... P> struct sim_launcher {
    const char *name;
    void (*kernel)(P...);
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
    void operator()(P... args) const {
        using call = sim_call_of<void (*)(P...), P...>;
        sim_launch(name, grid, block, shared, stream, new call(kernel, args...), sizeof(call));
    }
};
template <class... P>
sim_launcher<P...> sim_kernel(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared = 0,
                              cudaStream_t stream = 0) {
    return { name, kernel, grid, block, shared, stream };
}

/* ---- what the simulator knows of the last launches of a kernel; lessons print and check it ---- */
struct sim_counters {
    int64_t launches, blocks, barriers, divergent_barriers, races, out_of_range, uninitialised, duplicate_stores;
    int64_t load_requests, load_sectors, load_bytes;      /* global loads: warp requests, 32-byte sectors, bytes asked */
    int64_t store_requests, store_sectors, store_bytes;
    int64_t shared_requests, shared_wavefronts, shared_ideal; /* ways = wavefronts / ideal */
    int64_t atomics, shuffles;
};
sim_counters sim_count(const char *kernel);  /* sum over launches since sim_reset(); NULL: all kernels */
void sim_reset();
void sim_name(const void *device_pointer, const char *tensor);   /* for bytes by tensor */
int64_t sim_tensor_bytes(const char *tensor, int stores);        /* bytes that warps load or store, by name */
int sim_errors();                                                /* races, divergence, bad accesses so far */
static const int warpSize = 32;
#endif
