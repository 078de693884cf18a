/* threads.c — running the items of a plan on several threads: the library's own small pool or the caller's.
 * The caller works too (slot 0) and needs nobody: workers take seats in an open job if they come in
 * time, so a worker that is asleep, busy elsewhere or was never started costs speed only, never
 * progress and never a bit. */
#include "float_mode.h"
#include "kernel.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

enum {
    MAX_WORKERS = 1023,             /* options.threads - 1 */
    WORKER_STACK = 1 << 20,         /* bytes; kernels keep their scratch in the workspace */
    IDLE_SPIN_NS = 40000,           /* a worker stays awake so long after a job:
                                       decode steps follow each other */
    JOIN_SPIN_NS = 40000            /* a caller waits so long for the last items before it sleeps */
};

typedef struct {
    int64_t items;
    void (*fn)(void *arg, int64_t item, int slot);
    void *arg;
    _Alignas(64) _Atomic int64_t next;
} job;

/* gate: epoch << 32 | seats << 16 | active. A job opens with seats = helpers wanted; a worker joins by taking
 * a seat (its number is its slot) and becoming active; closing removes the seats that are left. Everything
 * else of a job is stable while it has seats or active workers. */
static struct {
    _Alignas(64) _Atomic uint64_t gate;
    _Alignas(64) _Atomic int owned;         /* a caller's job is in here */
    _Atomic int stopping;
    _Atomic int sleepers;                   /* workers that wait on wake */
    _Atomic int caller_sleeps;              /* the owner waits on done */
    _Alignas(64) job job;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    int workers;                            /* started; guarded by lock */
    pthread_t threads[MAX_WORKERS];
} pool = { .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER,
           .done = PTHREAD_COND_INITIALIZER };

static uint32_t epoch_of(uint64_t gate) { return (uint32_t)(gate >> 32); }
static int seats_of(uint64_t gate) { return (int)(gate >> 16 & 0xffff); }
static int active_of(uint64_t gate) { return (int)(gate & 0xffff); }

static void work_on(job *j, int slot) {
    for (;;) {
        const int64_t item = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed);
        if (item >= j->items) return;
        j->fn(j->arg, item, slot);
    }
}

/* ---- waiting ---- */

static int64_t now_ns(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void relax(void) {
#if defined(__SSE2__)
    _mm_pause();
#elif defined(__GNUC__) && defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Spin until done(seen) or the time is over. */
static int spin(int (*done)(uint32_t seen), uint32_t seen, int64_t ns) {
    const int64_t end = now_ns() + ns;
    do {
        for (int i = 0; i < 32; i++) {
            if (done(seen)) return 1;
            relax();
        }
    } while (now_ns() < end);
    return done(seen);
}

static int has_news(uint32_t seen) {
    return epoch_of(atomic_load(&pool.gate)) != seen || atomic_load(&pool.stopping);
}

static int is_alone(uint32_t unused) {
    (void)unused;
    return !active_of(atomic_load(&pool.gate));
}

/* ---- workers ---- */

static void leave_job(void) {
    const uint64_t before = atomic_fetch_sub(&pool.gate, 1);
    if (active_of(before) > 1 || !atomic_load(&pool.caller_sleeps)) return;
    (void)pthread_mutex_lock(&pool.lock);
    (void)pthread_cond_signal(&pool.done);
    (void)pthread_mutex_unlock(&pool.lock);
}

/* Take a seat of the open job, if there is one. @return the slot, or 0. */
static int take_seat(uint32_t *seen) {
    uint64_t gate = atomic_load(&pool.gate);
    do {
        *seen = epoch_of(gate);
        if (!seats_of(gate)) return 0;
    } while (!atomic_compare_exchange_weak(&pool.gate, &gate, gate - (1u << 16) + 1));
    return seats_of(gate);
}

static void *worker(void *arg) {
    uint32_t seen = (uint32_t)(uintptr_t)arg;
    (void)attn_float_enter();
    for (;;) {
        if (!spin(has_news, seen, IDLE_SPIN_NS)) {
            (void)pthread_mutex_lock(&pool.lock);
            (void)atomic_fetch_add(&pool.sleepers, 1);
            while (!has_news(seen)) (void)pthread_cond_wait(&pool.wake, &pool.lock);
            (void)atomic_fetch_sub(&pool.sleepers, 1);
            (void)pthread_mutex_unlock(&pool.lock);
        }
        if (atomic_load(&pool.stopping)) return NULL;
        const int slot = take_seat(&seen);
        if (!slot) continue;
        work_on(&pool.job, slot);
        leave_job();
    }
}

/* Signals are the application's: workers block all but those that a fault raises in the thread itself. */
static void block_signals(sigset_t *before) {
    static const int own[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT };
    sigset_t all;
    (void)sigfillset(&all);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) (void)sigdelset(&all, own[i]);
    (void)pthread_sigmask(SIG_BLOCK, &all, before);
}

static int start_worker(pthread_t *thread) {
    pthread_attr_t attributes;
    void *seen = (void *)(uintptr_t)epoch_of(atomic_load(&pool.gate));
    if (pthread_attr_init(&attributes)) return 0;
    (void)pthread_attr_setstacksize(&attributes, WORKER_STACK);
    const int error = pthread_create(thread, &attributes, worker, seen);
    (void)pthread_attr_destroy(&attributes);
    return !error;
}

/* ---- fork, unload ---- */

static void before_fork(void) { (void)pthread_mutex_lock(&pool.lock); }
static void after_fork_in_parent(void) { (void)pthread_mutex_unlock(&pool.lock); }

/* The child has no workers: it starts over, and the next plan made there starts new ones. */
static void after_fork_in_child(void) {
    (void)pthread_mutex_unlock(&pool.lock);
    (void)pthread_mutex_init(&pool.lock, NULL);
    (void)pthread_cond_init(&pool.wake, NULL);
    (void)pthread_cond_init(&pool.done, NULL);
    atomic_store(&pool.gate, 0);
    atomic_store(&pool.owned, 0);
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.caller_sleeps, 0);
    pool.workers = 0;
}

