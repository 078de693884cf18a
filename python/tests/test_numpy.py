"""NumPy arrays in, NumPy arrays out: every option against float64."""
import gc
import os
import threading

import attn
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from oracle import attention64, close

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def make(seed, *shape, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype])


def f64(x):
    return np.asarray(x, dtype=np.float64)


def expect(q, k, v, **options):
    pairs = [attention64(f64(q[b]), f64(k[b]), f64(v[b]), **{n: (f64(x[b]) if n == "bias" else x[b])
                         if n in ("bias", "mask") else x for n, x in options.items()})
             for b in range(q.shape[0])]
    return np.stack([o for o, _ in pairs]), np.stack([l for _, l in pairs])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_options_against_float64(data):
    draw = data.draw
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    batch, kv_heads = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    group = draw(st.sampled_from([1, 2, 3]))
    sq, sk = draw(st.integers(1, 70)), draw(st.integers(1, 90))
    d, dv = draw(st.sampled_from([1, 8, 19, 64, 80])), draw(st.sampled_from([1, 8, 33, 64]))
    heads = kv_heads * group
    q, k, v = (make(i, *s, dtype=dtype) for i, s in enumerate(
        [(batch, sq, heads, d), (batch, sk, kv_heads, d), (batch, sk, kv_heads, dv)]))
    options, oracle = {}, {}
    if draw(st.booleans()):
        options["causal"] = oracle["causal"] = True
    if draw(st.booleans()):
        options["top_left"] = oracle["top_left"] = True
    if draw(st.booleans()):
        options["window"] = oracle["window"] = (draw(st.integers(-1, 40)), draw(st.integers(-1, 40)))
    if draw(st.booleans()):
        options["scale"] = oracle["scale"] = draw(st.sampled_from([0.1, 1.0, -0.3]))
    if draw(st.booleans()):
        options["softcap"] = oracle["softcap"] = 5.0
    if draw(st.booleans()):
        slopes = np.abs(make(9, heads))
        options["alibi_slopes"], oracle["slopes"] = slopes, f64(slopes)
    if draw(st.booleans()):
        bias = make(10, batch, heads, sq, sk, dtype=dtype)
        options["bias"] = oracle["bias"] = bias
    if draw(st.booleans()):
        mask = np.random.default_rng(11).random((batch, heads, sq, sk)) > 0.3
        options["mask"] = oracle["mask"] = mask
    if draw(st.booleans()):
        sinks = make(12, heads)
        options["sinks"], oracle["sinks"] = sinks, f64(sinks)
    out, lse = attn.attention(q, k, v, return_lse=True, **options)
    want_out, want_lse = expect(q, k, v, **oracle)
    assert out.dtype == DTYPES[dtype] and lse.dtype == np.float32
    assert close(out, want_out, dtype)
    assert close(lse, want_lse, "float16")


def test_layout_and_strides():
    q, k, v = make(1, 2, 5, 4, 16), make(2, 2, 9, 2, 16), make(3, 2, 9, 2, 16)
    want, _ = expect(q, k, v)
    swap = lambda x: np.ascontiguousarray(x.swapaxes(1, 2))
    assert close(attn.attention(swap(q), swap(k), swap(v), layout="bhsd").swapaxes(1, 2), want, "float32")
    wide = make(4, 2, 9, 2, 40)
    wide[..., :16] = k
    assert close(attn.attention(q, wide[..., :16], v), want, "float32")
    read_only = q.copy()
    read_only.flags.writeable = False
    assert close(attn.attention(read_only, k, v), want, "float32")


def test_broadcast_bias_and_mask():
    q, k, v = make(1, 2, 5, 4, 16), make(2, 2, 9, 4, 16), make(3, 2, 9, 4, 16)
    bias = make(5, 1, 4, 1, 9)
    full = np.broadcast_to(bias, (2, 4, 5, 9))
    assert close(attn.attention(q, k, v, bias=bias), expect(q, k, v, bias=full)[0], "float32")
    mask = np.arange(9) < 7
    assert close(attn.attention(q, k, v, mask=mask), expect(q, k[:, :7], v[:, :7])[0], "float32")


