/* options.c — parse a command line by its option tables; every value is checked here, so that commands only
 * read. */
#include "options.h"
#include "terminal.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct value {
    const cli_option *option;
    char *text;                 /* as given; NULL = absent */
    char **items;               /* the text cut at commas (pairs: at slashes) */
    int count;
} value;

struct cli_arguments {
    const cli_command *command;
    value *values;
    int value_count;
    char **operands;
    int operand_count;
};

const cli_option cli_common_options[] = {
    { .name = "help", .summary = "Show this command's options and exit." },
    { .name = "quiet", .summary = "No progress and no remarks on standard error; errors still show." },
    { .name = NULL },
};

/* ---- tables ---- */

const cli_command *cli_command_named(const char *name) {
    for (const cli_command *const *c = cli_commands; *c; c++)
        if (!strcmp((*c)->name, name)) return *c;
    return NULL;
}

const cli_option *cli_command_option(const cli_command *command, int i) {
    for (const cli_option *const *table = command->tables; table && *table; table++)
        for (const cli_option *o = *table; o->name; o++)
            if (i-- == 0) return o;
    for (const cli_option *o = cli_common_options; o->name; o++)
        if (i-- == 0) return o;
    return NULL;
}

/* ---- one value ---- */

static int parse_integer(const char *text, int64_t *out) {
    char *end;
    errno = 0;
    const long long n = strtoll(text, &end, 10);
    if (end == text || errno) return 0;
    int shift = 0;
    if (*end == 'k' || *end == 'K') shift = 10;
    if (*end == 'm' || *end == 'M') shift = 20;
    if (shift) end++;
    const int64_t unit = (int64_t)1 << shift;
    if (*end || n > INT64_MAX / unit || n < INT64_MIN / unit) return 0;
    *out = n * unit;
    return 1;
}

static int parse_real(const char *text, double *out) {
    char *end;
    *out = strtod(text, &end);
    return end != text && !*end && isfinite(*out);
}

static int parse_pair(const char *text, int64_t *left, int64_t *right) {
    char copy[64];
    const char *comma = strchr(text, ',');
    if (!comma || (size_t)(comma - text) >= sizeof copy) return 0;
    memcpy(copy, text, (size_t)(comma - text));
    copy[comma - text] = 0;
    return parse_integer(copy, left) && parse_integer(comma + 1, right);
}

static int choice_index(const char *choices, const char *word) {
    const size_t length = strlen(word);
    for (int i = 0; length && *choices; i++) {
        const size_t n = strcspn(choices, " ");
        if (n == length && !memcmp(choices, word, n)) return i;
        choices += n + (choices[n] == ' ');
    }
    return -1;
}

static int check_integer(const cli_option *o, const char *item) {
    int64_t n;
    if (!parse_integer(item, &n)) {
        cli_error("--%s \"%s\": must be an integer", o->name, item);
        return CLI_USAGE;
    }
    if ((o->low || o->high) && (n < o->low || n > o->high)) {
        cli_error("--%s %s: must be %lld .. %lld", o->name, item, (long long)o->low, (long long)o->high);
        return CLI_USAGE;
    }
    return CLI_OK;
}

static int check_item(const cli_option *o, const char *item) {
    int64_t left, right;
    double x;
    if (o->type == CLI_INTEGER) return check_integer(o, item);
    if (o->type == CLI_REAL && !parse_real(item, &x))
        cli_error("--%s \"%s\": must be a finite number", o->name, item);
    else if (o->type == CLI_PAIR && !parse_pair(item, &left, &right))
        cli_error("--%s \"%s\": must be two integers, as in --%s 128,0", o->name, item, o->name);
    else if (o->type == CLI_CHOICE && choice_index(o->choices, item) < 0)
        cli_error("--%s \"%s\": must be one of: %s", o->name, item, o->choices);
    else if (o->type == CLI_FLAG && choice_index("0 1", item) < 0)
        cli_error("--%s=%s: must be 0 or 1", o->name, item);
    else if ((o->type == CLI_TEXT || o->type == CLI_FILE) && !*item)
        cli_error("--%s: must not be empty", o->name);
    else
        return CLI_OK;
    return CLI_USAGE;
}

