/* attn.h — exact attention, O = softmax(scale * Q K^T + bias, masked) V, on CPU and CUDA behind one C header.
 *
 *   attn_problem  what to compute   plain data: shapes, strides, dtypes, masks, batch kind; zero = default
 *   attn_plan     how to compute it one kernel, its schedule, its workspace; immutable, shareable
 *   attn_tensors  on what           pointers only; change on every call
 *
 *       attn_problem p = ATTN_PROBLEM_INIT;
 *       p.batch = 1; p.q_heads = 8; p.q_len = 128; p.qk_dim = 64; p.causal = 1;
 *       attn_tensors t = ATTN_TENSORS_INIT;
 *       t.q = q; t.k = k; t.v = v; t.o = o;
 *       if (attn_attend(&p, &t, NULL)) puts(attn_last_error());
 *
 * Conventions. Logical shapes are [batch, seq, heads, dim]. Strides count elements (not bytes), lengths count
 * tokens, int64_t throughout; the last dim is contiguous. SPDX-License-Identifier: Apache-2.0
 * Semantics, the same for every kernel on every device:
 *   - Key j takes part in query i's row iff every mask lets it. With
 *         shift = kv_len - q_len   (bottom-right alignment, the default)   or 0 (top_left = 1)
 *     causal lets j <= i + shift; a window lets i + shift - left <= j <= i + shift + right.
 *   - score = scale * (q . k); then softcap: cap * tanh(score / cap); then + bias, + ALiBi; then masks.
 *   - A row that sees no key: O = 0 and LSE = -inf.
 *   - LSE = ln(sum of exp(score)) over the visible keys, without the sink.
 *   - Memory outside the valid range (padding, unused pages, keys that no mask lets through) may hold
 *     anything, NaN included, and never matters. A NaN or infinity in a used position shows in
 *     exactly the rows that use it.
 *   - Accumulation is f32. The same call on the same machine gives the same bits. */
#ifndef ATTN_H
#define ATTN_H

#include <stddef.h>
#include <stdint.h>

#if defined(ATTN_STATIC)
#define ATTN_API
#elif defined(_WIN32)
#if defined(ATTN_BUILDING)
#define ATTN_API __declspec(dllexport)
#else
#define ATTN_API __declspec(dllimport)
#endif
#else
#define ATTN_API __attribute__((visibility("default")))
#endif

#define ATTN_VERSION_MAJOR 0
#define ATTN_VERSION_MINOR 1
#define ATTN_VERSION_PATCH 0
#define ATTN_VERSION (ATTN_VERSION_MAJOR * 10000 + ATTN_VERSION_MINOR * 100 + ATTN_VERSION_PATCH)

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Status ----------------------------------------------------------------------------------------- */

typedef enum attn_status {
    ATTN_OK           = 0,
    ATTN_INVALID      = -1, /* the caller's mistake: the message names the field, its value and the rule */
    ATTN_UNSUPPORTED  = -2, /* a valid problem that no kernel here computes; attn_explain says why      */
    ATTN_NO_MEMORY    = -3,
    ATTN_DEVICE_ERROR = -4, /* driver missing, launch failed, ...                                       */
    ATTN_STATUS_MAX_ENUM = 0x7fffffff
} attn_status;

/* "ok", "invalid", "unsupported", "no memory", "device error". Never NULL. */
ATTN_API const char *attn_status_name(attn_status status);

/* Why the last call on this thread failed, e.g. "q_heads = 7: must be a multiple of kv_heads = 2".
 * Owned by the library, valid until this thread's next failing call. Empty string if none failed. */
ATTN_API const char *attn_last_error(void);

/* ---- 2. The problem ------------------------------------------------------------------------------------ */

typedef enum attn_pass {
    ATTN_FORWARD   = 0, /* O and LSE */
    ATTN_BACKWARD  = 1, /* reserved: planning it returns ATTN_UNSUPPORTED for now, as does ATTN_MERGE */
    ATTN_KV_APPEND = 2, /* write new rows into the cache K, V; see "Cache append" below */
    ATTN_MERGE     = 3,
    ATTN_PASS_MAX_ENUM = 0x7fffffff
} attn_pass;

typedef enum attn_device { ATTN_CPU = 0, ATTN_CUDA = 1, ATTN_DEVICE_MAX_ENUM = 0x7fffffff } attn_device;

typedef enum attn_dtype {
    ATTN_DTYPE_DEFAULT = 0,
    ATTN_F32  = 1,
    ATTN_F16  = 2, /* IEEE binary16, stored in 16-bit words */
    ATTN_BF16 = 3, /* upper half of an f32, stored in 16-bit words */
    ATTN_DTYPE_MAX_ENUM = 0x7fffffff
} attn_dtype;

