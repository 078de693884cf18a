/* threads_default.c — how many threads to use when nobody says: what the affinity mask, the control group's
 * CPU quota and ATTN_NUM_THREADS all allow. Reads files with open and read: no stdio, nothing allocated. */
#include "kernel.h"
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_THREADS = 1024 };   /* as options.threads */

#if defined(__linux__)
#include <fcntl.h>
#include <sched.h>

/* A whole small file as text; 0 if it can't be read. */
static int read_text(const char *path, char *text, size_t size) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    size_t length = 0;
    while (length + 1 < size) {
        const ssize_t n = read(file, text + length, size - 1 - length);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        length += (size_t)n;
    }
    (void)close(file);
    text[length] = 0;
    return length > 0;
}

/* quota / period rounded down, at least 1; INT_MAX where there is no quota ("max" or -1). */
static int whole_cpus(const char *quota_text, const char *period_text) {
    const long long quota = strtoll(quota_text, NULL, 10), period = strtoll(period_text, NULL, 10);
    if (quota <= 0 || period <= 0 || quota / period >= INT_MAX) return INT_MAX;
    return quota / period < 1 ? 1 : (int)(quota / period);
}

static int quota_of_group(const char *root, const char *group) {
    char path[1200], text[128], period[128];
    (void)snprintf(path, sizeof path, "%s%s/cpu.max", root, group);   /* v2: "QUOTA PERIOD" */
    if (read_text(path, text, sizeof text)) {
        const char *space = strchr(text, ' ');
        return space ? whole_cpus(text, space) : INT_MAX;
    }
    (void)snprintf(path, sizeof path, "%s%s/cpu.cfs_quota_us", root, group);            /* v1 */
    if (!read_text(path, text, sizeof text)) return INT_MAX;
    (void)snprintf(path, sizeof path, "%s%s/cpu.cfs_period_us", root, group);
    return read_text(path, period, sizeof period) ? whole_cpus(text, period) : INT_MAX;
}

/* The least quota of a group and all its ancestors; `group` is cut back to "" on the way. */
static int quota_of_path(const char *root, char *group) {
    int least = INT_MAX;
    for (;;) {
        const int quota = quota_of_group(root, group);
        if (quota < least) least = quota;
        char *slash = strrchr(group, '/');
        if (!slash) return least;
        *slash = 0;
    }
}

/* Does the line's controller list, "cpu,cpuacct" of "4:cpu,cpuacct:/path",
 * name cpu (v1) or nothing at all (v2)? */
static int controls_cpu(const char *list, const char *end) {
    if (list == end) return 1;
    for (const char *word = list; word < end;) {
        const char *stop = memchr(word, ',', (size_t)(end - word));
        if (!stop) stop = end;
        if (stop - word == 3 && !memcmp(word, "cpu", 3)) return 1;
        word = stop + 1;
    }
    return 0;
}

static int read_quota(void) {
    static const char *const roots[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu",
                                         "/sys/fs/cgroup/cpu,cpuacct" };
    char text[4096];
    int least = INT_MAX;
    if (!read_text("/proc/self/cgroup", text, sizeof text)) (void)strcpy(text, "0::/\n");
    for (char *line = text, *next; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        char *list = strchr(line, ':'), *group = list ? strchr(list + 1, ':') : NULL;
        if (!group || strlen(group) > 1000 || !controls_cpu(list + 1, group)) continue;
        for (size_t i = 0; i < sizeof roots / sizeof *roots; i++) {
            char path[1024];
            (void)strcpy(path, group + 1);
            if (path[0] == '/' && !path[1]) path[0] = 0;
            const int quota = quota_of_path(roots[i], path);
            if (quota < least) least = quota;
        }
    }
    return least;
}

static int affinity(void) {
    union { cpu_set_t set; unsigned long words[8192 / (8 * sizeof(unsigned long))]; } mask;   /* 8192 CPUs */
    memset(&mask, 0, sizeof mask);
    if (sched_getaffinity(0, sizeof mask, &mask.set)) return 1;
    return CPU_COUNT_S(sizeof mask, &mask.set);
}
#else
static int read_quota(void) { return INT_MAX; }
static int affinity(void) {
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 && n < INT_MAX ? (int)n : 1;
}
#endif

int attn_threads_default(void) {
    static _Atomic int known_quota;   /* 0: not read yet;
                                         a constant of the process, racing readers store the same */
    const int saved = errno;
    int quota = atomic_load_explicit(&known_quota, memory_order_relaxed);
    if (!quota) {
        quota = read_quota();
        atomic_store_explicit(&known_quota, quota, memory_order_relaxed);
    }
    int threads = affinity();
    if (quota < threads) threads = quota;
    const char *variable = getenv("ATTN_NUM_THREADS");
    if (variable && *variable) {
        char *end;
        const long long wanted = strtoll(variable, &end, 10);
        if (!*end && wanted >= 1 && wanted < threads) threads = (int)wanted;
    }
    errno = saved;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    return threads < 1 ? 1 : threads;
}
