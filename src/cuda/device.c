/* device.c — which GPUs are there and what they can run; driver errors become statuses here. */
#include "launch.h"
#include <string.h>

const attn_cuda_driver *attn_cuda(void) {
    char why[256];
    const attn_cuda_driver *driver = attn_cuda_open(why, sizeof why);
    if (!driver) (void)attn_fail(ATTN_DEVICE_ERROR, "%s", why);
    return driver;
}

attn_status attn_cuda_fail(cu_result result, const char *doing, const char *what) {
    char why[8];
    const attn_cuda_driver *driver = attn_cuda_open(why, sizeof why);
    /* The driver was started: only a fork makes it say this. */
    const char *hint =
        result == CU_NOT_INITIALIZED ? " (a process forked from one that used CUDA can't use it)" : "";
    return attn_fail(result == CU_OUT_OF_MEMORY ? ATTN_NO_MEMORY : ATTN_DEVICE_ERROR, "%s %s: %s%s", doing,
                     what, driver ? attn_cuda_error(driver, result) : "no driver", hint);
}

static cu_result read_attributes(const attn_cuda_driver *driver, cu_device handle, attn_cuda_device *d) {
    int major = 0, minor = 0;
    const struct { int attribute, *value; } rows[] = {
        { CU_CAPABILITY_MAJOR, &major }, { CU_CAPABILITY_MINOR, &minor },
        { CU_MULTIPROCESSOR_COUNT, &d->multiprocessors }, { CU_SMEM_PER_BLOCK_OPTIN, &d->smem_per_block },
        { CU_SMEM_PER_MULTIPROCESSOR, &d->smem_per_sm }, { CU_L2_BYTES, &d->l2_bytes },
    };
    cu_result result = CU_OK;
    for (size_t i = 0; i < sizeof rows / sizeof *rows && !result; i++)
        result = driver->DeviceGetAttribute(rows[i].value, rows[i].attribute, handle);
    d->capability = 10 * major + minor;
    return result;
}

attn_status attn_cuda_device_read(int ordinal, attn_cuda_device *d) {
    const attn_cuda_driver *driver = attn_cuda();
    if (!driver) return ATTN_DEVICE_ERROR;
    cu_device handle;
    int count = 0;
    size_t bytes = 0;
    memset(d, 0, sizeof *d);
    d->ordinal = ordinal;
    cu_result result = driver->DeviceGetCount(&count);
    if (!result && (ordinal < 0 || ordinal >= count))
        return attn_fail(ATTN_DEVICE_ERROR, "cuda_device = %d: there are devices 0 .. %d", ordinal,
                         count - 1);
    if (!result) result = driver->DeviceGet(&handle, ordinal);
    if (!result) result = driver->DeviceGetName(d->name, (int)sizeof d->name, handle);
    if (!result) result = driver->DeviceTotalMem(&bytes, handle);
    if (!result) result = read_attributes(driver, handle, d);
    d->memory_bytes = (int64_t)bytes;
    return result ? attn_cuda_fail(result, "reading the properties of", "a CUDA device") : ATTN_OK;
}

attn_status attn_cuda_check_device(int ordinal) {
    attn_cuda_device device;
    return attn_cuda_device_read(ordinal, &device);
}

const char *attn_cuda_unavailable(unsigned capability, int ordinal) {
    char why[8];
    const attn_cuda_driver *driver = attn_cuda_open(why, sizeof why);
    cu_device handle;
    int major = 0, minor = 0;
    if (!driver || driver->DeviceGet(&handle, ordinal) ||
        driver->DeviceGetAttribute(&major, CU_CAPABILITY_MAJOR, handle) ||
        driver->DeviceGetAttribute(&minor, CU_CAPABILITY_MINOR, handle))
        return "no usable CUDA driver or device";
    const unsigned here = (unsigned)(10 * major + minor), needed = capability & ~ATTN_CUDA_ONLY(0);
    if (capability & ATTN_CUDA_ONLY(0)) {
        if (here / 10 == needed / 10) return NULL;
        return needed == 90 ? "needs a Hopper GPU (compute capability 9.x)"
                            : "needs another GPU architecture";
    }
    if (here >= needed) return NULL;
    return needed == 80 ? "needs compute capability 8.0 or later" : "needs a later compute capability";
}