def test_packed_and_paged_and_cache():
    lengths_q, lengths_k = [3, 0, 5], [7, 4, 5]
    q, k, v = make(1, 8, 4, 16), make(2, 16, 2, 16), make(3, 16, 2, 16)
    cu_q, cu_k = (np.cumsum([0] + n).astype(np.int32) for n in (lengths_q, lengths_k))
    out, lse = attn.attention(q, k, v, causal=True, cu_seqlens_q=cu_q, cu_seqlens_kv=cu_k, max_q_len=5,
                              max_kv_len=7, return_lse=True)
    for b in range(3):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        want, want_lse = attention64(f64(q[rows]), f64(k[keys]), f64(v[keys]), causal=True)
        assert close(out[rows], want, "float32") and close(lse[:, rows], want_lse, "float32")
    pages_k, pages_v = make(4, 6, 4, 2, 16), make(5, 6, 4, 2, 16)
    table = np.array([[5, 0, 2], [1, 3, 4]], dtype=np.int32)
    used = np.array([9, 12], dtype=np.int32)
    q2 = make(6, 2, 2, 4, 16)
    out = attn.attention(q2, pages_k, pages_v, causal=True, block_table=table, seqused_kv=used)
    for b in range(2):
        flat_k, flat_v = (x[table[b]].reshape(12, 2, 16)[:used[b]] for x in (pages_k, pages_v))
        assert close(out[b], attention64(f64(q2[b]), f64(flat_k), f64(flat_v), causal=True)[0], "float32")


def test_calls_like_an_earlier_one():
    """The second call of a kind takes the short way: other values, lengths, pages and masks must count in
    it."""
    k, v = make(1, 2, 9, 2, 16), make(2, 2, 9, 2, 16)
    pool_k, pool_v = make(3, 8, 3, 2, 16), make(4, 8, 3, 2, 16)
    for round_ in range(3):
        q = make(10 + round_, 2, 2, 4, 16)
        used = np.array([9 - round_, 2 + round_], dtype=np.int32)
        mask = np.random.default_rng(round_).random((2, 4, 2, 9)) > 0.3
        out, lse = attn.attention(q, k, v, seqused_kv=used, mask=mask, window=[4, 0], return_lse=True)
        table = np.random.default_rng(20 + round_).permutation(8)[:6].reshape(2, 3).astype(np.int32)
        paged = attn.attention(q, pool_k, pool_v, seqused_kv=used, block_table=table)
        latent = attn.attention(q, k, v_dim=8, seqused_kv=used)
        for b in range(2):
            n = used[b]
            want, want_lse = attention64(f64(q[b]), f64(k[b, :n]), f64(v[b, :n]), mask=mask[b][..., :n],
                                         window=(4, 0))
            assert close(out[b], want, "float32") and close(lse[b], want_lse, "float32")
            flat_k, flat_v = (f64(x[table[b]].reshape(9, 2, 16)[:n]) for x in (pool_k, pool_v))
            assert close(paged[b], attention64(f64(q[b]), flat_k, flat_v)[0], "float32")
            assert close(latent[b], attention64(f64(q[b]), f64(k[b, :n]), f64(k[b, :n, :, :8]))[0], "float32")
    with pytest.raises(ValueError, match="seqused_kv"):
        attn.attention(q, k, v, seqused_kv=np.array([10, 0], dtype=np.int32), mask=mask, window=[4, 0],
                       return_lse=True)


def test_v_in_k():
    q, k = make(1, 1, 3, 4, 24), make(2, 1, 9, 1, 24)
    assert close(attn.attention(q, k, v_dim=16), expect(q, k, k[..., :16])[0], "float32")


def test_empty_rows_and_no_keys():
    q, k = make(1, 1, 6, 2, 8), make(2, 1, 3, 2, 8)
    out, lse = attn.attention(q, k, k, causal=True, return_lse=True)
    assert not out[:, :3].any() and np.isneginf(lse[..., :3]).all() and np.isfinite(lse[..., 3:]).all()
    out, lse = attn.attention(q, k[:, :0], k[:, :0], return_lse=True)
    assert not out.any() and np.isneginf(lse).all()


def test_nan_outside_the_used_range_never_matters():
    q, k, v = make(1, 2, 4, 2, 8), make(2, 2, 9, 2, 8), make(3, 2, 9, 2, 8)
    used = np.array([5, 0], dtype=np.int32)
    k[0, 5:] = v[0, 5:] = np.nan
    k[1], v[1] = np.nan, np.nan
    out, lse = attn.attention(q, k, v, seqused_kv=used, return_lse=True)
    assert close(out[0], attention64(f64(q[0]), f64(k[0, :5]), f64(v[0, :5]))[0], "float32")
    assert not out[1].any() and np.isneginf(lse[1]).all()


def test_out_is_used_and_may_be_float32():
    q, k, v = (make(i, 1, 5, 2, 16, dtype="bfloat16") for i in range(3))
    out = np.full((1, 5, 2, 16), np.nan, dtype=np.float32)
    assert attn.attention(q, k, v, out=out) is out
    assert close(out, expect(q, k, v)[0], "float16")


