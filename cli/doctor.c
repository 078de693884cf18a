/* doctor.c — attn doctor: what on this machine makes attention slow, wrong or impossible, each with a
 * remedy. */
#include "attn/attn.h"
#include "gpu.h"
#include "options.h"
#include "terminal.h"
#include <math.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef enum verdict { GOOD, NOTE, BAD } verdict;   /* a NOTE leaves the exit code 0 */

typedef struct finding { verdict verdict; char text[400], remedy[300]; } finding;

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static void found(finding *f, verdict v, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    f->verdict = v;
    vsnprintf(f->text, sizeof f->text, format, arguments);
    va_end(arguments);
}

static void remedy(finding *f, const char *text) { snprintf(f->remedy, sizeof f->remedy, "%s", text); }

/* ---- threads ---- */

/* CPUs' worth of time that cgroup v2 grants, 0 = no limit. */
static double cgroup_quota(void) {
    char text[64] = "";
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (!file) return 0;
    if (!fgets(text, sizeof text, file)) text[0] = 0;
    fclose(file);
    double quota, period;
    return sscanf(text, "%lf %lf", &quota, &period) == 2 && period > 0 ? quota / period : 0;
}

static int affinity(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
}

static void check_threads(finding *f) {
    const int threads = attn_cpu_threads(), cpus = affinity();
    const double quota = cgroup_quota();
    const char *wanted = getenv("ATTN_NUM_THREADS");
    char limit[64] = "no quota";
    if (quota > 0) snprintf(limit, sizeof limit, "a quota of %.2g CPUs", quota);
    found(f, GOOD, "%d thread%s by default; affinity allows %d CPU%s, the cgroup sets %s", threads,
          threads == 1 ? "" : "s", cpus, cpus == 1 ? "" : "s", limit);
    if (wanted && atoi(wanted) < 1) {
        f->verdict = BAD;
        snprintf(f->text, sizeof f->text, "ATTN_NUM_THREADS=%s is not a number of threads", wanted);
        remedy(f, "set it to 1 or more, or unset it");
    } else if (threads > cpus || (quota > 0 && threads > ceil(quota))) {
        f->verdict = BAD;
        remedy(f, "more threads than CPUs: lower ATTN_NUM_THREADS, or raise the affinity or the quota");
    } else if (threads < cpus && !(quota > 0 && threads >= floor(quota))) {
        f->verdict = NOTE;
        remedy(f, "fewer threads than CPUs: raise ATTN_NUM_THREADS if the others are idle");
    }
}

/* ---- instruction sets ---- */

static void check_isa(finding *f) {
    static const char *const names[] = {
        "scalar",
#define ATTN_ISA(name, index, description) description,
#include "isa.def"
#undef ATTN_ISA
    };
    const char *cap = getenv("ATTN_CPU_ISA");
    found(f, cap ? NOTE : GOOD, "kernels may use up to %s%s%s", attn_cpu_isa(), cap ? "; ATTN_CPU_ISA=" : "",
          cap ? cap : "");
    if (!cap) return;
    remedy(f, "unset ATTN_CPU_ISA to allow all that the CPU has");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(cap, names[i])) return;
    found(f, BAD, "ATTN_CPU_ISA=%s is not known and has no effect", cap);
    remedy(f, "use a name that \"attn info\" lists under instruction sets, or unset it");
}

/* ---- floating point ---- */

/* A library linked with -ffast-math turns denormal numbers off for the whole process. */
static void check_denormals(finding *f) {
    volatile float tiny = 1e-40f, one = 1.0f;
    const volatile float kept = tiny * one;
    if (kept > 0) {
        found(f, GOOD, "denormal numbers are kept");
        return;
    }
    found(f, BAD, "denormal numbers are flushed to zero in this process");
    remedy(f, "something preloaded was linked with -ffast-math: check LD_PRELOAD");
}

/* One query, two keys: weights e^1 / (e^1 + e^0) and the rest. */
static void check_answer(finding *f) {
    const float q[1] = { 1 }, k[2] = { 1, 0 }, v[2] = { 3, -1 };
    float o[1] = { 0 }, lse[1] = { 0 };
    attn_problem p = ATTN_PROBLEM_INIT;
    p.batch = p.q_heads = p.q_len = p.qk_dim = 1;
    p.kv_len = 2;
    attn_tensors t = ATTN_TENSORS_INIT;
    t.q = q, t.k = k, t.v = v, t.o = o, t.lse = lse;
    const attn_status status = attn_attend(&p, &t, NULL);
    const double e = exp(1), expected = (3 * e - 1) / (e + 1), expected_lse = log(e + 1);
    if (!status && fabs((double)o[0] - expected) <= 1e-6 && fabs((double)lse[0] - expected_lse) <= 1e-6) {
        found(f, GOOD, "the library computes a known answer");
        return;
    }
    if (status) found(f, BAD, "the library fails on a known answer: %s", attn_last_error());
    else found(f, BAD, "the library computes %.9g instead of %.9g", (double)o[0], expected);
    remedy(f, "run \"attn check\"; ATTN_CPU_ISA=scalar avoids the vector kernels");
}