/* Cut a copy of `text` at `separator` (0: don't). */
static int split(value *v, char separator) {
    int most = 1;
    for (const char *p = v->text; separator && *p; p++) most += *p == separator;
    v->items = calloc((size_t)most, sizeof *v->items);
    char *at = strdup(v->text);
    if (!v->items || !at) {
        free(at);
        return 0;
    }
    v->count = 0;
    for (char *end; at; at = end) {
        end = separator ? strchr(at, separator) : NULL;
        if (end) *end++ = 0;
        v->items[v->count++] = at;
    }
    return 1;
}

static void clear(value *v) {
    if (v->items) free(v->items[0]);
    free(v->items);
    free(v->text);
    *v = (value){ .option = v->option };
}

/* A list of names given twice is one longer list: --kernel a --kernel b. Other options: the last one
 * counts. */
static char *joined(const value *v, const char *text) {
    const size_t before = v->text ? strlen(v->text) + 1 : 0, length = strlen(text);
    char *all = malloc(before + length + 1);
    if (!all) return NULL;
    if (before) snprintf(all, before + 1, "%s,", v->text);
    memcpy(all + before, text, length + 1);
    return all;
}

static int set_value(const cli_command *command, value *v, const char *text) {
    const cli_option *o = v->option;
    const int list = o->list && (command->sweeps || o->list > 1);
    char *value_text = list && o->type == CLI_TEXT ? joined(v, text) : strdup(text);
    clear(v);
    v->text = value_text;
    if (!v->text || !split(v, !list ? 0 : o->type == CLI_PAIR ? '/' : ',')) {
        cli_error("out of memory");
        return CLI_USAGE;
    }
    if (!list && o->list && o->type == CLI_INTEGER && strchr(text, ',')) {
        cli_error("--%s %s: \"attn %s\" takes one value, not a list", o->name, text, command->name);
        return CLI_USAGE;
    }
    for (int i = 0; i < v->count; i++)
        if (check_item(o, v->items[i])) return CLI_USAGE;
    return CLI_OK;
}

/* ---- unknown options: the nearest known one ---- */

static int smaller(int a, int b) { return a < b ? a : b; }

/* Levenshtein distance of short words; longer ones count as far. */
static int distance(const char *a, const char *b) {
    enum { LONGEST = 32 };
    int row[LONGEST + 1];
    const int n = (int)strlen(a), m = (int)strlen(b);
    if (n > LONGEST || m > LONGEST) return LONGEST;
    for (int j = 0; j <= m; j++) row[j] = j;
    for (int i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            const int replace = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = smaller(replace, smaller(row[j], row[j - 1]) + 1);
        }
    }
    return row[m];
}

static void report_unknown(const cli_command *command, const char *name) {
    const char *nearest = NULL;
    int best = 3;   /* further away is not a typing error */
    const cli_option *o;
    for (int i = 0; (o = cli_command_option(command, i)); i++) {
        const int d = distance(name, o->name);
        if (d < best) best = d, nearest = o->name;
    }
    if (nearest) cli_error("unknown option --%s: did you mean --%s?", name, nearest);
    else cli_error("unknown option --%s: \"attn help %s\" lists the options", name, command->name);
}

/* ---- the whole line ---- */

static value *find(const cli_arguments *a, const char *name) {
    for (int i = 0; i < a->value_count; i++)
        if (!strcmp(a->values[i].option->name, name)) return &a->values[i];
    return NULL;
}

static int parse_option(cli_arguments *a, int count, char **words, int *at) {
    char name[64];
    const char *word = words[*at] + 2, *equals = strchr(word, '=');
    const size_t length = equals ? (size_t)(equals - word) : strlen(word);
    snprintf(name, sizeof name, "%.*s", (int)length, word);
    value *v = find(a, name);
    if (!v) {
        report_unknown(a->command, name);
        return CLI_USAGE;
    }
    if (v->option->type == CLI_FLAG) return set_value(a->command, v, equals ? equals + 1 : "1");
    if (!equals && *at + 1 >= count) {
        cli_error("--%s: needs a value (%s)", name, v->option->argument);
        return CLI_USAGE;
    }
    return set_value(a->command, v, equals ? equals + 1 : words[++*at]);
}

