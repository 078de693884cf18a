/* cuda_bf16.h — bf16 for the simulator: what the lessons use of CUDA's header. Arithmetic: sim_tensor.cpp. */
#ifndef CUDA_SIM_BF16_H
#define CUDA_SIM_BF16_H
#include "cuda_runtime.h"
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
static inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
    return { __float2bfloat16_rn(a), __float2bfloat16_rn(b) };
}
#endif
