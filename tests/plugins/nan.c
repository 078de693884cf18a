/* nan.c — one NaN. */
#define SPOIL(p, at, i) if ((i) == 5) at.o[(i) * (p)->o_stride.seq] = NAN
#include "good.inc"
