/* bench_decode.h — suites decode and mla on a GPU: decoding steps over caches that fill it. One row of a
 * table is made, checked, timed and printed by the same four modules, whichever suite it belongs to. */
#ifndef CLI_BENCH_DECODE_H
#define CLI_BENCH_DECODE_H
#include "bench.h"

typedef enum decode_lengths {
    DECODE_PLANNED,                 /* kv_len keys each; the device knows no other lengths */
    DECODE_FULL,                    /* lengths on the device, all of them kv_len */
    DECODE_RAGGED                   /* lengths on the device, spread around kv_len */
} decode_lengths;

typedef enum decode_timing {
    DECODE_WARM,                    /* a graph of runs round several caches, back to back */
    DECODE_COLD                     /* single runs between events, each behind a flush of L2 */
} decode_timing;

/* One line of the table. */
typedef struct decode_row {
    const char    *name;
    int64_t        batch, q_heads, kv_heads, q_len, kv_len, qk_dim, v_dim;
    int            is_mla;          /* V in K, LSE written, Q and O among the bytes: as FlashMLA's benchmark
                                       has it */
    int            page_size;       /* 0: contiguous; else pages in shuffled order */
    decode_lengths lengths;
    decode_timing  timing;
    const char    *peer;            /* whose figure; NULL: none is known */
    double         peer_figure;
    bench_unit     peer_unit;
    bench_unit     unit;            /* of must and goal */
    double         must, goal;
} decode_row;

/* ---- a row's tensors: bench_decode_step.c ---- */

typedef struct decode_step {
    const decode_row   *row;
    const check_memory *memory;
    attn_problem  problem;          /* as asked for */
    attn_tensors  tensors;          /* on the device, those of the first cache; no schedule */
    attn_plan    *plan;
    void         *workspace, *schedule, *buffers[16];
    int           buffer_count;
    int           sets;             /* caches behind one another: runs go round them */
    int64_t       k_elements, v_elements;   /* of one cache; v_elements 0: V is in K */
    int64_t      *lengths;          /* keys of each sequence */
    int32_t      *table;            /* block table, or NULL */
    uint16_t     *numbers;          /* what the caches repeat */
    uint16_t     *q;                /* host copy */
    double        mean_keys;
    outcome_kind  kind;             /* OUTCOME_OK, or why it can't go on: */
    char          why[512];
} decode_step;

/* Nonzero: `kind` and `why` say it. destroy also after a failure. */
int  decode_step_create(decode_step *s, const decode_row *row, const attn_options *options,
                        const check_memory *memory);
void decode_step_destroy(decode_step *s);
/* Queue a run over cache `set`: with the step's schedule, as all layers but the first have it, or with its
 * own. */
attn_status decode_step_run(const decode_step *s, int set, int own_schedule, void *stream);
/* Set kind and why. @return 1 */
int  decode_step_fail(decode_step *s, outcome_kind kind, const char *what, const char *detail);
/* Numbers of K (or V) of key j, K/V head g of sequence b in cache `set`: as many as its row has. */
const uint16_t *decode_step_k(const decode_step *s, int set, int64_t b, int64_t j, int64_t g);
const uint16_t *decode_step_v(const decode_step *s, int set, int64_t b, int64_t j, int64_t g);
double decode_step_flops(const decode_step *s);     /* causal not discounted */
double decode_step_bytes(const decode_step *s);     /* K and V once; is_mla: Q and O too */

/* ---- is it right, how fast is it: bench_decode_check.c, bench_decode_time.c ---- */

/* Poison O and LSE, run over the last cache, compare a sample of rows with float64. Nonzero: kind and why. */
int decode_step_check(decode_step *s, check_verdict *verdict);

typedef struct decode_times {
    bench_spread run;               /* seconds; disturbed: the host was late, so that its own time is in it */
    double       read;              /* bytes a second that the card reads, measured beside; 0 = unknown */
} decode_times;

/* Nonzero: kind and why. */
int decode_step_time(decode_step *s, int own_schedule, decode_times *times);

/* ---- the table: bench_decode_table.c ---- */

void bench_decode_header(void);
/* The targets of r->target against its times. before: seconds of the row before, or 0. */
void bench_decode_judge(const decode_row *row, double before, bench_row *r);
void bench_decode_print(const bench_row *r);

/* ---- the suites: bench_decode.c ---- */

/* attn bench --suite decode (is_mla 0) or mla (1) on the GPU; rows are appended to `table`. @return exit
 * code. */
int bench_decode(int is_mla, const cli_arguments *a, const bench_request *common, bench_table *table);
#endif
