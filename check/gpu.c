/* gpu.c — device memory, a stream and event timing for the tools, on the device's primary context. */
#include "gpu.h"
#include "cuda/driver.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FLUSH_BYTES = 256 << 20 };   /* as do_bench: a flush long enough for the host to queue what comes
                                       behind it */

struct check_gpu {
    const attn_cuda_driver *driver;
    cu_device  device;
    cu_context context;
    cu_stream  stream;
    cu_event   flushing[CHECK_GPU_RUNS], start[CHECK_GPU_RUNS], stop[CHECK_GPU_RUNS];
    cu_pointer flush;               /* overwritten to empty the L2 cache; 0 until needed */
    size_t     flush_bytes;
    cu_result  error;               /* the first one */
    check_gpu_info info;
};

static int failed(check_gpu *gpu, cu_result result) {
    if (result && !gpu->error) gpu->error = result;
    return result != CU_OK;
}

/* ---- life ---- */

int check_gpu_read(int ordinal, check_gpu_info *info, char *why, size_t size) {
    const attn_cuda_driver *d = attn_cuda_open(why, size);
    cu_device device = 0;
    size_t bytes = 0;
    int major = 0, minor = 0;
    if (!d) return 1;
    *info = (check_gpu_info){ .ordinal = ordinal };
    (void)d->DeviceGetCount(&info->count);
    const cu_result result = d->DeviceGet(&device, ordinal);
    if (result) {
        snprintf(why, size, "CUDA device %d of %d: %s", ordinal, info->count, attn_cuda_error(d, result));
        return 1;
    }
    const struct { int attribute, *value; } rows[] = {
        { CU_CAPABILITY_MAJOR, &major }, { CU_CAPABILITY_MINOR, &minor },
        { CU_MULTIPROCESSOR_COUNT, &info->multiprocessors }, { CU_CLOCK_RATE, &info->clock_khz },
        { CU_MEMORY_CLOCK_RATE, &info->memory_khz }, { CU_MEMORY_BUS_WIDTH, &info->bus_bits },
        { CU_L2_BYTES, &info->l2_bytes },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (d->DeviceGetAttribute(rows[i].value, rows[i].attribute, device)) *rows[i].value = 0;
    (void)d->DriverGetVersion(&info->driver);
    (void)d->DeviceGetName(info->name, (int)sizeof info->name, device);
    (void)d->DeviceTotalMem(&bytes, device);
    info->memory_bytes = (double)bytes;
    info->capability = 10 * major + minor;
    return 0;
}

static cu_result start(check_gpu *gpu, int ordinal) {
    const attn_cuda_driver *d = gpu->driver;
    cu_result result = d->DeviceGet(&gpu->device, ordinal);
    if (!result) result = d->DevicePrimaryCtxRetain(&gpu->context, gpu->device);
    if (!result) result = d->CtxPushCurrent(gpu->context);
    if (!result) result = d->StreamCreate(&gpu->stream, 0);
    for (int i = 0; i < CHECK_GPU_RUNS && !result; i++) {
        result = d->EventCreate(&gpu->flushing[i], 0);
        if (!result) result = d->EventCreate(&gpu->start[i], 0);
        if (!result) result = d->EventCreate(&gpu->stop[i], 0);
    }
    return result;
}

check_gpu *check_gpu_open(int ordinal, char *why, size_t size) {
    const attn_cuda_driver *driver = attn_cuda_open(why, size);
    if (!driver) return NULL;
    check_gpu *gpu = calloc(1, sizeof *gpu);
    if (!gpu) {
        snprintf(why, size, "out of memory");
        return NULL;
    }
    gpu->driver = driver;
    const cu_result result = start(gpu, ordinal);
    if (result) {
        snprintf(why, size, "CUDA device %d: %s", ordinal, attn_cuda_error(driver, result));
        check_gpu_close(gpu);
        return NULL;
    }
    (void)check_gpu_read(ordinal, &gpu->info, why, size);
    return gpu;
}

void check_gpu_close(check_gpu *gpu) {
    if (!gpu) return;
    const attn_cuda_driver *d = gpu->driver;
    cu_context popped;
    for (int i = 0; i < CHECK_GPU_RUNS; i++) {
        if (gpu->flushing[i]) (void)d->EventDestroy(gpu->flushing[i]);
        if (gpu->start[i]) (void)d->EventDestroy(gpu->start[i]);
        if (gpu->stop[i]) (void)d->EventDestroy(gpu->stop[i]);
    }
    if (gpu->flush) (void)d->MemFree(gpu->flush);
    if (gpu->stream) (void)d->StreamDestroy(gpu->stream);
    if (gpu->context) {
        (void)d->CtxPopCurrent(&popped);
        (void)d->DevicePrimaryCtxRelease(gpu->device);
    }
    free(gpu);
}

void check_gpu_describe(const check_gpu *gpu, check_gpu_info *info) { *info = gpu->info; }
void *check_gpu_stream(check_gpu *gpu) { return gpu->stream; }

int check_gpu_wait(check_gpu *gpu, char *why, size_t size) {
    const cu_result result = gpu->driver->CtxSynchronize();
    if (!failed(gpu, result)) return 0;
    snprintf(why, size, "%s", attn_cuda_error(gpu->driver, result));
    return 1;
}

/* ---- memory ---- */

static void *gpu_alloc(void *context, size_t bytes) {
    check_gpu *gpu = context;
    cu_pointer pointer = 0;
    if (failed(gpu, gpu->driver->MemAlloc(&pointer, bytes ? bytes : 1))) return NULL;
    return (void *)(uintptr_t)pointer;
}

static void gpu_free(void *context, void *memory) {
    check_gpu *gpu = context;
    if (memory) (void)failed(gpu, gpu->driver->MemFree((cu_pointer)(uintptr_t)memory));
}

static int gpu_upload(void *context, void *device, const void *host, size_t bytes) {
    check_gpu *gpu = context;
    return failed(gpu, gpu->driver->CtxSynchronize()) ||
           (bytes && failed(gpu, gpu->driver->MemcpyHtoD((cu_pointer)(uintptr_t)device, host, bytes)));
}

static int gpu_download(void *context, void *host, const void *device, size_t bytes) {
    check_gpu *gpu = context;
    return failed(gpu, gpu->driver->CtxSynchronize()) ||
           (bytes && failed(gpu, gpu->driver->MemcpyDtoH(host, (cu_pointer)(uintptr_t)device, bytes)));
}

check_memory check_gpu_memory(check_gpu *gpu) {
    return (check_memory){ .name = "cuda", .device = ATTN_CUDA, .alloc = gpu_alloc, .free = gpu_free,
                           .upload = gpu_upload, .download = gpu_download, .context = gpu };
}

/* ---- timing ---- */

static int flush(check_gpu *gpu) {
    const attn_cuda_driver *d = gpu->driver;
    if (!gpu->flush) {
        gpu->flush_bytes = FLUSH_BYTES;
        if (gpu->info.l2_bytes > FLUSH_BYTES / 2) gpu->flush_bytes = 2 * (size_t)gpu->info.l2_bytes;
        if (failed(gpu, d->MemAlloc(&gpu->flush, gpu->flush_bytes))) return 1;
    }
    return failed(gpu, d->MemsetD8Async(gpu->flush, 0x5a, gpu->flush_bytes, gpu->stream));
}

static double host_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds between two events; negative: failed. */
static double between(check_gpu *gpu, cu_event first, cu_event second) {
    float milliseconds;
    if (failed(gpu, gpu->driver->EventElapsedTime(&milliseconds, first, second))) return -1;
    return 1e-3 * (double)milliseconds;
}

int check_gpu_time_cold(check_gpu *gpu, check_gpu_work work, void *arg, int count, check_gpu_cold *runs) {
    const attn_cuda_driver *d = gpu->driver;
    if (count < 1 || count > CHECK_GPU_RUNS) return 1;
    for (int i = 0; i < count; i++) {
        if (failed(gpu, d->EventRecord(gpu->flushing[i], gpu->stream))) return 1;
        const double begin = host_seconds();
        if (flush(gpu) || failed(gpu, d->EventRecord(gpu->start[i], gpu->stream)) || work(arg, gpu->stream) ||
            failed(gpu, d->EventRecord(gpu->stop[i], gpu->stream)))
            return 1;
        runs[i].queueing = host_seconds() - begin;
    }
    if (failed(gpu, d->EventSynchronize(gpu->stop[count - 1]))) return 1;
    for (int i = 0; i < count; i++) {
        runs[i].flush = between(gpu, gpu->flushing[i], gpu->start[i]);
        runs[i].seconds = between(gpu, gpu->start[i], gpu->stop[i]);
        if (runs[i].flush < 0 || runs[i].seconds < 0) return 1;
    }
    return 0;
}

static double time_warm(check_gpu *gpu, check_gpu_work work, void *arg, int64_t iterations) {
    const attn_cuda_driver *d = gpu->driver;
    if (failed(gpu, d->EventRecord(gpu->start[0], gpu->stream))) return -1;
    for (int64_t i = 0; i < iterations; i++)
        if (work(arg, gpu->stream)) return -1;
    if (failed(gpu, d->EventRecord(gpu->stop[0], gpu->stream)) ||
        failed(gpu, d->EventSynchronize(gpu->stop[0])))
        return -1;
    return between(gpu, gpu->start[0], gpu->stop[0]);
}

double check_gpu_time(check_gpu *gpu, check_gpu_work work, void *arg, int64_t iterations, int cold) {
    check_gpu_cold runs[CHECK_GPU_RUNS];
    double seconds = 0;
    if (!cold) return time_warm(gpu, work, arg, iterations);
    for (int64_t done = 0; done < iterations; done += CHECK_GPU_RUNS) {
        const int count = iterations - done < CHECK_GPU_RUNS ? (int)(iterations - done) : CHECK_GPU_RUNS;
        if (check_gpu_time_cold(gpu, work, arg, count, runs)) return -1;
        for (int i = 0; i < count; i++) seconds += runs[i].seconds;
    }
    return seconds;
}
