/* checked.c — the checked mode: what a CPU run checks in place, a CUDA run must first copy to the host.
 * Slow, and waits for the stream: for finding the caller's mistakes. */
#include "image.h"
#include <stdlib.h>

enum { ARRAYS = 8 };

typedef struct { const int32_t **pointer; int64_t count; int used; int32_t *copy; } array_row;

static attn_status fetch(const attn_cuda_driver *driver, array_row *row) {
    int64_t bytes;
    if (!attn_multiply(row->count, 4, &bytes))
        return attn_fail(ATTN_INVALID, "a length array overflows 64 bits");
    row->copy = malloc(bytes ? (size_t)bytes : 1);
    if (!row->copy)
        return attn_fail(ATTN_NO_MEMORY, "out of memory for checking %lld lengths", (long long)row->count);
    const cu_result result =
        bytes ? driver->MemcpyDtoH(row->copy, (cu_pointer)(uintptr_t)*row->pointer, (size_t)bytes) : CU_OK;
    *row->pointer = row->copy;
    return result ? attn_cuda_fail(result, "copying lengths to", "the host") : ATTN_OK;
}

static attn_status wait(const attn_cuda_driver *driver, cu_stream stream) {
    int capturing = 0;
    cu_result result = driver->StreamIsCapturing(stream, &capturing);
    if (!result && capturing)
        return attn_fail(ATTN_INVALID,
                         "options.checked = 1: a checked run waits for its stream and can't be captured");
    if (!result) result = driver->StreamSynchronize(stream);
    return result ? attn_cuda_fail(result, "waiting for", "the stream") : ATTN_OK;
}

attn_status attn_cuda_check_lengths(const attn_problem *p, const attn_tensors *device, cu_stream stream) {
    const attn_cuda_driver *driver = attn_cuda();
    if (!driver) return ATTN_DEVICE_ERROR;
    attn_tensors t = *device;
    int64_t entries = 0;
    if (p->batch && (!attn_multiply(p->batch - 1, p->block_table_stride, &entries) ||
                     entries > INT64_MAX - p->block_table_cols))
        return attn_fail(ATTN_INVALID, "block_table_stride: the table overflows 64 bits");
    const int append = p->pass == ATTN_KV_APPEND, q = !append || p->write_q;
    array_row rows[ARRAYS] = {
        { &t.cu_seqlens_q, p->batch + 1, q && p->packed_q, NULL },
        { &t.cu_seqlens_new, p->batch + 1, append && p->packed_new, NULL },
        { &t.rotary_offsets, p->batch, append && p->rotary_dim && p->has_rotary_offsets, NULL },
        { &t.cu_seqlens_kv, p->batch + 1, p->packed_kv, NULL },
        { &t.seqused_q, p->batch, q && p->has_seqused_q, NULL },
        { &t.seqused_kv, p->batch, p->has_seqused_kv, NULL },
        { &t.leftpad_kv, p->batch, p->has_leftpad_kv, NULL },
        { &t.kv_batch_index, p->batch, p->has_kv_batch_index, NULL },
    };
    array_row table = { &t.block_table, entries + p->block_table_cols, p->page_size != 0, NULL };
    attn_status status = wait(driver, stream);
    for (int i = 0; i < ARRAYS && !status; i++)
        if (rows[i].used && *rows[i].pointer) status = fetch(driver, &rows[i]);
    if (!status && table.used && t.block_table) status = fetch(driver, &table);
    if (!status) status = attn_check_lengths(p, &t);
    for (int i = 0; i < ARRAYS; i++) free(rows[i].copy);
    free(table.copy);
    return status;
}
