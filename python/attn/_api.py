"""_api.py — attn.attention: arrays in, arrays out; plans are cached by everything but the pointers."""
import collections
import ctypes as c
import threading

import numpy as np

from . import _library as L
from ._arrays import is_torch, like, torch_module, view
from ._cuda import cuda_workspace, raw_stream
from ._ready import cpu_workspace, given_extras, ready_calls, remember, signature
from ._autograd import refuse_gradients

_DTYPE_NAMES = {L.F32: "float32", L.F16: "float16", L.BF16: "bfloat16"}
_plans = collections.OrderedDict()     # key -> Plan, least recently used first
_plans_lock = threading.Lock()
_PLANS_KEPT = 256


# ---- shapes ------------------------------------------------------------------------------------------------

def _axes(layout, ndim, name):
    """Positions of (batch, seq, head); batch None for packed [tokens, heads, dim]."""
    if ndim == 3:
        return None, 0, 1
    if ndim != 4:
        raise ValueError(f"{name}: expected 4 dims [batch, seq, heads, dim] or 3 packed dims, got {ndim}")
    if layout == "bshd":
        return 0, 1, 2
    if layout == "bhsd":
        return 0, 2, 1
    raise ValueError(f"layout = {layout!r}: must be 'bshd' or 'bhsd'")


def _stride(v, axes):
    b, s, h = axes
    stride = L.Stride(0 if b is None else v.strides[b], v.strides[s], v.strides[h])
    if not (stride.batch or stride.seq or stride.head):
        if max(1 if b is None else v.shape[b], v.shape[s], v.shape[h]) > 1:
            raise ValueError("an array that repeats one row along every dim: give it a real stride (copy it)")
        stride.seq = 1        # all zero would mean "dense"; with one row any other value does
    return stride


def _check_last(v, name):
    if v.shape[-1] > 1 and v.strides[-1] != 1:
        raise ValueError(f"{name}: the last dim must be contiguous, its stride is {v.strides[-1]} elements")


def _vector(x, name, length, dtype, device):
    """A contiguous 1-D view; Python lists become arrays on the CPU."""
    if isinstance(x, (list, tuple)):
        x = np.asarray(x, dtype="int32" if dtype == "int32" else "float32")
    v = view(x, name)
    if v.dtype != dtype:
        raise TypeError(f"{name}: dtype must be {_DTYPE_NAMES.get(dtype, dtype)}")
    if v.device != device:
        raise ValueError(f"{name}: must be on the device of q")
    if v.shape != (length,):
        raise ValueError(f"{name}: shape {v.shape}, expected ({length},)")
    if length > 1 and v.strides[0] != 1:
        raise ValueError(f"{name}: must be contiguous")
    return v


# ---- one call ----------------------------------------------------------------------------------------------

def _paged(p, k, block_table):
    """Check a block table and make p's pages those of k, [pages, page_size, heads, dim]. @return a view of
    the table."""
    table = view(block_table, "block_table")
    if table.dtype != "int32" or len(table.shape) != 2 or table.shape[0] != p.batch:
        raise ValueError(f"block_table: expected int32 [batch = {p.batch}, pages], got {table.shape}")
    if table.shape[1] > 1 and table.strides[1] != 1:
        raise ValueError("block_table: the last dim must be contiguous")
    p.pages, p.page_size = k.shape[0], k.shape[1]
    p.block_table_cols, p.block_table_stride = table.shape[1], max(table.strides[0], table.shape[1])
    return table


