/* cuda_device.h — what the tests on a real device share: the open GPU, its kernels, cases on it. Without a
 * device every test is skipped, with the reason. */
#ifndef CUDA_DEVICE_H
#define CUDA_DEVICE_H
#include "check.h"
#include "cuda/driver.h"
#include "gpu.h"
#include <fnmatch.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { MAX_KERNELS = 64 };

static check_gpu              *gpu;
static const attn_cuda_driver *driver;
static const char             *kernels[MAX_KERNELS];
static int                     kernel_count;
static char                    why_not[256] = "no CUDA kernel is built in";

#define NEED_DEVICE do { if (!gpu) { printf("skipped: %s\n", why_not); skip(); } } while (0)

static inline int open_device(void **state) {
    (void)state;
    attn_kernel_info info = { .struct_size = sizeof info };
    const char *pattern = getenv("ATTN_CHECK_KERNEL");
    for (int i = 0; !attn_kernel_describe(i, &info) && kernel_count < MAX_KERNELS; i++)
        if (info.device == ATTN_CUDA && !info.unavailable && (!pattern || !fnmatch(pattern, info.name, 0)))
            kernels[kernel_count++] = info.name;
    gpu = check_gpu_open(0, why_not, sizeof why_not);
    driver = gpu ? attn_cuda_open(why_not, sizeof why_not) : NULL;
    if (gpu && !kernel_count) {
        check_gpu_close(gpu);
        gpu = NULL;
    }
    return 0;
}

static inline int close_device(void **state) {
    (void)state;
    check_gpu_close(gpu);
    return 0;
}

static inline attn_problem problem_of(attn_dtype dtype, int64_t batch, int64_t q_heads, int64_t kv_heads,
                                      int64_t q_len, int64_t kv_len, int64_t dim) {
    attn_problem p = ATTN_PROBLEM_INIT;
    p.device = ATTN_CUDA;
    p.dtype = dtype;
    p.batch = batch;
    p.q_heads = q_heads;
    p.kv_heads = kv_heads;
    p.q_len = q_len;
    p.kv_len = kv_len;
    p.qk_dim = dim;
    return p;
}

static inline check_data *data_of(const attn_problem *p, check_lengths lengths) {
    const check_memory memory = check_gpu_memory(gpu);
    const check_case c = { .problem = *p, .shape = "custom", .lengths = lengths, .seed = 7 };
    check_data *data = NULL;
    assert_int_equal(check_data_create(&data, &c, &memory, 0), ATTN_OK);
    return data;
}

/* NULL: the kernel refuses the problem. */
static inline attn_plan *plan_of(const char *kernel, const attn_problem *p, int checked) {
    attn_options options = ATTN_OPTIONS_INIT;
    attn_plan *plan = NULL;
    options.kernel = kernel;
    options.checked = checked;
    const attn_status status = attn_plan_create(&plan, p, &options);
    if (status && status != ATTN_UNSUPPORTED) printf("%s: %s\n", kernel, attn_last_error());
    assert_true(status == ATTN_OK || status == ATTN_UNSUPPORTED);
    return plan;
}

static inline void run(const attn_plan *plan, check_data *data, void *workspace, void *stream) {
    const attn_status status = attn_run(plan, check_data_tensors(data), workspace, stream);
    if (status) printf("%s: %s\n", attn_plan_kernel(plan), attn_last_error());
    assert_int_equal(status, ATTN_OK);
}

static inline void finish(void) {
    char why[256] = "";
    if (check_gpu_wait(gpu, why, sizeof why)) printf("device: %s\n", why);
    assert_string_equal(why, "");
}

static inline void put(const void *device, const void *host, size_t bytes) {
    assert_int_equal(driver->MemcpyHtoD((cu_pointer)(uintptr_t)device, host, bytes), CU_OK);
}

static inline void get(void *host, const void *device, size_t bytes) {
    assert_int_equal(driver->MemcpyDtoH(host, (cu_pointer)(uintptr_t)device, bytes), CU_OK);
}
#endif
