/* inspect.c — attn inspect: what an npy or safetensors file holds, and at which byte it is wrong. */
#include "json_memory.h"
#include "options.h"
#include "tensor_file.h"
#include "terminal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct statistics { double low, high; int64_t nans, infinities; } statistics;

static statistics measure(const tensor *t) {
    statistics s = { INFINITY, -INFINITY, 0, 0 };
    for (int64_t i = 0; i < t->count; i++) {
        const double x = tensor_element(t, i);
        if (isnan(x)) s.nans++;
        else if (isinf(x)) s.infinities++;
        else {
            if (x < s.low) s.low = x;
            if (x > s.high) s.high = x;
        }
    }
    return s;
}

static int is_finite_range(const statistics *s) { return s->low <= s->high; }

/* ---- text ---- */

static void print_tensor(const tensor *t, int with_values) {
    char shape[256];
    tensor_shape_text(t, shape, sizeof shape);
    const int pad = 24 - (int)strlen(*t->name ? t->name : "(array)");
    fputs("  ", stdout);
    cli_print_clean(stdout, *t->name ? t->name : "(array)");
    printf("%*s %-5s %-20s bytes %lld .. %lld", pad > 0 ? pad : 0, "", tensor_types[t->type].name, shape,
           (long long)t->offset, (long long)t->offset + (long long)t->bytes);
    if (with_values && t->count) {
        const statistics s = measure(t);
        if (is_finite_range(&s)) printf("  min %.6g max %.6g", s.low, s.high);
        if (s.nans || s.infinities)
            printf("  %s%lld NaN, %lld infinite%s", cli_style_code(stdout, CLI_YELLOW), (long long)s.nans,
                   (long long)s.infinities, cli_style_code(stdout, CLI_PLAIN));
    }
    putchar('\n');
}

static const char *format_name(const tensor_file *f) {
    return f->format == FORMAT_NPY ? "npy" : "safetensors";
}

static void print_file(const tensor_file *f, int with_values) {
    printf("%s%s%s: %s, %zu bytes, %d tensor%s\n", cli_style_code(stdout, CLI_BOLD), f->path,
           cli_style_code(stdout, CLI_PLAIN), format_name(f), f->size, f->count, f->count == 1 ? "" : "s");
    for (const cJSON *m = cJSON_GetObjectItemCaseSensitive(f->named.json, "__metadata__"),
                     *item = m ? m->child : NULL; item; item = item->next) {
        fputs("  ", stdout);
        cli_print_clean(stdout, item->string);
        fputs(" = ", stdout);
        cli_print_clean(stdout, item->valuestring);
        putchar('\n');
    }
    for (int i = 0; i < f->count; i++) print_tensor(&f->tensors[i], with_values);
}

/* ---- JSON ---- */

static void add_tensor(cJSON *list, const tensor *t, int with_values) {
    cJSON *row = cJSON_CreateObject();
    cJSON_AddStringToObject(row, "name", t->name);
    cJSON_AddStringToObject(row, "dtype", tensor_types[t->type].name);
    cJSON *shape = cJSON_AddArrayToObject(row, "shape");
    for (int d = 0; d < t->dims; d++) cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)t->shape[d]));
    cJSON_AddNumberToObject(row, "offset", (double)t->offset);
    cJSON_AddNumberToObject(row, "bytes", (double)t->bytes);
    if (with_values) {
        const statistics s = measure(t);
        if (is_finite_range(&s)) {
            cJSON_AddNumberToObject(row, "min", s.low);
            cJSON_AddNumberToObject(row, "max", s.high);
        }
        cJSON_AddNumberToObject(row, "nan", (double)s.nans);
        cJSON_AddNumberToObject(row, "infinite", (double)s.infinities);
    }
    cJSON_AddItemToArray(list, row);
}

static cJSON *json_file(const tensor_file *f, const tensor_error *error, int with_values) {
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "path", f->path);
    cJSON_AddNumberToObject(root, "bytes", (double)f->size);
    if (error) {
        cJSON_AddStringToObject(root, "error", error->text);
        cJSON_AddNumberToObject(root, "error_byte", (double)error->byte);
        return root;
    }
    cJSON_AddStringToObject(root, "format", format_name(f));
    cJSON *list = cJSON_AddArrayToObject(root, "tensors");
    for (int i = 0; i < f->count; i++) add_tensor(list, &f->tensors[i], with_values);
    return root;
}

/* ---- the command ---- */

static int inspect(const char *path, int with_values, int as_json, cJSON *json) {
    tensor_file *f;
    tensor_error error;
    if (tensor_file_read(&f, path)) return CLI_FAILED;
    const int bad = tensor_file_parse(f, &error);
    if (bad) cli_error("%s: byte %lld: %s", path, (long long)error.byte, error.text);
    if (as_json) cJSON_AddItemToArray(json, json_file(f, bad ? &error : NULL, with_values));
    else if (!bad) print_file(f, with_values);
    tensor_file_close(f);
    return bad ? CLI_FAILED : CLI_OK;
}

static int run(const cli_arguments *a) {
    const int as_json = cli_flag(a, "json");
    int code = CLI_OK;
    json_memory_watch();
    cJSON *root = as_json ? cJSON_CreateObject() : NULL;
    if (root) cJSON_AddNumberToObject(root, "schema", 1);
    cJSON *files = as_json ? cJSON_AddArrayToObject(root, "files") : NULL;
    for (int i = 0; i < cli_operands(a); i++)
        if (inspect(cli_operand(a, i), !cli_flag(a, "header"), as_json, files)) code = CLI_FAILED;
    if (as_json && json_memory_print(root)) code = CLI_FAILED;
    return code;
}

static const cli_option options[] = {
    { .name = "header",
      .summary = "Only the header: don't read the data for minimum, maximum and NaN count." },
    { .name = "json", .summary = "Print JSON (schema 1)." },
    { .name = NULL },
};
static const cli_option *const tables[] = { options, NULL };

const cli_command cli_command_inspect = {
    .name = "inspect", .summary = "Show what .npy and .safetensors files hold, and where they are damaged.",
    .operands = "FILE...", .least_operands = 1, .most_operands = 1 << 20, .tables = tables, .run = run,
    .notes = "Exit code 1 if a file can't be read or is malformed; the message names the byte.",
};
