"""lesson.py — what the Python lessons share: float64 answers, a comparison NaN can't pass, counted far-memory bytes."""
import os
import sys
import time

import numpy as np


class Far:
    """Far memory: arrays are touched only through load and store, and every byte is counted."""

    def __init__(self):
        self.loaded = self.stored = 0

    def load(self, part):
        self.loaded += part.nbytes
        return part.copy()

    def store(self, part, values):
        self.stored += part.nbytes
        part[...] = values

    @property
    def bytes(self):
        return self.loaded + self.stored


def oracle(q, k, v, causal=False, scale=None):
    """The definition in float64: (out [sq, d_v], lse [sq])."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    s = (q.shape[-1] ** -0.5 if scale is None else scale) * (q @ k.T)
    if causal:
        s[np.arange(len(k)) > np.arange(len(q))[:, None] + len(k) - len(q)] = -np.inf
    top = s.max(-1, keepdims=True)
    top[np.isneginf(top)] = 0
    p = np.exp(s - top)
    total = p.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, p @ v / total, 0), (top + np.log(total))[:, 0]


def data(kind, rows, keys, dim, seed=0):
    """float32 q, k, v. Random data hides mistakes: 'rising' scores move the maximum at every tile, a 'needle' carries
    half the weight at the last key."""
    random = np.random.default_rng(seed)
    q, k, v = (random.standard_normal((n, dim)).astype(np.float32) for n in (rows, keys, keys))
    if kind == "rising":
        q[:, 0], k[:, 0] = 3, np.linspace(-20, 20, keys)
    if kind == "needle":
        v[-1] = 100
        q[:, 0], k[:, 0], k[-1, 0] = 4, 0, np.log(keys) * dim ** 0.5 / 4
    return q, k, v


failures = 0


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
    """Every element within `allowed`; infinities in the same places; NaN never passes."""
    got = np.asarray(got, dtype=np.float64)
    same = np.isinf(want) & (got == want)
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0, np.abs(got - want))
    worst = float(np.max(error)) if error.size else 0.0
    expect(bool(np.all(error <= allowed)), f"{what:<44} max error {worst:.1e} (allowed {allowed:.1e})")


def check(attention, name):
    """An attention(q, k, v, causal, far) → (out, lse) of one head, on sizes around the tile edges and hard data."""
    for kind in ("random", "rising", "needle"):
        for rows, keys, dim in ((1, 1, 4), (7, 5, 8), (33, 65, 16), (64, 64, 16), (65, 130, 8)):
            for causal in (False, True):
                q, k, v = data(kind, rows, keys, dim)
                out, lse = attention(q, k, v, causal, Far())
                want, want_lse = oracle(q, k, v, causal)
                scale = 100 if kind == "needle" else 4
                ok = (np.abs(out - want) <= 4e-6 * scale).all() and np.array_equal(np.isneginf(lse), np.isneginf(want_lse)) \
                    and (np.abs(lse[np.isfinite(want_lse)] - want_lse[np.isfinite(want_lse)]) <= 2e-5).all()
                if not ok:
                    expect(False, f"{name}: {kind} {rows} x {keys} x {dim}{' causal' if causal else ''}")
                    return
    expect(True, f"{name}: right on 30 cases (odd sizes, causal, rising scores, needles)")


def seconds(run, repeats=3):
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def end():
    print("\nFAILED: see the lines marked NO" if failures else "\nAll of it holds.")
    sys.exit(failures != 0)
