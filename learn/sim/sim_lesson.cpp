/* sim_lesson.cpp — runs a CUDA plug-in kernel under the simulator as a lesson: right against float64 on sizes around the
 * tile edges, then the bytes that its warps ask for beside the bytes that its source claims. */
#include "lesson.h"
#include "sim.hpp"
#include "sim_plugin.hpp"
#include <cstring>

struct shape { int64_t heads, kv_heads, rows, keys, dim, v_dim; bool causal; };

/* ---- numbers of 16 bits ---- */

static uint16_t narrow(float x, attn_dtype type) {       /* these data are exact in both types */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (type == ATTN_BF16) return (uint16_t)(bits >> 16);
    return x == 0 ? 0 : (uint16_t)(bits >> 16 & 0x8000 | ((bits >> 23 & 255) - 112) << 10 | bits >> 13 & 1023);
}

static float widen(uint16_t h, attn_dtype type) {
    const uint32_t wide = (uint32_t)h << 16;
    float x;
    memcpy(&x, &wide, 4);
    if (type == ATTN_BF16) return x;
    if ((h & 0x7c00) == 0x7c00) return NAN;
    const float value = std::ldexp((float)(h & 0x7c00 ? (h & 1023) | 1024 : h & 1023), (h & 0x7c00 ? h >> 10 & 31 : 1) - 25);
    return h >> 15 ? -value : value;
}

struct tensor {                     /* dense [rows, heads, dim] */
    attn_dtype type;
    std::vector<float> value;
    std::vector<uint16_t> half;
    /* Multiples of 1/64 up to 2, so that they are the same numbers in every type. */
    tensor(int64_t n, attn_dtype t, uint64_t seed) : type(t), value(random_floats((size_t)n, seed)) {
        for (float &x : value) x = std::round(x * 64) / 64;
    }
    const void *data() {
        if (type == ATTN_F32) return value.data();
        for (float x : value) half.push_back(narrow(x, type));
        return half.data();
    }
};

/* ---- one run ---- */

static attn_problem problem_of(const shape &s, attn_dtype type) {
    attn_problem p = attn_problem_init();
    p.dtype = p.o_dtype = type, p.batch = p.kv_batch = 1, p.q_heads = s.heads, p.kv_heads = s.kv_heads;
    p.q_len = s.rows, p.kv_len = s.keys, p.qk_dim = s.dim, p.v_dim = s.v_dim, p.causal = s.causal;
    p.scale = 1 / std::sqrt((float)s.dim);
    p.q_stride = { s.rows * s.heads * s.dim, s.heads * s.dim, s.dim };
    p.k_stride = { s.keys * s.kv_heads * s.dim, s.kv_heads * s.dim, s.dim };
    p.v_stride = { s.keys * s.kv_heads * s.v_dim, s.kv_heads * s.v_dim, s.v_dim };
    p.o_stride = { s.rows * s.heads * s.v_dim, s.heads * s.v_dim, s.v_dim };
    p.lse_stride.batch = s.heads * s.rows, p.lse_stride.head = s.rows, p.lse_stride.seq = 1;
    return p;
}

struct answer { std::vector<double> o, lse; };

static answer oracle(const shape &s, const tensor &q, const tensor &k, const tensor &v, const attn_problem &p) {
    answer a = { std::vector<double>((size_t)(s.rows * s.heads * s.v_dim)), std::vector<double>((size_t)(s.heads * s.rows)) };
    std::vector<double> w((size_t)s.keys);
    for (int64_t h = 0; h < s.heads; h++)
        for (int64_t i = 0; i < s.rows; i++) {
            const int64_t g = h / (s.heads / s.kv_heads), n = attn_plugin_limit(&p, i);
            double top = -INFINITY, sum = 0;
            for (int64_t j = 0; j < n; j++) {
                w[j] = 0;
                for (int64_t x = 0; x < s.dim; x++)
                    w[j] += (double)q.value[i * p.q_stride.seq + h * s.dim + x] * k.value[j * p.k_stride.seq + g * s.dim + x];
                top = std::fmax(top, w[j] *= p.scale);
            }
            for (int64_t j = 0; j < n; j++) sum += w[j] = std::exp(w[j] - top);
            a.lse[h * s.rows + i] = n ? top + std::log(sum) : -INFINITY;
            for (int64_t j = 0; j < n; j++)
                for (int64_t x = 0; x < s.v_dim; x++)
                    a.o[i * p.o_stride.seq + h * s.v_dim + x] += w[j] / sum * v.value[j * p.v_stride.seq + g * s.v_dim + x];
        }
    return a;
}

