"""Solution of exercise 19."""
import sys

import numpy as np

import mla_naive as mla


def one_head(q, cache, w_k, w_v):
    """q [NOPE + ROPE], cache [tokens, LATENT + ROPE], w_k [NOPE, LATENT], w_v [VALUE, LATENT] -> [VALUE]."""
    c, r = cache[:, :mla.LATENT], cache[:, mla.LATENT:]
    k = np.concatenate((c @ w_k.T, r), -1)
    p = mla.softmax((k @ q) * (mla.NOPE + mla.ROPE) ** -0.5)
    return p @ (c @ w_v.T)


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
