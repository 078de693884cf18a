"""Solution of exercise 22."""
import mla_two_block
import numpy as np


def two_block(q, cache, sign=1):
    scale, half, latent = (mla_two_block.NOPE + mla_two_block.ROPE) ** -0.5, mla_two_block.HALF, mla_two_block.LATENT
    heads, block = len(q), mla_two_block.BLOCK
    left, right = np.zeros((heads, half)), np.zeros((heads, half))
    m, l = np.full((heads, 1), -np.inf), np.zeros((heads, 1))
    for t in range(0, len(cache), 2 * block):
        zero, one = cache[t:t + block], cache[t + block:t + 2 * block]
        s0 = q @ zero.T * scale
        m0 = np.maximum(m, s0.max(-1, keepdims=True))
        p0, keep = np.exp(s0 - m0), np.exp(sign * np.where(np.isneginf(m), -np.inf, m - m0))
        left, right, l = left * keep + p0 @ zero[:, :half], right * keep, l * keep + p0.sum(-1, keepdims=True)
        s1 = q @ one.T * scale
        m1 = np.maximum(m0, s1.max(-1, keepdims=True)) if len(one) else m0
        p1, again = np.exp(s1 - m1), np.exp(sign * (m0 - m1))
        right, l = right * again + p1 @ one[:, half:latent], l * again + p1.sum(-1, keepdims=True)
        left = left * again + p1 @ one[:, :half]
        right = right + (p0 * again) @ zero[:, half:latent]
        m = m1
    return np.concatenate((left, right), -1) / l


mla_two_block.two_block = two_block
mla_two_block.main()
