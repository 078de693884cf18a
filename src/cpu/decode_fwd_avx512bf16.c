#if defined(__x86_64__)
#include "simd_avx512bf16.h"
#include "decode_fwd_body.h"
#endif
