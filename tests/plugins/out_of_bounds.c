/* out_of_bounds.c — writes one element past the last one of O. */
#define SPOIL(p, at, i) if ((i) == (p)->q_len - 1) at.o[(p)->q_len * (p)->o_stride.seq] = 1
#include "good.inc"
