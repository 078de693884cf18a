/* float_mode.h — the floating-point environment in which the library computes: round to nearest, no
 * flush to zero, nothing trapped, whatever the caller has set; and the caller's back afterwards,
 * exception flags included. */
#ifndef ATTN_FLOAT_MODE_H
#define ATTN_FLOAT_MODE_H

#if defined(__SSE2__)
#include <xmmintrin.h>

typedef unsigned attn_float_mode;

static inline attn_float_mode attn_float_enter(void) {
    const attn_float_mode caller = _mm_getcsr();
    if (caller != 0x1f80u) _mm_setcsr(0x1f80u);   /* the default MXCSR */
    return caller;
}

static inline void attn_float_leave(attn_float_mode caller) { _mm_setcsr(caller); }
#else
#include <fenv.h>

typedef fenv_t attn_float_mode;

static inline attn_float_mode attn_float_enter(void) {
    attn_float_mode caller;
    (void)fegetenv(&caller);
    (void)fesetenv(FE_DFL_ENV);
    return caller;
}

static inline void attn_float_leave(attn_float_mode caller) { (void)fesetenv(&caller); }
#endif
#endif
