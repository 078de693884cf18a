/* openblas.h — the baseline: attention on a GEMM library, as a framework's CPU path computes it. */
#ifndef CLI_OPENBLAS_H
#define CLI_OPENBLAS_H
#include "check.h"

/* naive 1: the whole score matrix of a head, softmax, second product. 0: blocks of queries x 512 keys with a
 * running softmax, the blocking of PyTorch's CPU flash attention. Both use our vector exp; f32, dense,
 * causal, GQA. */
check_candidate openblas_candidate(int naive);
/* NULL, or why it can't be used, with the package that has it. Opens the library. */
const char *openblas_unavailable(void);
const char *openblas_core(void);    /* the core that it detected, e.g. "Zen" */
#endif
