/* locate.h — files that come with the program: beside it, or in a folder above it (a build or an install
 * tree). */
#ifndef CLI_LOCATE_H
#define CLI_LOCATE_H
#include <stddef.h>

/* Find `relative` (as "include/attn/attn.h") in the current folder, the program's, or one above that. @return
 * 0 and the path, or nonzero. */
int cli_locate(const char *relative, char *path, size_t size);
#endif
