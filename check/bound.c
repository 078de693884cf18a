/* bound.c — how far a correct f32 kernel may be from the float64 answer, per element. Derivation, calibration
 * and what each term is for: docs/numerics.md. */
#include "data.h"

double check_unit(attn_dtype dtype) {
    return dtype == ATTN_F16 ? 0x1p-11 : dtype == ATTN_BF16 ? 0x1p-8 : 0x1p-24;
}

void check_bounds(const attn_problem *p, const check_row *row, double *o_bound, double *lse_bound) {
    /* Roundings of a sum of n numbers mostly cancel (sqrt); where all numbers are alike (a first token that
     * looks at everything alike, in a real model) they all go one way while the sum stays in a binade: n / 4,
     * not more. */
    const double n = (double)row->keys, u = 0x1p-24, sums = n / 4 + 2 * sqrt(n) + 16;
    const double beyond = row->reach_max > 1e37 ? (double)INFINITY : 0;
    for (int64_t d = 0; d < p->v_dim; d++) {
        if (!row->keys) {
            o_bound[d] = 0;
            continue;
        }
        const double scores = u * 2 * row->drift[d], accumulation = u * sums * row->weight[d];
        /* the last term: P is stored */
        const double computed = scores + accumulation + check_unit(p->dtype) * row->weight[d];
        const double stored = check_unit(p->o_dtype) * (fabs(row->o[d]) + computed);
        double tiny = 0x1p-125 * (row->tail[d] + 1);          /* p, v or o that f32 or bf16 flushes to 0 */
        if (p->dtype == ATTN_F16) tiny += 0x1p-25 * row->tail[d];
        if (p->o_dtype == ATTN_F16) tiny += 0x1p-25;
        o_bound[d] = computed + stored + tiny + beyond;
        if (row->weight[d] > 1e37) o_bound[d] = (double)INFINITY;
    }
    *lse_bound = row->keys ? u * (2 * row->reach + sums) + 2 * u * fabs(row->lse) + beyond : 0;
}
