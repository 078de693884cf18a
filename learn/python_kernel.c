/* python_kernel.c — lets a Python function be checked, timed and ranked like any kernel (--kernel ./mine.py):
 * this plug-in keeps one Python process (python_kernel.py) and hands it the tensors through shared memory.
 * Compiled with PYTHON_SCRIPT (the learner's file) and PYTHON_RUNNER (python_kernel.py). */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "attn/attn_plugin.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static struct { pid_t owner; int memory, line; float *base; size_t size; } python;     /* of this process */

/* Start the interpreter: it inherits the memory as descriptor 3 and the line as 4. */
static int start(void) {
    int ends[2];
    if (python.owner == getpid()) return 1;
    python.memory = memfd_create("attn", 0);
    if (python.memory < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return 0;
    const char *program = getenv("PYTHON");
    const pid_t child = fork();
    if (child < 0) return 0;
    if (!child) {
        if (dup2(python.memory, 100) < 0 || dup2(ends[1], 101) < 0 || dup2(100, 3) < 0 || dup2(101, 4) < 0)
            _exit(127);
        for (int i = 5; i < 1024; i++) close(i);      /* or it would keep the caller's pipes, and its own
                                                         line, open */
        execlp(program ? program : "python3", program ? program : "python3", PYTHON_RUNNER, PYTHON_SCRIPT,
               (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    python.line = ends[0];
    python.owner = getpid();
    python.base = NULL;
    python.size = 0;
    return 1;
}

static int reserve(size_t bytes) {
    if (bytes <= python.size) return 1;
    if (ftruncate(python.memory, (off_t)bytes)) return 0;
    if (python.base) munmap(python.base, python.size);
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, python.memory, 0);
    python.base = map == MAP_FAILED ? NULL : map;
    python.size = python.base ? bytes : 0;
    return python.base != NULL;
}

/* Between a strided tensor and its dense copy [batch, rows, heads, dim]; in: 1 = into the copy. */
static void copy(float *dense, char *tensor, attn_stride s, int64_t batch, int64_t rows, int64_t heads,
                 int64_t dim, int in) {
    for (int64_t b = 0; b < batch; b++)
        for (int64_t i = 0; i < rows; i++)
            for (int64_t h = 0; h < heads; h++, dense += dim) {
                float *at = (float *)tensor + b * s.batch + i * s.seq + h * s.head;
                if (in) memcpy(dense, at, (size_t)dim * 4);
                else memcpy(at, dense, (size_t)dim * 4);
            }
}

static attn_status run(const attn_problem *p, const attn_tensors *t, void *workspace, void *stream) {
    (void)workspace, (void)stream;
    const int64_t q = p->batch * p->q_len * p->q_heads * p->qk_dim, kv = p->batch * p->kv_len * p->kv_heads,
                  o = p->batch * p->q_len * p->q_heads * p->v_dim, lse = p->batch * p->q_heads * p->q_len;
    if (!start() || !reserve((size_t)(q + kv * (p->qk_dim + p->v_dim) + o + lse) * 4 + 4))
        return ATTN_DEVICE_ERROR;
    float *dense_k = python.base + q, *dense_v = dense_k + kv * p->qk_dim, *dense_o = dense_v + kv * p->v_dim;
    copy(python.base, (char *)t->q, p->q_stride, p->batch, p->q_len, p->q_heads, p->qk_dim, 1);
    copy(dense_k, (char *)t->k, p->k_stride, p->batch, p->kv_len, p->kv_heads, p->qk_dim, 1);
    copy(dense_v, (char *)t->v, p->v_stride, p->batch, p->kv_len, p->kv_heads, p->v_dim, 1);
    memset(dense_o, 0xff, (size_t)(o + lse) * 4);
    char answer = 0;
    if (dprintf(python.line, "%lld %lld %lld %lld %lld %lld %lld %d %d %.9g\n", (long long)p->batch,
                (long long)p->q_len, (long long)p->kv_len, (long long)p->q_heads, (long long)p->kv_heads,
                (long long)p->qk_dim, (long long)p->v_dim, (int)p->causal, (int)p->top_left,
                (double)p->scale) < 0 ||
        read(python.line, &answer, 1) != 1 || answer != 'y') {
        python.owner = 0;       /* the interpreter has said why on stderr */
        return ATTN_DEVICE_ERROR;
    }
    copy(dense_o, t->o, p->o_stride, p->batch, p->q_len, p->q_heads, p->v_dim, 0);
    for (int64_t b = 0; t->lse && b < p->batch; b++)
        for (int64_t h = 0; h < p->q_heads; h++)
            for (int64_t i = 0; i < p->q_len; i++)
                t->lse[b * p->lse_stride.batch + h * p->lse_stride.head + i * p->lse_stride.seq] =
                    dense_o[o + (b * p->q_heads + h) * p->q_len + i];
    return ATTN_OK;
}

const attn_plugin attn_plugin_kernel = { sizeof(attn_plugin), ATTN_CPU, PYTHON_SCRIPT, "a Python function",
                                         attn_plugin_plain, NULL, run, NULL };
