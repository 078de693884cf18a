/* tensor_file.h — an npy or safetensors file, mapped: its arrays by name. */
#ifndef CLI_TENSOR_FILE_H
#define CLI_TENSOR_FILE_H
#include "safetensors.h"
#include "tensor.h"

typedef enum tensor_format { FORMAT_NPY, FORMAT_SAFETENSORS } tensor_format;

typedef struct tensor_file {
    char         *path;
    tensor_format format;
    void         *bytes;
    size_t        size;
    int           mapped;
    tensor        single;           /* npy */
    safetensors   named;
    const tensor *tensors;
    int           count;
} tensor_file;

/* Open and check; the format is told by the first bytes. Says "PATH: byte N: WHAT" on stderr. @return
 * nonzero on failure. */
int  tensor_file_open(tensor_file **out, const char *path);
void tensor_file_close(tensor_file *file);      /* NULL is allowed */
const tensor *tensor_file_find(const tensor_file *file, const char *name);   /* NULL: not there */

/* By the name's ending; npy where there is none that is known. */
tensor_format tensor_format_of(const char *path);

/* The bytes of a file without looking inside; same messages. tensor_file_close frees. */
int tensor_file_read(tensor_file **out, const char *path);
/* Parse what tensor_file_read read. @return nonzero with *error set. */
int tensor_file_parse(tensor_file *file, tensor_error *error);
#endif
