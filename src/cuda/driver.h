/* driver.h — the part of the CUDA driver API that the project uses, declared here so that host code
 * needs no CUDA header, and the table of entry points that driver.c fills from libcuda.so.1 at run
 * time. Kernel authors need launch.h; only code that talks to the driver itself (tensor maps,
 * device memory) needs this. */
#ifndef ATTN_CUDA_DRIVER_H
#define ATTN_CUDA_DRIVER_H
#include <stddef.h>
#include <stdint.h>

typedef int cu_result;              /* 0 = success */
typedef int cu_device;
typedef uint64_t cu_pointer;        /* a device address */
typedef struct cu_context_s  *cu_context;
typedef struct cu_stream_s   *cu_stream;
typedef struct cu_event_s    *cu_event;
typedef struct cu_library_s  *cu_library;
typedef struct cu_kernel_s   *cu_kernel;    /* of a library, valid in every context */
typedef struct cu_function_s *cu_function;  /* of one context */
typedef struct cu_graph_s    *cu_graph;
typedef struct cu_graph_exec_s *cu_graph_exec;

enum {
    CU_OK = 0, CU_OUT_OF_MEMORY = 2, CU_NOT_INITIALIZED = 3, CU_NO_DEVICE = 100,
    CU_STREAM_CAPTURE_IMPLICIT = 906
};
enum {                              /* device attributes */
    CU_CLOCK_RATE = 13, CU_MULTIPROCESSOR_COUNT = 16, CU_MEMORY_CLOCK_RATE = 36, CU_MEMORY_BUS_WIDTH = 37,
    CU_L2_BYTES = 38, CU_CAPABILITY_MAJOR = 75, CU_CAPABILITY_MINOR = 76, CU_SMEM_PER_MULTIPROCESSOR = 81,
    CU_SMEM_PER_BLOCK_OPTIN = 97
};
enum { CU_FUNCTION_REGISTERS = 4, CU_FUNCTION_MAX_DYNAMIC_SMEM = 8 };
enum {
    CU_POINTER_CONTEXT = 1, CU_POINTER_MEMORY_TYPE = 2, CU_POINTER_IS_MANAGED = 8, CU_POINTER_ORDINAL = 9
};
enum { CU_MEMORY_HOST = 1, CU_MEMORY_DEVICE = 2 };
enum { CU_LAUNCH_CLUSTER_DIMENSION = 4, CU_LAUNCH_PROGRAMMATIC_SERIALIZATION = 6 };

typedef struct cu_launch_attribute {
    int  id;
    char pad[4];
    union { char bytes[64]; unsigned cluster[3]; int flag; } value;
} cu_launch_attribute;

typedef struct cu_launch_config {
    unsigned  grid_x, grid_y, grid_z, block_x, block_y, block_z, smem_bytes;
    cu_stream stream;
    cu_launch_attribute *attributes;
    unsigned  attribute_count;
} cu_launch_config;

/* Tensor maps (TMA). Values of cuda.h. */
typedef struct cu_tensor_map { _Alignas(64) uint64_t opaque[16]; } cu_tensor_map;
enum { CU_MAP_F16 = 6, CU_MAP_F32 = 7, CU_MAP_BF16 = 9 };                              /* element types */
enum { CU_MAP_SWIZZLE_NONE = 0, CU_MAP_SWIZZLE_32B = 1, CU_MAP_SWIZZLE_64B = 2, CU_MAP_SWIZZLE_128B = 3 };
enum { CU_MAP_L2_NONE = 0, CU_MAP_L2_64B = 1, CU_MAP_L2_128B = 2, CU_MAP_L2_256B = 3 };
enum { CU_MAP_INTERLEAVE_NONE = 0 };
enum { CU_MAP_FILL_ZEROS = 0, CU_MAP_FILL_NAN = 1 };                                   /* out of bounds */

/* Every entry point in use: return type, name in this project, symbol, version that introduced this form of
 * it (as cuGetProcAddress counts: 1000 * major + 10 * minor), parameters. The names are the driver's without
 * "cu". Entries newer than ATTN_CUDA_MIN_VERSION are NULL where the driver lacks them. */