typedef enum attn_alibi {
    ATTN_ALIBI_NONE = 0,
    ATTN_ALIBI_PER_HEAD = 1,       /* slopes f32 [q_heads]        */
    ATTN_ALIBI_PER_BATCH_HEAD = 2, /* slopes f32 [batch, q_heads] */
    ATTN_ALIBI_MAX_ENUM = 0x7fffffff
} attn_alibi;

/* Strides in elements. All three zero = dense.
 * Otherwise taken literally (0 repeats along that dim; not for O). */
typedef struct attn_stride { int64_t batch, seq, head; } attn_stride;
/* [batch, head, q, kv]. All four zero = dense [batch, q_heads, q_len, kv_len].
 * Otherwise literal: 0 broadcasts. */
typedef struct attn_score_stride { int64_t batch, head, q, kv; } attn_score_stride;

typedef struct attn_problem {
    uint32_t    struct_size;        /* sizeof(attn_problem); ATTN_PROBLEM_INIT sets it             */
    attn_pass   pass;
    attn_device device;             /* where all tensors live                                       */
    attn_dtype  dtype;              /* of Q, K, V;                              0 = ATTN_F32        */
    attn_dtype  o_dtype;            /* of O: dtype or ATTN_F32;                 0 = dtype           */
    attn_dtype  bias_dtype;         /* of the additive bias;                    0 = no bias         */

    int64_t batch;                  /* sequences, >= 0 (0: nothing to do)                           */
    int64_t q_heads, kv_heads;      /* kv_heads divides q_heads (GQA, MQA);     kv_heads 0 = q_heads */
    int64_t q_len, kv_len;          /* tokens, >= 0; the maxima for ragged batches; kv_len 0 = q_len
                                       unless kv_empty                                              */
    int64_t qk_dim, v_dim;          /* 1 .. 1024;                               v_dim 0 = qk_dim    */
    int32_t kv_empty;               /* 1: kv_len = 0 is meant (every row sees no key)               */
    int32_t v_in_k;                 /* 1: V is the first v_dim columns of K (MLA); tensors.v unused,
                                       v_stride = k_stride                                          */

    attn_stride q_stride, k_stride, v_stride, o_stride; /* batch unused where packed; K, V paged: batch
                                       is the stride between pages, seq between slots of a page     */
    struct { int64_t batch, head, seq; } lse_stride; /* all zero = dense [batch, q_heads, q_len],
                                       packed: [q_heads, q_total]                                   */

    /* Scores. */
    float   scale;                  /* multiplies q . k;                        0 = 1 / sqrt(qk_dim) */
    float   softcap;                /* > 0: score = softcap * tanh(score / softcap);   0 = off      */
    int32_t causal;                 /* 1: j <= i + shift                                            */
    int32_t top_left;               /* 1: shift = 0 for causal, window and ALiBi                    */
    int32_t window;                 /* 1: the two fields below hold                                 */
    int32_t has_mask;               /* 1: tensors.mask, u8, nonzero = visible                       */
    int64_t window_left, window_right; /* keys on each side of i + shift; -1 = unbounded            */
    attn_score_stride bias_stride, mask_stride;
    attn_alibi alibi;               /* adds -slope * |i + shift - j|                                */
    int32_t has_sinks;              /* 1: tensors.sinks, f32 [q_heads]: a logit that takes part in the
                                       denominator of O only                                        */

    /* Ragged batches. Lengths are read from the tensors when running, so one plan serves all values. */
    int32_t packed_q;               /* 1: Q, O are [q_total, heads, dim]; sequence b has rows
                                       cu_seqlens_q[b] .. cu_seqlens_q[b + 1]                       */
    int32_t packed_kv;              /* 1: K, V are [kv_total, heads, dim] by cu_seqlens_kv          */
    int32_t has_seqused_q;          /* 1: seqused_q[b] <= the length above; later rows get O = 0,
                                       LSE = -inf                                                   */
    int32_t has_seqused_kv;         /* 1: seqused_kv[b]: keys in use (a cache's length)             */
    int32_t has_leftpad_kv;         /* 1: the first leftpad_kv[b] keys are padding, not counted as keys */
    int32_t has_kv_batch_index;     /* 1: sequence b reads K, V of row kv_batch_index[b]            */
    int64_t q_total, kv_total;      /* rows of the packed tensors                                   */
    int64_t kv_batch;               /* rows of K, V's batch dim;                0 = batch           */

    /* Paged K/V: [pages, page_size, kv_heads, dim]; key j of sequence b is in page
       block_table[b, j / page_size], slot j % page_size. */
    int64_t page_size;              /* tokens, >= 1;                            0 = not paged       */
    int64_t pages;                  /* pages in the pool; ids are 0 .. pages - 1                    */
    int64_t block_table_cols;       /* entries per sequence; cols * page_size >= kv_len             */
    int64_t block_table_stride;     /* int32 elements between rows;             0 = cols            */

    int32_t strict;                 /* 1: bits also independent of batch neighbours, thread count and
                                       split count                                                  */
    int32_t reserved;               /* 0 */

    /* Cache append (pass ATTN_KV_APPEND; other passes don't look at this group, and it looks at no score
       field: changing `pass` is enough to use one problem for both). K and V are the cache, kv_len its
       capacity in tokens per sequence (paged: 0 = block_table_cols * page_size), contiguous or paged but not
       packed, by kv_batch_index where given. New row i of sequence b goes to slot seqused_kv[b] + i (without
       has_seqused_kv: to slot i), its position is that number too, padding on the left included. No two rows
       may go to the same slot. With v_in_k (MLA) K alone is written. */
    int64_t     new_len;            /* new rows per sequence, >= 0; the maximum where packed        */
    int32_t     packed_new;         /* 1: k_new, v_new are [new_total, heads, dim] by cu_seqlens_new */
    attn_dtype  new_dtype;          /* of k_new, v_new, q (the cache and q_out: dtype);  0 = dtype  */
    int64_t     new_total;          /* rows of the packed k_new, v_new                              */
    attn_stride k_new_stride, v_new_stride, q_out_stride; /* zero = dense                           */
    int32_t     write_q;            /* 1: q_out = q, turned and converted; its rows as q's          */
    int32_t     rotary_dim;         /* columns of a head that are turned, even;  0 = no rotary      */
    int32_t     rotary_first;       /* the first of them (MLA: 512)                                 */
    int32_t     rotary_interleaved; /* 1: pairs (0, 1), (2, 3) ...; 0: column c with c + rotary_dim / 2 */
    int32_t     rotary_q_fixed;     /* 1: all rows of Q at the position of new row 0;
                                       0: row i at that of row i */
    int32_t     has_rotary_offsets; /* 1: rotary_offsets[b] is added to the sequence's positions    */
    attn_dtype  rotary_dtype;       /* of the tables;                            0 = new_dtype      */
    int32_t     reserved_append;    /* 0 */
    int64_t     rotary_rows;        /* positions in the tables: 0 .. rotary_rows - 1                */
    int64_t     rotary_stride;      /* elements between their rows;              0 = rotary_dim / 2 */
} attn_problem;

