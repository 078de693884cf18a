"""mla_two_block.py — FlashMLA's schedule for one tile of queries: two blocks of tokens in flight, the output cut in two.

    python mla_two_block.py
One idea ("seesaw"): 64 x 512 outputs fill the registers, so two warpgroups each own 256 columns and each computes the
scores of every other block. Each needs the other's P. The running maximum goes round: block 0, then block 1 sees block
0's; the earlier P and both halves of O are rescaled by exp(old maximum - new maximum). The sign matters: exp(new - old)
is wrong, and this lesson shows by how much.
"""
import sys

import numpy as np

from mla_absorbed import absorb_query, latent_attention
from mla_naive import HEADS, LATENT, NOPE, ROPE, fact, model, step

BLOCK, HALF = 16, LATENT // 2


def two_block(q, cache, sign=1):
    """The same numbers as latent_attention, in the order of the two-warpgroup schedule. `sign` = -1 is the mistake."""
    scale = (NOPE + ROPE) ** -0.5
    left, right = np.zeros((HEADS, HALF)), np.zeros((HEADS, HALF))      # the two warpgroups' halves of O
    m, l = np.full((HEADS, 1), -np.inf), np.zeros((HEADS, 1))
    for t in range(0, len(cache), 2 * BLOCK):
        zero, one = cache[t:t + BLOCK], cache[t + BLOCK:t + 2 * BLOCK]
        # Warpgroup 0: scores of block 0, maximum, P0; its own half of O += P0 V0 (left)
        s0 = q @ zero.T * scale
        m0 = np.maximum(m, s0.max(-1, keepdims=True))
        p0, keep = np.exp(s0 - m0), np.exp(sign * np.where(np.isneginf(m), -np.inf, m - m0))
        left = left * keep + p0 @ zero[:, :HALF]
        right, l = right * keep, l * keep + p0.sum(-1, keepdims=True)
        # Warpgroup 1: scores of block 1 against the maximum that block 0 left; its half of O += P1 V1 (right)
        s1 = q @ one.T * scale
        m1 = np.maximum(m0, s1.max(-1, keepdims=True)) if len(one) else m0
        p1, again = np.exp(s1 - m1), np.exp(sign * (m0 - m1))
        right = right * again + p1 @ one[:, HALF:LATENT]
        l = l * again + p1.sum(-1, keepdims=True)
        # They swap: warpgroup 0 rescales its half and adds P1 V1, warpgroup 1 adds the rescaled P0 V0
        left = left * again + p1 @ one[:, :HALF]
        right = right + (p0 * again) @ zero[:, HALF:LATENT]
        m = m1
    return np.concatenate((left, right), -1) / l


def main():
    w_k, _ = model()
    ok = True
    for tokens in (1, 16, 17, 32, 100):
        q, cache = step(tokens + 9, tokens)
        q = absorb_query(q, w_k) * 3
        error = np.abs(two_block(q, cache) - latent_attention(q, cache)).max()
        ok = ok and error <= 1e-12
        print(f"  {'yes' if error <= 1e-12 else 'NO '}  {tokens:3} tokens: max error {error:.1e}")
    fact("rounds", len(range(0, tokens, 2 * BLOCK)))
    with np.errstate(over="ignore", invalid="ignore"):
        wrong = np.abs(two_block(q, cache, sign=-1) - latent_attention(q, cache)).max()
    seen = not wrong <= 1e-3
    ok = ok and seen
    print(f"  {'yes' if seen else 'NO '}  with the rescale factor's sign reversed the error is {wrong:.2g}: the check sees it")
    print("\nAll of it holds." if ok else "\nFAILED: see the lines marked NO")
    sys.exit(not ok)


if __name__ == "__main__":
    main()
