/* numbers.c — fills the tensors of a case: only what some query uses gets a number; the rest stays NaN.
 * Order: masks, bias (where the mask lets), then Q, then the K and V rows that a query sees. Counts the
 * visible pairs on the way. */
#include "data.h"
#include <stdlib.h>

typedef struct range { int64_t low, high; } range;

/* Keys that causal and window let query i see, in closed form; the oracle asks check_near for every key
 * instead. */
static range near_keys(const attn_problem *p, const attn_tensors *t, int64_t b, int64_t i) {
    const int64_t here = check_here(p, t, b, i);
    range r = { 0, check_keys(p, t, b) - 1 };
    if (p->causal && r.high > here) r.high = here;
    if (p->window && p->window_right >= 0 && r.high > here + p->window_right) r.high = here + p->window_right;
    if (p->window && p->window_left >= 0 && r.low < here - p->window_left) r.low = here - p->window_left;
    return r;
}

/* ---- boolean mask and bias: a function of the element's place, so that broadcasting agrees ---- */

static uint64_t place_hash(const check_data *data, area_name name, int64_t place) {
    return check_mix(check_mix(data->what.seed + (uint64_t)name) + (uint64_t)place);
}

/* Kind of a mask row: 0 nothing visible, 1 its beginning hidden, 2 few visible, else most visible. */
static int mask_value(const check_data *data, area_name name, int64_t row_place, int64_t place, int64_t j,
                      int64_t keys) {
    const uint64_t kind = place_hash(data, name, row_place) >> 7;
    const double drawn = check_uniform(place_hash(data, name, place ^ (int64_t)1 << 40));
    if (kind % 12 == 0) return 0;
    if (kind % 12 <= 2) return j >= (kind / 12 % 2 ? 70 : keys / 2) ? drawn < 0.9 : 0;
    if (kind % 12 == 3) return drawn < 0.05;
    return drawn < 0.75;
}

static double bias_value(const check_data *data, int64_t place) {
    const uint64_t hash = place_hash(data, AREA_BIAS, place);
    if (data->what.fill == CHECK_FILL_extreme && hash % 4 == 0) return hash % 8 ? -1e4 : -6e4;
    return (data->what.fill == CHECK_FILL_needle ? 0.1 : 2.0) * check_normal(check_mix(hash));
}

static void fill_mask_row(check_data *data, int64_t b, int64_t h, int64_t i) {
    const attn_problem *p = &data->problem;
    const range r = near_keys(p, &data->host, b, i);
    const int64_t row = check_score_place(p->mask_stride, b, h, i, 0), keys = check_keys(p, &data->host, b);
    for (int64_t j = r.low; j <= r.high; j++) {
        const int64_t place = check_score_place(p->mask_stride, b, h, i, j);
        const uint64_t seen = place_hash(data, AREA_MASK, place) | 1;
        check_image(data, AREA_MASK)[place] =
            (unsigned char)(mask_value(data, AREA_MASK, row, place, j, keys) ? (seen & 0xff) : 0);
    }
}

static void fill_bias_row(check_data *data, int64_t b, int64_t h, int64_t i) {
    const attn_problem *p = &data->problem;
    const range r = near_keys(p, &data->host, b, i);
    const int64_t row = check_score_place(p->bias_stride, b, h, i, 0), keys = check_keys(p, &data->host, b);
    for (int64_t j = r.low; j <= r.high; j++) {
        if (p->has_mask && !data->host.mask[check_score_place(p->mask_stride, b, h, i, j)]) continue;
        const int64_t place = check_score_place(p->bias_stride, b, h, i, j);
        const int hidden =
            place_hash(data, AREA_BIAS, row) % 3 == 0 && !mask_value(data, AREA_BIAS, row, place, j, keys);
        check_narrow(check_image(data, AREA_BIAS), p->bias_dtype, place,
                     hidden ? (double)-INFINITY : bias_value(data, place));
    }
}

static void each_row(check_data *data, void (*fill)(check_data *, int64_t, int64_t, int64_t)) {
    const attn_problem *p = &data->problem;
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t h = 0; h < p->q_heads; h++)
            for (int64_t i = 0; i < check_queries(p, &data->host, b); i++) fill(data, b, h, i);
}

/* ---- which keys are used ---- */

/* used[(kv_head * keys) + j] = 1 where a query sees key j of sequence b. Returns the visible pairs, all
 * heads. */
