/* build.c — nvcc for the GPU, or translator + g++ + simulator for the CPU; programs run as children with a
 * time limit. */
#include "build.h"
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef LEARN_SOURCE_FOLDER
#define LEARN_SOURCE_FOLDER "learn"
#endif
enum { COMPILE_SECONDS = 120, RUN_SECONDS = 120, WORDS = 32 };

const char *learn_folder(void) {
    const char *wish = getenv("LEARN_FOLDER");
    return wish ? wish : LEARN_SOURCE_FOLDER;
}

const char *learn_build_folder(void) {
    static char path[1024];
    const char *wish = getenv("LEARN_BUILD");
    if (wish) return wish;
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache) snprintf(path, sizeof path, "%s/libattn-learn", cache);
    else snprintf(path, sizeof path, "%s/.cache/libattn-learn", home ? home : "/tmp");
    return path;
}

/* One path out of parts; all of them have room for PATH bytes, and a longer one is refused when it is
 * opened. */
enum { PATH = 1200 };
static void join(char *path, const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)vsnprintf(path, PATH, format, args);
    va_end(args);
}

static int make_folders(const char *path) {
    char part[1024];
    for (size_t i = 1; path[i - 1]; i++)
        if (path[i] == '/' || !path[i]) {
            snprintf(part, sizeof part, "%.*s", (int)i, path);
            if (mkdir(part, 0777) && errno != EEXIST) {
                fprintf(stderr, "learn: %s: %s (set LEARN_BUILD to a folder that can be written)\n", part,
                        strerror(errno));
                return 0;
            }
        }
    return 1;
}

/* ---- children ---- */

/* Run words[0] with its arguments; standard output to `output` if given. @return exit code, 128 + signal, 124
 * = too long, 127 = no such program. */
static int run_words(char *const *words, const char *output, const char *facts, int seconds) {
    fflush(stdout);
    const pid_t child = fork();
    if (child < 0) return 127;
    if (!child) {
        setpgid(0, 0);
        if (output && !freopen(output, "w", stdout)) _exit(126);
        if (facts) setenv("LEARN_FACTS", facts, 1);
        execvp(words[0], words);
        _exit(127);
    }
    for (double waited = 0; waited < seconds; waited += 0.005) {
        int status;
        if (waitpid(child, &status, WNOHANG) == child)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
    }
    kill(-child, SIGKILL);
    waitpid(child, NULL, 0);
    return 124;
}

static int have_program(const char *name) {
    char *const words[] = { "sh", "-c", "command -v \"$0\" >/dev/null 2>&1", (char *)name, NULL };
    return run_words(words, NULL, NULL, 10) == 0;
}

static int have_gpu(void) {
    char *const words[] = { "sh", "-c", "nvidia-smi -L >/dev/null 2>&1 && command -v nvcc >/dev/null 2>&1",
                            NULL };
    return run_words(words, NULL, NULL, 20) == 0;
}

/* ---- building ---- */

