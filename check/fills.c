/* fills.c — what the numbers look like: one function per data family fills a row of Q, K or V from its place
 * alone. Why each family exists: fills.def. Directed families put q and k on a common sign pattern g, so that
 * scale q.k = the score they aim at. */
#include "data.h"

const char *const check_fill_names[] = {
#define CHECK_FILL(name, description) #name,
#include "fills.def"
#undef CHECK_FILL
    NULL
};

/* One row to fill. */
typedef struct place {
    const check_data *data;
    area_name tensor;
    int64_t   kv_head, position, count;
    int64_t   keys, queries;        /* of the sequence */
    uint64_t  key;                  /* hash of seed, tensor, sequence, head, position */
    uint64_t  head_key;             /* hash of seed, sequence, K/V head: the same for q, k and v */
    double    step;                 /* scale * qk_dim: what a unit of q times a unit of k is worth along g */
} place;

static double normal_at(const place *x, int64_t d) { return check_normal(check_mix(x->key + (uint64_t)d)); }

static double direction(const place *x, int64_t d) {
    return check_mix(x->data->what.seed * 31 + (uint64_t)x->kv_head * 4099 + (uint64_t)d) & 1 ? 1.0 : -1.0;
}

static void normal_row(const place *x, double size, double *row) {
    for (int64_t d = 0; d < x->count; d++) row[d] = size * normal_at(x, d);
}

/* q and k so that scale q.k is about `score` (its share of the larger `top` goes to k), plus noise; v
 * normal. */
static void directed_row(const place *x, double score, double top, double noise, double *row) {
    const double q = sqrt(top / fabs(x->step)), k = score / (x->step * q);
    for (int64_t d = 0; d < x->count; d++) {
        const double n = normal_at(x, d);
        row[d] = x->tensor == AREA_V ? n : direction(x, d) * (x->tensor == AREA_Q ? q : k) + noise * n;
    }
}

static void gaussian(const place *x, double *row) {
    static const double sizes[] = { 0.5, 1, 1, 2, 4 };
    const double size = sizes[x->data->what.seed % 5];
    normal_row(x, x->tensor == AREA_Q ? size : 1, row);
}

/* Is the key at an edge that a kernel may miss: first, last, beside a tile boundary, or drawn? */
static int edge_key(const place *x) {
    const int64_t j = x->position, m = (j + 1) % 16;
    return j == 0 || j + 1 >= x->keys || m <= 1 || check_mix(x->key) % 8 == 0;
}

/* Weights are about even, 1 / keys each; an edge key adds keys / 4 in the column it owns, with a sign of its
 * own. */
static void needle(const place *x, double *row) {
    const attn_problem *p = &x->data->problem;
    const double keys = x->keys > 4 ? (double)x->keys : 4.0;
    const double flat = 0.1 / sqrt(fabs(x->step)) / (p->v_in_k ? keys : 1);
    normal_row(x, x->tensor == AREA_Q ? flat : x->tensor == AREA_K ? 1 : 0.01, row);
    const int owns = x->tensor == AREA_V || (x->tensor == AREA_K && p->v_in_k);
    if (owns && edge_key(x))
        row[x->position % p->v_dim] = keys / 4 * (check_mix(x->key ^ 7) & 1 ? 1 : -1);
}

static double rise(const place *x) {
    const double all = 0.03 * (double)x->keys;
    return all < 4 ? 4 : all > 40 ? 40 : all;
}

static void ascending(const place *x, double *row) {
    const double along = ((double)x->position + 0.5) / (double)(x->keys > 0 ? x->keys : 1);
    directed_row(x, rise(x) * along, rise(x), 0.05, row);
}

static void descending(const place *x, double *row) {
    const double along = ((double)x->position + 0.5) / (double)(x->keys > 0 ? x->keys : 1);
    directed_row(x, rise(x) * (1 - along), rise(x), 0.05, row);
}

static void alternating(const place *x, double *row) {
    const double score = (x->position / 16 % 2 ? 3 : -3) + (x->position / 64 % 2 ? -5 : 5);
    directed_row(x, score, 8, 0.05, row);
}

