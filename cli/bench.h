/* bench.h — inside attn bench: things that are timed in alternating rounds, and the rows that come of it.
 * A timer is one function: run so many iterations, say how long they took. A device adds its own (events). */
#ifndef CLI_BENCH_H
#define CLI_BENCH_H
#include "ceilings.h"
#include "contenders.h"
#include "terminal.h"

/* ---- measuring: bench_measure.c ---- */

enum { BENCH_SAMPLES = 64 };            /* kept per item at most */

typedef struct bench_sample {
    double seconds;                     /* of all iterations */
    double cpu;                         /* CPU seconds used meanwhile, or 0 = unknown: less than threads *
                                           seconds: something else had the processor */
} bench_sample;

typedef struct bench_item bench_item;
struct bench_item {
    /* Run `iterations` times. @return nonzero: it can't go on (`reason` is set). */
    int   (*sample)(bench_item *item, int64_t iterations, bench_sample *out);
    void   *state;
    int     threads;                    /* that it keeps busy */
    char    reason[256];
    /* results */
    int64_t iterations;                 /* per sample */
    int     count;                      /* rounds it took part in */
    double  seconds[BENCH_SAMPLES];     /* per iteration; by round; 0 = missed */
    double  lost[BENCH_SAMPLES];        /* share of the processor that went elsewhere */
};

typedef struct bench_settings {
    int    samples;                     /* wanted, undisturbed */
    double sample_seconds;              /* at least, each */
    double budget;                      /* seconds for one item; slow ones get fewer samples */
} bench_settings;

/* Warm up, find the iterations, then sample all items in turn until each has its samples. `label` is for
 * progress. */
void bench_measure(bench_item *const *items, int count, const bench_settings *settings, const char *label);

typedef struct bench_spread { double median, low, high, least, most; int count, disturbed; } bench_spread;
/* Of the undisturbed samples, or of all if those are fewer than 3. low and high: quartiles. Zeros if none. */
bench_spread bench_spread_of(const bench_item *item);
/* Median over the rounds of b's time over a's time: how many times faster a is, whatever the machine did
 * meanwhile. */
double bench_ratio(const bench_item *a, const bench_item *b);
/* Share of its processors that an item lost to others, median of all samples. */
double bench_lost(const bench_item *item);
double bench_now(void);

/* ---- one problem: bench_problem.c ---- */

/* What others reach on a problem, what was wanted and what came out: rows of suites with such figures. */
typedef enum bench_unit { BENCH_US, BENCH_GBS, BENCH_TFLOPS, BENCH_OF_PEER, BENCH_OF_BEFORE } bench_unit;

typedef struct bench_target {
    const char *name;                   /* NULL: a row without a target */
    const char *peer;                   /* or NULL */
    double      peer_figure;
    bench_unit  peer_unit;
    double      ratio;                  /* times as fast as the peer; 0 = unknown */
    bench_unit  unit;                   /* of these: OF_PEER and OF_BEFORE are times as fast as the peer, the
                                           row before */
    double      must, goal, measured;
    const char *result;                 /* "goal", "must", "MISSED", "-" */
    double      own_schedule;           /* seconds of a run that makes its own schedule; 0 = there is none to
                                           make */
} bench_target;

typedef struct bench_row {
    attn_problem      problem;
    char              kernel[128];      /* a copy: plug-ins go before their rows */
    contender_kind    kind;
    int               threads;
    contender_outcome outcome;
    int               chosen;           /* the planner's choice */
    int               faster;           /* a later kernel that beats the chosen one by more than 2 % */
    bench_spread      time;             /* seconds; median 0 = not timed */
    double            flops, bytes;     /* per run: visible pairs; Q, K, V, O once */
    ceiling           ceiling;
    double            ceiling_flops;    /* per second, measured between the same samples */
    double            of_ceiling;       /* share, median of rounds; 0 = unknown */
    double            noise;            /* share of the processors that the ceiling's loop lost to other
                                           programs */
    double            read_bytes;       /* per second: the stream read of the same K and V */
    double            of_read;
    double            versus[2];        /* times faster than openblas_blocked, openblas_naive; 0 = unknown */
    double            times_one_thread; /* times faster than the same contender on one thread; 0 = unknown */
    double            ceiling_scaling;  /* the same of the ceiling: what the machine gives */
    char              reason[256];      /* why it wasn't timed, where the check is not to blame */
    bench_target      target;
} bench_row;

typedef struct bench_table { bench_row *rows; int count; } bench_table;

/* A new row, zeros but one thread; NULL: no memory. Moves the others. */
bench_row *bench_table_add(bench_table *table);
void       bench_table_free(bench_table *table);

/* Check and time every contender on one problem with each thread count; rows are appended. @return CLI_OK or
 * CLI_FAILED (a contender was wrong or failed) or CLI_USAGE (no such problem). */
typedef struct bench_request {
    attn_problem          problem;
    contender_list       *contenders;
    const int            *threads;      /* [thread_counts] */
    int                   thread_counts;
    attn_options          options;      /* splits, device */
    check_fill            fill;
    uint64_t              seed;
    check_data           *data;         /* the tensors, or NULL: made here */
    int                   explicit_list;/* 1: --kernel was given: slow kernels are timed too */
    bench_settings        settings;
} bench_request;

int bench_problem(const bench_request *request, bench_table *table);

/* ---- results: bench_report.c ---- */

/* Where tables go: stdout, or stderr where --json, --csv or --md has taken it ("-"). */
void bench_show(const char *format, ...) CLI_FORMAT(1);
const char *bench_style(cli_style style);
void bench_report_setup(const cli_arguments *a);
/* The rows from `first` on, none with a target; a header above the first such row of the table. */
void bench_print(const bench_table *table, int first);
/* Files named by --json, --csv, --md. @return exit code. */
int  bench_save(const bench_table *table, const cli_arguments *a);

/* ---- suites: bench_suites.c, bench_targets.c ---- */

extern const char bench_suite_names[];  /* for the option's choices */
int bench_suite(int suite, const cli_arguments *a, const bench_request *common, bench_table *table);
/* Real input with every kernel and the course's, ranked. file NULL: the one that comes with the program. */
int bench_demo(const char *file, bench_table *table);
/* Every row of the speed table with its goal and what was measured; only the types of --dtype where given. */
int bench_targets(const cli_arguments *a, const bench_request *common, bench_table *table);
#endif
