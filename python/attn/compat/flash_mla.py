"""flash_mla — FlashMLA's decoding interface: K rows [page, 64, heads, 576], V their first 512 columns.

Dense caches only: sparse indices and float8 caches raise NotImplementedError. Rows without keys: LSE = +inf.
"""
import dataclasses
from typing import Any, Optional

from .. import _api
from ._shared import plus_infinity, refuse

__version__ = "1.0.0+attn"


@dataclasses.dataclass
class FlashMLASchedMeta:
    """One object per decoding step, shared by all layers: the first call makes the schedule for its lengths.
    Remembers the shapes that it was first used with."""
    have_initialized: bool = False
    config: Optional[Any] = None
    tile_scheduler_metadata: Optional[Any] = None
    num_splits: Optional[Any] = None
    schedule: _api.Schedule = dataclasses.field(default_factory=_api.Schedule)


def get_mla_metadata(*args, **kwargs):
    """→ (FlashMLASchedMeta, None); arguments of older versions are ignored, as there."""
    return FlashMLASchedMeta(), None


def flash_mla_with_kvcache(q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata,
                           num_splits=None, softmax_scale=None, causal=False, is_fp8_kvcache=False,
                           indices=None, attn_sink=None, extra_k_cache=None, extra_indices_in_kvcache=None,
                           topk_length=None, extra_topk_length=None):
    """q [b, s_q, h_q, d], k_cache [pages, page, h_k, d] → (out [b, s_q, h_q, head_dim_v], lse [b, h_q,
    s_q])."""
    refuse(indices is not None or extra_k_cache is not None or topk_length is not None
           or extra_indices_in_kvcache is not None or extra_topk_length is not None,
           "sparse attention (indices)")
    refuse(is_fp8_kvcache, "is_fp8_kvcache")
    if num_splits is not None:
        raise ValueError("num_splits must be None: it is a legacy slot")
    meta = tile_scheduler_metadata
    if not isinstance(meta, FlashMLASchedMeta):
        raise TypeError("tile_scheduler_metadata must come from get_mla_metadata()")
    config = (tuple(q.shape[:3]), k_cache.shape[1], k_cache.shape[2], bool(causal))
    if meta.have_initialized and meta.config != config:
        raise ValueError(f"this metadata was made for {meta.config}, the call is {config}: get new metadata")
    meta.have_initialized, meta.config = True, config
    out, lse = _api.attention(q, k_cache, v_dim=head_dim_v, block_table=block_table, seqused_kv=cache_seqlens,
                              causal=causal and q.shape[1] > 1, scale=softmax_scale, sinks=attn_sink,
                              schedule=meta.schedule, return_lse=True)
    return out, plus_infinity(lse)


def flash_mla_sparse_fwd(*args, **kwargs):
    """Not computed here."""
    raise NotImplementedError("flash_mla_sparse_fwd is not supported by attn: sparse attention is missing")
