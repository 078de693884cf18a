/* progress.c — read and write the progress file with cJSON; it is replaced in one step, never
 * half-written. */
#include "progress.h"
#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

const char *learn_progress_path(void) {
    static char path[1024];
    const char *wish = getenv("LEARN_PROGRESS"), *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    if (wish) return wish;
    if (state) snprintf(path, sizeof path, "%s/libattn-learn.json", state);
    else snprintf(path, sizeof path, "%s/.libattn-learn.json", home ? home : ".");
    return path;
}

static cJSON *load(void) {
    FILE *file = fopen(learn_progress_path(), "rb");
    char text[65536];
    const size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file) fclose(file);
    text[n] = 0;
    cJSON *json = cJSON_Parse(text);
    return cJSON_IsObject(json) ? json : (cJSON_Delete(json), cJSON_CreateObject());
}

static int has(const cJSON *json, const char *what, const char *lesson) {
    const cJSON *item;
    cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(json, what))
        if (cJSON_IsString(item) && !strcmp(item->valuestring, lesson)) return 1;
    return 0;
}

int learn_progress_has(const char *what, const char *lesson) {
    cJSON *json = load();
    const int found = has(json, what, lesson);
    cJSON_Delete(json);
    return found;
}

void learn_progress_add(const char *what, const char *lesson) {
    cJSON *json = load();
    if (!has(json, what, lesson)) {
        cJSON *list = cJSON_GetObjectItemCaseSensitive(json, what);
        if (!list) list = cJSON_AddArrayToObject(json, what);
        cJSON_AddItemToArray(list, cJSON_CreateString(lesson));
        char *text = cJSON_Print(json), temporary[1100];
        snprintf(temporary, sizeof temporary, "%s.tmp", learn_progress_path());
        FILE *file = text ? fopen(temporary, "wb") : NULL;
        const int ok = file && fputs(text, file) >= 0 && fputc('\n', file) != EOF;
        if (file && (fclose(file) || !ok || rename(temporary, learn_progress_path()))) remove(temporary);
        if (!file) fprintf(stderr, "learn: progress is not kept: %s: %s\n", temporary, strerror(errno));
        free(text);
    }
    cJSON_Delete(json);
}
