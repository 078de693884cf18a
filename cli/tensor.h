/* tensor.h — a named array in a file: type, shape and where its bytes are. What the npy and safetensors
 * readers give and their writers take. */
#ifndef CLI_TENSOR_H
#define CLI_TENSOR_H
#include "attn/attn.h"

enum { TENSOR_MAX_DIMS = 8 };

/* name in safetensors, numpy's type string, bytes */
#define TENSOR_TYPE_ROWS(ROW) \
    ROW(F32, "<f4", 4) ROW(F16, "<f2", 2) ROW(BF16, "<V2", 2) ROW(F64, "<f8", 8) ROW(I32, "<i4", 4) \
    ROW(I64, "<i8", 8) ROW(U8, "|u1", 1) ROW(BOOL, "|b1", 1) ROW(U16, "<u2", 2) ROW(I8, "|i1", 1) \
    ROW(I16, "<i2", 2) ROW(U32, "<u4", 4) ROW(U64, "<u8", 8)

typedef enum tensor_type {
#define ROW(name, numpy, size) TENSOR_##name,
    TENSOR_TYPE_ROWS(ROW)
#undef ROW
    TENSOR_TYPES
} tensor_type;

typedef struct tensor_type_info { const char *name, *numpy; int size; } tensor_type_info;
extern const tensor_type_info tensor_types[TENSOR_TYPES];

typedef struct tensor {
    const char *name;                   /* "" in npy files */
    tensor_type type;
    int         dims;
    int64_t     shape[TENSOR_MAX_DIMS];
    int64_t     count;                  /* elements */
    int64_t     offset;                 /* of the data, in the file */
    const unsigned char *data;          /* may be misaligned */
    size_t      bytes;
} tensor;

/* Why a file was refused: what is wrong, how to help, and at which byte. */
typedef struct tensor_error { int64_t byte; char text[400]; } tensor_error;
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
int tensor_fail(tensor_error *error, int64_t byte, const char *format, ...);   /* @return 1 */

/* Set count and bytes from type and shape, with checked products. @return nonzero if they overflow. */
int  tensor_set_sizes(tensor *t);
/* "[2, 128, 8, 64]"; like snprintf. */
int  tensor_shape_text(const tensor *t, char *text, size_t size);
/* Element i as a double (64-bit integers may round). */
double tensor_element(const tensor *t, int64_t i);
/* 0 where an attn_dtype has no such type. */
attn_dtype  tensor_attn_dtype(tensor_type type);
tensor_type tensor_from_attn_dtype(attn_dtype dtype);
#endif
