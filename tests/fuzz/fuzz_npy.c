/* fuzz_npy.c — any bytes as an npy file: refused with a message, or an array that lies inside them. */
#include "npy.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    tensor t;
    tensor_error error = { -1, "" };
    if (npy_parse(&t, bytes, size, &error)) {
        if (!error.text[0] || error.byte < 0 || error.byte > (int64_t)size) abort();
        return 0;
    }
    char shape[256];
    tensor_shape_text(&t, shape, sizeof shape);
    if (t.offset < 0 || (size_t)t.offset + t.bytes != size || t.data != bytes + t.offset) abort();
    volatile double sum = 0;
    for (int64_t i = 0; i < t.count; i++) sum = tensor_element(&t, i);
    (void)sum;
    return 0;
}
