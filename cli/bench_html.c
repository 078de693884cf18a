/* bench_html.c — the rows as one self-contained page: bars, a roofline, speed over sequence length, a table
 * to sort. Drawn here as SVG, so that it reads without scripts and without a network; ten lines of script
 * sort the table. */
#include "bench.h"
#include "bench_html.h"
#include "output.h"
#include "problem_options.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char style[] =
    ":root{--back:#fbfaf7;--ink:#222;--dim:#777;--line:#d4d2cc;--a:#2563eb;--b:#d97706;--bad:#c02626}"
    "@media(prefers-color-scheme:dark){:root{--back:#16181c;--ink:#e8e6e1;--dim:#999;--line:#3c3f45;"
    "--a:#60a5fa;--b:#f59e0b;--bad:#f87171}}body{margin:0 auto;max-width:74rem;padding:1.2rem;font:15px/1.45 "
    "system-ui,sans-serif;background:var(--back);color:var(--ink)}h1{font-size:1.4rem;margin:0}"
    "h2{font-size:1.05rem;margin:2rem 0 .4rem}p{color:var(--dim)}svg{max-width:100%;height:auto}"
    "text{fill:var(--ink);font-size:12px}text.dim{fill:var(--dim)}.bar{fill:var(--a)}"
    ".bar.other{fill:var(--b)}.axis{stroke:var(--line);fill:none}.roof{stroke:var(--b);fill:none;"
    "stroke-width:2}.line{stroke:var(--a);fill:none;stroke-width:2}.dot{fill:var(--a)}"
    ".dot.other{fill:var(--b)}table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,"
    "th{border:1px solid var(--line);padding:.2rem .55rem;text-align:right}td:first-child,td:nth-child(2),"
    "th:first-child,th:nth-child(2){text-align:left}th[data-sort]{cursor:pointer}.bad{color:var(--bad)}";

static const char script[] =
    "for(const th of document.querySelectorAll('th[data-sort]'))th.onclick=()=>{const "
    "c=[...th.parentNode.children].indexOf(th),b=th.closest('table').tBodies[0],up=th.dataset.sort!=='up';"
    "th.dataset.sort=up?'up':'down';const v=r=>{const t=r.cells[c].innerText,n=parseFloat(t);return "
    "isNaN(n)?t:n};[...b.rows].sort((x,y)=>{const p=v(x),q=v(y);return(p>q?1:p<q?-1:0)*(up?1:-1)}"
    ").forEach(r=>b.append(r))}";

static void put_escaped(FILE *f, const char *text) {
    for (; *text; text++) {
        if (*text == '<') fputs("&lt;", f);
        else if (*text == '>') fputs("&gt;", f);
        else if (*text == '&') fputs("&amp;", f);
        else if (*text == '"') fputs("&quot;", f);
        else fputc(*text, f);
    }
}

static int64_t keys(const attn_problem *p) { return p->kv_len ? p->kv_len : p->q_len; }
static double speed(const bench_row *r) { return r->time.median > 0 ? r->flops / r->time.median * 1e-9 : 0; }

static int same_problem(const bench_row *a, const bench_row *b) {
    return !memcmp(&a->problem, &b->problem, sizeof a->problem);
}

/* Rows first .. end - 1 are one problem's. */
static int problem_end(const bench_table *t, int first) {
    int end = first + 1;
    while (end < t->count && same_problem(&t->rows[first], &t->rows[end])) end++;
    return end;
}

/* ---- bars: one problem, every contender ---- */

