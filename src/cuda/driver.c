/* driver.c — libcuda.so.1 by dlopen on first use, and its entry points in one table. Nothing links to CUDA:
 * without a driver the library works on, CPU only. Uses nothing else of the library,
 * so that the tools can have their own copy. */
#include "driver.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static attn_cuda_driver table;
static _Atomic(const attn_cuda_driver *) ready;
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;

/* cuGetProcAddress_v2: status may be NULL. flags 0: the default stream is the legacy one. */
typedef cu_result (*lookup)(const char *symbol, void **address, int version, uint64_t flags, int *status);

static const struct { const char *symbol; int version; size_t offset; } rows[] = {
#define ROW(name, symbol, version, parameters) { #symbol, version, offsetof(attn_cuda_driver, name) },
    ATTN_CUDA_FUNCTIONS(ROW)
#undef ROW
};

/* ISO C has no cast from an object pointer to a function pointer; POSIX guarantees that the bytes agree. */
static void set_function(void *function, void *address) { memcpy(function, &address, sizeof address); }

static int fill(attn_cuda_driver *to, void *library, char *why, size_t size) {
    lookup find;
    set_function(&find, dlsym(library, "cuGetProcAddress_v2"));
    if (!find) {
        (void)snprintf(why, size, "the CUDA driver is older than 12.0 (no cuGetProcAddress_v2): update it");
        return 0;
    }
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        void *address = NULL;
        if ((find(rows[i].symbol, &address, rows[i].version, 0, NULL) || !address) &&
            rows[i].version <= ATTN_CUDA_MIN_VERSION) {
            (void)snprintf(why, size, "the CUDA driver has no %s (CUDA %d.%d): update it", rows[i].symbol,
                           rows[i].version / 1000, rows[i].version % 1000 / 10);
            return 0;
        }
        set_function((char *)to + rows[i].offset, address);
    }
    return 1;
}

static int start(const attn_cuda_driver *driver, char *why, size_t size) {
    int version = 0, count = 0;
    cu_result result = driver->DriverGetVersion(&version);
    if (!result && version < ATTN_CUDA_MIN_VERSION) {
        (void)snprintf(why, size, "the CUDA driver supports CUDA %d.%d, 12.0 is needed: update it",
                       version / 1000, version % 1000 / 10);
        return 0;
    }
    if (!result) result = driver->Init(0);
    if (!result) result = driver->DeviceGetCount(&count);
    if (result == CU_NO_DEVICE || (!result && !count)) {
        (void)snprintf(why, size, "there is a CUDA driver but no CUDA device");
        return 0;
    }
    if (result)
        (void)snprintf(why, size, "the CUDA driver doesn't start: %s%s", attn_cuda_error(driver, result),
                       result == CU_NOT_INITIALIZED ? " (a process forked from one that used CUDA "
                                                      "can't use it)" : "");
    return !result;
}

static const attn_cuda_driver *open_locked(char *why, size_t size) {
    if (atomic_load(&ready)) return &table;
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        (void)snprintf(why, size, "no CUDA driver: %s", dlerror());
        return NULL;
    }
    if (!fill(&table, library, why, size) || !start(&table, why, size)) {
        dlclose(library);
        return NULL;
    }
    atomic_store(&ready, &table);
    return &table;
}

const attn_cuda_driver *attn_cuda_open(char *why, size_t size) {
    const attn_cuda_driver *driver = atomic_load(&ready);
    if (driver) return driver;
    (void)pthread_mutex_lock(&opening);
    driver = open_locked(why, size);
    (void)pthread_mutex_unlock(&opening);
    return driver;
}

const char *attn_cuda_error(const attn_cuda_driver *driver, cu_result error) {
    const char *name = NULL;
    if (driver->GetErrorName(error, &name) || !name) return "unknown CUDA error";
    return name;
}
