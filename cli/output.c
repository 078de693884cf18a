/* output.c — atomic output files: ".NAME.tmp.PID" beside the target, fsync, rename, fsync of the folder. */
#include "output.h"
#include "terminal.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_OPEN = 8 };

struct cli_output {
    const char *what;
    char *target, *temporary;   /* temporary NULL: written directly */
    int file, slot;
};

/* Unfinished files, for the signal handler. A slot changes only while the signals are blocked. */
static char unfinished[MOST_OPEN][PATH_MAX];

static void remove_unfinished(int signal_number) {
    for (int i = 0; i < MOST_OPEN; i++)
        if (unfinished[i][0]) unlink(unfinished[i]);
    _exit(128 + signal_number);
}

/* A mapped input that shrinks while it is read. */
static void input_vanished(int signal_number) {
    static const char text[] = "attn: error: an input file became shorter while it was read\n";
    (void)signal_number;
    for (int i = 0; i < MOST_OPEN; i++)
        if (unfinished[i][0]) unlink(unfinished[i]);
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) _exit(1);
    _exit(1);
}

static const int caught[] = { SIGINT, SIGTERM, SIGHUP };
enum { CAUGHT = sizeof caught / sizeof *caught };

static void signals(int how) {
    sigset_t set;
    sigemptyset(&set);
    for (int i = 0; i < CAUGHT; i++) sigaddset(&set, caught[i]);
    pthread_sigmask(how, &set, NULL);
}

void cli_output_setup(void) {
    struct sigaction action = { .sa_handler = remove_unfinished };
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < CAUGHT; i++) sigaddset(&action.sa_mask, caught[i]);
    for (int i = 0; i < CAUGHT; i++) {
        struct sigaction old;
        sigaction(caught[i], NULL, &old);
        if (old.sa_handler != SIG_IGN) sigaction(caught[i], &action, NULL);   /* nohup stays in force */
    }
    action.sa_handler = input_vanished;
    sigaction(SIGBUS, &action, NULL);
}

static int fail(const cli_output *o, const char *doing) {
    cli_error("%s %s: cannot %s: %s", o->what, o->target, doing, strerror(errno));
    return 1;
}

/* ".NAME.tmp.PID" in the target's folder. */
static char *temporary_name(const char *target) {
    const char *slash = strrchr(target, '/');
    const int folder = slash ? (int)(slash - target) + 1 : 0;
    const size_t size = strlen(target) + 32;
    char *name = malloc(size);
    if (name) snprintf(name, size, "%.*s.%s.tmp.%ld", folder, target, target + folder, (long)getpid());
    return name;
}

static int open_temporary(cli_output *o) {
    o->temporary = temporary_name(o->target);
    if (!o->temporary) return -1;
    if (strlen(o->temporary) >= PATH_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    signals(SIG_BLOCK);
    for (o->slot = 0; o->slot < MOST_OPEN && unfinished[o->slot][0];) o->slot++;
    if (o->slot < MOST_OPEN) {
        o->file = open(o->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (o->file >= 0) strcpy(unfinished[o->slot], o->temporary);
    } else errno = EMFILE;
    signals(SIG_UNBLOCK);
    return o->file;
}

int cli_output_open(cli_output **out, const char *what, const char *path) {
    struct stat status;
    cli_output *o = calloc(1, sizeof *o);
    *out = NULL;
    if (!o) {
        cli_error("%s %s: out of memory", what, path);
        return 1;
    }
    o->what = what;
    o->file = -1;
    o->slot = -1;
    const int known = strcmp(path, "-") && !stat(path, &status);
    /* A link to an existing file keeps being one: its destination is replaced. */
    o->target = known && S_ISREG(status.st_mode) ? realpath(path, NULL) : strdup(path);
    if (!o->target) errno = ENOMEM;
    else if (!strcmp(path, "-")) o->file = dup(STDOUT_FILENO);
    else if (known && S_ISDIR(status.st_mode)) errno = EISDIR;
    else if (known && !S_ISREG(status.st_mode)) o->file = open(path, O_WRONLY | O_CLOEXEC);
    else if (known && access(o->target, W_OK)) o->file = -1;
    else open_temporary(o);
    if (o->file < 0) {
        cli_error("%s %s: cannot write: %s", what, path, strerror(errno));
        cli_output_discard(o);
        return 1;
    }
    *out = o;
    return 0;
}

int cli_output_write(cli_output *o, const void *data, size_t size) {
    const char *at = data;
    while (size) {
        const ssize_t n = write(o->file, at, size < 1 << 30 ? size : 1 << 30);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail(o, "write");
        at += n;
        size -= (size_t)n;
    }
    return 0;
}

/* So that the new name survives a power cut; a file system that can't is no failure. */
static void sync_folder(const char *target) {
    char folder[PATH_MAX];
    const char *slash = strrchr(target, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - target) + 1 : 1, slash ? target : ".");
    const int file = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (file < 0) return;
    fsync(file);
    close(file);
}

/* The new file keeps the permissions of the one that it replaces. */
static void copy_mode(const cli_output *o) {
    struct stat old;
    if (!stat(o->target, &old)) (void)!fchmod(o->file, old.st_mode & 07777);
}

static int publish(cli_output *o) {
    copy_mode(o);
    if (fsync(o->file)) return fail(o, "sync");
    const int closed = close(o->file);
    o->file = -1;
    if (closed) return fail(o, "close");
    signals(SIG_BLOCK);
    const int renamed = rename(o->temporary, o->target);
    if (!renamed) {
        unfinished[o->slot][0] = 0;
        o->slot = -1;
    }
    signals(SIG_UNBLOCK);
    if (renamed) return fail(o, "rename the finished file into place");
    sync_folder(o->target);
    return 0;
}

int cli_output_commit(cli_output *o) {
    int failed;
    if (o->temporary) failed = publish(o);
    else {
        failed = close(o->file) ? fail(o, "close") : 0;
        o->file = -1;
    }
    cli_output_discard(o);
    return failed;
}

void cli_output_discard(cli_output *o) {
    if (!o) return;
    if (o->file >= 0) close(o->file);
    if (o->slot >= 0 && o->slot < MOST_OPEN && o->temporary && !strcmp(unfinished[o->slot], o->temporary)) {
        signals(SIG_BLOCK);
        unlink(o->temporary);
        unfinished[o->slot][0] = 0;
        signals(SIG_UNBLOCK);
    }
    free(o->temporary);
    free(o->target);
    free(o);
}

int cli_output_save(const char *what, const char *path, const void *data, size_t size) {
    cli_output *output;
    if (cli_output_open(&output, what, path)) return 1;
    if (cli_output_write(output, data, size)) {
        cli_output_discard(output);
        return 1;
    }
    return cli_output_commit(output);
}
