/* 31_delta.c — exercise: flash_v2_backward.c with a hole. P's rows sum to 1, whatever changes.
 * Find it, fill it, then: learn check 31 --my FILE */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 32, KEYS = 32, Q_LEN = 70, KV_LEN = 90, DIM = 16 };
#define SCALE (1 / sqrt((double)DIM))

typedef struct { double q[Q_LEN][DIM], k[KV_LEN][DIM], v[KV_LEN][DIM]; } inputs;
typedef struct { double dq[Q_LEN][DIM], dk[KV_LEN][DIM], dv[KV_LEN][DIM]; } gradients;

static double dot(const double *a, const double *b) {
    double s = 0;
    for (int d = 0; d < DIM; d++) s += a[d] * b[d];
    return s;
}

static int visible(int i, int causal) {             /* row i sees keys 0 .. visible - 1 */
    const int n = i + 1 + KV_LEN - Q_LEN;
    return !causal ? KV_LEN : n < 0 ? 0 : n < KV_LEN ? n : KV_LEN;
}

static void forward(const inputs *x, int causal, double o[Q_LEN][DIM], double *lse) {
    for (int i = 0; i < Q_LEN; i++) {
        double m = -INFINITY, l = 0;
        memset(o[i], 0, sizeof o[i]);
        for (int j = 0; j < visible(i, causal); j++) {
            const double s = SCALE * dot(x->q[i], x->k[j]), top = s > m ? s : m, keep = exp(m - top), p = exp(s - top);
            for (int d = 0; d < DIM; d++) o[i][d] = o[i][d] * keep + p * x->v[j][d];
            l = l * keep + p;
            m = top;
        }
        for (int d = 0; d < DIM && l > 0; d++) o[i][d] /= l;
        lse[i] = l > 0 ? m + log(l) : -INFINITY;
    }
}

/* One tile: rows i .., keys j ... Adds to dq of the rows and dk, dv of the keys. */
static void tile(const inputs *x, double d_o[Q_LEN][DIM], const double *lse, const double *delta, int causal, int i0, int j0,
                 gradients *g) {
    for (int i = i0; i < i0 + ROWS && i < Q_LEN; i++)
        for (int j = j0; j < j0 + KEYS && j < visible(i, causal); j++) {
            const double p = exp(SCALE * dot(x->q[i], x->k[j]) - lse[i]);
            const double ds = SCALE * p * (dot(d_o[i], x->v[j]) - delta[i]);
            for (int d = 0; d < DIM; d++) {
                g->dv[j][d] += p * d_o[i][d];
                g->dq[i][d] += ds * x->k[j][d];
                g->dk[j][d] += ds * x->q[i][d];
            }
        }
}

/* Keys outside: a tile's dK and dV stay near while all queries pass. (A GPU gives each tile of keys to a block; then dQ is
 * what must be added from many blocks.) */
static void backward(const inputs *x, double o[Q_LEN][DIM], const double *lse, double d_o[Q_LEN][DIM], int causal, gradients *g) {
    double delta[Q_LEN];
    memset(g, 0, sizeof *g);
    for (int i = 0; i < Q_LEN; i++) delta[i] = 0;   /* hole: what softmax's own denominator does to every score of row i */
    for (int j = 0; j < KV_LEN; j += KEYS)
        for (int i = 0; i < Q_LEN; i += ROWS) tile(x, d_o, lse, delta, causal, i, j, g);
}

static double loss(const inputs *x, double d_o[Q_LEN][DIM], int causal) {
    static double o[Q_LEN][DIM], lse[Q_LEN];
    double sum = 0;
    forward(x, causal, o, lse);
    for (int i = 0; i < Q_LEN; i++) sum += dot(o[i], d_o[i]);
    return sum;
}

/* Every 37th input against a central difference. @return the largest error; NaN stays. */
static double check(inputs *x, double d_o[Q_LEN][DIM], int causal) {
    static double o[Q_LEN][DIM], lse[Q_LEN];
    static gradients g;
    double *values = &x->q[0][0], worst = 0;
    forward(x, causal, o, lse);
    backward(x, o, lse, d_o, causal, &g);
    for (size_t n = 0; n < sizeof *x / sizeof(double); n += 37) {
        const double keep = values[n], h = 0x1p-20;
        values[n] = keep + h;
        const double up = loss(x, d_o, causal);
        values[n] = keep - h;
        const double down = loss(x, d_o, causal), error = fabs((up - down) / (2 * h) - (&g.dq[0][0])[n]);
        values[n] = keep;
        if (!(error <= worst) && !isnan(worst)) worst = error;
    }
    return worst;
}

int main(void) {
    static inputs x;
    static double d_o[Q_LEN][DIM];
    uint64_t seed = 5;
    double *values = &x.q[0][0], *more = &d_o[0][0];
    for (size_t n = 0; n < sizeof x / sizeof(double) + sizeof d_o / sizeof(double); n++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        const double v = 2 * ((double)(seed >> 33) / (double)(1u << 30) - 1);
        if (n < sizeof x / sizeof(double)) values[n] = v;
        else more[n - sizeof x / sizeof(double)] = v;
    }
    int failed = 0;
    printf("FlashAttention-2 backward: %d queries, %d keys, dim %d, tiles of %d x %d\n", Q_LEN, KV_LEN, DIM, ROWS, KEYS);
    for (int causal = 0; causal < 2; causal++) {
        const double worst = check(&x, d_o, causal);
        const int ok = worst <= 1e-7;
        printf("  %s  dQ, dK, dV against finite differences%s: max error %.1e (allowed 1.0e-07)\n", ok ? "yes" : "NO ",
               causal ? ", causal" : "", worst);
        failed += !ok;
    }
    int pairs = 0;
    for (int i = 0; i < Q_LEN; i++) pairs += visible(i, 1);
    printf("  %d of %d pairs are visible when causal: as many exponentials are computed again\n", pairs, Q_LEN * KV_LEN);
    FILE *facts = getenv("LEARN_FACTS") ? fopen(getenv("LEARN_FACTS"), "a") : NULL;
    if (facts) fprintf(facts, "visible pairs\t%d\n", pairs), fclose(facts);
    printf("\n%s\n", failed ? "FAILED: see the lines marked NO" : "All of it holds.");
    return failed != 0;
}
