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


def end():
    print("\nFAILED: see the lines marked NO" if failures else "\nAll of it holds.")
    sys.exit(failures != 0)
