/* npy.c — read and write .npy: a magic number, a Python dictionary literal padded to 64 bytes, the raw
 * elements. */
#include "npy.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct text { const char *start, *at, *end; int64_t base; tensor_error *error; } text;
/* The three keys of the dictionary. */
typedef struct header { char type[16]; int fortran, seen_type, seen_order, seen_shape; tensor *out; } header;

static int64_t byte_of(const text *t, const char *at) { return t->base + (at - t->start); }
static int bad(const text *t, const char *what) {
    return tensor_fail(t->error, byte_of(t, t->at), "%s", what);
}

static void skip_space(text *t) {
    while (t->at < t->end && (*t->at == ' ' || *t->at == '\n' || *t->at == '\t' || *t->at == '\r')) t->at++;
}

static int take(text *t, char c) {
    skip_space(t);
    if (t->at == t->end || *t->at != c) return 0;
    t->at++;
    return 1;
}

static int take_word(text *t, const char *word) {
    const size_t n = strlen(word);
    if ((size_t)(t->end - t->at) < n || memcmp(t->at, word, n)) return 0;
    t->at += n;
    return 1;
}

/* 'text' or "text" without escapes. */
static int read_string(text *t, char *out, size_t size) {
    skip_space(t);
    if (t->at == t->end || (*t->at != '\'' && *t->at != '"'))
        return bad(t, "header: a quoted string is missing");
    const char quote = *t->at++, *close = memchr(t->at, quote, (size_t)(t->end - t->at));
    if (!close || (size_t)(close - t->at) >= size)
        return bad(t, "header: a string is too long or not closed");
    memcpy(out, t->at, (size_t)(close - t->at));
    out[close - t->at] = 0;
    t->at = close + 1;
    return 0;
}

static int read_dimension(text *t, int64_t *out) {
    skip_space(t);
    const char *digits = t->at;
    int64_t n = 0;
    for (; t->at < t->end && *t->at >= '0' && *t->at <= '9'; t->at++) {
        if (n > (INT64_MAX - 9) / 10) return bad(t, "shape: a dimension overflows 64 bits");
        n = n * 10 + (*t->at - '0');
    }
    if (t->at == digits) return bad(t, "shape: must be a tuple of integers >= 0");
    if (t->at < t->end && *t->at == 'L') t->at++;   /* Python 2 wrote long integers so */
    *out = n;
    return 0;
}

static int read_shape(text *t, tensor *out) {
    if (!take(t, '(')) return bad(t, "shape: must be a tuple");
    out->dims = 0;
    while (!take(t, ')')) {
        if (out->dims == TENSOR_MAX_DIMS) return bad(t, "shape: more than 8 dimensions");
        if (read_dimension(t, &out->shape[out->dims])) return 1;
        out->dims++;
        if (take(t, ',')) continue;
        if (out->dims == 1 || !take(t, ')'))
            return bad(t, "shape: ',' or ')' is missing"); /* (3) is no tuple */
        break;
    }
    return 0;
}

static int read_pair(text *t, header *h) {
    char key[32];
    if (read_string(t, key, sizeof key)) return 1;
    if (!take(t, ':')) return bad(t, "header: ':' is missing");
    skip_space(t);
    if (!strcmp(key, "descr") && !h->seen_type++) {
        if (t->at < t->end && *t->at == '[')
            return bad(t, "descr: a structured array; save each field as an array of its own");
        return read_string(t, h->type, sizeof h->type);
    }
    if (!strcmp(key, "fortran_order") && !h->seen_order++) {
        h->fortran = take_word(t, "True");
        return h->fortran || take_word(t, "False") ? 0 : bad(t, "fortran_order: must be True or False");
    }
    if (!strcmp(key, "shape") && !h->seen_shape++) return read_shape(t, h->out);
    return bad(t, "header: only descr, fortran_order and shape belong here, each once");
}

static int read_dictionary(text *t, header *h) {
    if (!take(t, '{')) return bad(t, "header: must be a Python dictionary");
    while (!take(t, '}')) {
        if (read_pair(t, h)) return 1;
        if (take(t, ',')) continue;
        if (!take(t, '}')) return bad(t, "header: ',' or '}' is missing");
        break;
    }
    skip_space(t);
    if (t->at != t->end) return bad(t, "header: something follows the dictionary");
    if (!h->seen_type || !h->seen_order || !h->seen_shape)
        return bad(t, "header: descr, fortran_order and shape are needed");
    return 0;
}