#ifdef __cplusplus
static inline attn_problem attn_problem_init() {
    attn_problem x = {};
    x.struct_size = (uint32_t)sizeof x;
    return x;
}
#define ATTN_PROBLEM_INIT attn_problem_init()
#else
#define ATTN_PROBLEM_INIT { .struct_size = (uint32_t)sizeof(attn_problem) }
#endif

/* Replace every default by its value and check all fields, as attn_plan_create does.
 * @return ATTN_OK or ATTN_INVALID (the message names the field). */
ATTN_API attn_status attn_problem_resolve(attn_problem *problem);

/* ---- 3. The plan --------------------------------------------------------------------------------------- */

/* Run task(arg, i) once for every i in 0 .. tasks - 1, on any threads, and return when all are done. */
typedef void (*attn_parallel_for)(void *context, int tasks, void (*task)(void *arg, int index), void *arg);

typedef struct attn_options {
    uint32_t    struct_size;        /* sizeof(attn_options); ATTN_OPTIONS_INIT sets it              */
    int32_t     threads;            /* CPU threads; 0 = min(affinity, cgroup quota, ATTN_NUM_THREADS) */
    const char *kernel;             /* force one by name; NULL = the best that fits                 */
    attn_parallel_for parallel_for; /* the caller's thread pool; NULL = the library's own           */
    void       *parallel_context;   /* handed to parallel_for; must outlive the plan                */
    int32_t     cuda_device;        /* device ordinal the plan is for (CUDA problems)               */
    int32_t     splits;             /* parts the keys are split into, where a kernel splits; 0 = it chooses */
    int32_t     checked;            /* 1: CUDA runs first copy lengths and page tables to the host
                                       and check them as CPU runs always do; this waits for the
                                       stream, can't be captured */
    int32_t     reserved;           /* 0 */
} attn_options;

