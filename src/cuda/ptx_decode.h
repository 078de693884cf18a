/* ptx_decode.h — the few instructions that only the decode kernels use, one small wrapper each. */
#ifndef ATTN_PTX_DECODE_H
#define ATTN_PTX_DECODE_H
#include <stdint.h>

/* Programmatic dependent launch (attn_cuda_grid.overlap). Only the sm_90 images know it: launches ask for the overlap
 * on devices of that family alone, because nothing would wait in an older image. */

/* Block until the kernels queued before have ended and their writes can be seen. */
static __device__ __forceinline__ void wait_for_earlier_kernels(void) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* The kernel queued next may be started once all blocks have said so or ended. */
static __device__ __forceinline__ void let_next_kernel_start(void) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Shared memory by its 32-bit address, as in ptx_sm80.h. */
static __device__ __forceinline__ uint32_t load_smem_4(uint32_t from_smem) {
    uint32_t x;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(from_smem) : "memory");
    return x;
}
static __device__ __forceinline__ uint32_t load_smem_2(uint32_t from_smem) {
    uint16_t x;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(from_smem) : "memory");
    return x;
}
#endif
