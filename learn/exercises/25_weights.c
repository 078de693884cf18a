/* 25_weights.c — exercise: mla_split.c with a hole. How much does a part weigh?
 * Find it, fill it, then: learn check 25 --my FILE */
#include "mla.h"

enum { PARTS = 7 };

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

/* What one worker does: rows first .. last - 1. o [HEADS][LATENT] normalised, lse [HEADS]. Its rows are few and stay
 * near while the heads pass: they are read from far memory once. */
static void part(const float *cache, int first, int last, const float *q, float *o, float *lse) {
    for (int h = 0; h < HEADS; h++) {
        float m = -INFINITY, l = 0, *oh = o + h * LATENT;
        memset(oh, 0, LATENT * sizeof *oh);
        for (int t = first; t < last; t++) {
            const float *c = cache + t * WIDTH, score = mla_dot(q + h * WIDTH, c, WIDTH) / sqrtf(NOPE + ROPE);
            const float top = score > m ? score : m, keep = expf(m - top), p = expf(score - top);
            for (int x = 0; x < LATENT; x++) oh[x] = oh[x] * keep + p * c[x];
            mla_flops += 2 * LATENT;
            l = l * keep + p;
            m = top;
        }
        for (int x = 0; x < LATENT && l > 0; x++) oh[x] /= l;
        lse[h] = l > 0 ? m + logf(l) : -INFINITY;
    }
    mla_cache_bytes += 4ll * WIDTH * (last - first);
}

/* o [HEADS][LATENT] of all parts, in part order: the same bits every time. */
static void merge(const float *parts, const float *lses, float *o) {
    for (int h = 0; h < HEADS; h++) {
        float top = -INFINITY, total = 0, *oh = o + h * LATENT;
        for (int w = 0; w < PARTS; w++) top = lses[w * HEADS + h] > top ? lses[w * HEADS + h] : top;
        memset(oh, 0, LATENT * sizeof *oh);
        for (int w = 0; w < PARTS && top > -INFINITY; w++) {
            const float weight = 1;   /* hole: parts don't weigh the same, and an empty one weighs nothing */
            total += weight;
            for (int x = 0; x < LATENT; x++) oh[x] += weight * parts[(w * HEADS + h) * LATENT + x];
        }
        for (int x = 0; x < LATENT && total > 0; x++) oh[x] /= total;
    }
}

static void attention(mla_step s, int tokens, float *out) {
    float *q = malloc(HEADS * WIDTH * sizeof *q), *o = malloc(HEADS * LATENT * sizeof *o);
    float *parts = malloc(PARTS * HEADS * LATENT * sizeof *parts), lses[PARTS * HEADS];
    if (!q || !o || !parts) exit(2);
    absorb_query(s, q);
    const int share = (tokens + PARTS - 1) / PARTS;
    for (int w = 0; w < PARTS; w++) {
        const int first = w * share < tokens ? w * share : tokens, last = first + share < tokens ? first + share : tokens;
        part(s.cache, first, last, q, parts + w * HEADS * LATENT, lses + w * HEADS);
    }
    merge(parts, lses, o);
    for (int h = 0; h < HEADS; h++)
        for (int v = 0; v < VALUE; v++)
            out[h * VALUE + v] = mla_dot(s.w_v + (h * VALUE + v) * LATENT, o + h * LATENT, LATENT);
    free(q), free(o), free(parts);
}

int main(void) {
    return mla_check("MLA split over 7 workers", attention,
                     2ll * HEADS * ((int64_t)TOKENS * (WIDTH + LATENT) + (int64_t)LATENT * (NOPE + VALUE)),
                     4ll * WIDTH * TOKENS);
}
