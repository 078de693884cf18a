/* fake_cuda.c — the fake libcuda.so.1: each entry first consults the script (fail now?), then keeps the
 * books. */
#include "fake_cuda.h"
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

static struct { int device; } contexts[2 * FAKE_DEVICES];
static struct { int device; } streams[FAKE_DEVICES];
static unsigned char memory[FAKE_DEVICES][FAKE_MEMORY] __attribute__((aligned(4096)));
static cu_context stack[16];
static int library_object, kernel_object, function_object;

static fake_cuda books;

static void set_the_scene(void) {
    if (books.memory[0]) return;
    books.version = 13000;
    books.devices = FAKE_DEVICES;
    books.capability = 90;
    books.smem = 232448;
    for (int i = 0; i < FAKE_DEVICES; i++) {
        contexts[i].device = contexts[FAKE_DEVICES + i].device = streams[i].device = i;
        books.memory[i] = memory[i];
        books.primary[i] = (cu_context)(void *)&contexts[i];
        books.other[i] = (cu_context)(void *)&contexts[FAKE_DEVICES + i];
        books.stream[i] = (cu_stream)(void *)&streams[i];
    }
}

EXPORT fake_cuda *fake_cuda_books(void) {
    set_the_scene();
    return &books;
}

/* 0, or the error that the script wants of this call. */
static cu_result enter(const char *name) {
    books.calls++;
    if (books.sticky) return books.sticky;
    if (books.fail_call && !--books.fail_call) return books.fail_result;
    if (books.fail_name && !strcmp(books.fail_name, name)) {
        books.fail_name = NULL;
        return books.fail_result;
    }
    return CU_OK;
}
#define ENTER(name) do { const cu_result wanted = enter(#name); if (wanted) return wanted; } while (0)

enum { INVALID_VALUE = 1, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500 };

static cu_result fake_Init(unsigned flags) { ENTER(Init); return flags ? INVALID_VALUE : CU_OK; }
static cu_result fake_DriverGetVersion(int *version) {
    ENTER(DriverGetVersion);
    *version = books.version;
    return CU_OK;
}

/* works in a broken context too */
static cu_result fake_GetErrorName(cu_result error, const char **name) {
    static const struct { cu_result error; const char *name; } names[] = {
        { CU_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY" }, { 700, "CUDA_ERROR_ILLEGAL_ADDRESS" },
        { 719, "CUDA_ERROR_LAUNCH_FAILED" }, { INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT" },
        { 999, "CUDA_ERROR_UNKNOWN" } };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].error == error) {
            *name = names[i].name;
            return CU_OK;
        }
    return INVALID_VALUE;
}

static cu_result fake_DeviceGetCount(int *count) {
    ENTER(DeviceGetCount);
    *count = books.devices;
    return books.devices ? CU_OK : CU_NO_DEVICE;
}
static cu_result fake_DeviceGet(cu_device *device, int ordinal) {
    ENTER(DeviceGet);
    *device = 40 + ordinal;         /* a handle is not an ordinal */
    return ordinal >= 0 && ordinal < books.devices ? CU_OK : INVALID_DEVICE;
}
static cu_result fake_DeviceGetName(char *name, int size, cu_device device) {
    ENTER(DeviceGetName);
    (void)device;
    strncpy(name, "Fake GPU", (size_t)size);
    return CU_OK;
}
static cu_result fake_DeviceTotalMem(size_t *bytes, cu_device device) {
    ENTER(DeviceTotalMem);
    (void)device;
    *bytes = FAKE_MEMORY;
    return CU_OK;
}
static cu_result fake_DeviceGetAttribute(int *value, int attribute, cu_device device) {
    ENTER(DeviceGetAttribute);
    (void)device;
    *value = attribute == CU_CAPABILITY_MAJOR ? books.capability / 10
           : attribute == CU_CAPABILITY_MINOR ? books.capability % 10
           : attribute == CU_MULTIPROCESSOR_COUNT ? 132 : books.smem;
    return CU_OK;
}

/* ---- contexts ---- */

static cu_result fake_DevicePrimaryCtxRetain(cu_context *context, cu_device device) {
    ENTER(DevicePrimaryCtxRetain);
    *context = books.primary[device - 40];
    books.retained[device - 40]++;
    return CU_OK;
}
static cu_result fake_DevicePrimaryCtxRelease(cu_device device) {
    books.retained[device - 40]--;  /* releases and pops always succeed here: the books must balance */
    return CU_OK;
}
static cu_result fake_CtxGetCurrent(cu_context *context) {
    ENTER(CtxGetCurrent);
    *context = books.current;
    return CU_OK;
}
static cu_result fake_CtxGetDevice(cu_device *device) {
    ENTER(CtxGetDevice);
    if (!books.current) return INVALID_CONTEXT;
    *device = 40 + *(int *)(void *)books.current;
    return CU_OK;
}
static cu_result fake_CtxPushCurrent(cu_context context) {
    ENTER(CtxPushCurrent);
    stack[books.context_depth++] = books.current;
    books.current = context;
    return CU_OK;
}
static cu_result fake_CtxPopCurrent(cu_context *context) {
    if (!books.context_depth) return INVALID_CONTEXT;
    *context = books.current;
    books.current = stack[--books.context_depth];
    return CU_OK;
}

