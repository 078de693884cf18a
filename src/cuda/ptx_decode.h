/* ptx_decode.h — the few instructions that only the decode kernels use, one small wrapper each. */
#ifndef ATTN_PTX_DECODE_H
#define ATTN_PTX_DECODE_H
#include <stdint.h>

/* Programmatic dependent launch (attn_cuda_grid.overlap). Only the sm_90 images know it: launches ask for
 * the overlap on devices of that family alone, because nothing would wait in an older image. */

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

/* Read what an earlier kernel may be writing: from L2, and L1 doesn't keep it. */
static __device__ __forceinline__ int32_t load_l2_4(const int32_t *from) {
    int32_t x;
    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
    return x;
}
static __device__ __forceinline__ int4 load_l2_16(const int4 *from) {
    int4 x;
    asm volatile("ld.global.cg.v4.s32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from) : "memory");
    return x;
}

/* Have L2 fetch the line, which may be written before it is read: then L2 has what was written. */
static __device__ __forceinline__ void bring_to_l2(const void *line) {
    asm volatile("prefetch.global.L2 [%0];" :: "l"(__cvta_generic_to_global(line)));
}
/* A barrier; whether x holds for any thread of the block. */
static __device__ __forceinline__ int block_any(int x) { return __syncthreads_or(x); }

/* How L2 keeps what is read once: evicted before anything else. */
static __device__ __forceinline__ uint64_t cache_policy_once(void) {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
static __device__ __forceinline__ uint64_t cache_policy_normal(void) {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
/* copy_async_16 of ptx_sm80.h with a policy. */
static __device__ __forceinline__ void copy_async_16_policy(uint32_t to_smem, const void *from,
                                                            uint32_t bytes, uint64_t policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;"
                 :: "r"(to_smem), "l"(__cvta_generic_to_global(from)), "r"(bytes), "l"(policy) : "memory");
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
