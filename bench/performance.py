#!/usr/bin/env python3
"""performance.py — the figures in README.md, docs/performance.md and docs/performance.svg, out of
bench/results.

    python3 bench/performance.py --update      write them anew from the newest results file
    python3 bench/performance.py --check       exit 1 if one of them is stale (CI runs this)

The results file is what bench/gpu_check.sh (section peers) wrote on a GPU machine. Needs nothing but Python.
"""
import argparse
import json
import math
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
OURS, AMPERE, CUDNN, FLASH = "flash_fwd_sm90", "flash_fwd_sm80", "torch cudnn", "torch flash"
NAMES = {OURS: "libattn, Hopper kernel", CUDNN: "cuDNN", AMPERE: "libattn, Ampere kernel",
         FLASH: "FlashAttention-2"}
COLOURS = {OURS: "#2a78d6", CUDNN: "#e08a1e", AMPERE: "#86b6ef", FLASH: "#b9b9b4"}
BEGIN, END = "<!-- figures: python3 bench/performance.py --update -->", "<!-- end of figures -->"


def newest():
    files = sorted((ROOT / "bench" / "results").glob("h100-*-cuda.json"))
    if not files:
        sys.exit("performance.py: no bench/results/h100-*-cuda.json")
    return files[-1], json.loads(files[-1].read_text())


class Results:
    def __init__(self, data):
        self.data, self.rows = data, {(r["dim"], r["causal"], r["length"], r["kernel"]): r
                                      for r in data["rows"]}
        self.cases = sorted({key[:2] for key in self.rows})
        self.lengths = sorted({key[2] for key in self.rows})

    def tflops(self, case, length, kernel):
        return self.rows[(*case, length, kernel)]["tflops"]

    def ratio(self, case, length, kernel, peer):
        return self.rows[(*case, length, kernel)]["versus"][peer]

    def ratios(self, kernel, peer):
        all_of_them = [self.ratio(c, n, kernel, peer) for c in self.cases for n in self.lengths]
        return math.exp(sum(map(math.log, all_of_them)) / len(all_of_them)), min(all_of_them)


def title(case):
    return f"{case[0]} {'causal' if case[1] else 'full'}"


