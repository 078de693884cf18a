"""kv_append and flash_attn_with_kvcache on NumPy and torch: the cache bit by bit, rotary and attention in
float64."""
import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import attn

from oracle import attention64, close

try:
    import torch
    from attn.compat import flash_attn, flash_attn_interface
except ImportError:
    torch = None

NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def f64(x):
    if isinstance(x, (np.ndarray, np.generic)):
        return np.asarray(x, dtype=np.float64)
    return x.detach().double().cpu().numpy()


def bits(x):
    """The array's bytes, so that NaN equals itself."""
    x = x if isinstance(x, np.ndarray) else x.detach().cpu().contiguous().view(torch.uint8).numpy()
    return np.ascontiguousarray(x).view(np.uint8)


class Maker:
    """Arrays of one kind: NumPy, torch on the CPU, torch on CUDA."""

    def __init__(self, kind):
        self.kind = kind

    def floats(self, seed, *shape, dtype="float32"):
        x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        if self.kind == "numpy":
            return x.astype(NUMPY[dtype])
        return torch.from_numpy(x).to(getattr(torch, dtype)).to(self.kind)

    def ints(self, values):
        x = np.asarray(values, dtype=np.int32)
        return x if self.kind == "numpy" else torch.from_numpy(x).to(self.kind)

    def copy(self, x):
        return x.copy() if self.kind == "numpy" else x.clone()


def kinds(device):
    return ["numpy", "cpu"] if device == "cpu" else [device]


