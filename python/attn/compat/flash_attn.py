"""flash_attn — FlashAttention-2's functions with their signatures, defaults and conventions, on CPU and CUDA.

Differences: float32 works too, any head dim up to 1024, any page size. dropout_p > 0 raises
NotImplementedError. Rows that see no key: output 0 and LSE = +inf, as there.
"""
from ._shared import forward, refuse, window, with_cache

__version__ = "2.8.3+attn"


def _returns(out, lse, return_attn_probs):
    return (out, lse, None) if return_attn_probs else out


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                    softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False):
    """q (b, sq, h, d), k and v (b, sk, hk, d) → out, or (out, softmax_lse, None)."""
    refuse(dropout_p, "dropout_p > 0")
    out, lse = forward(q, k, v, return_attn_probs, causal=causal, window=window(window_size),
                       scale=softmax_scale, softcap=softcap, alibi_slopes=alibi_slopes)
    return _returns(out, lse, return_attn_probs)


def flash_attn_kvpacked_func(q, kv, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                             softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False):
    """kv (b, sk, 2, hk, d)."""
    return flash_attn_func(q, kv[:, :, 0], kv[:, :, 1], dropout_p, softmax_scale, causal, window_size,
                           softcap, alibi_slopes, deterministic, return_attn_probs)


def flash_attn_qkvpacked_func(qkv, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                              softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False):
    """qkv (b, s, 3, h, d)."""
    return flash_attn_func(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], dropout_p, softmax_scale, causal,
                           window_size, softcap, alibi_slopes, deterministic, return_attn_probs)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
                           softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                           alibi_slopes=None, deterministic=False, return_attn_probs=False, block_table=None):
    """q (total_q, h, d), k and v (total_k, hk, d), or pages with block_table."""
    refuse(dropout_p, "dropout_p > 0")
    options = dict(cu_seqlens_q=cu_seqlens_q, max_q_len=int(max_seqlen_q))
    if block_table is None:
        options.update(cu_seqlens_kv=cu_seqlens_k, max_kv_len=int(max_seqlen_k))
    else:
        options.update(block_table=block_table,
                       seqused_kv=(cu_seqlens_k[1:] - cu_seqlens_k[:-1]).contiguous())
    out, lse = forward(q, k, v, return_attn_probs, causal=causal, window=window(window_size),
                       scale=softmax_scale, softcap=softcap, alibi_slopes=alibi_slopes, **options)
    return _returns(out, lse, return_attn_probs)


def flash_attn_varlen_kvpacked_func(q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                                    dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                                    softcap=0.0, alibi_slopes=None, deterministic=False,
                                    return_attn_probs=False):
    """kv (total_k, 2, hk, d)."""
    return flash_attn_varlen_func(q, kv[:, 0], kv[:, 1], cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                                  max_seqlen_k, dropout_p, softmax_scale, causal, window_size, softcap,
                                  alibi_slopes, deterministic, return_attn_probs)


def flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, max_seqlen, dropout_p=0.0, softmax_scale=None,
                                     causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
                                     deterministic=False, return_attn_probs=False):
    """qkv (total, 3, h, d)."""
    return flash_attn_varlen_func(qkv[:, 0], qkv[:, 1], qkv[:, 2], cu_seqlens, cu_seqlens, max_seqlen,
                                  max_seqlen, dropout_p, softmax_scale, causal, window_size, softcap,
                                  alibi_slopes, deterministic, return_attn_probs)


def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None,
                            cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, block_table=None,
                            softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                            rotary_interleaved=True, alibi_slopes=None, num_splits=0,
                            return_softmax_lse=False):
    """Append k, v at cache_seqlens (in place), then attend q (b, sq, h, d) to the cache."""
    if block_table is not None and (cache_batch_idx is not None or cache_leftpad is not None):
        raise RuntimeError("block_table excludes cache_batch_idx and cache_leftpad")
    q, options = with_cache(q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx,
                            cache_leftpad, block_table, causal, tuple(window_size) != (-1, -1),
                            rotary_interleaved)
    out, lse = forward(q, k_cache, v_cache, return_softmax_lse, causal=causal, window=window(window_size),
                       scale=softmax_scale, softcap=softcap, alibi_slopes=alibi_slopes, **options)
    return (out, lse) if return_softmax_lse else out
