/* ceilings.h — what this machine can do at most, measured by loops that do nothing else: fused multiply-adds
 * per instruction set, bf16 dot products, and reading memory. A kernel's speed is given as a share of
 * these. */
#ifndef CLI_CEILINGS_H
#define CLI_CEILINGS_H
#include "team.h"
#include <stddef.h>
#include <stdint.h>

typedef enum ceiling {
    CEILING_FMA_PORTABLE,   /* f32 multiply-add as the compiler makes it: other machines than x86 */
    CEILING_FMA_AVX2,
    CEILING_FMA_AVX512,
    CEILING_BF16_AVX512,    /* vdpbf16ps */
    CEILING_READ,           /* stream read of two buffers (K and V), alternately in pieces of 16 KiB */
    CEILING_GPU_READ,       /* the GPU's, measured by check/gpu_ceilings.c: reading device memory */
    CEILING_GPU_FFMA,       /* f32 multiply-add */
    CEILING_GPU_BF16,       /* bf16 matrix product by cuBLAS, where it is installed */
    CEILINGS
} ceiling;

extern const char *const ceiling_names[CEILINGS];
int ceiling_available(ceiling c);
/* The ceiling of a kernel by its name's last part (avx2, avx512bf16, ...) and dtype. */
ceiling ceiling_of_kernel(const char *kernel, int is_bf16);

typedef struct ceiling_buffers { const void *k, *v; size_t k_bytes, v_bytes; } ceiling_buffers;

/* Flops (or bytes, CEILING_READ) of one iteration on `threads` threads. */
double ceiling_work(ceiling c, int threads, const ceiling_buffers *buffers);
void   ceiling_run(ceiling c, team *t, int64_t iterations, const ceiling_buffers *buffers);
#endif