static int compile(char *const *words, const char *output, const char *what) {
    const int code = run_words(words, output, NULL, COMPILE_SECONDS);
    if (code == 127) fprintf(stderr, "learn: %s is missing (learn doctor says what to install)\n", words[0]);
    else if (code == 124)
        fprintf(stderr, "learn: %s: the compiler took more than %d s\n", what, COMPILE_SECONDS);
    else if (code) fprintf(stderr, "learn: %s does not compile\n", what);
    return code;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* form: "-lesson" for plug-in kernels, whose program comes with the simulator; "-program" for the others. */
static int build_simulated(const char *file, const char *form, const char *build, const char *program) {
    char script[PATH];
    join(script, "%s/sim/simulate.sh", learn_folder());
    setenv("LEARN_BUILD", build, 1);
    return compile((char *[]){ "bash", script, (char *)form, "-o", (char *)program, (char *)file, NULL },
                   NULL, file);
}

static int build_for_gpu(const char *file, const char *program) {
    char basics[PATH];
    join(basics, "-I%s/cuda_basics", learn_folder());
    return compile((char *[]){ "nvcc", "-O3", "-std=c++17", "-arch=native", basics, (char *)file, "-o",
                               (char *)program, NULL },
                   NULL, file);
}

/* ---- running ---- */

static int explain_exit(int code, const char *file) {
    if (code == 124)
        printf("learn: %s ran for more than %d s: a barrier that not all threads reach, or a loop without "
               "end?\n", file, RUN_SECONDS);
    else if (code > 128)
        printf("learn: %s died of signal %d (%s)\n", file, code - 128, strsignal(code - 128));
    return code;
}

/* What a plug-in's rows say it moved, for the quiz: far_bytes of the benchmark's JSON. */
static void keep_far_bytes(const char *json, const char *facts) {
    char text[1 << 16];
    FILE *file = fopen(json, "rb");
    const size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file) fclose(file);
    text[n] = 0;
    const char *at = strstr(text, "\"far_bytes\":");
    if (at && (file = fopen(facts, "a"))) {
        fprintf(file, "far MB\t%.9g\n", strtod(at + strlen("\"far_bytes\":"), NULL) * 1e-6);
        fclose(file);
    }
}

static const char *python_program(void) { return getenv("PYTHON") ? getenv("PYTHON") : "python3"; }

/* CuTe's headers come from a Python package: its compiler flags into the environment. @return 0 = not here,
 * and said so */
static int find_cute(void) {
    char script[PATH], flags[PATH], line[2048] = "";
    join(script, "%s/flash_attention/cute_flags.py", learn_folder());
    join(flags, "%s/cute_flags.txt", learn_build_folder());
    const int code = run_words((char *[]){ (char *)python_program(), script, NULL }, flags, NULL, 60);
    FILE *file = code ? NULL : fopen(flags, "r");
    if (file && !fgets(line, sizeof line, file)) line[0] = 0;
    if (file) fclose(file);
    line[strcspn(line, "\n")] = 0;
    setenv("ATTN_PLUGIN_FLAGS", line, 1);
    return *line != 0;
}

/* Plug-in kernels are judged by the attn command that lies beside this program. */
static int run_attn(const learn_lesson *lesson, const char *file, int judge_only, const char *facts) {
    char attn[PATH], json[PATH];
    const ssize_t n = readlink("/proc/self/exe", attn, PATH - 8);
    if (n <= 0) return 127;
    attn[n] = 0;
    strcpy(strrchr(attn, '/') + 1, "attn");
    const int cuda = lesson->kind == CUDA_KERNEL;
    const int tensor_cores = cuda && (strstr(lesson->path, "mma") || strstr(lesson->path, "tma") ||
                                      strstr(lesson->path, "hopper") || strstr(lesson->path, "cute"));
    char *const type = tensor_cores ? "bf16" : "f32", *const device = cuda ? "cuda" : "cpu";
    char *const judge[WORDS] = { attn, "check", "--kernel", (char *)file, "--b", "2", "--hq", "4", "--hkv",
                                 "2", "--sq", "65,33", "--sk", "130", "--d", "40", "--dtype", type,
                                 "--causal", "--backend", device, NULL };
    if (judge_only) return explain_exit(run_words(judge, NULL, NULL, RUN_SECONDS), file);
    join(json, "%s.json", facts);
    char *const words[WORDS] = { attn, "bench", "--kernel", (char *)file, "--b", "1", "--hq", "4", "--sq",
                                 "1024", "--d", "64", "--dtype", type, "--backend", device,
                                 facts ? "--json" : NULL, json, NULL };
    const int code = explain_exit(run_words(words, NULL, NULL, RUN_SECONDS), file);
    if (facts) keep_far_bytes(json, facts);
    return code;
}

