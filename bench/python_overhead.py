"""python_overhead.py — what a call from Python costs above the C call: attn.attention on NumPy and torch, the torch op.

    python bench/python_overhead.py [--json]

A 1 x 1 x 1 x 8 problem, so that the kernel costs next to nothing; medians over rounds that alternate all contenders.
"""
import ctypes as c
import json
import pathlib
import platform
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))
import numpy as np

import attn
from attn import _api, _library as L


def c_call(x):
    call = _api._Call(x, x, x, "bshd")
    call.lengths(None, None, None, None, None)
    call.outputs(x, None, None, False)
    call.pointers()
    plan = L.Plan(call.problem)
    workspace = _api._cpu_workspace(plan.workspace) if plan.workspace else None
    pointer = c.byref(call.tensors)
    return lambda keep=call: L.run(plan.handle, pointer, workspace, None)


def contenders():
    x = np.ones((1, 1, 1, 8), dtype=np.float32)
    yield "C call through ctypes, ready plan", c_call(x)
    yield "attn.attention, NumPy", lambda: attn.attention(x, x, x)
    try:
        import torch
        from attn import torch_ops  # noqa: F401 (registers the op)
    except ImportError:
        return
    t = torch.from_numpy(x)
    op = torch.ops.attn.attention
    yield "attn.attention, torch", lambda: attn.attention(t, t, t)
    yield "torch.ops.attn.attention", lambda: op(t, t, t)
    yield "torch's own SDPA (for comparison)", lambda: torch.nn.functional.scaled_dot_product_attention(t, t, t)


def measure(functions, rounds=15, calls=400):
    times = {name: [] for name, _ in functions}
    for _ in range(rounds):
        for name, f in functions:
            f()
            start = time.perf_counter()
            for _ in range(calls):
                f()
            times[name].append((time.perf_counter() - start) / calls * 1e6)
    return {name: statistics.median(t) for name, t in times.items()}


def main():
    medians = measure(list(contenders()))
    base = next(iter(medians.values()))
    if "--json" in sys.argv:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "time_us_p50": medians}))
        return
    print(f"{'call':<38} {'µs':>8} {'above the C call':>18}")
    for name, value in medians.items():
        print(f"{name:<38} {value:8.2f} {value - base:18.2f}")


main()
