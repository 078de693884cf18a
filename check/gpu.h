/* gpu.h — a GPU for the tools: memory for cases, a stream, timing with events, and the card's own ceilings.
 * Talks to the driver directly (its own copy of src/cuda/driver.c); without a driver opening fails with the
 * reason. */
#ifndef CHECK_GPU_H
#define CHECK_GPU_H
#include "check.h"
#include <stdio.h>

typedef struct check_gpu check_gpu;

typedef struct check_gpu_info {
    char   name[128];
    int    ordinal, count;          /* of `count` devices */
    int    capability;              /* 10 * major + minor */
    int    multiprocessors;
    int    clock_khz, memory_khz, bus_bits;
    int    l2_bytes, driver;        /* CUDA version of the driver: 13000 = 13.0 */
    double memory_bytes;
} check_gpu_info;

/* Describe a device without opening it. Nonzero: `why` says it. */
int         check_gpu_read(int ordinal, check_gpu_info *info, char *why, size_t size);
/* Open a device: its primary context becomes current on this thread. NULL: `why` says it. */
check_gpu  *check_gpu_open(int ordinal, char *why, size_t size);
void        check_gpu_close(check_gpu *gpu);
void        check_gpu_describe(const check_gpu *gpu, check_gpu_info *info);
/* Device allocations, one per tensor; the checker puts its margins of NaN around each. */
check_memory check_gpu_memory(check_gpu *gpu);
void       *check_gpu_stream(check_gpu *gpu);
/* Wait for all queued work. 0, or nonzero and the driver's word for what went wrong. */
int         check_gpu_wait(check_gpu *gpu, char *why, size_t size);

/* What is timed: queue one run on `stream`. Nonzero: failed. */
typedef int (*check_gpu_work)(void *arg, void *stream);

enum { CHECK_GPU_RUNS = 64 };       /* timed at once with a cold cache, at most */

/* One run with a cold L2 cache, from events: the device writes over 256 MB (as triton's do_bench does; at
 * least twice the L2 cache) before the run starts. Meanwhile the host has to queue the run: where `queueing`
 * is longer than `flush`, the device may have waited for the host, and `seconds` contain that. */
typedef struct check_gpu_cold { double seconds, flush, queueing; } check_gpu_cold;

/* `count` such runs, queued one behind the other. Nonzero: the work failed. */
int check_gpu_time_cold(check_gpu *gpu, check_gpu_work work, void *arg, int count, check_gpu_cold *runs);

/* Seconds of `iterations` runs, from events: back to back, or each with a cold cache. Negative: the work
 * failed. */
double check_gpu_time(check_gpu *gpu, check_gpu_work work, void *arg, int64_t iterations, int cold);

/* ---- ceilings: gpu_ceilings.c ---- */

typedef enum check_gpu_ceiling {
    CHECK_GPU_COPY,                 /* device to device copy: bytes read + bytes written */
    CHECK_GPU_READ,                 /* reading alone */
    CHECK_GPU_FFMA,                 /* f32 fused multiply-add, flops */
    CHECK_GPU_BF16,                 /* bf16 matrix product 8192^3 by cuBLAS, flops; absent without cuBLAS */
    CHECK_GPU_CEILINGS
} check_gpu_ceiling;

extern const char *const check_gpu_ceiling_names[CHECK_GPU_CEILINGS];

typedef struct check_gpu_meter check_gpu_meter;
/* Get ready to measure; NULL: `why`. Fills the inputs with random numbers where that matters. */
check_gpu_meter *check_gpu_meter_open(check_gpu *gpu, check_gpu_ceiling which, char *why, size_t size);
int              check_gpu_meter_run(void *meter, void *stream);    /* a check_gpu_work */
double           check_gpu_meter_amount(const check_gpu_meter *meter);   /* bytes or flops of one run */
void             check_gpu_meter_close(check_gpu_meter *meter);
#endif
