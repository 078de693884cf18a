/* data.h — what a case is made of inside the checker: one area of memory per tensor, each with an image of
 * its bytes as they must stay, and the sampled rows of the answer. */
#ifndef CHECK_DATA_H
#define CHECK_DATA_H
#include "check.h"
#include "geometry.h"

typedef enum area_name {
    AREA_Q, AREA_K, AREA_V, AREA_O, AREA_LSE, AREA_BIAS, AREA_MASK, AREA_ALIBI, AREA_SINKS, AREA_CU_Q,
    AREA_CU_KV, AREA_USED_Q, AREA_USED_KV, AREA_LEFTPAD, AREA_INDEX, AREA_TABLE, AREA_WORKSPACE, AREAS
} area_name;

/* base [margin][tensor: bytes at offset][margin], total in all. image: host copy of all of it; of outputs:
 * the poison. */
typedef struct area {
    size_t         bytes, offset, total;
    unsigned char *base, *image;
} area;

extern const char *const check_area_names[AREAS];

typedef struct answer {
    int64_t  rows, checked;         /* rows of O; those below */
    int64_t *row_b, *row_h, *row_i; /* [checked] */
    double  *o, *bound;             /* [checked, v_dim]; bound infinity: anything goes there */
    double  *lse, *lse_bound;       /* [checked] */
    int64_t *keys;                  /* [checked] */
} answer;

struct check_data {
    check_case   what;
    attn_problem problem;           /* resolved */
    check_memory memory;
    int          align_end;
    area         areas[AREAS];
    attn_tensors tensors, host;     /* for the candidate; the images, for the oracle */
    answer       answer;
    int          answered, poisoned;
};

/* memory.c: guarded host pages. */
extern const check_memory check_host_memory;
/* areas.c: sizes and life of the areas. */
attn_status check_areas_create(check_data *data, const attn_tensors *host);
attn_status check_area_create(check_data *data, area_name name, size_t bytes, size_t alignment);
void        check_area_destroy(check_data *data, area_name name);
void        check_areas_point(check_data *data);
int         check_area_upload(check_data *data, area_name name);
/* Bytes that the problem's tensor spans. */
size_t      check_area_bytes(const check_data *data, area_name name);

static inline unsigned char *check_image(const check_data *data, area_name name) {
    return data->areas[name].image + data->areas[name].offset;
}

/* lengths.c, numbers.c, fills.c: lengths and tables first (the others depend on them), then the numbers. */
void check_fill_lengths(check_data *data);
attn_status check_fill_numbers(check_data *data);
/* numbers.c: visible (query, key) pairs over all heads. */
double check_pairs(const check_data *data);
/* Values of one row: tensor AREA_Q, AREA_K or AREA_V; head: of that tensor; position: query or key. */
void check_fill_row(const check_data *data, area_name tensor, int64_t b, int64_t head, int64_t position,
                    int64_t count, double *row);

/* bound.c. The two gates of a whole tensor; calibration: docs/numerics.md. */
#define CHECK_MOST_RMS 0.5
#define CHECK_MOST_BIAS 0.3
/* Relative roundoff of one number of the dtype. */
double check_unit(attn_dtype dtype);
void check_bounds(const attn_problem *p, const check_row *row, double *o_bound, double *lse_bound);
#endif
