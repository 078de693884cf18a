"""naive.py — attention as it is defined: all scores, softmax, weighted sum. Twin of naive.c and naive.cu.

    python naive.py
One idea: the score matrix S has q_len * kv_len entries and travels to far memory and back; nothing else is that big.
"""
import numpy as np

from lesson import Far, check, data, end, expect, fact

PER_HEAD = True      # attn bench --kernel calls attention() head by head


def attention(q, k, v, causal=False, far=None):
    """One head: q [sq, d], k [sk, d], v [sk, d_v] → (out, lse). S and P live in far memory."""
    far = far or Far()
    rows, keys = len(q), len(k)
    s = np.empty((rows, keys), np.float32)
    far.store(s, far.load(q) @ far.load(k).T * np.float32(q.shape[-1] ** -0.5))     # S = Q K^T to far memory
    near = far.load(s)                                                              # and back, for the softmax
    if causal:
        near[np.arange(keys) > np.arange(rows)[:, None] + keys - rows] = -np.inf
    m = near.max(-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isneginf(m), 0, m)                                            # a row that sees nothing
    p = np.exp(near - top)
    l = p.sum(-1, keepdims=True)
    far.store(s, np.divide(p, l, out=np.zeros_like(p), where=l > 0))                # P to far memory
    out = np.empty((rows, v.shape[-1]), np.float32)
    far.store(out, far.load(s) @ far.load(v))                                       # and back once more
    with np.errstate(divide="ignore"):
        return out, (top + np.log(l))[:, 0]


def predicted_bytes(rows, keys, dim):
    """Q, K, V and O once, S four times (written, read, written as P, read)."""
    return 4 * (2 * rows * dim + 2 * keys * dim + 4 * rows * keys)


def main():
    print("Naive attention in NumPy")
    check(attention, "naive")
    q, k, v = data("random", 256, 256, 64)
    far = Far()
    attention(q, k, v, far=far)
    fact("bytes", far.bytes)
    print(f"  256 x 256 x 64: predicted {predicted_bytes(256, 256, 64)} bytes, counted {far.bytes}")
    expect(far.bytes == predicted_bytes(256, 256, 64), "the count is the prediction")
    end()


if __name__ == "__main__":
    main()