static void put_bars(FILE *f, const bench_table *t, int first, int end) {
    double most = 0;
    int shown = 0;
    for (int i = first; i < end; i++) {
        most = fmax(most, fmax(speed(&t->rows[i]),
                               t->rows[i].of_ceiling > 0 ? speed(&t->rows[i]) / t->rows[i].of_ceiling : 0));
        shown += speed(&t->rows[i]) > 0;
    }
    if (!shown) return;
    fprintf(f, "<svg width=\"900\" height=\"%d\" viewBox=\"0 0 900 %d\" role=\"img\">", 22 * shown + 8,
            22 * shown + 8);
    int y = 4;
    for (int i = first; i < end; i++) {
        const bench_row *r = &t->rows[i];
        if (!(speed(r) > 0)) continue;
        const double width = 480 * speed(r) / most;
        fprintf(f, "<text x=\"235\" y=\"%d\" text-anchor=\"end\">", y + 13);
        put_escaped(f, r->kernel);
        if (r->threads > 1) fprintf(f, " &#215;%d", r->threads);
        fprintf(f, "</text><rect class=\"bar%s\" x=\"242\" y=\"%d\" width=\"%.1f\" height=\"16\"/>",
                r->kind == CONTENDER_KERNEL ? "" : " other", y, width);
        if (r->of_ceiling > 0)
            fprintf(f, "<path class=\"roof\" d=\"M%.1f %dv18\"/>",
                    242 + 480 * speed(r) / r->of_ceiling / most, y - 1);
        fprintf(f, "<text x=\"%.1f\" y=\"%d\">%.1f GFLOP/s", 250 + width, y + 13, speed(r));
        if (r->of_ceiling > 0) fprintf(f, ", %.0f %%", 100 * r->of_ceiling);
        fputs(r->chosen ? ", chosen</text>" : "</text>", f);
        y += 22;
    }
    fputs("</svg>", f);
}

/* ---- roofline: flop per byte against GFLOP/s, both logarithmic ---- */

typedef struct range { double low, high; } range;
static double place(range r, double v, double from, double to) {
    return from + (to - from) * (log2(v) - log2(r.low)) / (log2(r.high) - log2(r.low));
}

static double row_bytes(const bench_row *r) {
    const attn_traffic *m = &r->outcome.traffic;
    return r->outcome.has_traffic ? (double)(m->q + m->k + m->v + m->o + m->scores) : r->bytes;
}

static void put_points(FILE *f, const bench_table *t, range x, range y) {
    for (int i = 0; i < t->count; i++) {
        const bench_row *r = &t->rows[i];
        if (!(speed(r) > 0) || !(row_bytes(r) > 0)) continue;
        char text[1024];
        cli_problem_text(&r->problem, text, sizeof text);
        fprintf(f, "<circle class=\"dot%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"><title>",
                r->kind == CONTENDER_KERNEL ? "" : " other", place(x, r->flops / row_bytes(r), 60, 880),
                place(y, speed(r), 300, 10));
        put_escaped(f, r->kernel);
        fputs(", ", f);
        put_escaped(f, text);
        fprintf(f, ": %.1f GFLOP/s</title></circle>", speed(r));
    }
}

static void put_roofline(FILE *f, const bench_table *t) {
    double peak = 0, read = 0;
    range x = { 1e300, 0 }, y = { 1e300, 0 };
    for (int i = 0; i < t->count; i++) {
        const bench_row *r = &t->rows[i];
        if (!(speed(r) > 0) || !(row_bytes(r) > 0)) continue;
        const double intensity = r->flops / row_bytes(r);
        peak = fmax(peak, r->ceiling_flops * 1e-9);
        read = fmax(read, r->read_bytes * 1e-9);
        x.low = fmin(x.low, intensity), x.high = fmax(x.high, intensity);
        y.low = fmin(y.low, speed(r)), y.high = fmax(y.high, speed(r));
    }
    if (!(x.high > 0)) return;
    if (read > 0 && peak > 0) x.low = fmin(x.low, peak / read / 4), x.high = fmax(x.high, 4 * peak / read);
    x.low /= 2, x.high *= 2, y.low /= 2, y.high = 2 * fmax(y.high, peak);
    fputs("<h2>Roofline</h2><p>Each point is a row: work per byte moved (counted by the kernel itself where "
          "it counts, else Q, K, V and O once) and speed. The roof is what this machine reaches.</p><svg "
          "width=\"900\" height=\"340\" viewBox=\"0 0 900 340\" role=\"img\"><path class=\"axis\" d=\"M60 "
          "10V300H880\"/>", f);
    for (double v = exp2(ceil(log2(x.low))); v < x.high; v *= 4)
        fprintf(f, "<text class=\"dim\" x=\"%.0f\" y=\"318\" text-anchor=\"middle\">%.3g</text>",
                place(x, v, 60, 880), v);
    for (double v = exp2(ceil(log2(y.low))); v < y.high; v *= 4)
        fprintf(f, "<text class=\"dim\" x=\"54\" y=\"%.0f\" text-anchor=\"end\">%.3g</text>",
                place(y, v, 300, 10) + 4, v);
    fputs("<text class=\"dim\" x=\"880\" y=\"334\" text-anchor=\"end\">FLOP per byte</text>"
          "<text class=\"dim\" x=\"64\" y=\"20\">GFLOP/s</text>", f);
    if (read > 0 && peak > 0) {
        const double start = fmax(x.low, y.low / read), knee = peak / read;
        fprintf(f, "<path class=\"roof\" d=\"M%.1f %.1fL%.1f %.1fH880\"/>", place(x, start, 60, 880),
                place(y, start * read, 300, 10), place(x, knee, 60, 880), place(y, peak, 300, 10));
    }
    put_points(f, t, x, y);
    fputs("</svg>", f);
}

