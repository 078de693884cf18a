"""Solution of exercise 12."""
import numpy as np

import online_softmax


def merge(a, b):
    """States are (m, l, o): maximum, sum of exp(s - m), sum of exp(s - m) v. Empty: (-inf, 0, 0)."""
    m = np.maximum(a[0], b[0])
    top = 0.0 if np.isneginf(m) else m
    wa, wb = np.exp(a[0] - top), np.exp(b[0] - top)
    return m, wa * a[1] + wb * b[1], wa * a[2] + wb * b[2]


online_softmax.merge = merge
online_softmax.main()
