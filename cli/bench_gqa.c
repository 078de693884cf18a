/* bench_gqa.c — attn bench --suite decode --backend cuda: few queries against long caches, the targets and the peers'
 * figures beside ours. A row's runs are captured into a graph that goes round several sets of K and V, so that the L2
 * cache never has what the next run reads; the card's read rate is measured between the same samples. */
#include "bench_gqa.h"
#include "cuda/driver.h"
#include "gpu_session.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What others reach on an H100 80GB (driver 580, torch 2.11): cuDNN's attention, GQA with head dim 128, bf16. */
#define PEER "cuDNN"
static const double peer_b1_8k_us = 27.2, peer_b1_128k_gbs = 2768, peer_b16_8k_gbs = 2837, peer_b128_4k_gbs = 3016,
                    peer_b64_8k_gbs = 3026;

#define GQA32(batch, kv_len) batch, 32, 8, 1, kv_len, 128
#define GQA64(batch, kv_len) batch, 64, 8, 1, kv_len, 128

typedef enum metric { MICROSECONDS, BANDWIDTH } metric;

typedef struct decode_row {
    const char   *name;
    metric        metric;
    const double *peer;                 /* NULL: none is known */
    double        must, goal;           /* microseconds at most, GB/s at least; paged: times the row before, at least */
    int64_t       batch, q_heads, kv_heads, q_len, kv_len, dim, page_size;
} decode_row;

static const decode_row rows[] = {
    { "GQA 32/8 d128 b1 8k", MICROSECONDS, &peer_b1_8k_us, 24, 18, GQA32(1, 8192), 0 },
    { "  paged 64, shuffled", BANDWIDTH, NULL, 0.97, 1.0, GQA32(1, 8192), 64 },
    { "GQA 32/8 d128 b1 128k", BANDWIDTH, &peer_b1_128k_gbs, 2800, 2950, GQA32(1, 131072), 0 },
    { "  paged 64, shuffled", BANDWIDTH, NULL, 0.97, 1.0, GQA32(1, 131072), 64 },
    { "GQA 32/8 d128 b16 8k", BANDWIDTH, &peer_b16_8k_gbs, 2850, 2950, GQA32(16, 8192), 0 },
    { "  paged 64, shuffled", BANDWIDTH, NULL, 0.97, 1.0, GQA32(16, 8192), 64 },
    { "GQA 32/8 d128 b128 4k", BANDWIDTH, &peer_b128_4k_gbs, 2950, 3030, GQA32(128, 4096), 0 },
    { "  paged 64, shuffled", BANDWIDTH, NULL, 0.97, 1.0, GQA32(128, 4096), 64 },
    { "GQA 64/8 d128 b64 8k", BANDWIDTH, &peer_b64_8k_gbs, 2950, 3030, GQA64(64, 8192), 0 },
    { "  paged 64, shuffled", BANDWIDTH, NULL, 0.97, 1.0, GQA64(64, 8192), 64 },
};
enum { ROWS = sizeof rows / sizeof *rows };

enum { PERIOD = 4194301 /* elements after which the numbers repeat, a prime */, SAMPLES = 7, MOST_RUNS = 400 };

/* ---- one row's tensors ---- */

typedef struct bench_cache {
    const check_memory *memory;
    attn_problem problem;               /* resolved */
    attn_plan   *plan;
    uint16_t    *numbers;               /* [PERIOD], on the host: element n of Q, K and V is numbers[n % PERIOD] */
    int32_t     *table;                 /* of pages, on the host */
    void        *q, *k, *v, *o, *workspace, *device_table, *lengths, *schedule;
    int          shared;                /* 1: runs take `schedule`, as all layers of a step but the first do */
    int64_t      kv_bytes;              /* of K, of one set */
    int          sets;
} bench_cache;

static uint16_t bf16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)(bits >> 16);
}
static double of_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

static uint64_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static int upload_numbers(const bench_cache *c, void *device, int64_t bytes) {
    const int64_t piece = (int64_t)PERIOD * 2;
    for (int64_t at = 0; at < bytes; at += piece)
        if (c->memory->upload(c->memory->context, (char *)device + at, c->numbers,
                              (size_t)(bytes - at < piece ? bytes - at : piece)))
            return 1;
    return 0;
}

static void *alloc(const bench_cache *c, int64_t bytes) {
    return c->memory->alloc(c->memory->context, bytes > 0 ? (size_t)bytes : 1);
}

