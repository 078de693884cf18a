/* 24_read_once.c — exercise: mla_absorbed.c with its loops in the wrong order. The checker counts the cache bytes.
 * Find it, fix it, then: learn check 24 --my FILE */
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

/* o [HEADS][LATENT] from q [HEADS][WIDTH]: plain attention. Right, but every head reads the cache for itself. */
static void latent_attention(const float *cache, int tokens, const float *q, float *o) {
    for (int h = 0; h < HEADS; h++) {       /* hole: read a row once, for all heads (each head keeps its own m and l) */
        float m = -INFINITY, l = 0, *oh = o + h * LATENT;
        memset(oh, 0, LATENT * sizeof *oh);
        for (int t = 0; t < tokens; t++) {
            const float *c = cache + t * WIDTH;
            mla_cache_bytes += 4 * WIDTH;
            const float score = mla_dot(q + h * WIDTH, c, WIDTH) / sqrtf(NOPE + ROPE);
            const float top = score > m ? score : m, keep = expf(m - top), p = expf(score - top);
            for (int x = 0; x < LATENT; x++) oh[x] = oh[x] * keep + p * c[x];
            mla_flops += 2 * LATENT;
            l = l * keep + p;
            m = top;
        }
        for (int x = 0; x < LATENT; x++) oh[x] /= l;
    }
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
