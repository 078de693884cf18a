"""_append.py — attn.kv_append: new K/V rows into a cache, in place, with rotary embedding on K and Q."""
import ctypes as c

from . import _library as L
from ._api import _DTYPE_NAMES, _axes, _check_last, _execute, _paged, _stride, _vector
from ._arrays import is_torch, like, view
from ._autograd import refuse_gradients
from ._ready import append_ready, arrays_signature, ready_calls


class _Append:
    """Problem and tensors of one append."""

    def __init__(self, k_cache, v_cache, k_new, v_new, layout):
        self.problem = L.Problem(struct_size=c.sizeof(L.Problem), pass_=L.KV_APPEND)
        self.tensors = L.Tensors(struct_size=c.sizeof(L.Tensors))
        self.layout, self.keep = layout, []
        self.q = self.k = view(k_cache, "k_cache")      # _execute takes the device from .q
        p, t = self.problem, self.tensors
        p.device, p.dtype = self.k.device, self.k.dtype
        self.new = view(k_new, "k_new")
        p.new_dtype = self.new.dtype
        self.v = self._second(v_cache, "v_cache", self.k, p.dtype) if v_cache is not None else None
        self.v_new = self._second(v_new, "v_new", self.new, p.new_dtype) if v_new is not None else None
        if (self.v is None) != (self.v_new is None):
            raise TypeError("v_cache and v_new go together (neither: K alone, V being its first columns)")
        for a, name in ((self.k, "k_cache"), (self.new, "k_new")):
            self._check(a, name)
        t.k, t.k_new = self.k.pointer, self.new.pointer
        if self.v is None:
            p.v_in_k = 1
        else:
            t.v, t.v_new = self.v.pointer, self.v_new.pointer

    def _second(self, x, name, like_k, dtype):
        v = view(x, name)
        self._check(v, name)
        if v.dtype != dtype:
            raise TypeError(f"{name}: dtype {_DTYPE_NAMES[v.dtype]}, but K has "
                            f"{_DTYPE_NAMES.get(dtype, dtype)}")
        if len(v.shape) != len(like_k.shape) or v.shape[:-1] != like_k.shape[:-1]:
            raise ValueError(f"{name}: shape {v.shape} doesn't fit K's {like_k.shape}")
        return v

    def _check(self, a, name):
        if a.dtype not in _DTYPE_NAMES:
            raise TypeError(f"{name}: dtype must be float32, float16 or bfloat16, not {a.dtype}")
        if (a.device, a.index) != (self.k.device, self.k.index):
            raise ValueError(f"{name}: must be on the device of k_cache")
        _check_last(a, name)

    def _pointer(self, v):
        self.keep.append(v)
        return v.pointer

    def rows(self, cu_new, max_new_len):
        """The new rows: [batch, rows, heads, dim], or packed with cu_seqlens_new."""
        p, a = self.problem, self.new
        axes = _axes(self.layout, len(a.shape), "k_new")
        if (cu_new is not None) != (axes[0] is None):
            raise ValueError("k_new: 3 dims [tokens, heads, dim] go with cu_seqlens_new, and only with it")
        if cu_new is None:
            p.batch, p.new_len = a.shape[0], a.shape[axes[1]]
        else:
            p.batch, p.packed_new, p.new_total = view(cu_new, "cu_seqlens_new").shape[0] - 1, 1, a.shape[0]
            p.new_len = max_new_len if max_new_len is not None else a.shape[0]
            self.tensors.cu_seqlens_new = self._pointer(
                _vector(cu_new, "cu_seqlens_new", p.batch + 1, "int32", p.device))
        p.kv_heads, p.qk_dim = a.shape[axes[2]], a.shape[-1]
        p.k_new_stride = _stride(a, axes)
        if self.v_new is not None:
            p.v_dim, p.v_new_stride = self.v_new.shape[-1], _stride(self.v_new, axes)

    def cache(self, block_table):
        p, k = self.problem, self.k
        axes = _axes(self.layout if block_table is None else "bshd", len(k.shape), "k_cache")
        if axes[0] is None:
            raise ValueError("k_cache: expected 4 dims [batch, capacity, heads, dim] or [pages, page_size, "
                             "heads, dim]")
        if (k.shape[axes[2]], k.shape[-1]) != (p.kv_heads, p.qk_dim):
            raise ValueError(f"k_new: {p.kv_heads} heads of {p.qk_dim}, but k_cache has {k.shape[axes[2]]} "
                             f"of {k.shape[-1]}")
        if block_table is None:
            p.kv_batch, p.kv_len = k.shape[0], k.shape[axes[1]]
        else:
            table = _paged(p, k, block_table)
            p.kv_len = table.shape[1] * k.shape[1]
            self.tensors.block_table = self._pointer(table)
        p.k_stride = _stride(k, axes)
        if self.v is not None:
            p.v_stride = _stride(self.v, axes)

    def vectors(self, **vectors):
        p, t = self.problem, self.tensors
        for name, x in vectors.items():
            if x is not None:
                flag = "has_" + name
                if hasattr(p, flag):
                    setattr(p, flag, 1)
                setattr(t, name, self._pointer(_vector(x, name, p.batch, "int32", p.device)))

    def rotary(self, cos, sin, interleaved, first, q_fixed):
        p, t = self.problem, self.tensors
        if (cos is None) != (sin is None):
            raise TypeError("rotary_cos and rotary_sin go together")
        if cos is None:
            return
        cosines, sines = view(cos, "rotary_cos"), view(sin, "rotary_sin")
        for a, name in ((cosines, "rotary_cos"), (sines, "rotary_sin")):
            self._check(a, name)
            if len(a.shape) != 2 or a.shape != cosines.shape or a.dtype != cosines.dtype:
                raise ValueError(f"{name}: expected [positions, rotary_dim / 2], the same for both tables")
            if a.shape[0] > 1 and a.strides[0] != cosines.strides[0]:
                raise ValueError("rotary_sin: its rows must have the distance of those of rotary_cos")
        p.rotary_rows, p.rotary_dim = cosines.shape[0], 2 * cosines.shape[1]
        p.rotary_stride = max(cosines.strides[0], cosines.shape[1])
        p.rotary_dtype, p.rotary_first = cosines.dtype, first
        p.rotary_interleaved, p.rotary_q_fixed = int(bool(interleaved)), int(bool(q_fixed))
        t.rotary_cos, t.rotary_sin = self._pointer(cosines), self._pointer(sines)

    def queries(self, q, q_out, cu_q, max_q_len):
        p, t = self.problem, self.tensors
        a = view(q, "q")
        self._check(a, "q")
        axes = _axes(self.layout, len(a.shape), "q")
        if a.dtype != p.new_dtype:
            raise TypeError(f"q: dtype {_DTYPE_NAMES[a.dtype]}, but k_new is {_DTYPE_NAMES[p.new_dtype]}")
        if (cu_q is not None) != (axes[0] is None):
            raise ValueError("q: 3 dims [tokens, heads, dim] go with cu_seqlens_q, and only with it")
        if a.shape[-1] != p.qk_dim or (axes[0] is not None and a.shape[0] != p.batch):
            raise ValueError(f"q: shape {a.shape} doesn't fit {p.batch} sequences of head dim {p.qk_dim}")
        p.write_q, p.q_heads, p.q_stride = 1, a.shape[axes[2]], _stride(a, axes)
        p.q_len = a.shape[axes[1]]
        if cu_q is not None:
            p.packed_q, p.q_total = 1, a.shape[0]
            p.q_len = max_q_len if max_q_len is not None else a.shape[0]
            t.cu_seqlens_q = self._pointer(_vector(cu_q, "cu_seqlens_q", p.batch + 1, "int32", p.device))
        if q_out is None:
            q_out = like(q, a.shape, p.dtype)
        o = view(q_out, "q_out")
        self._check(o, "q_out")
        if o.shape != a.shape or o.dtype != p.dtype:
            raise ValueError(f"q_out: expected shape {a.shape} in the dtype of the cache")
        p.q_out_stride = _stride(o, axes)
        t.q, t.q_out = self._pointer(a), self._pointer(o)
        return q_out