static cu_result fake_PointerGetAttributes(unsigned count, int *attributes, void **data, cu_pointer pointer) {
    ENTER(PointerGetAttributes);
    int device = -1;
    for (int i = 0; i < FAKE_DEVICES; i++)
        if (pointer - (uintptr_t)memory[i] < FAKE_MEMORY) device = i;
    for (unsigned i = 0; i < count; i++) {
        if (attributes[i] == CU_POINTER_CONTEXT)
            *(cu_context *)data[i] = device < 0 || books.pool_memory ? NULL : books.primary[device];
        else if (attributes[i] == CU_POINTER_MEMORY_TYPE)
            *(unsigned *)data[i] = device < 0 ? 0 : CU_MEMORY_DEVICE;
        else if (attributes[i] == CU_POINTER_ORDINAL) *(int *)data[i] = device;
        else *(unsigned *)data[i] = 0;
    }
    return CU_OK;
}

/* ---- code ---- */

static cu_result fake_LibraryLoadData(cu_library *library, const void *code, int *a, void **b, unsigned c,
                                      int *d, void **e, unsigned f) {
    ENTER(LibraryLoadData);
    (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
    uint32_t magic;
    memcpy(&magic, code, 4);
    if (magic != 0xba55ed50u) return INVALID_IMAGE;     /* the first word of every fatbin */
    books.libraries++;
    *library = (cu_library)(void *)&library_object;
    return CU_OK;
}
static cu_result fake_LibraryGetKernel(cu_kernel *kernel, cu_library library, const char *name) {
    ENTER(LibraryGetKernel);
    *kernel = (cu_kernel)(void *)&kernel_object;
    return library == (cu_library)(void *)&library_object && *name ? CU_OK : NOT_FOUND;
}
static cu_result fake_KernelGetFunction(cu_function *function, cu_kernel kernel) {
    ENTER(KernelGetFunction);
    (void)kernel;
    *function = (cu_function)(void *)&function_object;
    return books.current ? CU_OK : INVALID_CONTEXT;
}
static cu_result fake_KernelSetAttribute(int attribute, int value, cu_kernel kernel, cu_device device) {
    ENTER(KernelSetAttribute);
    (void)kernel, (void)device;
    return attribute == CU_FUNCTION_MAX_DYNAMIC_SMEM && value <= 232448 ? CU_OK : INVALID_VALUE;
}
static cu_result fake_FuncLoad(cu_function function) { ENTER(FuncLoad); (void)function; return CU_OK; }

static cu_result fake_LaunchKernelEx(const cu_launch_config *config, cu_function function, void **arguments,
                                     void **extra) {
    ENTER(LaunchKernelEx);
    (void)arguments, (void)extra;
    if (!books.current || function != (cu_function)(void *)&kernel_object) return INVALID_CONTEXT;
    books.launches++;
    books.launched = *config;
    books.launch_context = books.current;
    return CU_OK;
}

/* ---- streams, copies ---- */

static cu_result fake_StreamGetCtx(cu_stream stream, cu_context *context) {
    ENTER(StreamGetCtx);
    *context = books.primary[*(int *)(void *)stream];
    return CU_OK;
}
static cu_result fake_StreamIsCapturing(cu_stream stream, int *status) {
    ENTER(StreamIsCapturing);
    *status = 0;
    return !stream && books.capturing ? CU_STREAM_CAPTURE_IMPLICIT : CU_OK;
}
static cu_result fake_StreamSynchronize(cu_stream stream) {
    ENTER(StreamSynchronize);
    (void)stream;
    return CU_OK;
}
static cu_result fake_MemcpyDtoH(void *to, cu_pointer from, size_t bytes) {
    ENTER(MemcpyDtoH);
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return CU_OK;
}

/* ---- the lookup ---- */

static cu_result not_faked(void) { return 801; }

#define FAKED(name) { "cu" #name, (void (*)(void))fake_##name }
static const struct { const char *symbol; void (*entry)(void); } faked[] = {
    FAKED(Init), FAKED(DriverGetVersion), FAKED(GetErrorName), FAKED(DeviceGetCount), FAKED(DeviceGet),
    FAKED(DeviceGetName), FAKED(DeviceTotalMem), FAKED(DeviceGetAttribute), FAKED(DevicePrimaryCtxRetain),
    FAKED(DevicePrimaryCtxRelease), FAKED(CtxGetCurrent), FAKED(CtxGetDevice), FAKED(CtxPushCurrent),
    FAKED(CtxPopCurrent), FAKED(PointerGetAttributes), FAKED(LibraryLoadData), FAKED(LibraryGetKernel),
    FAKED(KernelGetFunction), FAKED(KernelSetAttribute), FAKED(FuncLoad), FAKED(LaunchKernelEx),
    FAKED(StreamGetCtx), FAKED(StreamIsCapturing), FAKED(StreamSynchronize), FAKED(MemcpyDtoH),
};

EXPORT cu_result cuGetProcAddress_v2(const char *symbol, void **address, int version, uint64_t flags,
                                     int *status);
EXPORT cu_result cuGetProcAddress_v2(const char *symbol, void **address, int version, uint64_t flags,
                                     int *status) {
    (void)version, (void)flags, (void)status;
    set_the_scene();
    if (books.missing && !strcmp(books.missing, symbol)) return NOT_FOUND;
    void (*entry)(void) = (void (*)(void))not_faked;
    for (size_t i = 0; i < sizeof faked / sizeof *faked; i++)
        if (!strcmp(faked[i].symbol, symbol)) entry = faked[i].entry;
    memcpy(address, &entry, sizeof entry);
    return CU_OK;
}
