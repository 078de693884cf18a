/* test_formats.c — npy and safetensors: what is written reads back bit for bit; every truncation and every
 * flipped bit is refused or harmless; refusals name the byte and the reason. Output files appear whole or
 * not at all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>
#include "npy.h"
#include "output.h"
#include "safetensors.h"
#include "tensor_file.h"
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/attn_formats_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int entries(void) {
    DIR *d = opendir(folder);
    int n = 0;
    assert_non_null(d);
    for (struct dirent *e = readdir(d); e; e = readdir(d)) n += e->d_name[0] != '.' || strlen(e->d_name) > 2;
    closedir(d);
    return n;
}

static const char *path_of(const char *name) {
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

/* ---- round trips ---- */

static unsigned char pool[4096];

static void fill_pool(void) {
    for (size_t i = 0; i < sizeof pool; i++) pool[i] = (unsigned char)(i * 37 + i / 256);
}

static tensor sample(const char *name, tensor_type type, int dims) {
    tensor t = { .name = name, .type = type, .dims = dims, .data = pool };
    for (int d = 0; d < dims; d++) t.shape[d] = 1 + (d + (int)type) % 3;
    assert_int_equal(tensor_set_sizes(&t), 0);
    assert_true(t.bytes <= sizeof pool);
    return t;
}

static void assert_same(const tensor *a, const tensor *b) {
    assert_int_equal(a->dims, b->dims);
    assert_memory_equal(a->shape, b->shape, (size_t)a->dims * sizeof *a->shape);
    assert_int_equal(a->bytes, b->bytes);
    assert_memory_equal(a->data, b->data, a->bytes);
}

static void write_npy(const char *path, const tensor *t) {
    cli_output *output;
    assert_int_equal(cli_output_open(&output, "test", path), 0);
    assert_int_equal(npy_write(output, t), 0);
    assert_int_equal(cli_output_commit(output), 0);
}

static void npy_round_trip(void **state) {
    (void)state;
    fill_pool();
    for (int type = 0; type < TENSOR_TYPES; type++)
        for (int dims = 0; dims <= 6; dims++) {
            const tensor t = sample("", (tensor_type)type, dims);
            tensor_file *f;
            write_npy(path_of("x.npy"), &t);
            assert_int_equal(tensor_file_open(&f, path_of("x.npy")), 0);
            assert_int_equal(f->format, FORMAT_NPY);
            assert_int_equal(f->single.type, type == TENSOR_BF16 ? TENSOR_U16 : type);
            assert_int_equal(f->single.offset % 64, 0);
            assert_same(&t, &f->single);
            tensor_file_close(f);
        }
}

static void safetensors_round_trip(void **state) {
    (void)state;
    enum { COUNT = TENSOR_TYPES * 2 };
    static const char *const names[] = {
        "q", "layer0.k", "a \"quoted\" name", "back\\slash", "\xc3\xa9\xe2\x82\xac", ""
    };
    char unique[COUNT][64];
    tensor all[COUNT];
    for (int i = 0; i < COUNT; i++) {
        snprintf(unique[i], sizeof unique[i], "%s%d", names[i % 6], i);
        all[i] = sample(unique[i], (tensor_type)(i % TENSOR_TYPES), i % 5);
        if (i == 7) {   /* an empty one */
            all[i].shape[0] = 0;
            assert_int_equal(tensor_set_sizes(&all[i]), 0);
        }
    }
    const safetensors_note notes[] = { { "text", "line\nbreak \"x\"" }, { NULL, NULL } };
    cli_output *output;
    tensor_file *f;
    assert_int_equal(cli_output_open(&output, "test", path_of("x.safetensors")), 0);
    assert_int_equal(safetensors_write(output, all, COUNT, notes), 0);
    assert_int_equal(cli_output_commit(output), 0);
    assert_int_equal(tensor_file_open(&f, path_of("x.safetensors")), 0);
    assert_int_equal(f->count, COUNT);
    assert_string_equal(safetensors_metadata(&f->named, "text"), "line\nbreak \"x\"");
    for (int i = 0; i < COUNT; i++) {
        const tensor *t = tensor_file_find(f, unique[i]);
        assert_non_null(t);
        assert_int_equal(t->type, all[i].type);
        assert_int_equal((uintptr_t)t->data % (unsigned)tensor_types[t->type].size, 0);
        assert_same(&all[i], t);
    }
    tensor_file_close(f);
}

/* ---- damage ---- */

typedef struct bytes { unsigned char *at; size_t size; } bytes;

