"""torch_ops.py — torch.ops.attn.attention: the same call as a dispatcher op, for torch.compile, export and
graphs.

Import this module to register it: `import attn.torch_ops`. Inference only for now (see _autograd.py).
"""
import torch
import torch.nn.attention

from . import _api
from ._ready import ready_calls, signature

_library = torch.library.Library("attn", "DEF")
_library.define("attention(Tensor q, Tensor k, Tensor v, bool causal=False, int window_left=-1, int "
                "window_right=-1, float? scale=None, float softcap=0.0, Tensor? alibi_slopes=None, Tensor? "
                "bias=None, Tensor? mask=None, Tensor? sinks=None, str layout='bshd') -> (Tensor, Tensor)")


def _run(q, k, v, causal=False, window_left=-1, window_right=-1, scale=None, softcap=0.0, alibi_slopes=None,
         bias=None, mask=None, sinks=None, layout="bshd"):
    key = None
    if alibi_slopes is bias is mask is sinks is None:       # a call like an earlier one: see _ready.py
        key = signature(True, q, k, v, (), "op", causal, window_left, window_right, scale, softcap, layout)
        ready = ready_calls.get(key)
        if ready is not None:
            return ready(q, k, v, ())
    window = None if window_left == window_right == -1 else (window_left, window_right)
    result = _api.attention(q, k, v, causal=causal, window=window, scale=scale, softcap=softcap,
                            alibi_slopes=alibi_slopes, bias=bias, mask=mask, sinks=sinks, layout=layout,
                            return_lse=True)
    if key is not None:
        same = ready_calls.get(signature(True, q, k, v, (), causal, False, window, scale, softcap, layout,
                                         False, True, None, 0, None, None, None))
        if same is not None:
            ready_calls[key] = same
    return result


def _fake(q, k, v, causal=False, window_left=-1, window_right=-1, scale=None, softcap=0.0, alibi_slopes=None,
          bias=None, mask=None, sinks=None, layout="bshd"):
    heads, rows = (2, 1) if layout == "bshd" else (1, 2)
    return (q.new_empty(q.shape[:-1] + (v.shape[-1],)),
            q.new_empty((q.shape[0], q.shape[heads], q.shape[rows]), dtype=torch.float32))


_library.impl("attention", _run, "CPU")
_library.impl("attention", _run, "CUDA")
# Nothing to record: gradients are refused in _run.
for _key in ("AutogradCPU", "AutogradCUDA", "ADInplaceOrView"):
    _library.impl("attention", torch.library.fallthrough_kernel, _key)
torch.library.register_fake("attn::attention", _fake, lib=_library)


def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False,
                                 scale=None, enable_gqa=False):
    """torch.nn.functional.scaled_dot_product_attention's call on [batch, heads, seq, dim] tensors.

    Note torch's own convention: is_causal is aligned top-left there. dropout_p must be 0.
    """
    if dropout_p:
        raise NotImplementedError("dropout_p must be 0: this library computes exact attention")
    if query.shape[-3] != key.shape[-3] and not enable_gqa:
        raise ValueError("query and key have different head counts: pass enable_gqa=True")
    options = {}
    if attn_mask is not None:
        options["mask" if attn_mask.dtype == torch.bool else "bias"] = attn_mask
    return _api.attention(query, key, value, causal=is_causal, top_left=is_causal, scale=scale, layout="bhsd",
                          **options)


def transformers_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0,
                           is_causal=None, **unused):
    """An attention function for Hugging Face transformers; see register_transformers()."""
    if dropout:
        raise NotImplementedError("dropout must be 0: call model.eval()")
    options = {}
    rows = query.shape[2]
    causal = bool(rows > 1 and attention_mask is None
                  and (getattr(module, "is_causal", True) if is_causal is None else is_causal))
    if attention_mask is not None:
        m = attention_mask[..., :key.shape[2]]
        options["mask" if m.dtype == torch.bool else "bias"] = m
    sliding = unused.get("sliding_window")
    if sliding and attention_mask is None:
        options["window"] = (sliding - 1, 0)
    out = _api.attention(query, key, value, causal=causal, scale=scaling,
                         softcap=unused.get("softcap") or 0.0, sinks=unused.get("s_aux"), layout="bhsd",
                         **options)
    return out.transpose(1, 2).contiguous(), None


def register_transformers(name="attn"):
    """After this, from_pretrained(..., attn_implementation=name) and config._attn_implementation = name
    work."""
    from transformers import AttentionInterface
    AttentionInterface.register(name, transformers_attention)
    try:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    except ImportError:
        pass            # older transformers always pass an explicit mask


class _SdpaHandle:
    """Keeps the dispatcher registration alive; remove() ends it."""

    def __init__(self, library):
        self.library = library

    def remove(self):
        self.library = None


def _sdpa_cpu(query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None):
    with torch.no_grad():
        options = {}
        if attn_mask is not None:
            options["mask" if attn_mask.dtype == torch.bool else "bias"] = attn_mask
        return _api.attention(query, key, value, causal=is_causal, top_left=is_causal, scale=scale,
                              layout="bhsd", return_lse=True, **options)


def _sdpa_cuda(query, key, value, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    if dropout_p:
        raise NotImplementedError("dropout_p must be 0: this library computes exact attention")
    with torch.no_grad():
        out, lse = _api.attention(query, key, value, causal=is_causal, top_left=is_causal, scale=scale,
                                  layout="bhsd", return_lse=True)
    empty = torch.empty(0, dtype=torch.int64, device=query.device)
    return out, lse, None, None, query.shape[2], key.shape[2], empty, empty, torch.empty(0, dtype=query.dtype,
                                                                                        device=query.device)


def _activate_sdpa():
    library = torch.library.Library("aten", "IMPL")
    library.impl("_scaled_dot_product_flash_attention_for_cpu", _sdpa_cpu, "CPU", allow_override=True)
    if torch.cuda.is_available():
        library.impl("_scaled_dot_product_flash_attention", _sdpa_cuda, "CUDA", allow_override=True)
    return _SdpaHandle(library)


def register_sdpa(name="attn"):
    """Register with torch's list of flash implementations, where torch has it (2.11 and later).

    Then torch.nn.attention.activate_flash_attention_impl(name) makes torch's own scaled_dot_product_attention
    call this library wherever it would take its flash kernel. @return True if torch offers the hook.
    """
    register = getattr(torch.nn.attention, "register_flash_attention_impl", None)
    if register is None:
        return False
    register(name, register_fn=_activate_sdpa)
    return True
