/* inputs.h — real input: tensors from files become an attn_problem and its attn_tensors. A safetensors file
 * may hold several cases, told apart by a prefix of the names ("layer0.q", "layer0.k", ...). */
#ifndef CLI_INPUTS_H
#define CLI_INPUTS_H
#include "attn/attn.h"
#include "options.h"
#include "tensor.h"

/* --in FILE --prefix P --q FILE --k FILE ...; needs cli_mask_options, cli_engine_options (--layout,
 * --backend) and --dtype, --dv in the same command. */
extern const cli_option cli_input_options[];

enum { INPUT_ROLES = 18 };
extern const char *const cli_input_names[INPUT_ROLES];   /* q k v bias ... as attn_tensors calls them */

typedef struct cli_input_files cli_input_files;

typedef struct cli_input {          /* one case */
    const char  *prefix;            /* "" or "layer0." */
    attn_problem problem;           /* ready for attn_plan_create */
    attn_tensors tensors;           /* host memory; o and lse are NULL */
    int          q_dims;            /* rank of q in the file: O gets the same */
    int          bhsd;              /* order of the dimensions, of O too */
    const tensor *parts[INPUT_ROLES];   /* what the pointers come from; NULL = absent */
    void        *owned[INPUT_ROLES];    /* converted or realigned copies */
    size_t       bytes[INPUT_ROLES];    /* behind each pointer of `tensors` */
} cli_input;

/* True if the command line names any input. */
int cli_inputs_given(const cli_arguments *a);
/* Open the files and find the cases. Says what is wrong on stderr. @return CLI_OK, CLI_FAILED (file),
 * CLI_USAGE. */
int  cli_inputs_open(cli_input_files **out, const cli_arguments *a);
void cli_inputs_close(cli_input_files *files);          /* NULL is allowed; cases must be freed before */
int  cli_inputs_count(const cli_input_files *files);
/* Make case `i`. @return as above. */
int  cli_inputs_case(cli_input *out, const cli_input_files *files, int i, const cli_arguments *a);
void cli_input_free(cli_input *input);
/* The field of `tensors` that a role fills. */
const void **cli_input_pointer(attn_tensors *tensors, int role);

/* input_shapes.c: sizes, strides and batch kind from the parts' shapes. `dv` is 0 unless V lies in K. */
int cli_input_shapes(cli_input *input, int64_t dv);
/* Its pieces: batch, seq, heads, dim and the strides of a tensor; "NAME: shape [...]: what", always
 * CLI_FAILED. */
int cli_input_extents(const cli_input *input, int role, int64_t extents[4], attn_stride *stride);
int cli_input_refuse(const cli_input *input, int role, const char *what);
/* input_append.c: append k_new and v_new, if there are any, to copies of k and v. */
int cli_input_append(cli_input *input, int interleaved);
/* Shape that O and LSE have in files. */
void cli_input_o_shape(const cli_input *input, tensor *out);
void cli_input_lse_shape(const cli_input *input, tensor *out);

/* Indices into parts. */
enum { INPUT_Q, INPUT_K, INPUT_V, INPUT_BIAS, INPUT_MASK, INPUT_ALIBI, INPUT_SINKS, INPUT_CU_Q, INPUT_CU_KV,
       INPUT_USED_Q, INPUT_USED_KV, INPUT_LEFTPAD, INPUT_KV_INDEX, INPUT_TABLE, INPUT_K_NEW, INPUT_V_NEW,
       INPUT_COS, INPUT_SIN };
#endif
