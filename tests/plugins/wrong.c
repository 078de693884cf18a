/* wrong.c — one element in one row is off by 1 %. */
#define SPOIL(p, at, i) if ((i) == 3) at.o[(i) * (p)->o_stride.seq + 2] *= 1.01f
#include "good.inc"
