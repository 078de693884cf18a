/* safetensors.c — read and write safetensors: 8 bytes of header length, a JSON object, the raw arrays
 * without gaps. cJSON parses; what it lets through (duplicate keys, numbers that are no integers, bad
 * UTF-8) is refused here. */
#include "safetensors.h"
#include "json_memory.h"
#include "terminal.h"
#include <stdlib.h>
#include <string.h>

enum { LENGTH_BYTES = 8, MOST_HEADER = 100 * 1000 * 1000 };   /* the reference implementation's limit */

typedef struct source {
    const unsigned char *bytes;
    size_t size;
    int64_t header;
    tensor_error *error;
} source;

/* ---- text ---- */

static int64_t utf8_error(const unsigned char *s, int64_t n) {
    for (int64_t i = 0; i < n;) {
        const unsigned char c = s[i];
        const int more = c < 0x80                ? 0
                         : c >= 0xc2 && c < 0xe0 ? 1
                         : c >= 0xe0 && c < 0xf0 ? 2
                         : c >= 0xf0 && c < 0xf5 ? 3
                                                 : -1;
        if (more < 0 || i + more >= n) return i;
        for (int k = 1; k <= more; k++)
            if ((s[i + k] & 0xc0) != 0x80) return i;
        if ((c == 0xe0 && s[i + 1] < 0xa0) || (c == 0xed && s[i + 1] > 0x9f) ||
            (c == 0xf0 && s[i + 1] < 0x90) || (c == 0xf4 && s[i + 1] > 0x8f))
            return i;   /* overlong, surrogate, past U+10FFFF */
        i += more + 1;
    }
    return -1;
}

/* Where a tensor's name stands in the header, for messages; 8 if it is written with escapes. */
static int64_t byte_of_name(const source *s, const char *name) {
    const size_t n = strlen(name);
    const unsigned char *at = s->bytes + LENGTH_BYTES, *end = at + s->header;
    for (; (size_t)(end - at) >= n + 2; at++)
        if (at[0] == '"' && at[n + 1] == '"' && !memcmp(at + 1, name, n)) return at - s->bytes;
    return LENGTH_BYTES;
}

static int wrong(const source *s, const char *name, const char *what) {
    return tensor_fail(s->error, byte_of_name(s, name), "tensor \"%.100s\": %s", name, what);
}

/* ---- numbers ---- */

/* cJSON keeps numbers as doubles: only integers below 2^53 are exact. */
static int exact_integer(const cJSON *item, int64_t *out) {
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0) || !(item->valuedouble < 9007199254740992.0))
        return 0;
    *out = (int64_t)item->valuedouble;
    return (double)*out >= item->valuedouble && (double)*out <= item->valuedouble;
}

/* ---- one tensor ---- */

typedef struct entry { const cJSON *dtype, *shape, *offsets; } entry;

static int read_entry(const source *s, const cJSON *item, entry *out) {
    if (!cJSON_IsObject(item)) return wrong(s, item->string, "must be an object");
    *out = (entry){ NULL, NULL, NULL };
    for (const cJSON *child = item->child; child; child = child->next) {
        const cJSON **field = !strcmp(child->string, "dtype") ? &out->dtype
                            : !strcmp(child->string, "shape") ? &out->shape
                            : !strcmp(child->string, "data_offsets") ? &out->offsets : NULL;
        if (!field) return wrong(s, item->string, "only dtype, shape and data_offsets belong here");
        if (*field) return wrong(s, item->string, "a key is given twice");
        *field = child;
    }
    if (!cJSON_IsString(out->dtype) || !cJSON_IsArray(out->shape) || !cJSON_IsArray(out->offsets))
        return wrong(s, item->string, "dtype (string), shape and data_offsets (arrays) are needed");
    return 0;
}

static int read_type(const source *s, const cJSON *item, const char *type, tensor *t) {
    for (int i = 0; i < TENSOR_TYPES; i++)
        if (!strcmp(type, tensor_types[i].name)) {
            t->type = (tensor_type)i;
            return 0;
        }
    return tensor_fail(s->error, byte_of_name(s, item->string),
                       "tensor \"%.100s\": dtype \"%.20s\" is not known here", item->string, type);
}

