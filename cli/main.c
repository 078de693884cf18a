/* main.c — attn: find the command, parse its options, run it; exit codes 0 ok, 1 failure, 2 usage, 130
 * interrupted. */
#include "attn/attn.h"
#include "options.h"
#include "output.h"
#include "terminal.h"
#include <errno.h>
#include <string.h>

#define CLI_COMMAND(name) extern const cli_command cli_command_##name;
#include "commands.def"
#undef CLI_COMMAND

const cli_command *const cli_commands[] = {
#define CLI_COMMAND(name) &cli_command_##name,
#include "commands.def"
#undef CLI_COMMAND
    NULL
};

/* ---- help and completion are commands too ---- */

static const cli_option help_options[] = {
    { .name = "man", .summary = "Print the manual page (mdoc source; view with \"man -l\")." },
    { .name = NULL },
};
static const cli_option *const help_tables[] = { help_options, NULL };

static int run_help(const cli_arguments *a) {
    if (cli_flag(a, "man")) {
        cli_print_man(stdout);
        return CLI_OK;
    }
    const cli_command *about = cli_operands(a) ? cli_command_named(cli_operand(a, 0)) : NULL;
    if (cli_operands(a) && !about) {
        cli_error("no command \"%s\": \"attn help\" lists them", cli_operand(a, 0));
        return CLI_USAGE;
    }
    cli_print_help(stdout, about);
    return CLI_OK;
}

const cli_command cli_command_help = {
    .name = "help", .summary = "Show what a command does and its options.", .operands = "[COMMAND]",
    .most_operands = 1, .tables = help_tables, .run = run_help,
};

static int run_completion(const cli_arguments *a) {
    if (!cli_print_completion(stdout, cli_operand(a, 0))) return CLI_OK;
    cli_error("no completion for \"%s\": bash, zsh or fish", cli_operand(a, 0));
    return CLI_USAGE;
}

const cli_command cli_command_completion = {
    .name = "completion", .summary = "Print a completion script for bash, zsh or fish.", .operands = "SHELL",
    .least_operands = 1, .most_operands = 1, .run = run_completion,
    .notes = "Load it with, for example:  source <(attn completion bash)",
};

/* ---- the program ---- */

/* A full disk or a closed pipe shows only when the buffer is written. */
static int finish_stdout(int code) {
    if (!fflush(stdout) && !ferror(stdout)) return code;
    cli_error("cannot write to standard output: %s", strerror(errno));
    return code ? code : CLI_FAILED;
}

static int run_command(const cli_command *command, int count, char **words) {
    cli_arguments *arguments;
    cli_terminal_setup(command->name, 0);
    const int bad = cli_parse(&arguments, command, count, words);
    if (bad) return bad;
    cli_terminal_setup(command->name, cli_flag(arguments, "quiet"));
    int code = CLI_OK;
    if (cli_flag(arguments, "help")) cli_print_help(stdout, command);
    else code = command->run(arguments);
    cli_progress_end();
    code = finish_stdout(code);
    cli_arguments_free(arguments);
    return code;
}

int main(int count, char **words) {
    cli_output_setup();
    if (count < 2) {
        cli_print_help(stderr, NULL);
        return CLI_USAGE;
    }
    const char *name = words[1];
    if (!strcmp(name, "--help") || !strcmp(name, "-h")) name = "help";
    if (!strcmp(name, "--version")) {
        printf("attn %s (%s)\n", attn_version_string(), attn_build_info());
        return finish_stdout(CLI_OK);
    }
    const cli_command *command = cli_command_named(name);
    if (!command) {
        cli_error("no command \"%s\": \"attn help\" lists them", name);
        return CLI_USAGE;
    }
    return run_command(command, count - 2, words + 2);
}
