/* kernel.h — what a kernel says about itself, and what a plan holds.
 * A kernel file ends with one attn_kernel record; one row in kernels.def registers it.
 * The planner, `attn explain`, the checker and the benchmark read the records and nothing else. */
#ifndef ATTN_KERNEL_H
#define ATTN_KERNEL_H
#include "attn/attn.h"

/* What a problem may need beyond plain attention. A kernel that lacks a bit refuses by default;
 * problem.c holds the condition and the sentence for each. */
enum {
    ATTN_NEEDS_CAUSAL     = 1 << 0,
    ATTN_NEEDS_WINDOW     = 1 << 1,
    ATTN_NEEDS_BIAS       = 1 << 2,
    ATTN_NEEDS_MASK       = 1 << 3,
    ATTN_NEEDS_ALIBI      = 1 << 4,
    ATTN_NEEDS_SOFTCAP    = 1 << 5,
    ATTN_NEEDS_SINKS      = 1 << 6,
    ATTN_NEEDS_PACKED     = 1 << 7,  /* cu_seqlens of Q or of K/V */
    ATTN_NEEDS_SEQUSED    = 1 << 8,
    ATTN_NEEDS_LEFTPAD    = 1 << 9,
    ATTN_NEEDS_KV_INDEX   = 1 << 10,
    ATTN_NEEDS_PAGES      = 1 << 11,
    ATTN_NEEDS_GQA        = 1 << 12,
    ATTN_NEEDS_V_DIM      = 1 << 13, /* v_dim != qk_dim */
    ATTN_NEEDS_V_IN_K     = 1 << 14,
    ATTN_NEEDS_O_F32      = 1 << 15, /* O wider than Q, K, V */
    ATTN_NEEDS_STRICT     = 1 << 16,
    ATTN_NEEDS_ROTARY     = 1 << 17, /* these two: the cache append */
    ATTN_NEEDS_CONVERT    = 1 << 18, /* new_dtype != dtype */
    ATTN_NEEDS_ALL        = (1 << 19) - 1
};

#define ATTN_DTYPE_BIT(dtype) (1u << (dtype))
#define ATTN_DTYPE_BITS_ALL (ATTN_DTYPE_BIT(ATTN_F32) | ATTN_DTYPE_BIT(ATTN_F16) | ATTN_DTYPE_BIT(ATTN_BF16))

typedef struct attn_kernel attn_kernel;

struct attn_plan {
    attn_problem       problem;     /* resolved: no field is a default any more */
    const attn_kernel *kernel;
    int                threads;     /* slots that attn_parallel may use at once, >= 1 */
    int                splits;      /* options.splits */
    int                cuda_device;
    int                checked;     /* CUDA: check lengths and tables on the host before each launch */
    attn_parallel_for  parallel_for;
    void              *parallel_context;
    int64_t            workspace;   /* bytes */
    int64_t            schedule[8]; /* the kernel's own numbers, set by its prepare */
    int64_t            schedule_bytes; /* of the schedule that users may keep (attn_plan_schedule); 0: none */
    void              *device_code[4]; /* CUDA kernels: what prepare loaded, owned by the driver layer */
};

struct attn_kernel {
    const char *name;               /* the file's stem */
    const char *summary;            /* one line */
    attn_pass   pass;
    attn_device device;
    unsigned    isa;                /* CPU: bits of isa.def that it executes; CUDA: see cuda/launch.h */
    unsigned    dtypes;             /* ATTN_DTYPE_BIT of Q, K, V */
    unsigned    features;           /* ATTN_NEEDS_* that it computes */
    /* NULL, or a reason that the bits can't say; may be NULL */
    const char *(*refuse)(const attn_problem *);
    /* NULL, or which kernel that this device can run is faster, measured; asked last; may be NULL */
    const char *(*yields)(const attn_problem *, int cuda_device);
    attn_status (*prepare)(attn_plan *);           /* set workspace and schedule; NULL: none needed */
    attn_status (*run)(const attn_plan *, const attn_tensors *, void *workspace, void *stream);
    /* Queue the making of a schedule that run takes as tensors->schedule;
     * NULL where prepare sets no schedule_bytes. */
    attn_status (*schedule)(const attn_plan *, const attn_tensors *, void *schedule, void *stream);
};

