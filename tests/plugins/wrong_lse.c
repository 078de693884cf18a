/* wrong_lse.c — O is right, LSE misses the maximum. */
#define SPOIL(p, at, i) if (at.lse) at.lse[(i) * (p)->lse_stride.seq] += 1
#include "good.inc"