def table(results, kernel, peer):
    lines = [f"| head dim, mask | {' | '.join(f'{n // 1024}k' for n in results.lengths)} |",
             "|---|" + "---|" * len(results.lengths)]
    for case in results.cases:
        cells = [f"{results.tflops(case, n, kernel):.0f} ({results.ratio(case, n, kernel, peer):.2f})"
                 for n in results.lengths]
        lines.append(f"| {title(case)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(results, kernel, peer):
    mean, least = results.ratios(kernel, peer)
    shapes = len(results.cases) * len(results.lengths)
    return f"geometric mean {mean:.2f} × {NAMES[peer]}, least {least:.2f}, over {shapes} shapes"


def source(path, data):
    return (f"{data['device']}, {data['dtype']}, 16k tokens, hidden 2048, PyTorch "
            f"{data['torch'].split('+')[0]}, contenders in alternating rounds of one process, medians; "
            f"`{path.relative_to(ROOT)}`, commit {data['commit']}")


# A row of the decode and MLA suites, as `attn bench` prints it now, and as it did before both had one table.
ROW = re.compile(
    r"^(?P<name>GQA .+?|  paged .+?|h\d+ b\d+ .+?) {2,}(?P<time>[\d.]+ us) +(?P<rate>[\d.]+) GB/s +"
    r"(?:(?P<share>[\d.]+) %|-) +(?P<tflops>[\d.]+) TFLOP/s +(?:\w+ (?P<peer>\S+ \S+) +(?P<ratio>[\d.]+)|- "
    r"+-) +(?P<must>\S+ \S+) +(?P<goal>\S+ \S+) +(?P<measured>\S+ \S+|-) +(?P<result>goal|must|MISSED|-) ",
    re.M)
OLD_GQA = re.compile(
    r"^(?P<name>GQA .+?|  paged .+?) {2,}(?P<time>[\d.]+ us) +(?P<rate>[\d.]+) GB/s +(?P<share>[\d.]+) % +"
    r"(?:cuDNN (?P<peer>\S+ \S+) +(?P<ratio>[\d.]+)|- +-)", re.M)
OLD_MLA = re.compile(
    r"^(?P<name>h\d+ b\d+ .+?) {2,}(?P<time>[\d.]+ us) +(?P<tflops>[\d.]+) TFLOP/s +(?P<rate>[\d.]+) GB/s .*?"
    r" peer +[\d.]+ +x(?P<ratio>[\d.]+)", re.M)


def suites(path):
    """Rows of the decode and MLA suites, out of the text beside the JSON file."""
    text = path.with_suffix(".txt").read_text()
    rows = [m.groupdict() for m in ROW.finditer(text)]
    if not rows:
        return [[m.groupdict() for m in old.finditer(text)] for old in (OLD_GQA, OLD_MLA)]
    return [[r for r in rows if r["name"].startswith("h") == is_mla] for is_mla in (False, True)]


def suite_table(rows, columns):
    """columns: (heading, template) pairs; must, goal and result follow where the rows have them."""
    if rows[0].get("result"):
        columns = columns + [(name, "{" + name + "}") for name in ("must", "goal", "measured", "result")]
    lines = ["| " + " | ".join(heading for heading, _ in columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        shown = {name: (value or "–").strip() for name, value in row.items()}
        lines.append("| " + " | ".join(template.format(**shown) for _, template in columns) + " |")
    return "\n".join(lines).replace("|  |", "| |", 1)


def decoding(path):
    (gqa, mla), out = suites(path), ""
    if gqa:
        out += ("\n\n## Decoding: one query a sequence\n\n`attn bench --backend cuda --suite decode`; the "
                "peer's figure is an earlier measurement on such a card.\n\n")
        out += suite_table(gqa, [("", "{name}"), ("time", "{time}"), ("K, V read", "{rate} GB/s"),
                                 ("of the card's read rate", "{share} %"), ("cuDNN", "{peer}"),
                                 ("ratio", "{ratio}")])
    if mla:
        out += ("\n\n## MLA: 576-wide keys, values their first 512 columns, pages of 64\n\n`attn bench "
                "--backend cuda --suite mla`; the ratio is to FlashMLA's figures from an earlier measurement "
                "on such a card, merge included, schedule not, on both sides.\n\n")
        out += suite_table(mla, [("", "{name}"), ("time", "{time}"), ("TFLOP/s", "{tflops}"),
                                 ("GB/s", "{rate}"), ("ratio", "{ratio}")])
    return out


def readme(path, results):
    gqa, mla = suites(path)
    also = ""
    if gqa and mla:
        shares = [float(r["share"]) for r in gqa
                  if r["share"] and r["name"].startswith("GQA") and " b1 8k" not in r["name"]]

        def span(belongs):
            ratios = [float(r["ratio"]) for r in mla if belongs(r["name"])]
            return f"{min(ratios):.2f} to {max(ratios):.2f}"
        also = (f" Decoding with one query a sequence reads long caches at {min(shares):.0f} to "
                f"{max(shares):.0f} % of the card's read rate. MLA against FlashMLA's figures: 128 sequences "
                f"of 128 heads {span(lambda n: n.endswith('q2'))} × with two queries, "
                f"{span(lambda n: n.startswith('h128 b128') and not n.endswith('q2'))} × with one; 16 to 64 "
                f"heads {span(lambda n: not n.startswith('h128'))} ×, a single sequence "
                f"{span(lambda n: ' b1 ' in n)} ×.")
    return (f"Forward, TFLOP/s by sequence length, and in brackets the ratio to cuDNN in the same run "
            f"({summary(results, OURS, CUDNN)}):\n\n{table(results, OURS, CUDNN)}\n\n"
            f"{source(path, results.data)}.{also} [More](docs/performance.md).")


def page(path, results):
    return (f"![Bars: TFLOP/s at 16k keys](performance.svg)\n\n## `flash_fwd_sm90` beside cuDNN\n\n"
            f"TFLOP/s (ratio to cuDNN): {summary(results, OURS, CUDNN)}.\n\n{table(results, OURS, CUDNN)}\n\n"
            f"## `flash_fwd_sm80` beside FlashAttention-2\n\nThe Ampere kernel on the same Hopper card; "
            f"TFLOP/s (ratio to FlashAttention-2): {summary(results, AMPERE, FLASH)}.\n\n"
            f"{table(results, AMPERE, FLASH)}{decoding(path)}\n\n"
            f"{source(path, results.data)}.")


STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #26241f } .muted { fill: #6d6a62 } .value { font-size: 11px }
.line { stroke: #dad7cf } .ground { fill: #fffefb }
@media (prefers-color-scheme: dark) { text { fill: #eceae3 } .muted { fill: #a9a69d } \
.line { stroke: #45433d }
.ground { fill: #1c1b18 } }
</style>"""


def picture(results):
    """Grouped bars of the longest sequences: a group a case, a bar a kernel."""
    length, kernels = results.lengths[-1], [OURS, CUDNN, AMPERE, FLASH]
    bar, gap, left, top, height = 26, 34, 52, 64, 260
    group = bar * len(kernels) + gap
    width = left + group * len(results.cases) + 10
    most = math.ceil(max(results.tflops(c, length, k) for c in results.cases for k in kernels) / 200) * 200
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + height + 44}" role="img">',
           f"<title>Forward attention on {results.data['device']}, TFLOP/s at {length // 1024}k keys</title>",
           STYLE,
           f'<rect class="ground" width="{width}" height="{top + height + 44}"/>',
           f'<text x="{left}" y="22">Forward, {length // 1024}k keys, {results.data["dtype"]}, TFLOP/s on '
           f'{results.data["device"]}</text>']
    x = left
    for kernel in kernels:
        out += [f'<rect x="{x}" y="34" width="12" height="12" fill="{COLOURS[kernel]}"/>',
                f'<text class="muted" x="{x + 18}" y="45">{NAMES[kernel]}</text>']
        x += 46 + 7 * len(NAMES[kernel])
    for value in range(0, most + 1, 200):
        y = top + height - height * value / most
        out += [f'<line class="line" x1="{left}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}"/>',
                f'<text class="muted" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{value}</text>']
    for i, case in enumerate(results.cases):
        x = left + gap / 2 + i * group
        for kernel in kernels:
            value = results.tflops(case, length, kernel)
            tall = height * value / most
            out += [f'<rect x="{x:.1f}" y="{top + height - tall:.1f}" width="{bar - 2}" height="{tall:.1f}" '
                    f'fill="{COLOURS[kernel]}"/>',
                    f'<text class="value" x="{x + bar / 2 - 1:.1f}" y="{top + height - tall - 4:.1f}" '
                    f'text-anchor="middle">{value:.0f}</text>']
            x += bar
        out.append(f'<text x="{left + (i + 0.5) * group:.1f}" y="{top + height + 20}" '
                   f'text-anchor="middle">{title(case)}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def between(text, body, where):
    if BEGIN not in text or END not in text:
        sys.exit(f"performance.py: {where} lacks the markers {BEGIN} and {END}")
    head, rest = text.split(BEGIN, 1)
    return head + BEGIN + "\n" + body + "\n" + END + rest.split(END, 1)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--update", action="store_true")
    which.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    path, data = newest()
    results = Results(data)
    wanted = {}
    for name, body in (("README.md", readme), ("docs/performance.md", page)):
        wanted[name] = between((ROOT / name).read_text(), body(path, results), name)
    wanted["docs/performance.svg"] = picture(results)
    stale = [n for n, text in wanted.items() if not (ROOT / n).exists() or (ROOT / n).read_text() != text]
    if arguments.update:
        for name in stale:
            (ROOT / name).write_text(wanted[name])
            print(f"wrote {name}")
    elif stale:
        sys.exit(f"performance.py: stale: {', '.join(stale)}; run python3 bench/performance.py --update")
    print(f"performance.py: {len(wanted)} files agree with {path.relative_to(ROOT)}")


main()
