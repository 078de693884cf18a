/* contenders.h — who is checked and timed: registered kernels, plug-in files and baselines, by --kernel and
 * --vs. One check of one contender on one case runs in a child process, so that its end is a row and not the
 * program's. */
#ifndef CLI_CONTENDERS_H
#define CLI_CONTENDERS_H
#include "check.h"
#include "options.h"
#include "plugin.h"

typedef enum contender_kind { CONTENDER_KERNEL, CONTENDER_PLUGIN, CONTENDER_BASELINE } contender_kind;

typedef struct contender {
    const char      *name;          /* kernel name, file name, or "openblas_blocked" */
    contender_kind   kind;
    check_candidate  candidate;
    plugin          *plugin;
    const char      *unavailable;   /* NULL, or why this machine can't run it */
    attn_device      device;
} contender;

typedef struct contender_list { contender *items; int count; } contender_list;

/* Every kernel of `device` where --kernel is absent; names may have * and ?. Says what is wrong on stderr.
 * @return CLI_OK or CLI_USAGE. */
int  contenders_create(contender_list *list, const cli_arguments *a, attn_device device);
/* The same from words: kernel names, patterns, files, "openblas", "naive". */
int  contenders_add(contender_list *list, const char *word, attn_device device);
void contenders_free(contender_list *list);

typedef enum outcome_kind {
    OUTCOME_OK, OUTCOME_WRONG, OUTCOME_REFUSED, OUTCOME_FAILED  /* FAILED: crash, hang, no build, error
                                                                   status */
} outcome_kind;

typedef struct contender_outcome {
    outcome_kind  kind;
    check_verdict verdict;
    char          reason[544];      /* why not OK, one line */
    int           has_traffic;
    attn_traffic  traffic;
    double        seconds;          /* of the whole check */
} contender_outcome;

extern const char *const outcome_names[];   /* "ok", "WRONG", "refused", "FAILED" */

/* prepare, run `repeats` times, compare with the answer of `data` (check_data_answer must have run).
 * `seconds` is the time limit. */
void contender_check(contender *c, check_data *data, const attn_options *options, int repeats, double seconds,
                     contender_outcome *out);
#endif
