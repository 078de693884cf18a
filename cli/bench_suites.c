/* bench_suites.c — named sets of problems: rows of a table, so that adding one is one line. */
#include "bench.h"
#include "bench_decode.h"
#include "gpu.h"
#include "terminal.h"
#include <string.h>

const char bench_suite_names[] = "prefill decode overhead scaling table demo mla";
enum { SUITE_PREFILL, SUITE_DECODE, SUITE_OVERHEAD, SUITE_SCALING, SUITE_TABLE, SUITE_DEMO, SUITE_MLA };

typedef struct suite_row {
    int         suite;
    int64_t     q_heads, kv_heads, q_len, kv_len, dim;
    int         causal;
    attn_dtype  dtype;
} suite_row;

/* On the CPU; V is the first 512 columns of K. */
#define MLA(heads, queries, keys, dtype) { SUITE_MLA, heads, 1, queries, keys, 576, 1, dtype }

static const suite_row rows[] = {
    { SUITE_PREFILL, 8, 8, 1024, 1024, 64, 0, ATTN_F32 },
    { SUITE_PREFILL, 8, 8, 2048, 2048, 64, 1, ATTN_F32 },
    { SUITE_PREFILL, 8, 8, 1024, 1024, 128, 0, ATTN_F32 },
    { SUITE_PREFILL, 8, 8, 2048, 2048, 128, 1, ATTN_F32 },
    { SUITE_PREFILL, 8, 8, 1024, 1024, 128, 0, ATTN_F16 },
    { SUITE_PREFILL, 8, 8, 1024, 1024, 128, 0, ATTN_BF16 },
    { SUITE_PREFILL, 8, 8, 2048, 2048, 128, 1, ATTN_BF16 },
    { SUITE_PREFILL, 32, 8, 1024, 1024, 128, 1, ATTN_BF16 },
    { SUITE_DECODE, 8, 8, 1, 1024, 128, 1, ATTN_F32 },
    { SUITE_DECODE, 8, 8, 1, 32768, 128, 1, ATTN_F32 },
    { SUITE_DECODE, 8, 8, 1, 32768, 128, 1, ATTN_F16 },
    { SUITE_DECODE, 8, 8, 1, 32768, 128, 1, ATTN_BF16 },
    { SUITE_DECODE, 32, 8, 1, 1024, 128, 1, ATTN_BF16 },
    { SUITE_DECODE, 32, 8, 1, 16384, 128, 1, ATTN_F16 },
    { SUITE_DECODE, 32, 8, 1, 16384, 128, 1, ATTN_BF16 },
    { SUITE_DECODE, 32, 8, 1, 32768, 128, 1, ATTN_BF16 },
    { SUITE_OVERHEAD, 1, 1, 1, 1, 1, 0, ATTN_F32 },
    { SUITE_OVERHEAD, 1, 1, 1, 1, 64, 0, ATTN_F32 },
    { SUITE_OVERHEAD, 8, 8, 1, 64, 64, 0, ATTN_F32 },
    { SUITE_OVERHEAD, 8, 8, 16, 16, 64, 1, ATTN_F32 },
    { SUITE_SCALING, 8, 8, 1024, 1024, 64, 0, ATTN_F32 },
    { SUITE_SCALING, 8, 8, 2048, 2048, 128, 1, ATTN_F32 },
    { SUITE_SCALING, 8, 8, 2048, 2048, 128, 1, ATTN_BF16 },
    { SUITE_SCALING, 32, 8, 1, 16384, 128, 1, ATTN_BF16 },
    MLA(128, 1, 4096, ATTN_F32),
    MLA(128, 1, 4096, ATTN_F16),
    MLA(128, 1, 4096, ATTN_BF16),
    MLA(128, 1, 32768, ATTN_BF16),
    MLA(128, 2, 4096, ATTN_BF16),
    MLA(64, 1, 8192, ATTN_BF16),
    MLA(16, 1, 32768, ATTN_F16),
    MLA(16, 1, 32768, ATTN_BF16),
};
enum { ROWS = sizeof rows / sizeof *rows };

static attn_problem problem_of(const suite_row *r) {
    attn_problem p = ATTN_PROBLEM_INIT;
    p.batch = 1, p.q_heads = r->q_heads, p.kv_heads = r->kv_heads, p.q_len = r->q_len, p.kv_len = r->kv_len;
    p.qk_dim = r->dim, p.causal = r->causal, p.dtype = r->dtype;
    if (r->suite == SUITE_MLA) p.v_in_k = 1, p.v_dim = 512;
    return p;
}

/* 1, 2, 4, ... and all of them. */
static int thread_ladder(int *threads, int most) {
    const int all = attn_cpu_threads();
    int n = 0;
    for (int t = 1; t < all && n < most - 1; t *= 2) threads[n++] = t;
    threads[n++] = all;
    return n;
}

/* --backend decides; without it a GPU, if there is one. */
static int on_gpu(const cli_arguments *a) {
    check_gpu_info info;
    char why[256];
    if (cli_given(a, "backend")) return cli_choice(a, "backend", 0) != 0;
    return !check_gpu_read((int)cli_integer(a, "device", 0), &info, why, sizeof why);
}

int bench_suite(int suite, const cli_arguments *a, const bench_request *common, bench_table *table) {
    int ladder[16], code = CLI_OK;
    if ((suite == SUITE_DECODE || suite == SUITE_MLA) && on_gpu(a))
        return bench_decode(suite == SUITE_MLA, a, common, table);
    if (suite == SUITE_TABLE) return bench_targets(a, common, table);
    if (suite == SUITE_DEMO) return bench_demo(cli_text(a, "in"), table);
    contender_list contenders;
    bench_request request = *common;
    if (contenders_create(&contenders, a, ATTN_CPU)) return CLI_USAGE;
    request.contenders = &contenders;
    if (suite == SUITE_SCALING) {
        request.threads = ladder;
        request.thread_counts = thread_ladder(ladder, 16);
    }
    for (int i = 0; i < ROWS; i++) {
        if (rows[i].suite != suite) continue;
        request.problem = problem_of(&rows[i]);
        const int first = table->count, one = bench_problem(&request, table);
        cli_progress_end();
        bench_print(table, first);
        if (one) code = one;
    }
    contenders_free(&contenders);
    return code;
}
