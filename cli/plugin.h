/* plugin.h — a kernel from outside: built from one source file (attn/attn_plugin.h), loaded only in child
 * processes. */
#ifndef CLI_PLUGIN_H
#define CLI_PLUGIN_H
#include "attn/attn_plugin.h"
#include "check.h"

typedef struct plugin plugin;

/* Does this --kernel value name a file (it has a '/' or ends in .c, .cu or .so) rather than a registered
 * kernel? */
int plugin_is_path(const char *kernel);
/* Compile `path` with $CC (cc) -O3 -march=native, or take a .so as it is; nothing of it runs yet. A .cu file
 * is compiled by nvcc (for the GPU that is there, or with the flags of a line "nvcc: FLAGS" in its first
 * comment), or with `simulate` by learn/sim/simulate.sh for the CPU. Never NULL unless memory is out: a file
 * that doesn't build is a plug-in whose plugin_error says so. */
plugin *plugin_build(const char *path, int simulate);
const char *plugin_error(const plugin *p);      /* NULL = built; else "does not compile: ..." */
const char *plugin_name(const plugin *p);       /* the file's name */
const char *plugin_path(const plugin *p);       /* absolute */
/* A candidate that loads the plug-in on the first prepare: call it in a sandbox. */
check_candidate plugin_candidate(plugin *p);
/* What the last run in this process moved. @return 0 if the plug-in counts nothing. */
int plugin_traffic(const plugin *p, attn_traffic *traffic);
void plugin_free(plugin *p);
#endif