static int parse_words(cli_arguments *a, int count, char **words) {
    int only_operands = 0;
    for (int i = 0; i < count; i++) {
        const char *word = words[i];
        if (only_operands || word[0] != '-' || !word[1]) a->operands[a->operand_count++] = words[i];
        else if (!strcmp(word, "--")) only_operands = 1;
        else if (!strcmp(word, "-h")) set_value(a->command, find(a, "help"), "1");
        else if (word[1] != '-') {
            cli_error("unknown option %s: options are long, as in --causal", word);
            return CLI_USAGE;
        } else if (parse_option(a, count, words, &i)) return CLI_USAGE;
    }
    if (cli_flag(a, "help")) return CLI_OK;
    if (a->operand_count > a->command->most_operands) {
        cli_error("unexpected \"%s\"", a->operands[a->command->most_operands]);
        return CLI_USAGE;
    }
    if (a->operand_count < a->command->least_operands) {
        cli_error("missing %s", a->command->operands);
        return CLI_USAGE;
    }
    return CLI_OK;
}

int cli_parse(cli_arguments **out, const cli_command *command, int count, char **words) {
    *out = NULL;
    int options = 0;
    while (cli_command_option(command, options)) options++;
    cli_arguments *a = calloc(1, sizeof *a);
    if (a) {
        a->command = command;
        a->values = calloc((size_t)options, sizeof *a->values);
        a->operands = calloc((size_t)count + 1, sizeof *a->operands);
    }
    if (!a || !a->values || !a->operands) {
        cli_error("out of memory");
        cli_arguments_free(a);
        return CLI_USAGE;
    }
    a->value_count = options;
    for (int i = 0; i < options; i++) a->values[i].option = cli_command_option(command, i);
    if (parse_words(a, count, words)) {
        cli_arguments_free(a);
        return CLI_USAGE;
    }
    *out = a;
    return CLI_OK;
}

void cli_arguments_free(cli_arguments *a) {
    if (!a) return;
    for (int i = 0; i < a->value_count; i++) clear(&a->values[i]);
    free(a->values);
    free(a->operands);
    free(a);
}

/* ---- reading ---- */

int cli_given(const cli_arguments *a, const char *name) {
    const value *v = find(a, name);
    return v && v->text ? v->count : 0;
}

const char *cli_text(const cli_arguments *a, const char *name) {
    const value *v = find(a, name);
    return v ? v->text : NULL;
}

const char *cli_text_item(const cli_arguments *a, const char *name, int i) {
    const value *v = find(a, name);
    return v && i < v->count ? v->items[i] : NULL;
}

int cli_flag_item(const cli_arguments *a, const char *name, int i) {
    const char *item = cli_text_item(a, name, i);
    return item && !strcmp(item, "1");
}

int cli_flag(const cli_arguments *a, const char *name) { return cli_flag_item(a, name, 0); }

int64_t cli_integer_item(const cli_arguments *a, const char *name, int i) {
    const char *item = cli_text_item(a, name, i);
    int64_t n = 0;
    if (item) parse_integer(item, &n);
    return n;
}

int64_t cli_integer(const cli_arguments *a, const char *name, int64_t fallback) {
    return cli_given(a, name) ? cli_integer_item(a, name, 0) : fallback;
}

double cli_real_item(const cli_arguments *a, const char *name, int i) {
    const char *item = cli_text_item(a, name, i);
    double x = 0;
    if (item) parse_real(item, &x);
    return x;
}

double cli_real(const cli_arguments *a, const char *name, double fallback) {
    return cli_given(a, name) ? cli_real_item(a, name, 0) : fallback;
}

int cli_choice_item(const cli_arguments *a, const char *name, int i) {
    const char *item = cli_text_item(a, name, i);
    return item ? choice_index(find(a, name)->option->choices, item) : -1;
}

int cli_choice(const cli_arguments *a, const char *name, int fallback) {
    return cli_given(a, name) ? cli_choice_item(a, name, 0) : fallback;
}

void cli_pair_item(const cli_arguments *a, const char *name, int i, int64_t *left, int64_t *right) {
    const char *item = cli_text_item(a, name, i);
    *left = *right = -1;
    if (item) parse_pair(item, left, right);
}

int cli_operands(const cli_arguments *a) { return a->operand_count; }
const char *cli_operand(const cli_arguments *a, int i) { return a->operands[i]; }
