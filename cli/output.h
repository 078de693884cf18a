/* output.h — files that appear whole or not at all: written beside the target, synced, then renamed over
 * it. A failure, SIGINT or SIGTERM removes the half-written file and leaves an older output as it was. */
#ifndef CLI_OUTPUT_H
#define CLI_OUTPUT_H
#include <stddef.h>

typedef struct cli_output cli_output;

/* Install the signal handlers that remove unfinished files; exit code 128 + signal. Call once. */
void cli_output_setup(void);

/* All of these say what went wrong on stderr (path and reason) and @return nonzero. `what` names the option
 * for the message. A target that is no regular file (a pipe, /dev/null) is written directly; "-" is
 * standard output. */
int cli_output_open(cli_output **out, const char *what, const char *path);
int cli_output_write(cli_output *output, const void *data, size_t size);
/* Make the file visible under its name; frees `output` also on failure. */
int cli_output_commit(cli_output *output);
void cli_output_discard(cli_output *output);   /* NULL is allowed */

/* All in one: a whole text or block. */
int cli_output_save(const char *what, const char *path, const void *data, size_t size);
#endif
