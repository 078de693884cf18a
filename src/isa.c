/* isa.c — which instruction sets this CPU and OS offer, by CPUID and XGETBV, capped by ATTN_CPU_ISA. */
#include "kernel.h"
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* XCR0: the register state that the OS saves (bits 1-2: SSE, AVX; 5-7: AVX-512). */
static unsigned saved_state(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static unsigned detect(void) {
    unsigned a, b, c, d, bits = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const unsigned osxsave = 1u << 27, avx = 1u << 28, fma = 1u << 12, f16c = 1u << 29;
    if ((c & (osxsave | avx | fma | f16c)) != (osxsave | avx | fma | f16c)) return 0;
    const unsigned xcr0 = saved_state();
    if ((xcr0 & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if (b & (1u << 5)) bits |= ATTN_ISA_AVX2;
    const unsigned f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    if (!(bits & ATTN_ISA_AVX2) || (xcr0 & 0xe6) != 0xe6 || (b & f_dq_bw_vl) != f_dq_bw_vl) return bits;
    bits |= ATTN_ISA_AVX512;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5))) bits |= ATTN_ISA_AVX512BF16;
    return bits;
}
#else
static unsigned detect(void) { return 0; }
#endif

static const struct { const char *name; unsigned bit; } isas[] = {
#define ATTN_ISA(name, index, description) { description, 1u << (index) },
#include "isa.def"
#undef ATTN_ISA
};
enum { ISAS = sizeof isas / sizeof *isas };

/* ATTN_CPU_ISA=avx2 allows avx2 and everything before it in isa.def; =scalar allows none.
 * An unknown name caps nothing: `attn doctor` reports it. */
unsigned attn_isa_bits(void) {
    static _Atomic unsigned known;   /* a constant of the machine, bit 31 = read;
                                        CPUID is slow in a virtual machine */
    unsigned bits = atomic_load_explicit(&known, memory_order_relaxed);
    if (!bits) {
        bits = detect() | 1u << 31;
        atomic_store_explicit(&known, bits, memory_order_relaxed);
    }
    bits &= ~(1u << 31);
    const char *cap = getenv("ATTN_CPU_ISA");
    if (!cap) return bits;
    if (!strcmp(cap, "scalar")) return 0;
    for (unsigned i = 0, allowed = 0; i < ISAS; i++) {
        allowed |= isas[i].bit;
        if (!strcmp(cap, isas[i].name)) return bits & allowed;
    }
    return bits;
}

const char *attn_cpu_isa(void) {
    const unsigned bits = attn_isa_bits();
    for (int i = ISAS - 1; i >= 0; i--)
        if (bits & isas[i].bit) return isas[i].name;
    return "scalar";
}
