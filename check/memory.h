/* memory.h — run a call that may fault. */
#ifndef CHECK_MEMORY_H
#define CHECK_MEMORY_H
#include "data.h"

/* Returns 1 if the call ran into a fault in this thread (then *address says where), else 0 and *status.
 * `context` is printed if a worker thread faults, before the process dies of it. */
int check_guarded(attn_status (*call)(void *arg), void *arg, const char *context, attn_status *status,
                  void **address);
#endif
