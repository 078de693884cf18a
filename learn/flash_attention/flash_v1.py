"""flash_v1.py — FlashAttention-1: tiles of K/V outside, tiles of Q inside, O, m, l in far memory. Twin of flash_v1.c.

    python flash_v1.py
One idea: a tile of K and V stays near while all queries pass; their state (o, m, l) travels instead of S.
Paper: Dao et al., FlashAttention (2022).
"""
import numpy as np

from lesson import Far, check, data, end, expect, fact

ROWS, KEYS = 64, 64

PER_HEAD = True      # attn bench --kernel calls attention() head by head


def attention(q, k, v, causal=False, far=None):
    far = far or Far()
    rows, keys, scale = len(q), len(k), np.float32(q.shape[-1] ** -0.5)
    out = np.zeros((rows, v.shape[-1]), np.float32)                     # normalised after every tile, as in the paper
    m, l = np.full((rows, 1), -np.inf, np.float32), np.zeros((rows, 1), np.float32)
    for j in range(0, keys, KEYS):
        kj, vj = far.load(k[j:j + KEYS]), far.load(v[j:j + KEYS])
        for i in range(0, rows, ROWS):
            qi, oi = far.load(q[i:i + ROWS]), far.load(out[i:i + ROWS])
            mi, li = far.load(m[i:i + ROWS]), far.load(l[i:i + ROWS])
            s = scores(qi, kj, scale, i, j, keys - rows, causal)
            o_new, m_new, l_new = softmax_step(s, vj, oi, mi, li)
            far.store(out[i:i + ROWS], o_new)
            far.store(m[i:i + ROWS], m_new)
            far.store(l[i:i + ROWS], l_new)
    with np.errstate(divide="ignore"):
        return out, np.where(l > 0, m + np.log(l), -np.inf)[:, 0]


def scores(qi, kj, scale, i, j, shift, causal):
    s = qi @ kj.T * scale
    if causal:
        s[np.arange(j, j + len(kj)) > np.arange(i, i + len(qi))[:, None] + shift] = -np.inf
    return s


def softmax_step(s, vj, oi, mi, li):
    """The stored o is normalised: undo that (times l), rescale to the new maximum, add, normalise again."""
    m_new = np.maximum(mi, s.max(-1, keepdims=True))
    top = np.where(np.isneginf(m_new), 0, m_new)
    p, keep = np.exp(s - top), np.exp(mi - top)
    l_new = li * keep + p.sum(-1, keepdims=True)
    o = oi * li * keep + p @ vj
    return np.divide(o, l_new, out=np.zeros_like(o), where=l_new > 0), m_new, l_new


def predicted_bytes(rows, keys, dim):
    """K and V once; for every tile of K: Q once, o, m, l there and back."""
    tiles = -(-keys // KEYS)
    return 4 * (2 * keys * dim + tiles * rows * (dim + 2 * dim + 4))


def main():
    print("FlashAttention-1 in NumPy")
    check(attention, "flash v1")
    for dim in (64, 128):
        q, k, v = data("random", 512, 512, dim)
        far = Far()
        attention(q, k, v, far=far)
        fact(f"bytes at d = {dim}", far.bytes)
        naive = 4 * (4 * 512 * dim + 4 * 512 * 512)
        print(f"  512 x 512 x {dim}: predicted {predicted_bytes(512, 512, dim)} bytes, counted {far.bytes}, naive {naive}")
        expect(far.bytes == predicted_bytes(512, 512, dim), "the count is the prediction")
    end()


if __name__ == "__main__":
    main()
