/* bench_decode.c — the table of attn bench --suite mla: MLA decoding on a GPU beside FlashMLA's measured figures.
 * Each row is checked on sampled rows of O, then timed by events with a cold L2, median of many: once with the
 * schedule made beforehand (as for all layers but the first of a step), once with it made in the run. */
#include "bench_decode.h"
#include "gpu_session.h"
#include <math.h>
#include <stdlib.h>

/* FlashMLA's figures: its main kernel and its merge, without its kernel that makes the schedule; median of do_bench. */
#define FLASHMLA "FlashMLA 9241ae3, H100 80GB HBM3, CUDA 13.0, measured 2026-11-22"
#define MLA(name, batch, heads, q_len, keys, ragged, figure, unit) \
    { name, batch, heads, 1, q_len, keys, 576, 512, 1, ragged, 64, FLASHMLA, figure, unit }

static const decode_row mla_rows[] = {
    MLA("h128 b128 ragged 4k", 128, 128, 1, 4096, 1, 505, DECODE_TFLOPS),
    MLA("h128 b128 ragged 8k", 128, 128, 1, 8192, 1, 545, DECODE_TFLOPS),
    MLA("h128 b128 ragged 16k", 128, 128, 1, 16384, 1, 567, DECODE_TFLOPS),
    MLA("h128 b128 ragged 32k", 128, 128, 1, 32768, 1, 576, DECODE_TFLOPS),
    MLA("h128 b128 ragged 4k q2", 128, 128, 2, 4096, 1, 515, DECODE_TFLOPS),
    MLA("h128 b128 ragged 8k q2", 128, 128, 2, 8192, 1, 605, DECODE_TFLOPS),
    MLA("h128 b128 ragged 16k q2", 128, 128, 2, 16384, 1, 637, DECODE_TFLOPS),
    MLA("h128 b128 ragged 32k q2", 128, 128, 2, 32768, 1, 639, DECODE_TFLOPS),
    MLA("h16 b128 8k", 128, 16, 1, 8192, 0, 2752, DECODE_GBS),
    MLA("h32 b128 8k", 128, 32, 1, 8192, 0, 2755, DECODE_GBS),
    MLA("h64 b128 8k", 128, 64, 1, 8192, 0, 2759, DECODE_GBS),
    MLA("h128 b1 4k", 1, 128, 1, 4096, 0, 25.4, DECODE_MICROSECONDS),
    MLA("h128 b1 8k", 1, 128, 1, 8192, 0, 31.1, DECODE_MICROSECONDS),
    MLA("h128 b1 32k", 1, 128, 1, 32768, 0, 46.3, DECODE_MICROSECONDS),
    MLA("h128 b1 128k", 1, 128, 1, 131072, 0, 398, DECODE_TFLOPS),
};

enum { SAMPLES = 25 };

/* ---- timing ---- */

typedef struct timed { decode_step *step; int own_schedule; } timed;

static int queue_run(void *arg, void *stream) {
    const timed *t = arg;
    attn_tensors tensors = t->step->tensors;
    tensors.schedule = t->own_schedule ? NULL : t->step->schedule;
    return attn_run(t->step->plan, &tensors, t->step->workspace, stream) != ATTN_OK;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds of one run; negative: failed. */
static double median_time(decode_step *step, int own_schedule) {
    timed t = { step, own_schedule };
    double seconds[SAMPLES];
    if (gpu_session_time(queue_run, &t, 3) < 0) return -1;
    for (int i = 0; i < SAMPLES; i++) {
        seconds[i] = gpu_session_time(queue_run, &t, 1);
        if (seconds[i] < 0) return -1;
    }
    qsort(seconds, SAMPLES, sizeof *seconds, by_size);
    return seconds[SAMPLES / 2];
}

/* ---- one row ---- */

/* Multiplications and additions, causal not discounted. */
static double flops_of(const decode_step *s) {
    const decode_row *r = s->row;
    return 2.0 * (double)(r->batch * r->q_heads * r->q_len * (r->qk_dim + r->v_dim)) * s->mean_keys;
}

/* Q, O and the cache once. */
static double bytes_of(const decode_step *s) {
    const decode_row *r = s->row;
    const double kept = (double)(r->kv_heads * (r->qk_dim + (r->v_in_k ? 0 : r->v_dim)));
    return 2.0 * (double)r->batch * ((double)(r->q_len * r->q_heads * (r->qk_dim + r->v_dim)) + s->mean_keys * kept);
}

static double in_unit(const decode_step *s, int unit, double seconds) {
    return unit == DECODE_TFLOPS ? flops_of(s) / seconds * 1e-12
         : unit == DECODE_GBS ? bytes_of(s) / seconds * 1e-9 : seconds * 1e6;
}

static int run_row(const decode_row *row, const bench_request *common) {
    decode_step s;
    int code = CLI_FAILED;
    if (!decode_step_create(&s, row, common)) {
        const double ready = median_time(&s, 0), error = ready < 0 ? NAN : decode_step_error(&s);
        const double whole = ready < 0 ? -1 : s.schedule ? median_time(&s, 1) : ready;
        if (!(error <= 1)) snprintf(s.why, sizeof s.why, "WRONG: error / bound = %.3g %.300s", error, attn_last_error());
        else if (whole < 0) snprintf(s.why, sizeof s.why, "failed: %.300s", attn_last_error());
        else {
            const double figure = in_unit(&s, row->unit, ready), peer = row->peer_figure;
            bench_show("%-26s %8.1f us %7.1f TFLOP/s %7.0f GB/s  with schedule %8.1f us", row->name, ready * 1e6,
                       in_unit(&s, DECODE_TFLOPS, ready), in_unit(&s, DECODE_GBS, ready), whole * 1e6);
            if (row->peer)
                bench_show("  peer %7.1f  x%.3f", peer, row->unit == DECODE_MICROSECONDS ? peer / figure : figure / peer);
            bench_show("  error %.2f  %s\n", error, attn_plan_kernel(s.plan));
            code = CLI_OK;
        }
    }
    if (code) bench_show("%-26s %s\n", row->name, s.why);
    decode_step_destroy(&s);
    return code;
}

int bench_mla(const cli_arguments *a, const bench_request *common) {
    const check_memory *memory;
    int code = CLI_OK;
    if (gpu_session_memory(ATTN_CUDA, a, &memory)) return CLI_USAGE;
    check_gpu_info info;
    char why[256];
    if (!check_gpu_read((int)cli_integer(a, "device", 0), &info, why, sizeof why)) bench_show("%s, bf16\n", info.name);
    bench_show("peer: %s; its schedule not counted, nor ours but under \"with schedule\"; x: times as fast\n", FLASHMLA);
    for (size_t i = 0; i < sizeof mla_rows / sizeof *mla_rows; i++) {
        const int one = run_row(&mla_rows[i], common);
        if (one) code = one;
    }
    return code;
}