class _Call:
    """Problem and tensors of one call, filled option by option."""

    def __init__(self, q, k, v, layout):
        self.q, self.k = view(q, "q"), view(k, "k")
        self.problem = p = L.Problem(struct_size=c.sizeof(L.Problem))
        self.tensors = L.Tensors(struct_size=c.sizeof(L.Tensors))
        self.keep = []
        self.v = view(v, "v") if v is not None else None
        self.layout = layout
        for a, name in ((self.q, "q"), (self.k, "k"), (self.v, "v")):
            if a is not None:
                self._check_input(a, name)
        p.device, p.dtype = self.q.device, self.q.dtype

    def _check_input(self, a, name):
        if a.dtype not in _DTYPE_NAMES:
            raise TypeError(f"{name}: dtype must be float32, float16 or bfloat16, not {a.dtype}")
        if a.dtype != self.q.dtype:
            raise TypeError(f"{name}: dtype {_DTYPE_NAMES[a.dtype]}, but q is {_DTYPE_NAMES[self.q.dtype]}")
        if (a.device, a.index) != (self.q.device, self.q.index):
            raise ValueError(f"{name}: must be on the device of q")
        _check_last(a, name)

    def lengths(self, cu_q, cu_kv, max_q_len, max_kv_len, block_table):
        p, t, q, k = self.problem, self.tensors, self.q, self.k
        qa = _axes(self.layout, len(q.shape), "q")
        p.q_heads, p.qk_dim = q.shape[qa[2]], q.shape[-1]
        if (cu_q is not None) != (qa[0] is None):
            raise ValueError("q: 3 dims [tokens, heads, dim] go with cu_seqlens_q, and only with it")
        if cu_q is None:
            p.batch, p.q_len = q.shape[0], q.shape[qa[1]]
        else:
            cu = view(cu_q, "cu_seqlens_q")
            p.batch, p.packed_q, p.q_total = cu.shape[0] - 1, 1, q.shape[0]
            p.q_len = max_q_len if max_q_len is not None else q.shape[0]
            t.cu_seqlens_q = self._keep(_vector(cu_q, "cu_seqlens_q", p.batch + 1, "int32", p.device))
        p.q_stride = _stride(q, qa)
        self._kv_lengths(cu_kv, max_kv_len, block_table)

    def _kv_lengths(self, cu_kv, max_kv_len, block_table):
        p, t, k = self.problem, self.tensors, self.k
        ka = _axes(self.layout if block_table is None else "bshd", len(k.shape), "k")
        p.kv_heads = k.shape[ka[2]]
        if k.shape[-1] != p.qk_dim:
            raise ValueError(f"k: head dim {k.shape[-1]}, but q has {p.qk_dim}")
        if (cu_kv is not None) != (ka[0] is None):
            raise ValueError("k: 3 dims [tokens, heads, dim] go with cu_seqlens_kv, and only with it")
        if cu_kv is not None:
            p.packed_kv, p.kv_total = 1, k.shape[0]
            p.kv_len = max_kv_len if max_kv_len is not None else k.shape[0]
            t.cu_seqlens_kv = self._keep(_vector(cu_kv, "cu_seqlens_kv", p.batch + 1, "int32", p.device))
        elif block_table is not None:
            self._pages(block_table, max_kv_len)
        else:
            p.kv_batch, p.kv_len = k.shape[0], k.shape[ka[1]]
        p.kv_empty = int(p.kv_len == 0)
        p.k_stride = _stride(k, ka)
        self._value(ka)

    def _pages(self, block_table, max_kv_len):
        p, k = self.problem, self.k
        table = _paged(p, k, block_table)
        p.kv_len = max_kv_len if max_kv_len is not None else table.shape[1] * k.shape[1]
        self.tensors.block_table = self._keep(table)

    def _value(self, ka):
        p, v = self.problem, self.v
        if v is None:
            return
        if len(v.shape) != len(self.k.shape) or v.shape[:-1] != self.k.shape[:-1]:
            raise ValueError(f"v: shape {v.shape} doesn't fit k {self.k.shape}")
        p.v_dim, p.v_stride = v.shape[-1], _stride(v, ka)

    def _keep(self, v):
        self.keep.append(v)
        return v.pointer

    def scores(self, causal, top_left, window, scale, softcap):
        p = self.problem
        p.causal, p.top_left, p.softcap = int(bool(causal)), int(bool(top_left)), softcap
        if scale is not None:
            if scale == 0:
                raise ValueError("scale = 0: every key would weigh the same; use a tiny value if you mean it")
            p.scale = scale
        if window is not None and tuple(window) != (-1, -1):
            left, right = window
            p.window, p.window_left = 1, -1 if left is None else left
            p.window_right = -1 if right is None else right

    def score_tensor(self, x, name):
        """Bias or mask, broadcast to [batch, heads, q_len, kv_len] by zero strides."""
        v = view(x, name)
        p = self.problem
        if v.device != p.device:
            raise ValueError(f"{name}: must be on the device of q")
        if len(v.shape) > 4:
            raise ValueError(f"{name}: at most 4 dims [batch, heads, q_len, kv_len]")
        full = (p.batch, p.q_heads, p.q_len, p.kv_len)
        shape = (1,) * (4 - len(v.shape)) + tuple(v.shape)
        strides = (0,) * (4 - len(v.shape)) + tuple(v.strides)
        for have, want, axis in zip(shape, full, ("batch", "heads", "q_len", "kv_len")):
            if have not in (1, want):
                raise ValueError(f"{name}: shape {v.shape} doesn't broadcast to {full} ({axis})")
        stride = L.ScoreStride(*(0 if n == 1 else s for n, s in zip(shape, strides)))
        if not any(getattr(stride, n) for n in ("batch", "head", "q", "kv")):  # all zero would mean "dense"
            spare = [n for n, extent in zip(("batch", "head", "q", "kv"), full) if extent == 1]
            if not spare:
                raise ValueError(f"{name}: one value for all of {full}; leave it out or expand one dim")
            setattr(stride, spare[0], 1)                                           # harmless: extent 1
        return v, stride

    def masks(self, bias, mask, alibi_slopes, sinks):
        p, t = self.problem, self.tensors
        if bias is not None:
            v, p.bias_stride = self.score_tensor(bias, "bias")
            if v.dtype not in _DTYPE_NAMES:
                raise TypeError(f"bias: dtype must be float32, float16 or bfloat16, not {v.dtype}")
            p.bias_dtype, t.bias = v.dtype, self._keep(v)
        if mask is not None:
            v, p.mask_stride = self.score_tensor(mask, "mask")
            if v.dtype != "uint8":
                raise TypeError(f"mask: dtype must be bool or uint8, not {v.dtype}")
            p.has_mask, t.mask = 1, self._keep(v)
        if alibi_slopes is not None:
            v = view(alibi_slopes, "alibi_slopes")
            per_batch = len(v.shape) == 2
            if v.dtype != L.F32 or v.shape != ((p.batch, p.q_heads) if per_batch else (p.q_heads,)):
                raise ValueError("alibi_slopes: expected float32 [heads] or [batch, heads]")
            if v.strides[-1] != 1 or (per_batch and v.strides[0] != p.q_heads):
                raise ValueError("alibi_slopes: must be contiguous")
            p.alibi, t.alibi_slopes = (L.ALIBI_PER_BATCH_HEAD if per_batch
                                       else L.ALIBI_PER_HEAD), self._keep(v)
        if sinks is not None:
            p.has_sinks, t.sinks = 1, self._keep(_vector(sinks, "sinks", p.q_heads, L.F32, p.device))

    def ragged(self, **vectors):
        p, t = self.problem, self.tensors
        for name, x in vectors.items():
            if x is not None:
                setattr(p, "has_" + name, 1)
                setattr(t, name, self._keep(_vector(x, name, p.batch, "int32", p.device)))

    def outputs(self, q, out, lse, return_lse):
        """Allocate or check O and LSE; returns them as arrays."""
        p, t = self.problem, self.tensors
        v_dim = p.v_dim or p.qk_dim
        shape = self.q.shape[:-1] + (v_dim,)
        if out is None:
            out = like(q, shape, p.dtype)
        o = view(out, "out")
        _check_last(o, "out")
        elsewhere = (o.device, o.index) != (self.q.device, self.q.index)
        if o.shape != shape or o.dtype not in (p.dtype, L.F32) or elsewhere:
            raise ValueError(f"out: expected shape {shape} in the dtype of q or float32, on its device")
        p.o_dtype, t.o = o.dtype, self._keep(o)
        p.o_stride = _stride(o, _axes(self.layout, len(o.shape), "out"))
        if return_lse:
            rows = (p.q_heads, p.q_total) if p.packed_q else (p.batch, p.q_heads, p.q_len)
            lse = like(q, rows, L.F32) if lse is None else lse
            l = view(lse, "lse")
            if l.shape != rows or l.dtype != L.F32:
                raise ValueError(f"lse: expected float32 {rows}")
            s = l.strides if len(rows) == 3 else (0,) + tuple(l.strides)
            p.lse_stride = L.LseStride(*s)
            t.lse = self._keep(l)
        return out, lse

    def pointers(self):
        t = self.tensors
        t.q, t.k = self.q.pointer, self.k.pointer
        if self.v is not None:
            t.v = self.v.pointer


