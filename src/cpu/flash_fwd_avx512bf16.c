#if defined(__x86_64__)
#include "simd_avx512bf16.h"
#include "flash_fwd_body.h"
#endif
