/* fake_cuda.h — a libcuda.so.1 for tests: no GPU, two pretended devices, a script of what goes wrong, and
 * books of what is held. test_cuda_host.c runs the library's host layer against it. */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H
#include "cuda/driver.h"

enum { FAKE_DEVICES = 2, FAKE_MEMORY = 1 << 16 };

typedef struct fake_cuda {
    /* the script */
    int version;                    /* CUDA version that the driver claims, e.g. 13000 */
    int devices;
    int capability;                 /* of each device: 90, 80, 75 */
    int smem;                       /* bytes that a block can have */
    int fail_call;                  /* the n-th driver call from now fails with fail_result; 0 = none */
    const char *fail_name;          /* the next call of this entry fails; NULL = none */
    cu_result fail_result;
    cu_result sticky;               /* every call fails with it: a broken context */
    const char *missing;            /* an entry point that this driver lacks */
    int capturing;                  /* another stream is being captured */
    /* the books */
    int calls;
    int libraries, retained[FAKE_DEVICES], context_depth;
    int launches;
    cu_launch_config launched;      /* the last one */
    cu_context launch_context;
    cu_context current;
    /* the scenery */
    unsigned char *memory[FAKE_DEVICES];    /* "device" memory, FAKE_MEMORY bytes each, in host pages */
    cu_context primary[FAKE_DEVICES];
    cu_context other[FAKE_DEVICES]; /* a second context per device */
    cu_stream stream[FAKE_DEVICES]; /* a stream of primary[i] */
    int pool_memory;                /* 1: pointers belong to a pool and know no context */
} fake_cuda;

/* Exported by the fake libcuda.so.1. */
fake_cuda *fake_cuda_books(void);
#endif
