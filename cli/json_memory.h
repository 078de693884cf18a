/* json_memory.h — cJSON leaves out what it can't allocate and says nothing: notice it. */
#ifndef CLI_JSON_MEMORY_H
#define CLI_JSON_MEMORY_H
#include <cjson/cJSON.h>

/* Watch cJSON's allocations from here on. */
void json_memory_watch(void);
/* 1 if one ever failed. */
int  json_memory_failed(void);
/* Print on stdout and delete. @return nonzero, after a message, if anything is missing for lack of memory. */
int  json_memory_print(cJSON *root);
#endif