#define ATTN_CUDA_FUNCTIONS(F) \
    F(Init, cuInit, 2000, (unsigned flags)) \
    F(DriverGetVersion, cuDriverGetVersion, 2020, (int *version)) \
    F(GetErrorName, cuGetErrorName, 6000, (cu_result error, const char **name)) \
    F(GetErrorString, cuGetErrorString, 6000, (cu_result error, const char **text)) \
    F(DeviceGetCount, cuDeviceGetCount, 2000, (int *count)) \
    F(DeviceGet, cuDeviceGet, 2000, (cu_device *device, int ordinal)) \
    F(DeviceGetName, cuDeviceGetName, 2000, (char *name, int size, cu_device device)) \
    F(DeviceGetAttribute, cuDeviceGetAttribute, 2000, (int *value, int attribute, cu_device device)) \
    F(DeviceTotalMem, cuDeviceTotalMem, 3020, (size_t *bytes, cu_device device)) \
    F(DevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, 7000, (cu_context *context, cu_device device)) \
    F(DevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease, 11000, (cu_device device)) \
    F(CtxGetCurrent, cuCtxGetCurrent, 4000, (cu_context *context)) \
    F(CtxGetDevice, cuCtxGetDevice, 2000, (cu_device *device)) \
    F(CtxPushCurrent, cuCtxPushCurrent, 4000, (cu_context context)) \
    F(CtxPopCurrent, cuCtxPopCurrent, 4000, (cu_context *context)) \
    F(PointerGetAttributes, cuPointerGetAttributes, 7000, \
      (unsigned count, int *attributes, void **data, cu_pointer pointer)) \
    F(LibraryLoadData, cuLibraryLoadData, 12000, \
      (cu_library *library, const void *code, int *jit_options, void **jit_values, unsigned jit_count, \
       int *options, void **values, unsigned count)) \
    F(LibraryUnload, cuLibraryUnload, 12000, (cu_library library)) \
    F(LibraryGetKernel, cuLibraryGetKernel, 12000, \
      (cu_kernel *kernel, cu_library library, const char *name)) \
    F(KernelGetFunction, cuKernelGetFunction, 12000, (cu_function *function, cu_kernel kernel)) \
    F(KernelSetAttribute, cuKernelSetAttribute, 12000, \
      (int attribute, int value, cu_kernel kernel, cu_device device)) \
    F(FuncLoad, cuFuncLoad, 12040, (cu_function function)) \
    F(FuncGetAttribute, cuFuncGetAttribute, 2020, (int *value, int attribute, cu_function function)) \
    F(LaunchKernelEx, cuLaunchKernelEx, 11060, \
      (const cu_launch_config *config, cu_function function, void **arguments, void **extra)) \
    F(StreamGetCtx, cuStreamGetCtx, 9020, (cu_stream stream, cu_context *context)) \
    F(StreamIsCapturing, cuStreamIsCapturing, 10000, (cu_stream stream, int *status)) \
    F(MemAlloc, cuMemAlloc, 3020, (cu_pointer *pointer, size_t bytes)) \
    F(MemGetInfo, cuMemGetInfo, 3020, (size_t *free_bytes, size_t *total)) \
    F(MemFree, cuMemFree, 3020, (cu_pointer pointer)) \
    F(MemcpyHtoD, cuMemcpyHtoD, 3020, (cu_pointer to, const void *from, size_t bytes)) \
    F(MemcpyDtoH, cuMemcpyDtoH, 3020, (void *to, cu_pointer from, size_t bytes)) \
    F(MemcpyDtoDAsync, cuMemcpyDtoDAsync, 3020, \
      (cu_pointer to, cu_pointer from, size_t bytes, cu_stream stream)) \
    F(MemsetD8Async, cuMemsetD8Async, 3020, \
      (cu_pointer to, unsigned char value, size_t bytes, cu_stream stream)) \
    F(CtxSynchronize, cuCtxSynchronize, 2000, (void)) \
    F(StreamCreate, cuStreamCreate, 2000, (cu_stream *stream, unsigned flags)) \
    F(StreamDestroy, cuStreamDestroy, 4000, (cu_stream stream)) \
    F(StreamSynchronize, cuStreamSynchronize, 2000, (cu_stream stream)) \
    F(StreamBeginCapture, cuStreamBeginCapture, 10010, (cu_stream stream, int mode)) \
    F(StreamEndCapture, cuStreamEndCapture, 10000, (cu_stream stream, cu_graph *graph)) \
    F(GraphInstantiateWithFlags, cuGraphInstantiateWithFlags, 11040, \
      (cu_graph_exec *exec, cu_graph graph, unsigned long long flags)) \
    F(GraphLaunch, cuGraphLaunch, 10000, (cu_graph_exec exec, cu_stream stream)) \
    F(GraphExecDestroy, cuGraphExecDestroy, 10000, (cu_graph_exec exec)) \
    F(GraphDestroy, cuGraphDestroy, 10000, (cu_graph graph)) \
    F(EventCreate, cuEventCreate, 2000, (cu_event *event, unsigned flags)) \
    F(EventDestroy, cuEventDestroy, 4000, (cu_event event)) \
    F(EventRecord, cuEventRecord, 2000, (cu_event event, cu_stream stream)) \
    F(EventSynchronize, cuEventSynchronize, 2000, (cu_event event)) \
    F(EventElapsedTime, cuEventElapsedTime, 2000, (float *milliseconds, cu_event start, cu_event end)) \
    F(TensorMapEncodeTiled, cuTensorMapEncodeTiled, 12000, \
      (cu_tensor_map *map, int element, uint32_t rank, void *address, const uint64_t *extents, \
       const uint64_t *strides, const uint32_t *box, const uint32_t *element_strides, int interleave, \
       int swizzle, int l2_promotion, int fill))

typedef struct attn_cuda_driver {
#define ATTN_CUDA_MEMBER(name, symbol, version, parameters) cu_result (*name) parameters;
    ATTN_CUDA_FUNCTIONS(ATTN_CUDA_MEMBER)
#undef ATTN_CUDA_MEMBER
} attn_cuda_driver;

enum { ATTN_CUDA_MIN_VERSION = 12000 };     /* libraries (cuLibraryLoadData) and tensor maps */

/* The table, opened on first use; later calls return the same one. Thread-safe; a failure is not remembered.
 * @return NULL if there is no driver, it is older than CUDA 12.0 or has no device; `why` then says so. */
const attn_cuda_driver *attn_cuda_open(char *why, size_t size);

/* "CUDA_ERROR_OUT_OF_MEMORY" and the like; never NULL. */
const char *attn_cuda_error(const attn_cuda_driver *driver, cu_result error);
#endif