def rotate64(x, cos, sin, first, position, interleaved):
    """Rotary of x [heads, dim] at one position, pair by pair in float64."""
    x, cosines, sines = f64(x), f64(cos[position]), f64(sin[position])
    y, half = x.copy(), len(cosines)
    for r in range(half):
        a, b = (first + 2 * r, first + 2 * r + 1) if interleaved else (first + r, first + half + r)
        y[:, a] = x[:, a] * cosines[r] - x[:, b] * sines[r]
        y[:, b] = x[:, a] * sines[r] + x[:, b] * cosines[r]
    return y


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_append_writes_the_rows_and_nothing_else(device, data):
    draw = data.draw
    m = Maker(draw(st.sampled_from(kinds(device))))
    dtype, fresh = draw(st.sampled_from(sorted(NUMPY))), draw(st.sampled_from(sorted(NUMPY)))
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dim, dv = draw(st.sampled_from([8, 20, 64])), draw(st.sampled_from([8, 33, 64]))
    rows, page = draw(st.integers(1, 9)), draw(st.sampled_from([0, 1, 3, 16]))
    capacity = rows + draw(st.integers(0, 40))
    used = [draw(st.integers(0, capacity - rows)) for _ in range(batch)]
    turned = 2 * draw(st.integers(0, dim // 2))
    first, interleaved = draw(st.integers(0, dim - turned)), draw(st.booleans())
    if page:
        columns = -(-capacity // page)
        order = np.random.default_rng(1).permutation(batch * columns + 2)
        order = order[:batch * columns].reshape(batch, columns)
        shape = (batch * columns + 2, page)
        place = lambda b, slot: (order[b, slot // page], slot % page)
        where = {"block_table": m.ints(order)}
    else:
        index = np.random.default_rng(2).permutation(batch + 1)[:batch]
        shape = (batch + 1, capacity)
        place = lambda b, slot: (index[b], slot)
        where = {"kv_batch_index": m.ints(index)}
    k, v = m.floats(3, *shape, heads, dim, dtype=dtype), m.floats(4, *shape, heads, dv, dtype=dtype)
    old_k, old_v = m.copy(k), m.copy(v)
    k_new, v_new = m.floats(5, batch, rows, heads, dim, dtype=fresh), m.floats(6, batch, rows, heads, dv,
                                                                               dtype=fresh)
    q = m.floats(7, batch, rows, 2 * heads, dim, dtype=fresh)
    cos, sin = m.floats(8, capacity, turned // 2), m.floats(9, capacity, turned // 2)
    rotary = dict(rotary_cos=cos, rotary_sin=sin, rotary_interleaved=interleaved,
                  rotary_first=first) if turned else {}
    after = m.ints([0] * batch)
    q_out = attn.kv_append(k, v, k_new, v_new, seqused_kv=m.ints(used), seqused_kv_out=after, q=q, **rotary,
                           **where)
    assert list(f64(after)) == [u + rows for u in used]
    for b, i in itertools.product(range(batch), range(rows)):
        at = place(b, used[b] + i)
        want_v = f64(v_new[b, i])
        assert close(f64(v[at]), want_v, dtype)
        assert dtype != fresh or np.array_equal(bits(v[at]), bits(v_new[b, i]))
        turn = (lambda x: rotate64(x, cos, sin, first, used[b] + i, interleaved)) if turned else f64
        assert close(f64(k[at]), turn(k_new[b, i]), dtype) and close(f64(q_out[b, i]), turn(q[b, i]), dtype)
        k[at], v[at] = old_k[at], old_v[at]
    assert np.array_equal(bits(k), bits(old_k)) and np.array_equal(bits(v), bits(old_v))


def test_append_packed_and_in_place(device):
    for kind in kinds(device):
        m = Maker(kind)
        k, v = m.floats(1, 2, 16, 2, 8), m.floats(2, 2, 16, 2, 8)
        k_new, v_new, q = m.floats(3, 5, 2, 8), m.floats(4, 5, 2, 8), m.floats(5, 5, 4, 8)
        before, cu = m.copy(q), m.ints([0, 2, 5])
        cos, sin = m.floats(6, 16, 4), m.floats(7, 16, 4)
        same = attn.kv_append(k, v, k_new, v_new, seqused_kv=m.ints([3, 13]), cu_seqlens_new=cu,
                              rotary_cos=cos, rotary_sin=sin, q=q, q_out=q, cu_seqlens_q=cu)
        assert same is q
        for row, (b, position) in enumerate([(0, 3), (0, 4), (1, 13), (1, 14), (1, 15)]):
            assert np.array_equal(bits(v[b, position]), bits(v_new[row]))
            assert close(f64(k[b, position]), rotate64(k_new[row], cos, sin, 0, position, False), "float32")
            assert close(f64(q[row]), rotate64(before[row], cos, sin, 0, position, False), "float32")


def test_append_again(device):
    """A call like an earlier one takes the short way: other arrays, lengths and positions must count in
    it."""
    for kind in kinds(device):
        m = Maker(kind)
        cos, sin = m.floats(1, 32, 4), m.floats(2, 32, 4)
        for n in range(4):
            k, v = m.floats(10 + n, 2, 16, 2, 8), m.floats(20 + n, 2, 16, 2, 8)
            k_new, v_new = m.floats(30 + n, 2, 1, 2, 8), m.floats(40 + n, 2, 1, 2, 8)
            q = m.floats(50 + n, 2, 1, 4, 8)
            used, after = [n, 15 - n], m.ints([0, 0])
            out = attn.kv_append(k, v, k_new, v_new, seqused_kv=m.ints(used), seqused_kv_out=after,
                                 rotary_cos=cos, rotary_sin=sin, q=q, rotary_offsets=m.ints([n, 2]))
            assert list(f64(after)) == [n + 1, 16 - n]
            for b, position in enumerate([2 * n, 17 - n]):
                assert np.array_equal(bits(v[b, used[b]]), bits(v_new[b, 0]))
                assert close(f64(k[b, used[b]]), rotate64(k_new[b, 0], cos, sin, 0, position, False),
                             "float32")
                assert close(f64(out[b, 0]), rotate64(q[b, 0], cos, sin, 0, position, False), "float32")
        if kind != "cuda":
            with pytest.raises(ValueError, match="seqused_kv"):
                attn.kv_append(k, v, k_new, v_new, seqused_kv=m.ints([16, 0]), seqused_kv_out=after,
                               rotary_cos=cos, rotary_sin=sin, q=q, rotary_offsets=m.ints([0, 0]))


def test_append_latent_cache(device):
    """MLA: one 576-wide row per token, its last 64 columns turned."""
    m = Maker(kinds(device)[-1])
    cache, row = m.floats(1, 3, 64, 1, 576, dtype="bfloat16"), m.floats(2, 1, 1, 1, 576, dtype="bfloat16")
    old, cos, sin = m.copy(cache), m.floats(3, 128, 32), m.floats(4, 128, 32)
    attn.kv_append(cache, None, row, None, seqused_kv=m.ints([65]), block_table=m.ints([[2, 0]]),
                   rotary_cos=cos, rotary_sin=sin, rotary_first=512, rotary_interleaved=True)
    assert np.array_equal(bits(cache[0, 1, :, :512]), bits(row[0, 0, :, :512]))
    assert close(f64(cache[0, 1]), rotate64(row[0, 0], cos, sin, 512, 65, True), "bfloat16")
    cache[0, 1] = old[0, 1]
    assert np.array_equal(bits(cache), bits(old))


def test_append_errors_name_the_culprit():
    m = Maker("numpy")
    k, new = m.floats(1, 2, 8, 2, 8), m.floats(2, 2, 3, 2, 8)
    for change, error, text in [
        (dict(seqused_kv=m.ints([6, 0])), ValueError, r"seqused_kv\[0\]"),
        (dict(seqused_kv=m.ints([0])), ValueError, "seqused_kv: shape"),
        (dict(kv_batch_index=m.ints([0, 2])), ValueError, r"kv_batch_index\[1\]"),
        (dict(rotary_cos=m.floats(3, 8, 4)), TypeError, "go together"),
        (dict(rotary_cos=m.floats(3, 8, 5), rotary_sin=m.floats(3, 8, 5)), ValueError, "rotary_dim"),
        (dict(rotary_cos=m.floats(3, 2, 4), rotary_sin=m.floats(3, 2, 4)), ValueError, "rotary_rows"),
        (dict(k_new=m.floats(2, 2, 3, 2, 9)), ValueError, "v_new|k_new"),
        (dict(v_new=None), TypeError, "go together"),
        (dict(v_cache=m.floats(1, 2, 8, 2, 8, dtype="float16")), TypeError, "v_cache: dtype"),
        (dict(q=m.floats(1, 3, 3, 2, 8)), ValueError, "q: shape"),
        (dict(kernel="no_such_kernel"), ValueError, "no_such_kernel"),
    ]:
        arguments = {**dict(k_cache=k.copy(), v_cache=k.copy(), k_new=new, v_new=new), **change}
        with pytest.raises(error, match=text):
            attn.kv_append(**arguments)


# ---- the drop-in -------------------------------------------------------------------------------------------

def expect_kvcache(q, k, v, k_new, v_new, cos, sin, used, place, *, causal, window, interleaved,
                   leftpad=None):
    """Row by row from FlashAttention's documentation; q [b, sq, h, d]."""
    outs, lses, new = [], [], 0 if k_new is None else k_new.shape[1]
    moving = causal or window != (-1, -1)
    for b in range(q.shape[0]):
        slots = [place(b, s) for s in range(leftpad[b] if leftpad else 0, used[b])]
        keys = [f64(k[s]) for s in slots]
        values = [f64(v[s]) for s in slots]
        turn = lambda x, at: f64(x) if cos is None else rotate64(x, cos, sin, 0, at, interleaved)
        keys += [turn(k_new[b, i], used[b] + i) for i in range(new)]
        values += [f64(v_new[b, i]) for i in range(new)]
        queries = np.stack([turn(q[b, i], used[b] + (i if moving else 0)) for i in range(q.shape[1])])
        out, lse = attention64(queries, np.stack(keys), np.stack(values), causal=causal, window=window)
        outs.append(out)
        lses.append(np.where(np.isneginf(lse), np.inf, lse))
    return np.stack(outs), np.stack(lses)


@pytest.mark.skipif(torch is None, reason="needs torch")
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_flash_attn_with_kvcache(device, data):
    draw = data.draw
    m = Maker(draw(st.sampled_from(kinds(device))))
    dtype = draw(st.sampled_from(sorted(NUMPY)))
    batch, heads, dim = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.sampled_from([16, 64, 128]))
    sq, capacity = draw(st.integers(1, 4)), draw(st.integers(8, 70))
    appends = draw(st.booleans())
    new = draw(st.integers(1, 4)) if appends else 0
    used = [draw(st.integers(1, capacity - new)) for _ in range(batch)]
    causal = draw(st.booleans())
    window = draw(st.sampled_from([(-1, -1), (-1, -1), (5, 0), (3, 2)]))
    interleaved, leftpad, where = draw(st.booleans()), None, {}
    layout = draw(st.sampled_from(["plain", "index", "leftpad", "pages"]))
    shape, place = (batch, capacity), lambda b, slot: (b, slot)
    if layout == "index":
        index = np.random.default_rng(2).permutation(batch + 2)[:batch]
        shape, where = (batch + 2, capacity), {"cache_batch_idx": m.ints(index)}
        place = lambda b, slot: (index[b], slot)
    elif layout == "leftpad":
        leftpad = [draw(st.integers(0, u - 1)) for u in used]
        where = {"cache_leftpad": m.ints(leftpad)}
    elif layout == "pages":
        page = draw(st.sampled_from([1, 5, 16]))
        columns = -(-capacity // page)
        table = np.random.default_rng(3).permutation(batch * columns).reshape(batch, columns)
        shape, place = (batch * columns, page), lambda b, slot: (table[b, slot // page], slot % page)
        where = {"block_table": m.ints(table)}
    k, v = m.floats(4, *shape, heads, dim, dtype=dtype), m.floats(5, *shape, heads, dim, dtype=dtype)
    q = m.floats(6, batch, sq, 2 * heads, dim, dtype=dtype)
    k_new = v_new = cos = sin = None
    if appends:
        k_new, v_new = (m.floats(s, batch, new, heads, dim, dtype=dtype) for s in (7, 8))
        if draw(st.booleans()):
            cos, sin = m.floats(9, capacity + 4, dim // 4), m.floats(10, capacity + 4, dim // 4)
    want, want_lse = expect_kvcache(q, m.copy(k), m.copy(v), k_new, v_new, cos, sin, used, place,
                                    causal=causal, window=window, interleaved=interleaved, leftpad=leftpad)
    out, lse = flash_attn.flash_attn_with_kvcache(
        q, k, v, k_new, v_new, rotary_cos=cos, rotary_sin=sin, cache_seqlens=m.ints(used), causal=causal,
        window_size=window, rotary_interleaved=interleaved, return_softmax_lse=True, **where)
    loose = {"float32": "float16", "float16": "bfloat16",
             "bfloat16": "bfloat16"}[dtype] if cos is not None else dtype
    scale = 1 if cos is None else max(1.0, float(np.abs(want_lse[np.isfinite(want_lse)]).max(initial=1)))
    assert close(f64(out) / scale, want / scale, loose)
    assert close(f64(lse) / scale, want_lse / scale, "bfloat16")
    for b, i in itertools.product(range(batch), range(new)):
        assert np.array_equal(bits(v[place(b, used[b] + i)]), bits(v_new[b, i]))


@pytest.mark.skipif(torch is None, reason="needs torch")
def test_kvcache_refusals(device):
    m = Maker(device)
    q, k, new = m.floats(1, 2, 1, 4, 16), m.floats(2, 2, 8, 2, 16), m.floats(3, 2, 1, 2, 16)
    call = flash_attn.flash_attn_with_kvcache
    with pytest.raises(RuntimeError, match="cache_seqlens"):
        call(q, k, k.clone(), new, new)
    with pytest.raises(RuntimeError, match="k_cache: the cache has room for 8"):
        call(q, k, k.clone(), new, new, cache_seqlens=8)
    with pytest.raises(RuntimeError, match="block_table"):
        call(q, k, k.clone(), new, new, cache_seqlens=16, block_table=m.ints([[0], [1]]))
    with pytest.raises(RuntimeError, match="excludes"):
        call(q, k, k.clone(), block_table=m.ints([[0], [1]]), cache_leftpad=m.ints([0, 0]))
    with pytest.raises(ValueError, match="rotary_cos"):
        call(q, k, k.clone(), rotary_cos=m.floats(4, 8, 4), rotary_sin=m.floats(4, 8, 4))
    if device == "cpu":
        with pytest.raises(RuntimeError, match=r"seqused_kv\[1\]"):
            call(q, k, k.clone(), new, new, cache_seqlens=m.ints([0, 8]))


@pytest.mark.skipif(torch is None, reason="needs torch")
def test_flash_attn_3_packed_append(device):
    m = Maker(device)
    k, v = m.floats(1, 6, 4, 2, 16), m.floats(2, 6, 4, 2, 16)
    table, used, cu = m.ints([[5, 1, 0], [2, 4, 3]]), [5, 2], m.ints([0, 1, 4])
    q, k_new, v_new = m.floats(3, 4, 4, 16), m.floats(4, 4, 2, 16), m.floats(5, 4, 2, 16)
    cos, sin = m.floats(6, 32, 8), m.floats(7, 32, 8)
    old_k, old_v = k.clone(), v.clone()
    out, lse, _, _ = flash_attn_interface.flash_attn_with_kvcache(
        q, k, v, k_new, v_new, rotary_cos=cos, rotary_sin=sin, cache_seqlens=m.ints(used), page_table=table,
        cu_seqlens_q=cu, cu_seqlens_k_new=cu, max_seqlen_q=3, rotary_seqlens=m.ints([9, 2]), causal=True,
        return_softmax_lse=True)
    for b, (first, last, position) in enumerate([(0, 1, 9), (1, 4, 2)]):
        flat = lambda x: f64(x[table[b].long()]).reshape(12, 2, 16)[:used[b]]
        turn = lambda x: np.stack([rotate64(x[i], cos, sin, 0, position + i - first, True)
                                   for i in range(first, last)])
        keys = np.concatenate((flat(old_k), turn(k_new)))
        values = np.concatenate((flat(old_v), f64(v_new[first:last])))
        want, want_lse = attention64(turn(q), keys, values, causal=True)
        assert close(f64(out[first:last]), want, "float16") and close(f64(lse[:, first:last]), want_lse,
                                                                      "float16")


@pytest.mark.skipif(torch is None, reason="needs torch")
@pytest.mark.parametrize("interleaved", [False, True])
def test_apply_rotary_emb(device, interleaved):
    from attn.compat.rotary import apply_rotary_emb
    m = Maker(device)
    x, cos, sin = m.floats(1, 2, 3, 2, 16), m.floats(2, 12, 6), m.floats(3, 12, 6)
    for offsets, starts in [(0, [0, 0]), (4, [4, 4]), (m.ints([2, 9]), [2, 9])]:
        out = apply_rotary_emb(x, cos, sin, interleaved, seqlen_offsets=offsets)
        for b, i in itertools.product(range(2), range(3)):
            assert close(f64(out[b, i]), rotate64(x[b, i], cos, sin, 0, starts[b] + i, interleaved),
                         "float32")
    packed, cu = x.reshape(6, 2, 16).clone(), m.ints([0, 1, 1, 6])
    out = apply_rotary_emb(packed, cos, sin, interleaved, cu_seqlens=cu, max_seqlen=5,
                           seqlen_offsets=m.ints([3, 0, 1]))
    for row, position in enumerate([3, 1, 2, 3, 4, 5]):
        assert close(f64(out[row]), rotate64(packed[row], cos, sin, 0, position, interleaved), "float32")
    same = apply_rotary_emb(packed, cos, sin, interleaved, inplace=True, cu_seqlens=cu,
                            seqlen_offsets=m.ints([3, 0, 1]))
    assert same is packed and torch.equal(packed, out)


@pytest.mark.skipif(torch is None, reason="needs torch")
def test_kvcache_in_a_graph(device):
    if device != "cuda":
        pytest.skip("CUDA only")
    m = Maker(device)
    k, v = m.floats(1, 8, 16, 2, 64, dtype="bfloat16"), m.floats(2, 8, 16, 2, 64, dtype="bfloat16")
    q, new = m.floats(3, 2, 1, 8, 64, dtype="bfloat16"), m.floats(4, 2, 1, 2, 64, dtype="bfloat16")
    table, used = m.ints([[3, 1, 0, 2], [4, 6, 5, 7]]), m.ints([10, 31])
    cos, sin = m.floats(5, 64, 32, dtype="bfloat16"), m.floats(6, 64, 32, dtype="bfloat16")
    call = lambda kc, vc: flash_attn.flash_attn_with_kvcache(q, kc, vc, new, new, cos, sin, used,
                                                             block_table=table,
                                                            causal=True)
    call(k.clone(), v.clone())
    graph, ours_k, ours_v = torch.cuda.CUDAGraph(), k.clone(), v.clone()
    with torch.cuda.graph(graph):
        out = call(ours_k, ours_v)
    for lengths in ([10, 31], [0, 62], [47, 16]):
        used.copy_(torch.tensor(lengths))
        ours_k.copy_(k)
        ours_v.copy_(v)
        graph.replay()
        plain_k, plain_v = k.clone(), v.clone()
        assert torch.equal(call(plain_k, plain_v), out)
        assert torch.equal(plain_k, ours_k) and torch.equal(plain_v, ours_v)
