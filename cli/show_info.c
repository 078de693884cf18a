/* show_info.c — attn info: version, build, instruction sets, kernels, threads and limits; --json for
 * programs. */
#include "attn/attn.h"
#include "gpu.h"
#include "json_memory.h"
#include "options.h"
#include "terminal.h"
#include <stdlib.h>
#include <string.h>

enum { SCHEMA = 1 };

static const char *const isa_names[] = {
    "scalar",
#define ATTN_ISA(name, index, description) description,
#include "isa.def"
#undef ATTN_ISA
};
enum { ISAS = sizeof isa_names / sizeof *isa_names };

static const char *const dtype_names[] = { "", "f32", "f16", "bf16" };

static int next_kernel(int index, attn_kernel_info *info) {
    *info = (attn_kernel_info){ .struct_size = sizeof *info };
    return !attn_kernel_describe(index, info);
}

/* "f32 f16 bf16" */
static void dtype_list(uint32_t dtypes, char text[32]) {
    text[0] = 0;
    for (int d = ATTN_F32; d <= ATTN_BF16; d++)
        if (dtypes & 1u << d) {
            if (*text) strcat(text, " ");
            strcat(text, dtype_names[d]);
        }
}

/* One line per GPU, or why there is none. */
static void print_gpus(void) {
    check_gpu_info g;
    char why[256];
    for (int i = 0, count = 1; i < count; i++) {
        if (check_gpu_read(i, &g, why, sizeof why)) {
            printf("gpu: %s\n", why);
            return;
        }
        count = g.count;
        printf("gpu %d: %s, compute capability %d.%d, %d SMs, %.1f GB, L2 %d MB, driver for CUDA %d.%d\n", i,
               g.name, g.capability / 10, g.capability % 10, g.multiprocessors, g.memory_bytes * 1e-9,
               g.l2_bytes >> 20, g.driver / 1000, g.driver % 1000 / 10);
    }
}

static void print_text(void) {
    const char *bold = cli_style_code(stdout, CLI_BOLD), *plain = cli_style_code(stdout, CLI_PLAIN);
    printf("%sattn %s%s  %s\n", bold, attn_version_string(), plain, attn_build_info());
    printf("instruction sets compiled:");
    for (int i = 0; i < ISAS; i++) printf(" %s", isa_names[i]);
    const char *cap = getenv("ATTN_CPU_ISA");
    printf("; in use: %s%s%s\n", attn_cpu_isa(), cap ? ", limited by ATTN_CPU_ISA=" : "", cap ? cap : "");
    printf("threads: %d\n", attn_cpu_threads());
    print_gpus();
    printf("limits: dimensions 1 .. 1024; lengths, heads and batch up to 2^40; 64-bit strides\n");
    printf("%skernels, best first:%s\n", bold, plain);
    attn_kernel_info k;
    for (int i = 0; next_kernel(i, &k); i++) {
        char dtypes[32];
        dtype_list(k.dtypes, dtypes);
        printf("  %-28s %-4s  %-12s  %s\n", k.name, k.device == ATTN_CUDA ? "cuda" : "cpu", dtypes,
               k.summary);
        if (k.unavailable)
            printf("  %28s %snot here: %s%s\n", "", cli_style_code(stdout, CLI_YELLOW), k.unavailable, plain);
    }
}

static void add_kernel(cJSON *list, const attn_kernel_info *k) {
    cJSON *row = cJSON_CreateObject(), *dtypes = cJSON_AddArrayToObject(row, "dtypes");
    cJSON_AddStringToObject(row, "name", k->name);
    cJSON_AddStringToObject(row, "device", k->device == ATTN_CUDA ? "cuda" : "cpu");
    cJSON_AddStringToObject(row, "summary", k->summary);
    for (int d = ATTN_F32; d <= ATTN_BF16; d++)
        if (k->dtypes & 1u << d) cJSON_AddItemToArray(dtypes, cJSON_CreateString(dtype_names[d]));
    cJSON_AddBoolToObject(row, "available", !k->unavailable);
    if (k->unavailable) cJSON_AddStringToObject(row, "reason", k->unavailable);
    cJSON_AddItemToArray(list, row);
}

static void add_gpus(cJSON *root) {
    cJSON *list = cJSON_AddArrayToObject(root, "gpus");
    check_gpu_info g;
    char why[256];
    for (int i = 0, count = 1; i < count; i++) {
        if (check_gpu_read(i, &g, why, sizeof why)) {
            cJSON_AddStringToObject(root, "gpu_reason", why);
            return;
        }
        count = g.count;
        cJSON *row = cJSON_CreateObject();
        cJSON_AddStringToObject(row, "name", g.name);
        cJSON_AddNumberToObject(row, "compute_capability", g.capability);
        cJSON_AddNumberToObject(row, "multiprocessors", g.multiprocessors);
        cJSON_AddNumberToObject(row, "memory_bytes", g.memory_bytes);
        cJSON_AddNumberToObject(row, "l2_bytes", g.l2_bytes);
        cJSON_AddNumberToObject(row, "driver", g.driver);
        cJSON_AddItemToArray(list, row);
    }
}

static int print_json(void) {
    json_memory_watch();
    cJSON *root = cJSON_CreateObject();
    cJSON_AddNumberToObject(root, "schema", SCHEMA);
    cJSON_AddStringToObject(root, "version", attn_version_string());
    cJSON_AddStringToObject(root, "build", attn_build_info());
    cJSON *isas = cJSON_AddArrayToObject(root, "isa_compiled");
    for (int i = 0; i < ISAS; i++) cJSON_AddItemToArray(isas, cJSON_CreateString(isa_names[i]));
    cJSON_AddStringToObject(root, "isa", attn_cpu_isa());
    cJSON_AddNumberToObject(root, "threads", attn_cpu_threads());
    add_gpus(root);
    cJSON *limits = cJSON_AddObjectToObject(root, "limits");
    cJSON_AddNumberToObject(limits, "max_dim", 1024);
    cJSON_AddNumberToObject(limits, "max_length", 1099511627776.0);
    cJSON *kernels = cJSON_AddArrayToObject(root, "kernels");
    attn_kernel_info k;
    for (int i = 0; next_kernel(i, &k); i++) add_kernel(kernels, &k);
    return json_memory_print(root) ? CLI_FAILED : CLI_OK;
}

static int run(const cli_arguments *a) {
    if (cli_flag(a, "json")) return print_json();
    print_text();
    return CLI_OK;
}

static const cli_option options[] = {
    { .name = "json", .summary = "Print JSON (schema 1)." },
    { .name = NULL },
};
static const cli_option *const tables[] = { options, NULL };

const cli_command cli_command_info = {
    .name = "info", .summary = "Show version, build, instruction sets, kernels, threads and limits.",
    .tables = tables, .run = run,
};
