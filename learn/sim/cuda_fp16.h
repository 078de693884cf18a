/* cuda_fp16.h — f16 for the simulator: what the lessons use of CUDA's header. Arithmetic: sim_tensor.cpp. */
#ifndef CUDA_SIM_FP16_H
#define CUDA_SIM_FP16_H
#include "cuda_runtime.h"
struct alignas(4) __half2 { __half x, y; };
static inline __half2 __floats2half2_rn(float a, float b) { return { __float2half_rn(a), __float2half_rn(b) }; }
static inline __half __ushort_as_half(uint16_t bits) { return { bits }; }
#endif
