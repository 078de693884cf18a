"""36_masked_tail.py — exercise: the block is wider than the row
Fill the hole, then: learn check 36 --my FILE
"""
import naive_triton
from lesson import tl, triton


@triton.jit
def softmax(s, lse, keys, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    v = tl.load(s + row * keys + j, mask=j < keys, other=0.0)       # hole: what must a missing score be?
    m = tl.max(v, 0)
    top = tl.where(m == -float("inf"), 0.0, m)
    p = tl.exp(v - top)
    l = tl.sum(p, 0)
    tl.store(s + row * keys + j, tl.where(l > 0, p / tl.where(l > 0, l, 1.0), 0.0), mask=j < keys)
    tl.store(lse + row, tl.where(l > 0, m + tl.log(tl.where(l > 0, l, 1.0)), -float("inf")))


naive_triton.softmax = softmax
naive_triton.main()
