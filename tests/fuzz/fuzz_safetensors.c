/* fuzz_safetensors.c — any bytes as a safetensors file: refused with a message, or arrays that lie inside
 * them, one after the other, with different names. */
#include "safetensors.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void read_elements(const tensor *t) {
    volatile double sum = 0;
    for (int64_t i = 0; i < t->count; i++) sum = tensor_element(t, i);
    (void)sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    safetensors file;
    tensor_error error = { -1, "" };
    if (safetensors_parse(&file, bytes, size, &error)) {
        if (!error.text[0] || error.byte < 0 || error.byte > (int64_t)size) abort();
        return 0;
    }
    int64_t end = -1;
    for (int i = 0; i < file.count; i++) {
        const tensor *t = &file.tensors[i];
        if (end >= 0 && t->offset != end) abort();
        end = t->offset + (int64_t)t->bytes;
        if (t->offset < 8 || (size_t)end > size || t->data != bytes + t->offset) abort();
        for (int k = 0; k < i && i < 16; k++)
            if (!strcmp(t->name, file.tensors[k].name)) abort();
        read_elements(t);
    }
    safetensors_metadata(&file, "format");
    safetensors_free(&file);
    return 0;
}
