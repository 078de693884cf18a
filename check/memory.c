/* memory.c — host memory between PROT_NONE guard pages, and catching a candidate that runs into one: the
 * fault becomes a verdict when it happens in the checking thread, a message and the signal's death in any
 * other. */
#include "memory.h"
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The mapping is [guard][one page: its size][guard]... : the header page lies before the first guard. */
typedef struct header { size_t mapped; } header;

static size_t page(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static void *host_alloc(void *context, size_t bytes) {
    (void)context;
    const size_t inside = (bytes + page() - 1) / page() * page(), mapped = inside + 3 * page();
    unsigned char *memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    memcpy(memory, &(header){ mapped }, sizeof(header));
    if (mprotect(memory + page(), page(), PROT_NONE) ||
        mprotect(memory + mapped - page(), page(), PROT_NONE)) {
        munmap(memory, mapped);
        return NULL;
    }
    return memory + 2 * page();
}

static void host_free(void *context, void *memory) {
    (void)context;
    if (!memory) return;
    unsigned char *start = (unsigned char *)memory - 2 * page();
    header h;
    memcpy(&h, start, sizeof h);
    munmap(start, h.mapped);
}

static int host_copy(void *context, void *to, const void *from, size_t bytes) {
    (void)context;
    memcpy(to, from, bytes);
    return 0;
}

const check_memory check_host_memory = {
    "host", ATTN_CPU, host_alloc, host_free, host_copy, host_copy, NULL
};

/* ---- faults ---- */

static _Thread_local sigjmp_buf escape;
static _Thread_local volatile sig_atomic_t armed;
static _Thread_local void *volatile fault_address;
static const char *volatile fault_context = "";

static void on_fault(int number, siginfo_t *info, void *machine) {
    (void)machine;
    if (armed) {
        armed = 0;
        fault_address = info->si_addr;
        siglongjmp(escape, 1);
    }
    const char *text = (const char *)fault_context;     /* a worker thread: say what ran, then die of the
                                                           signal */
    const char *const start = "fault in a worker thread during: ";
    if (write(2, start, strlen(start)) < 0 || write(2, text, strlen(text)) < 0 || write(2, "\n", 1) < 0)
        _exit(70);
    signal(number, SIG_DFL);
}

int check_guarded(attn_status (*call)(void *arg), void *arg, const char *context, attn_status *status,
                  void **address) {
    static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE };
    struct sigaction action = { 0 }, before[4];
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    fault_context = context;
    for (int i = 0; i < 4; i++) sigaction(signals[i], &action, &before[i]);
    const int faulted = sigsetjmp(escape, 1);
    if (!faulted) {
        armed = 1;
        *status = call(arg);
    }
    armed = 0;
    for (int i = 0; i < 4; i++) sigaction(signals[i], &before[i], NULL);
    fault_context = "";
    *address = faulted ? fault_address : NULL;
    return faulted;
}
