/* sandbox.c — a child process that answers requests over two pipes; silence, death and exit become
 * sentences. */
#include "sandbox.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/prctl.h>
#endif

struct sandbox {
    pid_t child;
    int requests, answers;      /* our ends of the pipes */
    char reason[128];
};

void *sandbox_shared(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void sandbox_unshare(void *memory, size_t bytes) {
    if (memory) munmap(memory, bytes);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the child ---- */

/* What the parent's handlers protect is the parent's; what the child prints must not mix with results. */
static void settle(pid_t parent) {
    static const int ours[] = { SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT };
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) signal(ours[i], SIG_DFL);
    setpgid(0, 0);
#if defined(__linux__)
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    if (getppid() != parent) _exit(1);
    const struct rlimit none = { 0, 0 };
    setrlimit(RLIMIT_CORE, &none);
    dup2(STDERR_FILENO, STDOUT_FILENO);
}

static void answer_requests(int (*serve)(void *, int64_t), void *arg, int requests, int answers) {
    int64_t request;
    while (read(requests, &request, sizeof request) == sizeof request) {
        const int answer = serve(arg, request);
        if (write(answers, &answer, sizeof answer) != sizeof answer) break;
    }
    _exit(0);
}

/* ---- the parent ---- */

static void close_pipe(const int ends[2]) {
    close(ends[0]);
    close(ends[1]);
}

sandbox *sandbox_open(int (*serve)(void *arg, int64_t request), void *arg) {
    int down[2], up[2];
    sandbox *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    if (pipe(down)) {
        free(s);
        return NULL;
    }
    if (pipe(up)) {
        close_pipe(down);
        free(s);
        return NULL;
    }
    fflush(NULL);
    const pid_t parent = getpid();
    s->child = fork();
    if (s->child == 0) {
        close(down[1]);
        close(up[0]);
        settle(parent);
        answer_requests(serve, arg, down[0], up[1]);
    }
    close(down[0]);
    close(up[1]);
    s->requests = down[1];
    s->answers = up[0];
    if (s->child < 0) {
        sandbox_close(s);
        return NULL;
    }
    setpgid(s->child, s->child);    /* both sides do it, so that it holds whoever comes first */
    fcntl(s->requests, F_SETFD, FD_CLOEXEC);
    fcntl(s->answers, F_SETFD, FD_CLOEXEC);
    return s;
}

static int reap(sandbox *s) {
    int status = 0;
    while (s->child > 0 && waitpid(s->child, &status, 0) < 0 && errno == EINTR) {}
    s->child = 0;
    return status;
}

static void stop(sandbox *s) {
    if (s->child <= 0) return;
    kill(-s->child, SIGKILL);
    kill(s->child, SIGKILL);
    reap(s);
}

/* The pipe closed: the child ended by itself. */
static void explain_end(sandbox *s) {
    const int status = reap(s);
    if (WIFSIGNALED(status))
        snprintf(s->reason, sizeof s->reason, "crashed: %s", strsignal(WTERMSIG(status)));
    else
        snprintf(s->reason, sizeof s->reason, "ended the process with exit(%d)", WEXITSTATUS(status));
}

int sandbox_call(sandbox *s, int64_t request, double seconds, int *answer) {
    if (s->child <= 0) return 1;
    const double end = now() + seconds;
    void (*before)(int) = signal(SIGPIPE, SIG_IGN);
    const ssize_t sent = write(s->requests, &request, sizeof request);
    signal(SIGPIPE, before);
    if (sent != sizeof request) {
        explain_end(s);
        return 1;
    }
    for (;;) {
        struct pollfd p = { .fd = s->answers, .events = POLLIN };
        const double left = end - now();
        const int ready = poll(&p, 1, left < 0 ? 0 : left > 1e6 ? 1000000000 : (int)(left * 1e3) + 1);
        if (ready < 0 && errno == EINTR) continue;
        if (ready > 0 && read(s->answers, answer, sizeof *answer) == sizeof *answer) return 0;
        if (ready > 0) {
            explain_end(s);
            return 1;
        }
        if (now() < end) continue;
        stop(s);
        snprintf(s->reason, sizeof s->reason, "no answer within %.3g s: stopped", seconds);
        return 1;
    }
}

const char *sandbox_reason(const sandbox *s) { return s->reason; }

void sandbox_close(sandbox *s) {
    if (!s) return;
    close(s->requests);
    close(s->answers);
    stop(s);
    free(s);
}
