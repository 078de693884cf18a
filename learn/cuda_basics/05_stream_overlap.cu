// 05_stream_overlap.cu — copies and kernels at the same time: streams are queues, events are the arrows between them.
// nvcc -O3 05_stream_overlap.cu -o overlap && ./overlap        (without a GPU: learn run 05 --sim)
// One idea: overlap is a dependency graph. Say every dependency with an event, and nothing more.
// Both sides use pinned memory, so that the gain shown comes from overlap and not from faster copies.
#include "lesson.h"

// Enough arithmetic that a chunk's kernel takes about as long as its copies.
__global__ void work(const float *in, float *out, int n, int rounds) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = in[i];
    for (int r = 0; r < rounds; r++) v = v * 0.5f + 1;
    out[i] = v;
}

static const int rounds = simulated ? 2 : 2000;

struct pipeline {
    int n, chunks;
    float *host_in, *host_out, *in, *out;       // host memory is pinned
    cudaEvent_t begin, end;
};

static pipeline make(int n, int chunks) {
    pipeline p = { n, chunks, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr };
    CHECK(cudaMallocHost(&p.host_in, n * sizeof(float)));
    CHECK(cudaMallocHost(&p.host_out, n * sizeof(float)));
    const std::vector<float> x = random_floats(n, 1);
    for (int i = 0; i < n; i++) p.host_in[i] = x[i];
    p.in = poisoned<float>(n);
    p.out = poisoned<float>(n);
    CHECK(cudaEventCreate(&p.begin));
    CHECK(cudaEventCreate(&p.end));
    return p;
}

static void destroy(pipeline &p) {
    CHECK(cudaFreeHost(p.host_in));
    CHECK(cudaFreeHost(p.host_out));
    CHECK(cudaFree(p.in));
    CHECK(cudaFree(p.out));
    CHECK(cudaEventDestroy(p.begin));
    CHECK(cudaEventDestroy(p.end));
}

static void check(const pipeline &p, const char *what) {
    std::vector<double> want(p.n);
    for (int i = 0; i < p.n; i++) {
        double v = p.host_in[i];
        for (int r = 0; r < rounds; r++) v = v * 0.5 + 1;
        want[i] = v;
    }
    compare(what, std::vector<float>(p.host_out, p.host_out + p.n), want, 1e-6);
    for (int i = 0; i < p.n; i++) p.host_out[i] = NAN;
    CHECK(cudaMemset(p.in, 0xff, p.n * sizeof(float)));
    CHECK(cudaMemset(p.out, 0xff, p.n * sizeof(float)));
    CHECK(cudaDeviceSynchronize());
}

static void copy_in(const pipeline &p, int first, int count, cudaStream_t s) {
    CHECK(cudaMemcpyAsync(p.in + first, p.host_in + first, count * sizeof(float), cudaMemcpyHostToDevice, s));
}
static void compute(const pipeline &p, int first, int count, cudaStream_t s) {
    work<<<(count + 255) / 256, 256, 0, s>>>(p.in + first, p.out + first, count, rounds);
    CHECK(cudaGetLastError());
}
static void copy_out(const pipeline &p, int first, int count, cudaStream_t s) {
    CHECK(cudaMemcpyAsync(p.host_out + first, p.out + first, count * sizeof(float), cudaMemcpyDeviceToHost, s));
}

static float elapsed(const pipeline &p) {
    float ms;
    CHECK(cudaEventSynchronize(p.end));
    CHECK(cudaEventElapsedTime(&ms, p.begin, p.end));
    return ms;
}

// One stream: copy in, compute, copy out, one after the other.
static float serial(const pipeline &p) {
    cudaStream_t s;
    CHECK(cudaStreamCreate(&s));
    CHECK(cudaEventRecord(p.begin, s));
    copy_in(p, 0, p.n, s);
    compute(p, 0, p.n, s);
    copy_out(p, 0, p.n, s);
    CHECK(cudaEventRecord(p.end, s));
    const float ms = elapsed(p);
    CHECK(cudaStreamDestroy(s));
    return ms;
}

