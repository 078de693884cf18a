/* gpu_session.c — one open GPU for the command's life. */
#include "gpu_session.h"
#include "terminal.h"

static check_gpu       *gpu;
static int              opened;                     /* its ordinal */
static check_memory     memory_of_gpu;
static check_gpu_meter *meters[CHECK_GPU_CEILINGS];

int gpu_session_open(attn_device device, int ordinal, const check_memory **memory) {
    char why[256];
    *memory = NULL;
    if (device != ATTN_CUDA) return 0;
    if (!gpu) {
        gpu = check_gpu_open(ordinal, why, sizeof why);
        opened = ordinal;
    }
    if (!gpu || opened != ordinal) {
        cli_error("--backend cuda: %s", gpu ? "a command works on one device" : why);
        return 1;
    }
    memory_of_gpu = check_gpu_memory(gpu);
    *memory = &memory_of_gpu;
    return 0;
}

int gpu_session_memory(attn_device device, const cli_arguments *a, const check_memory **memory) {
    return gpu_session_open(device, (int)cli_integer(a, "device", 0), memory);
}

check_gpu *gpu_session_device(void) { return gpu; }

void *gpu_session_alloc(size_t bytes) {
    return gpu ? memory_of_gpu.alloc(memory_of_gpu.context, bytes) : NULL;
}

void gpu_session_free(void *memory) {
    if (gpu && memory) memory_of_gpu.free(memory_of_gpu.context, memory);
}

double gpu_session_time(check_gpu_work work, void *arg, int64_t iterations) {
    return gpu ? check_gpu_time(gpu, work, arg, iterations, 1) : -1;
}

ceiling gpu_ceiling(attn_dtype dtype) { return dtype == ATTN_F32 ? CEILING_GPU_FFMA : CEILING_GPU_BF16; }

check_gpu_meter *gpu_session_meter(ceiling which) {
    const check_gpu_ceiling on_gpu = which == CEILING_GPU_READ ? CHECK_GPU_READ
                                   : which == CEILING_GPU_FFMA ? CHECK_GPU_FFMA : CHECK_GPU_BF16;
    char why[256];
    if (!gpu || meters[on_gpu]) return meters[on_gpu];
    meters[on_gpu] = check_gpu_meter_open(gpu, on_gpu, why, sizeof why);
    if (!meters[on_gpu]) cli_remark("no %s ceiling: %s", check_gpu_ceiling_names[on_gpu], why);
    return meters[on_gpu];
}
