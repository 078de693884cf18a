"""naive_triton.py — attention as it is defined, in Triton: S, softmax, P V, a kernel each. Twin of naive.cu and naive.py.

    python naive_triton.py        (GPU, or CPU through Triton's interpreter)
One idea: the steps are those of naive.cu: scores, softmax, accumulate. S goes to device memory and comes back.
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "triton_basics"))
from lesson import begin, check_attention, device, end, fact, poisoned, time_attention, tl, torch, triton  # noqa: E402,F401

HEADS_FIRST = True      # attn bench --kernel calls attention() with torch tensors, a sequence at a time


@triton.jit
def scores(q, k, s, rows, keys, scale, CAUSAL: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr):
    head = tl.program_id(2).to(tl.int64)
    i, j = tl.program_id(1) * TILE + tl.arange(0, TILE), tl.program_id(0) * TILE + tl.arange(0, TILE)
    x = tl.arange(0, DIM)
    qi = tl.load(q + head * rows * DIM + i[:, None] * DIM + x[None, :], mask=i[:, None] < rows, other=0.0)
    kj = tl.load(k + head * keys * DIM + j[:, None] * DIM + x[None, :], mask=j[:, None] < keys, other=0.0)
    sum = tl.dot(qi, tl.trans(kj), input_precision="ieee") * scale
    if CAUSAL:
        sum = tl.where(j[None, :] <= i[:, None] + keys - rows, sum, -float("inf"))
    tl.store(s + head * rows * keys + i[:, None] * keys + j[None, :], sum, mask=(i[:, None] < rows) & (j[None, :] < keys))


@triton.jit
def softmax(s, lse, keys, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    v = tl.load(s + row * keys + j, mask=j < keys, other=-float("inf"))
    m = tl.max(v, 0)
    top = tl.where(m == -float("inf"), 0.0, m)                  # a row that sees nothing
    p = tl.exp(v - top)
    l = tl.sum(p, 0)
    tl.store(s + row * keys + j, tl.where(l > 0, p / tl.where(l > 0, l, 1.0), 0.0), mask=j < keys)
    tl.store(lse + row, tl.where(l > 0, m + tl.log(tl.where(l > 0, l, 1.0)), -float("inf")))


@triton.jit
def accumulate(s, v, out, rows, keys, DIM: tl.constexpr, TILE: tl.constexpr):
    head = tl.program_id(1).to(tl.int64)
    i, x = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, DIM)
    o = tl.zeros((TILE, DIM), dtype=tl.float32)
    for start in range(0, keys, TILE):
        j = start + tl.arange(0, TILE)
        p = tl.load(s + head * rows * keys + i[:, None] * keys + j[None, :],
                    mask=(i[:, None] < rows) & (j[None, :] < keys), other=0.0)
        vj = tl.load(v + head * keys * DIM + j[:, None] * DIM + x[None, :], mask=j[:, None] < keys, other=0.0)
        o += tl.dot(p.to(vj.dtype), vj, input_precision="ieee")
    tl.store(out + head * rows * DIM + i[:, None] * DIM + x[None, :], o, mask=i[:, None] < rows)


def attention(q, k, v, causal=False, tile=32):
    """q [heads, sq, d], k and v [heads, sk, d] → (out, lse)."""
    heads, rows, dim = q.shape
    keys = k.shape[1]
    s, out, lse = poisoned(heads, rows, keys), poisoned(heads, rows, dim), poisoned(heads, rows)
    grid = (triton.cdiv(keys, tile), triton.cdiv(rows, tile), heads)
    fact(f"programs for {heads} x {rows} x {keys}", grid[0] * grid[1] * grid[2])
    scores[grid](q, k, s, rows, keys, dim ** -0.5, CAUSAL=causal, DIM=dim, TILE=tile)
    softmax[(heads * rows,)](s, lse, keys, BLOCK=triton.next_power_of_2(keys))
    accumulate[(triton.cdiv(rows, tile), heads)](s, v, out, rows, keys, DIM=dim, TILE=tile)
    return out, lse


def main():
    begin("Naive attention in Triton")
    check_attention(attention)
    time_attention(attention, 16, 4096, 128, torch.bfloat16)
    end()


if __name__ == "__main__":
    main()
