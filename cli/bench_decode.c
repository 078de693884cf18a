/* bench_decode.c — the rows of suites decode and mla on a GPU, with what others reach and what is wanted, and
 * the way of a row: its tensors, the check, the time with a schedule made before and with one of its own. */
#include "bench_decode.h"
#include "gpu_session.h"

/* What others reach on an H100 80GB HBM3. GB/s: K and V over time; MLA with Q and O, schedule not counted. */
#define CUDNN "cuDNN"               /* its attention, torch 2.11, driver 580 */
#define FLASHMLA "FlashMLA"         /* 9241ae3, CUDA 13.0: main kernel and merge, median of do_bench */

/* Contiguous, and the same in pages: 32 or 64 query heads on 8, head dim 128. */
#define GQA(text, batch, heads, keys, figure, unit, must, goal) \
    { text, batch, heads, 8, 1, keys, 128, 128, 0, 0, DECODE_PLANNED, DECODE_WARM, \
      CUDNN, figure, unit, unit, must, goal }, \
    { "  paged 64, shuffled", batch, heads, 8, 1, keys, 128, 128, 0, 64, DECODE_FULL, DECODE_WARM, \
      NULL, 0, BENCH_US, BENCH_OF_BEFORE, 0.97, 1.0 }

#define MLA(text, batch, heads, q_len, keys, lengths, figure, figure_unit, unit, must, goal) \
    { text, batch, heads, 1, q_len, keys, 576, 512, 1, 64, lengths, DECODE_COLD, \
      FLASHMLA, figure, figure_unit, unit, must, goal }
#define MLA_RAGGED(text, q_len, keys, figure, goal) \
    MLA(text, 128, 128, q_len, keys, DECODE_RAGGED, figure, BENCH_TFLOPS, BENCH_OF_PEER, 1, goal)
#define MLA_HEADS(text, heads, figure, goal) \
    MLA(text, 128, heads, 1, 8192, DECODE_PLANNED, figure, BENCH_GBS, BENCH_GBS, figure, goal)
#define MLA_ONE(text, keys, figure, figure_unit, goal) \
    MLA(text, 1, 128, 1, keys, DECODE_PLANNED, figure, figure_unit, BENCH_OF_PEER, 1, goal)

static const decode_row gqa_rows[] = {
    GQA("GQA 32/8 d128 b1 8k", 1, 32, 8192, 27.2, BENCH_US, 24, 18),
    GQA("GQA 32/8 d128 b1 128k", 1, 32, 131072, 2768, BENCH_GBS, 2800, 2950),
    GQA("GQA 32/8 d128 b16 8k", 16, 32, 8192, 2837, BENCH_GBS, 2850, 2950),
    GQA("GQA 32/8 d128 b128 4k", 128, 32, 4096, 3016, BENCH_GBS, 2950, 3030),
    GQA("GQA 64/8 d128 b64 8k", 64, 64, 8192, 3026, BENCH_GBS, 2950, 3030),
};
static const decode_row mla_rows[] = {
    MLA_RAGGED("h128 b128 ragged 4k", 1, 4096, 505, 1.10),
    MLA_RAGGED("h128 b128 ragged 8k", 1, 8192, 545, 1.10),
    MLA_RAGGED("h128 b128 ragged 16k", 1, 16384, 567, 1.10),
    MLA_RAGGED("h128 b128 ragged 32k", 1, 32768, 576, 1.10),
    MLA_RAGGED("h128 b128 ragged 4k q2", 2, 4096, 515, 1.08),
    MLA_RAGGED("h128 b128 ragged 8k q2", 2, 8192, 605, 1.08),
    MLA_RAGGED("h128 b128 ragged 16k q2", 2, 16384, 637, 1.08),
    MLA_RAGGED("h128 b128 ragged 32k q2", 2, 32768, 639, 1.08),
    MLA_HEADS("h16 b128 8k", 16, 2752, 2950),
    MLA_HEADS("h32 b128 8k", 32, 2755, 2950),
    MLA_HEADS("h64 b128 8k", 64, 2759, 2950),
    MLA_ONE("h128 b1 4k", 4096, 25.4, BENCH_US, 1.3),
    MLA_ONE("h128 b1 8k", 8192, 31.1, BENCH_US, 1.3),
    MLA_ONE("h128 b1 32k", 32768, 46.3, BENCH_US, 1.3),
    MLA_ONE("h128 b1 128k", 131072, 398, BENCH_TFLOPS, 1.3),
};

/* Check and time one row into r. Nonzero: it was wrong or failed; r says why. */
static int run_row(const decode_row *row, const attn_options *options, const check_memory *memory,
                   bench_row *r) {
    decode_step s;
    decode_times times = { .read = 0 }, own = { .read = 0 };
    int bad = decode_step_create(&s, row, options, memory) || decode_step_check(&s, &r->outcome.verdict) ||
              decode_step_time(&s, 0, &times);
    if (!bad && s.schedule) bad = decode_step_time(&s, 1, &own);
    r->problem = s.problem;
    r->outcome.kind = s.kind;
    snprintf(r->outcome.reason, sizeof r->outcome.reason, "%s", s.why);
    if (s.plan) snprintf(r->kernel, sizeof r->kernel, "%s", attn_plan_kernel(s.plan));
    if (!bad) {
        r->time = times.run;
        r->flops = decode_step_flops(&s), r->bytes = decode_step_bytes(&s);
        r->read_bytes = times.read;
        r->of_read = times.read > 0 ? r->bytes / times.run.median / times.read : 0;
        r->target.own_schedule = own.run.median;
    }
    decode_step_destroy(&s);
    return bad;
}

int bench_decode(int is_mla, const cli_arguments *a, const bench_request *common, bench_table *table) {
    const decode_row *rows = is_mla ? mla_rows : gqa_rows;
    const size_t count = is_mla ? sizeof mla_rows / sizeof *mla_rows : sizeof gqa_rows / sizeof *gqa_rows;
    attn_options options = common->options;
    const check_memory *memory;
    double before = 0;
    int code = CLI_OK;
    options.kernel = cli_text_item(a, "kernel", 0);
    if (gpu_session_open(ATTN_CUDA, options.cuda_device, &memory)) return CLI_FAILED;
    bench_decode_header();
    for (size_t i = 0; i < count; i++) {
        bench_row *r = bench_table_add(table);
        if (!r) return CLI_FAILED;
        r->chosen = !options.kernel;
        if (run_row(&rows[i], &options, memory, r)) code = CLI_FAILED;
        bench_decode_judge(&rows[i], before, r);
        bench_decode_print(r);
        before = r->time.median;
    }
    return code;
}
