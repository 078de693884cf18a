"""_arrays.py — any array as (pointer, dtype, shape, strides in elements, device): NumPy, torch, DLPack."""
import ctypes as c
import sys

import numpy as np

from . import _library as L

_NUMPY = {"float32": L.F32, "float16": L.F16, "bfloat16": L.BF16}
_torch_codes = {}


class View:
    """What the library needs to know of an array. `owner` keeps its memory alive."""
    __slots__ = ("pointer", "dtype", "shape", "strides", "device", "index", "owner")

    def __init__(self, pointer, dtype, shape, strides, device, index, owner):
        self.pointer, self.dtype, self.shape, self.strides = pointer, dtype, shape, strides
        self.device, self.index, self.owner = device, index, owner


def torch_module():
    """torch, if the caller has imported it already: this package never imports it by itself."""
    return sys.modules.get("torch")


def is_torch(x):
    torch = torch_module()
    return torch is not None and isinstance(x, torch.Tensor)


def _torch_dtype(torch, dtype):
    if not _torch_codes:
        _torch_codes.update({torch.float32: L.F32, torch.float16: L.F16, torch.bfloat16: L.BF16,
                             torch.int32: "int32", torch.uint8: "uint8", torch.bool: "uint8"})
    return _torch_codes.get(dtype, str(dtype))


def _from_torch(x):
    device = x.device
    kind = device.type
    if kind not in ("cpu", "cuda"):
        raise TypeError(f"tensors must be on cpu or cuda, not {device}")
    return View(x.data_ptr(), _torch_dtype(torch_module(), x.dtype), tuple(x.shape), x.stride(),
                L.CUDA if kind == "cuda" else L.CPU, device.index or 0, x)


def _from_numpy(x):
    name = x.dtype.name
    size = x.dtype.itemsize
    if any(s % size for s in x.strides):
        raise ValueError(f"array strides {x.strides} are not multiples of its item size {size}")
    dtype = _NUMPY.get(name, "uint8" if name == "bool" else name)
    return View(x.__array_interface__["data"][0], dtype, x.shape, tuple(s // size for s in x.strides), L.CPU,
                0, x)


class _DLTensor(c.Structure):
    _fields_ = [("data", c.c_void_p), ("device_type", c.c_int32), ("device_id", c.c_int32),
                ("ndim", c.c_int32), ("code", c.c_uint8), ("bits", c.c_uint8), ("lanes", c.c_uint16),
                ("shape", c.POINTER(c.c_int64)), ("strides", c.POINTER(c.c_int64)),
                ("byte_offset", c.c_uint64)]


_DLPACK = {(2, 32): L.F32, (2, 16): L.F16, (4, 16): L.BF16, (0, 32): "int32", (1, 8): "uint8",
           (6, 8): "uint8"}
_capsule_pointer = c.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = c.c_void_p, [c.py_object, c.c_char_p]


def _from_dlpack(x):
    capsule = x.__dlpack__()           # it owns the tensor until it is collected: keep it with the view
    t = _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    if t.device_type not in (1, 2, 3):
        raise TypeError(f"DLPack device type {t.device_type}: only CPU and CUDA")
    shape = tuple(t.shape[i] for i in range(t.ndim))
    if t.strides:
        strides = tuple(t.strides[i] for i in range(t.ndim))
    else:
        strides = tuple(int(np.prod(shape[i + 1:], dtype=np.int64)) for i in range(t.ndim))
    dtype = _DLPACK.get((t.code, t.bits), f"code {t.code}, {t.bits} bits") if t.lanes == 1 else "vector lanes"
    return View((t.data or 0) + t.byte_offset, dtype, shape, strides, L.CUDA if t.device_type == 2 else L.CPU,
                t.device_id, (x, capsule))


def view(x, name):
    """The View of x; TypeError if it isn't an array."""
    if is_torch(x):
        return _from_torch(x)
    if isinstance(x, np.ndarray):
        return _from_numpy(x)
    if hasattr(x, "__dlpack__"):
        return _from_dlpack(x)
    raise TypeError(f"{name}: expected a NumPy array, a torch tensor or a DLPack object, got "
                    f"{type(x).__name__}")


def like(x, shape, dtype):
    """A new uninitialised array beside x (same library and device), of one of our dtypes."""
    if is_torch(x):
        torch = torch_module()
        kind = {L.F32: torch.float32, L.F16: torch.float16, L.BF16: torch.bfloat16}[dtype]
        return torch.empty(shape, dtype=kind, device=x.device)
    v = view(x, "q")
    if v.device != L.CPU:
        raise TypeError("out=: give the output array for CUDA arrays of other libraries than torch")
    if dtype == L.BF16:
        import ml_dtypes
        return np.empty(shape, dtype=ml_dtypes.bfloat16)
    return np.empty(shape, dtype=np.float32 if dtype == L.F32 else np.float16)
