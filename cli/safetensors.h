/* safetensors.h — the safetensors format: named arrays behind a JSON header. */
#ifndef CLI_SAFETENSORS_H
#define CLI_SAFETENSORS_H
#include "output.h"
#include "tensor.h"

typedef struct safetensors {
    tensor *tensors; /* in the order of their data; names and data point into memory of this struct and of
                                   the bytes that were parsed */
    int     count;
    void   *json;               /* the parsed header */
} safetensors;

/* Read the header in `size` bytes of a whole file and check it against the size. @return nonzero with
 * *error set. */
int  safetensors_parse(safetensors *out, const void *bytes, size_t size, tensor_error *error);
void safetensors_free(safetensors *file);
/* Value of `key` in __metadata__, or NULL. */
const char *safetensors_metadata(const safetensors *file, const char *key);

typedef struct safetensors_note { const char *key, *value; } safetensors_note;
/* Write a file; `notes` (may be NULL) ends with a NULL key and becomes __metadata__. @return nonzero after
 * a message. */
int safetensors_write(cli_output *output, const tensor *tensors, int count, const safetensors_note *notes);
#endif
