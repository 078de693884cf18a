/* check.h — checking and timing are one program: a case (problem + seed) becomes guarded tensors and a
 * float64 answer with a computed bound per element; a candidate (library kernel, plug-in, mutant) is run on
 * it and judged. */
#ifndef ATTN_CHECK_H
#define ATTN_CHECK_H
#include "attn/attn.h"

/* ---- cases ---- */

typedef enum check_fill {           /* what the numbers look like; fills.def says why each exists */
#define CHECK_FILL(name, description) CHECK_FILL_##name,
#include "fills.def"
#undef CHECK_FILL
    CHECK_FILLS
} check_fill;

typedef enum check_lengths {        /* how ragged lengths are drawn, where the problem has any */
    CHECK_LENGTHS_FULL,             /* every sequence at its maximum */
    CHECK_LENGTHS_RANDOM,           /* 0 .. maximum, some empty */
    CHECK_LENGTHS_EDGES             /* 0, 1, tile edges, maximum in turn */
} check_lengths;

typedef enum check_layout {         /* strides, where the problem gives none */
    CHECK_LAYOUT_BSHD,              /* dense [batch, seq, head, dim] */
    CHECK_LAYOUT_BHSD,              /* dense [batch, head, seq, dim] */
    CHECK_LAYOUT_GAPS               /* bshd with gaps after every dim, different for each tensor */
} check_layout;

typedef struct check_case {
    attn_problem  problem;          /* zero fields are defaults, as in the API; see check_case_complete */
    const char   *shape;            /* its name in shapes.def, or "custom" */
    check_fill    fill;
    check_lengths lengths;
    check_layout  layout;
    int           no_lse;           /* 1: tensors.lse = NULL */
    uint64_t      seed;
} check_case;

extern const char *const check_fill_names[];            /* [CHECK_FILLS], as on the command line */
extern const char *const check_lengths_names[3];
extern const char *const check_layout_names[3];
extern const check_case  check_shapes[];                /* from shapes.def; fill, lengths, seed are 0 */
extern const int         check_shape_count;
/* Give the sizes that packed, paged and indexed problems need (totals, pages, table columns, K/V rows) where
 * they are 0, and the layout's strides. check_data_create does this itself. */
void check_case_complete(check_case *c);
/* A random problem, small enough for a test (at most ~2^22 score-dim products); the same for the same
 * seed. */
check_case check_random_case(uint64_t seed);
/* "attn check --kernel K ..." that repeats the case, as snprintf. Its options are those of the command; a row
 * of shapes.def is named (--shape NAME); --layout bshd|bhsd|gaps and --no-lse say the fields above. */
int check_case_command(const check_case *c, const char *kernel, char *text, size_t size);

/* ---- tensors and answers ---- */

/* Memory a case lives in. Host: every tensor in pages of its own between PROT_NONE guards. A device supplies
 * its own (alloc returns device memory; guards there are NaN margins). */
typedef struct check_memory {
    const char *name;
    attn_device device;
    void *(*alloc)(void *context, size_t bytes);
    void  (*free)(void *context, void *memory);
    int   (*upload)(void *context, void *device, const void *host, size_t bytes);   /* 0 = ok */
    /* waits for pending work */
    int   (*download)(void *context, void *host, const void *device, size_t bytes);
    void *context;
} check_memory;

typedef struct check_data check_data;

/* Make the case's tensors: inputs filled, NaN in every element outside the valid range, table tails out of
 * range. memory NULL = host. `align_end`: 1 puts the end of every tensor at its guard page, 0 the
 * beginning. */
attn_status check_data_create(check_data **out, const check_case *c, const check_memory *memory,
                              int align_end);
/* The same from the caller's host arrays (real input): copies them. */
attn_status check_data_from(check_data **out, const attn_problem *problem, const attn_tensors *host,
                            const check_memory *memory);
