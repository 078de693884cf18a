/* json_memory.c — an allocator for cJSON that remembers failures. */
#include "json_memory.h"
#include "terminal.h"
#include <stdlib.h>

static int failures;

static void *watched(size_t bytes) {
    void *memory = malloc(bytes);
    failures += !memory;
    return memory;
}

void json_memory_watch(void) {
    cJSON_Hooks hooks = { watched, free };
    cJSON_InitHooks(&hooks);
}

int json_memory_failed(void) { return failures > 0; }

int json_memory_print(cJSON *root) {
    char *text = cJSON_Print(root);
    const int failed = !text || json_memory_failed();
    cJSON_Delete(root);
    if (failed) cli_error("out of memory");
    else puts(text);
    cJSON_free(text);
    return failed;
}
