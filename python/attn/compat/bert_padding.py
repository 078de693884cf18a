"""bert_padding — between padded [batch, seq, ...] and packed [tokens, ...] tensors."""
import torch


def index_first_axis(tensor, indices):
    """tensor[indices] along the first dim."""
    return tensor.index_select(0, indices)


def unpad_input(hidden_states, attention_mask, unused_mask=None):
    """Keep the rows that the mask [batch, seq] marks (and those of unused_mask, which count as no token).

    Returns (packed rows, their flat indices, cu_seqlens int32, longest sequence, used tokens per sequence).
    """
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = kept.sum(dim=-1, dtype=torch.int32)
    used = attention_mask.sum(dim=-1, dtype=torch.int32)
    indices = torch.nonzero(kept.flatten(), as_tuple=False).flatten()
    cu_seqlens = torch.nn.functional.pad(torch.cumsum(lengths, dim=0, dtype=torch.int32), (1, 0))
    longest = int(lengths.max()) if lengths.numel() else 0
    return index_first_axis(hidden_states.flatten(0, 1), indices), indices, cu_seqlens, longest, used


def pad_input(hidden_states, indices, batch, seqlen):
    """The inverse: rows back at their flat indices of [batch, seqlen, ...], zeros elsewhere."""
    out = hidden_states.new_zeros((batch * seqlen,) + tuple(hidden_states.shape[1:]))
    return out.index_copy(0, indices, hidden_states).unflatten(0, (batch, seqlen))
