"""flash_v2_triton.py — FlashAttention-2 in Triton: one program a tile of queries. Twin of flash_v2.py and flash_v2.c.

    python flash_v2_triton.py        (GPU, or CPU through Triton's interpreter)
One idea: the steps are those of flash_v2.py: load_tile, scores, softmax_step, store; the grid replaces the outer loop.
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "triton_basics"))
from lesson import begin, check_attention, device, end, fact, poisoned, time_attention, tl, torch, triton  # noqa: E402,F401

HEADS_FIRST = True      # attn bench --kernel calls attention() with torch tensors, a sequence at a time


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
    grid = (triton.cdiv(rows, tile), heads)
    fact(f"programs for {heads} x {rows}", grid[0] * grid[1])
    flash[grid](q, k, v, out, lse, rows, k.shape[1], dim ** -0.5, CAUSAL=causal, DIM=dim, ROWS=tile, KEYS=tile)
    return out, lse


def main():
    begin("FlashAttention-2 in Triton")
    check_attention(attention)
    time_attention(lambda q, k, v: attention(q, k, v, tile=64), 16, 4096, 128, torch.bfloat16)
    end()


if __name__ == "__main__":
    main()
