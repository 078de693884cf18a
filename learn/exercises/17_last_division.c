/* 17_last_division.c — exercise: flash_v2.c with a hole. Find it, fill it, then: learn check 17 --my FILE */
#include "attn/attn_plugin.h"
#include <math.h>
#include <string.h>

enum { ROWS = 64, KEYS = 64, GROUP = 4, LANES = 32 };   /* a tile; GROUP x LANES sums stay in registers */
/* Near memory. The tensors are far memory: every byte that passes between the two is counted in `moved`. */
typedef struct {
    float *q, *k, *v, *s, *o;           /* q [d][ROWS], k [KEYS][d], v and o [..][pad], s [KEYS][ROWS] */
    float m[ROWS], l[ROWS], c[ROWS];    /* running maximum, running sum, exp(old maximum - new one) */
    int visible[ROWS], rows, keys;      /* row i sees the first visible[i] keys of the tile */
    int64_t d, dv, pad;                 /* pad: dv rounded up to LANES */
} tile;
static attn_traffic moved;

static float fast_exp(float x) {        /* 2^n 2^f, |f| <= 1/2, to 2e-8; no branch, no call: it vectorises */
    const float y = x * 1.44269504f, n = (y + 12582912.0f) - 12582912.0f, f = y - n;
    float e = 9.618056938e-3f + f * (1.340042800e-3f + f * 1.546144485e-4f);
    e = 1.0f + f * (6.931471825e-1f + f * (2.402265072e-1f + f * (5.550327152e-2f + f * e)));
    const union { uint32_t bits; float value; } two_n = { (uint32_t)(127 + (int)(n > -127 ? n : 0)) << 23 };
    return x < -87 ? 0 : e * two_n.value;
}

static void load_queries(tile *t, const attn_problem *p, const float *q) {
    for (int i = 0; i < t->rows; i++)
        for (int64_t x = 0; x < t->d; x++) t->q[x * ROWS + i] = q[i * p->q_stride.seq + x];
    moved.q += 4 * t->rows * t->d;
}

static void load_keys(tile *t, const attn_problem *p, const float *k, const float *v) {
    for (int j = 0; j < t->keys; j++) {
        memcpy(t->k + j * t->d, k + j * p->k_stride.seq, 4 * (size_t)t->d);
        memcpy(t->v + j * t->pad, v + j * p->v_stride.seq, 4 * (size_t)t->dv);
    }
    moved.k += 4 * t->keys * t->d, moved.v += 4 * t->keys * t->dv;
}

static void scores(tile *t, float scale) {      /* s = scale k q^T, hidden ones -inf */
    for (int j = 0; j < t->keys; j += GROUP)
        for (int i = 0; i < ROWS; i += LANES) {
            float sum[GROUP][LANES] = { { 0 } }, *s = t->s + j * ROWS + i, *q = t->q + i, *k = t->k + j * t->d;
            for (int64_t x = 0; x < t->d; x++)
                for (int r = 0; r < GROUP; r++)
                    for (int c = 0; c < LANES; c++) sum[r][c] += k[r * t->d + x] * q[x * ROWS + c];
            for (int r = 0; r < GROUP; r++)
                for (int c = 0; c < LANES; c++)
                    s[r * ROWS + c] = j + r < t->visible[i + c] ? scale * sum[r][c] : -INFINITY;
        }
}

static void softmax_step(tile *t) {             /* s becomes p; a query is a lane: no sum runs across lanes */
    float top[ROWS];
    memcpy(top, t->m, sizeof top);
    for (int j = 0; j < t->keys; j++)
        for (int i = 0; i < ROWS; i++) top[i] = t->s[j * ROWS + i] > top[i] ? t->s[j * ROWS + i] : top[i];
    for (int i = 0; i < ROWS; i++) {
        const float old = t->m[i];
        t->m[i] = top[i], top[i] = top[i] == -INFINITY ? 0 : top[i];
        t->c[i] = fast_exp(old - top[i]), t->l[i] *= t->c[i];
    }
    for (int j = 0; j < t->keys; j++)
        for (int i = 0; i < ROWS; i++) t->l[i] += t->s[j * ROWS + i] = fast_exp(t->s[j * ROWS + i] - top[i]);
}

