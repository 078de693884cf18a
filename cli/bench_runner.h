/* bench_runner.h — contenders and ceilings as things that bench_measure can time. */
#ifndef CLI_BENCH_RUNNER_H
#define CLI_BENCH_RUNNER_H
#include "bench.h"

typedef struct bench_runner bench_runner;
/* The data and the contender must outlive it. NULL: no process or memory. */
bench_runner *bench_runner_create(contender *c, check_data *data, const attn_options *options, int threads);
bench_item   *bench_runner_item(bench_runner *r);
/* What the last run moved, where it counts. */
void          bench_runner_traffic(const bench_runner *r, int *has_traffic, attn_traffic *traffic);
void          bench_runner_free(bench_runner *r);

typedef struct bench_ceiling bench_ceiling;
bench_ceiling *bench_ceiling_create(ceiling which, int threads, const ceiling_buffers *buffers);
bench_item    *bench_ceiling_item(bench_ceiling *c);
double         bench_ceiling_work(const bench_ceiling *c);      /* flops or bytes of one iteration */
void           bench_ceiling_free(bench_ceiling *c);
#endif
