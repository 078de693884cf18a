"""python_overhead.py — what a call from Python costs above the C call: attn.attention on NumPy and torch, the
torch op.

    python bench/python_overhead.py [--cuda] [--json]

A 1 x 1 x 1 x 8 problem, so that the kernel costs next to nothing; medians over rounds that alternate all
contenders.
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
from attn import _api, _library as L, _ready


def on_cuda(x, call, plan):
    import torch
    workspace = torch.empty(plan.workspace, dtype=torch.uint8, device=x.device) if plan.workspace else None
    pointer, stream = c.byref(call.tensors), torch.cuda.current_stream().cuda_stream
    return lambda keep=call: L.run(plan.handle, pointer, workspace.data_ptr() if plan.workspace else None,
                                   stream)


def c_call(x):
    call = _api._Call(x, x, x, "bshd")
    call.lengths(None, None, None, None, None)
    call.outputs(x, None, None, False)
    call.pointers()
    plan = L.Plan(call.problem)
    if call.problem.device == L.CUDA:
        return on_cuda(x, call, plan)
    workspace = _ready.cpu_workspace(plan.workspace) if plan.workspace else None
    pointer = c.byref(call.tensors)
    return lambda keep=call: L.run(plan.handle, pointer, workspace, None)


OTHER = "torch's own SDPA (for comparison)"


def contenders_on_cuda():
    import torch
    from attn import torch_ops  # noqa: F401 (registers the op)
    t = torch.ones((1, 1, 1, 8), device="cuda")
    op = torch.ops.attn.attention
    yield "C call through ctypes, ready plan", c_call(t)
    yield "attn.attention, torch CUDA", lambda: attn.attention(t, t, t)
    yield "torch.ops.attn.attention", lambda: op(t, t, t)
    yield OTHER, lambda: torch.nn.functional.scaled_dot_product_attention(t, t, t)


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
    yield OTHER, lambda: torch.nn.functional.scaled_dot_product_attention(t, t, t)


def settle():
    """Wait for queued work: calls are timed, not the device."""
    if "--cuda" in sys.argv:
        sys.modules["torch"].cuda.synchronize()


def measure(functions, rounds=15, calls=400):
    times = {name: [] for name, _ in functions}
    for _ in range(rounds):
        for name, f in functions:
            f()
            settle()
            start = time.perf_counter()
            for _ in range(calls):
                f()
            times[name].append((time.perf_counter() - start) / calls * 1e6)
    return {name: statistics.median(t) for name, t in times.items()}


def main():
    medians = measure(list(contenders_on_cuda() if "--cuda" in sys.argv else contenders()))
    base = next(iter(medians.values()))
    if "--json" in sys.argv:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "time_us_p50": medians}))
        return
    print(f"{'call':<38} {'µs':>8} {'above the C call':>18}")
    for name, value in medians.items():
        print(f"{name:<38} {value:8.2f} {value - base:18.2f}")


main()