/* ---- speed over sequence length: the chosen kernel, where the table has several lengths of one kind ---- */

static int same_but_length(const attn_problem *a, const attn_problem *b) {
    return a->dtype == b->dtype && a->qk_dim == b->qk_dim && a->causal == b->causal &&
           a->q_heads == b->q_heads && a->kv_heads == b->kv_heads && (a->q_len == 1) == (b->q_len == 1);
}

static void put_series(FILE *f, const bench_table *t, int first, const char *drawn) {
    double top = 0;
    int count = 0;
    range x = { 1e300, 0 };
    for (int i = first; i < t->count; i++)
        if (t->rows[i].chosen && !drawn[i] && speed(&t->rows[i]) > 0 &&
            t->rows[i].threads == t->rows[first].threads &&
            same_but_length(&t->rows[i].problem, &t->rows[first].problem)) {
            const double n = (double)keys(&t->rows[i].problem);
            x.low = fmin(x.low, n), x.high = fmax(x.high, n), top = fmax(top, speed(&t->rows[i])), count++;
        }
    if (count < 2 || !(x.high > x.low)) return;
    char text[1024];
    cli_problem_text(&t->rows[first].problem, text, sizeof text);
    fputs("<p>", f);
    put_escaped(f, t->rows[first].kernel);
    fprintf(f, ", %d thread%s, like ", t->rows[first].threads, t->rows[first].threads > 1 ? "s" : "");
    put_escaped(f, text);
    fputs("</p><svg width=\"900\" height=\"160\" viewBox=\"0 0 900 160\" role=\"img\">"
          "<path class=\"axis\" d=\"M60 10V130H880\"/><path class=\"line\" d=\"", f);
    int n = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int i = first; i < t->count; i++) {
            const bench_row *r = &t->rows[i];
            if (!r->chosen || drawn[i] || !(speed(r) > 0) || r->threads != t->rows[first].threads ||
                !same_but_length(&r->problem, &t->rows[first].problem))
                continue;
            const double cx = place(x, (double)keys(&r->problem), 80, 800), cy = 130 - 110 * speed(r) / top;
            if (!pass) fprintf(f, "%c%.1f %.1f", n++ ? 'L' : 'M', cx, cy);
            else
                fprintf(f,
                        "%s<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/><text x=\"%.1f\" y=\"146\" "
                        "text-anchor=\"middle\">%lld</text><text x=\"%.1f\" y=\"%.1f\">%.0f</text>",
                        n-- == count ? "\"/>" : "", cx, cy, cx, (long long)keys(&r->problem), cx + 7, cy + 4,
                        speed(r));
        }
    fputs("<text class=\"dim\" x=\"880\" y=\"146\" text-anchor=\"end\">keys</text></svg>", f);
}

