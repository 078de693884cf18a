/* help.c — help texts, the manual page and completion scripts, all printed from the option tables. */
#include "attn/attn.h"
#include "options.h"
#include "terminal.h"
#include <string.h>

/* ---- help ---- */

static int left_column(const cli_option *o) {
    return (int)strlen(o->name) + 2 + (o->argument ? (int)strlen(o->argument) + 1 : 0);
}

/* The sentence, wrapped at `width`, continued under itself. */
static void print_wrapped(FILE *to, const char *text, int indent, int width) {
    const char *end = text + strcspn(text, "\n");
    for (int column = indent; text < end; text += *text == ' ') {
        const int word = (int)strcspn(text, " \n"), first = column == indent;
        if (!first && column + 1 + word > width) {
            fprintf(to, "\n%*s", indent, "");
            column = indent;
        } else if (!first) {
            fputc(' ', to);
            column++;
        }
        fprintf(to, "%.*s", word, text);
        column += word;
        text += word;
    }
    fputc('\n', to);
}

static const char *next_line(const char *line) {
    line += strcspn(line, "\n");
    return line + (*line == '\n');
}

static void print_option(FILE *to, const cli_option *o) {
    enum { INDENT = 22, WIDTH = 98 };
    const int used = left_column(o) + 2;
    fprintf(to, "  %s--%s%s%s%s%*s", cli_style_code(to, CLI_BOLD), o->name, cli_style_code(to, CLI_PLAIN),
            o->argument ? " " : "", o->argument ? o->argument : "", used < INDENT ? INDENT - used : 1, "");
    char text[512];
    if (o->type == CLI_CHOICE) snprintf(text, sizeof text, "%s One of: %s.", o->summary, o->choices);
    else snprintf(text, sizeof text, "%s", o->summary);
    print_wrapped(to, text, INDENT, WIDTH);
}

static void print_command_help(FILE *to, const cli_command *c) {
    fprintf(to, "usage: attn %s [options]%s%s\n\n%s\n\n", c->name, c->operands ? " " : "",
            c->operands ? c->operands : "", c->summary);
    const cli_option *o;
    for (int i = 0; (o = cli_command_option(c, i)); i++) print_option(to, o);
    if (c->sweeps)
        fputs("\nOptions that describe the problem take lists (--sq 512,1k,2k --causal=0,1): every "
              "combination is used.\n", to);
    if (c->notes) fputc('\n', to);
    for (const char *line = c->notes; line && *line; line = next_line(line))
        if (*line == ' ') fprintf(to, "%.*s\n", (int)strcspn(line, "\n"), line);   /* an example */
        else print_wrapped(to, line, 0, 98);
}

void cli_print_help(FILE *to, const cli_command *command) {
    if (command) {
        print_command_help(to, command);
        return;
    }
    fputs("usage: attn COMMAND [options]\n\n"
          "Exact attention, O = softmax(scale * Q K^T + bias, masked) V.\n\n", to);
    for (const cli_command *const *c = cli_commands; *c; c++)
        fprintf(to, "  %s%-12s%s %s\n", cli_style_code(to, CLI_BOLD), (*c)->name,
                cli_style_code(to, CLI_PLAIN), (*c)->summary);
    fputs("\n\"attn help COMMAND\" shows the options.\n"
          "Exit codes: 0 ok, 1 failure, 2 wrong use, 130 interrupted.\n", to);
}

/* ---- manual page ---- */

/* One line for roff: backslashes escaped, minus signs kept, no request at its start. */
static void print_roff(FILE *to, const char *text) {
    if (*text == '.' || *text == '\'') fputs("\\&", to);
    for (; *text && *text != '\n'; text++) {
        if (*text == '\\') fputs("\\e", to);
        else if (*text == '-') fputs("\\-", to);
        else fputc(*text, to);
    }
}

static void man_option(FILE *to, const cli_option *o) {
    fprintf(to, ".It Fl \\-");
    print_roff(to, o->name);
    if (o->argument) fprintf(to, " Ar %s", o->argument);
    fputc('\n', to);
    print_roff(to, o->summary);
    if (o->type == CLI_CHOICE) fprintf(to, " One of: %s.", o->choices);
    fputc('\n', to);
}

static void man_command(FILE *to, const cli_command *c) {
    fprintf(to, ".Ss attn %s%s%s\n", c->name, c->operands ? " " : "", c->operands ? c->operands : "");
    print_roff(to, c->summary);
    fputs("\n.Bl -tag -width indent\n", to);
    const cli_option *o;
    for (int i = 0; (o = cli_command_option(c, i)); i++) man_option(to, o);
    fputs(".El\n", to);
    for (const char *line = c->notes; line && *line; line = next_line(line)) {
        fputs(*line == ' ' ? ".Dl " : ".Pp\n", to);
        print_roff(to, line + strspn(line, " "));
        fputc('\n', to);
    }
}

void cli_print_man(FILE *to) {
    fprintf(to, ".Dd November 24, 2026\n.Dt ATTN 1\n.Os libattn %s\n.Sh NAME\n.Nm attn\n"
                ".Nd exact attention on tensors in files, checked and timed\n"
                ".Sh SYNOPSIS\n.Nm\n.Ar command\n.Op Ar options\n.Sh DESCRIPTION\n"
                "Computes O = softmax(scale * Q K^T + bias, masked) V on CPU or CUDA.\n"
                "Results go to standard output, remarks and progress to standard error.\n.Sh COMMANDS\n",
            attn_version_string());
    for (const cli_command *const *c = cli_commands; *c; c++) man_command(to, *c);
    fputs(".Sh ENVIRONMENT\n.Bl -tag -width indent\n"
          ".It Ev ATTN_NUM_THREADS\nCPU threads to use by default.\n"
          ".It Ev ATTN_CPU_ISA\nThe best instruction set that kernels may use, as listed by \"attn info\".\n"
          ".It Ev NO_COLOR , CLICOLOR_FORCE\nNo colour; colour also when not on a terminal.\n.El\n"
          ".Sh EXIT STATUS\n0 success; 1 failure; 2 wrong use; 130 interrupted (SIGINT), 143 terminated "
          "(SIGTERM).\n",
          to);
}

