/* bench_decode_table.c — the table of suites decode and mla on a GPU: what was measured, the peer's figure,
 * must and goal, and which of them is reached. */
#include "bench_decode.h"
#include "gpu_session.h"

/* A quantity of the run in its unit. */
static double measured_in(bench_unit unit, const bench_row *r, double before) {
    const double seconds = r->time.median;
    switch (unit) {
    case BENCH_US: return seconds * 1e6;
    case BENCH_GBS: return r->bytes / seconds * 1e-9;
    case BENCH_TFLOPS: return r->flops / seconds * 1e-12;
    case BENCH_OF_PEER: return r->target.ratio;
    default: return before / seconds;               /* 0: the row before has no time */
    }
}

void bench_decode_judge(const decode_row *row, double before, bench_row *r) {
    bench_target *t = &r->target;
    t->name = row->name, t->peer = row->peer, t->peer_figure = row->peer_figure,
    t->peer_unit = row->peer_unit;
    t->unit = row->unit, t->must = row->must, t->goal = row->goal;
    t->result = "-";
    if (!(r->time.median > 0)) return;
    if (t->peer) {
        const double own = measured_in(t->peer_unit, r, 0);
        t->ratio = t->peer_unit == BENCH_US ? t->peer_figure / own : own / t->peer_figure;
    }
    t->measured = measured_in(t->unit, r, before);
    if (!(t->measured > 0)) return;
    const int less = t->unit == BENCH_US;
    const int goal = less ? t->measured <= t->goal : t->measured >= t->goal;
    const int must = less ? t->measured <= t->must : t->measured >= t->must;
    t->result = goal ? "goal" : must ? "must" : "MISSED";
}

/* "18.8 us" */
static const char *quantity(bench_unit unit, double x, char text[32]) {
    static const char *const formats[] = { [BENCH_US] = "%.1f us", [BENCH_GBS] = "%.0f GB/s",
                                           [BENCH_TFLOPS] = "%.1f TFLOP/s", [BENCH_OF_PEER] = "%.3f x",
                                           [BENCH_OF_BEFORE] = "%.3f x" };
    if (!(x > 0)) snprintf(text, 32, "-");
    else snprintf(text, 32, formats[unit], x);
    return text;
}

static const char format[] = "%-24s %10s %10s %7s %14s  %-22s %6s  %10s %10s %10s %s%-6s%s %12s  %s";

void bench_decode_header(void) {
    check_gpu_info info;
    check_gpu_describe(gpu_session_device(), &info);
    bench_show("%s, bf16. GB/s: K and V, of MLA also Q and O; peers' figures: of an H100 80GB HBM3\n"
               "x: times as fast as the peer, or as the row above; time: with a schedule made before, as\n"
               "all layers of a step but the first have it\n%s", info.name, bench_style(CLI_BOLD));
    bench_show(format, "", "time", "bandwidth", "of read", "speed", "peer", "ratio", "must", "goal",
               "measured", "", "result", "", "own schedule", "kernel");
    bench_show("%s\n", bench_style(CLI_PLAIN));
}

/* Quartiles farther apart than this are shown: the card's clock fell while it ran, say. */
static const double WIDE = 0.03;

void bench_decode_print(const bench_row *r) {
    const bench_target *t = &r->target;
    char time[32], rate[32], read[32] = "-", speed[32], figure[32], peer[64] = "-", ratio[32] = "-", must[32],
         goal[32], measured[32], own[32];
    if (!(r->time.median > 0)) {
        bench_show("%-24s %s\n", t->name, r->outcome.reason);
        return;
    }
    if (r->of_read > 0) snprintf(read, sizeof read, "%.1f %%", 100 * r->of_read);
    if (t->peer)
        snprintf(peer, sizeof peer, "%s %s", t->peer, quantity(t->peer_unit, t->peer_figure, figure));
    if (t->peer) snprintf(ratio, sizeof ratio, "%.3f", t->ratio);
    const cli_style style = *t->result == 'g' ? CLI_GREEN : *t->result == 'M' ? CLI_RED : CLI_PLAIN;
    bench_show(format, t->name, quantity(BENCH_US, r->time.median * 1e6, time),
               quantity(BENCH_GBS, measured_in(BENCH_GBS, r, 0), rate), read,
               quantity(BENCH_TFLOPS, measured_in(BENCH_TFLOPS, r, 0), speed), peer, ratio,
               quantity(t->unit, t->must, must), quantity(t->unit, t->goal, goal),
               quantity(t->unit, t->measured, measured), style == CLI_PLAIN ? "" : bench_style(style),
               t->result, style == CLI_PLAIN ? "" : bench_style(CLI_PLAIN),
               quantity(BENCH_US, t->own_schedule * 1e6, own), r->kernel);
    if (r->time.high > (1 + WIDE) * r->time.low)
        bench_show("  (quartiles %.1f, %.1f us)", r->time.low * 1e6, r->time.high * 1e6);
    if (r->time.disturbed)
        bench_show("  (%d samples late: the host queued for longer than the flush took)", r->time.disturbed);
    bench_show("\n");
}
