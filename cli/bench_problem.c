/* bench_problem.c — one problem: make its tensors, check every contender, time those that are right beside
 * the ceilings, and judge the planner's choice. */
#include "bench_runner.h"
#include "gpu_session.h"
#include "problem_options.h"
#include "terminal.h"
#include <stdlib.h>
#include <string.h>

enum { MOST_THREAD_COUNTS = 16 };

/* A contender with a thread count; its row and, if it is timed, its runner. */
typedef struct entry { contender *contender; bench_runner *runner; int threads, row; } entry;

typedef struct session {
    const bench_request *request;
    check_data   *data;
    const char   *chosen;               /* the planner's kernel or "" */
    char          label[160];
    entry        *entries;
    int           entry_count;
    int           threads[MOST_THREAD_COUNTS], thread_counts;
    bench_ceiling *ceilings[MOST_THREAD_COUNTS][CEILINGS];
    bench_table  *table;
    int           code;
} session;

static bench_row *row_of(const session *s, const entry *e) { return &s->table->rows[e->row]; }

/* ---- who takes part ---- */

static int is_slow(const contender *c, double flops) {
    return c->kind == CONTENDER_KERNEL && !strncmp(c->name, "reference", 9) && flops > 1e9;
}

static int add_row(session *s, contender *c, int threads) {
    bench_row *r = bench_table_add(s->table);
    if (!r) return -1;
    const check_work work = check_data_work(s->data);
    const attn_dtype dtype = check_data_problem(s->data)->dtype;
    r->problem = s->request->problem, r->kind = c->kind, r->threads = threads;
    r->flops = work.flops, r->bytes = work.bytes;
    r->ceiling = c->device == ATTN_CUDA ? gpu_ceiling(dtype) : ceiling_of_kernel(c->name, dtype == ATTN_BF16);
    snprintf(r->kernel, sizeof r->kernel, "%s", c->name);
    r->chosen = c->kind == CONTENDER_KERNEL && !strcmp(c->name, s->chosen);
    return s->table->count - 1;
}

static void note_threads(session *s, int threads) {
    for (int i = 0; i < s->thread_counts; i++)
        if (s->threads[i] == threads) return;
    if (s->thread_counts < MOST_THREAD_COUNTS) s->threads[s->thread_counts++] = threads;
}

/* Check one contender; wrong ones are reported and not timed. */
static void enter(session *s, contender *c, int threads) {
    const int row = add_row(s, c, threads);
    if (row < 0) return;
    entry *e = &s->entries[s->entry_count];
    *e = (entry){ .contender = c, .threads = threads, .row = row };
    attn_options options = s->request->options;
    options.threads = threads;
    bench_row *r = row_of(s, e);
    cli_progress("%s: checking %s", s->label, c->name);
    contender_check(c, s->data, &options, 1, 10 + r->flops / 1e8, &r->outcome);
    s->entry_count++;
    if (r->outcome.kind == OUTCOME_WRONG || r->outcome.kind == OUTCOME_FAILED) s->code = CLI_FAILED;
    if (r->outcome.kind != OUTCOME_OK) return;
    e->runner = bench_runner_create(c, s->data, &options, threads);
    if (!e->runner) snprintf(r->reason, sizeof r->reason, "no child process to run it in");
    note_threads(s, threads);
}

static void enter_all(session *s) {
    const bench_request *q = s->request;
    const double flops = check_data_work(s->data).flops;
    for (int i = 0; i < q->contenders->count; i++) {
        contender *c = &q->contenders->items[i];
        if (!q->explicit_list && is_slow(c, flops)) {
            cli_remark("%s: %s is left out as slow; --kernel %s times it", s->label, c->name, c->name);
            continue;
        }
        for (int n = 0; n < q->thread_counts; n++) {
            const int threads = c->kind == CONTENDER_PLUGIN || c->device != ATTN_CPU ? 1 : q->threads[n];
            if (n && c->kind == CONTENDER_PLUGIN) break;
            enter(s, c, threads);
            const bench_row *last = &s->table->rows[s->table->count - 1];
            if (last->outcome.kind == OUTCOME_REFUSED) break;   /* with any number */
        }
    }
}

/* ---- ceilings ---- */

