"""_ready.py — the short way for a call like an earlier one: same shapes, strides, types, devices and scalars.
Then a plan and the outputs' shapes are known, and only pointers have to be filled in."""
import ctypes as c
import threading

import numpy as np

from . import _library as L
from ._arrays import torch_module
from ._cuda import cuda_workspace, stream_getter

ready_calls = {}        # signature -> function of (q, k, v, extras)
_KEPT = 256
_TENSORS_SIZE = c.sizeof(L.Tensors)
_EXTRAS = ("bias", "mask", "alibi_slopes", "sinks", "cu_seqlens_q", "cu_seqlens_kv", "seqused_q",
           "seqused_kv", "leftpad_kv", "kv_batch_index", "block_table")     # as in attn_tensors
_local = threading.local()


def cpu_workspace(size):
    """This thread's workspace, grown when needed, 64-byte aligned."""
    have = getattr(_local, "size", 0)
    if size > have:
        _local.buffer = np.empty(size + 64, dtype=np.uint8)
        _local.address = (_local.buffer.ctypes.data + 63) // 64 * 64
        _local.size = size
    return _local.address


def given_extras(*values):
    """[(field, array)] of the arrays beside q, k, v that are there."""
    return [(name, x) for name, x in zip(_EXTRAS, values) if x is not None]


def signature(torch_tensors, q, k, v, extras, *scalars):
    """Everything a plan depends on, or None if these arrays have no short way (lists, mixed libraries,
    DLPack)."""
    try:
        if torch_tensors:
            if q.requires_grad or k.requires_grad or (v is not None and v.requires_grad):
                return None
            key = (q.shape, q.stride(), q.dtype, q.get_device(), k.shape, k.stride(), k.dtype, k.get_device(),
                   scalars)
            if v is not None:
                key += (v.shape, v.stride(), v.dtype, v.get_device())
            for name, x in extras:
                if x.requires_grad:
                    return None
                key += (name, x.shape, x.stride(), x.dtype, x.get_device())
            return key
        key = (q.shape, q.strides, q.dtype, k.shape, k.strides, k.dtype, scalars)
        if v is not None:
            key += (v.shape, v.strides, v.dtype)
        for name, x in extras:
            x.__array_interface__       # not torch, nor DLPack
            key += (name, x.shape, x.strides, x.dtype)
        return key
    except (AttributeError, TypeError, RuntimeError):
        return None


def arrays_signature(torch_tensors, given, *scalars):
    """The same for any list of (field, array)."""
    try:
        key = scalars
        for name, x in given:
            if torch_tensors:
                if x.requires_grad:
                    return None
                key += (name, x.shape, x.stride(), x.dtype, x.get_device())
            else:
                x.__array_interface__
                key += (name, x.shape, x.strides, x.dtype)
        return key
    except (AttributeError, TypeError, RuntimeError):
        return None


def append_ready(torch_tensors, plan, cuda, index, q_out):
    """A function of ([(field, array)], q_out): q_out None where q is given: made like the first one."""
    torch, handle, run, tensors = torch_module(), plan.handle, L.run, L.Tensors
    address, raw_stream = _torch_address if torch_tensors else _address, stream_getter() if cuda else None
    if q_out is not None:
        shape, dtype, device = q_out.shape, q_out.dtype, q_out.device if torch_tensors else None

    def ready(given, out):
        t = tensors(_TENSORS_SIZE)
        for name, x in given:
            setattr(t, name, address(x))
        if q_out_made and out is None:
            out = torch.empty(shape, dtype=dtype, device=device) if torch_tensors else np.empty(shape, dtype)
            t.q_out = address(out)
        status = run(handle, t, None, raw_stream(index) if cuda else None)
        if status:
            L.check(status)
        return out
    q_out_made, ready.plan = q_out is not None, plan
    return ready


def remember(key, torch_tensors, q, call, plan, out, lse):
    if len(ready_calls) >= _KEPT:
        ready_calls.clear()
    ready_calls[key] = (_torch_ready(q, call, plan, out, lse) if torch_tensors
                        else _numpy_ready(plan, out, lse))


def _address(x):
    return x.__array_interface__["data"][0]


def _torch_address(x):
    return x.data_ptr()


def _numpy_ready(plan, out, lse):
    """Closures: their variables are found faster than attributes."""
    handle, size, run, tensors = plan.handle, plan.workspace, L.run, L.Tensors
    shape, dtype, lse_shape = out.shape, out.dtype, None if lse is None else lse.shape

    def ready(q, k, v, extras):
        out = np.empty(shape, dtype)
        lse = None if lse_shape is None else np.empty(lse_shape, np.float32)
        t = tensors(_TENSORS_SIZE, 0, _address(q), _address(k), None if v is None else _address(v),
                    _address(out), None if lse is None else _address(lse))
        for name, x in extras:
            setattr(t, name, _address(x))
        status = run(handle, t, cpu_workspace(size) if size else None, None)
        if status:
            L.check(status)
        return out if lse is None else (out, lse)
    ready.plan = plan           # the handle lives as long as its plan
    return ready


def _torch_ready(q, call, plan, out, lse):
    torch = torch_module()
    handle, size, run, tensors = plan.handle, plan.workspace, L.run, L.Tensors
    alike = out.shape == q.shape and q.is_contiguous()
    empty_like, empty_strided, float32 = torch.empty_like, torch.empty_strided, torch.float32
    out_shape, out_stride, dtype, device = out.shape, out.stride(), out.dtype, out.device
    lse_shape, lse_stride = (None, None) if lse is None else (lse.shape, lse.stride())
    cuda, index = call.problem.device == L.CUDA, call.q.index
    raw_stream = stream_getter() if cuda else None

    def ready(q, k, v, extras):
        out = empty_like(q) if alike else empty_strided(out_shape, out_stride, dtype=dtype, device=device)
        workspace = stream = lse = buffer = None
        if cuda:
            stream = raw_stream(index)
            if size:
                buffer = cuda_workspace(size, index, stream)
                workspace = buffer.data_ptr()
        elif size:
            workspace = cpu_workspace(size)
        t = tensors(_TENSORS_SIZE, 0, q.data_ptr(), k.data_ptr(), None if v is None else v.data_ptr(),
                    out.data_ptr())
        if lse_shape is not None:
            lse = empty_strided(lse_shape, lse_stride, dtype=float32, device=device)
            t.lse = lse.data_ptr()
        for name, x in extras:
            setattr(t, name, x.data_ptr())
        status = run(handle, t, workspace, stream)
        if status:
            L.check(status)
        return out if lse is None else (out, lse)
    ready.plan = plan
    return ready
