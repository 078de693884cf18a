/* terminal.h — what the command says besides results: errors, remarks and progress, all on standard error. */
#ifndef CLI_TERMINAL_H
#define CLI_TERMINAL_H
#include <stdio.h>

#if defined(__GNUC__)
#define CLI_FORMAT(n) __attribute__((format(printf, n, n + 1)))
#else
#define CLI_FORMAT(n)
#endif

/* The command that messages name ("attn run: error: ..."), and whether remarks and progress are wanted. */
void cli_terminal_setup(const char *command, int quiet);
void cli_error(const char *format, ...) CLI_FORMAT(1);
void cli_remark(const char *format, ...) CLI_FORMAT(1);
/* One line that replaces the one before, at most 10 a second; nothing unless standard error is a terminal. */
void cli_progress(const char *format, ...) CLI_FORMAT(1);
void cli_progress_end(void);

/* Print text from a file: control characters, which could steer the terminal, become '?'. */
void cli_print_clean(FILE *to, const char *text);

/* Colour of `to`: NO_COLOR turns it off, CLICOLOR_FORCE on, otherwise a terminal has it. */
int cli_color(FILE *to);
typedef enum cli_style { CLI_PLAIN, CLI_BOLD, CLI_RED, CLI_GREEN, CLI_YELLOW, CLI_DIM } cli_style;
const char *cli_style_code(FILE *to, cli_style style);   /* escape sequence, or "" without colour */
#endif