static bytes read_whole(const char *path) {
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    bytes b = { malloc((size_t)status.st_size), (size_t)status.st_size };
    FILE *file = fopen(path, "rb");
    assert_non_null(b.at);
    assert_non_null(file);
    assert_int_equal(fread(b.at, 1, b.size, file), b.size);
    fclose(file);
    return b;
}

/* @return 1 if accepted; the block has exactly `size` bytes, so that a sanitizer sees any read past it. */
static int parses(const unsigned char *from, size_t size, int is_npy, tensor_error *error) {
    unsigned char *copy = malloc(size ? size : 1);
    assert_non_null(copy);
    memcpy(copy, from, size);
    *error = (tensor_error){ -1, "" };
    tensor single = { 0 };
    safetensors named = { NULL, 0, NULL };
    const int bad =
        is_npy ? npy_parse(&single, copy, size, error) : safetensors_parse(&named, copy, size, error);
    if (bad) {
        assert_true(error->text[0]);
        assert_in_range(error->byte, 0, size);
    }
    for (int i = 0; !bad && i < (is_npy ? 1 : named.count); i++) {
        const tensor *t = is_npy ? &single : &named.tensors[i];
        assert_true((size_t)t->offset + t->bytes <= size);
        for (int64_t k = 0; k < t->count; k++) tensor_element(t, k);
    }
    safetensors_free(&named);
    free(copy);
    return !bad;
}

static bytes small_file(int is_npy) {
    const tensor all[2] = { sample("q", TENSOR_F32, 3), sample("mask", TENSOR_BOOL, 2) };
    if (is_npy) write_npy(path_of("small"), all);
    else {
        cli_output *output;
        assert_int_equal(cli_output_open(&output, "test", path_of("small")), 0);
        assert_int_equal(safetensors_write(output, all, 2, NULL), 0);
        assert_int_equal(cli_output_commit(output), 0);
    }
    return read_whole(path_of("small"));
}

static void truncation_is_refused(void **state) {
    (void)state;
    for (int is_npy = 0; is_npy < 2; is_npy++) {
        const bytes b = small_file(is_npy);
        tensor_error error;
        assert_true(parses(b.at, b.size, is_npy, &error));
        for (size_t n = 0; n < b.size; n++) assert_false(parses(b.at, n, is_npy, &error));
        free(b.at);
    }
}

static void flipped_bits_are_harmless(void **state) {
    (void)state;
    for (int is_npy = 0; is_npy < 2; is_npy++) {
        const bytes b = small_file(is_npy);
        tensor_error error;
        for (size_t n = 0; n < b.size; n++)
            for (int bit = 0; bit < 8; bit++) {
                b.at[n] ^= (unsigned char)(1 << bit);
                parses(b.at, b.size, is_npy, &error);
                b.at[n] ^= (unsigned char)(1 << bit);
            }
        free(b.at);
    }
}

static bytes safetensors_text(const char *json, size_t data) {
    const size_t n = strlen(json);
    bytes b = { calloc(8 + n + data, 1), 8 + n + data };
    assert_non_null(b.at);
    for (int i = 0; i < 8; i++) b.at[i] = (unsigned char)((uint64_t)n >> 8 * i);
    memcpy(b.at + 8, json, n);
    return b;
}

