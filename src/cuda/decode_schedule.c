/* decode_schedule.c — host side of decode_schedule.cu:
 * loading and queueing the scheduler, checking its result. */
#include "decode_schedule.h"
#include "image.h"

ATTN_CUDA_IMAGE(decode_schedule);

enum { THREADS = 512 };     /* as in decode_schedule.cu */

attn_status attn_decode_schedule_prepare(attn_plan *plan, int slot) {
    return attn_cuda_prepare(plan, slot, ATTN_CUDA_IMAGE_OF(decode_schedule), "decode_schedule", 0);
}

static attn_status launch(const attn_plan *plan, int slot, const attn_decode_shape *shape,
                          const attn_tensors *tensors, void *schedule, int overlap, void *stream) {
    const attn_cuda_grid grid = { .blocks = 1, .threads = THREADS, .overlap = overlap };
    attn_problem problem = plan->problem;
    problem.has_kv_batch_index = 0;     /* lengths don't depend on it, and `tensors` needn't have it */
    void *arguments[] = { &problem, (void *)(uintptr_t)tensors, (void *)(uintptr_t)shape, &schedule };
    return attn_cuda_launch(plan, slot, &grid, stream, arguments);
}

attn_status attn_decode_schedule_launch(const attn_plan *plan, int slot, const attn_decode_shape *shape,
                                        const attn_tensors *tensors, void *schedule, void *stream) {
    return launch(plan, slot, shape, tensors, schedule, 0, stream);
}

attn_status attn_decode_schedule_launch_early(const attn_plan *plan, int slot, const attn_decode_shape *shape,
                                              const attn_tensors *tensors, void *schedule, void *stream) {
    return launch(plan, slot, shape, tensors, schedule, 1, stream);
}

attn_status attn_decode_schedule_check(const attn_decode_shape *shape, const void *schedule, void *stream) {
    const attn_cuda_driver *driver = attn_cuda();
    if (!driver) return ATTN_DEVICE_ERROR;
    attn_decode_header header;
    cu_result result = driver->StreamSynchronize(stream);
    if (!result) result = driver->MemcpyDtoH(&header, (cu_pointer)(uintptr_t)schedule, sizeof header);
    if (result) return attn_cuda_fail(result, "reading", "tensors.schedule");
    if (attn_decode_valid(shape, &header)) return ATTN_OK;
    return attn_fail(ATTN_INVALID, "tensors.schedule = %p: %s", schedule,
                     header.magic == ATTN_DECODE_MAGIC ? "was computed for a plan of another shape"
                                                       : "is not what attn_plan_schedule writes");
}
