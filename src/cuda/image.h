/* image.h — what image.c, device.c and launch.c share: a loaded kernel,
 * and a context made current for a while. */
#ifndef ATTN_CUDA_IMAGE_H
#define ATTN_CUDA_IMAGE_H
#include "launch.h"

typedef struct attn_cuda_entry attn_cuda_entry;
struct attn_cuda_entry {
    attn_cuda_entry *next;
    const void *image;
    const char *name;
    int         ordinal;
    cu_device   device;
    cu_kernel   kernel;
    int         smem;               /* dynamic shared memory allowed so far; under image.c's lock */
    int         loaded;
};

typedef struct attn_cuda_scope {
    cu_device device;
    int pushed, retained;
} attn_cuda_scope;

/* Make `context` current; NULL: the current one if it is of `device`, else the device's primary one. */
cu_result attn_cuda_enter(attn_cuda_scope *scope, const attn_cuda_driver *driver, cu_device device,
                          cu_context context);
void      attn_cuda_leave(const attn_cuda_scope *scope, const attn_cuda_driver *driver);

/* checked.c: copy lengths and tables to the host (waits for `stream`) and check them. */
attn_status attn_cuda_check_lengths(const attn_problem *p, const attn_tensors *t, cu_stream stream);

/* Out of memory or a device error: "DOING WHAT: CUDA_ERROR_...". */
attn_status attn_cuda_fail(cu_result result, const char *doing, const char *what);
#endif