static void check_version(finding *f) {
    if (attn_version() == ATTN_VERSION) {
        found(f, GOOD, "command and library are version %s", attn_version_string());
        return;
    }
    found(f, BAD, "the library file is version %s, the command was built for another", attn_version_string());
    remedy(f, "two installations are mixed: check LD_LIBRARY_PATH");
}

/* ---- tools and devices ---- */

static int in_path(const char *program) {
    if (strchr(program, '/')) return !access(program, X_OK);
    char *paths = strdup(getenv("PATH") ? getenv("PATH") : ""), *rest = NULL;
    int there = 0;
    for (char *folder = paths ? strtok_r(paths, ":", &rest) : NULL; folder && !there;
         folder = strtok_r(NULL, ":", &rest)) {
        char candidate[4096];
        snprintf(candidate, sizeof candidate, "%s/%s", folder, program);
        there = !access(candidate, X_OK);
    }
    free(paths);
    return there;
}

static void check_compiler(finding *f) {
    const char *set = getenv("CC"), *compiler = set && *set ? set : "cc";
    char program[256];
    snprintf(program, sizeof program, "%.*s", (int)strcspn(compiler, " "), compiler);
    if (in_path(program)) {
        found(f, GOOD, "plug-in kernels (--kernel FILE.c) are built with %s", compiler);
        return;
    }
    found(f, NOTE, "no compiler \"%s\": plug-in kernels (--kernel FILE.c) can't be built", program);
    remedy(f, "install one (apt install gcc) or set CC");
}

static void check_cuda(finding *f) {
    check_gpu_info gpu;
    char why[256];
    const int built = strstr(attn_build_info(), "CUDA kernels") != NULL;
    if (check_gpu_read(0, &gpu, why, sizeof why)) {
        found(f, built ? NOTE : GOOD, "no CUDA device: %s%s", why,
              built ? "" : "; this library has no CUDA kernels either");
        if (built) remedy(f, "CUDA problems need an NVIDIA driver for CUDA 12 or later and a device");
        return;
    }
    found(f, GOOD, "%d CUDA device%s, %s (sm_%d), driver for CUDA %d.%d", gpu.count,
          gpu.count == 1 ? "" : "s", gpu.name, gpu.capability, gpu.driver / 1000, gpu.driver % 1000 / 10);
    if (built && gpu.capability >= 80) return;
    f->verdict = NOTE;
    remedy(f, built ? "the CUDA kernels need sm_80 or later"
                    : "it is unused: build with nvcc in PATH and -DATTN_CUDA=ON");
}

static void check_governor(finding *f) {
    char text[64] = "";
    FILE *file = fopen("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "r");
    if (file) {
        if (!fgets(text, sizeof text, file)) text[0] = 0;
        fclose(file);
    }
    text[strcspn(text, "\n")] = 0;
    const int slow = *text && strcmp(text, "performance");
    found(f, slow ? NOTE : GOOD, "CPU frequency governor: %s", *text ? text : "not visible here");
    if (slow) remedy(f, "for steady timings: cpupower frequency-set -g performance");
}

/* ---- the command ---- */

static void print(const finding *f) {
    static const char *const words[] = { "ok", "note", "BAD" };
    static const cli_style styles[] = { CLI_GREEN, CLI_YELLOW, CLI_RED };
    printf("%s%-4s%s  %s\n", cli_style_code(stdout, styles[f->verdict]), words[f->verdict],
           cli_style_code(stdout, CLI_PLAIN), f->text);
    if (*f->remedy) printf("      -> %s\n", f->remedy);
}

static int run(const cli_arguments *a) {
    static void (*const checks[])(finding *) = { check_version, check_answer,  check_denormals,
                                                 check_isa,     check_threads, check_compiler,
                                                 check_cuda,    check_governor };
    (void)a;
    int bad = 0;
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        finding f = { GOOD, "", "" };
        checks[i](&f);
        print(&f);
        bad += f.verdict == BAD;
    }
    return bad ? CLI_FAILED : CLI_OK;
}

const cli_command cli_command_doctor = {
    .name = "doctor",
    .summary = "Look for what makes attention slow, wrong or impossible here, with remedies.",
    .run = run,
    .notes = "Exit code 1 if something is bad; notes don't count.",
};
