/* mla_two_block.c — FlashMLA's schedule for one tile of heads: two blocks of tokens in flight, O's columns in two halves.
 *     cc -std=c11 -O3 -march=native mla_two_block.c -o mla_two_block -lm && ./mla_two_block
 * One idea: two warpgroups own half of the columns each and compute the scores of every other block; they exchange P.
 * Older results come to a new maximum by exp(old - new). Here both warpgroups' steps stand in the order they depend. */
#include "mla.h"

enum { BLOCK = 64, HALF = LATENT / 2 };

typedef struct {
    float m, l, left[HALF], right[HALF];     /* one head's state; left and right belong to warpgroups 0 and 1 */
    float p0[BLOCK], p1[BLOCK];
} state;

static void absorb_query(mla_step s, int h, float *q) {
    memset(q, 0, LATENT * sizeof *q);
    for (int n = 0; n < NOPE; n++)
        for (int l = 0; l < LATENT; l++) q[l] += s.q[h * (NOPE + ROPE) + n] * s.w_k[(h * NOPE + n) * LATENT + l];
    mla_flops += 2ll * NOPE * LATENT;
    memcpy(q + LATENT, s.q + h * (NOPE + ROPE) + NOPE, ROPE * sizeof *q);
}

/* Scores of a block against maximum m: p = exp(s - new maximum). @return the new maximum; adds to *l. */
static float scores(const float *q, const float *rows, int count, float m, float *p, float *l) {
    float top = m;
    for (int t = 0; t < count; t++) {
        p[t] = mla_dot(q, rows + t * WIDTH, WIDTH) / sqrtf(NOPE + ROPE);
        top = p[t] > top ? p[t] : top;
    }
    *l *= expf(m - top);
    for (int t = 0; t < count; t++) *l += p[t] = expf(p[t] - top);
    mla_cache_bytes += 4ll * WIDTH * count;
    return top;
}

static void rescale(float *o, float keep) {
    for (int x = 0; x < HALF; x++) o[x] *= keep;
}

static void accumulate(float *o, const float *p, const float *rows, int count, int first_column) {
    for (int t = 0; t < count; t++)
        for (int x = 0; x < HALF; x++) o[x] += p[t] * rows[t * WIDTH + first_column + x];
    mla_flops += 2ll * HALF * count;
}

static void two_blocks(state *s, const float *q, const float *zero, int n0, const float *one, int n1) {
    const float m0 = scores(q, zero, n0, s->m, s->p0, &s->l);      /* warpgroup 0 */
    const float keep = expf(s->m - m0);
    rescale(s->left, keep);
    rescale(s->right, keep);
    accumulate(s->left, s->p0, zero, n0, 0);
    const float m1 = scores(q, one, n1, m0, s->p1, &s->l);         /* warpgroup 1 sees warpgroup 0's maximum */
    const float again = expf(m0 - m1);
    rescale(s->right, again);
    accumulate(s->right, s->p1, one, n1, HALF);
    rescale(s->left, again);                                       /* they exchange P0 and P1 */
    accumulate(s->left, s->p1, one, n1, 0);
    for (int t = 0; t < n0; t++) s->p0[t] *= again;
    accumulate(s->right, s->p0, zero, n0, HALF);
    s->m = m1;
}

static int at_most(int n) { return n < 0 ? 0 : n < BLOCK ? n : BLOCK; }

static void attention(mla_step s, int tokens, float *out) {
    float *q = malloc(WIDTH * sizeof *q), *o = malloc(LATENT * sizeof *o);
    state *st = malloc(sizeof *st);
    if (!q || !o || !st) exit(2);
    for (int h = 0; h < HEADS; h++) {
        absorb_query(s, h, q);
        memset(st, 0, sizeof *st);
        st->m = -INFINITY;
        for (int t = 0; t < tokens; t += 2 * BLOCK)
            two_blocks(st, q, s.cache + t * WIDTH, at_most(tokens - t), s.cache + (t + BLOCK) * WIDTH,
                       at_most(tokens - t - BLOCK));
        for (int x = 0; x < HALF; x++) o[x] = st->left[x] / st->l, o[HALF + x] = st->right[x] / st->l;
        for (int v = 0; v < VALUE; v++) out[h * VALUE + v] = mla_dot(s.w_v + (h * VALUE + v) * LATENT, o, LATENT);
    }
    free(q), free(o), free(st);
}

int main(void) {
    return mla_check("MLA, two blocks in flight", attention,
                     2ll * HEADS * ((int64_t)TOKENS * (WIDTH + LATENT) + (int64_t)LATENT * (NOPE + VALUE)),
                     4ll * HEADS * WIDTH * TOKENS);
}
