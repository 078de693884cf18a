"""_library.py — libattn.so through ctypes: the structs of attn/attn.h, and errors as Python exceptions."""
import ctypes as c
import os
import pathlib
import sys

FORWARD, KV_APPEND = 0, 2
CPU, CUDA = 0, 1
F32, F16, BF16 = 1, 2, 3
ALIBI_PER_HEAD, ALIBI_PER_BATCH_HEAD = 1, 2
OK, INVALID, UNSUPPORTED, NO_MEMORY, DEVICE_ERROR = 0, -1, -2, -3, -4

i32, i64, f32, ptr = c.c_int32, c.c_int64, c.c_float, c.c_void_p


class Stride(c.Structure):
    _fields_ = [(n, i64) for n in ("batch", "seq", "head")]


class LseStride(c.Structure):
    _fields_ = [(n, i64) for n in ("batch", "head", "seq")]


class ScoreStride(c.Structure):
    _fields_ = [(n, i64) for n in ("batch", "head", "q", "kv")]


class Problem(c.Structure):
    """attn_problem, field by field (tests compare the layout with the header)."""
    _fields_ = (
        [("struct_size", c.c_uint32)]
        + [(n, i32) for n in ("pass_", "device", "dtype", "o_dtype", "bias_dtype")]
        + [(n, i64) for n in ("batch", "q_heads", "kv_heads", "q_len", "kv_len", "qk_dim", "v_dim")]
        + [("kv_empty", i32), ("v_in_k", i32)]
        + [(n, Stride) for n in ("q_stride", "k_stride", "v_stride", "o_stride")]
        + [("lse_stride", LseStride), ("scale", f32), ("softcap", f32)]
        + [(n, i32) for n in ("causal", "top_left", "window", "has_mask")]
        + [("window_left", i64), ("window_right", i64), ("bias_stride", ScoreStride),
           ("mask_stride", ScoreStride)]
        + [("alibi", i32), ("has_sinks", i32)]
        + [(n, i32) for n in ("packed_q", "packed_kv", "has_seqused_q", "has_seqused_kv", "has_leftpad_kv",
                              "has_kv_batch_index")]
        + [(n, i64) for n in ("q_total", "kv_total", "kv_batch", "page_size", "pages", "block_table_cols",
                              "block_table_stride")]
        + [("strict", i32), ("reserved", i32)]
        + [("new_len", i64), ("packed_new", i32), ("new_dtype", i32), ("new_total", i64)]
        + [(n, Stride) for n in ("k_new_stride", "v_new_stride", "q_out_stride")]
        + [(n, i32) for n in ("write_q", "rotary_dim", "rotary_first", "rotary_interleaved", "rotary_q_fixed",
                              "has_rotary_offsets", "rotary_dtype", "reserved_append")]
        + [("rotary_rows", i64), ("rotary_stride", i64)]
    )


class Tensors(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("reserved", c.c_uint32)] + [
        (n, ptr) for n in ("q", "k", "v", "o", "lse", "bias", "mask", "alibi_slopes", "sinks", "cu_seqlens_q",
                           "cu_seqlens_kv", "seqused_q", "seqused_kv", "leftpad_kv", "kv_batch_index",
                           "block_table", "k_new", "v_new", "q_out", "rotary_cos", "rotary_sin",
                           "rotary_offsets", "cu_seqlens_new", "seqused_kv_out", "schedule")]


class Options(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("threads", i32), ("kernel", c.c_char_p), ("parallel_for", ptr),
                ("parallel_context", ptr), ("cuda_device", i32), ("splits", i32), ("checked", i32),
                ("reserved", i32)]


class KernelInfo(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("pass_", i32), ("name", c.c_char_p), ("summary", c.c_char_p),
                ("unavailable", c.c_char_p), ("device", i32), ("dtypes", c.c_uint32)]


class AttnError(RuntimeError):
    """A call that the library could not do; str() is its message."""


class Unsupported(AttnError, NotImplementedError):
    """A valid problem that no kernel here computes. attn.explain(...) says why."""


def _candidates():
    if os.environ.get("ATTN_LIBRARY"):
        yield pathlib.Path(os.environ["ATTN_LIBRARY"])
        return
    here = pathlib.Path(__file__).resolve().parent
    name = "libattn.dylib" if sys.platform == "darwin" else "libattn.so"
    yield here / name
    for folder in ("build", "build-python"):
        yield here.parent.parent / folder / name
    yield pathlib.Path(name)


def _load():
    tried = []
    for path in _candidates():
        try:
            return c.CDLL(str(path))
        except OSError as error:
            tried.append(f"  {path}: {error}")
    raise ImportError("libattn.so was not found; build it (cmake --build build) or set ATTN_LIBRARY. Tried:\n"
                      + "\n".join(tried))


lib = _load()


def _declare(name, result, *arguments):
    function = getattr(lib, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


plan_create = _declare("attn_plan_create", i32, c.POINTER(ptr), c.POINTER(Problem), c.POINTER(Options))
plan_destroy = _declare("attn_plan_destroy", None, ptr)
plan_kernel = _declare("attn_plan_kernel", c.c_char_p, ptr)
plan_workspace = _declare("attn_plan_workspace", c.c_size_t, ptr)
plan_schedule_size = _declare("attn_plan_schedule_size", c.c_size_t, ptr)
plan_schedule = _declare("attn_plan_schedule", i32, ptr, c.POINTER(Tensors), ptr, ptr)
run = _declare("attn_run", i32, ptr, c.POINTER(Tensors), ptr, ptr)
explain = _declare("attn_explain", c.c_int, c.POINTER(Problem), c.POINTER(Options), c.c_char_p, c.c_size_t)
kernel_describe = _declare("attn_kernel_describe", i32, c.c_int, c.POINTER(KernelInfo))
last_error = _declare("attn_last_error", c.c_char_p)
version_string = _declare("attn_version_string", c.c_char_p)
build_info = _declare("attn_build_info", c.c_char_p)
cpu_isa = _declare("attn_cpu_isa", c.c_char_p)
cpu_threads = _declare("attn_cpu_threads", c.c_int)


def check(status):
    if status == OK:
        return
    message = last_error().decode(errors="replace")
    if status == INVALID:
        raise ValueError(message)
    if status == UNSUPPORTED:
        raise Unsupported(message)
    if status == NO_MEMORY:
        raise MemoryError(message)
    raise AttnError(message)


class Plan:
    """One attn_plan; destroyed with the object. Immutable, shared by all threads."""
    __slots__ = ("handle", "workspace", "schedule", "kernel")

    def __init__(self, problem, kernel=None, threads=0, cuda_device=0):
        self.handle = None
        options = Options(struct_size=c.sizeof(Options), threads=threads, cuda_device=cuda_device,
                          kernel=kernel.encode() if kernel else None)
        handle = ptr()
        check(plan_create(c.byref(handle), c.byref(problem), c.byref(options)))
        self.handle = handle.value
        self.workspace = plan_workspace(self.handle)
        self.schedule = plan_schedule_size(self.handle)
        self.kernel = plan_kernel(self.handle).decode()

    def __del__(self):
        if getattr(self, "handle", None) and plan_destroy is not None:
            plan_destroy(self.handle)
