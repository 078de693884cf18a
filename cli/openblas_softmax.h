/* openblas_softmax.h — the softmax between the two products of the baseline, vectorised like our own
 * kernels'. */
#ifndef CLI_OPENBLAS_SOFTMAX_H
#define CLI_OPENBLAS_SOFTMAX_H
#include <stdint.h>

/* s[0 .. seen - 1] become exp(s - new maximum), s[seen .. n - 1] become 0. m, l: running maximum and sum,
 * updated;
 * *c: what earlier sums and outputs must be multiplied with. */
void openblas_softmax_row(float *s, int64_t n, int64_t seen, float *m, float *l, float *c);
#endif
