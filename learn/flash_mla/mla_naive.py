"""mla_naive.py — multi-head latent attention as it is defined: expand the latent row to keys and values of every head.

    python mla_naive.py
One idea: a token is stored as one small row, c (the latent) and r (a rotary part shared by all heads). Head h's key is
[W_k[h] c, r], its value W_v[h] c. Expanding them is right and expensive. DeepSeek-V2 (2024).
"""
import os
import sys

import numpy as np

HEADS, NOPE, ROPE, LATENT, VALUE = 4, 16, 8, 32, 16        # small stand-ins for 128, 128, 64, 512, 128


def model(seed=0):
    """W_k [heads, nope, latent] and W_v [heads, value, latent]."""
    random = np.random.default_rng(seed)
    return (random.standard_normal((HEADS, NOPE, LATENT)) / LATENT ** 0.5,
            random.standard_normal((HEADS, VALUE, LATENT)) / LATENT ** 0.5)


def step(seed, tokens):
    """One decoding step: q [heads, nope + rope], the cache [tokens, latent + rope]."""
    random = np.random.default_rng(seed)
    return random.standard_normal((HEADS, NOPE + ROPE)), random.standard_normal((tokens, LATENT + ROPE))


def fact(name, value):
    """A number that came out of this run, for `learn quiz`: one line in the file that LEARN_FACTS names."""
    if "LEARN_FACTS" in os.environ:
        with open(os.environ["LEARN_FACTS"], "a") as file:
            file.write(f"{name}\t{float(value)!r}\n")


def softmax(s):
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def attention(q, cache, w_k, w_v):
    """out [heads, value]: keys and values of all heads are expanded from the cache."""
    c, r = cache[:, :LATENT], cache[:, LATENT:]
    k = np.concatenate((np.einsum("hnl,tl->htn", w_k, c), np.broadcast_to(r, (HEADS,) + r.shape)), -1)
    v = np.einsum("hvl,tl->htv", w_v, c)
    p = softmax(np.einsum("hd,htd->ht", q, k) * (NOPE + ROPE) ** -0.5)
    return np.einsum("ht,htv->hv", p, v)


def flops(tokens):
    """Multiply-adds count twice: expanding K and V, then scores and the weighted sum."""
    return 2 * HEADS * tokens * (LATENT * (NOPE + VALUE) + NOPE + ROPE + VALUE)


def by_hand(q, cache, w_k, w_v, h):
    """One head, one token at a time, nothing but the definition: what attention() must agree with."""
    s = [(q[h, :NOPE] @ (w_k[h] @ t[:LATENT]) + q[h, NOPE:] @ t[LATENT:]) / (NOPE + ROPE) ** 0.5 for t in cache]
    weights = [np.exp(x - max(s)) for x in s]
    return sum(w * (w_v[h] @ t[:LATENT]) for w, t in zip(weights, cache)) / sum(weights)


def main():
    w_k, w_v = model()
    q, cache = step(1, 50)
    print(f"naive MLA: {HEADS} heads, 50 tokens, cache of {cache.size} numbers; expanded keys and values: "
          f"{50 * HEADS * (NOPE + ROPE + VALUE)} numbers, {flops(50)} FLOP a step")
    fact("expanded numbers", 50 * HEADS * (NOPE + ROPE + VALUE))
    out = attention(q, cache, w_k, w_v)
    ok = all(bool((np.abs(out[h] - by_hand(q, cache, w_k, w_v, h)) <= 1e-12).all()) for h in range(HEADS))
    print(f"  {'yes' if ok else 'NO '}  every head is what its own row-by-row computation gives")
    print("\nAll of it holds." if ok else "\nFAILED: see the lines marked NO")
    sys.exit(not ok)


if __name__ == "__main__":
    main()
