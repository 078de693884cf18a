/* bench_decode_time.c — how long a decoding step takes: as a graph of runs round several caches, so that L2
 * never has what the next run reads (back to back, as layers follow each other), or run by run behind a
 * flush and after a rest, as do_bench has it. What the card reads at most is measured in the same seconds. */
#include "bench_decode.h"
#include "cuda/driver.h"
#include "gpu_session.h"
#include <time.h>

enum {
    WARM_SAMPLES = 7, MOST_RUNS = 400,      /* of a graph */
    COLD_ESTIMATE = 5, COLD_LEAST = 7, COLD_UNTIMED = 12, COLD_SAMPLES = 50,    /* CHECK_GPU_RUNS at most */
    READS = 8,                              /* of a sample of the card's read rate */
};
static const double GRAPH_SECONDS = 10e-3;  /* about */
static const double UNTIMED_SECONDS = 25e-3, TIMED_SECONDS = 100e-3;    /* of do_bench: a card grows slower
                                                                           with heat */

/* Before a series: after some 50 ms above its power limit a card lowers its clock by a quarter, and a row's time
 * must not depend on the row before it (bench/mla_power.py). */
static const struct timespec REST = { 0, 800 * 1000 * 1000 };

static void add_sample(bench_item *item, double seconds, int disturbed) {
    item->seconds[item->count] = seconds > 0 ? seconds : 0;
    item->lost[item->count++] = disturbed;
}

/* Seconds of one read of the meter's bytes. */
static void sample_read(check_gpu *gpu, check_gpu_meter *meter, bench_item *item) {
    if (meter) add_sample(item, check_gpu_time(gpu, check_gpu_meter_run, meter, READS, 0) / READS, 0);
}

/* ---- a graph ---- */

typedef struct queued { const attn_cuda_driver *driver; cu_graph_exec graph; } queued;

static int launch(void *arg, void *stream) {
    const queued *x = arg;
    return x->driver->GraphLaunch(x->graph, stream) != CU_OK;
}

/* A whole number of rounds through the caches. */
static int64_t runs_of(const decode_step *s) {
    const double estimate = decode_step_bytes(s) / 2.5e12 + 5e-6;
    const int64_t wanted = (int64_t)(GRAPH_SECONDS / estimate), most = MOST_RUNS - s->sets;
    return (wanted < most ? wanted : most) / s->sets * s->sets + s->sets;
}

static int capture(const decode_step *s, int own_schedule, int64_t runs, void *stream, queued *x) {
    cu_graph graph;
    attn_status status = ATTN_OK;
    if (x->driver->StreamBeginCapture(stream, 0)) return 1;
    for (int64_t i = 0; i < runs && !status; i++)
        status = decode_step_run(s, (int)(i % s->sets), own_schedule, stream);
    if (x->driver->StreamEndCapture(stream, &graph)) return 1;
    const int bad = status || x->driver->GraphInstantiateWithFlags(&x->graph, graph, 0);
    (void)x->driver->GraphDestroy(graph);
    return bad;
}

static int time_warm(decode_step *s, int own_schedule, check_gpu *gpu, check_gpu_meter *meter,
                     bench_item *run, bench_item *read) {
    char why[256] = "";
    queued x = { attn_cuda_open(why, sizeof why), NULL };
    const int64_t runs = runs_of(s);
    if (!x.driver) return decode_step_fail(s, OUTCOME_FAILED, "no driver", why);
    if (capture(s, own_schedule, runs, check_gpu_stream(gpu), &x))
        return decode_step_fail(s, OUTCOME_FAILED, "no graph", attn_last_error());
    (void)check_gpu_time(gpu, launch, &x, 1, 0);
    for (int i = 0; i < WARM_SAMPLES; i++) {
        add_sample(run, check_gpu_time(gpu, launch, &x, 1, 0) / (double)runs, 0);
        sample_read(gpu, meter, read);
    }
    (void)x.driver->GraphExecDestroy(x.graph);
    return 0;
}

/* ---- run by run ---- */

typedef struct timed { const decode_step *step; int own_schedule; } timed;

static int queue_run(void *arg, void *stream) {
    const timed *t = arg;
    return decode_step_run(t->step, 0, t->own_schedule, stream) != ATTN_OK;
}

/* Runs that fill `seconds`, between `least` and `most`. */
static int count_of(double seconds, double each, int least, int most) {
    const double count = seconds / each;
    return !(count < most) ? most : count > least ? (int)count : least;
}

static int time_cold(decode_step *s, int own_schedule, check_gpu *gpu, check_gpu_meter *meter,
                     bench_item *run, bench_item *read) {
    timed t = { s, own_schedule };
    check_gpu_cold cold[COLD_UNTIMED + COLD_SAMPLES];
    double each = 0;
    (void)nanosleep(&REST, NULL);
    int bad = check_gpu_time_cold(gpu, queue_run, &t, COLD_ESTIMATE, cold);
    for (int i = 0; i < COLD_ESTIMATE && !bad; i++) each += (cold[i].flush + cold[i].seconds) / COLD_ESTIMATE;
    const int untimed = count_of(UNTIMED_SECONDS, each, 1, COLD_UNTIMED);
    const int count = untimed + count_of(TIMED_SECONDS, each, COLD_LEAST, COLD_SAMPLES);
    bad = bad || check_gpu_time_cold(gpu, queue_run, &t, count, cold);
    if (bad) return decode_step_fail(s, OUTCOME_FAILED, "the device failed", attn_last_error());
    for (int i = untimed; i < count; i++) add_sample(run, cold[i].seconds, cold[i].queueing > cold[i].flush);
    for (int i = 0; i < WARM_SAMPLES; i++) sample_read(gpu, meter, read);
    return 0;
}

int decode_step_time(decode_step *s, int own_schedule, decode_times *times) {
    check_gpu *gpu = gpu_session_device();
    check_gpu_meter *meter = gpu_session_meter(CEILING_GPU_READ);
    bench_item run = { .threads = 1 }, read = { .threads = 1 };
    const int bad = s->row->timing == DECODE_COLD ? time_cold(s, own_schedule, gpu, meter, &run, &read)
                                                  : time_warm(s, own_schedule, gpu, meter, &run, &read);
    if (bad) return 1;
    times->run = bench_spread_of(&run);
    const double one_read = bench_spread_of(&read).median;
    times->read = one_read > 0 ? check_gpu_meter_amount(meter) / one_read : 0;
    return times->run.median > 0 ? 0 : decode_step_fail(s, OUTCOME_FAILED, "the device failed", "");
}