static attn_problem problem_of(const decode_row *r) {
    attn_problem p = ATTN_PROBLEM_INIT;
    p.device = ATTN_CUDA, p.dtype = ATTN_BF16;
    p.batch = r->batch, p.q_heads = r->q_heads, p.kv_heads = r->kv_heads, p.q_len = r->q_len, p.kv_len = r->kv_len;
    p.qk_dim = r->dim, p.causal = 1;
    if (r->page_size) {
        p.page_size = r->page_size;
        p.block_table_cols = (r->kv_len + r->page_size - 1) / r->page_size;
        p.pages = p.block_table_cols * r->batch;
        p.has_seqused_kv = 1;
    }
    return p;
}

static int make_numbers(bench_cache *c) {
    uint64_t state = 7;
    c->numbers = malloc((size_t)PERIOD * 2);
    for (int64_t n = 0; c->numbers && n < PERIOD; n++)
        c->numbers[n] = bf16_of((float)next_random(&state) / (float)(1u << 30) - 1);
    return !c->numbers;
}

/* Pages of the pool in random order, every length at its maximum. */
static int make_table(bench_cache *c) {
    const attn_problem *p = &c->problem;
    if (!p->page_size) return 0;
    uint64_t state = 11;
    int32_t *lengths = malloc((size_t)p->batch * 4);
    c->table = malloc((size_t)p->pages * 4);
    c->device_table = alloc(c, p->pages * 4);
    c->lengths = alloc(c, p->batch * 4);
    int bad = !c->table || !lengths || !c->device_table || !c->lengths;
    for (int64_t n = 0; n < p->pages && !bad; n++) {
        const int64_t other = (int64_t)(next_random(&state) % (uint64_t)(n + 1));
        c->table[n] = c->table[other];
        c->table[other] = (int32_t)n;
    }
    for (int64_t b = 0; b < p->batch && !bad; b++) lengths[b] = (int32_t)p->kv_len;
    bad = bad || c->memory->upload(c->memory->context, c->device_table, c->table, (size_t)p->pages * 4) ||
          c->memory->upload(c->memory->context, c->lengths, lengths, (size_t)p->batch * 4);
    free(lengths);
    return bad;
}

static void free_cache(bench_cache *c) {
    void *const device[] = { c->q, c->k, c->v, c->o, c->workspace, c->device_table, c->lengths, c->schedule };
    for (size_t i = 0; i < sizeof device / sizeof *device; i++) c->memory->free(c->memory->context, device[i]);
    attn_plan_destroy(c->plan);
    free(c->numbers);
    free(c->table);
}

static attn_tensors tensors_of(const bench_cache *c, int set) {
    attn_tensors t = ATTN_TENSORS_INIT;
    t.q = c->q, t.o = c->o;
    t.k = (const char *)c->k + set * c->kv_bytes, t.v = (const char *)c->v + set * c->kv_bytes;
    t.block_table = c->device_table, t.seqused_kv = c->lengths;
    t.schedule = c->shared ? c->schedule : NULL;
    return t;
}

static int make_schedule(bench_cache *c) {
    const size_t bytes = attn_plan_schedule_size(c->plan);
    if (!bytes) return 0;
    const attn_tensors t = tensors_of(c, 0);
    c->schedule = alloc(c, (int64_t)bytes);
    c->shared = 1;
    return !c->schedule || attn_plan_schedule(c->plan, &t, c->schedule, NULL) != ATTN_OK;
}

/* 0, or nonzero with the reason in `why`. */
static int make_cache(bench_cache *c, const decode_row *r, const attn_options *options, char *why, size_t size) {
    const attn_problem wanted = problem_of(r);
    snprintf(why, size, "out of memory");
    if (attn_plan_create(&c->plan, &wanted, options)) {
        snprintf(why, size, "%s", attn_last_error());
        return 1;
    }
    const attn_problem *p = &c->problem;
    c->problem = *attn_plan_problem(c->plan);
    c->kv_bytes = p->batch * p->kv_len * p->kv_heads * p->qk_dim * 2;
    const int64_t q_bytes = p->batch * p->q_len * p->q_heads * p->qk_dim * 2, enough = (int64_t)256 << 20;
    c->sets = (int)(enough / (2 * c->kv_bytes)) + 1;
    c->q = alloc(c, q_bytes), c->o = alloc(c, q_bytes);
    c->k = alloc(c, c->sets * c->kv_bytes), c->v = alloc(c, c->sets * c->kv_bytes);
    c->workspace = alloc(c, (int64_t)attn_plan_workspace(c->plan));
    return !c->q || !c->o || !c->k || !c->v || !c->workspace || make_numbers(c) || make_table(c) ||
           upload_numbers(c, c->q, q_bytes) || upload_numbers(c, c->k, c->sets * c->kv_bytes) ||
           upload_numbers(c, c->v, c->sets * c->kv_bytes) || make_schedule(c);
}

