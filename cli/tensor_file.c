/* tensor_file.c — map a file (or read a pipe), tell the format, hand out its arrays. */
#include "tensor_file.h"
#include "npy.h"
#include "terminal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A pipe or an empty file: read until it ends. */
static int read_all(tensor_file *f, int descriptor) {
    size_t room = 1 << 16;
    char *bytes = malloc(room);
    while (bytes) {
        const ssize_t n = read(descriptor, bytes + f->size, room - f->size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            if (!n) break;
            free(bytes);
            return 1;
        }
        f->size += (size_t)n;
        if (f->size < room) continue;
        char *larger = realloc(bytes, room *= 2);
        if (!larger) free(bytes);
        bytes = larger;
    }
    f->bytes = bytes;
    if (!bytes) errno = ENOMEM;
    return !bytes;
}

static int map(tensor_file *f, int descriptor) {
    struct stat status;
    if (fstat(descriptor, &status)) return 1;
    if (S_ISDIR(status.st_mode)) {
        errno = EISDIR;
        return 1;
    }
    if (!S_ISREG(status.st_mode) || !status.st_size) return read_all(f, descriptor);
    f->size = (size_t)status.st_size;
    f->bytes = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    f->mapped = f->bytes != MAP_FAILED;
    if (!f->mapped) f->bytes = NULL;
    return !f->mapped;
}

int tensor_file_read(tensor_file **out, const char *path) {
    *out = NULL;
    tensor_file *f = calloc(1, sizeof *f);
    if (f) f->path = strdup(path);
    const int descriptor = f && f->path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    const int failed = descriptor < 0 || map(f, descriptor);
    if (failed) cli_error("%s: cannot read: %s", path, strerror(errno));
    if (descriptor >= 0) close(descriptor);
    if (failed) {
        tensor_file_close(f);
        return 1;
    }
    *out = f;
    return 0;
}

int tensor_file_parse(tensor_file *f, tensor_error *error) {
    if (!f->size) return tensor_fail(error, 0, "the file is empty");
    const char *dot = strrchr(f->path, '.');
    const int magic = f->size >= 6 && !memcmp(f->bytes, "\x93NUMPY", 6);
    f->format = magic || (dot && !strcmp(dot, ".npy")) ? FORMAT_NPY : FORMAT_SAFETENSORS;
    if (f->format == FORMAT_NPY) {
        if (npy_parse(&f->single, f->bytes, f->size, error)) return 1;
        f->tensors = &f->single;
        f->count = 1;
        return 0;
    }
    if (safetensors_parse(&f->named, f->bytes, f->size, error)) return 1;
    f->tensors = f->named.tensors;
    f->count = f->named.count;
    return 0;
}

int tensor_file_open(tensor_file **out, const char *path) {
    tensor_error error;
    if (tensor_file_read(out, path)) return 1;
    if (!tensor_file_parse(*out, &error)) return 0;
    cli_error("%s: byte %lld: %s", path, (long long)error.byte, error.text);
    tensor_file_close(*out);
    *out = NULL;
    return 1;
}

void tensor_file_close(tensor_file *f) {
    if (!f) return;
    safetensors_free(&f->named);
    if (f->mapped) munmap(f->bytes, f->size);
    else free(f->bytes);
    free(f->path);
    free(f);
}

const tensor *tensor_file_find(const tensor_file *f, const char *name) {
    for (int i = 0; i < f->count; i++)
        if (!strcmp(f->tensors[i].name, name)) return &f->tensors[i];
    return NULL;
}

tensor_format tensor_format_of(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot && (!strcmp(dot, ".safetensors") || !strcmp(dot, ".st")) ? FORMAT_SAFETENSORS : FORMAT_NPY;
}
