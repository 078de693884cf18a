/* refuses.c — takes no problem at all. */
#include "attn/attn_plugin.h"
static const char *refuse(const attn_problem *p) { (void)p; return "not today"; }
static attn_status run(const attn_problem *p, const attn_tensors *t, void *w, void *s) {
    (void)p, (void)t, (void)w, (void)s;
    return ATTN_OK;
}
const attn_plugin attn_plugin_kernel = {
    sizeof(attn_plugin), ATTN_CPU, "refuses", "refuses", refuse, 0, run, 0
};
