"""16_softmax_step.py — exercise: the step in the middle of FlashAttention-2
Fill the hole, then: learn check 16 --my FILE
"""
import numpy as np

import flash_v2


def softmax_step(s, vj, o, m, l):
    """Scores s of one tile, its values vj, and the state: return the new (o, m, l). Rows may see nothing."""
    m_new = np.maximum(m, s.max(-1, keepdims=True))
    p = np.exp(s - np.where(np.isneginf(m_new), 0, m_new))
    return o + p @ vj, m_new, l + p.sum(-1, keepdims=True)       # hole: o and l belong to the old maximum


flash_v2.softmax_step = softmax_step
flash_v2.main()
