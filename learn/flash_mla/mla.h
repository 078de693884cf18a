/* mla.h — what the MLA lessons share: DeepSeek's sizes with fewer heads, data, counters, a float64 answer, a checker.
 * A token is one cache row [c (LATENT), r (ROPE)]; head h's key is [W_k[h] c, r], its value W_v[h] c. */
#ifndef MLA_H
#define MLA_H
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { HEADS = 16, NOPE = 128, ROPE = 64, LATENT = 512, VALUE = 128, WIDTH = LATENT + ROPE, TOKENS = 512 };

typedef struct {
    float *w_k, *w_v;      /* [HEADS][NOPE][LATENT], [HEADS][VALUE][LATENT] */
    float *q;              /* [HEADS][NOPE + ROPE] */
    float *cache;          /* [TOKENS][WIDTH] */
} mla_step;

static int64_t mla_flops, mla_cache_bytes;      /* counted by the lesson: 2 a multiply-add; bytes read from the cache */

static inline float *mla_array(int64_t n, uint64_t seed, float scale) {
    float *x = malloc((size_t)n * sizeof *x);
    if (!x) exit(2);
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        x[i] = scale * (float)((double)(seed >> 33) / (double)(1u << 30) - 1);
    }
    return x;
}

static inline mla_step mla_make(void) {
    mla_step s = { mla_array((int64_t)HEADS * NOPE * LATENT, 1, 0.08f), mla_array((int64_t)HEADS * VALUE * LATENT, 2, 0.08f),
                   mla_array((int64_t)HEADS * (NOPE + ROPE), 3, 1.7f), mla_array((int64_t)TOKENS * WIDTH, 4, 1.7f) };
    for (int t = 0; t < TOKENS; t++) s.cache[t * WIDTH + LATENT] = (float)t / 32 - 8;    /* rising scores: the maximum moves */
    return s;
}

static inline void mla_free(mla_step s) { free(s.w_k), free(s.w_v), free(s.q), free(s.cache); }

/* The definition in float64: out [HEADS][VALUE]. */
static inline void mla_oracle(mla_step s, int tokens, double *out) {
    double *p = malloc((size_t)tokens * sizeof *p), *key = malloc(NOPE * sizeof *key), *mean = malloc(LATENT * sizeof *mean);
    for (int h = 0; h < HEADS; h++) {
        const float *q = s.q + h * (NOPE + ROPE);
        double top = -INFINITY, sum = 0;
        for (int t = 0; t < tokens; t++) {
            const float *c = s.cache + t * WIDTH;
            double score = 0;
            for (int n = 0; n < NOPE; n++) {
                key[n] = 0;
                for (int l = 0; l < LATENT; l++) key[n] += (double)s.w_k[(h * NOPE + n) * LATENT + l] * c[l];
                score += q[n] * key[n];
            }
            for (int r = 0; r < ROPE; r++) score += (double)q[NOPE + r] * c[LATENT + r];
            p[t] = score / sqrt(NOPE + ROPE);
            top = p[t] > top ? p[t] : top;
        }
        for (int t = 0; t < tokens; t++) sum += p[t] = exp(p[t] - top);
        for (int l = 0; l < LATENT; l++) {
            mean[l] = 0;
            for (int t = 0; t < tokens; t++) mean[l] += p[t] / sum * s.cache[t * WIDTH + l];
        }
        for (int v = 0; v < VALUE; v++) {
            out[h * VALUE + v] = 0;
            for (int l = 0; l < LATENT; l++) out[h * VALUE + v] += s.w_v[(h * VALUE + v) * LATENT + l] * mean[l];
        }
    }
    free(p), free(key), free(mean);
}

static inline float mla_dot(const float *a, const float *b, int n) {
    float lanes[16] = { 0 }, sum = 0;
    for (int i = 0; i < n; i += 16)
        for (int j = 0; j < 16; j++) lanes[j] += a[i + j] * b[i + j];
    for (int j = 0; j < 16; j++) sum += lanes[j];
    mla_flops += 2 * n;
    return sum;
}

/* A number that came out of this run, for `learn quiz`: one line in the file that LEARN_FACTS names. */
static inline void mla_fact(const char *name, double value) {
    FILE *file = getenv("LEARN_FACTS") ? fopen(getenv("LEARN_FACTS"), "a") : NULL;
    if (!file) return;
    fprintf(file, "%s\t%.17g\n", name, value);
    fclose(file);
}

/* Check attention(step, tokens, out) for several numbers of tokens, then count and time TOKENS. @return exit code */
static inline int mla_check(const char *name, void (*attention)(mla_step, int, float *), int64_t predicted_flops,
                            int64_t predicted_bytes) {
    const mla_step s = mla_make();
    float *out = malloc(HEADS * VALUE * sizeof *out);
    double *want = malloc(HEADS * VALUE * sizeof *want), worst = 0;
    const int counts[] = { 1, 2, 63, 64, 65, 130, TOKENS };
    printf("%s: %d heads, cache rows of %d + %d\n", name, HEADS, LATENT, ROPE);
    for (size_t n = 0; n < sizeof counts / sizeof *counts; n++) {
        for (int i = 0; i < HEADS * VALUE; i++) out[i] = NAN;
        mla_oracle(s, counts[n], want);
        attention(s, counts[n], out);
        for (int i = 0; i < HEADS * VALUE; i++)
            if (!(fabs(out[i] - want[i]) <= worst) && !isnan(worst)) worst = fabs(out[i] - want[i]);   /* NaN stays */
    }
    mla_flops = mla_cache_bytes = 0;
    const clock_t begin = clock();
    attention(s, TOKENS, out);
    const double ms = 1e3 * (double)(clock() - begin) / CLOCKS_PER_SEC;
    const int right = worst <= 2e-5, counted = mla_flops == predicted_flops, read = mla_cache_bytes == predicted_bytes;
    printf("  %s  against float64, 1 to %d tokens: max error %.1e (allowed 2.0e-05)\n", right ? "yes" : "NO ", TOKENS, worst);
    printf("  %s  FLOP a step: predicted %lld, counted %lld\n", counted ? "yes" : "NO ", (long long)predicted_flops,
           (long long)mla_flops);
    printf("  %s  cache bytes read: predicted %lld, counted %lld\n", read ? "yes" : "NO ", (long long)predicted_bytes,
           (long long)mla_cache_bytes);
    mla_fact("MFLOP a step", 1e-6 * (double)mla_flops);
    mla_fact("cache KB read", 1e-3 * (double)mla_cache_bytes);
    printf("       %.2f ms on this machine, one thread\n", ms);
    printf("\n%s\n", right && counted && read ? "All of it holds." : "FAILED: see the lines marked NO");
    free(out), free(want), mla_free(s);
    return !(right && counted && read);
}
#endif