void check_data_destroy(check_data *data);
const attn_problem *check_data_problem(const check_data *data);   /* resolved */
const attn_tensors *check_data_tensors(const check_data *data);   /* what a candidate gets */
void *check_data_workspace(check_data *data, size_t bytes);       /* exact size, guarded, poisoned */
/* Overwrite outputs and workspace: pattern 0 = quiet NaN, 1 = 0xFF, 2 = zeros, 3 = random bits. */
void check_data_poison(check_data *data, int pattern);
/* Compute the float64 answer and the bounds, once. Threads may be used: only tests and tools call this. */
attn_status check_data_answer(check_data *data);

typedef struct check_verdict {
    int    ok;
    double o_error, lse_error;      /* largest |x - oracle| */
    double o_ratio, lse_ratio;      /* largest error / bound; > 1 is wrong */
    double rms_error;               /* of O */
    double rms_ratio;               /* root mean square of error / bound of O; 0 for fewer than 256
                                       elements */
    double bias;                    /* mean error of a 16-bit O away from 0, in roundoffs; 0 where it says
                                       nothing */
    int64_t rows, rows_checked;     /* rows of O; large cases compare a sample of them, spread and at the
                                       edges */
    char   reason[512];             /* "" or the first wrong element: place, value, expected, allowed,
                                       suspicion */
} check_verdict;

/* Compare outputs with the answer: NaN-safe, non-finite exactly where the oracle is, gaps and guards
 * untouched. */
void check_data_judge(check_data *data, check_verdict *verdict);
/* 64-bit hash of the output bits (valid elements only): for bitwise comparisons. */
uint64_t check_data_hash(check_data *data);

/* Work in a case, for GFLOP/s and GB/s: visible (query, key) pairs exactly counted. */
typedef struct check_work { double flops, bytes; } check_work;
check_work check_data_work(const check_data *data);

/* ---- candidates ---- */

typedef struct check_candidate check_candidate;
struct check_candidate {
    const char *name;
    /* Get ready for a problem. refusal: NULL, or a static sentence (not a failure). */
    attn_status (*prepare)(check_candidate *c, const attn_problem *problem, const attn_options *options,
                           size_t *workspace, const char **refusal);
    attn_status (*run)(check_candidate *c, const attn_tensors *tensors, void *workspace, void *stream);
    void (*finish)(check_candidate *c);   /* undo prepare */
    void *state;
};

/* A registered kernel by name. */
check_candidate check_library_kernel(const char *name);

/* prepare, poison, run, judge, finish; with `repeats` > 1 also bitwise equality under each poison pattern. */
attn_status check_run(check_candidate *candidate, check_data *data, const attn_options *options, int repeats,
                      check_verdict *verdict, const char **refusal);

/* ---- oracle.c: float64, two passes, compensated sums; shares no code with the library ---- */

/* One row of the answer. The arrays belong to the caller, v_dim each. p: the softmax weights (sink
 * included). */
typedef struct check_row {
    double *o;
    double *weight;    /* sum of p |v| */
    double *drift;     /* sum of p |v - o| * reach: how far O moves per relative error of the scores */
    double *tail;      /* sum of |v| / denominator, where the largest term of the denominator is 1 */
    double  lse;
    double  reach;     /* sum of p * reach(j), reach(j) = size of all that was summed up to key j's
                          exponent */
    double  reach_max; /* the largest number a score meets on its way: beyond f32, nothing is promised */
    int64_t keys;      /* visible keys */
} check_row;

/* Deliberate mistakes, to name what a wrong kernel did; all zero: none. */
typedef struct check_bend { int64_t low, high, kv_head; } check_bend;

/* Query i of sequence b, head h. `host`: tensors that the CPU can read. Returns 0 if out of memory. */
int check_oracle_row(const attn_problem *resolved, const attn_tensors *host, int64_t b, int64_t h, int64_t i,
                     const check_bend *bend, check_row *row);
#endif
