/* sim_host.cpp — the host side: streams, events and graphs as queues, and the report.
 * Work in a stream is queued and done when somebody waits, in an order that honours stream order and events and nothing
 * else (the youngest stream first): a missing dependency gives wrong numbers here, every time. Time is a model: two copy
 * engines and one compute engine of a toy chip, filled in the order of the calls. */
#include "sim.hpp"
#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>

enum engine { ENGINE_NONE, ENGINE_COMPUTE, ENGINE_TO_DEVICE, ENGINE_TO_HOST, ENGINES };
static const double copy_bytes_per_ms = 12e6, kernel_bytes_per_ms = 60e6, launch_ms = 0.001;

struct sim_event { bool recorded = false, done = true; double time_ms = 0; uint64_t ticket = 0; };
struct operation {
    std::function<double()> work;            /* does it; returns its duration in ms */
    engine where = ENGINE_NONE;
    sim_event *record = nullptr, *wait = nullptr;
    uint64_t ticket = 0;                     /* of the event at the time of the call */
    uint64_t number = 0;                     /* order of calls */
    struct sim_stream *stream = nullptr;
};
struct sim_graph { std::vector<operation> operations; };
struct sim_stream { std::deque<operation> queue; double ready_ms = 0; sim_graph *capture = nullptr; };

static std::vector<sim_stream *> streams;
static double engine_ready[ENGINES], host_ms;
static uint64_t calls, tickets;
static cudaError_t last_error;
static std::map<std::string, sim_counters> counters;
static std::vector<std::string> kernel_order;
static sim_stream *capturing;

static cudaError_t fail(cudaError_t error) { return last_error = error; }

/* ---- doing queued work ---- */

static void finish(operation &op) {
    sim_stream *s = op.stream;
    double start = std::max(s ? s->ready_ms : host_ms, engine_ready[op.where]);
    if (op.wait && op.wait->recorded) start = std::max(start, op.wait->time_ms);
    const double duration = op.work ? op.work() : 0;
    const double end = start + duration;
    if (op.where != ENGINE_NONE) engine_ready[op.where] = end;
    if (s) s->ready_ms = end;
    else host_ms = std::max(host_ms, end);
    if (op.record) {
        op.record->time_ms = end;
        op.record->done = true;
    }
}

static bool runnable(const operation &op) {
    return !op.wait || op.wait->done || op.wait->ticket != op.ticket;
}

/* Drain until `wanted` has nothing left (NULL: all). */
static void drain(sim_stream *wanted) {
    for (;;) {
        if (wanted ? wanted->queue.empty() : std::all_of(streams.begin(), streams.end(), [](sim_stream *s) { return s->queue.empty(); })) break;
        sim_stream *chosen = nullptr;
        for (auto s = streams.rbegin(); s != streams.rend() && !chosen; ++s)
            if (!(*s)->queue.empty() && runnable((*s)->queue.front())) chosen = *s;
        if (!chosen) {
            fprintf(stderr, "sim: streams wait for events that nobody records\n");
            exit(1);
        }
        operation op = chosen->queue.front();
        chosen->queue.pop_front();
        finish(op);
    }
    for (sim_stream *s : streams)
        if (!wanted || s == wanted) host_ms = std::max(host_ms, s->ready_ms);
}

static cudaError_t submit(operation op, sim_stream *stream) {
    op.number = ++calls;
    op.stream = stream;
    if (stream && (stream->capture || capturing)) {
        sim_graph *graph = stream->capture ? stream->capture : capturing->capture;
        graph->operations.push_back(op);
        return cudaSuccess;
    }
    if (!stream) {                            /* the default stream waits for all others, and they for it */
        drain(nullptr);
        finish(op);
        for (sim_stream *s : streams) s->ready_ms = std::max(s->ready_ms, host_ms);
    } else {
        stream->ready_ms = std::max(stream->ready_ms, 0.0);
        stream->queue.push_back(op);
    }
    return cudaSuccess;
}

/* ---- kernels ---- */

sim_counters *sim_counters_of(const std::string &kernel) {
    if (!counters.count(kernel)) kernel_order.push_back(kernel);
    return &counters[kernel];
}

