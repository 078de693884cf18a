/* locate.c — walk up from where the program lies. */
#include "locate.h"
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int readable(const char *folder, const char *relative, char *path, size_t size) {
    const int length = snprintf(path, size, "%s/%s", folder, relative);
    return length > 0 && (size_t)length < size && access(path, R_OK) == 0;
}

int cli_locate(const char *relative, char *path, size_t size) {
    char at[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", at, sizeof at - 1);
    at[length > 0 ? length : 0] = 0;
    for (char *slash; (slash = strrchr(at, '/'));) {
        *slash = 0;
        if (readable(at, relative, path, size)) return 0;
    }
    return readable(".", relative, path, size) ? 0 : 1;
}