static void put_lengths(FILE *f, const bench_table *t) {
    char *drawn = calloc((size_t)t->count + 1, 1);
    if (!drawn) return;
    fputs("<h2>Speed over sequence length</h2>", f);
    for (int i = 0; i < t->count; i++) {
        if (drawn[i] || !t->rows[i].chosen) continue;
        put_series(f, t, i, drawn);
        for (int j = i; j < t->count; j++)
            drawn[j] |= t->rows[j].threads == t->rows[i].threads &&
                        same_but_length(&t->rows[j].problem, &t->rows[i].problem);
    }
    free(drawn);
}

/* ---- the table: what the pictures show, and the errors ---- */

static void put_table(FILE *f, const bench_table *t) {
    static const char *const heads[] = { "problem", "kernel", "threads", "max error",
                                         "of what rounding allows, %", "median, ms", "spread, %", "GFLOP/s",
                                         "of peak, %", "GB/s", "of read, %" };
    fputs("<h2>All rows</h2><p>A click on a heading sorts. Every row was compared with float64 before it was "
          "timed.</p><table><thead><tr>", f);
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) fprintf(f, "<th data-sort>%s</th>", heads[i]);
    fputs("</tr></thead><tbody>", f);
    for (int i = 0; i < t->count; i++) {
        const bench_row *r = &t->rows[i];
        if (r->outcome.kind == OUTCOME_REFUSED) continue;      /* not a contender for this problem */
        char text[1024];
        cli_problem_text(&r->problem, text, sizeof text);
        fputs("<tr><td>", f);
        put_escaped(f, text);
        fputs("</td><td>", f);
        put_escaped(f, r->kernel);
        fprintf(f, "</td><td>%d</td>", r->threads);
        if (r->outcome.kind != OUTCOME_OK || !(r->time.median > 0)) {
            fprintf(f, "<td class=\"bad\" colspan=\"8\">%s: ", outcome_names[r->outcome.kind]);
            put_escaped(f, *r->reason ? r->reason : r->outcome.reason);
            fputs("</td></tr>", f);
            continue;
        }
        fprintf(f, "<td>%.2e</td><td>%.0f</td><td>%.4f</td><td>%.1f</td><td>%.2f</td><td>%.1f</td>"
                   "<td>%.2f</td><td>%.1f</td></tr>",
                r->outcome.verdict.o_error, 100 * r->outcome.verdict.o_ratio, r->time.median * 1e3,
                100 * (r->time.high - r->time.low) / r->time.median, speed(r), 100 * r->of_ceiling,
                r->bytes / r->time.median * 1e-9, 100 * r->of_read);
    }
    fputs("</tbody></table>", f);
}

static void put_page(FILE *f, const bench_table *t, const char *machine) {
    char date[32];
    const time_t now = time(NULL);
    struct tm utc;
    strftime(date, sizeof date, "%Y-%m-%d", gmtime_r(&now, &utc));
    fprintf(f, "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
               "content=\"width=device-width,initial-scale=1\"><title>attn "
               "bench</title><style>%s</style></head><body><h1>attn bench</h1><p>", style);
    put_escaped(f, machine);
    fprintf(f, ", %s, attn %s, %s. Bars: GFLOP/s; the mark is the ceiling of that instruction set, measured "
               "between the same samples. Orange: plug-ins and baselines.</p>",
            attn_cpu_isa(), attn_version_string(), date);
    for (int i = 0; i < t->count; i = problem_end(t, i)) {
        char text[1024];
        cli_problem_text(&t->rows[i].problem, text, sizeof text);
        fputs("<h2>", f);
        put_escaped(f, text);
        fputs("</h2>", f);
        put_bars(f, t, i, problem_end(t, i));
    }
    put_lengths(f, t);
    put_roofline(f, t);
    put_table(f, t);
    fprintf(f, "<script>%s</script></body></html>\n", script);
}

int bench_html_save(const bench_table *t, const char *machine, const char *path) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) {
        cli_error("out of memory");
        return CLI_FAILED;
    }
    put_page(f, t, machine);
    int bad = fclose(f);
    if (!bad) bad = cli_output_save("--html", path, text, size);
    free(text);
    return bad ? CLI_FAILED : CLI_OK;
}
