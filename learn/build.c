/* build.c — nvcc for the GPU, or translator + g++ + simulator for the CPU; programs run as children with a time limit. */
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

/* One path out of parts; all of them have room for PATH bytes, and a longer one is refused when it is opened. */
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
                fprintf(stderr, "learn: %s: %s (set LEARN_BUILD to a folder that can be written)\n", part, strerror(errno));
                return 0;
            }
        }
    return 1;
}

/* ---- children ---- */

/* Run words[0] with its arguments; standard output to `output` if given. @return exit code, 128 + signal, 124 = too long,
 * 127 = no such program. */
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
    char *const words[] = { "sh", "-c", "nvidia-smi -L >/dev/null 2>&1 && command -v nvcc >/dev/null 2>&1", NULL };
    return run_words(words, NULL, NULL, 20) == 0;
}

/* ---- building ---- */

static int newer(const char *a, const char *b) {
    struct stat sa, sb;
    if (stat(b, &sb)) return 1;
    return stat(a, &sa) || sa.st_mtime > sb.st_mtime;
}

static int compile(char *const *words, const char *output, const char *what) {
    const int code = run_words(words, output, NULL, COMPILE_SECONDS);
    if (code == 127) fprintf(stderr, "learn: %s is missing (learn doctor says what to install)\n", words[0]);
    else if (code == 124) fprintf(stderr, "learn: %s: the compiler took more than %d s\n", what, COMPILE_SECONDS);
    else if (code) fprintf(stderr, "learn: %s does not compile\n", what);
    return code;
}

