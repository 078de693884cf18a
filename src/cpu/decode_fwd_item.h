/* decode_fwd_item.h — what a work item of the decode kernels sees: a sequence, some neighbouring K/V
 * heads, a part of the keys; all query rows of a head together (row r = position r / group, head
 * r % group of that K/V head). */
typedef struct decode {
    const attn_problem *p;
    const attn_tensors *t;
    attn_sequence s;
    int64_t group, rows;                              /* query heads per K/V head; query rows per K/V head */
    int64_t padded;                                   /* rows rounded up to what the kernels take at a time */
    int64_t kv_head, heads;                           /* first K/V head, how many */
    int edited;                                       /* softcap, bias or ALiBi:
                                                         scores are in natural units */
    float sign, c;                                    /* of Q as stored; 2^(c x): what a score x is worth */
    int64_t low, high;                                /* keys that some row sees in
                                                         this item's part of them */
    int64_t chunk, from, to;                          /* current keys: chunk + from .. chunk + to - 1 */
    int64_t begin, end;                               /* the same in whole vectors */
    int last;                                         /* no chunk after this one */
    const char **k, **v;                              /* [2][CHUNK] rows of this chunk and of the next one */
    int64_t *row_low, *row_high;                      /* [padded]: keys that causal
                                                         and window let a row see */
    float *q;                                         /* [heads][padded][q_row]: words of 4 bytes */
    float *o, *m, *l;                                 /* [heads][padded][o_row], [heads][padded], the same */
    float *scores;                                    /* [ROWS][CHUNK] */
    int64_t q_row, o_row;
    int finite;                                       /* V of this head's chunk: -1 not looked at yet */
} decode;

/* decode_fwd_f32.h or decode_fwd_pairs.h: words in a row of Q as the kernels take it, and such a row. */
static int64_t query_words(const attn_problem *p);
static void load_query(const decode *x, int64_t head, int64_t row, float *to);

/* ---- workspace: one scratch per slot, and one set of sums per item where the keys are split ---- */

typedef struct decode_layout {
    int64_t padded, q_row, o_row;
    int64_t sums;                                     /* bytes of O, m, l of one item */
    int64_t rows, low, high, q, scores, o;            /* offsets within a slot; 4 lists of rows */
    int64_t slot;                                     /* bytes */
} decode_layout;

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

static int64_t carve(int64_t *used, int64_t bytes) {
    const int64_t at = *used;
    *used += round_up(bytes, 64);
    return at;
}

