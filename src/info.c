/* info.c — what this library file is. */
#include "kernel.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

int attn_version(void) { return ATTN_VERSION; }

const char *attn_version_string(void) {
    return TEXT(ATTN_VERSION_MAJOR) "." TEXT(ATTN_VERSION_MINOR) "." TEXT(ATTN_VERSION_PATCH);
}

const char *attn_build_info(void) {
#if defined(__clang__)
    return "clang " __clang_version__
#elif defined(__GNUC__)
    return "gcc " __VERSION__
#else
    return "C compiler"
#endif
#if defined(ATTN_WITH_CUDA)
           ", CUDA kernels built in";
#else
           ", CPU only";
#endif
}

int attn_cpu_threads(void) { return attn_threads_default(); }
