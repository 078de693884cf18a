/* answer.c — runs the oracle over a case's rows, or over a sample of them where all would take too long, in
 * threads. */
#include "data.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

/* Multiply-adds that an answer may cost: about a second of one core. */
static const double budget = 1 << 29;

typedef struct job {
    check_data    *data;
    atomic_llong   next;
    atomic_int     failed;
} job;

static int sampled(const check_data *data, double share, int64_t b, int64_t h, int64_t i) {
    const int64_t rows = check_q_rows(&data->problem, &data->host, b);
    if (share >= 1) return 1;
    if ((i == 0 || i + 1 == rows) && (h == 0 || h + 1 == data->problem.q_heads) && b < 4) return 1;
    const uint64_t place = (uint64_t)((b * data->problem.q_heads + h) * data->problem.q_len + i);
    return check_uniform(check_mix(place ^ data->what.seed << 32)) < share;
}

static int64_t list_rows(check_data *data, double share, int fill) {
    const attn_problem *p = &data->problem;
    answer *a = &data->answer;
    int64_t n = 0;
    a->rows = 0;
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t i = 0; i < check_q_rows(p, &data->host, b); i++)
            for (int64_t h = 0; h < p->q_heads; h++) {
                a->rows++;
                if (!sampled(data, share, b, h, i)) continue;
                if (fill) {
                    a->row_b[n] = b;
                    a->row_h[n] = h;
                    a->row_i[n] = i;
                }
                n++;
            }
    return n;
}

static int answer_create(check_data *data) {
    const attn_problem *p = &data->problem;
    answer *a = &data->answer;
    const double cost = check_pairs(data) * (double)(p->qk_dim + 2 * p->v_dim);
    const double share = cost > budget ? budget / cost : 1;
    a->checked = list_rows(data, share, 0);
    const size_t n = (size_t)a->checked + 1, d = (size_t)p->v_dim;
    a->row_b = malloc(3 * n * sizeof *a->row_b);
    a->keys = malloc(n * sizeof *a->keys);
    a->o = malloc((2 * n * d + 2 * n) * sizeof *a->o);
    if (!a->row_b || !a->keys || !a->o) return 0;
    a->row_h = a->row_b + n;
    a->row_i = a->row_h + n;
    a->bound = a->o + n * d;
    a->lse = a->bound + n * d;
    a->lse_bound = a->lse + n;
    list_rows(data, share, 1);
    return 1;
}

static int answer_row(check_data *data, int64_t n, double *scratch) {
    const attn_problem *p = &data->problem;
    answer *a = &data->answer;
    check_row row = { .o = a->o + n * p->v_dim, .weight = scratch, .drift = scratch + p->v_dim,
                      .tail = scratch + 2 * p->v_dim };
    if (a->row_i[n] >= check_queries(p, &data->host, a->row_b[n])) {   /* past seqused_q: no query */
        for (int64_t d = 0; d < p->v_dim; d++) row.o[d] = 0;
        row.lse = (double)-INFINITY;
    } else if (!check_oracle_row(p, &data->host, a->row_b[n], a->row_h[n], a->row_i[n], NULL, &row)) {
        return 0;
    }
    a->lse[n] = row.lse;
    a->keys[n] = row.keys;
    check_bounds(p, &row, a->bound + n * p->v_dim, a->lse_bound + n);
    return 1;
}

static void *work(void *arg) {
    job *j = arg;
    double *scratch = malloc(3 * (size_t)j->data->problem.v_dim * sizeof *scratch);
    for (long long n; scratch && (n = atomic_fetch_add(&j->next, 1)) < j->data->answer.checked;)
        if (!answer_row(j->data, n, scratch)) atomic_store(&j->failed, 1);
    if (!scratch) atomic_store(&j->failed, 1);
    free(scratch);
    return NULL;
}

attn_status check_data_answer(check_data *data) {
    enum { MOST = 16 };
    if (data->answered) return ATTN_OK;
    if (!answer_create(data)) return ATTN_NO_MEMORY;
    job j = { .data = data };
    pthread_t threads[MOST];
    const double cost =
        (double)data->answer.checked * (double)(data->problem.kv_len + 1) * (double)data->problem.qk_dim;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int count = cost < 4e6 ? 0 : cores > MOST ? MOST : (int)cores - 1;
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, work, &j)) count = i;
    work(&j);
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    if (atomic_load(&j.failed)) return ATTN_NO_MEMORY;
    data->answered = 1;
    return ATTN_OK;
}
