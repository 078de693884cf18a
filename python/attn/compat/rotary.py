"""rotary — flash_attn.layers.rotary's apply_rotary_emb in torch operations, gradients included."""
import torch


def _positions(x, offsets, cu_seqlens):
    """Position of every token: [batch, seq], or [tokens] where packed."""
    if cu_seqlens is None:
        steps = torch.arange(x.shape[1], device=x.device)
        if not isinstance(offsets, int):
            return offsets[:, None] + steps
        return (steps + offsets)[None].expand(x.shape[0], -1)
    tokens = torch.arange(x.shape[0], device=x.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), tokens,
                                  right=True).clamp(max=cu_seqlens.shape[0] - 2)
    start = cu_seqlens[sequence]
    return tokens - start + (offsets if isinstance(offsets, int) else offsets[sequence])


def apply_rotary_emb(x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None,
                     max_seqlen=None):
    """x (b, s, h, d), or (total, h, d) with cu_seqlens; cos, sin (positions, rotary_dim / 2). Turns the first
    rotary_dim columns of each head; computed in float32, rounded once."""
    half = cos.shape[-1]
    if 2 * half > x.shape[-1]:
        raise ValueError(f"rotary_dim {2 * half} is larger than the head dim {x.shape[-1]}")
    at = _positions(x, seqlen_offsets, cu_seqlens).long()
    c, s = cos[at].unsqueeze(-2).float(), sin[at].unsqueeze(-2).float()
    turn, keep = x[..., :2 * half].float(), x[..., 2 * half:]
    a, b = (turn[..., 0::2], turn[..., 1::2]) if interleaved else (turn[..., :half], turn[..., half:])
    first, second = a * c - b * s, a * s + b * c
    turned = torch.stack((first, second), -1).flatten(-2) if interleaved else torch.cat((first, second), -1)
    out = torch.cat((turned.to(x.dtype), keep), -1)
    return x.copy_(out) if inplace else out


apply_rotary_emb_func = apply_rotary_emb
