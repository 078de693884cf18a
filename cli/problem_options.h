/* problem_options.h — the options that describe an attn_problem, shared by run, check, bench and explain. */
#ifndef CLI_PROBLEM_OPTIONS_H
#define CLI_PROBLEM_OPTIONS_H
#include "attn/attn.h"
#include "options.h"

extern const cli_option cli_shape_options[];    /* sizes, dtype, what tensors there are */
extern const cli_option cli_mask_options[];     /* causal, window, softcap, scale, O's dtype, strict */
extern const cli_option cli_engine_options[];   /* kernel, backend, device, threads, splits, layout */

/* Every combination of the listed values, resolved or not: zero fields are defaults, as in the API; strides
 * follow --layout. Says what is wrong on stderr. @return CLI_OK, CLI_USAGE. *problems is the caller's to
 * free. */
int cli_problem_list(const cli_arguments *a, attn_problem **problems, int *count);

/* Mask options only, into a problem whose sizes come from elsewhere (files). */
void cli_problem_masks(const cli_arguments *a, attn_problem *problem);

/* --threads, --splits, --device, --kernel (a single name). The name lives as long as `a`. */
attn_options cli_engine(const cli_arguments *a);

/* Give Q, K, V and O the strides of [batch, heads, seq, dim] (packed: [heads, total, dim]). Sizes must be
 * final. */
void cli_problem_layout_bhsd(attn_problem *problem);

/* The options that give this problem, "--b 1 --hq 8 ..."; like snprintf. */
int cli_problem_text(const attn_problem *problem, char *text, size_t size);
#endif