/* o = c o + p v for rows i .. i + n - 1, keys low .. high - 1; first 0: these rows are rescaled already. */
static inline void add(tile *t, int i, int n, int low, int high, int first) {
    for (int64_t x = 0; x < t->pad; x += LANES) {
        float sum[GROUP][LANES], *o = t->o + i * t->pad + x, *v = t->v + x;
        for (int r = 0; r < n; r++)
            for (int c = 0; c < LANES; c++) sum[r][c] = o[r * t->pad + c] * (first ? t->c[i + r] : 1);
        for (int j = low; j < high; j++)
            for (int r = 0; r < n; r++)
                for (int c = 0; c < LANES; c++) sum[r][c] += t->s[j * ROWS + i + r] * v[j * t->pad + c];
        for (int r = 0; r < n; r++) memcpy(o + r * t->pad, sum[r], sizeof sum[r]);
    }
}

static void accumulate(tile *t) {               /* a hidden v may be NaN: skipped, not weighted with 0 */
    for (int i = 0; i < t->rows; i += GROUP) {
        add(t, i, GROUP, 0, t->visible[i], 1);
        for (int r = 1; r < GROUP; r++)
            if (t->visible[i + r] > t->visible[i]) add(t, i + r, 1, t->visible[i], t->visible[i + r], 0);
    }
}

static void store(tile *t, const attn_problem *p, float *o, float *lse) {
    for (int i = 0; i < t->rows; i++) {
        const float l = t->l[i], *near = t->o + i * t->pad;
        for (int64_t x = 0; x < t->dv; x++) o[i * p->o_stride.seq + x] = near[x];   /* hole: one division is missing, and rows that see no key */
        if (lse) lse[i * p->lse_stride.seq] = l == 0 ? -INFINITY : t->m[i] + logf(l);
    }
    moved.o += 4 * t->rows * t->dv;
}

static void place(tile *t, const attn_problem *p, int64_t i, int64_t j) { /* rows from i, keys from j */
    t->rows = (int)(p->q_len - i < ROWS ? p->q_len - i : ROWS);
    t->keys = (int)(p->kv_len - j < KEYS ? p->kv_len - j : KEYS);
    for (int r = 0; r < ROWS; r++) {
        const int64_t n = r < t->rows ? attn_plugin_limit(p, i + r) - j : 0;
        t->visible[r] = (int)(n < 0 ? 0 : n > t->keys ? t->keys : n);
    }
}

static void head(tile *t, const attn_problem *p, attn_plugin_head far) {
    for (int64_t i = 0; i < p->q_len; i += ROWS) {
        place(t, p, i, 0);
        load_queries(t, p, far.q + i * p->q_stride.seq);
        memset(t->o, 0, 4 * (size_t)(ROWS * t->pad));
        for (int r = 0; r < ROWS; r++) t->m[r] = -INFINITY, t->l[r] = 0;
        const int64_t end = attn_plugin_limit(p, i + t->rows - 1);
        for (int64_t j = 0; j < end; j += KEYS) {
            place(t, p, i, j);
            load_keys(t, p, far.k + j * p->k_stride.seq, far.v + j * p->v_stride.seq);
            scores(t, p->scale), softmax_step(t), accumulate(t);
        }
        store(t, p, far.o + i * p->o_stride.seq, far.lse ? far.lse + i * p->lse_stride.seq : NULL);
    }
}

static int64_t pad(const attn_problem *p) { return (p->v_dim + LANES - 1) / LANES * LANES; }
static int64_t workspace(const attn_problem *p) {
    return 4 * ((ROWS + KEYS) * (p->qk_dim + pad(p)) + KEYS * ROWS);
}
static void traffic(attn_traffic *out) { *out = moved; }

static attn_status run(const attn_problem *p, const attn_tensors *x, void *memory, void *stream) {
    tile t = { .q = memory, .d = p->qk_dim, .dv = p->v_dim, .pad = pad(p) };
    t.k = t.q + ROWS * t.d, t.v = t.k + KEYS * t.d, t.o = t.v + KEYS * t.pad, t.s = t.o + ROWS * t.pad;
    (void)stream, moved = (attn_traffic){ 0 }, memset(t.v, 0, 4 * (size_t)(KEYS * t.pad));
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t h = 0; h < p->q_heads; h++) head(&t, p, attn_plugin_head_at(p, x, b, h));
    return ATTN_OK;
}

const attn_plugin attn_plugin_kernel = { sizeof(attn_plugin), ATTN_CPU, "flash_v2",
    "outer Q, inner K/V: the state stays near, one division", attn_plugin_plain, workspace, run, traffic };
