/* right.c — nothing is wrong with it. */
#include "good.inc"
