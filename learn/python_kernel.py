"""python_kernel.py SCRIPT — serve one attention function to python_kernel.c: tensors in shared memory, one
line a call.

SCRIPT defines attention(q, k, v, **options) on float32 NumPy arrays [batch, seq, heads, dim], options causal,
top_left, scale; it returns out, or (out, lse [batch, heads, q_len]). With PER_HEAD = True it is called for
each head as attention(q, k, v, causal) on [seq, dim] arrays, with HEADS_FIRST = True for each sequence on
torch tensors [heads, seq, dim]. An LSE that the function doesn't return is filled in here.
"""
import importlib.util
import mmap
import os
import pathlib
import sys

import numpy as np


def load(path):
    sys.path.insert(0, str(pathlib.Path(path).resolve().parent))
    spec = importlib.util.spec_from_file_location("kernel", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "attention", None)):
        sys.exit(f"{path}: defines no function attention(q, k, v, **options)")
    return module


def visible(q_len, kv_len, causal, top_left):
    seen = np.ones((q_len, kv_len), bool)
    if causal:
        shift = 0 if top_left else kv_len - q_len
        seen = np.arange(kv_len) <= np.arange(q_len)[:, None] + shift
    return seen


def log_sum_exp(q, k, scale, seen):
    group = q.shape[2] // k.shape[2]
    s = scale * np.einsum("bihd,bjhd->bhij", q.astype(np.float64), np.repeat(k, group, 2).astype(np.float64))
    s = np.where(seen, s, -np.inf)
    top = s.max(-1, keepdims=True, initial=-np.inf)
    safe = np.where(np.isneginf(top), 0, top)
    with np.errstate(divide="ignore"):
        return (safe + np.log(np.exp(s - safe).sum(-1, keepdims=True)))[..., 0]


def refuse_options(q, k, causal, top_left, scale):
    if causal and top_left and q.shape[1] != k.shape[1] or abs(scale * q.shape[-1] ** 0.5 - 1) > 1e-6:
        raise ValueError("this function knows bottom-right causal masks and the default scale only")


def call_torch(module, q, k, v, causal, top_left, scale):
    """A sequence at a time, heads first; where the module says: on the GPU, or interpreted on the CPU."""
    refuse_options(q, k, causal, top_left, scale)
    if q.shape[-1] != v.shape[-1] or q.shape[-1] not in (16, 32, 64, 128, 256):
        raise ValueError("this Triton kernel needs one head dim of 16, 32, 64, 128 or 256")
    out = np.empty(q.shape[:3] + v.shape[3:], np.float32)
    lse = np.empty((q.shape[0], q.shape[2], q.shape[1]), np.float32)
    group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        tensors = (np.ascontiguousarray(np.repeat(x[b], n, 1).transpose(1, 0, 2))
                   for x, n in ((q, 1), (k, group), (v, group)))
        o, l = module.attention(*(module.torch.from_numpy(x).to(module.device) for x in tensors), causal)
        out[b], lse[b] = o.cpu().numpy().transpose(1, 0, 2), l.cpu().numpy()
    return out, lse


def call(module, q, k, v, causal, top_left, scale):
    if getattr(module, "HEADS_FIRST", False):
        return call_torch(module, q, k, v, causal, top_left, scale)
    if not getattr(module, "PER_HEAD", False):
        result = module.attention(q, k, v, causal=causal, top_left=top_left, scale=scale)
        return result if isinstance(result, tuple) else (result, None)
    refuse_options(q, k, causal, top_left, scale)
    out = np.empty(q.shape[:3] + v.shape[3:], np.float32)
    lse = np.empty((q.shape[0], q.shape[2], q.shape[1]), np.float32)
    group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            out[b, :, h], lse[b, h] = module.attention(q[b, :, h], k[b, :, h // group], v[b, :, h // group],
                                                       causal)
    return out, lse


def serve(module):
    line = os.fdopen(4, "r+b", buffering=0)
    for request in iter(lambda: read_line(line), b""):
        *sizes, scale = request.split()
        b, sq, sk, hq, hk, d, dv, causal, top_left = map(int, sizes)
        shapes = [(b, sq, hq, d), (b, sk, hk, d), (b, sk, hk, dv), (b, sq, hq, dv), (b, hq, sq)]
        with mmap.mmap(3, os.fstat(3).st_size) as memory:
            arrays, at = [], 0
            for shape in shapes:
                count = int(np.prod(shape))
                arrays.append(np.frombuffer(memory, np.float32, count, at).reshape(shape))
                at += 4 * count
            q, k, v, o, l = arrays
            out, lse = call(module, q, k, v, bool(causal), bool(top_left), float(scale))
            o[...] = out
            l[...] = (log_sum_exp(q, k, float(scale), visible(sq, sk, causal, top_left)) if lse is None
                      else lse)
            del q, k, v, o, l, arrays, out
        line.write(b"y")


def read_line(line):
    text = b""
    while not text.endswith(b"\n"):
        piece = line.read(1)
        if not piece:
            return b""
        text += piece
    return text


serve(load(sys.argv[1]))