/* Run once on poisoned outputs and judge. @return the problem that was run */
static attn_problem run(const shape &s, attn_dtype type) {
    const attn_problem p = problem_of(s, type);
    tensor q(s.rows * s.heads * s.dim, type, 1), k(s.keys * s.kv_heads * s.dim, type, 2);
    tensor v(s.keys * s.kv_heads * s.v_dim, type, 3), o(s.rows * s.heads * s.v_dim, type, 4);
    for (int64_t j = 0; j < s.keys; j++)              /* rising scores: every tile of keys moves the maximum */
        for (int64_t g = 0; g < s.kv_heads; g++) k.value[j * p.k_stride.seq + g * s.dim] = std::floor((float)(j * 8 / s.keys));
    for (int64_t i = 0; i < s.rows * s.heads; i++) q.value[i * s.dim] = 2;
    const answer want = oracle(s, q, k, v, p);
    std::vector<float> lse((size_t)(s.heads * s.rows), NAN), got(o.value.size(), NAN);
    o.half.assign(o.value.size(), 0xffff);
    attn_tensors t = attn_tensors_init();
    t.q = q.data(), t.k = k.data(), t.v = v.data(), t.lse = lse.data();
    t.o = type == ATTN_F32 ? (void *)got.data() : (void *)o.half.data();
    const attn_status status = sim_plugin_run(&p, &t, nullptr, nullptr);
    for (size_t n = 0; n < got.size() && type != ATTN_F32; n++) got[n] = widen(o.half[n], type);
    char text[96];
    snprintf(text, sizeof text, "%lld heads, %lld x %lld x %lld%s%s", (long long)s.heads, (long long)s.rows, (long long)s.keys,
             (long long)s.dim, s.causal ? ", causal" : "", type == ATTN_F32 ? "" : type == ATTN_BF16 ? ", bf16" : ", f16");
    compare(text, got, want.o, type == ATTN_F32 ? 4e-6 : type == ATTN_BF16 ? 1.6e-2 : 2e-3);
    double worst = 0;
    for (size_t n = 0; n < lse.size(); n++) {
        const double error = lse[n] == want.lse[n] ? 0 : std::fabs(lse[n] - want.lse[n]);
        if (!(error <= worst)) worst = error;
    }
    snprintf(text, sizeof text, "       its log-sum-exp: max error %.1e (allowed 2.0e-05)", worst);
    expect(worst <= 2e-5, text + 7);
    if (status) expect(false, "the run ended without an error of the simulator");
    return p;
}

static void count(const shape &s, attn_dtype type) {
    printf("\nBytes of far memory, %lld x %lld x %lld: what the source claims, and what its warps asked for.\n"
           "(Words that several lanes of a warp want at once travel once.)\n", (long long)s.rows, (long long)s.keys,
           (long long)s.dim);
    sim_reset();
    run(s, type);
    const attn_plugin &kernel = sim_plugin_inside();
    attn_traffic claimed = {}, counted = {};
    sim_plugin_counted(&counted);
    if (kernel.traffic) kernel.traffic(&claimed);
    const struct { const char *name; int64_t claimed, counted; } rows[] = {
        { "q", claimed.q, counted.q }, { "k", claimed.k, counted.k }, { "v", claimed.v, counted.v },
        { "o, and what a row keeps", claimed.o, counted.o }, { "scores", claimed.scores, counted.scores },
    };
    int64_t all = 0;
    for (const auto &row : rows) {
        if (kernel.traffic) predict(row.name, (double)row.claimed, (double)row.counted, 0);
        else printf("       %-44s counted %10lld\n", row.name, (long long)row.counted);
        char name[64];
        snprintf(name, sizeof name, "bytes of %.*s", (int)strcspn(row.name, ","), row.name);
        fact(name, (double)row.counted);
        all += row.counted;
    }
    const sim_counters c = sim_count(nullptr);
    fact("bytes", (double)all);
    fact("blocks", (double)c.blocks);
    fact("barriers", (double)c.barriers);
    fact("launches", (double)c.launches);
}

int main() {
    const attn_plugin &kernel = sim_plugin_inside();
    sim_silent = false;
    lesson_begin(kernel.name);
    printf("%s\n", kernel.summary);
    static const shape cases[] = { { 4, 2, 33, 70, 16, 24, true }, { 1, 1, 70, 33, 8, 8, true }, { 2, 1, 65, 65, 32, 16, false },
                                   { 1, 1, 1, 1, 8, 8, false }, { 1, 1, 66, 300, 8, 72, true } };
    int ran = 0;
    attn_dtype counted_in = ATTN_F32;
    for (attn_dtype type : { ATTN_F32, ATTN_F16, ATTN_BF16 })
        for (const shape &s : cases) {
            const attn_problem p = problem_of(s, type);
            if (sim_plugin_refuse(&p)) continue;
            run(s, type);
            counted_in = type;
            ran++;
        }
    expect(ran > 0, "the kernel computes dense attention in at least one type");
    if (ran) count({ 1, 1, 128, 128, 64, 64, false }, counted_in);
    return lesson_end();
}
