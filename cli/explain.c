/* explain.c — attn explain: which kernel computes a problem, and why the others don't; the planner's own
 * answer. */
#include "problem_options.h"
#include "terminal.h"
#include <stdlib.h>
#include <string.h>

static void print_line(const char *line, int length) {
    const char *verdict = memchr(line, ' ', (size_t)length);
    const char *color = "";
    if (verdict && (size_t)(line + length - verdict) >= 6 && !memcmp(line + length - 6, "chosen", 6))
        color = cli_style_code(stdout, CLI_GREEN);
    printf("  %s%.*s%s\n", color, length, line, *color ? cli_style_code(stdout, CLI_PLAIN) : "");
}

static int explain(const attn_problem *problem, const attn_options *options) {
    attn_problem resolved = *problem;
    if (attn_problem_resolve(&resolved)) {
        cli_error("%s", attn_last_error());
        return CLI_USAGE;
    }
    char described[1024];
    cli_problem_text(problem, described, sizeof described);
    printf("%s%s%s\n", cli_style_code(stdout, CLI_BOLD), described, cli_style_code(stdout, CLI_PLAIN));
    const int length = attn_explain(problem, options, NULL, 0);
    char *text = malloc((size_t)length + 1);
    if (!text) {
        cli_error("out of memory");
        return CLI_FAILED;
    }
    attn_explain(problem, options, text, (size_t)length + 1);
    for (const char *line = text, *end; (end = strchr(line, '\n')); line = end + 1)
        print_line(line, (int)(end - line));
    free(text);
    attn_plan *plan;
    const attn_status status = attn_plan_create(&plan, problem, options);
    if (status) {
        cli_error("%s", attn_last_error());
        return status == ATTN_INVALID ? CLI_USAGE : CLI_FAILED;
    }
    printf("  plan: %s, %zu bytes of workspace, at most %d thread%s\n", attn_plan_kernel(plan),
           attn_plan_workspace(plan), attn_plan_threads(plan), attn_plan_threads(plan) == 1 ? "" : "s");
    attn_plan_destroy(plan);
    return CLI_OK;
}

static int run(const cli_arguments *a) {
    if (cli_given(a, "kernel") > 1) {
        cli_error("--kernel %s: one kernel at a time", cli_text(a, "kernel"));
        return CLI_USAGE;
    }
    attn_problem *problems;
    int count, code = cli_problem_list(a, &problems, &count);
    const attn_options options = cli_engine(a);
    for (int i = 0; !code && i < count; i++) {
        if (cli_choice(a, "pass", 0)) {
            problems[i].pass = ATTN_KV_APPEND;
            problems[i].new_len = problems[i].q_len;
        }
        code = explain(&problems[i], &options);
    }
    free(problems);
    return code;
}

static const cli_option explain_options[] = {
    { .name = "pass", .type = CLI_CHOICE, .argument = "PASS", .choices = "forward append",
      .summary = "Attention, or writing --sq new rows per sequence into a cache of --sk (forward)." },
    { .name = NULL },
};
static const cli_option *const tables[] = { explain_options, cli_shape_options, cli_mask_options,
                                            cli_engine_options, NULL };

const cli_command cli_command_explain = {
    .name = "explain", .summary = "Say which kernel computes a problem, and why the others don't.",
    .sweeps = 1, .tables = tables, .run = run,
    .notes = "Exit code 1 means that no kernel here computes the problem, 2 that it is malformed.\n"
             "Example:  attn explain --hq 32 --hkv 8 --sq 1 --sk 16k --d 128 --dtype bf16",
};
