"""flash_v1_triton.py — FlashAttention-1 in Triton: outer loop over keys, inner over queries. Twin of flash_v1.cu and .py.

    python flash_v1_triton.py        (GPU, or CPU through Triton's interpreter)
One idea: the steps are those of flash_v1.py: scores, softmax_step; o, m, l come and go with every tile of keys, and a
head has one program. (A grid with an axis for the keys would let two programs change one o: not version 1, a race.)
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "triton_basics"))
from lesson import begin, check_attention, device, end, fact, poisoned, time_attention, tl, torch, triton  # noqa: E402,F401

HEADS_FIRST = True      # attn bench --kernel calls attention() with torch tensors, a sequence at a time


@triton.jit
def softmax_step(s, vj, o, m, l):
    """The stored o is divided by l: undo that (times l), rescale to the new maximum, add, divide again."""
    m_new = tl.maximum(m, tl.max(s, 1))
    top = tl.where(m_new == -float("inf"), 0.0, m_new)
    p = tl.exp(s - top[:, None])
    keep = tl.exp(m - top)
    l_new = l * keep + tl.sum(p, 1)
    o = o * (l * keep)[:, None] + tl.dot(p.to(vj.dtype), vj, input_precision="ieee")
    return tl.where(l_new[:, None] > 0, o / tl.where(l_new > 0, l_new, 1.0)[:, None], 0.0), m_new, l_new


@triton.jit
def flash(q, k, v, out, m_far, l_far, rows, keys, scale, CAUSAL: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
          KEYS: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    x = tl.arange(0, DIM)
    q += head * rows * DIM
    k += head * keys * DIM
    v += head * keys * DIM
    out += head * rows * DIM
    m_far += head * rows
    l_far += head * rows
    for start in range(0, keys, KEYS):
        j = start + tl.arange(0, KEYS)
        kj = tl.load(k + j[:, None] * DIM + x[None, :], mask=j[:, None] < keys, other=0.0)
        vj = tl.load(v + j[:, None] * DIM + x[None, :], mask=j[:, None] < keys, other=0.0)
        for first in range(0, rows, ROWS):
            i = first + tl.arange(0, ROWS)
            qi = tl.load(q + i[:, None] * DIM + x[None, :], mask=i[:, None] < rows, other=0.0)
            o = tl.load(out + i[:, None] * DIM + x[None, :], mask=i[:, None] < rows, other=0.0)
            m = tl.load(m_far + i, mask=i < rows, other=-float("inf"))
            l = tl.load(l_far + i, mask=i < rows, other=0.0)
            s = tl.dot(qi, tl.trans(kj), input_precision="ieee") * scale
            seen = j[None, :] < keys
            if CAUSAL:
                seen = seen & (j[None, :] <= i[:, None] + keys - rows)
            s = tl.where(seen, s, -float("inf"))
            o, m, l = softmax_step(s, vj, o, m, l)
            tl.store(out + i[:, None] * DIM + x[None, :], o, mask=i[:, None] < rows)
            tl.store(m_far + i, m, mask=i < rows)
            tl.store(l_far + i, l, mask=i < rows)
        tl.debug_barrier()          # the program's next tile of keys reads what its threads have stored


def attention(q, k, v, causal=False, tile=32):
    """q [heads, sq, d], k and v [heads, sk, d] → (out, lse)."""
    heads, rows, dim = q.shape
    out = torch.zeros(heads, rows, dim, device=device)
    m, l = torch.full((heads, rows), -float("inf"), device=device), torch.zeros(heads, rows, device=device)
    fact(f"programs for {heads} x {rows}", heads)
    flash[(heads,)](q, k, v, out, m, l, rows, k.shape[1], dim ** -0.5, CAUSAL=causal, DIM=dim, ROWS=tile, KEYS=tile)
    return out, m + torch.log(l)


def main():
    begin("FlashAttention-1 in Triton")
    check_attention(attention)
    time_attention(attention, 16, 4096, 64, torch.bfloat16)
    end()


if __name__ == "__main__":
    main()