// Three streams, one for each kind of work. Events say: chunk i is computed after it was copied in, and copied out
// after it was computed. What has no arrow between it may overlap.
static void issue_three_streams(const pipeline &p, cudaStream_t in, cudaStream_t run, cudaStream_t out,
                                std::vector<cudaEvent_t> &arrived, std::vector<cudaEvent_t> &computed) {
    const int size = (p.n + p.chunks - 1) / p.chunks;
    for (int c = 0; c < p.chunks; c++) {
        const int first = c * size, count = first + size < p.n ? size : p.n - first;
        copy_in(p, first, count, in);
        CHECK(cudaEventRecord(arrived[c], in));
        CHECK(cudaStreamWaitEvent(run, arrived[c]));
        compute(p, first, count, run);
        CHECK(cudaEventRecord(computed[c], run));
        CHECK(cudaStreamWaitEvent(out, computed[c]));
        copy_out(p, first, count, out);
    }
}

struct three_streams {
    cudaStream_t in, run, out;
    std::vector<cudaEvent_t> arrived, computed;
    explicit three_streams(int chunks) : arrived(chunks), computed(chunks) {
        CHECK(cudaStreamCreate(&in));
        CHECK(cudaStreamCreate(&run));
        CHECK(cudaStreamCreate(&out));
        for (int c = 0; c < chunks; c++) {
            CHECK(cudaEventCreateWithFlags(&arrived[c], cudaEventDisableTiming));
            CHECK(cudaEventCreateWithFlags(&computed[c], cudaEventDisableTiming));
        }
    }
    ~three_streams() {
        CHECK(cudaStreamDestroy(in));
        CHECK(cudaStreamDestroy(run));
        CHECK(cudaStreamDestroy(out));
        for (cudaEvent_t e : arrived) CHECK(cudaEventDestroy(e));
        for (cudaEvent_t e : computed) CHECK(cudaEventDestroy(e));
    }
};

static float overlapped(const pipeline &p, three_streams &s) {
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaEventRecord(p.begin, s.in));
    issue_three_streams(p, s.in, s.run, s.out, s.arrived, s.computed);
    CHECK(cudaEventRecord(p.end, s.out));
    return elapsed(p);
}

// The same work recorded once as a graph: the arrows are kept, the calls are paid once.
static float graph(const pipeline &p, three_streams &s) {
    cudaGraph_t recorded;
    cudaGraphExec_t ready;
    cudaEvent_t joined;
    CHECK(cudaEventCreateWithFlags(&joined, cudaEventDisableTiming));
    CHECK(cudaStreamBeginCapture(s.in, cudaStreamCaptureModeGlobal));
    issue_three_streams(p, s.in, s.run, s.out, s.arrived, s.computed);
    CHECK(cudaEventRecord(joined, s.out));            // a capture must end where it began
    CHECK(cudaStreamWaitEvent(s.in, joined));
    CHECK(cudaStreamEndCapture(s.in, &recorded));
    CHECK(cudaGraphInstantiate(&ready, recorded, 0));
    CHECK(cudaEventRecord(p.begin, s.in));
    CHECK(cudaGraphLaunch(ready, s.in));
    CHECK(cudaEventRecord(p.end, s.in));
    const float ms = elapsed(p);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaGraphExecDestroy(ready));
    CHECK(cudaGraphDestroy(recorded));
    CHECK(cudaEventDestroy(joined));
    return ms;
}

int main() {
    lesson_begin("Lesson 05: streams, or: overlap is a dependency graph");
    pipeline p = make(simulated ? 160000 : 1 << 25, 8);
    {
        three_streams s(p.chunks);
        if (!simulated) serial(p);
        const float one = serial(p);
        check(p, "one stream");
        const float three = overlapped(p, s);
        check(p, "three streams and events");
        const float replayed = graph(p, s);
        check(p, "the same as a graph");
        printf("\n%s times, both sides pinned:\n", simulated ? "Model" : "Measured");
        printf("  one stream      %8.3f ms  = copy in + compute + copy out\n", one);
        printf("  three streams   %8.3f ms  %4.2f x  (limit: the longest of the three stages, so at most 3 x)\n", three,
               one / three);
        printf("  graph           %8.3f ms  %4.2f x\n\n", replayed, one / replayed);
        fact("speed-up of three streams", one / three);
        expect(three < one, "overlap pays");
        expect(three > one / 3, "and no more than three stages can overlap");
    }
    // What an event is for. A null event orders nothing, and the API says so: ask for the return code.
    cudaStream_t s;
    CHECK(cudaStreamCreate(&s));
    expect(cudaStreamWaitEvent(s, nullptr, 0) != cudaSuccess, "waiting for a null event is an error, not a wait");
    cudaGetLastError();
    CHECK(cudaStreamDestroy(s));
    destroy(p);
    return lesson_end();
}
