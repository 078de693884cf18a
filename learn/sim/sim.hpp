/* sim.hpp — what the simulator's parts share: fibres (sim_threads.cpp), memory (sim_memory.cpp), the host API,
 * PTX (sim_tensor.cpp), Hopper (sim_hopper.cpp), plug-in kernels (sim_plugin.cpp). */
#ifndef CUDA_SIM_HPP
#define CUDA_SIM_HPP
#include "cuda_runtime.h"
#include <string>
#include <vector>

enum sim_state { SIM_RUN, SIM_BARRIER, SIM_WARP, SIM_DONE };

/* Counts how often a thread has passed each instruction: lanes meet at the n-th visit of the same instruction. */
struct sim_visits {
    struct slot { const void *site; uint32_t count; };
    slot slots[512];
    uint32_t next(const void *site);
    void clear() { memset(slots, 0, sizeof slots); }
};

struct sim_thread {
    sim_state state;
    int index, warp, lane;
    uint3 position;
    unsigned mask;                  /* lanes awaited while SIM_WARP */
    const void *site;               /* where it waits at a barrier */
    char *stack;
    void *stack_pointer;
    sim_visits visits;
};

enum { SIM_STACK = 128 << 10, SIM_MAX_THREADS = 1024 };

struct sim_block {                  /* the block that runs now */
    sim_thread *current;            /* NULL: host code runs */
    int threads;
    uint32_t number, launch;        /* linear block index; launch counter */
    uint32_t epoch;                 /* barriers passed */
    uint32_t warp_epoch[32];        /* warp rendezvous passed */
    bool fenced, acquired;          /* has done __threadfence; has done an atomic */
    sim_counters *count;
    const sim_call *call;           /* its arguments are read like registers */
    size_t call_bytes;
    std::string kernel;
};
extern sim_block sim_now;

/* sim_memory.cpp */
void sim_memory_block_begin();
void sim_memory_block_end();
void sim_memory_flush();            /* lanes of every request so far have arrived: count them */
void sim_dynamic_begin(size_t bytes);
void sim_mark_written(const void *p, size_t bytes);
bool sim_is_device(const void *p, size_t bytes);
bool sim_is_pinned(const void *p);
void sim_read_shared(const void *p, int bytes, const void *site);
void sim_access(const void *p, int bytes, bool store, const void *site);
void *sim_shared_pointer(uint32_t address);          /* of an address that __cvta_generic_to_shared gave */

void sim_copied(const void *p, int bytes, const void *site);     /* the copy engine has read global memory */

/* sim_threads.cpp */
void sim_meet(const void *site);    /* the running thread waits until its whole warp has come here */
void sim_yield();                   /* other threads run, then this one goes on */

/* reports: at most a few of each kind, with file and line of the instruction */
void sim_complain(const char *kind, const void *site, const char *format, ...) __attribute__((format(printf, 3, 4)));
std::string sim_place(const void *site);

/* sim_host.cpp */
extern bool sim_silent;             /* no report when the process ends */
sim_counters *sim_counters_of(const std::string &kernel);
void sim_run_grid(const char *name, dim3 grid, dim3 block, size_t shared, const sim_call *call, size_t call_bytes);
#endif
