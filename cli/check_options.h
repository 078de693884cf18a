/* check_options.h — the cases that a command line asks for: problems, named shapes, the grid, random, real
 * input. */
#ifndef CLI_CHECK_OPTIONS_H
#define CLI_CHECK_OPTIONS_H
#include "check.h"
#include "inputs.h"
#include "options.h"

typedef struct check_plan {
    check_case      *cases;         /* with all fills, lengths, layouts */
    int              count;
    cli_input_files *files;         /* real input instead: cases are 0 .. count - 1 of the file, `cases` is
                                       NULL */
    int              is_grid;       /* every kernel must be reached */
} check_plan;

extern const cli_option check_case_options[];
/* Says what is wrong on stderr. @return CLI_OK, CLI_USAGE, CLI_FAILED. */
int  check_plan_create(check_plan *plan, const cli_arguments *a);
void check_plan_free(check_plan *plan);
/* Case i as tensors. `name` gets a short description. @return as above. */
int check_plan_data(const check_plan *plan, int i, const cli_arguments *a, check_data **data, char *name,
                    size_t size);

/* check_append.c: attn check --pass append. @return the exit code. */
int check_append_command(const cli_arguments *a);
#endif
