/* registry.c — the table of kernels, from kernels.def. */
#include "kernel.h"

#define ATTN_KERNEL(name) extern const attn_kernel attn_##name;
#include "kernels.def"
#undef ATTN_KERNEL

const attn_kernel *const attn_kernels[] = {
#define ATTN_KERNEL(name) &attn_##name,
#include "kernels.def"
#undef ATTN_KERNEL
    NULL
};
