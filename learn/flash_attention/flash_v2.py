"""flash_v2.py — FlashAttention-2: tiles of Q outside, K/V inside, one division at the end. Twin of flash_v2.c.

    python flash_v2.py
One idea: swap the loops. A tile of queries keeps o, m, l near until it has met every key. And backward: with LSE saved,
P is computed again tile by tile, so S is never stored there either.
Paper: Dao, FlashAttention-2 (2023).
"""
import numpy as np

from lesson import Far, check, compare, data, end, expect, fact

ROWS, KEYS = 64, 64

PER_HEAD = True      # attn bench --kernel calls attention() head by head


def attention(q, k, v, causal=False, far=None):
    far = far or Far()
    rows, keys, scale = len(q), len(k), np.float32(q.shape[-1] ** -0.5)
    out, lse = np.empty((rows, v.shape[-1]), np.float32), np.empty(rows, np.float32)
    for i in range(0, rows, ROWS):
        qi = far.load(q[i:i + ROWS])
        o = np.zeros((len(qi), v.shape[-1]), np.float32)
        m, l = np.full((len(qi), 1), -np.inf, np.float32), np.zeros((len(qi), 1), np.float32)
        end = max(0, min(keys, i + len(qi) + keys - rows)) if causal else keys    # tiles past the diagonal: skipped
        for j in range(0, end, KEYS):
            kj, vj = far.load(k[j:j + KEYS]), far.load(v[j:j + KEYS])
            s = scores(qi, kj, scale, i, j, keys - rows, causal)
            o, m, l = softmax_step(s, vj, o, m, l)
        far.store(out[i:i + ROWS], np.divide(o, l, out=np.zeros_like(o), where=l > 0))
        with np.errstate(divide="ignore"):
            lse[i:i + ROWS] = np.where(l > 0, m + np.log(l), -np.inf)[:, 0]
    return out, lse


def scores(qi, kj, scale, i, j, shift, causal):
    s = qi @ kj.T * scale
    if causal:
        s[np.arange(j, j + len(kj)) > np.arange(i, i + len(qi))[:, None] + shift] = -np.inf
    return s


def softmax_step(s, vj, o, m, l):
    m_new = np.maximum(m, s.max(-1, keepdims=True))
    top = np.where(np.isneginf(m_new), 0, m_new)
    p, keep = np.exp(s - top), np.exp(m - top)
    return o * keep + p @ vj, m_new, l * keep + p.sum(-1, keepdims=True)


def backward(q, k, v, out, lse, d_out, causal=False):
    """dQ, dK, dV. P = exp(S - LSE) again, tile by tile; delta_i = sum_j P_ij dP_ij = dO_i . O_i."""
    rows, keys, scale = len(q), len(k), q.shape[-1] ** -0.5
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    delta = (d_out * out).sum(-1, keepdims=True)
    safe = np.where(np.isneginf(lse), 0, lse)[:, None]
    for j in range(0, keys, KEYS):
        for i in range(0, rows, ROWS):
            a, b = slice(i, i + ROWS), slice(j, j + KEYS)
            s = scores(q[a], k[b], scale, i, j, keys - rows, causal)
            p = np.exp(s - safe[a])
            dv[b] += p.T @ d_out[a]
            ds = p * (d_out[a] @ v[b].T - delta[a]) * scale
            dq[a] += ds @ k[b]
            dk[b] += ds.T @ q[a]
    return dq, dk, dv


def gradient_check(causal):
    """Central differences of sum(out * d_out) in float64, for some entries of q, k and v."""
    random = np.random.default_rng(3)
    x = [random.standard_normal((n, 8)) for n in (70, 90, 90)]
    d_out = random.standard_normal((70, 8))
    from lesson import oracle
    out, lse = oracle(*x, causal)
    gradients = backward(*x, out, lse, d_out, causal)
    worst = 0.0
    for which in range(3):
        for _ in range(12):
            at = tuple(random.integers(n) for n in x[which].shape)
            h, keep = 2.0 ** -20, x[which][at]
            x[which][at] = keep + h
            up = (oracle(*x, causal)[0] * d_out).sum()
            x[which][at] = keep - h
            down = (oracle(*x, causal)[0] * d_out).sum()
            x[which][at] = keep
            worst = np.maximum(worst, abs((up - down) / (2 * h) - gradients[which][at]))
    return worst


def predicted_bytes(rows, keys, dim):
    """Q and O once; for every tile of Q: K and V once."""
    return 4 * (2 * rows * dim + -(-rows // ROWS) * 2 * keys * dim)


def main():
    print("FlashAttention-2 in NumPy")
    check(attention, "flash v2")
    for dim in (64, 128):
        q, k, v = data("random", 512, 512, dim)
        far = Far()
        attention(q, k, v, far=far)
        fact(f"bytes at d = {dim}", far.bytes)
        print(f"  512 x 512 x {dim}: predicted {predicted_bytes(512, 512, dim)} bytes, counted {far.bytes}")
        expect(far.bytes == predicted_bytes(512, 512, dim), "the count is the prediction")
    for causal in (False, True):
        worst = gradient_check(causal)
        expect(worst <= 1e-6, f"backward{' causal' if causal else ''} against finite differences: {worst:.1e}")
    end()


if __name__ == "__main__":
    main()
