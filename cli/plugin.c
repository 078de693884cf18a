/* plugin.c — compile, load and call plug-in kernels. */
#include "plugin.h"
#include "locate.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { COMPILE_SECONDS = 120, WORDS = 64 };

struct plugin {
    char path[PATH_MAX], name[128], folder[64], library[PATH_MAX + 8], error[512];
    void *handle;                   /* in the process that loaded it */
    const attn_plugin *kernel;
    attn_problem problem;           /* prepared */
};

static int ends_with(const char *text, const char *end) {
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

int plugin_is_path(const char *kernel) {
    return strchr(kernel, '/') || ends_with(kernel, ".c") || ends_with(kernel, ".cu") ||
           ends_with(kernel, ".py") || ends_with(kernel, ".so");
}

/* The folder with attn/attn_plugin.h: $ATTN_INCLUDE, or include/ beside or above the program. */
static int find_include(char *folder, size_t size) {
    const char *given = getenv("ATTN_INCLUDE"), *const header = "/attn/attn_plugin.h";
    if (given && *given) {
        snprintf(folder, size, "%s", given);
        return 1;
    }
    if (cli_locate("include/attn/attn_plugin.h", folder, size)) return 0;
    folder[strlen(folder) - strlen(header)] = 0;
    return 1;
}

/* ---- compiling ---- */

/* Cut `text` at blanks into `words`, from `count` on. @return the new count. */
static int add_words(char **words, int count, char *text) {
    char *rest;
    for (char *w = strtok_r(text, " \t", &rest); w && count < WORDS - 20; w = strtok_r(NULL, " \t", &rest))
        words[count++] = w;
    return count;
}

static void run_compiler(char **words, int messages) {
    const int nothing = open("/dev/null", O_RDONLY);
    dup2(nothing, STDIN_FILENO);
    dup2(messages, STDOUT_FILENO);
    dup2(messages, STDERR_FILENO);
    execvp(words[0], words);
    dprintf(STDERR_FILENO, "cannot run %s: %s\n", words[0], strerror(errno));
    _exit(127);
}

/* Collect what the compiler says until it ends. @return its wait status, or -1 if it took too long. */
static int await_compiler(pid_t child, int messages, char *text, size_t size) {
    size_t used = 0;
    const time_t end = time(NULL) + COMPILE_SECONDS;
    for (;;) {
        struct pollfd p = { .fd = messages, .events = POLLIN };
        char piece[512];
        if (poll(&p, 1, 1000) > 0) {
            const ssize_t n = read(messages, piece, sizeof piece);
            if (n <= 0) break;
            const size_t keep = (size_t)n < size - 1 - used ? (size_t)n : size - 1 - used;
            memcpy(text + used, piece, keep);
            used += keep;
        } else if (time(NULL) > end) {
            kill(child, SIGKILL);
            waitpid(child, NULL, 0);
            return -1;
        }
    }
    text[used] = 0;
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    return status;
}

/* The first line that says "error", else the first line. */
static void first_error(const char *text, char *line, size_t size) {
    const char *at = strstr(text, "error");
    while (at && at > text && at[-1] != '\n') at--;
    if (!at) at = text;
    snprintf(line, size, "%.*s", (int)strcspn(at, "\n"), at);
}

/* A Python file is served by learn/python_kernel.c, compiled with the paths of both. @return the C file, or
 * NULL */
static const char *python_source(const char *script, char *source, char *names, size_t size) {
    char runner[PATH_MAX], full[PATH_MAX];
    if (cli_locate("learn/python_kernel.c", source, PATH_MAX) ||
        cli_locate("learn/python_kernel.py", runner, PATH_MAX) || !realpath(script, full))
        return NULL;
    snprintf(names, size, "-DPYTHON_SCRIPT=\"%s\"", full);
    snprintf(names + size, size, "-DPYTHON_RUNNER=\"%s\"", runner);
    return source;
}

/* What a .cu file wants from nvcc: the line "nvcc: FLAGS" in its first comment; this machine's GPU if it has
 * none. */
static void nvcc_flags(const char *path, char *flags, size_t size) {
    char head[2048];
    FILE *file = fopen(path, "rb");
    const size_t n = file ? fread(head, 1, sizeof head - 1, file) : 0;
    if (file) fclose(file);
    head[n] = 0;
    const char *end = strstr(head, "*/"), *wish = strstr(head, "nvcc: ");
    const int given = wish && end && wish < end;
    snprintf(flags, size, "-O3 %.*s -Xcompiler -fPIC -shared", given ? (int)strcspn(wish + 6, "\n*") : 13,
             given ? wish + 6 : "-arch=native ");
}

/* Run the compiler; p->error says what it found wrong. */
static void run_words(plugin *p, char **words) {
    int ends[2];
    char text[8192];
    if (pipe(ends)) {
        snprintf(p->error, sizeof p->error, "cannot run the compiler: %s", strerror(errno));
        return;
    }
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) run_compiler(words, ends[1]);
    close(ends[1]);
    const int status = child < 0 ? -1 : await_compiler(child, ends[0], text, sizeof text);
    close(ends[0]);
    if (status == 0) return;
    char line[400];
    first_error(status == -1 ? "the compiler did not finish" : text, line, sizeof line);
    snprintf(p->error, sizeof p->error, "does not compile: %s",
             *line ? line : "the compiler failed without a word");
}