static ceiling_buffers buffers_of(const check_data *data) {
    const attn_problem *p = check_data_problem(data);
    const attn_tensors *t = check_data_tensors(data);
    const size_t size = p->dtype == ATTN_F32 ? 4 : 2;
    const int64_t batch = p->page_size ? p->pages : p->packed_kv ? 1 : p->kv_batch;
    const int64_t rows = p->page_size ? p->page_size : p->packed_kv ? p->kv_total : p->kv_len;
    ceiling_buffers b = { t->k, t->v, 0, 0 };
    if (batch <= 0 || rows <= 0) return b;
    const attn_stride k = p->k_stride, v = p->v_stride;
    b.k_bytes =
        size * (size_t)((batch - 1) * k.batch + (rows - 1) * k.seq + (p->kv_heads - 1) * k.head + p->qk_dim);
    if (t->v)
        b.v_bytes = size * (size_t)((batch - 1) * v.batch + (rows - 1) * v.seq + (p->kv_heads - 1) * v.head +
                                    p->v_dim);
    return b;
}

static void add_ceiling(session *s, int t, ceiling which, const ceiling_buffers *buffers) {
    if (!s->ceilings[t][which]) s->ceilings[t][which] = bench_ceiling_create(which, s->threads[t], buffers);
}

static void add_ceilings(session *s) {
    if (check_data_problem(s->data)->device != ATTN_CPU) {
        for (int t = 0; t < s->thread_counts; t++) {
            add_ceiling(s, t, gpu_ceiling(check_data_problem(s->data)->dtype), NULL);
            add_ceiling(s, t, CEILING_GPU_READ, NULL);
        }
        return;
    }
    const ceiling_buffers buffers = buffers_of(s->data);
    for (int t = 0; t < s->thread_counts; t++) {
        for (int i = 0; i < s->entry_count; i++)
            if (s->entries[i].runner && s->entries[i].threads == s->threads[t])
                add_ceiling(s, t, row_of(s, &s->entries[i])->ceiling, &buffers);
        if (buffers.k_bytes + buffers.v_bytes >= 4096) add_ceiling(s, t, CEILING_READ, &buffers);
    }
}

static bench_ceiling *ceiling_for(const session *s, int threads, ceiling which) {
    for (int t = 0; t < s->thread_counts; t++)
        if (s->threads[t] == threads) return s->ceilings[t][which];
    return NULL;
}

/* ---- timing ---- */

static void measure(session *s) {
    const int most = s->entry_count + s->thread_counts * CEILINGS;
    bench_item **items = calloc((size_t)most + 1, sizeof *items);
    int n = 0;
    if (!items) return;
    for (int i = 0; i < s->entry_count; i++)
        if (s->entries[i].runner) items[n++] = bench_runner_item(s->entries[i].runner);
    for (int t = 0; t < s->thread_counts; t++)
        for (int c = 0; c < CEILINGS; c++)
            if (s->ceilings[t][c]) items[n++] = bench_ceiling_item(s->ceilings[t][c]);
    bench_measure(items, n, &s->request->settings, s->label);
    free(items);
}

/* How many times faster e is than the contender called `name` with as many threads. */
static double versus(const session *s, const entry *e, const char *name) {
    for (int i = 0; i < s->entry_count; i++) {
        const entry *other = &s->entries[i];
        if (other == e || !other->runner || other->threads != e->threads) continue;
        if (!strcmp(other->contender->name, name))
            return bench_ratio(bench_runner_item(e->runner), bench_runner_item(other->runner));
    }
    return 0;
}

/* e's rate over the ceiling's, and the ceiling's own rate. */
static double share_of(const entry *e, bench_ceiling *c, double work, double *rate) {
    if (!c) return 0;
    const bench_spread spread = bench_spread_of(bench_ceiling_item(c));
    const double each = bench_ceiling_work(c);
    *rate = spread.median > 0 ? each / spread.median : 0;
    return work / each * bench_ratio(bench_runner_item(e->runner), bench_ceiling_item(c));
}

/* Against the same contender, and the same ceiling, on one thread. */
static void fill_scaling(const session *s, const entry *e, bench_row *r) {
    bench_ceiling *one = ceiling_for(s, 1, r->ceiling), *all = ceiling_for(s, e->threads, r->ceiling);
    if (e->threads == 1) return;
    for (int i = 0; i < s->entry_count; i++) {
        const entry *other = &s->entries[i];
        if (other->contender == e->contender && other->runner && other->threads == 1)
            r->times_one_thread = bench_ratio(bench_runner_item(e->runner), bench_runner_item(other->runner));
    }
    if (one && all)
        r->ceiling_scaling = bench_ceiling_work(all) / bench_ceiling_work(one) *
                             bench_ratio(bench_ceiling_item(all), bench_ceiling_item(one));
}

