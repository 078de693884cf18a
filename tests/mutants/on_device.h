/* on_device.h — the mutants on a GPU's memory: everything is fetched, the mutant runs on the copies,
 * everything is put back, margins included. What is tested is the checker's way of handling device memory. */
#ifndef MUTANTS_ON_DEVICE_H
#define MUTANTS_ON_DEVICE_H
#include "data.h"
#include "gpu.h"
#include "row_kernel.h"
#include <stdlib.h>

static check_data *device_data;     /* of the case that runs: a candidate is told only the pointers */

/* The same place in the copies. */
static void *moved(unsigned char *const copies[AREAS], const void *pointer) {
    const unsigned char *p = pointer;
    for (int n = 0; p && n < AREAS; n++) {
        const area *a = &device_data->areas[n];
        if (a->base && p >= a->base && p < a->base + a->total) return copies[n] + (p - a->base);
    }
    return NULL;
}

static attn_tensors moved_tensors(unsigned char *const copies[AREAS], const attn_tensors *t) {
    attn_tensors h = *t;
    h.q = moved(copies, t->q), h.k = moved(copies, t->k), h.v = moved(copies, t->v),
    h.o = moved(copies, t->o);
    h.lse = moved(copies, t->lse), h.bias = moved(copies, t->bias), h.mask = moved(copies, t->mask);
    h.alibi_slopes = moved(copies, t->alibi_slopes), h.sinks = moved(copies, t->sinks);
    h.cu_seqlens_q = moved(copies, t->cu_seqlens_q), h.cu_seqlens_kv = moved(copies, t->cu_seqlens_kv);
    h.seqused_q = moved(copies, t->seqused_q), h.seqused_kv = moved(copies, t->seqused_kv);
    h.leftpad_kv = moved(copies, t->leftpad_kv), h.kv_batch_index = moved(copies, t->kv_batch_index);
    h.block_table = moved(copies, t->block_table);
    return h;
}

static attn_status run_on_device(check_candidate *c, const attn_tensors *t, void *workspace, void *stream) {
    const check_memory *m = &device_data->memory;
    unsigned char *copies[AREAS] = { NULL };
    int bad = 0;
    for (int n = 0; n < AREAS; n++) {
        const area *a = &device_data->areas[n];
        if (!a->base) continue;
        copies[n] = malloc(a->total);
        bad |= !copies[n] || m->download(m->context, copies[n], a->base, a->total);
    }
    const attn_tensors host = moved_tensors(copies, t);
    const attn_status status =
        bad ? ATTN_DEVICE_ERROR : mutant_run(c, &host, moved(copies, workspace), stream);
    for (int n = 0; n < AREAS; n++) {
        const area *a = &device_data->areas[n];
        if (copies[n]) bad |= m->upload(m->context, a->base, copies[n], a->total);
        free(copies[n]);
    }
    return bad ? ATTN_DEVICE_ERROR : status;
}
#endif
