"""online_softmax.py — one pass over the keys with a running maximum and sum. Twin of online_softmax.c.

    python online_softmax.py
One idea: (m, l, o) of two sets of keys can be merged, in any order, so no score need be kept.
"""
import numpy as np

from lesson import Far, check, compare, data, end, expect, fact, oracle

PER_HEAD = True      # attn bench --kernel calls attention() head by head


def merge(a, b):
    """(m, l, o) of the union: both are brought to the common maximum. (-inf, 0, 0) is the empty set."""
    m = np.maximum(a[0], b[0])
    top = np.where(np.isneginf(m), 0, m)
    ca, cb = np.exp(a[0] - top), np.exp(b[0] - top)
    return m, a[1] * ca + b[1] * cb, a[2] * ca + b[2] * cb


def one_key(s, v):
    """A set of one key: its score is the maximum, so its weight is 1."""
    hidden = np.isneginf(s)
    return s, np.where(hidden, 0.0, 1.0).astype(np.float32), np.zeros_like(v) if hidden else v


def attention(q, k, v, causal=False, far=None):
    """Row by row, key by key: q stays near, K and V stream past it."""
    far = far or Far()
    rows, keys = len(q), len(k)
    out, lse = np.zeros((rows, v.shape[-1]), np.float32), np.full(rows, -np.inf, np.float32)
    for i in range(rows):
        qi = far.load(q[i]) * np.float32(q.shape[-1] ** -0.5)
        state = (np.float32(-np.inf), np.float32(0), np.zeros(v.shape[-1], np.float32))
        for j in range(min(keys, i + keys - rows + 1) if causal else keys):
            s = (qi * far.load(k[j])).sum(dtype=np.float32)
            state = merge(state, one_key(s, far.load(v[j])))
        m, l, o = state
        far.store(out[i], o / l if l > 0 else np.zeros_like(o))
        lse[i] = m + np.log(l) if l > 0 else -np.inf
    return out, lse


def merges_in_any_order(trees=2000):
    """Random trees of merges over 12 keys, some of them hidden, give what one pass gives."""
    random = np.random.default_rng(1)
    worst = 0.0
    for _ in range(trees):
        s = random.standard_normal(12) * 10
        s[random.random(12) < 0.3] = -np.inf
        v = random.standard_normal((12, 3))
        parts = [one_key(x, y) for x, y in zip(s, v)]
        while len(parts) > 1:
            a, b = (parts.pop(random.integers(len(parts))) for _ in range(2))
            parts.append(merge(a, b))
        m, l, o = parts[0]
        if np.isneginf(s).all():
            ok = l == 0 and not o.any()
            worst = worst if ok else np.inf
            continue
        p = np.exp(s - s.max())
        worst = np.maximum(worst, np.abs(o / l - p @ v / p.sum()).max())      # NaN stays
    return worst


def main():
    print("Online softmax in NumPy")
    worst = merges_in_any_order()
    expect(worst <= 1e-12, "2000 random merge trees give the same answer, hidden and empty parts included")
    print(f"       (max error {worst:.1e} in float64)")
    check(attention, "online softmax")
    q, k, v = data("random", 64, 64, 64)
    far = Far()
    out, _ = attention(q, k, v, far=far)
    compare("64 x 64 x 64", out, oracle(q, k, v)[0], 2e-6)
    fact("bytes", far.bytes)
    predicted = 4 * (64 * 64 + 2 * 64 * 64 * 64 + 64 * 64)
    print(f"  predicted {predicted} bytes, counted {far.bytes}: no S, but every query reads all of K and V")
    expect(far.bytes == predicted, "the count is the prediction")
    end()


if __name__ == "__main__":
    main()
