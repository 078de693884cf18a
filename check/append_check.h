/* append_check.h — checking ATTN_KV_APPEND: a case is a number; its cache lies in guarded memory full of
 * random bits, and after a run every byte that isn't a new row's must be what it was. Positions and rotary in
 * float64, from attn.h's words. */
#ifndef CHECK_APPEND_CHECK_H
#define CHECK_APPEND_CHECK_H
#include "check.h"
#include <stddef.h>

/* Page sizes, rotary kinds and dtypes walk through all values; everything else is drawn. */
typedef struct append_case {
    uint64_t     number;
    attn_problem problem;
    int          in_place;          /* q_out = q */
    int          no_length;         /* seqused_kv_out = NULL */
    int          shift;             /* elements by which every tensor misses 16-byte alignment */
} append_case;

append_case check_append_case(uint64_t number, attn_device device);
/* Enough cases that every value of every field has been met. */
enum { CHECK_APPEND_CASES = 192 };
/* One line, e.g. "bf16 4x2 heads d64 page 16, rotary half 32, 3 new". @return as snprintf. */
int check_append_text(const append_case *c, char *text, size_t size);

typedef enum append_area {
    APPEND_K, APPEND_V, APPEND_Q_OUT, APPEND_LENGTHS,                       /* written */
    APPEND_Q, APPEND_K_NEW, APPEND_V_NEW, APPEND_COS, APPEND_SIN, APPEND_OFFSETS, APPEND_CU_NEW, APPEND_CU_Q,
    APPEND_USED_Q, APPEND_USED_KV, APPEND_LEFTPAD, APPEND_INDEX, APPEND_TABLE, APPEND_AREAS
} append_area;

/* memory [margin][bytes][margin]; before: what it holds when a run starts; after: what it must hold then.
 * Where bound is positive the element may differ from value by that much; bound NaN: any NaN. */
typedef struct append_memory {
    size_t         bytes, offset, total;
    unsigned char *base, *before, *after;
    double        *value, *bound;   /* of the elements, 0 = the bits of `after`; NULL where nothing is
                                       rounded */
} append_memory;

typedef struct check_append {
    append_case   what;
    attn_problem  problem;          /* resolved */
    check_memory  memory;
    append_memory areas[APPEND_AREAS];
    attn_tensors  tensors, host;    /* for the candidate; the `before` images */
    int64_t      *rows, *q_rows;    /* new rows and queries in use, per sequence */
} check_append;

/* NULL memory: the host, every tensor's end at a guard page. */
attn_status check_append_create(check_append **out, const append_case *c, const check_memory *memory);
void        check_append_destroy(check_append *a);
/* Fill the memory, run the candidate twice on different old contents, compare. `why`: what is wrong, "" if
 * nothing.
 * *refusal: NULL, or the sentence. @return ATTN_OK if it ran and is right, ATTN_UNSUPPORTED if refused. */
attn_status check_append_run(check_append *a, check_candidate *candidate, const attn_options *options,
                             char *why, size_t size, const char **refusal);
/* Bytes that the append must read and write at least. */
double      check_append_traffic(const check_append *a);

/* append_answer.c */
attn_status check_append_answer(check_append *a);
/* Download and compare; 1 = right. */
int         check_append_judge(check_append *a, char *why, size_t size);
#endif
