"""torch tensors on CPU (and on CUDA when there is one): the call, the op, compile, SDPA, transformers, compat."""
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import attn
from attn import torch_ops
from attn.compat import bert_padding, flash_attn, flash_attn_interface, flash_mla

from oracle import attention64, close

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def make(seed, *shape, dtype=torch.float32, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def f64(x):
    return x.detach().double().cpu().numpy()


def expect(q, k, v, **options):
    pairs = [attention64(f64(q[b]), f64(k[b]), f64(v[b]), **options) for b in range(q.shape[0])]
    return np.stack([o for o, _ in pairs]), np.stack([l for _, l in pairs])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", list(NAMES))
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (3, 1)}, {"softcap": 4.0}])
def test_call(device, dtype, options):
    q, k, v = (make(i, *s, dtype=dtype, device=device) for i, s in enumerate([(2, 9, 4, 16), (2, 33, 2, 16), (2, 33, 2, 16)]))
    out, lse = attn.attention(q, k, v, return_lse=True, **options)
    want, want_lse = expect(q, k, v, **options)
    assert out.dtype == dtype and out.device == q.device
    assert close(f64(out), want, NAMES[dtype]) and close(f64(lse), want_lse, "float16")


def test_strided_views_are_not_copied():
    qkv = make(1, 2, 9, 3, 4, 16)
    q, k, v = qkv.unbind(2)
    assert close(f64(attn.attention(q, k, v)), expect(q, k, v)[0], "float32")


def test_mixed_devices_and_types_are_errors():
    q = make(1, 1, 4, 2, 8)
    with pytest.raises(TypeError, match="k: dtype"):
        attn.attention(q, q.half(), q)
    with pytest.raises(TypeError, match="cpu or cuda"):
        attn.attention(q.to("meta"), q, q)
    with pytest.raises(ValueError, match="contiguous"):
        attn.attention(q.transpose(-1, -2), q, q)


def test_gradient_is_refused_clearly():
    q = make(1, 1, 4, 2, 8).requires_grad_()
    with pytest.raises(NotImplementedError, match="forward pass only"):
        attn.attention(q, q, q)
    with torch.no_grad():
        attn.attention(q, q, q)
    with pytest.raises(NotImplementedError, match="forward pass only"):
        torch.ops.attn.attention(q, q, q)