def kv_append(k_cache, v_cache, k_new, v_new, *, seqused_kv=None, cu_seqlens_new=None, max_new_len=None,
              block_table=None, kv_batch_index=None, leftpad_kv=None, rotary_cos=None, rotary_sin=None,
              rotary_interleaved=False, rotary_first=0, rotary_offsets=None, rotary_q_fixed=False, q=None,
              q_out=None, cu_seqlens_q=None, max_q_len=None, seqused_q=None, seqused_kv_out=None,
              layout="bshd", kernel=None, threads=0):
    """Write new K/V rows into a cache, in place: row i of sequence b goes to slot seqused_kv[b] + i.

    k_cache, v_cache [batch, capacity, kv_heads, dim] (kv_batch_index, int32 [batch]: the row of each
    sequence), or pages [pages, page_size, kv_heads, dim] with block_table (int32 [batch, columns]). k_new,
    v_new [batch, rows, kv_heads, dim], or packed [tokens, kv_heads, dim] with cu_seqlens_new (int32 [batch +
    1]); another float dtype than the cache's is converted. v_cache = v_new = None: K alone (V being its first
    columns). seqused_kv (int32 [batch]): tokens in the cache so far; without it the cache is empty.

    rotary_cos, rotary_sin [positions, rotary_dim / 2] turn columns rotary_first .. rotary_first + rotary_dim
    of each new K row at the position of its slot (+ rotary_offsets[b]); interleaved: pairs (0, 1), (2, 3),
    ..., otherwise halves. q [batch, q_len, q_heads, dim] (or packed with cu_seqlens_q) is turned and
    converted likewise into q_out, row i at the position of new row i, or all at that of row 0 with
    rotary_q_fixed; q_out=q works in place. seqused_kv_out (int32 [batch]) receives the lengths after the
    append.

    CUDA tensors: on the current stream, without synchronisation; rows that have no slot there are dropped, on
    the CPU that is a ValueError and nothing is written. Returns q_out, or None without q.
    """
    torch_tensors = is_torch(k_cache)
    given = [(name, x) for name, x in (
        ("k", k_cache), ("v", v_cache), ("k_new", k_new), ("v_new", v_new), ("q", q), ("q_out", q_out),
        ("rotary_cos", rotary_cos), ("rotary_sin", rotary_sin), ("rotary_offsets", rotary_offsets),
        ("seqused_kv", seqused_kv), ("cu_seqlens_new", cu_seqlens_new), ("block_table", block_table),
        ("kv_batch_index", kv_batch_index), ("leftpad_kv", leftpad_kv), ("cu_seqlens_q", cu_seqlens_q),
        ("seqused_q", seqused_q), ("seqused_kv_out", seqused_kv_out)) if x is not None]
    key = arrays_signature(torch_tensors, given, "append", max_new_len, rotary_interleaved, rotary_first,
                           rotary_q_fixed, max_q_len, layout, kernel, threads)
    ready = ready_calls.get(key)
    if ready is not None:
        return ready(given, q_out)
    if torch_tensors:
        refuse_gradients(k_cache, v_cache, k_new, v_new, q)
    call = _Append(k_cache, v_cache, k_new, v_new, layout)
    call.rows(cu_seqlens_new, max_new_len)
    call.cache(block_table)
    call.vectors(seqused_kv=seqused_kv, kv_batch_index=kv_batch_index, leftpad_kv=leftpad_kv,
                 seqused_kv_out=seqused_kv_out, seqused_q=seqused_q if q is not None else None)
    call.rotary(rotary_cos, rotary_sin, rotary_interleaved, rotary_first, rotary_q_fixed)
    if rotary_cos is not None:
        call.vectors(rotary_offsets=rotary_offsets)
    turned = call.queries(q, q_out, cu_seqlens_q, max_q_len) if q is not None else None
    plan = _execute(call, k_cache, kernel, threads)
    if key is not None and (q is not None or q_out is None):
        if len(ready_calls) >= 256:
            ready_calls.clear()
        ready_calls[key] = append_ready(torch_tensors, plan, call.problem.device == L.CUDA, call.k.index,
                                        turned)
    return turned