def test_merge_is_the_whole():
    q, k, v = make(1, 2, 4, 2, 8), make(2, 2, 9, 2, 8), make(3, 2, 9, 2, 8)
    parts = [attn.attention(q, k[:, a:b], v[:, a:b], return_lse=True) for a, b in ((0, 2), (2, 2), (2, 9))]
    out, lse = attn.merge([o for o, _ in parts], [l for _, l in parts])
    want, want_lse = expect(q, k, v)
    assert close(out, want, "float32") and close(lse, want_lse, "float32")


@pytest.mark.parametrize("arguments, error, text", [
    (dict(k=np.zeros((1, 4, 2, 8), np.float64)), TypeError, "k: dtype"),
    (dict(k=np.zeros((1, 4, 2, 9), np.float32)), ValueError, "k: head dim 9"),
    (dict(k=np.zeros((1, 4, 3, 8), np.float32), v=np.zeros((1, 4, 3, 8), np.float32)), ValueError,
     "q_heads = 4"),
    (dict(v=np.zeros((1, 5, 2, 8), np.float32)), ValueError, "v: shape"),
    (dict(q=np.zeros((1, 4, 4, 16), np.float32)[..., ::2]), ValueError, "last dim must be contiguous"),
    (dict(q="text"), TypeError, "q: expected"),
    (dict(scale=float("nan")), ValueError, "scale"),
    (dict(softcap=-1.0), ValueError, "softcap"),
    (dict(bias=np.zeros((3, 4), np.float32)), ValueError, "bias: shape"),
    (dict(mask=np.zeros((4, 4), np.float32)), TypeError, "mask: dtype"),
    (dict(sinks=np.zeros(3, np.float32)), ValueError, "sinks: shape"),
    (dict(seqused_kv=np.array([9], np.int32)), ValueError, "seqused_kv"),
    (dict(kernel="no_such_kernel"), ValueError, "no_such_kernel"),
    (dict(layout="sbhd"), ValueError, "layout"),
    (dict(out=np.zeros((1, 4, 4, 9), np.float32)), ValueError, "out: expected"),
])
def test_errors_name_the_culprit(arguments, error, text):
    base = dict(q=np.zeros((1, 4, 4, 8), np.float32), k=np.zeros((1, 4, 2, 8), np.float32),
                v=np.zeros((1, 4, 2, 8), np.float32))
    with pytest.raises(error, match=text):
        attn.attention(**{**base, **arguments})


def test_explain_and_info():
    q = np.zeros((1, 4, 4, 8), np.float32)
    text = attn.explain(q, q, q, causal=True)
    assert text.count("chosen") == 1
    facts = attn.info()
    assert facts["version"] and any(k["name"] in text for k in facts["kernels"])


def test_every_kernel_can_be_forced():
    q, k, v = make(1, 1, 9, 2, 16), make(2, 1, 30, 2, 16), make(3, 1, 30, 2, 16)
    want, _ = expect(q, k, v)
    ran = 0
    for line in attn.explain(q, k, v).splitlines():
        name, verdict = line.split(None, 1)
        if verdict in ("chosen", "fits"):
            assert close(attn.attention(q, k, v, kernel=name), want, "float32"), name
            ran += 1
    assert ran


def test_threads_share_plans():
    q, k, v = make(1, 2, 40, 4, 32), make(2, 2, 40, 4, 32), make(3, 2, 40, 4, 32)
    want = attn.attention(q, k, v, causal=True)
    wrong = []

    def work():
        for _ in range(50):
            if not np.array_equal(attn.attention(q, k, v, causal=True), want):
                wrong.append(1)
    pool = [threading.Thread(target=work) for _ in range(8)]
    [t.start() for t in pool]
    [t.join() for t in pool]
    assert not wrong


def test_fork():
    q = make(1, 1, 64, 4, 32)
    want = attn.attention(q, q, q)
    for _ in range(5):
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(attn.attention(q, q, q), want) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_leak_over_many_calls():
    resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    q = make(1, 1, 1, 1, 8)
    calls = int(os.environ.get("ATTN_LEAK_CALLS", "20000"))
    for _ in range(2000):
        attn.attention(q, q, q)
    gc.collect()
    before = resident()
    for _ in range(calls):
        attn.attention(q, q, q)
    gc.collect()
    assert resident() - before < 4 << 20


def test_outputs_outlive_inputs():
    outs = []
    for seed in range(20):
        q = make(seed, 1, 16, 2, 16)
        outs.append((seed, attn.attention(q, q, q)))
        del q
    gc.collect()
    for seed, out in outs:
        q = make(seed, 1, 16, 2, 16)
        assert close(out, expect(q, q, q)[0], "float32")
