/* sim_plugin.cpp — a CUDA plug-in kernel made into a CPU one: its tensors are copied into simulated device memory, it
 * runs there, O and LSE come back, and the bytes that it asked for are counted tensor by tensor.
 * The kernel's own attn_plugin_kernel is compiled as sim_kernel_inside; this file defines the one that attn loads. */
#include "sim_plugin.hpp"
#include "sim.hpp"
#include <algorithm>

extern "C" const attn_plugin sim_kernel_inside;

/* Elements from the first to behind the last one of a tensor [batch, rows, heads, dim]. */
static int64_t extent(attn_stride s, int64_t batch, int64_t rows, int64_t heads, int64_t dim) {
    if (!batch || !rows || !heads) return 0;
    return (batch - 1) * s.batch + (rows - 1) * s.seq + (heads - 1) * s.head + dim;
}

struct copy_of {
    void *host = nullptr, *device = nullptr;
    size_t bytes = 0;
    copy_of(const void *from, int64_t elements, int64_t size, const char *name, bool input) {
        if (!from) return;
        host = (void *)from, bytes = (size_t)(elements * size);
        cudaMalloc(&device, bytes + 4);
        sim_name(device, name);
        memcpy(device, host, bytes);            /* gaps between rows come back as they were */
        if (input) sim_mark_written(device, bytes);
    }
    ~copy_of() { cudaFree(device); }
};

static attn_problem on_device(const attn_problem *p) {
    attn_problem same = *p;
    same.device = ATTN_CUDA;
    return same;
}

static attn_traffic counted;

static int64_t both_ways(const char *name) { return sim_tensor_bytes(name, 0) + sim_tensor_bytes(name, 1); }

attn_status sim_plugin_run(const attn_problem *problem, const attn_tensors *t, void *, void *) {
    const attn_problem p = on_device(problem);
    const int64_t in = p.dtype == ATTN_F32 ? 4 : 2, out = p.o_dtype == ATTN_F32 ? 4 : 2;
    const int64_t scratch = sim_kernel_inside.workspace ? sim_kernel_inside.workspace(&p) : 0;
    copy_of q(t->q, extent(p.q_stride, p.batch, p.q_len, p.q_heads, p.qk_dim), in, "q", true);
    copy_of k(t->k, extent(p.k_stride, p.batch, p.kv_len, p.kv_heads, p.qk_dim), in, "k", true);
    copy_of v(t->v, extent(p.v_stride, p.batch, p.kv_len, p.kv_heads, p.v_dim), in, "v", true);
    copy_of o(t->o, extent(p.o_stride, p.batch, p.q_len, p.q_heads, p.v_dim), out, "o", false);
    const attn_stride rows = { p.lse_stride.batch, p.lse_stride.seq, p.lse_stride.head };
    copy_of lse(t->lse, extent(rows, p.batch, p.q_len, p.q_heads, 1), 4, "lse", false);
    void *workspace = nullptr;
    cudaMalloc(&workspace, (size_t)scratch + 4);
    sim_name(workspace, "workspace");
    attn_tensors x = *t;
    x.q = q.device, x.k = k.device, x.v = v.device, x.o = o.device, x.lse = (float *)lse.device;
    const int before = sim_errors();
    attn_status status = sim_kernel_inside.run(&p, &x, scratch ? workspace : nullptr, nullptr);
    if (cudaDeviceSynchronize() || sim_errors() != before) status = ATTN_DEVICE_ERROR;
    if (o.host) memcpy(o.host, o.device, o.bytes);
    if (lse.host) memcpy(lse.host, lse.device, lse.bytes);
    counted = { both_ways("q"), both_ways("k"), both_ways("v"), both_ways("o"), both_ways("workspace") };
    attn_traffic claimed = { 0, 0, 0, 0, 1 };
    if (sim_kernel_inside.traffic) sim_kernel_inside.traffic(&claimed);
    if (!claimed.scores) counted.o += counted.scores, counted.scores = 0;      /* it keeps the rows' m and l there */
    cudaFree(workspace);
    return status;
}

const char *sim_plugin_refuse(const attn_problem *problem) {
    const attn_problem p = on_device(problem);
    const attn_stride strides[] = { p.q_stride, p.k_stride, p.v_stride, p.o_stride };
    for (const attn_stride &s : strides)
        if (s.batch < 0 || s.seq < 0 || s.head < 0) return "the simulator copies tensors with positive strides only";
    return sim_kernel_inside.refuse ? sim_kernel_inside.refuse(&p) : nullptr;
}

void sim_plugin_counted(attn_traffic *out) { *out = counted; }
const attn_plugin &sim_plugin_inside() { return sim_kernel_inside; }

static const bool silent = sim_silent = true;       /* no table at the end of every process that loads this */

extern "C" const attn_plugin attn_plugin_kernel = { sizeof(attn_plugin), ATTN_CPU, "simulated",
    "a CUDA kernel under the simulator", sim_plugin_refuse, nullptr, sim_plugin_run, sim_plugin_counted };