/* Kernels take ROWS rows at a time; 4, 2 or 1 at the end. */
static int64_t padded_rows(int64_t rows) { return rows % 4 == 3 ? rows + 1 : rows; }
static int rows_of(int64_t left) { return left >= ROWS ? ROWS : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

static decode_layout lay_out(const attn_problem *p, int64_t rows, int64_t heads, int split) {
    decode_layout a = { .padded = padded_rows(rows) };
    const int64_t f = sizeof(float);
    a.q_row = query_words(p);
    a.o_row = round_up(p->v_dim, 2 * LANES);          /* kernels write columns in ones or twos of vectors */
    a.sums = round_up(heads * a.padded * (a.o_row + 2) * f, 64);
    a.rows = carve(&a.slot, 4 * CHUNK * (int64_t)sizeof(char *));
    a.low = carve(&a.slot, a.padded * (int64_t)sizeof(int64_t));
    a.high = carve(&a.slot, a.padded * (int64_t)sizeof(int64_t));
    /* a merged row of O goes there too */
    a.q = carve(&a.slot, at_least(heads * a.padded * a.q_row, a.o_row) * f);
    a.scores = carve(&a.slot, ROWS * CHUNK * f);
    a.o = carve(&a.slot, split ? 0 : a.sums);
    return a;
}

/* sums: of the item, or NULL for the slot's own. */
static void place(decode *x, char *slot, char *sums, const decode_layout *a) {
    const char **rows = (const char **)(void *)(slot + a->rows);
    x->k = rows;
    x->v = rows + 2 * CHUNK;
    x->row_low = (int64_t *)(void *)(slot + a->low);
    x->row_high = (int64_t *)(void *)(slot + a->high);
    x->q = (float *)(void *)(slot + a->q);
    x->scores = (float *)(void *)(slot + a->scores);
    x->q_row = a->q_row;
    x->o_row = a->o_row;
    x->o = (float *)(void *)(sums ? sums : slot + a->o);
    x->m = x->o + x->heads * x->padded * a->o_row;
    x->l = x->m + x->heads * x->padded;
}

/* ---- rows of Q and O ---- */

static int64_t row_position(const decode *x, int64_t row) { return row / x->group; }
static int64_t row_head(const decode *x, int64_t head, int64_t row) {
    return (x->kv_head + head) * x->group + row % x->group;
}

static const void *query_row(const decode *x, int64_t head, int64_t row) {
    const int64_t at = attn_q_offset(&x->s, x->p->q_stride, row_position(x, row), row_head(x, head, row));
    return (const char *)x->t->q + at * attn_dtype_size(x->p->dtype);
}

static void open_rows(decode *x) {
    for (int64_t row = 0; row < x->padded; row++) {
        attn_range r = attn_visible(x->p, &x->s, row_position(x, at_most(row, x->rows - 1)));
        /* then both ends ascend with rows */
        if (r.high <= r.low) r.low = r.high = at_most(r.low, x->s.kv_len);
        x->row_low[row] = r.low;
        x->row_high[row] = r.high;
    }
    for (int64_t head = 0; head < x->heads; head++)
        for (int64_t row = 0; row < x->padded; row++) {
            const int64_t i = head * x->padded + row;
            if (row < x->rows) load_query(x, head, row, x->q + i * x->q_row);
            else memset(x->q + i * x->q_row, 0, (size_t)x->q_row * sizeof(float));
            memset(x->o + i * x->o_row, 0, (size_t)x->o_row * sizeof(float));
            x->m[i] = -INFINITY;
            x->l[i] = 0;
        }
}

/* O and LSE of a row out of its sums. The sink is one more term below the fraction, not of LSE. */
static void close_row(const decode *x, int64_t head, int64_t row, const float *sum, float m, float l) {
    const attn_problem *p = x->p;
    const int64_t i = row_position(x, row), h = row_head(x, head, row);
    const double natural = x->edited ? m : (double)m * fabsf(p->scale);
    float factor = 0;
    if (l != 0) factor = 1 / (l + (p->has_sinks ? expf((float)(x->t->sinks[h] - natural)) : 0));
    char *o = (char *)x->t->o + attn_q_offset(&x->s, p->o_stride, i, h) * attn_dtype_size(p->o_dtype);
    for (int64_t d = 0; d < p->v_dim; d += LANES) {
        const vec a = l != 0 ? v_mul(v_load(sum + d), v_set(factor)) : v_zero();
        v_store_part_any(o, p->o_dtype, d, v_first(at_most(LANES, p->v_dim - d)), a);
    }
    if (x->t->lse)
        x->t->lse[attn_lse_offset(p, &x->s, i, h)] = l != 0 ? (float)(natural + logf(l)) : -INFINITY;
}

/* ---- rows of K and V ---- */

/* Where the rows of the chunk's keys are, of the item's first head; keys out of low .. high - 1 repeat an end
 * (in the first chunk, which nothing fetches ahead, up to a whole vector). */
static void find_rows(const decode *x, int64_t chunk, const char *base, attn_stride stride,
                      const char **rows) {
    const attn_problem *p = x->p;
    const int64_t size = attn_dtype_size(p->dtype);
    const int64_t first = at_least(x->low, chunk), last = at_most(x->high, chunk + CHUNK);
    for (int64_t j = first; j < last;) {
        const char *row = base + attn_kv_offset(p, &x->s, stride, j, x->kv_head) * size;
        const int64_t run = x->s.pages ? p->page_size - j % p->page_size : last - j;
        const int64_t end = at_most(j + run, last);
        for (; j < end; j++, row += stride.seq * size) rows[j - chunk] = row;
    }
    for (int64_t j = chunk; j < first; j++) rows[j - chunk] = rows[first - chunk];
    const int64_t end = chunk == x->low / CHUNK * CHUNK ? round_up(last - chunk, LANES) : CHUNK;
    for (int64_t j = last - chunk; j < end; j++) rows[j] = rows[last - 1 - chunk];
}
