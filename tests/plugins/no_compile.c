/* no_compile.c — a typing error. */
#include "good.inc"
int broken = does_not_exist;
