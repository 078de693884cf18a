#!/usr/bin/env python3
"""hopper_steps.py - what each step of docs/hopper-forward.md is worth, in turns in one process on one Hopper
GPU.

    python3 bench/hopper_steps.py build BUILD         into BUILD/steps; needs nvcc, cc, a tree built with CUDA
    python3 bench/hopper_steps.py run BUILD [ROUNDS]  prints the tables; needs the GPU and PyTorch

First the course's kernels, each one step further than the one before, on tiles of 128 queries x 128 keys.
Then the library's own kernel with other rows in its table of tiles (ATTN_SM90_TILES, built with SM90_TUNE,
which adds the variables sm90_tune_row, sm90_tune_static and sm90_tune_group_mb), and with its tiles handed
out in other ways. bf16, 16k tokens, hidden 2048; TFLOP/s, medians over rounds.
"""

import ctypes as C
import pathlib
import random
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]

# The ladder: label, source, what nvcc gets more than the file's own flags.
LADDER = [
    ("mma.sync, no overlap (flash_mma.cu)", "flash_mma", ["-gencode=arch=compute_90,code=sm_90"]),
    ("wgmma (flash_wgmma.cu)", "flash_wgmma", []),
    ("+ copy engine, two stages (flash_tma.cu)", "flash_tma", []),
    ("+ producer and consumers (flash_hopper.cu, OVERLAP=0)", "flash_hopper", ["-DOVERLAP=0"]),
    ("+ scores beside P V (flash_hopper.cu)", "flash_hopper", []),
]
SM90A = ["-gencode=arch=compute_90a,code=sm_90a"]

# Rows: dim, kind, keys, warpgroups, stages, pingpong, lazy. The first of a group is what the others are
# compared with.
SWITCHES = [(0, 0), (1, 0), (0, 1), (1, 1)]
ROWS = {}
for causal in (0, 1):
    ROWS[64, causal] = [(128, 3, 2, *s) for s in SWITCHES]
    keys = 128 if causal else 176
    ROWS[128, causal] = [(keys, 2, 2, *s) for s in SWITCHES] + [(128, 2, 3, 0, 1) if causal
                                                                else (128, 2, 2, 1, 1)]
    ROWS[256, causal] = [(80, 2, 2, 0, 0), (80, 2, 2, 0, 1)]
SHIPPED = {64: 3, 128: 2, 256: 1}  # of the causal rows


def all_rows():
    return [(d, causal, row) for (d, causal), rows in ROWS.items() for row in rows]


# ---- build ----


def command(words, log):
    with open(log, "w") as file:
        if subprocess.run([str(w) for w in words], cwd=ROOT, stdout=file, stderr=file).returncode:
            sys.exit(f"failed, see {log}: {' '.join(map(str, words))}")


def build(folder):
    out = folder / "steps"
    out.mkdir(exist_ok=True)
    for number, (_, source, flags) in enumerate(LADDER):
        more = flags if source == "flash_mma" else SM90A + ["-ftz=true"] + flags
        command(["nvcc", "-std=c++17", "-O3", *more, "-Xcompiler", "-fPIC", "-shared", "-Iinclude",
                 "-o", out / f"ladder{number}.so", f"learn/flash_attention/{source}.cu"],
                out / f"ladder{number}.log")
    rows = out / "rows.h"
    rows.write_text("#define ATTN_SM90_TILES(T) \\\n" + "".join(
        f"    T({d}, {d}, {'SM90_CAUSAL' if causal else 'SM90_FULL'}, {', '.join(map(str, row))}) \\\n"
        for d, causal, row in all_rows()) + "\n")
    fatbin = out / "flash_fwd_sm90.fatbin"
    command(["nvcc", "-fatbin", "-std=c++17", "-O3", "-Xptxas", "-v", "-DSM90_ONLY_BF16", "-include", rows,
             *SM90A, "-Iinclude", "-o", fatbin, "src/cuda/flash_fwd_sm90.cu"], out / "nvcc.log")
    image = (folder / "cuda/flash_fwd_sm90_image.c").read_text()
    (out / "image.c").write_text(image.replace(str(folder / "cuda/flash_fwd_sm90.fatbin"), str(fatbin)))
    flags = ["-std=c11", "-O2", "-fPIC", "-Iinclude", "-Isrc", "-DATTN_BUILDING", "-D_GNU_SOURCE",
             "-DATTN_WITH_CUDA"]
    command(["cc", *flags, "-DSM90_TUNE", "-include", rows, "-c", "src/cuda/flash_fwd_sm90.c", "-o",
             out / "record.o"],
            out / "cc.log")
    command(["cc", *flags, "-c", out / "image.c", "-o", out / "image.o"], out / "cc.log")
    objects = [o for o in (folder / "CMakeFiles/attn_objects.dir").rglob("*.o")
               if "flash_fwd_sm90" not in o.name]
    command(["cc", "-shared", "-o", out / "libattn-steps.so", out / "record.o", out / "image.o", *objects,
             "-lpthread", "-lm", "-ldl"], out / "cc.log")
    print(f"{out}: {len(LADDER)} plug-ins, {len(all_rows())} rows")


# ---- run ----


class Plugin(C.Structure):  # attn_plugin of include/attn/attn_plugin.h
    _fields_ = [("struct_size", C.c_uint32), ("device", C.c_int), ("name", C.c_char_p),
                ("summary", C.c_char_p), ("refuse", C.c_void_p), ("workspace", C.c_void_p),
                ("run", C.CFUNCTYPE(C.c_int, C.c_void_p, C.c_void_p, C.c_void_p, C.c_void_p))]