static double mark_used(const check_data *data, int64_t b, unsigned char *used, int64_t *change) {
    const attn_problem *p = &data->problem;
    const int64_t keys = check_keys(p, &data->host, b), queries = check_queries(p, &data->host, b);
    double pairs = 0;
    memset(used, 0, (size_t)(p->kv_heads * keys));
    memset(change, 0, (size_t)(keys + 1) * sizeof *change);
    for (int64_t i = 0; i < queries; i++) {
        const range r = near_keys(p, &data->host, b, i);
        if (r.high < r.low) continue;
        change[r.low]++;
        change[r.high + 1]--;
        if (!p->has_mask && !p->bias_dtype) {
            pairs += (double)(r.high - r.low + 1) * (double)p->q_heads;
            continue;
        }
        for (int64_t h = 0; h < p->q_heads; h++)
            for (int64_t j = r.low; j <= r.high; j++)
                if (check_let(p, &data->host, b, h, i, j)) {
                    used[check_kv_head(p, h) * keys + j] = 1;
                    pairs += 1;
                }
    }
    if (p->has_mask || p->bias_dtype) return pairs;
    int64_t seen = 0;
    for (int64_t j = 0; j < keys; j++) {
        seen += change[j];
        for (int64_t h = 0; h < p->kv_heads; h++) used[h * keys + j] = seen > 0;
    }
    return pairs;
}

static void store_row(check_data *data, area_name tensor, int64_t b, int64_t head, int64_t position,
                      int64_t place, int64_t count, double *row) {
    check_fill_row(data, tensor, b, head, position, count, row);
    for (int64_t d = 0; d < count; d++)
        check_narrow(check_image(data, tensor), data->problem.dtype, place + d, row[d]);
}

static void fill_kv(check_data *data, int64_t b, const unsigned char *used, double *row) {
    const attn_problem *p = &data->problem;
    const int64_t keys = check_keys(p, &data->host, b);
    for (int64_t h = 0; h < p->kv_heads; h++)
        for (int64_t j = 0; j < keys; j++) {
            if (!used[h * keys + j]) continue;
            store_row(data, AREA_K, b, h, j, check_kv_place(p, &data->host, p->k_stride, b, j, h), p->qk_dim,
                      row);
            if (!p->v_in_k)
                store_row(data, AREA_V, b, h, j, check_kv_place(p, &data->host, p->v_stride, b, j, h),
                          p->v_dim, row);
        }
}

static void fill_small(check_data *data) {
    const attn_problem *p = &data->problem;
    const int64_t slopes = p->alibi == ATTN_ALIBI_PER_BATCH_HEAD ? p->batch * p->q_heads : p->q_heads;
    for (int64_t n = 0; p->alibi && n < slopes; n++)
        check_narrow(check_image(data, AREA_ALIBI), ATTN_F32, n, exp2(-8.0 * (double)(n % 8 + 1) / 8));
    for (int64_t h = 0; p->has_sinks && h < p->q_heads; h++) {
        const uint64_t hash = place_hash(data, AREA_SINKS, h);
        double sink = 2 * check_normal(hash);
        if (hash % 7 == 0) sink = (double)-INFINITY;
        if (hash % 7 == 1) sink = data->what.fill == CHECK_FILL_extreme ? 1e4 : 12;
        check_narrow(check_image(data, AREA_SINKS), ATTN_F32, h, sink);
    }
}

/* Visible pairs of the case, without writing anything. */
double check_pairs(const check_data *data) {
    const attn_problem *p = &data->problem;
    unsigned char *used = malloc((size_t)(p->kv_heads * p->kv_len + 1));
    int64_t *change = malloc((size_t)(p->kv_len + 1) * sizeof *change);
    double pairs = 0;
    for (int64_t b = 0; used && change && b < p->batch; b++) pairs += mark_used(data, b, used, change);
    free(used);
    free(change);
    return pairs;
}

attn_status check_fill_numbers(check_data *data) {
    const attn_problem *p = &data->problem;
    unsigned char *used = malloc((size_t)(p->kv_heads * p->kv_len + 1));
    int64_t *change = malloc((size_t)(p->kv_len + 1) * sizeof *change);
    double *row = malloc((size_t)(p->qk_dim > p->v_dim ? p->qk_dim : p->v_dim) * sizeof *row);
    const int ok = used && change && row;
    if (ok) {
        fill_small(data);
        if (p->has_mask) each_row(data, fill_mask_row);
        if (p->bias_dtype) each_row(data, fill_bias_row);
        for (int64_t b = 0; b < p->batch; b++) {
            for (int64_t i = 0; i < check_queries(p, &data->host, b); i++)
                for (int64_t h = 0; h < p->q_heads; h++)
                    store_row(data, AREA_Q, b, h, i,
                              check_q_place(p, p->q_stride, check_row_index(p, &data->host, b, i), h),
                              p->qk_dim, row);
            mark_used(data, b, used, change);
            fill_kv(data, b, used, row);
        }
    }
    free(used);
    free(change);
    free(row);
    return ok ? ATTN_OK : ATTN_NO_MEMORY;
}