static void fill_row(session *s, const entry *e) {
    bench_row *r = row_of(s, e);
    if (!e->runner) return;
    const bench_item *item = bench_runner_item(e->runner);
    r->time = bench_spread_of(item);
    bench_runner_traffic(e->runner, &r->outcome.has_traffic, &r->outcome.traffic);
    if (*item->reason) {
        snprintf(r->reason, sizeof r->reason, "while timed: %.200s", item->reason);
        s->code = CLI_FAILED;
    }
    if (!(r->time.median > 0)) return;
    r->of_ceiling = share_of(e, ceiling_for(s, e->threads, r->ceiling), r->flops, &r->ceiling_flops);
    if (ceiling_for(s, e->threads, r->ceiling))
        r->noise = bench_lost(bench_ceiling_item(ceiling_for(s, e->threads, r->ceiling)));
    const ceiling read = check_data_problem(s->data)->device == ATTN_CPU ? CEILING_READ : CEILING_GPU_READ;
    r->of_read = share_of(e, ceiling_for(s, e->threads, read), r->bytes, &r->read_bytes);
    fill_scaling(s, e, r);
    r->versus[0] = versus(s, e, "openblas_blocked");
    r->versus[1] = versus(s, e, "openblas_naive");
}

/* Kernels stand best first: one that comes later and is faster says that the order is wrong here. */
static void judge_choice(session *s) {
    for (int i = 0; i < s->entry_count; i++)
        for (int j = i + 1; j < s->entry_count; j++) {
            const entry *chosen = &s->entries[i], *later = &s->entries[j];
            if (!row_of(s, chosen)->chosen || !chosen->runner || !later->runner) continue;
            if (later->threads != chosen->threads || later->contender->kind != CONTENDER_KERNEL) continue;
            row_of(s, later)->faster =
                bench_ratio(bench_runner_item(later->runner), bench_runner_item(chosen->runner)) > 1.02;
        }
}

/* ---- the whole ---- */

static int open_data(session *s) {
    const bench_request *q = s->request;
    attn_problem resolved = q->problem;
    if (attn_problem_resolve(&resolved)) {
        cli_error("%s", attn_last_error());
        return CLI_USAGE;
    }
    const check_case c = { .problem = q->problem, .shape = "custom", .fill = q->fill, .seed = q->seed };
    cli_progress("%s: making tensors", s->label);
    const check_memory *memory;
    if (gpu_session_open(resolved.device, q->options.cuda_device, &memory)) return CLI_FAILED;
    s->data = q->data;
    attn_status status = s->data ? ATTN_OK : check_data_create(&s->data, &c, memory, 0);
    if (!status) cli_progress("%s: computing the float64 answer", s->label);
    if (!status) status = check_data_answer(s->data);
    if (!status) return CLI_OK;
    cli_error("%s: cannot make the tensors: %s %s", s->label, attn_status_name(status), attn_last_error());
    return CLI_FAILED;
}

static void find_choice(session *s) {
    attn_plan *plan;
    s->chosen = "";
    if (attn_plan_create(&plan, check_data_problem(s->data), &s->request->options)) return;
    s->chosen = attn_plan_kernel(plan);     /* lives as long as the library */
    attn_plan_destroy(plan);
}

int bench_problem(const bench_request *request, bench_table *table) {
    session s = { .request = request, .table = table };
    cli_problem_text(&request->problem, s.label, sizeof s.label);
    const int code = open_data(&s);
    if (code) return code;
    find_choice(&s);
    s.entries = calloc((size_t)(request->contenders->count * request->thread_counts) + 1, sizeof *s.entries);
    if (s.entries) {
        enter_all(&s);
        add_ceilings(&s);
        measure(&s);
        for (int i = 0; i < s.entry_count; i++) fill_row(&s, &s.entries[i]);
        judge_choice(&s);
    }
    for (int i = 0; i < s.entry_count; i++) bench_runner_free(s.entries[i].runner);
    for (int t = 0; t < s.thread_counts; t++)
        for (int c = 0; c < CEILINGS; c++) bench_ceiling_free(s.ceilings[t][c]);
    free(s.entries);
    if (!request->data) check_data_destroy(s.data);
    return s.code;
}

bench_row *bench_table_add(bench_table *table) {
    bench_row *rows = realloc(table->rows, (size_t)(table->count + 1) * sizeof *rows);
    if (!rows) return NULL;
    table->rows = rows;
    rows[table->count] = (bench_row){ .threads = 1 };
    return &rows[table->count++];
}

void bench_table_free(bench_table *table) {
    free(table->rows);
    *table = (bench_table){ NULL, 0 };
}
