/* threads.c — how many threads, and running items on them. */
#include "kernel.h"

int attn_threads_default(void) { return 1; }
int attn_threads_reserve(int threads) { (void)threads; return 1; }

void attn_parallel(const attn_plan *plan, int64_t items, void (*fn)(void *arg, int64_t item, int slot), void *arg) {
    (void)plan;
    for (int64_t i = 0; i < items; i++) fn(arg, i, 0);
}