def _plan(problem, kernel, threads, cuda_device):
    key = (bytes(problem), kernel, threads, cuda_device)
    plan = _plans.get(key)
    if plan is not None:
        return plan
    plan = L.Plan(problem, kernel, threads, cuda_device)
    with _plans_lock:
        _plans[key] = plan
        while len(_plans) > _PLANS_KEPT:
            _plans.popitem(last=False)
    return plan


class Schedule:
    """How a GPU's decoding kernel cuts the keys of a batch, made by the first call that gets it, for all
    calls with the same shapes, options and lengths: the layers of one decoding step. Other kernels don't look
    at it."""
    __slots__ = ("buffer",)

    def __init__(self):
        self.buffer = None

    def pointer(self, plan, tensors, index, stream):
        if self.buffer is None:
            self.buffer = torch_module().empty(plan.schedule, dtype=torch_module().uint8,
                                               device=f"cuda:{index}")
            L.check(L.plan_schedule(plan.handle, c.byref(tensors), self.buffer.data_ptr(), stream))
        return self.buffer.data_ptr()


def _execute(call, q, kernel, threads, schedule=None):
    p = call.problem
    if p.device == L.CPU:
        plan = _plan(p, kernel, threads, 0)
        L.check(L.run(plan.handle, c.byref(call.tensors),
                      cpu_workspace(plan.workspace) if plan.workspace else None, None))
        return plan
    plan = _plan(p, kernel, threads, call.q.index)
    workspace = stream = None
    if torch_module() is not None:
        stream = raw_stream(call.q.index)
    if plan.workspace:
        if torch_module() is None:
            raise L.AttnError("a CUDA workspace is needed: import torch to allocate it")
        workspace = cuda_workspace(plan.workspace, call.q.index, stream)
    if schedule is not None and plan.schedule and torch_module() is not None:
        call.tensors.schedule = schedule.pointer(plan, call.tensors, call.q.index, stream)
    L.check(L.run(plan.handle, c.byref(call.tensors), workspace.data_ptr() if workspace is not None else None,
                  stream))
    return plan


