/* bench_gqa.h — the decode suite on a GPU. */
#ifndef CLI_BENCH_GQA_H
#define CLI_BENCH_GQA_H
#include "bench.h"

/* attn bench --suite decode --backend cuda. @return exit code. */
int bench_gqa(const cli_arguments *a);
#endif
