/* launch.h — what a CUDA kernel's record (the .c beside its .cu) needs:
 * its embedded image, loading, launching.
 *
 *     ATTN_CUDA_IMAGE(flash_fwd_sm80);                      // the fatbin of src/cuda/flash_fwd_sm80.cu
 *     prepare(plan): attn_cuda_prepare(plan, 0, ATTN_CUDA_IMAGE_OF(flash_fwd_sm80),
 *                                      "flash_fwd_bf16_d128", smem)
 *     run(plan, tensors, workspace, stream):
 *         attn_cuda_grid grid = { .blocks = n, .threads = 128, .smem = smem };
 *         void *arguments[] = { &problem, &tensors, &workspace };             // one per parameter, by value
 *         return attn_cuda_launch(plan, 0, &grid, stream, arguments);
 *
 * attn_run has then already checked that the tensors live on the plan's device, and has made a context of
 * that device current (the caller's comes back afterwards). `run` must not allocate, copy or synchronise:
 * it may be captured. What the kernel must do itself: rows from seqused_q to q_rows get O = 0, LSE = -inf;
 * no read outside a tensor for any content of lengths and tables (attn_sequence_at clamps lengths,
 * attn_kv_offset clamps page ids on the device). */
#ifndef ATTN_CUDA_LAUNCH_H
#define ATTN_CUDA_LAUNCH_H
#include "../kernel.h"
#include "driver.h"

/* Records: attn_kernel.isa of a CUDA kernel is the compute capability it needs, e.g.
 * 80 = sm_80 and later (PTX), or ATTN_CUDA_ONLY(90) = the sm_9x family alone (sm_90a cubin). */
#define ATTN_CUDA_ONLY(capability) (0x1000u | (capability))

#define ATTN_CUDA_IMAGE(stem) extern const unsigned char attn_image_##stem[], attn_image_##stem##_end[]
#define ATTN_CUDA_IMAGE_OF(stem) attn_image_##stem

typedef struct attn_cuda_device {
    char    name[128];
    int     ordinal;
    int     capability;         /* 10 * major + minor: 90 for an H100 */
    int     multiprocessors;
    int     smem_per_block;     /* bytes that a block can have at most (opt-in) */
    int     smem_per_sm;
    int     l2_bytes;
    int64_t memory_bytes;
} attn_cuda_device;

/* The driver's table; NULL (with this thread's message set) if there is no usable driver. */
const attn_cuda_driver *attn_cuda(void);
/* Read a device's properties. ATTN_DEVICE_ERROR: no driver, no such device. */
attn_status attn_cuda_device_read(int ordinal, attn_cuda_device *device);

enum { ATTN_CUDA_SLOTS = 4 };
/* Load entry `name` of an image for plan->cuda_device and put it into slot 0 .. ATTN_CUDA_SLOTS - 1 of the
 * plan (a plan with a second kernel, a merge say, uses two slots). smem: dynamic shared memory in bytes of
 * its launches. Images and entries are loaded once per process and device. */
attn_status attn_cuda_prepare(attn_plan *plan, int slot, const void *image, const char *name, int smem);

typedef struct attn_cuda_grid {
    int64_t blocks;             /* along x; up to 2^31 - 1 */
    int64_t blocks_y, blocks_z; /* up to 65535; 0 = 1 */
    int     threads, threads_y; /* of a block; threads_y 0 = 1 */
    int     smem;               /* dynamic, bytes; at most what prepare was told */
    int     cluster;            /* blocks along x in a cluster; 0 = none */
    int     overlap;            /* 1: programmatic dependent launch (griddepcontrol.wait in the kernel) */
} attn_cuda_grid;

/* Queue the kernel in `slot`. arguments: one pointer per kernel parameter, read before this returns. */
attn_status attn_cuda_launch(const attn_plan *plan, int slot, const attn_cuda_grid *grid, void *stream,
                             void **arguments);

/* Fast kernels that load 16 bytes at a time: ATTN_INVALID with a message if q, k,
 * v or o (or bias) isn't aligned so. */
attn_status attn_cuda_aligned(const attn_problem *problem, const attn_tensors *tensors, int bytes);

/* ---- for the core ---- */
/* ATTN_OK, or why no CUDA plan can be made for this device. */
attn_status attn_cuda_check_device(int ordinal);
/* NULL, or why the device can't run kernels of this capability;
 * the text lives as long as the thread's next call. */
const char *attn_cuda_unavailable(unsigned capability, int ordinal);
/* Check the tensors' place, make their context current, run the plan's kernel,
 * put the caller's context back. */
attn_status attn_cuda_run(const attn_plan *plan, const attn_tensors *tensors, void *workspace, void *stream);
/* The same for attn_plan_schedule. */
attn_status attn_cuda_schedule(const attn_plan *plan, const attn_tensors *lengths, void *schedule,
                               void *stream);
#endif
