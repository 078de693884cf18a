/* npy.h — numpy's .npy format, versions 1 to 3: one array, C order, little endian. */
#ifndef CLI_NPY_H
#define CLI_NPY_H
#include "output.h"
#include "tensor.h"

/* Read the array in `size` bytes; its data pointer points into them. Two-byte voids ("V2", how numpy stores
 * bf16) and "<u2" both come out as U16: only the user knows that they are bf16. @return nonzero with *error
 * set. */
int npy_parse(tensor *out, const void *bytes, size_t size, tensor_error *error);
/* Write header and data. @return nonzero after a message. */
int npy_write(cli_output *output, const tensor *t);
#endif
