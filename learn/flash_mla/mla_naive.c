/* mla_naive.c — multi-head latent attention as defined: expand the cache rows to keys and values of every head.
 *     cc -std=c11 -O3 -march=native mla_naive.c -o mla_naive -lm && ./mla_naive
 * One idea: right, and expensive: each token's row is multiplied by every head's projections, at every step. */
#include "mla.h"

static void attention(mla_step s, int tokens, float *out) {
    float key[NOPE], value[VALUE];
    for (int h = 0; h < HEADS; h++) {
        const float *q = s.q + h * (NOPE + ROPE);
        float m = -INFINITY, l = 0, o[VALUE] = { 0 };
        for (int t = 0; t < tokens; t++) {
            const float *c = s.cache + t * WIDTH;
            mla_cache_bytes += 4 * WIDTH;
            for (int n = 0; n < NOPE; n++) key[n] = mla_dot(s.w_k + (h * NOPE + n) * LATENT, c, LATENT);
            for (int v = 0; v < VALUE; v++) value[v] = mla_dot(s.w_v + (h * VALUE + v) * LATENT, c, LATENT);
            const float score = (mla_dot(q, key, NOPE) + mla_dot(q + NOPE, c + LATENT, ROPE)) / sqrtf(NOPE + ROPE);
            const float top = score > m ? score : m, keep = expf(m - top), p = expf(score - top);
            for (int v = 0; v < VALUE; v++) o[v] = o[v] * keep + p * value[v];
            mla_flops += 2 * VALUE;
            l = l * keep + p;
            m = top;
        }
        for (int v = 0; v < VALUE; v++) out[h * VALUE + v] = o[v] / l;
    }
}

int main(void) {
    return mla_check("naive MLA", attention,
                     2ll * HEADS * TOKENS * ((int64_t)LATENT * (NOPE + VALUE) + NOPE + ROPE + VALUE),
                     4ll * HEADS * WIDTH * TOKENS);
}
