"""19_one_head.py — exercise: latent attention of one head, from the definition
Fill the hole, then: learn check 19 --my FILE
"""
import sys

import numpy as np

import mla_naive as mla


def one_head(q, cache, w_k, w_v):
    """q [NOPE + ROPE], cache [tokens, LATENT + ROPE], w_k [NOPE, LATENT], w_v [VALUE, LATENT] -> [VALUE]."""
    return np.zeros(mla.VALUE)       # hole: key_t = [w_k c_t, r_t], value_t = w_v c_t, softmax of scaled scores


w_k, w_v = mla.model()
ok = True
for tokens in (1, 2, 77):
    q, cache = mla.step(tokens, tokens)
    want = mla.attention(q, cache, w_k, w_v)
    got = np.stack([one_head(q[h], cache, w_k[h], w_v[h]) for h in range(mla.HEADS)])
    error = np.abs(got - want).max()
    ok = ok and bool(error <= 1e-12)
    print(f"  {'yes' if error <= 1e-12 else 'NO '}  {tokens} tokens: max error {error:.1e}")
print("\nAll of it holds." if ok else "\nFAILED: see the lines marked NO")
sys.exit(not ok)
