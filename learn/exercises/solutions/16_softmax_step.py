"""Solution of exercise 16."""
import numpy as np

import flash_v2


def softmax_step(s, vj, o, m, l):
    """Scores s of one tile, its values vj, and the state: return the new (o, m, l). Rows may see nothing."""
    m_new = np.maximum(m, s.max(-1, keepdims=True))
    top = np.where(np.isneginf(m_new), 0, m_new)
    p, keep = np.exp(s - top), np.exp(m - top)
    return o * keep + p @ vj, m_new, l * keep + p.sum(-1, keepdims=True)


flash_v2.softmax_step = softmax_step
flash_v2.main()