/* NULL-terminated, best first. */
extern const attn_kernel *const attn_kernels[];

/* problem.c */
/* Copy a caller's struct of any version: a shorter one is zero-extended, a longer one must end in zeros. */
attn_status attn_struct_import(void *to, size_t to_size, const void *from, size_t from_size,
                               const char *name);
/* Resolve a caller's problem of any known struct_size into a full one. */
attn_status attn_problem_import(attn_problem *to, const attn_problem *from);
unsigned    attn_problem_needs(const attn_problem *resolved);
const char *attn_needs_sentence(unsigned needs_bit);
int64_t     attn_dtype_size(attn_dtype dtype);     /* bytes; 0 for an unknown one */

attn_status attn_check_range(const char *field, int64_t value, int64_t low, int64_t high);
/* Strides not negative, offsets within 62 bits. */
attn_status attn_check_tensor(const char *field, attn_dtype dtype, attn_stride s, int64_t batch, int64_t seq,
                              int64_t heads, int64_t dim);
/* Might two rows of `width` elements share one? Extents and strides: batch, seq, head;
 * they passed the check above. */
int         attn_rows_overlap(const int64_t extents[3], const int64_t strides[3], int64_t width);

/* append.c: what ATTN_KV_APPEND needs where problem.c, plan.c and run.c check a problem and its tensors. */
void        attn_append_sizes(attn_problem *p);        /* before the defaults */
attn_status attn_append_complete(attn_problem *p);     /* after them: its strides, and all its checks */
unsigned    attn_append_needs(const attn_problem *p);
int         attn_append_is_tiny(const attn_problem *p);
attn_status attn_append_check_pointers(const attn_problem *p, const attn_tensors *t);
attn_status attn_append_check_lengths(const attn_problem *p, const attn_tensors *t);

/* plan.c: NULL = fits; otherwise why not. cuda_device: ordinal, for CUDA kernels. */
const char *attn_kernel_refuses(const attn_kernel *kernel, const attn_problem *resolved, int cuda_device);
const char *attn_kernel_unavailable(const attn_kernel *kernel, int cuda_device);

/* run.c: lengths and page ids of `t` (host memory) within their limits? Then its single checks,
 * each with a message that names the field. */
attn_status attn_check_lengths(const attn_problem *p, const attn_tensors *t);
attn_status attn_check_pointer(const char *field, const void *pointer, int needed, size_t alignment);
attn_status attn_check_entry(const char *field, int64_t b, int64_t value, int64_t low, int64_t high);
attn_status attn_check_offsets(const char *field, const int32_t *offsets, int64_t batch, int64_t total,
                               int64_t longest, const char *maximum);

/* isa.c: bits of the instruction sets that this CPU, its OS and ATTN_CPU_ISA let us use. */
unsigned attn_isa_bits(void);
enum {
#define ATTN_ISA(name, index, description) ATTN_ISA_##name = 1 << (index),
#include "isa.def"
#undef ATTN_ISA
    ATTN_ISA_BASE = 0
};

/* error.c: set this thread's message and return the status. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
attn_status attn_fail(attn_status status, const char *format, ...);

/* threads_default.c: min(affinity mask, whole CPUs of the control group's quota, ATTN_NUM_THREADS),
 * at least 1. */
int attn_threads_default(void);

/* threads.c */
/* Run fn(arg, item, slot) for every item in 0 .. items - 1, each once, on at most plan->threads threads.
 * Items are handed out in order; no two concurrent calls get the same slot (0 .. plan->threads - 1).
 * Allocates nothing. The floating-point environment is the default one inside fn (on the calling thread it
 * is so during all of run). */
void attn_parallel(const attn_plan *plan, int64_t items, void (*fn)(void *arg, int64_t item, int slot),
                   void *arg);
/* Make sure that the pool can serve `threads` (starts workers; fewer if the system refuses).
 * @return what it can. */
int attn_threads_reserve(int threads);

/* problem.c: *out = a * b; returns 0 if that overflows int64_t or a factor is negative. */
int attn_multiply(int64_t a, int64_t b, int64_t *out);
#endif
