/* first.c — attention of 4 queries over 6 keys, two heads sharing one K/V head, causal.
 *     cc first.c $(pkg-config --cflags --libs attn) -o first && ./first */
#include <attn/attn.h>
#include <stdio.h>

enum { QUERIES = 4, KEYS = 6, Q_HEADS = 2, KV_HEADS = 1, DIM = 8 };

int main(void) {
    static float q[QUERIES][Q_HEADS][DIM], k[KEYS][KV_HEADS][DIM], v[KEYS][KV_HEADS][DIM];
    static float o[QUERIES][Q_HEADS][DIM], lse[Q_HEADS][QUERIES];
    for (int i = 0; i < QUERIES; i++) q[i][0][i] = q[i][1][i] = 4;           /* query i looks for key i */
    for (int j = 0; j < KEYS; j++) k[j][0][j] = 4, v[j][0][0] = (float)j;    /* value j says j          */

    attn_problem p = ATTN_PROBLEM_INIT;   /* what: sizes and masks; zero fields are defaults */
    p.batch = 1, p.q_heads = Q_HEADS, p.kv_heads = KV_HEADS, p.q_len = QUERIES, p.kv_len = KEYS,
    p.qk_dim = DIM;
    p.causal = 1;                         /* query i sees keys 0 .. i + KEYS - QUERIES */

    attn_tensors t = ATTN_TENSORS_INIT;   /* on what */
    t.q = q, t.k = k, t.v = v, t.o = o, t.lse = lse[0];
    if (attn_attend(&p, &t, NULL)) {
        fprintf(stderr, "%s\n", attn_last_error());
        return 1;
    }
    for (int i = 0; i < QUERIES; i++)
        printf("query %d: o = %.3f, lse = %.3f\n", i, (double)o[i][0][0], (double)lse[0][i]);
    return 0;
}