void sim_launch(const char *name, dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                sim_call *owned, size_t call_bytes) {
    std::shared_ptr<sim_call> call(owned);
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (!threads || threads > SIM_MAX_THREADS || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 ||
        shared > 227 * 1024) {
        fail(cudaErrorInvalidConfiguration);
        return;
    }
    std::string kernel = name;
    operation op;
    op.where = ENGINE_COMPUTE;
    op.work = [=]() {
        const sim_counters before = *sim_counters_of(kernel);
        const int bad = sim_errors();
        sim_run_grid(kernel.c_str(), grid, block, shared, call.get(), call_bytes);
        const sim_counters &after = *sim_counters_of(kernel);
        if (sim_errors() != bad && after.out_of_range != before.out_of_range) last_error = cudaErrorIllegalAddress;
        const double sectors = (double)(after.load_sectors + after.store_sectors - before.load_sectors - before.store_sectors);
        return launch_ms + sectors * 32 / kernel_bytes_per_ms;
    };
    submit(op, stream);
}

static void add(sim_counters &sum, const sim_counters &more) {
    const int64_t *from = (const int64_t *)&more;
    for (size_t i = 0; i < sizeof sum / 8; i++) ((int64_t *)&sum)[i] += from[i];
}

sim_counters sim_count(const char *kernel) {
    drain(nullptr);
    if (kernel) return counters[kernel];
    sim_counters sum = {};
    for (auto &entry : counters) add(sum, entry.second);
    return sum;
}

static std::map<std::string, sim_counters> forgotten;      /* counts before the last sim_reset() */

void sim_forget_tensor_bytes();
void sim_reset() {
    drain(nullptr);
    for (auto &entry : counters) {
        add(forgotten[entry.first], entry.second);
        entry.second = sim_counters();
    }
    sim_forget_tensor_bytes();
}

/* ---- copies ---- */

static cudaError_t copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream, bool async) {
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (bytes && ((to_device && !sim_is_device(to, bytes)) || (from_device && !sim_is_device(from, bytes))))
        return fail(cudaErrorInvalidValue);
    operation op;
    op.where = kind == cudaMemcpyHostToDevice ? ENGINE_TO_DEVICE : kind == cudaMemcpyDeviceToHost ? ENGINE_TO_HOST : ENGINE_COMPUTE;
    op.work = [=]() {
        memmove(to, from, bytes);
        if (to_device) sim_mark_written(to, bytes);
        return (double)bytes / copy_bytes_per_ms;
    };
    const bool pageable = (kind == cudaMemcpyHostToDevice && !sim_is_pinned(from)) ||
                          (kind == cudaMemcpyDeviceToHost && !sim_is_pinned(to));
    submit(op, stream);
    if (!async || (pageable && !capturing)) drain(stream);     /* pageable memory: the call waits, nothing overlaps */
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return copy(to, from, bytes, kind, nullptr, false);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(to, from, bytes, kind, stream, true);
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    if (bytes && !sim_is_device(to, bytes)) return fail(cudaErrorInvalidValue);
    operation op;
    op.where = ENGINE_COMPUTE;
    op.work = [=]() {
        memset(to, value, bytes);
        sim_mark_written(to, bytes);
        return (double)bytes / kernel_bytes_per_ms;
    };
    return submit(op, stream);
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }

/* ---- streams, events, graphs ---- */

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = new sim_stream;
    (*stream)->ready_ms = host_ms;
    streams.push_back(*stream);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    drain(stream);
    streams.erase(std::find(streams.begin(), streams.end(), stream));
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    drain(stream);
    return last_error == cudaErrorIllegalAddress ? last_error : cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    drain(nullptr);
    return last_error == cudaErrorIllegalAddress ? last_error : cudaSuccess;
}
cudaError_t cudaDeviceReset() { return cudaDeviceSynchronize(); }

cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = new sim_event; return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { drain(nullptr); delete event; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    if (!event) return fail(cudaErrorInvalidValue);
    event->recorded = true;
    event->done = false;
    event->ticket = ++tickets;
    operation op;
    op.record = event;
    return submit(op, stream);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (!event) return fail(cudaErrorInvalidValue);
    drain(nullptr);
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (!event) return fail(cudaErrorInvalidValue);       /* a null event orders nothing */
    operation op;
    op.wait = event;
    op.ticket = event->ticket;
    return submit(op, stream);
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
    if (!begin || !end || !begin->recorded || !end->recorded) return fail(cudaErrorInvalidValue);
    drain(nullptr);
    *ms = (float)(end->time_ms - begin->time_ms);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (!stream) return fail(cudaErrorStreamCaptureUnsupported);
    drain(nullptr);
    capturing = stream;
    stream->capture = new sim_graph;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = stream->capture;
    stream->capture = nullptr;
    capturing = nullptr;
    return *graph ? cudaSuccess : fail(cudaErrorInvalidValue);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new sim_graph(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
    for (operation op : exec->operations) {
        if (op.record) {
            op.record->done = false;
            op.record->ticket = ++tickets;
        }
        if (op.wait) op.ticket = op.wait->ticket;
        submit(op, op.stream);
    }
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { delete graph; return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { drain(nullptr); delete exec; return cudaSuccess; }

/* ---- the rest ---- */

cudaError_t cudaGetLastError() {
    const cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
const char *cudaGetErrorName(cudaError_t e) { return cudaGetErrorString(e); }
const char *cudaGetErrorString(cudaError_t e) {
    switch (e) {
    case cudaSuccess:                       return "no error";
    case cudaErrorInvalidValue:             return "invalid argument";
    case cudaErrorMemoryAllocation:         return "out of memory";
    case cudaErrorInvalidConfiguration:     return "invalid configuration argument";
    case cudaErrorIllegalAddress:           return "an illegal memory access was encountered";
    case cudaErrorNotReady:                 return "device not ready";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    }
    return "unknown error";
}
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device ? fail(cudaErrorInvalidValue) : cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int) { *value = 4; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "simulated GPU (runs on this CPU)");
    p->totalGlobalMem = (size_t)1 << 30;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerMultiprocessor = 228 << 10;
    p->multiProcessorCount = 4;
    p->warpSize = 32;
    p->maxThreadsPerBlock = SIM_MAX_THREADS;
    p->major = 9;
    p->asyncEngineCount = 2;
    p->concurrentKernels = 1;
    return cudaSuccess;
}

/* All counts of the process, for conformance.py: one line a kernel in the file that SIM_COUNTS names. */
static void save_counts() {
    FILE *file = getenv("SIM_COUNTS") ? fopen(getenv("SIM_COUNTS"), "a") : nullptr;
    if (!file) return;
    for (auto &entry : counters) {
        sim_counters c = entry.second;
        add(c, forgotten[entry.first]);
        const int64_t columns[] = { c.launches, c.load_requests, c.load_sectors, c.store_requests, c.store_sectors,
                                    c.shared_requests, c.shared_wavefronts };
        fprintf(file, "%s", entry.first.c_str());
        for (int64_t n : columns) fprintf(file, "\t%lld", (long long)n);
        fprintf(file, "\n");
    }
    fclose(file);
}

bool sim_silent;
static void report() {
    drain(nullptr);
    save_counts();
    const char *wish = getenv("SIM_REPORT");
    if (sim_silent) return;
    if (wish && !strcmp(wish, "0")) return;
    printf("\ncounted by the simulator (sectors of 32 bytes; ways = 1 means no bank conflict)\n");
    printf("%-28s %7s %9s %8s %8s %9s %6s %8s %6s\n", "kernel", "blocks", "load s/rq", "useful", "store", "KB moved",
           "ways", "barriers", "races");
    for (const std::string &name : kernel_order) {
        const sim_counters &c = counters[name];
        if (!c.blocks) continue;
        const double moved = 32.0 * (double)(c.load_sectors + c.store_sectors);
        printf("%-28s %7lld %9.2f %7.0f%% %8.2f %9.1f %6.2f %8lld %6lld\n", name.c_str(), (long long)c.blocks,
               c.load_requests ? (double)c.load_sectors / (double)c.load_requests : 0,
               moved > 0 ? 100 * (double)(c.load_bytes + c.store_bytes) / moved : 0,
               c.store_requests ? (double)c.store_sectors / (double)c.store_requests : 0, moved / 1024,
               c.shared_ideal ? (double)c.shared_wavefronts / (double)c.shared_ideal : 1, (long long)c.barriers,
               (long long)(c.races + c.divergent_barriers));
    }
    if (sim_errors()) printf("sim: %d problems reported above\n", sim_errors());
}
static const int registered = atexit(report);
