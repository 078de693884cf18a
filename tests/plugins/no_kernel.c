/* no_kernel.c — defines something else. */
int attn_plugin_other;
