/* crash.c — follows a null pointer. */
static volatile int *volatile nowhere;
#define SPOIL(p, at, i) *nowhere = 1
#include "good.inc"
