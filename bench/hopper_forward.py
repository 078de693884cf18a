#!/usr/bin/env python3
"""hopper_forward.py - flash_fwd_sm90 beside PyTorch's cuDNN back end on one Hopper GPU, in turns in one
process.

    python3 bench/hopper_forward.py build/libattn.so [rounds]

16k tokens, hidden 2048, [batch, seq, heads, dim]. TFLOP/s are medians over rounds; `share` is of the tensor
cores' 4096 FLOP a clock and SM, at the clock that nvidia-smi reported while the kernel ran (the card is
power-capped: TFLOP/s move with the temperature, the share doesn't). Every result is compared with cuDNN's.
"""

import ctypes as C
import math
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = pathlib.Path(__file__).resolve().parents[1]


def structs():
    """attn/_library.py of the Python package: the structs of attn.h. Importing it loads a library, see
    load."""
    if str(ROOT / "python") not in sys.path:
        sys.path.insert(0, str(ROOT / "python"))
    from attn import _library

    return _library


class Plan:
    """One problem planned for one kernel of `library`; run() queues it on torch's stream."""

    def __init__(self, library, tensors, kernel=b"flash_fwd_sm90", **problem):
        L = structs()
        self.library, self.keep = library, tensors
        p = L.Problem(struct_size=C.sizeof(L.Problem), device=L.CUDA, **problem)
        o = L.Options(struct_size=C.sizeof(L.Options), kernel=kernel)
        self.handle = C.c_void_p()
        if library.attn_plan_create(C.byref(self.handle), C.byref(p), C.byref(o)):
            raise RuntimeError(library.attn_last_error().decode())
        self.workspace = torch.empty(
            library.attn_plan_workspace(self.handle) + 1, dtype=torch.uint8, device="cuda"
        )
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        self.tensors = L.Tensors(struct_size=C.sizeof(L.Tensors), **pointers)

    def run(self):
        stream = torch.cuda.current_stream().cuda_stream
        if self.library.attn_run(self.handle, C.byref(self.tensors), self.workspace.data_ptr(), stream):
            raise RuntimeError(self.library.attn_last_error().decode())


def load(path):
    """The library at `path`; several may be loaded, the package's own is the first of them."""
    os.environ.setdefault("ATTN_LIBRARY", str(pathlib.Path(path).resolve()))
    library = C.CDLL(path)
    library.attn_last_error.restype = C.c_char_p
    library.attn_plan_workspace.restype = C.c_size_t
    library.attn_plan_workspace.argtypes = [C.c_void_p]
    library.attn_run.argtypes = [C.c_void_p] * 4
    return library


class Clock(threading.Thread):
    """SM clock in MHz, sampled in the background."""

    def __init__(self):
        super().__init__(daemon=True)
        self.samples = []
        self.start()

    def run(self):
        query = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "-lms", "20"]
        for line in subprocess.Popen(query, stdout=subprocess.PIPE, text=True).stdout:
            if line.strip().isdigit():
                self.samples.append((time.time(), float(line)))

    def between(self, start, end):
        inside = [mhz for at, mhz in self.samples if start <= at <= end]
        return statistics.mean(inside) if inside else float("nan")


def milliseconds(call, budget=60.0):
    """Median time of one call, and when the timing began and ended."""
    start, end = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    call()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    pairs = [
        [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        for _ in range(max(3, min(100, int(budget / start.elapsed_time(end)))))
    ]
    began = time.time()
    for first, second in pairs:
        first.record()
        call()
        second.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairs), began, time.time()


def contest(library, clock, rounds, batch, s, heads, kv_heads, d, causal, dtype=torch.bfloat16):
    """@return TFLOP/s of flash_fwd_sm90 and cuDNN, share of the tensor peak, largest difference."""
    q = torch.randn(batch, s, heads, d, device="cuda", dtype=dtype)
    k, v = [torch.randn(batch, s, kv_heads, d, device="cuda", dtype=dtype) for _ in range(2)]
    o, lse = torch.full_like(q, float("nan")), torch.empty(batch, heads, s, device="cuda")
    plan = Plan(
        library,
        dict(q=q, k=k, v=v, o=o, lse=lse),
        dtype=structs().F16 if dtype == torch.float16 else structs().BF16,
        batch=batch,
        q_heads=heads,
        kv_heads=kv_heads,
        q_len=s,
        qk_dim=d,
        causal=causal,
    )
    qt, kt, vt = [x.transpose(1, 2) for x in (q, k, v)]

    def cudnn():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(
                qt, kt, vt, is_causal=bool(causal), enable_gqa=heads != kv_heads
            )

    plan.run()
    difference = (o - cudnn().transpose(1, 2)).abs().max().item()
    times, clocks = {"own": [], "cudnn": []}, []
    for _ in range(rounds):
        for name, call in (("own", plan.run), ("cudnn", cudnn)):
            time_ms, began, ended = milliseconds(call)
            times[name].append(time_ms)
            if name == "own":
                clocks.append(clock.between(began, ended))
    flops = 4 * batch * heads * s * s * d / (2 if causal else 1)
    own, peer = [flops / statistics.median(times[name]) / 1e9 for name in ("own", "cudnn")]
    clocks = [c for c in clocks if c == c]
    mhz = statistics.mean(clocks) if clocks else float("nan")
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    return own, peer, own * 1e6 / (multiprocessors * 4096 * mhz), difference