static void safetensors_refusals(void **state) {
    (void)state;
    static const struct { const char *json; size_t data; const char *reason; } rows[] = {
        { "{\"q\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4, "truncated" },
        { "{\"q\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 12, "belong to no tensor" },
        { "{\"q\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "need 12 bytes" },
        { "{\"q\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "data_offsets" },
        { "{\"q\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "integers" },
        { "{\"q\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,8]}}", 8, "integers" },
        { "{\"q\":{\"dtype\":\"F32\",\"shape\":[\"2\"],\"data_offsets\":[0,8]}}", 8, "integers" },
        { "{\"q\":{\"dtype\":\"F32\",\"shape\":[9007199254740993],\"data_offsets\":[0,8]}}", 8, "integers" },
        { "{\"q\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]}}", 0,
          "overflows" },
        { "{\"q\":{\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "not known" },
        { "{\"q\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "needed" },
        { "{\"q\":7}", 8, "object" },
        { "[]", 0, "object" },
        { "{\"q\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
          "\"q\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
          8, "twice" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
          "\"b\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[3,8]}}",
          8, "overlap" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
          "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
          8, "gap" },
        { "{\"__metadata__\":{\"x\":1}}", 0, "strings" },
        { "{} x", 0, "follows" },
        { "{", 0, "JSON" },
        { "{\"\xff\":1}", 0, "UTF-8" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const bytes b = safetensors_text(rows[i].json, rows[i].data);
        tensor_error error;
        assert_false(parses(b.at, b.size, 0, &error));
        if (!strstr(error.text, rows[i].reason))
            fail_msg("%s: \"%s\" lacks \"%s\"", rows[i].json, error.text, rows[i].reason);
        free(b.at);
    }
    unsigned char huge[16] = { 0, 0, 0, 0, 0, 0, 0, 0x80, '{', '}' };
    tensor_error error;
    assert_false(parses(huge, sizeof huge, 0, &error));
    assert_non_null(strstr(error.text, "header length"));
}

static void npy_refusals(void **state) {
    (void)state;
    static const struct { const char *header; size_t data; const char *reason; } rows[] = {
        { "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", 24, "ascontiguousarray" },
        { "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", 16, "pickled" },
        { "{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", 8, "big endian" },
        { "{'descr': '<c8', 'fortran_order': False, 'shape': (2,), }", 16, "astype" },
        { "{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (2,), }", 8, "structured" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2), }", 8, "missing" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", 8, "integers" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 0), }", 0,
          "overflows" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", 0, "overflows" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", 8, "truncated" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", 8, "data" },
        { "{'descr': '<f4', 'shape': (2,), }", 8, "needed" },
        { "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 8, "once" },
        { "{'descr': '<f4', 'fortran_order': Maybe, 'shape': (2,), }", 8, "True or False" },
        { "['descr']", 8, "dictionary" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const size_t n = strlen(rows[i].header);
        bytes b = { calloc(10 + n + rows[i].data, 1), 10 + n + rows[i].data };
        tensor_error error;
        memcpy(b.at, "\x93NUMPY\x01", 8);
        b.at[8] = (unsigned char)n;
        memcpy(b.at + 10, rows[i].header, n);
        assert_false(parses(b.at, b.size, 1, &error));
        if (!strstr(error.text, rows[i].reason))
            fail_msg("%s: \"%s\" lacks \"%s\"", rows[i].header, error.text, rows[i].reason);
        free(b.at);
    }
}

/* ---- output files ---- */

static void outputs_are_atomic(void **state) {
    (void)state;
    cli_output *output;
    const int before = entries();
    assert_int_equal(cli_output_save("test", path_of("out"), "old", 3), 0);
    assert_int_equal(chmod(path_of("out"), 0640), 0);
    assert_int_equal(cli_output_open(&output, "test", path_of("out")), 0);
    assert_int_equal(cli_output_write(output, "newer", 5), 0);
    bytes b = read_whole(path_of("out"));
    assert_int_equal(b.size, 3);              /* not visible yet */
    free(b.at);
    assert_int_equal(entries(), before + 2);
    cli_output_discard(output);
    assert_int_equal(entries(), before + 1);  /* the temporary is gone, the old file is there */
    assert_int_equal(symlink("out", path_of("link")), 0);
    assert_int_equal(cli_output_save("test", path_of("link"), "newer", 5), 0);
    struct stat status;
    assert_int_equal(lstat(path_of("link"), &status), 0);
    assert_true(S_ISLNK(status.st_mode));
    b = read_whole(path_of("out"));
    assert_int_equal(b.size, 5);
    assert_memory_equal(b.at, "newer", 5);
    free(b.at);
    assert_int_equal(stat(path_of("out"), &status), 0);
    assert_int_equal(status.st_mode & 07777, 0640);
    assert_int_equal(entries(), before + 2);
}

static void bad_outputs_fail(void **state) {
    (void)state;
    cli_output *output;
    const int before = entries();
    assert_int_not_equal(cli_output_open(&output, "test", path_of("no/such/folder")), 0);
    assert_null(output);
    assert_int_not_equal(cli_output_open(&output, "test", folder), 0);
    assert_int_not_equal(cli_output_save("test", "/dev/full", "x", 1), 0);
    assert_int_equal(cli_output_save("test", "/dev/null", "x", 1), 0);
    struct stat status;
    assert_int_equal(stat("/dev/null", &status), 0);
    assert_true(S_ISCHR(status.st_mode));     /* not replaced by a file */
    assert_int_equal(entries(), before);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(npy_round_trip), cmocka_unit_test(safetensors_round_trip),
        cmocka_unit_test(truncation_is_refused), cmocka_unit_test(flipped_bits_are_harmless),
        cmocka_unit_test(safetensors_refusals), cmocka_unit_test(npy_refusals),
        cmocka_unit_test(outputs_are_atomic), cmocka_unit_test(bad_outputs_fail),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
