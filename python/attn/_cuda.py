"""_cuda.py — torch's current stream as a handle, and workspaces in device memory, at little cost a call."""
from ._arrays import torch_module

_KEPT_BYTES = 16 << 20
_workspaces = {}        # (device, stream) -> uint8 tensor


def stream_getter():
    """A function of a device's index: the handle of torch's current stream there."""
    torch = torch_module()
    fast = getattr(torch._C, "_cuda_getCurrentRawStream", None)     # without the Stream object
    return fast if fast is not None else lambda index: torch.cuda.current_stream(index).cuda_stream


def raw_stream(index):
    return stream_getter()(index)


def cuda_workspace(size, index, stream):
    """`size` bytes of device memory for a run on `stream`, which is the current one.

    Runs on one stream come after one another, so that they can share one buffer: it is kept and grown. Large
    ones, and those of a graph that is being captured (it may replay beside anything), are torch's own
    allocations each time.
    """
    torch = torch_module()
    have = _workspaces.get((index, stream))
    if size > _KEPT_BYTES or torch.cuda.is_current_stream_capturing():
        return torch.empty(size, dtype=torch.uint8, device=f"cuda:{index}")
    if have is None or have.numel() < size:
        have = torch.empty(max(size, 1 << 16), dtype=torch.uint8, device=f"cuda:{index}")
        _workspaces[index, stream] = have
    return have
