"""lesson.py — what the Triton lessons share: a device (GPU, or the CPU through Triton's interpreter), checks, times."""
import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")      # must be set before triton is imported
import triton  # noqa: E402
import triton.language as tl  # noqa: E402,F401

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
device = "cpu" if interpreted else "cuda"
failures = 0


def begin(title):
    where = "Triton's interpreter on this CPU" if interpreted else torch.cuda.get_device_name()
    print(f"{title}\non: {where}\n")


def fact(name, value):
    """A number that came out of this run, for `learn quiz`: one line in the file that LEARN_FACTS names."""
    if "LEARN_FACTS" in os.environ:
        with open(os.environ["LEARN_FACTS"], "a") as file:
            file.write(f"{name}\t{float(value)!r}\n")


def expect(truth, claim):
    global failures
    print(f"  {'yes' if truth else 'NO '}  {claim}")
    failures += not truth


def compare(what, got, want, allowed):
    """Against float64; NaN never passes."""
    error = (got.double() - want.double()).abs()
    ok = bool((error <= allowed).all())
    worst = float(error.max()) if error.numel() else 0.0
    expect(ok, f"{what:<44} max error {worst:.1e} (allowed {allowed:.1e})")


def poisoned(*shape):
    """Output memory full of NaN: what a program forgets to write can't look right."""
    return torch.full(shape, float("nan"), device=device)


def milliseconds(run):
    return None if interpreted else triton.testing.do_bench(run, return_mode="median")


def oracle(q, k, v, causal):
    """Attention by definition in float64: (out, lse) of q [heads, sq, d], k and v [heads, sk, d]."""
    s = q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        j, i = torch.arange(k.shape[1], device=q.device), torch.arange(q.shape[1], device=q.device)
        s = s.masked_fill(j > i[:, None] + k.shape[1] - q.shape[1], -float("inf"))
    return torch.nan_to_num(torch.softmax(s, -1), nan=0.0) @ v.double(), torch.logsumexp(s, -1)


def check_attention(attention):
    """An attention(q, k, v, causal) -> (out, lse) on sizes around the tile edges; rows that see nothing included."""
    for heads, rows, keys, dim in ((1, 1, 1, 16), (2, 33, 65, 32), (1, 70, 40, 16)):
        for causal in (False, True):
            q, k, v = (torch.randn(heads, n, dim, device=device) for n in (rows, keys, keys))
            k[..., 0] = torch.linspace(-20, 20, keys, device=device)        # rising scores: every tile moves the maximum
            q[..., 0] = 3
            out, lse = attention(q, k, v, causal)
            want, want_lse = oracle(q, k, v, causal)
            name = f"{heads} x {rows} x {keys} x {dim}{' causal' if causal else ''}"
            compare(name, out, want, 1e-5)
            seen = ~torch.isneginf(want_lse)
            compare(name + ", LSE", torch.where(seen, lse, 0), torch.where(seen, want_lse, 0), 1e-4)
            compare(name + ", rows without keys", torch.isneginf(lse).float(), (~seen).float(), 0)


def time_attention(attention, heads, n, dim, dtype):
    if interpreted:
        return
    q, k, v = (torch.randn(heads, n, dim, device=device, dtype=dtype) for _ in range(3))
    ms = milliseconds(lambda: attention(q, k, v))
    print(f"  {heads} heads, {n} x {dim}, {dtype}: {4 * heads * n ** 2 * dim / ms * 1e-9:.1f} TFLOP/s")


def end():
    print("\nFAILED: see the lines marked NO" if failures else "\nAll of it holds.")
    sys.exit(failures != 0)
