"""mla_absorbed.py — move W_k to the query and W_v behind the sum: all heads attend the cache rows themselves.

    python mla_absorbed.py
One idea: (W_k c) . q = c . (W_k^T q), and sum_t p_t W_v c_t = W_v sum_t p_t c_t. What is left is attention with one
K/V head whose keys are the cache rows (latent + rope wide) and whose values are their first `latent` columns.
"""
import sys

import numpy as np

import mla_naive as naive
from mla_naive import HEADS, LATENT, NOPE, ROPE, VALUE, fact, model, softmax, step


def absorb_query(q, w_k):
    """[heads, latent + rope]."""
    return np.concatenate((np.einsum("hn,hnl->hl", q[:, :NOPE], w_k), q[:, NOPE:]), -1)


def latent_attention(q, cache):
    """Every head against the same rows; values are the rows' first columns. Returns [heads, latent]."""
    return softmax(q @ cache.T * (NOPE + ROPE) ** -0.5) @ cache[:, :LATENT]


def attention(q, cache, w_k, w_v):
    return np.einsum("hl,hvl->hv", latent_attention(absorb_query(q, w_k), cache), w_v)


def flops(tokens):
    return 2 * HEADS * (tokens * (LATENT + ROPE + LATENT) + LATENT * (NOPE + VALUE))


def main():
    w_k, w_v = model()
    ok = True
    for tokens in (1, 2, 50, 333):
        q, cache = step(tokens, tokens)
        error = np.abs(attention(q, cache, w_k, w_v) - naive.attention(q, cache, w_k, w_v)).max()
        ok = ok and error <= 1e-12
        print(f"  {'yes' if error <= 1e-12 else 'NO '}  {tokens:4} tokens: same as naive, max error {error:.1e}; "
              f"{naive.flops(tokens)} FLOP naive, {flops(tokens)} absorbed")
    heads, nope, rope, latent, value, t = 128, 128, 64, 512, 128, 8192
    rows = t * (latent + rope) * 2
    print(f"\n  DeepSeek's sizes, {t} tokens, bf16: the cache is {rows / 1e6:.1f} MB; naive must also expand "
          f"{t * heads * (nope + rope + value) * 2 / 1e9:.2f} GB of keys and values")
    work = 2 * heads * t * (latent + rope + latent)
    fact("FLOP a byte", work / rows)
    print(f"  absorbed: {work / 1e9:.2f} GFLOP on {rows / 1e6:.1f} MB: {work / rows:.0f} FLOP a byte, where one query head "
          f"an own K/V head has {2 * 2 / 2 / 2:.0f}: decoding becomes a matrix problem")
    print("\nAll of it holds." if ok else "\nFAILED: see the lines marked NO")
    sys.exit(not ok)


if __name__ == "__main__":
    main()