/* The simulator's own objects and the translator, made once. */
static int build_simulator(const char *build) {
    static const char *const parts[] = { "sim_threads", "sim_memory", "sim_host" };
    char source[PATH], object[PATH], header[PATH];
    join(source, "%s/sim/cu2cpp.c", learn_folder());
    join(object, "%s/cu2cpp", build);
    if (newer(source, object) && compile((char *[]){ "cc", "-std=c11", "-O1", source, "-o", object, NULL }, NULL, source))
        return 1;
    for (int i = 0; i < 3; i++) {
        join(source, "%s/sim/%s.cpp", learn_folder(), parts[i]);
        join(object, "%s/%s.o", build, parts[i]);
        join(header, "%s/sim/cuda_runtime.h", learn_folder());
        if (!newer(source, object) && !newer(header, object)) continue;
        if (compile((char *[]){ "g++", "-std=c++17", "-O2", "-c", source, "-o", object, NULL }, NULL, source)) return 1;
    }
    return 0;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Loads and stores stay as written (no vectoriser, no merging): what is counted is what the source says. */
static int build_simulated(const char *file, const char *build, const char *program) {
    char translated[PATH], object[PATH], translator[PATH], include[PATH], beside[PATH], basics[PATH];
    char parts[3][PATH];
    if (build_simulator(build)) return 1;
    join(translator, "%s/cu2cpp", build);
    join(translated, "%s/%s", build, base_name(file));
    join(object, "%s.o", program);
    join(include, "-I%s/sim", learn_folder());
    join(basics, "-I%s/cuda_basics", learn_folder());
    join(beside, "-I%.*s", (int)(base_name(file) - file), base_name(file) == file ? "./" : file);
    if (base_name(file) == file) join(beside, "-I.");
    if (compile((char *[]){ translator, (char *)file, NULL }, translated, file)) return 1;
    if (compile((char *[]){ "g++", "-std=c++17", "-x", "c++", "-O1", "-g", "-w", "-fno-tree-vectorize", "-fno-tree-sra",
                            "-fno-store-merging", "-fno-tree-forwprop", "-fsanitize=thread", "-c", include, beside, basics,
                            translated, "-o", object, NULL }, NULL, file))
        return 1;
    static const char *const names[] = { "sim_threads", "sim_memory", "sim_host" };
    for (int i = 0; i < 3; i++) join(parts[i], "%s/%s.o", build, names[i]);
    return compile((char *[]){ "g++", "-no-pie", object, parts[0], parts[1], parts[2], "-o", (char *)program, NULL }, NULL,
                   file);
}

static int build_for_gpu(const char *file, const char *program) {
    char basics[PATH];
    join(basics, "-I%s/cuda_basics", learn_folder());
    return compile((char *[]){ "nvcc", "-O3", "-std=c++17", "-arch=native", basics, (char *)file, "-o", (char *)program, NULL },
                   NULL, file);
}

/* ---- running ---- */

static int explain_exit(int code, const char *file) {
    if (code == 124) printf("learn: %s ran for more than %d s: a barrier that not all threads reach, or a loop without end?\n",
                            file, RUN_SECONDS);
    else if (code > 128) printf("learn: %s died of signal %d (%s)\n", file, code - 128, strsignal(code - 128));
    return code;
}

/* Plug-in kernels are judged by the attn command that lies beside this program. */
static int run_attn(const char *file, int cuda, int judge_only) {
    char attn[PATH];
    const ssize_t n = readlink("/proc/self/exe", attn, PATH - 8);
    if (n <= 0) return 127;
    attn[n] = 0;
    strcpy(strrchr(attn, '/') + 1, "attn");
    char *const judge[WORDS] = { attn, "check", "--kernel", (char *)file, "--b", "2", "--hq", "4", "--hkv", "2", "--sq",
                                 "65,33", "--sk", "130", "--d", "40", "--dtype", "f32", "--causal",
                                 cuda ? "--backend" : NULL, "cuda", NULL };
    if (judge_only) return explain_exit(run_words(judge, NULL, NULL, RUN_SECONDS), file);
    char *const words[WORDS] = { attn, "bench", "--kernel", (char *)file, "--b", "1", "--hq", "4", "--sq", "1024", "--d", "64",
                                 "--dtype", "f32", cuda ? "--backend" : NULL, "cuda", NULL };
    return explain_exit(run_words(words, NULL, NULL, RUN_SECONDS), file);
}

static int run_python(const char *file, int lesson_number) {
    const char *python = getenv("PYTHON") ? getenv("PYTHON") : "python3";
    if (!getenv("TRITON_INTERPRET") && !have_gpu()) setenv("TRITON_INTERPRET", "1", 1);
    char path[3 * PATH];         /* exercises import the lessons that they change */
    snprintf(path, sizeof path, "%s/triton_basics", learn_folder());
    if (!strstr(file, "triton_basics") && lesson_number > 9)
        snprintf(path, sizeof path, "%s/%s", learn_folder(), lesson_number < 19 ? "flash_attention" : "flash_mla");
    setenv("PYTHONPATH", path, 1);
    return explain_exit(run_words((char *[]){ (char *)python, (char *)file, NULL }, NULL, NULL, RUN_SECONDS), file);
}

int learn_execute(const learn_lesson *lesson, const char *given, learn_where where, const char *facts) {
    char file[PATH], program[PATH];
    if (given) join(file, "%s", given);
    else join(file, "%s/%s", learn_folder(), lesson->path);
    if (access(file, R_OK)) {
        fprintf(stderr, "learn: %s: %s\n", file, strerror(errno));
        return 2;
    }
    if (lesson->kind == PYTHON_PROGRAM) return run_python(file, atoi(lesson->number));
    if (lesson->kind == C_KERNEL || lesson->kind == CUDA_KERNEL) return run_attn(file, lesson->kind == CUDA_KERNEL, given != NULL);
    const char *build = learn_build_folder();
    if (!make_folders(build)) return 1;
    join(program, "%s/%s", build, base_name(file));
    char *dot = strrchr(program, '.');
    if (dot) *dot = 0;
    if (lesson->kind == C_PROGRAM) {
        if (compile((char *[]){ "cc", "-std=c11", "-O3", "-march=native", file, "-o", program, "-lm", NULL }, NULL, file))
            return 1;
    } else if (where == LEARN_SIMULATOR || (where == LEARN_ANYWHERE && !have_gpu())) {
        if (build_simulated(file, build, program)) return 1;
    } else if (build_for_gpu(file, program)) {
        return 1;
    }
    return explain_exit(run_words((char *[]){ program, NULL }, NULL, facts, RUN_SECONDS), file);
}

int learn_doctor(void) {
    static const struct { const char *program, *use, *package; } tools[] = {
        { "cc", "C lessons and the translator", "gcc" }, { "g++", "the simulator", "g++" },
        { "addr2line", "file and line in the simulator's reports", "binutils" },
        { "python3", "NumPy and Triton lessons (optional)", "python3" },
        { "nvcc", "lessons on a GPU (optional)", "the CUDA toolkit" },
    };
    int missing = 0;
    for (size_t i = 0; i < sizeof tools / sizeof *tools; i++) {
        const int have = have_program(tools[i].program);
        printf("%-4s %-10s %s%s%s\n", have ? "ok" : "--", tools[i].program, tools[i].use, have ? "" : "; install ",
               have ? "" : tools[i].package);
        missing += !have && i < 3;
    }
    printf("%-4s %-10s %s\n", have_gpu() ? "ok" : "--", "GPU", have_gpu() ? "lessons run on it by default" :
           "none: lessons run under the simulator, nothing is missing for that");
    return missing != 0;
}
