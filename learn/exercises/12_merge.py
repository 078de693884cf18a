"""12_merge.py — exercise: merge two softmax states
Fill the hole, then: learn check 12 --my FILE
"""
import numpy as np

import online_softmax


def merge(a, b):
    """States are (m, l, o): maximum, sum of exp(s - m), sum of exp(s - m) v. Empty: (-inf, 0, 0)."""
    return max(a[0], b[0]), a[1] + b[1], a[2] + b[2]       # hole: bring both to the common maximum first


online_softmax.merge = merge
online_softmax.main()
