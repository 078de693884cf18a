/* terminal.c — errors, remarks, progress and colour. */
#include "terminal.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static struct {
    const char *command;
    int quiet, progress_shown;
    double last_progress;       /* seconds */
} terminal;

void cli_terminal_setup(const char *command, int quiet) {
    terminal.command = command;
    terminal.quiet = quiet;
}

int cli_color(FILE *to) {
    const char *off = getenv("NO_COLOR"), *force = getenv("CLICOLOR_FORCE"), *kind = getenv("TERM");
    if (off && *off) return 0;
    if (force && *force && strcmp(force, "0")) return 1;
    return isatty(fileno(to)) && !(kind && !strcmp(kind, "dumb"));
}

const char *cli_style_code(FILE *to, cli_style style) {
    static const char *const codes[] = {
        "\033[0m", "\033[1m", "\033[31m", "\033[32m", "\033[33m", "\033[2m"
    };
    return cli_color(to) ? codes[style] : "";
}

void cli_progress_end(void) {
    if (terminal.progress_shown) fputs("\r\033[K", stderr);
    terminal.progress_shown = 0;
}

void cli_print_clean(FILE *to, const char *text) {
    for (; *text; text++) fputc((unsigned char)*text < ' ' || *text == 127 ? '?' : *text, to);
}

static void say(cli_style style, const char *kind, const char *format, va_list arguments) {
    cli_progress_end();
    fflush(stdout);     /* keep the order when both streams go to one place */
    fprintf(stderr, "attn%s%s: ", terminal.command ? " " : "", terminal.command ? terminal.command : "");
    if (*kind)
        fprintf(stderr, "%s%s%s ", cli_style_code(stderr, style), kind, cli_style_code(stderr, CLI_PLAIN));
    char text[4096];
    vsnprintf(text, sizeof text, format, arguments);
    cli_print_clean(stderr, text);
    fputc('\n', stderr);
}

void cli_error(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(CLI_RED, "error:", format, arguments);
    va_end(arguments);
}

void cli_remark(const char *format, ...) {
    if (terminal.quiet) return;
    va_list arguments;
    va_start(arguments, format);
    say(CLI_PLAIN, "", format, arguments);
    va_end(arguments);
}

void cli_progress(const char *format, ...) {
    if (terminal.quiet || !isatty(STDERR_FILENO)) return;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    const double now = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    if (now - terminal.last_progress < 0.1) return;
    terminal.last_progress = now;
    terminal.progress_shown = 1;
    va_list arguments;
    va_start(arguments, format);
    fputs("\r\033[K", stderr);
    vfprintf(stderr, format, arguments);
    fflush(stderr);
    va_end(arguments);
}
