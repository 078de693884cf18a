"""mla_split.py — split the tokens over workers, merge their partial answers by log-sum-exp.

    python mla_split.py
One idea: a step has few queries and many tokens; workers share the tokens. Each returns (o, lse) over its part; the
merge weighs them by exp(lse - max lse). A worker without tokens returns (0, -inf) and changes nothing.
"""
import sys

import numpy as np

from mla_absorbed import absorb_query, latent_attention
from mla_naive import HEADS, LATENT, NOPE, ROPE, fact, model, step


def part(q, rows):
    """(o [heads, latent], lse [heads]) over these rows."""
    if not len(rows):
        return np.zeros((HEADS, LATENT)), np.full(HEADS, -np.inf)
    s = q @ rows.T * (NOPE + ROPE) ** -0.5
    m = s.max(-1, keepdims=True)
    p = np.exp(s - m)
    l = p.sum(-1, keepdims=True)
    return p @ rows[:, :LATENT] / l, (m + np.log(l))[:, 0]


def merge(parts):
    o, lse = np.stack([o for o, _ in parts]), np.stack([x for _, x in parts])
    top = lse.max(0)
    weight = np.exp(lse - np.where(np.isneginf(top), 0, top))
    total = weight.sum(0)
    return np.einsum("sh,shl->hl", np.divide(weight, total, out=np.zeros_like(weight), where=total > 0), o)


def schedule(lengths, workers):
    """Equal shares of all tokens of a ragged batch: (sequence, first, last) pieces for each worker."""
    share = -(-sum(lengths) // workers)
    pieces, worker, room = [[] for _ in range(workers)], 0, share
    for b, n in enumerate(lengths):
        at = 0
        while at < n:
            take = min(n - at, room)
            pieces[worker].append((b, at, at + take))
            at, room = at + take, room - take
            if not room and worker + 1 < workers:
                worker, room = worker + 1, share
    return pieces


def main():
    w_k, _ = model()
    ok = True
    q, cache = step(5, 500)
    q = absorb_query(q, w_k)
    want = latent_attention(q, cache)
    for cuts in ([0, 500], [0, 250, 500], [0, 0, 1, 499, 500, 500], list(range(0, 501, 20))):
        error = np.abs(merge([part(q, cache[a:b]) for a, b in zip(cuts, cuts[1:])]) - want).max()
        ok = ok and error <= 1e-12
        print(f"  {'yes' if error <= 1e-12 else 'NO '}  {len(cuts) - 1:2} parts, empty ones included, give the whole")
    lengths = [0, 37, 5000, 3, 900]
    pieces = schedule(lengths, 7)
    loads = [sum(last - first for _, first, last in p) for p in pieces]
    fact("tokens of the busiest worker", max(loads))
    covered = sorted(x for p in pieces for x in p)
    whole = all(sum(last - first for b, first, last in covered if b == s) == n for s, n in enumerate(lengths))
    ok = ok and whole and max(loads) <= -(-sum(lengths) // 7)
    print(f"  {'yes' if whole else 'NO '}  sequences of {lengths} tokens over 7 workers: loads {loads}")
    print("\nAll of it holds." if ok else "\nFAILED: see the lines marked NO")
    sys.exit(not ok)


if __name__ == "__main__":
    main()