class Contest:
    """Kernels on one problem, in turns."""

    def __init__(self, h, torch, d, s, causal, batch=None, heads=None):
        self.h, self.torch, self.runs, self.times = h, torch, {}, {}
        self.batch, self.heads = batch or 16384 // s, heads or 2048 // d
        shape = (self.batch, s, self.heads, d)
        q, k, v = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
        self.tensors = dict(q=q, k=k, v=v, o=torch.empty_like(q))
        self.problem = dict(dtype=h.structs().BF16, batch=self.batch, q_heads=self.heads, q_len=s, qk_dim=d,
                            causal=causal)
        self.flops = 4 * self.batch * self.heads * s * s * d / (2 if causal else 1)
        reference = torch.nn.functional.scaled_dot_product_attention(
            *[x.transpose(1, 2) for x in (q, k, v)], is_causal=bool(causal))
        self.want = reference.transpose(1, 2)

    def add(self, label, run):
        o = self.tensors["o"]
        o.fill_(float("nan"))
        run()
        worst = (o - self.want).abs().max().item()
        if not worst < 0.03:
            print(f"WRONG: {label}: largest difference {worst}")
        self.runs[label] = run

    def add_kernel(self, label, library, kernel=b"flash_fwd_sm90"):
        self.add(label, self.h.Plan(library, self.tensors, kernel=kernel, **self.problem).run)

    def add_plugin(self, label, path, library):
        plan = self.h.Plan(library, self.tensors, **self.problem)
        plugin = Plugin.in_dll(C.CDLL(str(path)), "attn_plugin_kernel")
        problem = library.attn_plan_problem(plan.handle)

        def run():
            stream = self.torch.cuda.current_stream().cuda_stream
            if plugin.run(problem, C.byref(plan.tensors), None, stream):
                raise RuntimeError(f"{label}: the run failed")

        self.add(label, run)

    def race(self, rounds, budget=25.0):
        times = {label: [] for label in self.runs}
        for _ in range(rounds):  # in another order each time: who follows a slow one finds a cooler card
            for label, run in random.sample(list(self.runs.items()), len(self.runs)):
                times[label].append(self.h.milliseconds(run, budget)[0])
        return {label: self.flops / statistics.median(t) / 1e9 for label, t in times.items()}


def table(title, columns, results, first):
    """results: one {label: TFLOP/s} a column; gains against the line `first` (a label, or None: the line
    before)."""
    print(f"\n{title}\n\n| | {' | '.join(columns)} | gain |\n|---|{'---|' * (len(columns) + 1)}")
    before = first
    for label in results[0]:
        gains = ["" if before in (None, label) else f"{100 * (r[label] / r[before] - 1):+.0f} %"
                 for r in results]
        print(f"| {label} | {' | '.join(f'{r[label]:.0f}' for r in results)} | {' / '.join(gains)} |")
        before = first or label
    sys.stdout.flush()


def run(folder, rounds):
    import torch

    import hopper_forward as h

    torch.manual_seed(0)
    out = folder / "steps"
    shipped, steps = h.load(str(folder / "libattn.so")), h.load(str(out / "libattn-steps.so"))
    for library in (shipped, steps):
        library.attn_plan_problem.restype, library.attn_plan_problem.argtypes = C.c_void_p, [C.c_void_p]
    row, static, group = [C.c_int.in_dll(steps, f"sm90_tune_{name}")
                          for name in ("row", "static", "group_mb")]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {rounds} rounds, bf16, 16k tokens, "
          f"hidden 2048")

    for d in (128, 64):
        columns, results = [], []
        for causal in (0, 1):
            for s in (2048, 8192):
                c = Contest(h, torch, d, s, causal)
                for number, (label, _, _) in enumerate(LADDER):
                    c.add_plugin(label, out / f"ladder{number}.so", shipped)
                c.add_kernel("the library for Ampere (flash_fwd_sm80)", shipped, b"flash_fwd_sm80")
                c.add_kernel("the library (flash_fwd_sm90)", shipped)
                columns.append(f"{'causal' if causal else 'full'} {s}")
                results.append(c.race(rounds))
        table(f"Step by step, head dim {d} (gain over the line before)", columns, results, None)

    index = {entry: number for number, entry in enumerate(all_rows())}
    lengths = (2048, 8192, 16384)
    for (d, causal), rows in ROWS.items():
        results = []
        for s in lengths:
            c = Contest(h, torch, d, s, causal)
            for entry in rows:
                row.value = index[d, causal, entry]
                keys, warpgroups, stages, pingpong, lazy = entry
                c.add_kernel(f"{64 * warpgroups} x {keys}, {stages} stages" + ", in turns" * pingpong
                             + ", lazy" * lazy, steps)
            results.append(c.race(rounds))
        table(f"Rows of the table, head dim {d} {'causal' if causal else 'full'} (gain over the first line)",
              [str(s) for s in lengths], results, next(iter(results[0])))

    for d, number in SHIPPED.items():
        results = []
        for s in lengths:
            c = Contest(h, torch, d, s, 1)
            row.value = index[d, 1, ROWS[d, 1][number]]
            for label, fixed, megabytes in (("block b takes tiles b, b + 132, ...", 1, 32),
                                            ("counter, head by head", 0, 0),
                                            ("counter, heads whose K and V fill 32 MB", 0, 32)):
                static.value, group.value = fixed, megabytes
                c.add_kernel(label, steps)
            static.value, group.value = 0, 32
            results.append(c.race(rounds))
        table(f"Who takes which tile, head dim {d} causal (gain over the first line)",
              [str(s) for s in lengths], results, next(iter(results[0])))


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in ("build", "run"):
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[2]).resolve()
    if sys.argv[1] == "build":
        build(folder)
    else:
        run(folder, int(sys.argv[3]) if len(sys.argv) > 3 else 4)


if __name__ == "__main__":
    main()
