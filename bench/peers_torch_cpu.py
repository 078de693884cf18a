#!/usr/bin/env python3
"""peers_torch_cpu.py — attn.attention beside PyTorch's own CPU attention: the same tensors, process and
thread count, alternating rounds, every result checked first. Prints ratios. `bench/peers_torch.py --cpu` is
the same.

    python3 bench/peers_torch_cpu.py [--threads N] [--rounds N] [--json FILE]
"""
import argparse
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "python"))
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import attn  # noqa: E402


def cpu_name():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def contenders(q, k, v, causal, threads):
    bhsd = [x.transpose(1, 2) for x in (q, k, v)]
    ours = lambda: attn.attention(q, k, v, causal=causal, threads=threads)
    torchs = lambda: F.scaled_dot_product_attention(*bhsd, is_causal=causal).transpose(1, 2)
    return ours, torchs


def check(run, q, k, v, causal, allowed):
    want = F.scaled_dot_product_attention(*(x.transpose(1, 2).double() for x in (q, k, v)),
                                          is_causal=causal).transpose(1, 2)
    error = (run().double() - want).abs().max().item()
    if not error <= allowed:
        sys.exit(f"wrong: error {error}, allowed {allowed}")
    return error


def sample(run, seconds=0.06):
    start = time.perf_counter()
    run()
    one = time.perf_counter() - start
    calls = max(1, int(seconds / one))
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def measure(dtype, dim, length, causal, arguments):
    torch.manual_seed(length + dim)
    q, k, v = (torch.randn(1, length, 8, dim).to(dtype) for _ in range(3))
    ours, torchs = contenders(q, k, v, causal, arguments.threads)
    errors = [check(run, q, k, v, causal, 1e-5 if dtype == torch.float32 else 3e-2) for run in (ours, torchs)]
    times = ([], [])
    for _ in range(arguments.rounds):
        for run, kept in zip((ours, torchs), times):
            kept.append(sample(run))
    medians = [statistics.median(t) for t in times]
    flops = 4 * 8 * length * length * dim * (0.5 if causal else 1)
    return {"dtype": str(dtype).split(".")[1], "dim": dim, "length": length, "causal": causal,
            "attn_gflops": flops / medians[0] * 1e-9, "torch_gflops": flops / medians[1] * 1e-9,
            "ratio": statistics.median(b / a for a, b in zip(*times)), "attn_error": errors[0],
            "torch_error": errors[1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cpu", action="store_true", help="accepted and implied")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    print(f"{cpu_name()}, {arguments.threads} threads, torch {torch.__version__}, attn {attn.__version__} "
          f"({attn.info()['isa']}); batch 1, 8 heads; ratio = torch's time / ours, median of "
          f"{arguments.rounds} rounds")
    print(f"{'dtype':<9}{'dim':>5}{'length':>8} {'mask':<7}{'attn':>9}{'torch':>9}  GFLOP/s {'ratio':>7}")
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for dim in (64, 128):
            for length in (512, 1024, 2048, 4096):
                for causal in (False, True):
                    r = measure(dtype, dim, length, causal, arguments)
                    rows.append(r)
                    print(f"{r['dtype']:<9}{dim:>5}{length:>8} "
                          f"{'causal' if causal else 'full':<7}{r['attn_gflops']:>9.1f}"
                          f"{r['torch_gflops']:>9.1f}          {r['ratio']:>7.2f}", flush=True)
    worst = min(rows, key=lambda r: r["ratio"])
    print(f"smallest ratio {worst['ratio']:.2f} ({worst['dtype']}, dim {worst['dim']}, {worst['length']}, "
          f"{'causal' if worst['causal'] else 'full'}), geometric mean "
          f"{statistics.geometric_mean(r['ratio'] for r in rows):.2f}")
    if arguments.json:
        json.dump({"machine": cpu_name(), "threads": arguments.threads, "torch": torch.__version__,
                   "rows": rows},
                  open(arguments.json, "w"), indent=1)


main()