#ifdef __cplusplus
static inline attn_options attn_options_init() {
    attn_options x = {};
    x.struct_size = (uint32_t)sizeof x;
    return x;
}
#define ATTN_OPTIONS_INIT attn_options_init()
#else
#define ATTN_OPTIONS_INIT { .struct_size = (uint32_t)sizeof(attn_options) }
#endif

typedef struct attn_plan attn_plan;

/* Choose a kernel for `problem` and fix its schedule. `options` may be NULL.
 * Everything that can fail, fails here.
 * On success *plan is the caller's, to be given to attn_plan_destroy; on failure *plan is NULL.
 * Thread-safe. A plan holds no tensor pointer and is never written after this call: share it between threads.
 * @return ATTN_OK; ATTN_INVALID; ATTN_UNSUPPORTED; ATTN_NO_MEMORY;
 *         ATTN_DEVICE_ERROR (no driver, no device). */
ATTN_API attn_status attn_plan_create(attn_plan **plan, const attn_problem *problem,
                                      const attn_options *options);
ATTN_API void        attn_plan_destroy(attn_plan *plan); /* NULL is allowed */

/* name; lives as long as the library */
ATTN_API const char *attn_plan_kernel(const attn_plan *plan);
/* resolved; lives as long as the plan */
ATTN_API const attn_problem *attn_plan_problem(const attn_plan *plan);
ATTN_API size_t      attn_plan_workspace(const attn_plan *plan); /* bytes, exact; may be 0 */
ATTN_API int         attn_plan_threads(const attn_plan *plan);   /* CPU threads a run uses at most */

/* One line per registered kernel of the problem's pass and device, best first: "NAME chosen|fits|REASON".
 * It is the planner's own decision code. Writes at most `size` bytes with a final NUL.
 * @return the length that the whole text needs, like snprintf;
 *         a malformed problem gives its error as text. */
ATTN_API int attn_explain(const attn_problem *problem, const attn_options *options, char *text, size_t size);

/* ---- 4. Running ---------------------------------------------------------------------------------------- */

/* Pointers to the first element, in the memory of problem.device (CUDA: all on options.cuda_device; managed
 * memory is fine, host memory is not), aligned to their element. A fast CUDA kernel may want 16 bytes for q,
 * k, v, o, bias and says so; reference_fwd_cuda takes any.
 * Only what the problem asks for is read; `lse` may be NULL where it isn't wanted. Inputs may alias each
 * other, outputs may not alias anything, but q_out may be q itself (same dtype and strides). Length
 * arrays and tables are read when the run executes. ATTN_KV_APPEND writes into the cache behind k and v:
 * no byte but the new rows' own. */
typedef struct attn_tensors {
    uint32_t       struct_size;     /* sizeof(attn_tensors); ATTN_TENSORS_INIT sets it */
    uint32_t       reserved;
    const void    *q;               /* [batch, q_len,  q_heads,  qk_dim] */
    const void    *k;               /* [batch, kv_len, kv_heads, qk_dim] */
    const void    *v;               /* [batch, kv_len, kv_heads, v_dim ] */
    void          *o;               /* [batch, q_len,  q_heads,  v_dim ] */
    float         *lse;             /* [batch, q_heads, q_len], natural log, or NULL */
    const void    *bias;            /* bias_dtype [batch, q_heads, q_len, kv_len]; may be -inf */
    const uint8_t *mask;            /* [batch, q_heads, q_len, kv_len] */
    const float   *alibi_slopes;
    const float   *sinks;
    const int32_t *cu_seqlens_q;    /* [batch + 1], ascending from 0 */
    const int32_t *cu_seqlens_kv;   /* [batch + 1] */
    const int32_t *seqused_q;       /* [batch] */
    const int32_t *seqused_kv;      /* [batch] */
    const int32_t *leftpad_kv;      /* [batch] */
    const int32_t *kv_batch_index;  /* [batch] */
    const int32_t *block_table;     /* [batch, block_table_cols];
                                       entries past a sequence's last page are never read */
    /* ATTN_KV_APPEND */
    const void    *k_new;           /* new_dtype [batch, new_len, kv_heads, qk_dim] */
    const void    *v_new;           /* new_dtype [batch, new_len, kv_heads, v_dim ] */
    void          *q_out;           /* dtype [batch, q_len, q_heads, qk_dim] */
    const void    *rotary_cos, *rotary_sin; /* rotary_dtype [rotary_rows, rotary_dim / 2] */
    const int32_t *rotary_offsets;  /* [batch] */
    const int32_t *cu_seqlens_new;  /* [batch + 1], ascending from 0 */
    int32_t       *seqused_kv_out;  /* [batch], or NULL: the lengths after the append,
                                       for the forward that follows */
    /* Decoding on CUDA */
    const void    *schedule;        /* what attn_plan_schedule wrote for these lengths;
                                       NULL: made in the run */
} attn_tensors;

