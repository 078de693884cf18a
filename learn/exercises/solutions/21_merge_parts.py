"""Solution of exercise 21."""
import numpy as np

import mla_split


def merge(parts):
    """parts: list of (o [heads, latent], lse [heads]); a part without tokens is (0, -inf). Returns o of the whole."""
    top = np.max([lse for _, lse in parts], 0)
    weights = [np.exp(lse - top)[:, None] for _, lse in parts]
    return sum(w * o for w, (o, _) in zip(weights, parts)) / sum(weights)


mla_split.merge = merge
mla_split.main()
