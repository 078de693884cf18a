/* gpu_session.h — the one GPU that a command works on: opened when the first CUDA problem needs it, kept
 * until the command ends; its memory, event timing and ceilings. */
#ifndef CLI_GPU_SESSION_H
#define CLI_GPU_SESSION_H
#include "ceilings.h"
#include "gpu.h"
#include "options.h"

/* Where the tensors of a problem for `device` are made: *memory = NULL for the host, else the GPU's.
 * Nonzero: no such GPU; the reason was printed. */
int gpu_session_open(attn_device device, int ordinal, const check_memory **memory);
/* The same; the ordinal is --device. */
int gpu_session_memory(attn_device device, const cli_arguments *a, const check_memory **memory);
/* The open device; NULL: none yet. */
check_gpu *gpu_session_device(void);
/* A workspace; NULL: no memory. */
void *gpu_session_alloc(size_t bytes);
void  gpu_session_free(void *memory);
/* Seconds of `iterations` runs by events, each with a cold L2 cache. Negative: failed. */
double gpu_session_time(check_gpu_work work, void *arg, int64_t iterations);
/* What a kernel's speed on this dtype is a share of. */
ceiling gpu_ceiling(attn_dtype dtype);
/* One of CEILING_GPU_*, ready to run; NULL: not on this machine. Kept: opened once. */
check_gpu_meter *gpu_session_meter(ceiling which);
#endif
