/* 35_swizzle.c — exercise: the swizzle of flash_v2_cute.cu by hand. Fill the hole, then: learn check 35 --my FILE */
#include "35_swizzle.h"

static int place(int row, int column) {
    return row * 64 + column;   /* hole: 8 rows of one column lie in one group of banks */
}