/* Every other query is 0: even weights. */
static void integers(const place *x, double *row) {
    const int64_t top = x->tensor == AREA_V ? 8 : 1;
    for (int64_t d = 0; d < x->count; d++)
        row[d] = x->tensor == AREA_Q && x->position % 2 ? 0
               : (double)(check_pick(check_mix(x->key + (uint64_t)d), 2 * top + 1) - top);
}

/* Eight keys in a row are near copies; some queries are long; V spans eight decades. */
static void heavy(const place *x, double *row) {
    const uint64_t shared = check_mix(x->head_key + (uint64_t)(x->position / 8));
    const double size = (double)(1 + check_pick(check_mix(x->key ^ 3), 8));
    for (int64_t d = 0; d < x->count; d++) {
        const double n = normal_at(x, d);
        if (x->tensor == AREA_V)
            row[d] = n * exp(2.5 * check_normal(check_mix(x->key ^ (uint64_t)(d + 1) << 20)));
        else if (x->tensor == AREA_K) row[d] = check_normal(check_mix(shared + (uint64_t)d)) + n / 64;
        else row[d] = size * n;
    }
}

static double largest(attn_dtype dtype) { return dtype == ATTN_F16 ? 6e4 : 1e30; }

/* Each query aims at one far score for all keys; columns of V: huge with one sign, subnormal, -0,
 * ordinary. */
static void extreme(const place *x, double *row) {
    static const double targets[] = { -120, -1e4, 120, 1e4, 0, -90, 90, -104 };
    const attn_dtype dtype = x->data->problem.dtype;
    if (x->tensor == AREA_V) {
        for (int64_t d = 0; d < x->count; d++) {
            const double n = normal_at(x, d);
            switch (d % 5) {
            case 0: row[d] = largest(dtype) * (1 - 0.05 * fabs(n) / 4); break;
            case 1: row[d] = n * (dtype == ATTN_F16 ? 0x1p-20 : 0x1p-130); break;
            case 2: row[d] = x->position % 3 ? -0.0 : n; break;
            default: row[d] = n;
            }
        }
        return;
    }
    const double target = targets[check_mix(x->key ^ 5) % 8];
    for (int64_t d = 0; d < x->count; d++)
        row[d] = x->tensor == AREA_Q ? direction(x, d) * target / x->step
                                     : direction(x, d) * (1 + normal_at(x, d) / 256);
}

/* In most heads one key of K, one of V (rarely the same) and one query hold a NaN or an infinity in one
 * place. */
static void nonfinite(const place *x, double *row) {
    gaussian(x, row);
    static const double odd[] = { (double)NAN, (double)INFINITY, (double)-INFINITY };
    const uint64_t h = check_mix(x->head_key ^ (uint64_t)x->tensor << 40);
    const int64_t places = x->tensor == AREA_Q ? x->queries : x->keys;
    if (h % 4 == 0 || x->position != check_pick(h >> 8, places)) return;
    row[check_pick(check_mix(h), x->count)] = odd[x->tensor == AREA_Q ? 0 : (h >> 4) % 3];
}

void check_fill_row(const check_data *data, area_name tensor, int64_t b, int64_t head, int64_t position,
                    int64_t count, double *row) {
    static void (*const families[])(const place *, double *) = {
#define CHECK_FILL(name, description) name,
#include "fills.def"
#undef CHECK_FILL
    };
    const attn_problem *p = &data->problem;
    const uint64_t seed = check_mix(data->what.seed ^ 0xa7715u);
    place x = { .data = data, .tensor = tensor, .position = position, .count = count };
    x.kv_head = tensor == AREA_Q ? check_kv_head(p, head) : head;
    x.keys = check_keys(p, &data->host, b);
    x.queries = check_queries(p, &data->host, b);
    x.head_key = check_mix(seed + (uint64_t)(b * p->kv_heads + x.kv_head));
    x.key =
        check_mix(check_mix(seed + (uint64_t)tensor * 77 + (uint64_t)(b * p->q_heads + head) * 1315423911u) +
                  (uint64_t)position) &
        ~(uint64_t)0xffff;
    x.step = (double)p->scale * (double)p->qk_dim;
    families[data->what.fill](&x, row);
}
