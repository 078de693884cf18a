#!/usr/bin/env python3
"""peers_torch.py — attn beside PyTorch's attention in one process: cuDNN and FlashAttention back ends of
SDPA, our kernels through ctypes, in alternating rounds on the same tensors, after a check of every result.
Prints TFLOP/s and ratios; --json FILE keeps all numbers.

    python3 bench/peers_torch.py --library build/libattn.so [--kernels auto,flash_fwd_sm80] [--lengths 2k,8k]
    python3 bench/peers_torch.py --cpu [--threads N]         on the CPU: peers_torch_cpu.py
"""
import argparse
import ctypes
import datetime
import json
import math
import os
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
if "--cpu" in sys.argv:
    os.execv(sys.executable, [sys.executable, str(ROOT / "bench" / "peers_torch_cpu.py")] + sys.argv[1:])


def arguments():
    a = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    a.add_argument("--library", default=str(ROOT / "build" / "libattn.so"))
    a.add_argument("--kernels", default="auto", help="ours, by name; auto = the planner's choice; all = "
                                                     "every one")
    a.add_argument("--lengths", default="2k,8k,16k")
    a.add_argument("--dims", default="64,128,256")
    a.add_argument("--causal", default="0,1")
    a.add_argument("--dtype", default="bf16", choices=("bf16", "f16", "f32"))
    a.add_argument("--tokens", type=int, default=16384, help="batch * length")
    a.add_argument("--hidden", type=int, default=2048, help="heads * dim")
    a.add_argument("--rounds", type=int, default=9)
    a.add_argument("--milliseconds", type=float, default=12, help="of one sample")
    a.add_argument("--json", help="write all numbers here")
    a.add_argument("--commit", default="unknown")
    return a.parse_args()


ARGS = arguments()
os.environ["ATTN_LIBRARY"] = str(pathlib.Path(ARGS.library).resolve())
sys.path.insert(0, str(ROOT / "python"))
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from attn import _library as L  # noqa: E402

DTYPES = {"bf16": (torch.bfloat16, L.BF16, 2e-2), "f16": (torch.float16, L.F16, 4e-3),
          "f32": (torch.float32, L.F32, 1e-5)}
BACKENDS = {"torch flash": SDPBackend.FLASH_ATTENTION, "torch cudnn": SDPBackend.CUDNN_ATTENTION}


def number(text):
    return int(text[:-1]) * 1024 if text.endswith("k") else int(text)


# ---- contenders: a name and a function that queues one run and leaves its result in `o` --------------------

class Ours:
    """A plan on torch's memory and torch's current stream: attn_run and nothing else."""

    def __init__(self, kernel, q, k, v, causal):
        b, s, h, d = q.shape
        p = L.Problem(struct_size=ctypes.sizeof(L.Problem), device=L.CUDA, dtype=DTYPES[ARGS.dtype][1],
                      batch=b, q_heads=h, q_len=s, qk_dim=d, causal=causal)
        self.plan = L.Plan(p, kernel=None if kernel == "auto" else kernel)
        self.name = self.plan.kernel
        self.o = torch.full_like(q, float("nan"))
        self.lse = torch.full((b, h, s), float("nan"), dtype=torch.float32, device=q.device)
        self.work = torch.empty(max(self.plan.workspace, 1), dtype=torch.uint8, device=q.device)
        self.keep = (q, k, v)
        self.tensors = L.Tensors(struct_size=ctypes.sizeof(L.Tensors), q=q.data_ptr(), k=k.data_ptr(),
                                 v=v.data_ptr(), o=self.o.data_ptr(), lse=self.lse.data_ptr())
        self.reference = ctypes.byref(self.tensors)
        self.workspace = self.work.data_ptr() if self.plan.workspace else None

    def run(self):
        L.check(L.run(self.plan.handle, self.reference, self.workspace,
                      torch.cuda.current_stream().cuda_stream))


class Torch:
    def __init__(self, name, q, k, v, causal):
        self.name, self.backend, self.causal = name, BACKENDS[name], bool(causal)
        self.q, self.k, self.v = (x.transpose(1, 2) for x in (q, k, v))
        self.o = None

    def run(self):
        with sdpa_kernel(self.backend):
            o = F.scaled_dot_product_attention(self.q, self.k, self.v, is_causal=self.causal)
        self.o = o.transpose(1, 2)


def our_kernels():
    if ARGS.kernels != "all":
        return ARGS.kernels.split(",")
    names, index = [], 0
    info = L.KernelInfo(struct_size=ctypes.sizeof(L.KernelInfo))
    while L.kernel_describe(index, ctypes.byref(info)) == L.OK:
        if info.device == L.CUDA and not info.name.startswith(b"reference"):
            names.append(info.name.decode())
        index += 1
    return names


def contenders(q, k, v, causal):
    found, seen = [], set()
    for kernel in our_kernels():
        try:
            c = Ours(kernel, q, k, v, causal)
        except L.Unsupported as error:
            print(f"    {kernel}: {error}")
            continue
        if c.name not in seen:
            found.append(c)
            seen.add(c.name)
    if ARGS.dtype == "f32":
        return found
    for name in BACKENDS:
        c = Torch(name, q, k, v, causal)
        try:
            c.run()
            torch.cuda.synchronize()
            found.append(c)
        except RuntimeError as error:
            print(f"    {name}: {str(error).splitlines()[0]}")
    return found


