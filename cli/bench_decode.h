/* bench_decode.h — attn bench --suite mla: decoding steps on a GPU over caches that fill it. */
#ifndef CLI_BENCH_DECODE_H
#define CLI_BENCH_DECODE_H
#include "bench.h"

typedef struct decode_row decode_row;

/* A made-up decoding step on the GPU: `batch` sequences, random numbers, shuffled pages. */
typedef struct decode_step {
    const decode_row *row;
    attn_problem  problem;
    attn_tensors  tensors;          /* on the GPU */
    attn_plan    *plan;
    void         *workspace, *schedule, *buffers[16];
    int           count;            /* of buffers */
    int           device;
    int64_t      *lengths;          /* keys of each sequence */
    int32_t      *table;            /* block table, or NULL */
    uint16_t     *pattern;          /* what the cache repeats, PATTERN elements long */
    uint16_t     *q;                /* host copy */
    double        mean_keys;
    char          why[512];
} decode_step;

/* bench_decode_step.c */
int  decode_step_create(decode_step *step, const decode_row *row, const bench_request *common);
void decode_step_destroy(decode_step *step);
/* Some rows of O against float64: largest error / allowed; NaN or above 1: wrong. */
double decode_step_error(decode_step *step);

enum { DECODE_TFLOPS, DECODE_GBS, DECODE_MICROSECONDS };

/* One line of the table. */
struct decode_row {
    const char *name;
    int64_t batch, q_heads, kv_heads, q_len, keys, qk_dim, v_dim;
    int     v_in_k, ragged, page_size;
    const char *peer;               /* whose figure it is, and how it was measured; NULL: none */
    double  peer_figure;
    int     unit;                   /* of peer_figure, DECODE_... */
};

/* bench_decode.c: every row of suite mla. @return CLI_OK, or what went wrong. */
int bench_mla(const cli_arguments *a, const bench_request *common);
#endif
