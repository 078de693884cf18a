/* gpu_ceilings.c — the card's own limits, measured in the same run as the kernels: device copy, read, FFMA,
 * and the bf16 matrix product of cuBLAS where that library is installed (dlopen; nothing links to it). */
#include "gpu.h"
#include "cuda/driver.h"
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

const char *const check_gpu_ceiling_names[CHECK_GPU_CEILINGS] = { "copy", "read", "ffma", "cublas bf16" };

typedef int (*cublas_create)(void **handle);
typedef int (*cublas_set_stream)(void *handle, void *stream);
typedef int (*cublas_gemm)(void *handle, int transpose_a, int transpose_b, int m, int n, int k,
                           const void *alpha, const void *a, int a_type, int a_stride, const void *b,
                           int b_type, int b_stride, const void *beta, void *c, int c_type, int c_stride,
                           int compute, int algorithm);

struct check_gpu_meter {
    check_gpu              *gpu;
    const attn_cuda_driver *driver;
    check_gpu_ceiling       which;
    check_memory            memory;
    void                   *a, *b, *c;      /* device buffers */
    double                  amount;
    cu_library              library;
    cu_kernel               kernel;
    unsigned                blocks;
    void                   *cublas, *handle;
    cublas_gemm             gemm;
    cublas_set_stream       set_stream;
    int                   (*destroy)(void *handle);
};

enum { BYTES = 1 << 30, SIDE = 8192, FFMA_ROUNDS = 2048, BLOCKS_PER_SM = 8 };
enum { CUBLAS_BF16 = 14, CUBLAS_COMPUTE_F32 = 68, CUBLAS_DEFAULT = -1 };

/* ---- getting ready ---- */

#if defined(ATTN_WITH_CUDA)
extern const unsigned char attn_image_gpu_ceilings[];

static int load_kernel(check_gpu_meter *m, const char *name, char *why, size_t size) {
    cu_result result =
        m->driver->LibraryLoadData(&m->library, attn_image_gpu_ceilings, NULL, NULL, 0, NULL, NULL, 0);
    if (!result) result = m->driver->LibraryGetKernel(&m->kernel, m->library, name);
    if (result) snprintf(why, size, "%s: %s", name, attn_cuda_error(m->driver, result));
    return result != CU_OK;
}
#else
static int load_kernel(check_gpu_meter *m, const char *name, char *why, size_t size) {
    (void)m;
    snprintf(why, size, "%s: built without CUDA kernels", name);
    return 1;
}
#endif

/* Bits of random bf16 numbers in -2 .. 2: matrix products run faster on zeros. */
static int fill_random(check_gpu_meter *m, void *device, size_t bytes) {
    const size_t chunk = (size_t)1 << 22;
    uint16_t *host = malloc(chunk);
    if (!host) return 1;
    uint32_t x = 12345;
    for (size_t i = 0; i < chunk / 2; i++) {
        x = x * 1664525u + 1013904223u;
        host[i] = (uint16_t)((x >> 16 & 0x8000) | 0x3c00 | (x >> 8 & 0x3ff));
    }
    int bad = 0;
    for (size_t at = 0; at < bytes && !bad; at += chunk)
        bad = m->memory.upload(m->memory.context, (char *)device + at, host,
                               bytes - at < chunk ? bytes - at : chunk);
    free(host);
    return bad;
}

static int open_cublas(check_gpu_meter *m, char *why, size_t size) {
    const char *const names[] = { "libcublas.so.13", "libcublas.so.12", "libcublas.so" };
    for (int i = 0; i < 3 && !m->cublas; i++) m->cublas = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!m->cublas) {
        snprintf(why, size, "cuBLAS isn't installed (no libcublas.so on the library path)");
        return 1;
    }
    cublas_create create = NULL;
    const struct { void *function; const char *name; } rows[] = {
        { &create, "cublasCreate_v2" }, { &m->destroy, "cublasDestroy_v2" },
        { &m->set_stream, "cublasSetStream_v2" }, { &m->gemm, "cublasGemmEx" } };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        void *address = dlsym(m->cublas, rows[i].name);
        if (!address) {
            snprintf(why, size, "cuBLAS has no %s", rows[i].name);
            return 1;
        }
        memcpy(rows[i].function, &address, sizeof address);
    }
    if (!create(&m->handle)) return 0;
    m->handle = NULL;
    snprintf(why, size, "cublasCreate failed");
    return 1;
}

