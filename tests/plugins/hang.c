/* hang.c — never ends. */
static volatile int forever = 1;
#define SPOIL(p, at, i) while (forever) {}
#include "good.inc"
