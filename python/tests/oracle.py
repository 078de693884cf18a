"""oracle.py — attention in float64 NumPy, one row at a time, from the definition; independent of the
package."""
import numpy as np


def attention64(q, k, v, *, causal=False, top_left=False, window=(-1, -1), scale=None, softcap=0.0,
                slopes=None, bias=None, mask=None, sinks=None):
    """q [sq, h, d], k [sk, hk, d], v [sk, hk, dv] float64 → out [sq, h, dv], lse [h, sq]."""
    sq, heads, dim = q.shape
    sk, kv_heads = k.shape[0], k.shape[1]
    scale = dim ** -0.5 if scale is None else scale
    shift = 0 if top_left else sk - sq
    out, lse = np.zeros((sq, heads, v.shape[-1])), np.full((heads, sq), -np.inf)
    j = np.arange(sk)
    for h in range(heads):
        hk = h // (heads // kv_heads)
        for i in range(sq):
            s = scale * (k[:, hk] @ q[i, h])
            if softcap:
                s = softcap * np.tanh(s / softcap)
            if bias is not None:
                s = s + bias[h, i]
            if slopes is not None:
                s = s - slopes[h] * np.abs(i + shift - j)
            seen = np.ones(sk, dtype=bool)
            if causal:
                seen &= j <= i + shift
            if window[0] >= 0:
                seen &= j >= i + shift - window[0]
            if window[1] >= 0:
                seen &= j <= i + shift + window[1]
            if mask is not None:
                seen &= mask[h, i]
            if bias is not None:
                seen &= bias[h, i] != -np.inf
            if not seen.any():
                continue
            top = s[seen].max()
            p = np.exp(s[seen] - top)
            lse[h, i] = top + np.log(p.sum())
            extra = 0.0 if sinks is None else np.exp(sinks[h] - top)
            out[i, h] = (p @ v[seen, hk]) / (p.sum() + extra)
    return out, lse


def tolerance(dtype_name):
    """(relative, absolute) for unit-normal data; the C checker holds the sharp per-element bound."""
    return {"float32": (2e-5, 1e-5), "float16": (2e-3, 2e-3), "bfloat16": (1.6e-2, 1.6e-2)}[dtype_name]


def close(got, want, dtype_name):
    """NaN-safe: True only if every element is within tolerance."""
    rtol, atol = tolerance(dtype_name)
    got = np.asarray(got, dtype=np.float64)
    same_inf = np.isinf(want) & (got == want)
    with np.errstate(invalid="ignore"):
        return bool(np.all(same_inf | (np.abs(got - want) <= atol + rtol * np.abs(want))))
