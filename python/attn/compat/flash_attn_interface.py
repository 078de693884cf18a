"""flash_attn_interface — FlashAttention-3's functions with their signatures, on CPU and CUDA.

attention_chunk, qv and float8 with descale tensors raise NotImplementedError. Rows that see no key: LSE =
-inf.
"""
from .. import _api
from ._shared import refuse, window, with_cache


def _refuse_common(qv, q_descale, k_descale, v_descale, attention_chunk):
    refuse(qv is not None, "qv", "give q and k the joint head dim and V as a view of K (attn.attention, "
                                 "v_dim=)")
    refuse(any(x is not None for x in (q_descale, k_descale, v_descale)), "float8 with descale")
    refuse(attention_chunk, "attention_chunk")


def flash_attn_func(q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None,
                    v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1,
                    pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False):
    """q (b, sq, h, d), k (b, sk, hk, d), v (b, sk, hk, dv) → out, or (out, lse)."""
    _refuse_common(qv, q_descale, k_descale, v_descale, attention_chunk)
    return _api.attention(q, k, v, causal=causal, window=window(window_size), scale=softmax_scale,
                          softcap=softcap, return_lse=return_attn_probs)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None,
                           seqused_k=None, softmax_scale=None, causal=False, qv=None, q_descale=None,
                           k_descale=None, v_descale=None, window_size=(-1, -1), attention_chunk=0,
                           softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0,
                           return_attn_probs=False):
    """q (total_q, h, d), k and v (total_k, hk, d)."""
    _refuse_common(qv, q_descale, k_descale, v_descale, attention_chunk)
    return _api.attention(q, k, v, causal=causal, window=window(window_size), scale=softmax_scale,
                          softcap=softcap, cu_seqlens_q=cu_seqlens_q, cu_seqlens_kv=cu_seqlens_k,
                          max_q_len=int(max_seqlen_q), max_kv_len=int(max_seqlen_k), seqused_q=seqused_q,
                          seqused_kv=seqused_k, return_lse=return_attn_probs)


def flash_attn_qkvpacked_func(qkv, softmax_scale=None, causal=False, q_descale=None, k_descale=None,
                              v_descale=None, window_size=(-1, -1), attention_chunk=0, softcap=0.0,
                              deterministic=False, num_heads_q=None, sm_margin=0, return_attn_probs=False):
    """qkv (b, s, 3, h, d), or (b, s, h_q + 2 h_k, d) with num_heads_q."""
    if qkv.dim() == 5:
        q, k, v = qkv.unbind(dim=2)
    else:
        if num_heads_q is None:
            raise ValueError("num_heads_q is needed for a 4-dim qkv")
        heads_k = (qkv.shape[2] - num_heads_q) // 2
        q, k, v = qkv.split([num_heads_q, heads_k, heads_k], dim=2)
    return flash_attn_func(q, k, v, softmax_scale, causal, None, q_descale, k_descale, v_descale, window_size,
                           attention_chunk, softcap, return_attn_probs=return_attn_probs)


def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None,
                            cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, page_table=None,
                            cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, rotary_seqlens=None,
                            q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, causal=False,
                            window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
                            scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0,
                            return_softmax_lse=False):
    """Append k, v at cache_seqlens (in place), then attend. → out, or (out, lse, None, None)."""
    _refuse_common(qv, q_descale, k_descale, v_descale, attention_chunk)
    refuse(page_table is not None and (cache_batch_idx is not None or cache_leftpad is not None),
           "page_table with cache_batch_idx or cache_leftpad")
    q, options = with_cache(q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx,
                            cache_leftpad, page_table, causal, tuple(window_size) != (-1, -1),
                            rotary_interleaved, cu_seqlens_q, max_seqlen_q, cu_seqlens_k_new, rotary_seqlens)
    if cu_seqlens_q is not None:
        options.update(cu_seqlens_q=cu_seqlens_q, max_q_len=max_seqlen_q)
    result = _api.attention(q, k_cache, v_cache, causal=causal, window=window(window_size),
                            scale=softmax_scale, softcap=softcap, return_lse=return_softmax_lse, **options)
    return (*result, None, None) if return_softmax_lse else result


def flash_attn_combine(out_partial, lse_partial, out=None, out_dtype=None):
    """out_partial (splits, b, s, h, d) float32, lse_partial (splits, b, s, h) → (out, lse (b, s, h))."""
    merged, lse = _api.merge(list(out_partial), [l.transpose(1, 2) for l in lse_partial])
    merged = merged.to(out_dtype or out_partial.dtype)
    if out is not None:
        out.copy_(merged)
        merged = out
    return merged, lse.transpose(1, 2)


def get_scheduler_metadata(*args, **kwargs):
    """Nothing to precompute here: a plan already holds its schedule."""
    return None
