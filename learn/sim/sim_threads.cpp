/* sim_threads.cpp — one fibre per CUDA thread; blocks one after another; barriers, warp rendezvous, shuffles.
 * A fibre runs until it waits. The order in which fibres run can be changed (SIM_ORDER=forward|reverse|SEED): a right
 * kernel doesn't notice. */
#include "sim.hpp"
#include <sys/mman.h>

sim_position sim_here;
sim_block sim_now;

/* ---- switching stacks ---- */
#if defined(__x86_64__)
extern "C" void sim_switch(void **save, void *load);
__asm__(R"(
.text
.globl sim_switch
sim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
static void *first_frame(char *stack, void (*entry)()) {
    void **top = (void **)(stack + SIM_STACK);
    *--top = nullptr;                   /* keeps the stack aligned as after a call */
    *--top = (void *)entry;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    return top;
}
#else
#include <ucontext.h>
static ucontext_t contexts[SIM_MAX_THREADS + 1];
static void sim_switch(void **save, void *load) {
    ucontext_t *from = (ucontext_t *)*save, *to = (ucontext_t *)load;
    swapcontext(from, to);
}
static void *first_frame(char *stack, void (*entry)()) {
    static int next;
    ucontext_t *c = &contexts[1 + next++ % SIM_MAX_THREADS];
    getcontext(c);
    c->uc_stack.ss_sp = stack;
    c->uc_stack.ss_size = SIM_STACK;
    makecontext(c, entry, 0);
    return c;
}
#endif

static sim_thread threads[SIM_MAX_THREADS];
static void *scheduler;
static int order[SIM_MAX_THREADS];
static uint64_t slots[32][2][32];       /* [warp][parity][lane]: what a lane offers to a shuffle */

static void to_scheduler(sim_state state) {
    sim_thread *t = sim_now.current;
    t->state = state;
    sim_switch(&t->stack_pointer, scheduler);
}

static void fibre() {
    sim_now.call->run();
    to_scheduler(SIM_DONE);
}

static void resume(sim_thread *t) {
    sim_now.current = t;
    sim_here.thread = t->position;
    sim_switch(&scheduler, t->stack_pointer);
    sim_now.current = nullptr;
}

/* ---- waiting ---- */

static unsigned alive(int warp) {
    unsigned mask = 0;
    for (int i = warp * 32; i < sim_now.threads && i < warp * 32 + 32; i++)
        if (threads[i].state != SIM_DONE) mask |= 1u << (i % 32);
    return mask;
}

/* Let the warp go on if every lane that somebody waits for has come. */
static void try_warp(int warp) {
    unsigned wanted = 0, waiting = 0;
    for (int i = warp * 32; i < sim_now.threads && i < warp * 32 + 32; i++)
        if (threads[i].state == SIM_WARP) {
            waiting |= 1u << (i % 32);
            wanted |= threads[i].mask;
        }
    if (!waiting || (wanted & alive(warp)) != waiting) return;
    sim_now.warp_epoch[warp]++;
    for (int i = warp * 32; i < sim_now.threads && i < warp * 32 + 32; i++)
        if (threads[i].state == SIM_WARP) threads[i].state = SIM_RUN;
}

static void wait_warp(unsigned mask, const void *site) {
    sim_thread *t = sim_now.current;
    if (!(mask >> t->lane & 1)) sim_complain("warp mask", site, "lane %d is not in its own mask 0x%08x", t->lane, mask);
    t->mask = mask | 1u << t->lane;
    t->site = site;
    to_scheduler(SIM_WARP);
}

void __syncwarp(unsigned mask) {
    if (sim_now.current) wait_warp(mask, __builtin_return_address(0));
}

void sim_meet(const void *site) { wait_warp(0xffffffffu, site); }
void sim_yield() { to_scheduler(SIM_RUN); }

void __syncthreads() {
    if (!sim_now.current) return;
    sim_now.current->site = __builtin_return_address(0);
    to_scheduler(SIM_BARRIER);
}

static int barrier_votes, barrier_result;
int __syncthreads_count(int predicate) {
    barrier_votes += predicate != 0;
    sim_now.current->site = __builtin_return_address(0);
    to_scheduler(SIM_BARRIER);
    return barrier_result;
}

void __threadfence() { sim_now.fenced = true; }
int sim_lane() { return sim_now.current ? sim_now.current->lane : 0; }
unsigned __activemask() { return alive(sim_now.current->warp); }
long long clock64() { static long long ticks; return ticks += 10; }

uint64_t sim_exchange(unsigned mask, uint64_t bits, int source) {
    sim_thread *t = sim_now.current;
    const uint32_t side = sim_now.warp_epoch[t->warp] & 1;
    slots[t->warp][side][t->lane] = bits;
    sim_now.count->shuffles++;
    wait_warp(mask, __builtin_return_address(0));
    if (!(mask >> (source & 31) & 1))
        sim_complain("shuffle", t->site, "lane %d reads lane %d, which is not in the mask 0x%08x", t->lane, source, mask);
    return slots[t->warp][side][source & 31];
}

unsigned __ballot_sync(unsigned mask, int predicate) {
    sim_thread *t = sim_now.current;
    const uint32_t side = sim_now.warp_epoch[t->warp] & 1;
    slots[t->warp][side][t->lane] = predicate != 0;
    wait_warp(mask, __builtin_return_address(0));
    unsigned votes = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1 && alive(t->warp) >> i & 1) votes |= (unsigned)slots[t->warp][side][i] << i;
    return votes;
}

