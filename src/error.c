/* error.c — statuses and the thread-local message. */
#include "kernel.h"
#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[512];

attn_status attn_fail(attn_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return status;
}

const char *attn_last_error(void) { return message; }

const char *attn_status_name(attn_status status) {
    switch (status) {
    case ATTN_OK:           return "ok";
    case ATTN_INVALID:      return "invalid";
    case ATTN_UNSUPPORTED:  return "unsupported";
    case ATTN_NO_MEMORY:    return "no memory";
    case ATTN_DEVICE_ERROR: return "device error";
    default:                return "unknown status";
    }
}
