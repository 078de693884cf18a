/* bench_measure.c — samples in alternating rounds, so that what the machine does meanwhile hits every
 * contender alike, and the statistics of what came out. */
#include "bench.h"
#include "terminal.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const double DISTURBED = 0.06;       /* share of its processors that a sample may lose */

double bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- statistics ---- */

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Linear between the ranks. `sorted` has n > 0 numbers. */
static double quantile(const double *sorted, int n, double q) {
    const double at = q * (n - 1);
    const int i = (int)at;
    return i + 1 < n ? sorted[i] + (at - i) * (sorted[i + 1] - sorted[i]) : sorted[n - 1];
}

/* A kernel on several threads may leave some idle by itself: then its best sample is the measure. */
static int undisturbed(const bench_item *item, int round) {
    double always = 0;
    if (item->threads > 1) {
        always = 1;
        for (int i = 0; i < item->count; i++)
            if (item->seconds[i] > 0 && item->lost[i] < always) always = item->lost[i];
    }
    return item->seconds[round] > 0 && item->lost[round] <= always + DISTURBED;
}

static int count_clean(const bench_item *item) {
    int n = 0;
    for (int i = 0; i < item->count; i++) n += undisturbed(item, i);
    return n;
}

bench_spread bench_spread_of(const bench_item *item) {
    bench_spread s = { 0 };
    double all[BENCH_SAMPLES];
    const int clean = count_clean(item), only_clean = clean >= 3;
    for (int i = 0; i < item->count; i++)
        if (item->seconds[i] > 0 && (!only_clean || undisturbed(item, i))) all[s.count++] = item->seconds[i];
    s.disturbed = item->count - clean;
    if (!s.count) return s;
    qsort(all, (size_t)s.count, sizeof *all, by_size);
    s.least = all[0], s.most = all[s.count - 1];
    s.low = quantile(all, s.count, 0.25), s.median = quantile(all, s.count, 0.5),
    s.high = quantile(all, s.count, 0.75);
    return s;
}

double bench_lost(const bench_item *item) {
    double all[BENCH_SAMPLES];
    int n = 0;
    for (int i = 0; i < item->count; i++)
        if (item->seconds[i] > 0) all[n++] = item->lost[i];
    qsort(all, (size_t)n, sizeof *all, by_size);
    return n ? quantile(all, n, 0.5) : 0;
}

double bench_ratio(const bench_item *a, const bench_item *b) {
    double ratios[BENCH_SAMPLES], rest[BENCH_SAMPLES];
    int n = 0, m = 0;
    for (int i = 0; i < a->count && i < b->count; i++) {
        if (!(a->seconds[i] > 0) || !(b->seconds[i] > 0)) continue;
        const double ratio = b->seconds[i] / a->seconds[i];
        rest[m++] = ratio;
        if (undisturbed(a, i) && undisturbed(b, i)) ratios[n++] = ratio;
    }
    double *use = n >= 3 ? ratios : rest;
    const int count = n >= 3 ? n : m;
    if (!count) {   /* no round in common */
        const bench_spread x = bench_spread_of(a), y = bench_spread_of(b);
        return x.median > 0 ? y.median / x.median : 0;
    }
    qsort(use, (size_t)count, sizeof *use, by_size);
    return quantile(use, count, 0.5);
}

/* ---- rounds ---- */

static int take(bench_item *item, int64_t iterations, bench_sample *s) {
    *s = (bench_sample){ 0, 0 };
    if (!*item->reason && item->sample(item, iterations, s) && !*item->reason)
        snprintf(item->reason, sizeof item->reason, "stopped");
    return *item->reason != 0;
}

/* Warm up and find how many iterations fill a sample. */
static void calibrate(bench_item *item, const bench_settings *settings) {
    bench_sample s;
    int64_t n = 1;
    item->count = 0;
    item->iterations = 0;
    if (take(item, 1, &s)) return;                  /* first touch */
    for (;;) {
        if (take(item, n, &s)) return;
        if (s.seconds >= settings->sample_seconds / 4 || n >= (int64_t)1 << 40) break;
        const double factor = s.seconds > 0 ? settings->sample_seconds / 2 / s.seconds : 100;
        n = (int64_t)((double)n * (factor > 100 ? 100 : factor)) + 1;
    }
    const double each = s.seconds / (double)n;
    item->iterations = each >= settings->sample_seconds ? 1 : (int64_t)(settings->sample_seconds / each) + 1;
}

static void sample_round(bench_item *item, int round) {
    bench_sample s;
    item->count = round + 1;
    item->seconds[round] = 0;
    item->lost[round] = 0;
    if (take(item, item->iterations, &s)) return;
    item->seconds[round] = s.seconds / (double)item->iterations;
    const double busy = s.cpu / (s.seconds * item->threads);
    item->lost[round] = s.cpu > 0 && busy < 1 ? 1 - busy : 0;
}

/* Enough samples? */
static int is_satisfied(const bench_item *item, const bench_settings *settings) {
    return *item->reason || count_clean(item) >= settings->samples || item->count >= 3 * settings->samples;
}

/* No use or no time for more? */
static int is_out(const bench_item *item, const bench_settings *settings, double spent) {
    return *item->reason || (item->count && spent > settings->budget);
}

/* Everyone goes on as long as one isn't satisfied: ratios are taken within rounds. */
static int go_on(bench_item *const *items, int count, const bench_settings *settings, const double *spent) {
    for (int i = 0; i < count; i++)
        if (!is_satisfied(items[i], settings) && !is_out(items[i], settings, spent[i])) return 1;
    return 0;
}

void bench_measure(bench_item *const *items, int count, const bench_settings *settings, const char *label) {
    double *spent = calloc((size_t)count + 1, sizeof *spent);
    for (int i = 0; spent && i < count; i++) {
        cli_progress("%s: warm-up %d of %d", label, i + 1, count);
        calibrate(items[i], settings);
    }
    for (int round = 0; spent && round < BENCH_SAMPLES && go_on(items, count, settings, spent); round++)
        for (int n = 0; n < count; n++) {
            const int i = (n + round) % count;                      /* nobody always follows the same one */
            if (is_out(items[i], settings, spent[i])) continue;
            cli_progress("%s: round %d, %d of %d", label, round + 1, n + 1, count);
            const double start = bench_now();
            sample_round(items[i], round);
            spent[i] += bench_now() - start;
        }
    free(spent);
}