static int set_type(tensor *out, const char *type, int64_t byte, tensor_error *error) {
    if (strchr(type, 'O'))
        return tensor_fail(error, byte,
                           "descr '%s': pickled Python objects are never read; save a numeric array", type);
    if (type[0] == '>')
        return tensor_fail(error, byte, "descr '%s': big endian; save x.astype('<%s')", type, type + 1);
    for (int i = 0; i < TENSOR_TYPES; i++) {
        const char *known = tensor_types[i].numpy;
        const int one_byte =
            known[0] == '|' || !strcmp(known + 1, "V2"); /* their order mark has no meaning */
        if (!strcmp(type, known) || (one_byte && strchr("|<", type[0]) && !strcmp(type + 1, known + 1))) {
            out->type = i == TENSOR_BF16 ? TENSOR_U16 : (tensor_type)i;
            return 0;
        }
    }
    return tensor_fail(error, byte, "descr '%s': not a type that is read here; save x.astype('<f4')", type);
}

/* Magic, version and header length. */
static int read_preamble(text *t, const unsigned char *bytes, size_t size, tensor_error *error) {
    static const unsigned char magic[6] = { 0x93, 'N', 'U', 'M', 'P', 'Y' };
    if (size < 10) return tensor_fail(error, (int64_t)size, "file ends inside the npy preamble of 10 bytes");
    if (memcmp(bytes, magic, sizeof magic))
        return tensor_fail(error, 0, "not an npy file: the magic number is missing");
    if (bytes[6] < 1 || bytes[6] > 3 || bytes[7])
        return tensor_fail(error, 6, "npy version %d.%d: only 1.0, 2.0 and 3.0 are known", bytes[6],
                           bytes[7]);
    const size_t start = bytes[6] == 1 ? 10 : 12;
    if (size < start)
        return tensor_fail(error, (int64_t)size, "file ends inside the npy preamble of 12 bytes");
    size_t length = (size_t)bytes[8] | (size_t)bytes[9] << 8;
    if (start == 12) length |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
    if (length > size - start)
        return tensor_fail(error, 8,
                           "header of %zu bytes: the file has only %zu bytes after the preamble (truncated?)",
                           length, size - start);
    const char *first = (const char *)bytes + start;
    *t = (text){ first, first, first + length, (int64_t)start, error };
    return 0;
}

int npy_parse(tensor *out, const void *bytes, size_t size, tensor_error *error) {
    text t = { 0 };
    header h = { .out = out };
    *out = (tensor){ .name = "" };
    if (read_preamble(&t, bytes, size, error) || read_dictionary(&t, &h)) return 1;
    if (set_type(out, h.type, t.base, error)) return 1;
    if (h.fortran && out->dims > 1)
        return tensor_fail(error, t.base,
                           "fortran_order True: only C order is read; save np.ascontiguousarray(x)");
    if (tensor_set_sizes(out))
        return tensor_fail(error, t.base, "shape: the number of elements overflows 64 bits");
    out->offset = byte_of(&t, t.end);
    const size_t left = size - (size_t)out->offset;
    if (left != out->bytes)
        return tensor_fail(error, (int64_t)size,
                           "data: shape and type need %zu bytes after the header, the file has %zu"
                           "%s",
                           out->bytes, left, left < out->bytes ? " (truncated?)" : "");
    out->data = (const unsigned char *)bytes + out->offset;
    return 0;
}

int npy_write(cli_output *output, const tensor *t) {
    enum { ALIGNMENT = 64, PREAMBLE = 10, LARGEST = 512 };
    char shape[32 * TENSOR_MAX_DIMS] = "", dictionary[LARGEST];
    unsigned char file[PREAMBLE + LARGEST + ALIGNMENT];
    for (int i = 0, used = 0; i < t->dims; i++)
        used += snprintf(shape + used, sizeof shape - (size_t)used, "%s%lld", i ? ", " : "",
                         (long long)t->shape[i]);
    const int length = snprintf(dictionary, sizeof dictionary,
                                "{'descr': '%s', 'fortran_order': False, 'shape': (%s%s), }",
                                tensor_types[t->type].numpy, shape, t->dims == 1 ? "," : "");
    const int total = (PREAMBLE + length + 1 + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT,
              header_length = total - PREAMBLE;
    memset(file, ' ', sizeof file);
    memcpy(file, "\x93NUMPY\x01", 8);   /* version 1.0: the string's NUL is the minor number */
    file[8] = (unsigned char)(header_length & 255);
    file[9] = (unsigned char)(header_length >> 8);
    memcpy(file + PREAMBLE, dictionary, (size_t)length);
    file[total - 1] = '\n';
    return cli_output_write(output, file, (size_t)total) || cli_output_write(output, t->data, t->bytes);
}
