/* attn_plugin.h — your own kernel, checked, timed and ranked beside the library's:
 *     attn check --kernel ./mine.c        attn bench --kernel ./mine.c
 * A plug-in is one file that defines `attn_plugin attn_plugin_kernel`. It needs this header and no library. */
#ifndef ATTN_PLUGIN_H
#define ATTN_PLUGIN_H
#include "attn/attn.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes that a run moved between far memory (the tensors) and near memory (tiles, registers), counted by the kernel. */
typedef struct attn_traffic { int64_t q, k, v, o, scores; } attn_traffic;

typedef struct attn_plugin {
    uint32_t    struct_size;  /* sizeof(attn_plugin) */
    attn_device device;
    const char *name;
    const char *summary;      /* one line */
    /* NULL if it computes this (resolved) problem, else one sentence. */
    const char *(*refuse)(const attn_problem *problem);
    /* Bytes of workspace; may be NULL: none. */
    int64_t     (*workspace)(const attn_problem *problem);
    /* Compute O and, if tensors->lse is set, LSE. `stream` is NULL on the CPU. */
    attn_status (*run)(const attn_problem *problem, const attn_tensors *tensors, void *workspace, void *stream);
    /* What the last run moved; may be NULL. */
    void        (*traffic)(attn_traffic *out);
} attn_plugin;

extern
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const attn_plugin attn_plugin_kernel;

#ifdef __cplusplus
}
#endif
#endif