static attn_status run_set(const bench_cache *c, int set, void *stream) {
    const attn_tensors t = tensors_of(c, set);
    return attn_run(c->plan, &t, c->workspace, stream);
}

/* ---- is the result right? a few rows against sums in double ---- */

static double number_at(const bench_cache *c, int64_t element) { return of_bf16(c->numbers[element % PERIOD]); }

static int64_t key_element(const bench_cache *c, int set, int64_t b, int64_t h, int64_t j) {
    const attn_problem *p = &c->problem;
    const int64_t row = p->page_size ? c->table[b * p->block_table_cols + j / p->page_size] * p->page_size +
                                       j % p->page_size
                                     : b * p->kv_len + j;
    return set * (c->kv_bytes / 2) + (row * p->kv_heads + h) * p->qk_dim;
}

/* Relative error of O's row (b, query 0, head h), in the norm. */
static double row_error(const bench_cache *c, const uint16_t *o, int set, int64_t b, int64_t h) {
    const attn_problem *p = &c->problem;
    const int64_t q_row = (b * p->q_len * p->q_heads + h) * p->qk_dim, kv_head = h / (p->q_heads / p->kv_heads);
    const int64_t seen = p->kv_len - p->q_len + 1;
    double sum = 0, error = 0, norm = 0, expected[256] = { 0 };
    for (int64_t j = 0; j < seen; j++) {
        const int64_t at = key_element(c, set, b, kv_head, j);
        double dot = 0;
        for (int64_t d = 0; d < p->qk_dim; d++) dot += number_at(c, q_row + d) * number_at(c, at + d);
        const double weight = exp(dot * (double)p->scale);
        sum += weight;
        for (int64_t d = 0; d < p->v_dim; d++) expected[d] += weight * number_at(c, at + d);
    }
    for (int64_t d = 0; d < p->v_dim; d++) {
        const double want = expected[d] / sum, got = of_bf16(o[q_row + d]);
        error += (got - want) * (got - want);
        norm += want * want;
    }
    return sqrt(error / norm);
}

static int is_right(const bench_cache *c, char *why, size_t size) {
    const attn_problem *p = &c->problem;
    const int64_t bytes = p->batch * p->q_len * p->q_heads * p->v_dim * 2;
    const int set = c->sets - 1;
    uint16_t *o = malloc((size_t)bytes);
    if (run_set(c, set, NULL)) snprintf(why, size, "%s", attn_last_error());
    else if (!o || c->memory->download(c->memory->context, o, c->o, (size_t)bytes)) snprintf(why, size, "no result");
    else {
        double worst = 0;
        for (int64_t n = 0; n < 3; n++) {
            const int64_t b = n * (p->batch - 1) / 2, h = n * (p->q_heads - 1) / 2;
            const double error = row_error(c, o, set, b, h);
            if (!(error <= worst)) worst = error;
        }
        free(o);
        snprintf(why, size, "wrong: relative error %.2e of O", worst);
        return worst <= 1e-2;               /* bf16: 2e-3 from O, the rest from P */
    }
    free(o);
    return 0;
}

/* ---- time ---- */

static double median_of(double *x, int count) {
    for (int i = 1; i < count; i++)
        for (int j = i; j > 0 && x[j] < x[j - 1]; j--) {
            const double other = x[j];
            x[j] = x[j - 1], x[j - 1] = other;
        }
    return count % 2 ? x[count / 2] : (x[count / 2 - 1] + x[count / 2]) / 2;
}

typedef struct queued { const attn_cuda_driver *driver; cu_graph_exec graph; } queued;

static int launch(void *arg, void *stream) {
    const queued *x = arg;
    return x->driver->GraphLaunch(x->graph, stream) != CU_OK;
}

