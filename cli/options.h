/* options.h — one table of options drives parsing, --help, the man page and shell completion.
 * A command is a record (name, option tables, run) in a file of its own plus one row in commands.def. */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_INTERRUPTED = 130 };   /* exit codes */

typedef enum cli_type {
    CLI_FLAG,       /* --causal; where lists are allowed also --causal=0,1 */
    CLI_INTEGER,    /* low .. high; suffix k = 1024, m = 1024 * 1024 */
    CLI_REAL,
    CLI_PAIR,       /* two integers "L,R"; list items are separated by '/' */
    CLI_CHOICE,     /* one word of `choices` */
    CLI_TEXT,
    CLI_FILE        /* a path: completion offers files */
} cli_type;

typedef struct cli_option {
    const char *name;       /* without the dashes; a table ends with NULL */
    cli_type    type;
    const char *argument;   /* placeholder in the help; NULL for flags */
    const char *summary;    /* one sentence */
    const char *choices;    /* "cpu cuda" */
    int64_t     low, high;  /* of an integer; 0, 0 = any */
    int         list;       /* 1: a command that sweeps takes "a,b,c"; 2: every command does */
} cli_option;

typedef struct cli_arguments cli_arguments;

typedef struct cli_command {
    const char *name, *summary;
    const char *operands;                   /* "FILE..." for the usage line, or NULL */
    int         least_operands, most_operands;
    int         sweeps;                     /* 1: options marked `list` take lists */
    const cli_option *const *tables;        /* NULL-terminated */
    const char *notes;                      /* paragraphs of help: behaviour, examples; may be NULL */
    int (*run)(const cli_arguments *arguments);   /* @return exit code */
} cli_command;

extern const cli_command *const cli_commands[];   /* NULL-terminated, in the order of commands.def */
extern const cli_option cli_common_options[];     /* --help, --quiet: every command has them */

const cli_command *cli_command_named(const char *name);
/* The i-th option of a command over all its tables, or NULL past the last. */
const cli_option *cli_command_option(const cli_command *command, int i);

/* Parse what follows the command's name; says what is wrong on stderr. @return CLI_OK or CLI_USAGE. */
int  cli_parse(cli_arguments **out, const cli_command *command, int count, char **words);
void cli_arguments_free(cli_arguments *arguments);

/* Values. A list counts items; `i` selects one. Everything was validated by cli_parse. A name that the
 * command doesn't declare counts as absent. */
int         cli_given(const cli_arguments *a, const char *name);     /* items given; 0 = absent */
int         cli_flag(const cli_arguments *a, const char *name);      /* 1 if on */
int         cli_flag_item(const cli_arguments *a, const char *name, int i);
const char *cli_text(const cli_arguments *a, const char *name);      /* the whole value or NULL */
const char *cli_text_item(const cli_arguments *a, const char *name, int i);   /* lives as long as `a` */
int64_t     cli_integer(const cli_arguments *a, const char *name, int64_t fallback);
int64_t     cli_integer_item(const cli_arguments *a, const char *name, int i);
double      cli_real(const cli_arguments *a, const char *name, double fallback);
double      cli_real_item(const cli_arguments *a, const char *name, int i);
int         cli_choice(const cli_arguments *a, const char *name, int fallback);   /* index into choices */
int         cli_choice_item(const cli_arguments *a, const char *name, int i);
void        cli_pair_item(const cli_arguments *a, const char *name, int i, int64_t *left, int64_t *right);
int         cli_operands(const cli_arguments *a);
const char *cli_operand(const cli_arguments *a, int i);

/* help.c */
void cli_print_help(FILE *to, const cli_command *command);   /* NULL: the overview */
void cli_print_man(FILE *to);
int  cli_print_completion(FILE *to, const char *shell);      /* nonzero: unknown shell */
#endif
