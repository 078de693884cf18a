/* leaves.c — ends the process instead of returning. */
#define SPOIL(p, at, i) exit(0)
#include "good.inc"