def attention(q, k, v=None, *, causal=False, top_left=False, window=None, scale=None, softcap=0.0,
              alibi_slopes=None, bias=None, mask=None, sinks=None, cu_seqlens_q=None, cu_seqlens_kv=None,
              max_q_len=None, max_kv_len=None, seqused_q=None, seqused_kv=None, leftpad_kv=None,
              kv_batch_index=None, block_table=None, v_dim=None, layout="bshd", strict=False,
              return_lse=False, out=None, lse=None, kernel=None, threads=0, schedule=None):
    """softmax(scale * q k^T + bias, masked) v, exactly.

    q [batch, q_len, q_heads, qk_dim], k [batch, kv_len, kv_heads, qk_dim], v [batch, kv_len, kv_heads, v_dim]
    (layout="bhsd": heads before seq), or packed [tokens, heads, dim] with cu_seqlens_q / cu_seqlens_kv (int32
    [batch + 1]), or k and v as pages [pages, page_size, kv_heads, dim] with block_table (int32 [batch,
    columns]). v=None with v_dim=n: V is the first n columns of k. NumPy arrays, torch tensors (CPU, CUDA:
    current stream, no synchronisation) or DLPack objects; float32, float16, bfloat16; any strides with a
    contiguous last dim.

    causal and window=(left, right) are aligned bottom-right (top_left=True: top-left); -1 or None is
    unbounded. bias (float) and mask (bool, True = visible) broadcast to [batch, heads, q_len, kv_len]. sinks:
    float32 [heads]. seqused_q, seqused_kv, leftpad_kv, kv_batch_index: int32 [batch].
    schedule: an attn.Schedule() that the layers of one decoding step share.
    A row that sees no key gives 0 (and LSE -inf). LSE is float32, natural log, [batch, heads, q_len].

    Returns out, or (out, lse) with return_lse. Raises TypeError, ValueError, attn.Unsupported,
    attn.AttnError.
    """
    torch_tensors, key, extras = is_torch(q), None, ()
    if out is lse is schedule is None:
        if not (bias is mask is alibi_slopes is sinks is cu_seqlens_q is cu_seqlens_kv is seqused_q
                is seqused_kv is leftpad_kv is kv_batch_index is block_table is None):
            extras = given_extras(bias, mask, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_kv, seqused_q,
                                  seqused_kv, leftpad_kv, kv_batch_index, block_table)
        key = signature(torch_tensors, q, k, v, extras, causal, top_left, window and tuple(window), scale,
                        softcap, layout, strict, return_lse, kernel, threads, v_dim, max_q_len, max_kv_len)
        ready = ready_calls.get(key)
        if ready is not None:
            return ready(q, k, v, extras)
    if torch_tensors:
        refuse_gradients(q, k, v, bias)
    call = _make_call(q, k, v, causal, top_left, window, scale, softcap, alibi_slopes, bias, mask, sinks,
                      cu_seqlens_q, cu_seqlens_kv, max_q_len, max_kv_len, seqused_q, seqused_kv, leftpad_kv,
                      kv_batch_index, block_table, v_dim, layout, strict)
    out, lse = call.outputs(q, out, lse, return_lse)
    call.pointers()
    plan = _execute(call, q, kernel, threads, schedule)
    if key is not None:
        remember(key, torch_tensors, q, call, plan, out, lse)
    return (out, lse) if return_lse else out


