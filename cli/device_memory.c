/* device_memory.c — the few device operations that `attn run --backend cuda` and `attn doctor` need, over check/gpu.h. */
#include "device_memory.h"
#include "gpu.h"
#include <stdlib.h>

enum { MOST_BLOCKS = 64 };

struct device_memory {
    check_gpu   *gpu;
    check_memory memory;
    void        *blocks[MOST_BLOCKS];
    int          count;
};

static char reason[256];

const char *device_reason(void) { return reason; }

static int failed(int result, const char *what) {
    if (result) snprintf(reason, sizeof reason, "%s failed", what);
    return result;
}

int device_open(device_memory **out, int ordinal) {
    *out = NULL;
    device_memory *m = calloc(1, sizeof *m);
    if (!m) {
        snprintf(reason, sizeof reason, "out of memory");
        return 1;
    }
    m->gpu = check_gpu_open(ordinal, reason, sizeof reason);
    if (!m->gpu) {
        free(m);
        return 1;
    }
    m->memory = check_gpu_memory(m->gpu);
    *out = m;
    return 0;
}

void device_close(device_memory *m) {
    if (!m) return;
    for (int i = 0; i < m->count; i++) m->memory.free(m->memory.context, m->blocks[i]);
    check_gpu_close(m->gpu);
    free(m);
}

void *device_alloc(device_memory *m, size_t bytes) {
    if (m->count == MOST_BLOCKS) {
        snprintf(reason, sizeof reason, "more than %d blocks", MOST_BLOCKS);
        return NULL;
    }
    void *block = m->memory.alloc(m->memory.context, bytes);
    if (block) m->blocks[m->count++] = block;
    else snprintf(reason, sizeof reason, "no device memory for %zu bytes", bytes);
    return block;
}

int device_upload(device_memory *m, void *to, const void *host, size_t bytes) {
    return failed(m->memory.upload(m->memory.context, to, host, bytes), "copying to the device");
}

int device_download(device_memory *m, void *host, const void *from, size_t bytes) {
    return failed(m->memory.download(m->memory.context, host, from, bytes), "copying from the device");
}

int device_wait(device_memory *m) { return check_gpu_wait(m->gpu, reason, sizeof reason); }

int device_describe(char *text, size_t size) {
    check_gpu_info g;
    if (check_gpu_read(0, &g, text, size)) return 1;
    snprintf(text, size, "driver for CUDA %d.%d, %d device%s: %s", g.driver / 1000, g.driver % 1000 / 10, g.count,
             g.count == 1 ? "" : "s", g.name);
    return 0;
}
