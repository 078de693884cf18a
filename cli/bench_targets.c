/* bench_targets.c — the speed table: every target with what this machine reaches, measured now. */
#include "bench.h"
#include "terminal.h"

int bench_targets(const cli_arguments *a, const bench_request *common, bench_table *table) {
    (void)a;
    (void)common;
    (void)table;
    cli_error("--suite table: not here yet");
    return CLI_FAILED;
}