def _make_call(q, k, v, causal, top_left, window, scale, softcap, alibi_slopes, bias, mask, sinks,
               cu_seqlens_q, cu_seqlens_kv, max_q_len, max_kv_len, seqused_q, seqused_kv, leftpad_kv,
               kv_batch_index, block_table, v_dim, layout, strict):
    if v is None and v_dim is None:
        raise TypeError("v is missing (or give v_dim if V is the first columns of k)")
    call = _Call(q, k, v, layout)
    if v is None:
        call.problem.v_in_k, call.problem.v_dim = 1, v_dim
    call.lengths(cu_seqlens_q, cu_seqlens_kv, max_q_len, max_kv_len, block_table)
    call.scores(causal, top_left, window, scale, softcap)
    call.masks(bias, mask, alibi_slopes, sinks)
    call.ragged(seqused_q=seqused_q, seqused_kv=seqused_kv, leftpad_kv=leftpad_kv,
                kv_batch_index=kv_batch_index)
    call.problem.strict = int(bool(strict))
    return call


def explain(q, k, v=None, **options):
    """One line per kernel: chosen, fits, or why not. Takes the arguments of attention()."""
    import inspect
    kernel, threads = options.pop("kernel", None), options.pop("threads", 0)
    for name in ("return_lse", "out", "lse", "schedule"):
        options.pop(name, None)
    defaults = {n: p.default for n, p in inspect.signature(attention).parameters.items()
                if n not in ("q", "k", "v", "return_lse", "out", "lse", "kernel", "threads", "schedule")}
    unknown = set(options) - set(defaults)
    if unknown:
        raise TypeError(f"unknown options: {sorted(unknown)}")
    call = _make_call(q, k, v, **{**defaults, **options})
    choice = L.Options(struct_size=c.sizeof(L.Options), threads=threads,
                       kernel=kernel.encode() if kernel else None)
    size = L.explain(c.byref(call.problem), c.byref(choice), None, 0) + 1
    text = c.create_string_buffer(size)
    L.explain(c.byref(call.problem), c.byref(choice), text, size)
    return text.value.decode()


def info():
    """What this library file is: version, build, ISA, threads, kernels."""
    kernels, k = [], L.KernelInfo(struct_size=c.sizeof(L.KernelInfo))
    index = 0
    while L.kernel_describe(index, c.byref(k)) == L.OK:
        kernels.append({"name": k.name.decode(), "device": "cuda" if k.device == L.CUDA else "cpu",
                        "summary": (k.summary or b"").decode(),
                        "unavailable": k.unavailable.decode() if k.unavailable else None,
                        "dtypes": [n for code, n in _DTYPE_NAMES.items() if k.dtypes >> code & 1]})
        index += 1
    return {"version": L.version_string().decode(), "build": L.build_info().decode(),
            "isa": L.cpu_isa().decode(), "threads": L.cpu_threads(), "kernels": kernels}


def merge(outs, lses):
    """Combine partial results over disjoint key ranges: (out, lse) of the union.

    outs: sequence of arrays [batch, q_len, heads, v_dim]; lses: float32 [batch, heads, q_len] each, natural
    log, -inf for a part that saw no key. Associative and commutative up to rounding; (0, -inf) is the
    identity. Keep partial outputs in float32: bfloat16 partials lose what the merge needs.
    """
    if is_torch(outs[0]):
        torch = torch_module()
        lse = torch.stack(list(lses))
        top = lse.amax(0)
        safe = torch.where(torch.isneginf(top), torch.zeros_like(top), top)
        weight = (lse - safe).exp()
        total = weight.sum(0)
        share = torch.where(total > 0, weight / total, torch.zeros_like(weight))
        out = (torch.stack([o.float() for o in outs]) * share.transpose(-1, -2).unsqueeze(-1)).sum(0)
        return out.to(outs[0].dtype), torch.where(total > 0, safe + total.log(), top)
    lse = np.stack(list(lses))
    top = lse.max(0)
    safe = np.where(np.isneginf(top), 0, top)
    weight = np.exp(lse - safe)
    total = weight.sum(0)
    share = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    out = (np.stack([np.asarray(o, dtype=np.float32)
                     for o in outs]) * np.swapaxes(share, -1, -2)[..., None]).sum(0)
    with np.errstate(divide="ignore"):
        return out.astype(outs[0].dtype), np.where(total > 0, safe + np.log(total), top).astype(np.float32)
