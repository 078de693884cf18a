/* mla_absorbed.c — W_k moves to the query, W_v behind the sum: all heads attend the cache rows themselves.
 *     cc -std=c11 -O3 -march=native mla_absorbed.c -o mla_absorbed -lm && ./mla_absorbed
 * One idea: (W_k c) . q = c . (W_k^T q). What is left is attention with one K/V head, WIDTH wide, values = its first
 * LATENT columns. Read a row once for all heads. */
#include "mla.h"

/* q [HEADS][WIDTH]: the query in the cache's own coordinates. */
static void absorb_query(mla_step s, float *q) {
    for (int h = 0; h < HEADS; h++) {
        const float *from = s.q + h * (NOPE + ROPE);
        float *to = q + h * WIDTH;
        memset(to, 0, LATENT * sizeof *to);
        for (int n = 0; n < NOPE; n++)
            for (int l = 0; l < LATENT; l++) to[l] += from[n] * s.w_k[(h * NOPE + n) * LATENT + l];
        mla_flops += 2ll * NOPE * LATENT;
        memcpy(to + LATENT, from + NOPE, ROPE * sizeof *to);
    }
}

/* o [HEADS][LATENT] from q [HEADS][WIDTH]: plain attention; rows outside, heads inside, so that a row is read once. */
static void latent_attention(const float *cache, int tokens, const float *q, float *o) {
    float m[HEADS], l[HEADS];
    for (int h = 0; h < HEADS; h++) m[h] = -INFINITY, l[h] = 0;
    memset(o, 0, HEADS * LATENT * sizeof *o);
    for (int t = 0; t < tokens; t++) {
        const float *c = cache + t * WIDTH;
        mla_cache_bytes += 4 * WIDTH;
        for (int h = 0; h < HEADS; h++) {
            const float score = mla_dot(q + h * WIDTH, c, WIDTH) / sqrtf(NOPE + ROPE);
            const float top = score > m[h] ? score : m[h], keep = expf(m[h] - top), p = expf(score - top);
            for (int x = 0; x < LATENT; x++) o[h * LATENT + x] = o[h * LATENT + x] * keep + p * c[x];
            mla_flops += 2 * LATENT;
            l[h] = l[h] * keep + p;
            m[h] = top;
        }
    }
    for (int h = 0; h < HEADS; h++)
        for (int x = 0; x < LATENT; x++) o[h * LATENT + x] /= l[h];
}

static void attention(mla_step s, int tokens, float *out) {
    float *q = malloc(HEADS * WIDTH * sizeof *q), *o = malloc(HEADS * LATENT * sizeof *o);
    if (!q || !o) exit(2);
    absorb_query(s, q);
    latent_attention(s.cache, tokens, q, o);
    for (int h = 0; h < HEADS; h++)
        for (int v = 0; v < VALUE; v++)
            out[h * VALUE + v] = mla_dot(s.w_v + (h * VALUE + v) * LATENT, o + h * LATENT, LATENT);
    free(q), free(o);
}

int main(void) {
    return mla_check("absorbed MLA", attention,
                     2ll * HEADS * ((int64_t)TOKENS * (WIDTH + LATENT) + (int64_t)LATENT * (NOPE + VALUE)),
                     4ll * WIDTH * TOKENS);
}
