/* fuzz_options.c — any bytes as a command line: refused, or problems that the library resolves or refuses. */
#include "problem_options.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static const cli_option *const tables[] = { cli_shape_options, cli_mask_options, cli_engine_options, NULL };
static const cli_command command = {
    .name = "fuzz", .summary = "-", .operands = "FILE", .most_operands = 2, .sweeps = 1, .tables = tables
};
const cli_command *const cli_commands[] = { &command, NULL };

/* Everything that can be asked of every option must answer. */
static void read_all(const cli_arguments *a) {
    const cli_option *o;
    int64_t left, right;
    for (int i = 0; (o = cli_command_option(&command, i)); i++)
        for (int k = 0; k <= cli_given(a, o->name); k++) {   /* one past the last, too */
            cli_text_item(a, o->name, k);
            cli_integer_item(a, o->name, k);
            cli_real_item(a, o->name, k);
            cli_flag_item(a, o->name, k);
            cli_pair_item(a, o->name, k, &left, &right);
            if (o->choices) cli_choice_item(a, o->name, k);
        }
}

static void use(const cli_arguments *a) {
    attn_problem *problems;
    int count;
    read_all(a);
    if (cli_problem_list(a, &problems, &count)) return;
    for (int i = 0; i < count && i < 50; i++) {
        char text[2048];
        if (cli_problem_text(&problems[i], text, sizeof text) >= (int)sizeof text) abort();
        if (attn_problem_resolve(&problems[i]) && !attn_last_error()[0]) abort();
    }
    free(problems);
}

/* Words end at newlines. */
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    enum { MOST = 64 };
    char *text = malloc(size + 1), *words[MOST], *rest = NULL;
    int count = 0;
    if (!text) return 0;
    memcpy(text, bytes, size);
    text[size] = 0;
    for (char *word = strtok_r(text, "\n", &rest); word && count < MOST; word = strtok_r(NULL, "\n", &rest))
        words[count++] = word;
    cli_arguments *a;
    if (!cli_parse(&a, &command, count, words)) use(a);
    cli_arguments_free(a);
    free(text);
    return 0;
}
