"""flash_v2_triton.py — FlashAttention-2 in Triton: one program a tile of queries. Twin of flash_v2.py and flash_v2.c.

    python flash_v2_triton.py        (GPU, or CPU through Triton's interpreter)
One idea: the steps are those of flash_v2.py: load_tile, scores, softmax_step, store; the grid replaces the outer loop.
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "triton_basics"))
from lesson import begin, compare, device, end, interpreted, milliseconds, poisoned, tl, torch, triton  # noqa: E402


@triton.jit
def flash(q, k, v, out, lse, rows, keys, scale, CAUSAL: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
          KEYS: tl.constexpr):
    head = tl.program_id(1)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x = tl.arange(0, DIM)
    q += head * rows * DIM
    k += head * keys * DIM
    v += head * keys * DIM
    qi = tl.load(q + i[:, None] * DIM + x[None, :], mask=i[:, None] < rows, other=0.0)
    o = tl.zeros((ROWS, DIM), dtype=tl.float32)
    m = tl.full((ROWS,), -float("inf"), dtype=tl.float32)
    l = tl.zeros((ROWS,), dtype=tl.float32)
    stop = keys
    if CAUSAL:
        stop = tl.minimum(keys, (tl.program_id(0) + 1) * ROWS + keys - rows)
    for start in range(0, stop, KEYS):
        j = start + tl.arange(0, KEYS)
        kj = tl.load(k + j[:, None] * DIM + x[None, :], mask=j[:, None] < keys, other=0.0)
        vj = tl.load(v + j[:, None] * DIM + x[None, :], mask=j[:, None] < keys, other=0.0)
        s = tl.dot(qi, tl.trans(kj), input_precision="ieee") * scale
        seen = j[None, :] < keys
        if CAUSAL:
            seen = seen & (j[None, :] <= i[:, None] + keys - rows)
        s = tl.where(seen, s, -float("inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        top = tl.where(m_new == -float("inf"), 0.0, m_new)          # a row that has seen nothing yet
        p = tl.exp(s - top[:, None])
        keep = tl.exp(m - top)
        l = l * keep + tl.sum(p, 1)
        o = o * keep[:, None] + tl.dot(p.to(vj.dtype), vj, input_precision="ieee")
        m = m_new
    some = l > 0
    o = tl.where(some[:, None], o / tl.where(some, l, 1.0)[:, None], 0.0)
    tl.store(out + head * rows * DIM + i[:, None] * DIM + x[None, :], o, mask=i[:, None] < rows)
    tl.store(lse + head * rows + i, tl.where(some, m + tl.log(tl.where(some, l, 1.0)), -float("inf")), mask=i < rows)


def attention(q, k, v, causal=False, tile=32):
    """q [heads, sq, d], k and v [heads, sk, d] → (out, lse)."""
    heads, rows, dim = q.shape
    out, lse = poisoned(heads, rows, dim), poisoned(heads, rows)
    flash[(triton.cdiv(rows, tile), heads)](q, k, v, out, lse, rows, k.shape[1], dim ** -0.5, CAUSAL=causal, DIM=dim,
                                            ROWS=tile, KEYS=tile)
    return out, lse


def oracle(q, k, v, causal):
    s = q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        j, i = torch.arange(k.shape[1], device=q.device), torch.arange(q.shape[1], device=q.device)
        s = s.masked_fill(j > i[:, None] + k.shape[1] - q.shape[1], -float("inf"))
    return torch.nan_to_num(torch.softmax(s, -1), nan=0.0) @ v.double(), torch.logsumexp(s, -1)


def main():
    begin("FlashAttention-2 in Triton")
    for heads, rows, keys, dim in ((1, 1, 1, 16), (2, 33, 65, 32), (1, 70, 40, 16)):
        for causal in (False, True):
            q, k, v = (torch.randn(heads, n, dim, device=device) for n in (rows, keys, keys))
            k[..., 0] = torch.linspace(-20, 20, keys, device=device)        # rising scores: every tile moves the maximum
            q[..., 0] = 3
            out, lse = attention(q, k, v, causal)
            want, want_lse = oracle(q, k, v, causal)
            name = f"{heads} x {rows} x {keys} x {dim}{' causal' if causal else ''}"
            compare(name, out, want, 1e-5)
            seen = ~torch.isneginf(want_lse)
            compare(name + ", LSE", torch.where(seen, lse, 0), torch.where(seen, want_lse, 0), 1e-4)
            compare(name + ", rows without keys", torch.isneginf(lse).float(), (~seen).float(), 0)
    if not interpreted:
        q, k, v = (torch.randn(16, 4096, 128, device=device, dtype=torch.bfloat16) for _ in range(3))
        ms = milliseconds(lambda: attention(q, k, v, tile=64))
        print(f"  16 heads, 4096 x 128, bf16: {4 * 16 * 4096 ** 2 * 128 / ms * 1e-9:.1f} TFLOP/s")
    end()


if __name__ == "__main__":
    main()
