"""37_divided.py — exercise: what lies in device memory has been divided by l
Fill the hole, then: learn check 37 --my FILE
"""
import flash_v1_triton
from lesson import tl, triton


@triton.jit
def softmax_step(s, vj, o, m, l):
    """s [rows, keys]; o, m, l as loaded: o is the answer for the keys met so far. Returns all three, o divided again."""
    m_new = tl.maximum(m, tl.max(s, 1))
    top = tl.where(m_new == -float("inf"), 0.0, m_new)
    p = tl.exp(s - top[:, None])
    keep = tl.exp(m - top)
    l_new = l * keep + tl.sum(p, 1)
    o = o * keep[:, None] + tl.dot(p.to(vj.dtype), vj, input_precision="ieee")      # hole: o is an average, not a sum
    return tl.where(l_new[:, None] > 0, o / tl.where(l_new > 0, l_new, 1.0)[:, None], 0.0), m_new, l_new


flash_v1_triton.softmax_step = softmax_step
flash_v1_triton.main()