/* ---- a block ---- */

static void set_order(int n) {
    static const char *wish = getenv("SIM_ORDER");
    uint64_t seed = wish && *wish >= '0' && *wish <= '9' ? strtoull(wish, nullptr, 10) * 2 + 1 : 0;
    for (int i = 0; i < n; i++) order[i] = wish && !strcmp(wish, "reverse") ? n - 1 - i : i;
    for (int i = n - 1; seed && i > 0; i--) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        const int j = (int)((seed >> 33) % (uint64_t)(i + 1)), keep = order[i];
        order[i] = order[j];
        order[j] = keep;
    }
}

/* Nobody can run: everybody left waits. At a barrier that is how it opens. @return false: deadlock. */
static bool open_barrier() {
    int waiting = 0, done = 0, stuck = 0;
    const void *site = nullptr;
    bool same = true;
    for (int i = 0; i < sim_now.threads; i++) {
        const sim_thread &t = threads[i];
        done += t.state == SIM_DONE;
        stuck += t.state == SIM_WARP;
        if (t.state != SIM_BARRIER) continue;
        same = same && (!site || site == t.site);
        site = t.site;
        waiting++;
    }
    if (!waiting || stuck) {
        for (int i = 0; i < sim_now.threads && stuck; i++)
            if (threads[i].state == SIM_WARP) {
                sim_complain("deadlock", threads[i].site, "lanes wait for lanes that never come (%d at a barrier, %d "
                             "finished): block %u of %s given up", waiting, done, sim_now.number, sim_now.kernel.c_str());
                break;
            }
        return false;
    }
    if (done || !same) {
        sim_now.count->divergent_barriers++;
        sim_complain("divergent barrier", site, done ? "%d threads wait at __syncthreads, %d have left the kernel"
                     : "threads wait at different __syncthreads (%d waiting, %d finished)", waiting, done);
    }
    sim_now.count->barriers++;
    sim_now.epoch++;
    barrier_result = barrier_votes;
    barrier_votes = 0;
    sim_memory_flush();
    for (int i = 0; i < sim_now.threads; i++)
        if (threads[i].state == SIM_BARRIER) threads[i].state = SIM_RUN;
    return true;
}

static void start_thread(int i, dim3 block) {
    sim_thread &t = threads[i];
    if (!t.stack) {
        t.stack = (char *)mmap(nullptr, SIM_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                               -1, 0);
        if (t.stack == MAP_FAILED) {
            fprintf(stderr, "sim: no memory for thread stacks\n");
            exit(1);
        }
    }
    t.state = SIM_RUN;
    t.index = i;
    t.warp = i / 32;
    t.lane = i % 32;
    const unsigned n = (unsigned)i;
    t.position = { n % block.x, n / block.x % block.y, n / (block.x * block.y) };
    t.visits.clear();
    t.stack_pointer = first_frame(t.stack, fibre);
}

static void run_block(dim3 block) {
    memset(sim_now.warp_epoch, 0, sizeof sim_now.warp_epoch);
    sim_now.epoch = 0;
    sim_now.fenced = sim_now.acquired = false;
    barrier_votes = 0;
    for (int i = 0; i < sim_now.threads; i++) start_thread(i, block);
    sim_memory_block_begin();
    for (bool going = true; going;) {
        going = false;
        for (int n = 0; n < sim_now.threads; n++) {
            sim_thread *t = &threads[order[n]];
            if (t->state != SIM_RUN) continue;
            resume(t);
            if (t->state != SIM_BARRIER) try_warp(t->warp);
            going = true;
        }
        if (going) continue;
        bool all_done = true;
        for (int i = 0; i < sim_now.threads; i++) all_done = all_done && threads[i].state == SIM_DONE;
        going = !all_done && open_barrier();
    }
    sim_memory_flush();
    sim_memory_block_end();
}

void sim_run_grid(const char *name, dim3 grid, dim3 block, size_t shared, const sim_call *call, size_t call_bytes) {
    static uint32_t launches;
    sim_now.kernel = name;
    sim_now.count = sim_counters_of(name);
    sim_now.launch = ++launches;
    sim_now.threads = (int)(block.x * block.y * block.z);
    sim_now.count->launches++;
    sim_now.call = call;
    sim_now.call_bytes = call_bytes;
    set_order(sim_now.threads);
    sim_here.block_dim = block;
    sim_here.grid_dim = grid;
    sim_now.number = 0;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                sim_here.block = { x, y, z };
                sim_dynamic_begin(shared);
                run_block(block);
                sim_now.number++;
                sim_now.count->blocks++;
            }
}
