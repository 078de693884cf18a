/* fail_malloc.c — preloaded into the command: allocation number FAIL_MALLOC_AT (from 1) fails, once; glibc
 * only. */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *memory, size_t bytes);
extern void *__libc_memalign(size_t alignment, size_t bytes);

static atomic_long calls;

static int fails(void) {
    static atomic_long at;
    long n = atomic_load(&at);
    if (!n) {
        const char *text = getenv("FAIL_MALLOC_AT");
        n = text ? atol(text) : -1;
        atomic_store(&at, n);
    }
    if (atomic_fetch_add(&calls, 1) + 1 != n) return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t bytes) { return fails() ? NULL : __libc_malloc(bytes); }
void *calloc(size_t count, size_t bytes) { return fails() ? NULL : __libc_calloc(count, bytes); }
void *realloc(void *memory, size_t bytes) { return fails() ? NULL : __libc_realloc(memory, bytes); }
void *aligned_alloc(size_t alignment, size_t bytes) {
    return fails() ? NULL : __libc_memalign(alignment, bytes);
}
