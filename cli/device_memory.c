/* device_memory.c — the few driver calls that `attn run --backend cuda` needs, by dlopen: works without a driver. */
#include "device_memory.h"
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BLOCKS = 64 };
typedef uint64_t address;

/* Entry points: name here, symbol, parameters; all return 0 on success. */
#define DRIVER_CALLS(CALL) \
    CALL(init, cuInit, (unsigned)) \
    CALL(driver_version, cuDriverGetVersion, (int *)) \
    CALL(device_count, cuDeviceGetCount, (int *)) \
    CALL(device_get, cuDeviceGet, (int *, int)) \
    CALL(device_name, cuDeviceGetName, (char *, int, int)) \
    CALL(retain, cuDevicePrimaryCtxRetain, (void **, int)) \
    CALL(release, cuDevicePrimaryCtxRelease_v2, (int)) \
    CALL(set_current, cuCtxSetCurrent, (void *)) \
    CALL(wait, cuCtxSynchronize, (void)) \
    CALL(alloc, cuMemAlloc_v2, (address *, size_t)) \
    CALL(free, cuMemFree_v2, (address)) \
    CALL(upload, cuMemcpyHtoD_v2, (address, const void *, size_t)) \
    CALL(download, cuMemcpyDtoH_v2, (void *, address, size_t)) \
    CALL(error_name, cuGetErrorName, (int, const char **))

typedef struct driver {
    void *library;
#define CALL(name, symbol, parameters) int (*name) parameters;
    DRIVER_CALLS(CALL)
#undef CALL
} driver;

struct device_memory {
    driver  driver;
    int     device;
    address blocks[MOST_BLOCKS];
    int     count;
};

static char reason[256];

const char *device_reason(void) { return reason; }

static int check(const driver *d, const char *call, int result) {
    const char *name = NULL;
    if (!result) return 0;
    if (d->error_name) d->error_name(result, &name);
    snprintf(reason, sizeof reason, "%s failed: %s (%d)", call, name ? name : "unknown error", result);
    return 1;
}

static int load(driver *d) {
    memset(d, 0, sizeof *d);
    d->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!d->library) {
        snprintf(reason, sizeof reason, "no CUDA driver: %s", dlerror());
        return 1;
    }
    struct { const char *symbol; void *slot; } rows[] = {
#define CALL(name, symbol, parameters) { #symbol, &d->name },
        DRIVER_CALLS(CALL)
#undef CALL
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        void *found = dlsym(d->library, rows[i].symbol);
        if (!found) {
            snprintf(reason, sizeof reason, "the CUDA driver has no %s: too old", rows[i].symbol);
            dlclose(d->library);
            return 1;
        }
        memcpy(rows[i].slot, &found, sizeof found);   /* ISO C has no cast from data to function pointers */
    }
    return check(d, "cuInit", d->init(0));
}

int device_open(device_memory **out, int ordinal) {
    void *context;
    *out = NULL;
    device_memory *m = calloc(1, sizeof *m);
    if (!m) {
        snprintf(reason, sizeof reason, "out of memory");
        return 1;
    }
    const driver *d = &m->driver;
    if (load(&m->driver) || check(d, "cuDeviceGet", d->device_get(&m->device, ordinal)) ||
        check(d, "cuDevicePrimaryCtxRetain", d->retain(&context, m->device)) ||
        check(d, "cuCtxSetCurrent", d->set_current(context))) {
        free(m);
        return 1;
    }
    *out = m;
    return 0;
}

void device_close(device_memory *m) {
    if (!m) return;
    for (int i = 0; i < m->count; i++) m->driver.free(m->blocks[i]);
    m->driver.release(m->device);
    free(m);   /* the driver stays loaded: unloading it is not supported */
}

void *device_alloc(device_memory *m, size_t bytes) {
    address block;
    if (m->count == MOST_BLOCKS) {
        snprintf(reason, sizeof reason, "more than %d blocks", MOST_BLOCKS);
        return NULL;
    }
    if (check(&m->driver, "cuMemAlloc", m->driver.alloc(&block, bytes ? bytes : 1))) return NULL;
    m->blocks[m->count++] = block;
    return (void *)(uintptr_t)block;
}

int device_upload(device_memory *m, void *to, const void *host, size_t bytes) {
    return bytes ? check(&m->driver, "cuMemcpyHtoD", m->driver.upload((uintptr_t)to, host, bytes)) : 0;
}

int device_download(device_memory *m, void *host, const void *from, size_t bytes) {
    return bytes ? check(&m->driver, "cuMemcpyDtoH", m->driver.download(host, (uintptr_t)from, bytes)) : 0;
}

int device_wait(device_memory *m) { return check(&m->driver, "cuCtxSynchronize", m->driver.wait()); }

int device_describe(char *text, size_t size) {
    driver d;
    int version = 0, count = 0, device = 0;
    char name[128] = "";
    if (load(&d) || check(&d, "cuDeviceGetCount", d.device_count(&count))) {
        snprintf(text, size, "%s", reason);
        return 1;
    }
    d.driver_version(&version);
    if (count && !d.device_get(&device, 0)) d.device_name(name, sizeof name, device);
    snprintf(text, size, "driver for CUDA %d.%d, %d device%s%s%s", version / 1000, version % 1000 / 10, count,
             count == 1 ? "" : "s", *name ? ": " : "", name);
    return count == 0;
}