static void compile(plugin *p, int simulate) {
    char include[PATH_MAX], flags[1024], compiler[PATH_MAX], extra[512], served[PATH_MAX],
        names[2][PATH_MAX + 32];
    const char *cc = getenv(ends_with(p->path, ".cu") ? "NVCC" : "CC"), *more = getenv("ATTN_PLUGIN_FLAGS");
    const int cuda = ends_with(p->path, ".cu");
    if (!find_include(include, sizeof include)) {
        snprintf(p->error, sizeof p->error,
                 "attn/attn_plugin.h not found: set ATTN_INCLUDE to its include folder");
        return;
    }
    simulate = simulate && cuda;
    if (simulate && cli_locate("learn/sim/simulate.sh", compiler, sizeof compiler)) {
        snprintf(p->error, sizeof p->error,
                 "learn/sim/simulate.sh, which runs CUDA on the CPU, was not found: --backend cuda runs it "
                 "on a GPU");
        return;
    }
    if (!simulate) snprintf(compiler, sizeof compiler, "%s", cc && *cc ? cc : cuda ? "nvcc" : "cc");
    snprintf(flags, sizeof flags, "%s", simulate ? "-shared" : "-O3 -march=native -fPIC -shared");
    if (cuda && !simulate) nvcc_flags(p->path, flags, sizeof flags);
    snprintf(extra, sizeof extra, "%s", more ? more : "");
    char *words[WORDS];
    int n = 1;
    if (simulate) words[0] = compiler;          /* a path, which may hold blanks */
    else n = add_words(words, 0, compiler);
    n = add_words(words, n, flags);
    n = add_words(words, n, extra);
    const int python = ends_with(p->path, ".py");
    if (python && !python_source(p->path, served, names[0], sizeof names[0])) {
        snprintf(p->error, sizeof p->error,
                 "learn/python_kernel.c, which serves Python files, was not found");
        return;
    }
    if (python) words[n++] = names[0], words[n++] = names[1];
    char *const rest[] = { "-I", include, "-o", p->library, python ? served : p->path, "-lm", NULL };
    memcpy(words + n, rest, sizeof rest);
    run_words(p, words);
}

