"""Solution of exercise 20."""
import numpy as np

import mla_absorbed
from mla_naive import HEADS, LATENT, NOPE


def absorb_query(q, w_k):
    """q [heads, NOPE + ROPE], w_k [heads, NOPE, LATENT] -> [heads, LATENT + ROPE]: (W_k c) . q = c . (W_k^T q)."""
    return np.concatenate(([w_k[h].T @ q[h, :NOPE] for h in range(HEADS)], q[:, NOPE:]), -1)


mla_absorbed.absorb_query = absorb_query
mla_absorbed.main()
