/* device_memory.h — memory of a CUDA device for the command: the library itself never allocates any. */
#ifndef CLI_DEVICE_MEMORY_H
#define CLI_DEVICE_MEMORY_H
#include <stddef.h>

typedef struct device_memory device_memory;

/* Open device `ordinal` through libcuda.so.1. All functions @return 0, or nonzero with the reason from device_reason. */
int   device_open(device_memory **out, int ordinal);
void  device_close(device_memory *device);                     /* frees what was allocated; NULL is allowed */
void *device_alloc(device_memory *device, size_t bytes);       /* NULL on failure; aligned to 256 */
int   device_upload(device_memory *device, void *to, const void *host, size_t bytes);
int   device_download(device_memory *device, void *host, const void *from, size_t bytes);
int   device_wait(device_memory *device);                      /* for everything queued, and its errors */
const char *device_reason(void);
/* What this machine has, in one line: "driver 13.0, 1 device: NVIDIA H100"; nonzero if there is none. */
int   device_describe(char *text, size_t size);
#endif
