/* team.c — threads that wait a moment awake, then asleep, for the next piece of common work. */
#include "team.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

typedef struct { team *team; int number; pthread_t thread; } member;

struct team {
    int threads, started;
    pthread_mutex_t lock;
    pthread_cond_t begin;
    atomic_int round, working;          /* round -1: go home */
    void (*work)(void *arg, int number);
    void *arg;
    member *members;
};

enum { SPINS = 20000 };                 /* about 100 us: rounds follow each other closely */

static void await_round(team *t, int seen) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&t->round) != seen) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    pthread_mutex_lock(&t->lock);
    while (atomic_load(&t->round) == seen) pthread_cond_wait(&t->begin, &t->lock);
    pthread_mutex_unlock(&t->lock);
}

static void *life(void *arg) {
    member *m = arg;
    for (int seen = 0;;) {
        await_round(m->team, seen);
        seen = atomic_load(&m->team->round);
        if (seen < 0) return NULL;
        m->team->work(m->team->arg, m->number);
        atomic_fetch_sub(&m->team->working, 1);
    }
}

static void announce(team *t, int round) {
    pthread_mutex_lock(&t->lock);
    atomic_store(&t->round, round);
    pthread_cond_broadcast(&t->begin);
    pthread_mutex_unlock(&t->lock);
}

team *team_create(int threads) {
    team *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->threads = threads;
    t->members = calloc((size_t)threads, sizeof *t->members);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->begin, NULL);
    for (int i = 1; t->members && i < threads; i++, t->started++) {
        t->members[i] = (member){ .team = t, .number = i };
        if (pthread_create(&t->members[i].thread, NULL, life, &t->members[i])) break;
    }
    if (t->members && t->started == threads - 1) return t;
    team_destroy(t);
    return NULL;
}

void team_run(team *t, void (*work)(void *arg, int number), void *arg) {
    t->work = work;
    t->arg = arg;
    atomic_store(&t->working, t->threads - 1);
    if (t->threads > 1) announce(t, (atomic_load(&t->round) + 1) & 0x3fffffff);
    work(arg, 0);
    while (atomic_load(&t->working)) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

int team_threads(const team *t) { return t->threads; }

void team_destroy(team *t) {
    if (!t) return;
    announce(t, -1);
    for (int i = 1; i <= t->started; i++) pthread_join(t->members[i].thread, NULL);
    pthread_cond_destroy(&t->begin);
    pthread_mutex_destroy(&t->lock);
    free(t->members);
    free(t);
}