# ---- check -------------------------------------------------------------------------------------------------

def expected_rows(q, k, v, causal, b, h, rows):
    """float64 answer of some query rows of one head."""
    scores = (q[b, rows, h].double() @ k[b, :, h].double().T) / math.sqrt(q.shape[-1])
    if causal:
        keys = torch.arange(k.shape[1], device=q.device)
        scores.masked_fill_(keys[None, :] > rows[:, None], -math.inf)
    return torch.softmax(scores, -1) @ v[b, :, h].double()


def error_of(c, q, k, v, causal):
    """Largest relative error (2-norm) over sampled rows of the first and the last head. NaN never passes."""
    c.run()
    torch.cuda.synchronize()
    b, s, h, _ = q.shape
    rows = torch.cat([torch.arange(0, 64), torch.arange(s // 2 - 32, s // 2 + 32),
                      torch.arange(s - 64, s)]).to(q.device)
    worst = 0.0
    for at in ((0, 0), (b - 1, h - 1)):
        want = expected_rows(q, k, v, causal, *at, rows)
        got = c.o[at[0], rows, at[1]].double()
        error = ((got - want).norm() / want.norm()).item()
        worst = error if not error <= worst else worst
    if not torch.isfinite(c.o).all():
        return math.nan
    return worst


# ---- time --------------------------------------------------------------------------------------------------

def sample(c, iterations):
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(iterations):
        c.run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / iterations       # ms


def measure(list_of):
    iterations = []
    for c in list_of:
        sample(c, 2)
        iterations.append(max(1, round(ARGS.milliseconds / max(sample(c, 3), 1e-3))))
    times = [[] for _ in list_of]
    for turn in range(ARGS.rounds):
        order = list(range(len(list_of)))
        for i in order[turn % len(order):] + order[:turn % len(order)]:
            times[i].append(sample(list_of[i], iterations[i]))
    return times


def main():
    torch.manual_seed(1)
    props = torch.cuda.get_device_properties(0)
    print(f"{props.name}, {props.multi_processor_count} SMs, torch {torch.__version__}, CUDA "
          f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, attn {L.version_string().decode()} "
          f"({L.build_info().decode()}), commit {ARGS.commit}, "
          f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC")
    dtype, _, tolerance = DTYPES[ARGS.dtype]
    results, wrong, ratios = [], 0, {}
    for dim in map(int, ARGS.dims.split(",")):
        for causal in map(int, ARGS.causal.split(",")):
            for length in map(number, ARGS.lengths.split(",")):
                batch, heads = max(1, ARGS.tokens // length), max(1, ARGS.hidden // dim)
                q, k, v = (torch.randn(batch, length, heads, dim, device="cuda").to(dtype) for _ in range(3))
                label = f"d{dim} {'causal' if causal else 'full  '} s{length} b{batch} h{heads}"
                print(label)
                those = contenders(q, k, v, causal)
                errors = [error_of(c, q, k, v, causal) for c in those]
                flops = 4.0 * batch * heads * length * length * dim / (2 if causal else 1)
                times = measure(those)
                medians = [statistics.median(t) for t in times]
                peers = {c.name: t for c, t in zip(those, times) if isinstance(c, Torch)}
                for c, error, t, ms in zip(those, errors, times, medians):
                    ok = error <= tolerance
                    wrong += not ok
                    versus = {name: statistics.median(y / x for x, y in zip(t, other))
                              for name, other in peers.items()}
                    if isinstance(c, Ours):
                        for name, ratio in versus.items():
                            ratios.setdefault((c.name, name), []).append(ratio)
                    print(f"    {c.name:20s} {ms:9.4f} ms {flops / ms * 1e-9:7.1f} TFLOP/s"
                          f"  [{flops / max(t) * 1e-9:.1f} .. {flops / min(t) * 1e-9:.1f}]  error {error:.1e}"
                          f"{'' if ok else ' WRONG'}  "
                          + "  ".join(f"{r:.3f}x {n}" for n, r in versus.items() if n != c.name), flush=True)
                    results.append(dict(dim=dim, causal=causal, length=length, batch=batch, heads=heads,
                                        kernel=c.name, ms=ms, low=min(t), high=max(t),
                                        tflops=flops / ms * 1e-9, error=error, ok=ok, versus=versus))
                del those, q, k, v
    print("\ngeometric means of the ratios (1 = as fast; larger = ours is faster):")
    for (ours, peer), r in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, r)))
        print(f"    {ours:20s} / {peer:12s} {mean:.3f}x   least {min(r):.3f}x   {len(r)} shapes")
    if ARGS.json:
        pathlib.Path(ARGS.json).write_text(json.dumps(dict(device=props.name, commit=ARGS.commit,
                                                           torch=torch.__version__,
                                                           dtype=ARGS.dtype, rows=results), indent=1) + "\n")
    if wrong:
        print(f"{wrong} WRONG results")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
