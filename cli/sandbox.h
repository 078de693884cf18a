/* sandbox.h — code that may crash, hang or exit runs in a child process: the caller gets an answer or a
 * reason. The child is a fork: it sees all memory as it was at that moment and answers through sandbox_shared
 * memory. */
#ifndef CLI_SANDBOX_H
#define CLI_SANDBOX_H
#include <stddef.h>
#include <stdint.h>

typedef struct sandbox sandbox;

/* In the child, serve(arg, request) runs once for each call below. NULL: no process or memory to be had. */
sandbox *sandbox_open(int (*serve)(void *arg, int64_t request), void *arg);
/* @return 0 and the answer of serve, or nonzero: the child is gone and sandbox_reason says how. */
int sandbox_call(sandbox *s, int64_t request, double seconds, int *answer);
const char *sandbox_reason(const sandbox *s);   /* "crashed: Segmentation fault", "no answer within 10 s:
                                                   stopped" */
void sandbox_close(sandbox *s);                 /* NULL is allowed */

/* Zeroed memory that children forked later share with the caller. */
void *sandbox_shared(size_t bytes);
void  sandbox_unshare(void *memory, size_t bytes);
#endif