def ragged(library, lengths, heads, d, causal):
    """TFLOP/s of a packed batch (counted by visible pairs)."""
    total, most = sum(lengths), max(lengths)
    q, k, v = [torch.randn(total, heads, d, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    starts = torch.tensor(
        [0] + [sum(lengths[: i + 1]) for i in range(len(lengths))], dtype=torch.int32, device="cuda"
    )
    o = torch.empty_like(q)
    plan = Plan(
        library,
        dict(q=q, k=k, v=v, o=o, cu_seqlens_q=starts, cu_seqlens_kv=starts),
        dtype=structs().BF16,
        batch=len(lengths),
        q_heads=heads,
        q_len=most,
        qk_dim=d,
        causal=causal,
        packed_q=1,
        packed_kv=1,
        q_total=total,
        kv_total=total,
    )
    flops = sum(4 * heads * n * n * d / (2 if causal else 1) for n in lengths)
    return flops / milliseconds(plan.run)[0] / 1e9


def main():
    library, rounds = load(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    torch.manual_seed(0)
    clock = Clock()
    cudnn = torch.backends.cudnn.version()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN {cudnn}, bf16")
    print("| d | mask | seq | own TFLOP/s | cuDNN TFLOP/s | ratio | share of peak | max difference |")
    print("|---|---|---|---|---|---|---|---|")
    ratios = []
    for d in (64, 128, 256):
        for causal in (0, 1):
            for s in (2048, 8192, 16384):
                own, peer, share, difference = contest(
                    library, clock, rounds, 16384 // s, s, 2048 // d, 2048 // d, d, causal
                )
                ratios.append(own / peer)
                print(
                    f"| {d} | {'causal' if causal else 'full'} | {s} | {own:.0f} | {peer:.0f} "
                    f"| {own / peer:.3f} | {share:.3f} | {difference:.4f} |",
                    flush=True,
                )
    print(f"geometric mean {math.exp(statistics.mean(map(math.log, ratios))):.3f}, least {min(ratios):.3f}")
    for name, shape in (
        ("GQA 32/8 d128 causal b1 s8k", (1, 8192, 32, 8, 128, 1)),
        ("GQA 64/8 d128 causal b1 s32k", (1, 32768, 64, 8, 128, 1)),
        ("b32 s512 d128 full", (32, 512, 16, 16, 128, 0)),
        ("b32 s512 d128 causal", (32, 512, 16, 16, 128, 1)),
    ):
        own, peer, share, _ = contest(library, clock, rounds, *shape)
        print(f"{name}: own {own:.0f}, cuDNN {peer:.0f} TFLOP/s, share {share:.3f}", flush=True)
    for d in (64, 128, 256):
        half, _, _, _ = contest(library, clock, rounds, 2, 8192, 2048 // d, 2048 // d, d, 0, torch.float16)
        brain, _, _, _ = contest(library, clock, rounds, 2, 8192, 2048 // d, 2048 // d, d, 0)
        print(
            f"d{d} full s8k: f16 {half:.0f}, bf16 {brain:.0f} TFLOP/s, ratio {half / brain:.3f}", flush=True
        )
    for causal in (0, 1):
        uneven = ragged(library, [4096, 1024, 3072, 512, 2560, 2048, 1536, 1536], 16, 128, causal)
        even = ragged(library, [2048] * 8, 16, 128, causal)
        print(
            f"packed d128 {'causal' if causal else 'full'}, 16k tokens: 8 uneven lengths {uneven:.0f}, "
            f"8 x 2048 {even:.0f} TFLOP/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