/* ---- completion ---- */

static void print_bash(FILE *to) {
    fputs("# bash completion for attn\n_attn() {\n"
          "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n"
          "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n        COMPREPLY=($(compgen -W \"", to);
    for (const cli_command *const *c = cli_commands; *c; c++)
        fprintf(to, "%s%s", c == cli_commands ? "" : " ", (*c)->name);
    fputs("\" -- \"$word\"))\n        return\n    fi\n    case \"${COMP_WORDS[1]} $before\" in\n", to);
    for (const cli_command *const *c = cli_commands; *c; c++) {
        const cli_option *o;
        for (int i = 0; (o = cli_command_option(*c, i)); i++) {
            if (o->type == CLI_CHOICE)
                fprintf(to, "    \"%s --%s\") COMPREPLY=($(compgen -W \"%s\" -- \"$word\")); return;;\n",
                        (*c)->name, o->name, o->choices);
            if (o->type == CLI_FILE)
                fprintf(to, "    \"%s --%s\") COMPREPLY=($(compgen -f -- \"$word\")); return;;\n", (*c)->name,
                        o->name);
        }
    }
    fputs("    esac\n    case \"${COMP_WORDS[1]}\" in\n", to);
    for (const cli_command *const *c = cli_commands; *c; c++) {
        const cli_option *o;
        fprintf(to, "    %s) COMPREPLY=($(compgen -W \"", (*c)->name);
        for (int i = 0; (o = cli_command_option(*c, i)); i++) fprintf(to, "%s--%s", i ? " " : "", o->name);
        fprintf(to, "\" -- \"$word\")%s);;\n", (*c)->operands ? " $(compgen -f -- \"$word\")" : "");
    }
    fputs("    esac\n}\ncomplete -o filenames -F _attn attn\n", to);
}

/* A sentence inside single quotes and brackets. */
static void print_zsh_text(FILE *to, const char *text) {
    for (; *text; text++) {
        if (*text == '\'') fputs("'\\''", to);
        else if (strchr("[]:\\", *text)) fprintf(to, "\\%c", *text);
        else fputc(*text, to);
    }
}

static void print_zsh(FILE *to) {
    fputs("#compdef attn\n_attn() {\n  local -a commands\n  commands=(\n", to);
    for (const cli_command *const *c = cli_commands; *c; c++) {
        fprintf(to, "    '%s:", (*c)->name);
        print_zsh_text(to, (*c)->summary);
        fputs("'\n", to);
    }
    fputs("  )\n  if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
          "  local command=$words[2]\n  shift words; (( CURRENT-- ))\n  case $command in\n", to);
    for (const cli_command *const *c = cli_commands; *c; c++) {
        const cli_option *o;
        fprintf(to, "  %s) _arguments", (*c)->name);
        for (int i = 0; (o = cli_command_option(*c, i)); i++) {
            fprintf(to, " \\\n    '--%s[", o->name);
            print_zsh_text(to, o->summary);
            fputs("]", to);
            if (o->type == CLI_CHOICE) fprintf(to, ":%s:(%s)", o->argument, o->choices);
            else if (o->type != CLI_FLAG)
                fprintf(to, ":%s:%s", o->argument, o->type == CLI_FILE ? "_files" : "");
            fputs("'", to);
        }
        fprintf(to, "%s;;\n", (*c)->operands ? " \\\n    '*:file:_files'" : "");
    }
    fputs("  esac\n}\n_attn \"$@\"\n", to);
}

/* A sentence inside single quotes. */
static void print_fish_text(FILE *to, const char *text) {
    for (; *text; text++) {
        if (*text == '\'' || *text == '\\') fputc('\\', to);
        fputc(*text, to);
    }
}

static void print_fish(FILE *to) {
    fputs("# fish completion for attn\ncomplete -c attn -f\n", to);
    for (const cli_command *const *c = cli_commands; *c; c++) {
        fprintf(to, "complete -c attn -n __fish_use_subcommand -a %s -d '", (*c)->name);
        print_fish_text(to, (*c)->summary);
        fputs("'\n", to);
        const cli_option *o;
        for (int i = 0; (o = cli_command_option(*c, i)); i++) {
            fprintf(to, "complete -c attn -n '__fish_seen_subcommand_from %s' -l %s", (*c)->name, o->name);
            if (o->type == CLI_CHOICE) fprintf(to, " -x -a '%s'", o->choices);
            else if (o->type != CLI_FLAG) fputs(o->type == CLI_FILE ? " -r -F" : " -x", to);
            fputs(" -d '", to);
            print_fish_text(to, o->summary);
            fputs("'\n", to);
        }
    }
}

int cli_print_completion(FILE *to, const char *shell) {
    if (!strcmp(shell, "bash")) print_bash(to);
    else if (!strcmp(shell, "zsh")) print_zsh(to);
    else if (!strcmp(shell, "fish")) print_fish(to);
    else return 1;
    return 0;
}