#ifdef __cplusplus
static inline attn_tensors attn_tensors_init() {
    attn_tensors x = {};
    x.struct_size = (uint32_t)sizeof x;
    return x;
}
#define ATTN_TENSORS_INIT attn_tensors_init()
#else
#define ATTN_TENSORS_INIT { .struct_size = (uint32_t)sizeof(attn_tensors) }
#endif

/* Compute. `workspace`: attn_plan_workspace bytes, 64-byte aligned (CPU) or 256 (CUDA), in the
 * problem's device memory, content irrelevant; NULL if its size is 0. Two concurrent runs must not
 * share a workspace or outputs.
 * `stream`: CUDA only, a CUstream / cudaStream_t; NULL = the default stream. CPU problems ignore it.
 * Allocates nothing, keeps nothing, prints nothing;
 * leaves the floating-point environment as it was. Thread-safe.
 * On CUDA it returns once the work is queued, leaves the caller's context and device as they were, copies
 * nothing, waits for nothing, and may be captured into a graph, whose replays read the lengths and tables
 * anew. There lengths beyond the plan's maxima are cut to them, and a page id out of range never makes a
 * kernel read outside the pool: the rows concerned are unspecified (NaN from reference_fwd_cuda); an append
 * drops rows that have no slot in the cache, and takes the nearest position that the rotary tables have.
 * options.checked makes each an error.
 * @return ATTN_OK; ATTN_INVALID (a needed pointer is NULL, misaligned or on another device; the default
 *         stream while another one is captured; CPU and checked plans: a length or page id out of
 *         range, outputs untouched);
 *         ATTN_DEVICE_ERROR (the message has the driver's name for it; a broken context stays broken). */
ATTN_API attn_status attn_run(const attn_plan *plan, const attn_tensors *tensors, void *workspace,
                              void *stream);

/* A schedule once per step for all layers: kernels that cut the keys of a ragged batch into even shares
 * decide where from the lengths on the device, at the start of each run. Layers with the same lengths
 * can share that decision.
 * `schedule`: attn_plan_schedule_size bytes of device memory, 256-byte aligned; size 0: this plan's kernel
 * makes none, and tensors.schedule is not looked at. Of `lengths` only cu_seqlens, seqused, leftpad_kv are
 * read, when the queued work executes. Give the result as tensors.schedule to runs with the same lengths on
 * streams that wait for it, of this plan or of any with the same batch, heads, dims, maxima, masks and
 * options. A run checks that it fits: if not, its O and LSE become NaN, or with options.checked it is
 * ATTN_INVALID. Other lengths than it was made for: O and LSE are unspecified, but nothing outside the
 * tensors is touched. May be captured into a graph; thread-safe.
 * @return as attn_run. */
ATTN_API size_t      attn_plan_schedule_size(const attn_plan *plan);
ATTN_API attn_status attn_plan_schedule(const attn_plan *plan, const attn_tensors *lengths, void *schedule,
                                        void *stream);

/* Plan, allocate a workspace, run, free: the convenient form for CPU problems. CUDA problems work when their
 * plan needs no workspace, otherwise ATTN_UNSUPPORTED (the library never allocates device memory). */
ATTN_API attn_status attn_attend(const attn_problem *problem, const attn_tensors *tensors, void *stream);

/* ---- 5. What is here ----------------------------------------------------------------------------------- */

typedef struct attn_kernel_info {
    uint32_t    struct_size;        /* set by the caller */
    attn_pass   pass;
    const char *name;
    const char *summary;            /* one line: algorithm and idea */
    const char *unavailable;        /* NULL, or why this machine can't run it */
    attn_device device;
    uint32_t    dtypes;             /* bit (1 << attn_dtype) for each */
} attn_kernel_info;

/* Describe the index-th registered kernel, best first. @return ATTN_OK, or ATTN_INVALID past the last one. */
ATTN_API attn_status attn_kernel_describe(int index, attn_kernel_info *info);

ATTN_API int         attn_version(void);        /* ATTN_VERSION of the library file */
ATTN_API const char *attn_version_string(void); /* "0.1.0" */
ATTN_API const char *attn_build_info(void);     /* compiler, what was built in; one line */
ATTN_API const char *attn_cpu_isa(void);        /* the best instruction set in use:
                                                   "avx512bf16", "avx2", "scalar" */
ATTN_API int         attn_cpu_threads(void);    /* the default thread count here */

#ifdef __cplusplus
}
#endif
#endif
