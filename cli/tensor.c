/* tensor.c — types, sizes and elements of arrays in files. */
#include "tensor.h"
#include "half.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const tensor_type_info tensor_types[TENSOR_TYPES] = {
#define ROW(name, numpy, size) { #name, numpy, size },
    TENSOR_TYPE_ROWS(ROW)
#undef ROW
};

int tensor_fail(tensor_error *error, int64_t byte, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    error->byte = byte;
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return 1;
}

/* A zero dimension makes the product zero but doesn't excuse an overflow of the others. */
int tensor_set_sizes(tensor *t) {
    int64_t product = 1, count = 1;
    for (int i = 0; i < t->dims; i++) {
        if (t->shape[i] < 0) return 1;
        const int64_t factor = t->shape[i] ? t->shape[i] : 1;
        if (product > INT64_MAX / 8 / factor) return 1;
        product *= factor;
        count *= t->shape[i];
    }
    t->count = count;
    t->bytes = (size_t)count * (size_t)tensor_types[t->type].size;
    return 0;
}

int tensor_shape_text(const tensor *t, char *text, size_t size) {
    int length = snprintf(text, size, "[");
    for (int i = 0; i < t->dims; i++) {
        const size_t used = (size_t)length < size ? (size_t)length : size;
        length += snprintf(text + used, size - used, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
    }
    const size_t used = (size_t)length < size ? (size_t)length : size;
    return length + snprintf(text + used, size - used, "]");
}

double tensor_element(const tensor *t, int64_t i) {
    const unsigned char *at = t->data + (size_t)i * (size_t)tensor_types[t->type].size;
    union {
        float f32; double f64; uint8_t u8; int8_t i8; uint16_t u16; int16_t i16; uint32_t u32; int32_t i32;
        uint64_t u64; int64_t i64;
    } x;
    memcpy(&x, at, (size_t)tensor_types[t->type].size);
    switch (t->type) {
    case TENSOR_F32: return (double)x.f32;
    case TENSOR_F16: return (double)attn_f16_to_f32(x.u16);
    case TENSOR_BF16: return (double)attn_bf16_to_f32(x.u16);
    case TENSOR_F64: return x.f64;
    case TENSOR_I32: return x.i32;
    case TENSOR_I64: return (double)x.i64;
    case TENSOR_U8: return x.u8;
    case TENSOR_BOOL: return x.u8 != 0;
    case TENSOR_U16: return x.u16;
    case TENSOR_I8: return x.i8;
    case TENSOR_I16: return x.i16;
    case TENSOR_U32: return x.u32;
    case TENSOR_U64: return (double)x.u64;
    case TENSOR_TYPES: break;
    }
    return 0;
}

attn_dtype tensor_attn_dtype(tensor_type type) {
    return type == TENSOR_F32 ? ATTN_F32 : type == TENSOR_F16 ? ATTN_F16
         : type == TENSOR_BF16 ? ATTN_BF16 : ATTN_DTYPE_DEFAULT;
}

tensor_type tensor_from_attn_dtype(attn_dtype dtype) {
    return dtype == ATTN_F16 ? TENSOR_F16 : dtype == ATTN_BF16 ? TENSOR_BF16 : TENSOR_F32;
}