/* Seconds of a run in a graph of `runs`, negative: failed. *read: bytes a second. */
static int measure(const bench_cache *c, check_gpu *gpu, check_gpu_meter *meter, double *seconds, double *read,
                   char *why, size_t size) {
    queued x = { attn_cuda_open(why, size), NULL };
    if (!x.driver) return 1;
    cu_stream stream = check_gpu_stream(gpu);
    const double estimate = 2 * (double)c->kv_bytes / 2.5e12 + 5e-6;
    int64_t runs = (int64_t)(10e-3 / estimate) / c->sets * c->sets + c->sets;
    if (runs > MOST_RUNS) runs = MOST_RUNS / c->sets * c->sets;
    cu_graph graph;
    attn_status status = ATTN_OK;
    snprintf(why, size, "capturing failed");
    if (x.driver->StreamBeginCapture(stream, 0)) return 1;
    for (int64_t i = 0; i < runs && !status; i++) status = run_set(c, (int)(i % c->sets), stream);
    if (x.driver->StreamEndCapture(stream, &graph) || status) return 1;
    if (x.driver->GraphInstantiateWithFlags(&x.graph, graph, 0)) return 1;
    double best[SAMPLES], reads[SAMPLES];
    (void)check_gpu_time(gpu, launch, &x, 1, 0);
    for (int i = 0; i < SAMPLES; i++) {
        best[i] = check_gpu_time(gpu, launch, &x, 1, 0) / (double)runs;
        reads[i] = 0;
        if (meter)
            reads[i] = check_gpu_meter_amount(meter) * 8 / check_gpu_time(gpu, check_gpu_meter_run, meter, 8, 0);
    }
    (void)x.driver->GraphExecDestroy(x.graph);
    (void)x.driver->GraphDestroy(graph);
    *seconds = median_of(best, SAMPLES);
    *read = median_of(reads, SAMPLES);
    snprintf(why, size, "the device failed");
    return !(*seconds > 0);
}

/* ---- the table ---- */

/* previous: seconds of the row before; alone: of a run that makes its own schedule, 0 = there is none to make. */
static void print_row(const decode_row *r, const bench_cache *c, double seconds, double read, double previous,
                      double alone) {
    const double bytes = 2 * (double)c->kv_bytes, rate = bytes / seconds * 1e-9, us = seconds * 1e6;
    const int relative = r->page_size && previous > 0, lower = r->metric == MICROSECONDS && !relative;
    const double figure = relative ? previous / seconds : lower ? us : rate;
    const int goal = lower ? figure <= r->goal : figure >= r->goal;
    const int must = lower ? figure <= r->must : figure >= r->must;
    char peer[64] = "-", ratio[24] = "-", own[64] = "";
    if (alone > 0) snprintf(own, sizeof own, ", %.1f us with a schedule of its own", alone * 1e6);
    if (r->peer) {
        const double times = lower ? *r->peer / us : rate / *r->peer;
        snprintf(peer, sizeof peer, lower ? PEER " %.1f us" : PEER " %.0f GB/s", *r->peer);
        snprintf(ratio, sizeof ratio, "%.3f", times);
    }
    bench_show("%-24s %9.1f us %8.0f GB/s %6.1f %%   %-16s %6s   %6.4g %6.4g %8.4g %-6s %s%s\n", r->name, us, rate,
               read > 0 ? 100 * rate * 1e9 / read : 0, peer, ratio, r->must, r->goal, figure,
               goal ? "goal" : must ? "must" : "MISSED", attn_plan_kernel(c->plan), own);
}

static int run_row(const decode_row *r, const attn_options *options, const check_memory *memory, check_gpu *gpu,
                   check_gpu_meter *meter, double *previous) {
    char why[256];
    double seconds = 0, read = 0, alone = 0, unused;
    bench_cache c = { .memory = memory };
    int bad = make_cache(&c, r, options, why, sizeof why) || !is_right(&c, why, sizeof why) ||
              measure(&c, gpu, meter, &seconds, &read, why, sizeof why);
    if (!bad && c.shared) {
        c.shared = 0;
        bad = measure(&c, gpu, meter, &alone, &unused, why, sizeof why);
    }
    if (bad) bench_show("%-24s %s\n", r->name, why);
    else print_row(r, &c, seconds, read, *previous, alone);
    *previous = bad ? 0 : seconds;
    free_cache(&c);
    return bad;
}

int bench_gqa(const cli_arguments *a) {
    const check_memory *memory;
    attn_options options = ATTN_OPTIONS_INIT;
    int code = CLI_OK;
    double previous = 0;
    options.cuda_device = (int32_t)cli_integer(a, "device", 0);
    options.splits = (int32_t)cli_integer(a, "splits", 0);
    if (cli_given(a, "kernel")) options.kernel = cli_text(a, "kernel");
    if (gpu_session_open(ATTN_CUDA, options.cuda_device, &memory)) return CLI_FAILED;
    check_gpu_meter *meter = gpu_session_meter(CEILING_GPU_READ);
    bench_show("%s%-24s %12s %13s %8s   %-16s %6s   %6s %6s %8s %-6s %s%s\n", bench_style(CLI_BOLD), "bf16", "time",
               "K, V read", "of read", "peer", "ratio", "must", "goal", "measured", "result", "by",
               bench_style(CLI_PLAIN));
    for (int i = 0; i < ROWS; i++)
        if (run_row(&rows[i], &options, memory, memory->context, meter, &previous)) code = CLI_FAILED;
    return code;
}