static int read_tensor(const source *s, const cJSON *item, tensor *t) {
    entry e;
    int64_t begin, end;
    if (read_entry(s, item, &e) || read_type(s, item, e.dtype->valuestring, t)) return 1;
    t->name = item->string;
    for (const cJSON *d = e.shape->child; d; d = d->next) {
        if (t->dims == TENSOR_MAX_DIMS) return wrong(s, t->name, "shape: more than 8 dimensions");
        if (!exact_integer(d, &t->shape[t->dims]))
            return wrong(s, t->name, "shape: must be integers 0 .. 2^53 - 1");
        t->dims++;
    }
    const cJSON *first = e.offsets->child, *second = first ? first->next : NULL;
    if (!second || second->next || !exact_integer(first, &begin) || !exact_integer(second, &end))
        return wrong(s, t->name, "data_offsets: must be two integers 0 .. 2^53 - 1");
    const int64_t data = LENGTH_BYTES + s->header, available = (int64_t)s->size - data;
    if (begin > end || end > available)
        return tensor_fail(s->error, byte_of_name(s, t->name),
                           "tensor \"%.100s\": data_offsets [%lld, %lld]: the file has %lld bytes of data%s",
                           t->name, (long long)begin, (long long)end, (long long)available,
                           begin <= end ? " (truncated?)" : "");
    if (tensor_set_sizes(t)) return wrong(s, t->name, "shape: the number of elements overflows 64 bits");
    if ((int64_t)t->bytes != end - begin)
        return tensor_fail(s->error, byte_of_name(s, t->name),
                           "tensor \"%.100s\": shape and dtype need %zu bytes, data_offsets give %lld",
                           t->name, t->bytes, (long long)(end - begin));
    t->offset = data + begin;
    t->data = s->bytes + t->offset;
    return 0;
}

/* ---- the whole file ---- */

static int by_name(const void *a, const void *b) {
    return strcmp(((const tensor *)a)->name, ((const tensor *)b)->name);
}

static int by_place(const void *a, const void *b) {
    const tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int check_names(const source *s, const safetensors *f) {
    qsort(f->tensors, (size_t)f->count, sizeof *f->tensors, by_name);
    for (int i = 1; i < f->count; i++)
        if (!strcmp(f->tensors[i].name, f->tensors[i - 1].name))
            return wrong(s, f->tensors[i].name, "is given twice");
    return 0;
}

/* Data must follow each other without gap or overlap, from the header to the end of the file. */
static int check_places(const source *s, const safetensors *f) {
    int64_t expected = LENGTH_BYTES + s->header;
    qsort(f->tensors, (size_t)f->count, sizeof *f->tensors, by_place);
    for (int i = 0; i < f->count; i++) {
        const tensor *t = &f->tensors[i];
        if (t->offset != expected)
            return wrong(s, t->name,
                         t->offset < expected ? "data overlap another tensor's" : "a gap precedes the data");
        expected += (int64_t)t->bytes;
    }
    if (expected == (int64_t)s->size) return 0;
    return tensor_fail(s->error, expected, "%lld bytes at the end belong to no tensor",
                       (long long)((int64_t)s->size - expected));
}

static int check_metadata(const source *s, const cJSON *item) {
    const char *const name = item->string;
    if (!cJSON_IsObject(item)) return wrong(s, name, "must be an object of strings");
    for (const cJSON *child = item->child; child; child = child->next)
        if (!cJSON_IsString(child)) return wrong(s, name, "must be an object of strings");
    return 0;
}

static int read_tensors(const source *s, safetensors *f) {
    const cJSON *root = f->json;
    int metadata = 0;
    if (!cJSON_IsObject(root)) return tensor_fail(s->error, LENGTH_BYTES, "header: must be a JSON object");
    f->tensors = calloc((size_t)cJSON_GetArraySize(root) + 1, sizeof *f->tensors);
    if (!f->tensors) return tensor_fail(s->error, LENGTH_BYTES, "out of memory");
    for (const cJSON *item = root->child; item; item = item->next) {
        if (!strcmp(item->string, "__metadata__")) {
            if (metadata++) return wrong(s, item->string, "is given twice");
            if (check_metadata(s, item)) return 1;
        } else if (read_tensor(s, item, &f->tensors[f->count++])) return 1;
    }
    return check_names(s, f) || check_places(s, f);
}

static int read_length(source *s) {
    if (s->size < LENGTH_BYTES)
        return tensor_fail(s->error, (int64_t)s->size, "file ends inside the 8 bytes of header length");
    uint64_t length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) length = length << 8 | s->bytes[i];
    if (length > MOST_HEADER)
        return tensor_fail(s->error, 0,
                           "header length %llu: at most %d is read (is this a safetensors file?)",
                           (unsigned long long)length, MOST_HEADER);
    if (length > s->size - LENGTH_BYTES)
        return tensor_fail(s->error, 0,
                           "header length %llu: the file has only %zu bytes after it (truncated?)",
                           (unsigned long long)length, s->size - LENGTH_BYTES);
    s->header = (int64_t)length;
    return 0;
}

