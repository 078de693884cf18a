/* replay.c — run a fuzz target on files and folders: `replay_npy corpus/npy`. Each input gets a block of
 * its exact size, so that a sanitizer sees any read past it. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static int replayed;

static int replay_file(const char *path) {
    FILE *file = fopen(path, "rb");
    struct stat status;
    if (!file || stat(path, &status)) {
        perror(path);
        return 1;
    }
    const size_t size = (size_t)status.st_size;
    uint8_t *bytes = malloc(size ? size : 1);
    const int bad = !bytes || fread(bytes, 1, size, file) != size;
    fclose(file);
    if (!bad) {
        LLVMFuzzerTestOneInput(bytes, size);
        replayed++;
    } else perror(path);
    free(bytes);
    return bad;
}

static int replay(const char *path) {
    struct stat status;
    if (stat(path, &status) || !S_ISDIR(status.st_mode)) return replay_file(path);
    struct dirent **entries;
    int bad = 0;
    const int count = scandir(path, &entries, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char inner[4096];
        snprintf(inner, sizeof inner, "%s/%s", path, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.') bad |= replay(inner);
        free(entries[i]);
    }
    if (count >= 0) free(entries);
    return bad || count < 0;
}

int main(int count, char **words) {
    int bad = 0;
    for (int i = 1; i < count; i++) bad |= replay(words[i]);
    printf("%d inputs replayed\n", replayed);
    return bad || !replayed;
}
