"""_shared.py — what the compatibility modules have in common: refusals, conventions of LSE, the cache
update."""
import numpy as np
import torch

from .. import _api
from .._append import kv_append


def refuse(condition, what, instead=""):
    """NotImplementedError naming the option that isn't computed."""
    if condition:
        raise NotImplementedError(f"{what} is not supported by attn{': ' + instead if instead else ''}")


def window(pair):
    left, right = pair
    return (-1 if left is None else left, -1 if right is None else right)


def plus_infinity(lse):
    """LSE of rows without keys as FlashAttention-2 and FlashMLA have it: +inf."""
    if isinstance(lse, np.ndarray):
        return np.where(np.isneginf(lse), np.float32(np.inf), lse)
    return torch.where(torch.isneginf(lse), torch.full_like(lse, float("inf")), lse)


def forward(q, k, v, wants_lse, **options):
    """(out, lse or None) with FlashAttention-2's sign for rows without keys."""
    if not wants_lse:
        return _api.attention(q, k, v, **options), None
    out, lse = _api.attention(q, k, v, return_lse=True, **options)
    return out, plus_infinity(lse)


def as_lengths(value, batch, like):
    """cache_seqlens (an int, or [batch]) as contiguous int32 [batch] beside `like`."""
    if isinstance(like, np.ndarray):
        return np.ascontiguousarray(np.broadcast_to(np.asarray(value, dtype=np.int32), (batch,)))
    if isinstance(value, int):
        return torch.full((batch,), value, dtype=torch.int32, device=like.device)
    return value.to(torch.int32).contiguous()


def _as_int32(x):
    return x.astype(np.int32) if isinstance(x, np.ndarray) else x.to(torch.int32).contiguous()


def _refuse_overflow(k_cache, block_table, cache_seqlens, rows):
    """What can be seen without asking the device: lengths given as a number."""
    capacity = k_cache.shape[1] if block_table is None else block_table.shape[1] * k_cache.shape[1]
    if isinstance(cache_seqlens, int) and cache_seqlens + rows > capacity:
        raise RuntimeError(f"{'k_cache' if block_table is None else 'block_table'}: the cache has room for "
                           f"{capacity} tokens, the new keys need {cache_seqlens + rows}")


def append(q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, lengths, moving, **options):
    """kv_append with FlashAttention's conventions. Returns (q, lengths after)."""
    after = np.empty_like(lengths) if isinstance(lengths, np.ndarray) else torch.empty_like(lengths)
    if rotary_cos is not None:
        options.update(q=q, rotary_cos=rotary_cos, rotary_sin=rotary_sin, rotary_q_fixed=not moving)
    try:
        turned = kv_append(k_cache, v_cache, k, v, seqused_kv=lengths, seqused_kv_out=after, **options)
    except ValueError as error:
        raise RuntimeError(str(error).replace("tensors.k_new", "k")) from None
    return (q if turned is None else turned), after


def with_cache(q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx,
               cache_leftpad, block_table, causal, local, rotary_interleaved, cu_seqlens_q=None,
               max_q_len=None, cu_seqlens_new=None, rotary_seqlens=None):
    """Append k, v (rotated) to the cache in place, rotate q; returns (q, keyword arguments for attention)."""
    batch = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    full = k_cache.shape[1] if block_table is None else block_table.shape[1] * k_cache.shape[1]
    if k is not None and cache_seqlens is None:
        raise RuntimeError("cache_seqlens must be passed with new keys k")
    if k is None and rotary_cos is not None:
        raise ValueError("rotary_cos goes with new k and v")
    options = {"block_table": block_table}
    if cache_leftpad is not None:
        options["leftpad_kv"] = _as_int32(cache_leftpad)
    if cache_batch_idx is not None:
        options["kv_batch_index"] = _as_int32(cache_batch_idx)
    lengths = as_lengths(full if cache_seqlens is None else cache_seqlens, batch, q)
    if k is not None:
        more = {}
        if rotary_seqlens is not None:          # positions start there instead of at the cache's lengths
            more["rotary_offsets"] = as_lengths(rotary_seqlens, batch, q) - lengths
        if cu_seqlens_q is not None:
            more.update(cu_seqlens_q=cu_seqlens_q, max_q_len=max_q_len)
        if cu_seqlens_new is None:
            _refuse_overflow(k_cache, block_table, cache_seqlens, k.shape[1])
        q, lengths = append(q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, lengths, causal or local,
                            rotary_interleaved=rotary_interleaved, cu_seqlens_new=cu_seqlens_new, **options,
                            **more)
    return q, {"seqused_kv": lengths, **options}