plugin *plugin_build(const char *path, int simulate) {
    plugin *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    if (!realpath(path, p->path)) {
        snprintf(p->path, sizeof p->path, "%s", path);
        snprintf(p->error, sizeof p->error, "cannot open: %s", strerror(errno));
    }
    const char *slash = strrchr(path, '/');
    snprintf(p->name, sizeof p->name, "%s", slash ? slash + 1 : path);
    if (*p->error) return p;
    if (ends_with(path, ".so")) {
        snprintf(p->library, sizeof p->library, "%s", p->path);
        return p;
    }
    const char *temporary = getenv("TMPDIR");
    snprintf(p->folder, sizeof p->folder, "%.40s/attn.XXXXXX", temporary && *temporary ? temporary : "/tmp");
    if (!mkdtemp(p->folder)) {
        snprintf(p->error, sizeof p->error, "no temporary folder %s: %s", p->folder, strerror(errno));
        *p->folder = 0;
        return p;
    }
    snprintf(p->library, sizeof p->library, "%s/plugin.so", p->folder);
    compile(p, simulate);
    return p;
}

const char *plugin_error(const plugin *p) { return *p->error ? p->error : NULL; }
const char *plugin_name(const plugin *p) { return p->name; }
const char *plugin_path(const plugin *p) { return p->path; }

void plugin_free(plugin *p) {
    if (!p) return;
    if (*p->folder) {
        unlink(p->library);
        rmdir(p->folder);
    }
    free(p);
}

/* ---- calling, in a child ---- */

static const char *load(plugin *p) {
    static char why[400];
    if (p->kernel) return NULL;
    p->handle = dlopen(p->library, RTLD_NOW | RTLD_LOCAL);
    if (!p->handle) {
        snprintf(why, sizeof why, "does not load: %s", dlerror());
        return why;
    }
    const attn_plugin *kernel = dlsym(p->handle, "attn_plugin_kernel");
    if (!kernel) return "does not define attn_plugin_kernel (see attn/attn_plugin.h)";
    if (kernel->struct_size < offsetof(attn_plugin, traffic) || !kernel->run)
        return "attn_plugin_kernel: struct_size must be sizeof(attn_plugin), and run must be set";
    p->kernel = kernel;
    return NULL;
}

static attn_status prepare(check_candidate *c, const attn_problem *problem, const attn_options *options,
                           size_t *workspace, const char **refusal) {
    plugin *p = c->state;
    (void)options;
    *workspace = 0;
    p->problem = *problem;
    if ((*refusal = attn_problem_resolve(&p->problem) ? attn_last_error() : NULL)) return ATTN_INVALID;
    const char *why = load(p);
    if (why) {
        snprintf(p->error, sizeof p->error, "%s", why);
        return ATTN_DEVICE_ERROR;
    }
    if (p->kernel->device != p->problem.device) *refusal = "runs on another device";
    else if (p->kernel->refuse) *refusal = p->kernel->refuse(&p->problem);
    if (*refusal) return ATTN_UNSUPPORTED;
    const int64_t bytes = p->kernel->workspace ? p->kernel->workspace(&p->problem) : 0;
    if (bytes < 0 || bytes > (int64_t)1 << 40) {
        snprintf(p->error, sizeof p->error, "asks for %lld bytes of workspace", (long long)bytes);
        return ATTN_INVALID;
    }
    *workspace = (size_t)bytes;
    return ATTN_OK;
}

static attn_status run(check_candidate *c, const attn_tensors *tensors, void *workspace, void *stream) {
    plugin *p = c->state;
    return p->kernel->run(&p->problem, tensors, workspace, stream);
}

static void finish(check_candidate *c) { (void)c; }

check_candidate plugin_candidate(plugin *p) {
    return (check_candidate){ .name = p->name, .prepare = prepare, .run = run, .finish = finish, .state = p };
}

int plugin_traffic(const plugin *p, attn_traffic *traffic) {
    if (!p->kernel || p->kernel->struct_size < sizeof *p->kernel || !p->kernel->traffic) return 0;
    p->kernel->traffic(traffic);
    return 1;
}
