"""_shared.py — what the compatibility modules have in common: refusals, padding of odd cases, the cache update."""
import torch

from .. import _api


def refuse(condition, what, instead=""):
    """NotImplementedError naming the option that isn't computed."""
    if condition:
        raise NotImplementedError(f"{what} is not supported by attn{': ' + instead if instead else ''}")


def window(pair):
    left, right = pair
    return (-1 if left is None else left, -1 if right is None else right)


def forward(q, k, v, **options):
    """(out, lse) with FlashAttention-2's sign for rows without keys: LSE = +inf."""
    out, lse = _api.attention(q, k, v, return_lse=True, **options)
    return out, torch.where(torch.isneginf(lse), torch.full_like(lse, float("inf")), lse)


def as_lengths(value, batch, device):
    """cache_seqlens as int32 [batch]."""
    if isinstance(value, int):
        return torch.full((batch,), value, dtype=torch.int32, device=device)
    return value.to(torch.int32).contiguous()


def rotate(x, cos, sin, positions, interleaved):
    """Rotary embedding of x [batch, seq, heads, dim] at int positions [batch, seq]; cos, sin [rows, rotary_dim / 2]."""
    half = cos.shape[-1]
    c, s = cos[positions].unsqueeze(2).float(), sin[positions].unsqueeze(2).float()
    turn, keep = x[..., : 2 * half].float(), x[..., 2 * half:]
    a, b = (turn[..., 0::2], turn[..., 1::2]) if interleaved else (turn[..., :half], turn[..., half:])
    first, second = a * c - b * s, a * s + b * c
    turned = torch.stack((first, second), -1).flatten(-2) if interleaved else torch.cat((first, second), -1)
    return torch.cat((turned.to(x.dtype), keep), -1)


def cache_rows(cache, lengths, new_rows, batch_index, block_table):
    """Indices (first, second) into the cache's two leading dims for new_rows rows after each sequence's length."""
    batch = lengths.shape[0]
    at = lengths.long().unsqueeze(1) + torch.arange(new_rows, device=lengths.device)
    if block_table is None:
        if int(at.max()) >= cache.shape[1]:
            raise RuntimeError(f"the cache has {cache.shape[1]} rows, the new keys need {int(at.max()) + 1}")
        rows = torch.arange(batch, device=at.device) if batch_index is None else batch_index.long()
        return rows.unsqueeze(1).expand_as(at), at
    page = cache.shape[1]
    if int(at.max()) >= block_table.shape[1] * page:
        raise RuntimeError(f"block_table has {block_table.shape[1]} columns of {page} tokens, the new keys need "
                           f"{int(at.max()) + 1}")
    return block_table.long().gather(1, at // page), at % page


def with_cache(q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx, cache_leftpad,
               block_table, causal, local, rotary_interleaved):
    """Append k, v (rotated) to the cache in place, rotate q; returns (q, keyword arguments for forward)."""
    batch, rows = q.shape[0], q.shape[1]
    full = k_cache.shape[1] if block_table is None else block_table.shape[1] * k_cache.shape[1]
    lengths = as_lengths(full if cache_seqlens is None else cache_seqlens, batch, q.device)
    if k is not None:
        at = lengths.long().unsqueeze(1)
        if rotary_cos is not None:
            k = rotate(k, rotary_cos, rotary_sin, at + torch.arange(k.shape[1], device=q.device), rotary_interleaved)
            steps = torch.arange(rows, device=q.device) if causal or local else torch.zeros(rows, dtype=torch.long,
                                                                                            device=q.device)
            q = rotate(q, rotary_cos, rotary_sin, at + steps, rotary_interleaved)
        index = cache_rows(k_cache, lengths, k.shape[1], cache_batch_idx, block_table)
        k_cache[index] = k.to(k_cache.dtype)
        v_cache[index] = v.to(v_cache.dtype)
        lengths = lengths + k.shape[1]
    elif rotary_cos is not None:
        raise ValueError("rotary_cos goes with new k and v")
    options = {"seqused_kv": lengths, "block_table": block_table, "leftpad_kv": cache_leftpad}
    if cache_batch_idx is not None:
        options["kv_batch_index"] = cache_batch_idx.to(torch.int32)
    return q, options
