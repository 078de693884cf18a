/* bench_html.h — the benchmark's rows as one self-contained page. */
#ifndef CLI_BENCH_HTML_H
#define CLI_BENCH_HTML_H
#include "bench.h"

/* `machine`: the processor's name. @return exit code. */
int bench_html_save(const bench_table *table, const char *machine, const char *path);
#endif