static int make_buffers(check_gpu_meter *m, size_t a, size_t b, size_t c, char *why, size_t size) {
    void **const buffers[] = { &m->a, &m->b, &m->c };
    const size_t bytes[] = { a, b, c };
    for (int i = 0; i < 3; i++)
        if (bytes[i] && !(*buffers[i] = m->memory.alloc(m->memory.context, bytes[i]))) {
            snprintf(why, size, "no device memory for %zu bytes", bytes[i]);
            return 1;
        }
    return 0;
}

static int prepare(check_gpu_meter *m, char *why, size_t size) {
    check_gpu_info info;
    check_gpu_describe(m->gpu, &info);
    m->blocks = (unsigned)(info.multiprocessors * BLOCKS_PER_SM);
    const size_t side = (size_t)SIDE * SIDE * 2;
    switch (m->which) {
    case CHECK_GPU_COPY:
        m->amount = 2.0 * BYTES;
        return make_buffers(m, BYTES, BYTES, 0, why, size) || fill_random(m, m->a, BYTES);
    case CHECK_GPU_READ:
        m->amount = BYTES;
        return make_buffers(m, BYTES, 0, 4, why, size) || fill_random(m, m->a, BYTES) ||
               load_kernel(m, "ceiling_read", why, size);
    case CHECK_GPU_FFMA:
        m->amount = 2.0 * 16 * 16 * FFMA_ROUNDS * 256 * m->blocks;
        return make_buffers(m, 0, 0, 4, why, size) || load_kernel(m, "ceiling_ffma", why, size);
    default:
        m->amount = 2.0 * SIDE * SIDE * SIDE;
        return make_buffers(m, side, side, side, why, size) || fill_random(m, m->a, side) ||
               fill_random(m, m->b, side) || open_cublas(m, why, size);
    }
}

check_gpu_meter *check_gpu_meter_open(check_gpu *gpu, check_gpu_ceiling which, char *why, size_t size) {
    snprintf(why, size, "filling device memory failed");
    const attn_cuda_driver *driver = attn_cuda_open(why, size);
    check_gpu_meter *m = driver ? calloc(1, sizeof *m) : NULL;
    if (!m) return NULL;
    m->gpu = gpu;
    m->driver = driver;
    m->which = which;
    m->memory = check_gpu_memory(gpu);
    if (!prepare(m, why, size)) return m;
    check_gpu_meter_close(m);
    return NULL;
}

/* ---- running ---- */

static int launch(check_gpu_meter *m, unsigned threads, void *stream, void **arguments) {
    const cu_launch_config config = { .grid_x = m->blocks, .grid_y = 1, .grid_z = 1, .block_x = threads,
                                      .block_y = 1, .block_z = 1, .stream = stream };
    return m->driver->LaunchKernelEx(&config, (cu_function)(void *)m->kernel, arguments, NULL) != CU_OK;
}

int check_gpu_meter_run(void *meter, void *stream) {
    check_gpu_meter *m = meter;
    int64_t count = BYTES / 16, rounds = FFMA_ROUNDS;
    float a = 0.999f, b = 0.001f;
    const float one = 1, zero = 0;
    switch (m->which) {
    case CHECK_GPU_COPY:
        return m->driver->MemcpyDtoDAsync((cu_pointer)(uintptr_t)m->b, (cu_pointer)(uintptr_t)m->a, BYTES,
                                          stream) != CU_OK;
    case CHECK_GPU_READ:
        return launch(m, 512, stream, (void *[]){ &m->a, &count, &m->c });
    case CHECK_GPU_FFMA:
        return launch(m, 256, stream, (void *[]){ &a, &b, &rounds, &m->c });
    default:
        return m->set_stream(m->handle, stream) ||
               m->gemm(m->handle, 1, 0, SIDE, SIDE, SIDE, &one, m->a, CUBLAS_BF16, SIDE, m->b, CUBLAS_BF16,
                       SIDE, &zero, m->c, CUBLAS_BF16, SIDE, CUBLAS_COMPUTE_F32, CUBLAS_DEFAULT);
    }
}

double check_gpu_meter_amount(const check_gpu_meter *m) { return m->amount; }

void check_gpu_meter_close(check_gpu_meter *m) {
    if (!m) return;
    void *const buffers[] = { m->a, m->b, m->c };
    for (int i = 0; i < 3; i++)
        if (buffers[i]) m->memory.free(m->memory.context, buffers[i]);
    if (m->handle) (void)m->destroy(m->handle);
    if (m->library) (void)m->driver->LibraryUnload(m->library);
    if (m->cublas) dlclose(m->cublas);
    free(m);
}