def test_op_compiles_and_fakes():
    q, k, v = make(1, 2, 9, 4, 16), make(2, 2, 12, 2, 16), make(3, 2, 12, 2, 24)
    torch.library.opcheck(torch.ops.attn.attention, (q, k, v), test_utils=("test_schema", "test_faketensor"))
    f = torch.compile(lambda *x: torch.ops.attn.attention(*x, causal=True)[0] * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(f(q, k, v), attn.attention(q, k, v, causal=True) * 2)


def test_sdpa_function_and_registration():
    q, k, v = make(1, 2, 4, 9, 16), make(2, 2, 4, 9, 16), make(3, 2, 4, 9, 16)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(torch_ops.scaled_dot_product_attention(q, k, v, is_causal=True), want, atol=2e-6)
    if not torch_ops.register_sdpa():
        pytest.skip("this torch has no register_flash_attention_impl")
    torch.nn.attention.activate_flash_attention_impl("attn")
    calls = []
    original = torch_ops._api.attention
    torch_ops._api.attention = lambda *a, **o: calls.append(1) or original(*a, **o)
    try:
        got = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    finally:
        torch_ops._api.attention = original
        torch.nn.attention.restore_flash_attention_impl()
    assert calls and torch.allclose(got, want, atol=2e-6)
    again = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(again, want, atol=2e-6)


def test_transformers_model_gives_eager_logits():
    transformers = pytest.importorskip("transformers")
    torch_ops.register_transformers()
    config = transformers.LlamaConfig(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.randint(0, 97, (2, 11), generator=torch.Generator().manual_seed(1))
    padding = torch.ones_like(tokens)
    padding[1, :4] = 0
    with torch.no_grad():
        model.set_attn_implementation("eager")
        want = model(tokens, attention_mask=padding).logits
        model.set_attn_implementation("attn")
        got = model(tokens, attention_mask=padding).logits
        plain = model(tokens).logits
        model.set_attn_implementation("eager")
        want_plain = model(tokens).logits
    assert torch.allclose(got[0], want[0], atol=1e-5) and torch.allclose(got[1, 4:], want[1, 4:], atol=1e-5)
    assert torch.allclose(plain, want_plain, atol=1e-5)


# ---- compat -------------------------------------------------------------------------------------------------

def test_flash_attn_variants():
    q, k, v = make(1, 2, 7, 4, 16), make(2, 2, 9, 4, 16), make(3, 2, 9, 4, 16)
    out, lse, probs = flash_attn.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    want, want_lse = expect(q, k, v, causal=True)
    assert close(f64(out), want, "float32") and close(f64(lse), want_lse, "float32") and probs is None
    assert torch.equal(flash_attn.flash_attn_kvpacked_func(q, torch.stack((k, v), 2), causal=True), out)
    qkv = torch.stack((k, k, v), 2)
    assert torch.equal(flash_attn.flash_attn_qkvpacked_func(qkv), flash_attn.flash_attn_func(k, k, v))
    _, lse, _ = flash_attn.flash_attn_func(k, q, q, causal=True, return_attn_probs=True)
    assert torch.isposinf(lse[..., :2]).all()                           # rows that see no key, FA2's sign
    assert torch.isneginf(flash_attn_interface.flash_attn_func(k, q, q, causal=True, return_attn_probs=True)[1][..., :2]).all()
    with pytest.raises(NotImplementedError, match="dropout_p"):
        flash_attn.flash_attn_func(q, k, v, 0.1)


def test_varlen_and_padding():
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    x = make(1, 2, 5, 2, 16)
    packed, indices, cu, longest, used = bert_padding.unpad_input(x, mask)
    assert packed.shape[0] == 8 and longest == 5 and used.tolist() == [3, 5] and cu.tolist() == [0, 3, 8]
    out = flash_attn.flash_attn_varlen_func(packed, packed, packed, cu, cu, longest, longest, causal=True)
    back = bert_padding.pad_input(out, indices, 2, 5)
    for b, n in enumerate((3, 5)):
        want = attention64(f64(x[b, :n]), f64(x[b, :n]), f64(x[b, :n]), causal=True)[0]
        assert close(f64(back[b, :n]), want, "float32") and not back[b, n:].any()
    third = flash_attn_interface.flash_attn_varlen_func(packed, packed, packed, cu, cu, 5, 5, causal=True)
    assert torch.equal(third, out)


@pytest.mark.parametrize("paged", [False, True])
def test_kvcache_append_and_rotary(paged):
    batch, used, new, heads, d = 2, torch.tensor([3, 6], dtype=torch.int32), 2, 2, 16
    cache = make(1, batch, 12, heads, d)
    k_new, v_new, q = make(2, batch, new, heads, d), make(3, batch, new, heads, d), make(4, batch, new, 4, d)
    angle = torch.arange(16)[:, None] * (0.1 ** torch.arange(4))[None]
    cos, sin = angle.cos(), angle.sin()
    kc, vc, table = cache.clone(), cache.clone() * 2, None
    if paged:
        table = torch.tensor([[2, 0, 5], [1, 4, 3]], dtype=torch.int32)
        pages_k, pages_v = torch.full((6, 4, heads, d), float("nan")), torch.full((6, 4, heads, d), float("nan"))
        for b in range(batch):
            pages_k[table[b].long()] = kc[b].reshape(3, 4, heads, d)
            pages_v[table[b].long()] = vc[b].reshape(3, 4, heads, d)
        ours_k, ours_v = pages_k, pages_v
    else:
        ours_k, ours_v = kc.clone(), vc.clone()
    out = flash_attn.flash_attn_with_kvcache(q, ours_k, ours_v, k_new, v_new, cos, sin, used, block_table=table, causal=True)
    for b in range(batch):
        n = int(used[b])
        turn = lambda x: _rotate(x, cos[n:n + new], sin[n:n + new])
        full_k = torch.cat((kc[b, :n], turn(k_new[b])))
        full_v = torch.cat((vc[b, :n], v_new[b]))
        assert close(f64(out[b]), attention64(f64(turn(q[b])), f64(full_k), f64(full_v), causal=True)[0], "float32")
    with pytest.raises(RuntimeError, match="block_table" if paged else "cache"):
        flash_attn.flash_attn_with_kvcache(q, ours_k, ours_v, k_new, v_new, cache_seqlens=11, block_table=table)


def _rotate(x, cos, sin):
    """Interleaved rotary of x [rows, heads, dim], written pair by pair."""
    y = x.clone()
    for i in range(cos.shape[1]):
        c, s = cos[:, None, i], sin[:, None, i]
        y[..., 2 * i], y[..., 2 * i + 1] = x[..., 2 * i] * c - x[..., 2 * i + 1] * s, x[..., 2 * i] * s + x[..., 2 * i + 1] * c
    return y


def test_combine_equals_whole():
    q, k, v = make(1, 1, 4, 2, 8), make(2, 1, 9, 2, 8), make(3, 1, 9, 2, 8)
    parts = [attn.attention(q, k[:, a:b], v[:, a:b], return_lse=True) for a, b in ((0, 4), (4, 9))]
    out, _ = flash_attn_interface.flash_attn_combine(torch.stack([o for o, _ in parts]),
                                                     torch.stack([l.transpose(1, 2) for _, l in parts]))
    assert close(f64(out), expect(q, k, v)[0], "float32")


def test_flash_mla():
    q, pages = make(1, 2, 2, 8, 576), make(2, 6, 64, 1, 576)
    table = torch.tensor([[4, 1, 0], [3, 5, 2]], dtype=torch.int32)
    used = torch.tensor([70, 0], dtype=torch.int32)
    meta, splits = flash_mla.get_mla_metadata()
    out, lse = flash_mla.flash_mla_with_kvcache(q, pages, table, used, 512, meta, splits, causal=True)
    keys = pages[table[0].long()].reshape(192, 1, 576)[:70]
    want, want_lse = attention64(f64(q[0]), f64(keys), f64(keys[..., :512]), causal=True)
    assert out.shape == (2, 2, 8, 512) and close(f64(out[0]), want, "float32") and close(f64(lse[0]), want_lse, "float32")
    assert not out[1].any() and torch.isposinf(lse[1]).all()
    with pytest.raises(ValueError, match="metadata was made"):
        flash_mla.flash_mla_with_kvcache(q[:1], pages, table[:1], used[:1], 512, meta, splits)
    with pytest.raises(NotImplementedError, match="sparse"):
        flash_mla.flash_mla_sparse_fwd()


def test_install_makes_the_imports_work():
    import attn.compat
    done = attn.compat.install()
    try:
        import flash_attn as fa
        from flash_attn.bert_padding import pad_input
        from flash_mla import get_mla_metadata
        import flash_attn_interface as fa3
        assert "flash_attn" in done and fa.flash_attn_func and pad_input and get_mla_metadata and fa3.flash_attn_func
    finally:
        attn.compat.uninstall()
