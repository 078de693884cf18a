"""21_merge_parts.py — exercise: merge the partial answers of several workers
Fill the hole, then: learn check 21 --my FILE
"""
import numpy as np

import mla_split


def merge(parts):
    """parts: list of (o [heads, latent], lse [heads]); a part without tokens is (0, -inf). Returns o of the whole."""
    return np.mean([o for o, _ in parts], 0)       # hole: parts don't weigh the same


mla_split.merge = merge
mla_split.main()