static int fork_is_safe;
static void watch_fork(void) {
    fork_is_safe = !pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

#if defined(__GNUC__)
__attribute__((destructor))
#endif
static void stop_workers(void) {
    (void)pthread_mutex_lock(&pool.lock);
    const int workers = pool.workers;
    pool.workers = 0;
    atomic_store(&pool.stopping, 1);
    (void)pthread_cond_broadcast(&pool.wake);
    (void)pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < workers; i++) (void)pthread_join(pool.threads[i], NULL);
}

/* ---- the two calls of the core ---- */

int attn_threads_reserve(int threads) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (threads <= 1) return 1;
    (void)pthread_once(&once, watch_fork);
    if (!fork_is_safe || atomic_load(&pool.stopping)) return 1;
    sigset_t before;
    block_signals(&before);
    (void)pthread_mutex_lock(&pool.lock);
    while (pool.workers < threads - 1 && pool.workers < MAX_WORKERS &&
           start_worker(&pool.threads[pool.workers]))
        pool.workers++;
    const int served = pool.workers + 1 < threads ? pool.workers + 1 : threads;
    (void)pthread_mutex_unlock(&pool.lock);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return served;
}

static void wake_workers(int wanted) {
    if (!atomic_load(&pool.sleepers)) return;
    (void)pthread_mutex_lock(&pool.lock);
    for (int i = 0; i < wanted; i++) (void)pthread_cond_signal(&pool.wake);
    (void)pthread_mutex_unlock(&pool.lock);
}

/* No seat may be taken any more; wait for those who have one. */
static void close_job(void) {
    (void)atomic_fetch_and(&pool.gate, ~(uint64_t)0xffff0000u);
    if (spin(is_alone, 0, JOIN_SPIN_NS)) return;
    (void)pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.caller_sleeps, 1);
    while (!is_alone(0)) (void)pthread_cond_wait(&pool.done, &pool.lock);
    atomic_store(&pool.caller_sleeps, 0);
    (void)pthread_mutex_unlock(&pool.lock);
}

static void run_on_pool(int slots, int64_t items, void (*fn)(void *arg, int64_t item, int slot), void *arg) {
    pool.job.items = items;
    pool.job.fn = fn;
    pool.job.arg = arg;
    atomic_store_explicit(&pool.job.next, 0, memory_order_relaxed);
    const uint64_t epoch = epoch_of(atomic_load(&pool.gate)) + 1u;
    atomic_store(&pool.gate, epoch << 32 | (uint64_t)(slots - 1) << 16);
    wake_workers(slots - 1);
    work_on(&pool.job, 0);
    close_job();
    atomic_store(&pool.owned, 0);
}

/* One task of the caller's parallel_for: its index is its slot. */
static void caller_task(void *arg, int index) {
    const int saved = errno;
    const attn_float_mode mode = attn_float_enter();
    work_on(arg, index);
    attn_float_leave(mode);
    errno = saved;
}

void attn_parallel(const attn_plan *plan, int64_t items, void (*fn)(void *arg, int64_t item, int slot),
                   void *arg) {
    const int slots = items < plan->threads ? (int)items : plan->threads;
    if (slots > 1 && plan->parallel_for) {
        job own = { .items = items, .fn = fn, .arg = arg };
        plan->parallel_for(plan->parallel_context, slots, caller_task, &own);
        return;
    }
    int free_pool = 0;
    if (slots > 1 && atomic_compare_exchange_strong(&pool.owned, &free_pool, 1)) {
        run_on_pool(slots, items, fn, arg);
        return;
    }
    for (int64_t i = 0; i < items; i++) fn(arg, i, 0);
}