static int run_python(const learn_lesson *lesson, const char *file, const char *facts) {
    const char *python = python_program();
    if (!getenv("TRITON_INTERPRET") && !have_gpu()) setenv("TRITON_INTERPRET", "1", 1);
    char path[3 * PATH];         /* exercises import the lessons that they change */
    snprintf(path, sizeof path, "%s/triton_basics", learn_folder());
    if (!strstr(file, "triton_basics"))
        snprintf(path, sizeof path, "%s/%.*s", learn_folder(), (int)(base_name(lesson->path) - lesson->path),
                 lesson->path);
    setenv("PYTHONPATH", path, 1);
    return explain_exit(run_words((char *[]){ (char *)python, (char *)file, NULL }, NULL, facts, RUN_SECONDS),
                        file);
}

int learn_execute(const learn_lesson *lesson, const char *given, learn_where where, const char *facts) {
    char file[PATH], program[PATH];
    if (given) join(file, "%s", given);
    else join(file, "%s/%s", learn_folder(), lesson->path);
    if (access(file, R_OK)) {
        fprintf(stderr, "learn: %s: %s\n", file, strerror(errno));
        return 2;
    }
    if (lesson->kind == PYTHON_PROGRAM) return run_python(lesson, file, facts);
    const int simulated = where == LEARN_SIMULATOR || (where == LEARN_ANYWHERE && !have_gpu());
    const int is_c = !strcmp(file + strlen(file) - 2, ".c");
    if (lesson->kind == CUDA_KERNEL && strstr(lesson->path, "cute") && !is_c) {
        join(program, "%s/exercises/solutions/35_swizzle.c", learn_folder());
        if (facts) return learn_execute(lesson, program, where, facts);    /* the quiz asks for its numbers */
        if (simulated) printf("skipped: CuTe needs a GPU, the simulator doesn't compile it\n");
        if (simulated || !make_folders(learn_build_folder()) || !find_cute()) return 2;
    }
    if (lesson->kind == C_KERNEL || (lesson->kind == CUDA_KERNEL && !simulated && !is_c))
        return run_attn(lesson, file, given != NULL, facts);
    const char *build = learn_build_folder();
    if (!make_folders(build)) return 1;
    join(program, "%s/%s", build, base_name(file));
    char *dot = strrchr(program, '.');
    if (dot) *dot = 0;
    if (is_c) {
        char beside[PATH];       /* exercises share the lesson's header */
        join(beside, "-I%s/%.*s", learn_folder(), (int)(base_name(lesson->path) - lesson->path),
             lesson->path);
        if (compile((char *[]){ "cc", "-std=c11", "-O3", "-march=native", beside, file, "-o", program, "-lm",
                                NULL },
                    NULL, file))
            return 1;
    } else if (simulated) {
        if (build_simulated(file, lesson->kind == CUDA_KERNEL ? "-lesson" : "-program", build, program))
            return 1;
    } else if (build_for_gpu(file, program)) {
        return 1;
    }
    return explain_exit(run_words((char *[]){ program, NULL }, NULL, facts, RUN_SECONDS), file);
}

int learn_doctor(void) {
    static const struct { const char *program, *use, *package; } tools[] = {
        { "cc", "C lessons and the translator", "gcc" }, { "g++", "the simulator", "g++" },
        { "bash", "the simulator's build script", "bash" },
        { "addr2line", "file and line in the simulator's reports", "binutils" },
        { "python3", "NumPy and Triton lessons (optional)", "python3" },
        { "nvcc", "lessons on a GPU (optional)", "the CUDA toolkit" },
    };
    int missing = 0;
    for (size_t i = 0; i < sizeof tools / sizeof *tools; i++) {
        const int have = have_program(tools[i].program);
        printf("%-4s %-10s %s%s%s\n", have ? "ok" : "--", tools[i].program, tools[i].use,
               have ? "" : "; install ", have ? "" : tools[i].package);
        missing += !have && i < 4;
    }
    printf("%-4s %-10s %s\n", have_gpu() ? "ok" : "--", "GPU", have_gpu() ? "lessons run on it by default" :
           "none: lessons run under the simulator, nothing is missing for that");
    return missing != 0;
}