int safetensors_parse(safetensors *out, const void *bytes, size_t size, tensor_error *error) {
    source s = { bytes, size, 0, error };
    *out = (safetensors){ NULL, 0, NULL };
    if (read_length(&s)) return 1;
    const char *text = (const char *)bytes + LENGTH_BYTES, *end = NULL;
    const int64_t invalid = utf8_error((const unsigned char *)text, s.header);
    if (invalid >= 0) return tensor_fail(error, LENGTH_BYTES + invalid, "header: not valid UTF-8");
    json_memory_watch();
    out->json = cJSON_ParseWithLengthOpts(text, (size_t)s.header, &end, 0);
    int failed = 0;
    if (json_memory_failed()) failed = tensor_fail(error, LENGTH_BYTES, "out of memory");
    else if (!out->json)
        failed = tensor_fail(error, LENGTH_BYTES + (end ? end - text : 0), "header: not valid JSON");
    for (; !failed && end < text + s.header; end++)
        if (!memchr(" \n\r\t", *end, 4))
            failed =
                tensor_fail(error, LENGTH_BYTES + (end - text), "header: something follows the JSON object");
    if (!failed) failed = read_tensors(&s, out);
    if (failed) safetensors_free(out);
    return failed;
}

void safetensors_free(safetensors *file) {
    cJSON_Delete(file->json);
    free(file->tensors);
    *file = (safetensors){ NULL, 0, NULL };
}

const char *safetensors_metadata(const safetensors *file, const char *key) {
    const cJSON *metadata = cJSON_GetObjectItemCaseSensitive(file->json, "__metadata__");
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(metadata, key));
}

/* ---- writing ---- */

static cJSON *header_json(const tensor *const *order, int count, const safetensors_note *notes) {
    cJSON *root = cJSON_CreateObject();
    cJSON *metadata = notes && notes->key ? cJSON_AddObjectToObject(root, "__metadata__") : NULL;
    for (; metadata && notes->key; notes++) cJSON_AddStringToObject(metadata, notes->key, notes->value);
    double at = 0;
    for (int i = 0; i < count; i++) {
        const tensor *t = order[i];
        cJSON *item = cJSON_AddObjectToObject(root, t->name);
        cJSON_AddStringToObject(item, "dtype", tensor_types[t->type].name);
        cJSON *shape = cJSON_AddArrayToObject(item, "shape"),
              *offsets = cJSON_AddArrayToObject(item, "data_offsets");
        for (int d = 0; d < t->dims; d++)
            cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)t->shape[d]));
        cJSON_AddItemToArray(offsets, cJSON_CreateNumber(at));
        cJSON_AddItemToArray(offsets, cJSON_CreateNumber(at += (double)t->bytes));
    }
    return root;
}

/* Wide elements first, so that everything is aligned without gaps; otherwise the caller's order. */
static int wider_first(const void *a, const void *b) {
    const tensor *x = *(const tensor *const *)a, *y = *(const tensor *const *)b;
    const int difference = tensor_types[y->type].size - tensor_types[x->type].size;
    return difference ? difference : x < y ? -1 : x > y;
}

static int write_header(cli_output *output, const char *json) {
    enum { ALIGNMENT = 64 };
    const size_t length = strlen(json);
    const size_t padded = (LENGTH_BYTES + length + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT - LENGTH_BYTES;
    unsigned char prefix[LENGTH_BYTES];
    char spaces[ALIGNMENT];
    for (int i = 0; i < LENGTH_BYTES; i++) prefix[i] = (unsigned char)((uint64_t)padded >> 8 * i & 255);
    memset(spaces, ' ', sizeof spaces);
    return cli_output_write(output, prefix, sizeof prefix) || cli_output_write(output, json, length) ||
           cli_output_write(output, spaces, padded - length);
}

int safetensors_write(cli_output *output, const tensor *tensors, int count, const safetensors_note *notes) {
    const tensor **order = malloc(((size_t)count + 1) * sizeof *order);
    char *json = NULL;
    int failed = 1;
    if (order) {
        for (int i = 0; i < count; i++) order[i] = &tensors[i];
        qsort(order, (size_t)count, sizeof *order, wider_first);
        json_memory_watch();
        cJSON *root = header_json(order, count, notes);
        json = cJSON_PrintUnformatted(root);
        cJSON_Delete(root);
    }
    if (!json || json_memory_failed()) cli_error("out of memory");
    else {
        failed = write_header(output, json);
        for (int i = 0; !failed && i < count; i++)
            failed = cli_output_write(output, order[i]->data, order[i]->bytes);
    }
    cJSON_free(json);
    free(order);
    return failed;
}
