"""torch tensors on CPU (and on CUDA when there is one): the call, the op, compile, SDPA, transformers,
compat."""
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import attn
from attn import torch_ops
from attn.compat import bert_padding, flash_attn, flash_attn_interface, flash_mla

from oracle import attention64, close

NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def make(seed, *shape, dtype=torch.float32, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def f64(x):
    return x.detach().double().cpu().numpy()


def expect(q, k, v, **options):
    pairs = [attention64(f64(q[b]), f64(k[b]), f64(v[b]), **options) for b in range(q.shape[0])]
    return np.stack([o for o, _ in pairs]), np.stack([l for _, l in pairs])


@pytest.mark.parametrize("dtype", list(NAMES))
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (3, 1)}, {"softcap": 4.0}])
def test_call(device, dtype, options):
    q, k, v = (make(i, *s, dtype=dtype, device=device)
               for i, s in enumerate([(2, 9, 4, 16), (2, 33, 2, 16), (2, 33, 2, 16)]))
    out, lse = attn.attention(q, k, v, return_lse=True, **options)
    want, want_lse = expect(q, k, v, **options)
    assert out.dtype == dtype and out.device == q.device
    assert close(f64(out), want, NAMES[dtype]) and close(f64(lse), want_lse, "float16")


def test_strided_views_are_not_copied(device):
    qkv = make(1, 2, 9, 3, 4, 16, device=device)
    q, k, v = qkv.unbind(2)
    assert close(f64(attn.attention(q, k, v)), expect(q, k, v)[0], "float32")


def test_mixed_devices_and_types_are_errors(device):
    q = make(1, 1, 4, 2, 8, device=device)
    if device == "cuda":
        with pytest.raises(ValueError, match="k: must be on the device of q"):
            attn.attention(q, q.cpu(), q)
        with pytest.raises(ValueError, match="seqused_kv: must be on the device"):
            attn.attention(q, q, q, seqused_kv=torch.tensor([4], dtype=torch.int32))
    with pytest.raises(TypeError, match="k: dtype"):
        attn.attention(q, q.half(), q)
    with pytest.raises(TypeError, match="cpu or cuda"):
        attn.attention(q.to("meta"), q, q)
    with pytest.raises(ValueError, match="contiguous"):
        attn.attention(q.transpose(-1, -2), q, q)


def test_gradient_is_refused_clearly(device):
    q = make(1, 1, 4, 2, 8, device=device).requires_grad_()
    with pytest.raises(NotImplementedError, match="forward pass only"):
        attn.attention(q, q, q)
    with torch.no_grad():
        attn.attention(q, q, q)
    with pytest.raises(NotImplementedError, match="forward pass only"):
        torch.ops.attn.attention(q, q, q)


def test_op_compiles_and_fakes(device):
    q, k, v = (make(i, *s, device=device)
               for i, s in enumerate([(2, 9, 4, 16), (2, 12, 2, 16), (2, 12, 2, 24)]))
    torch.library.opcheck(torch.ops.attn.attention, (q, k, v), test_utils=("test_schema", "test_faketensor"))
    f = torch.compile(lambda *x: torch.ops.attn.attention(*x, causal=True)[0] * 2, fullgraph=True,
                      backend="aot_eager")
    assert torch.equal(f(q, k, v), attn.attention(q, k, v, causal=True) * 2)


def test_sdpa_function_and_registration(device):
    # torch takes its flash kernel on CUDA for 16-bit types only
    dtype, atol = (torch.float32, 2e-6) if device == "cpu" else (torch.float16, 4e-3)
    q, k, v = (make(i, 2, 4, 9, 16, dtype=dtype, device=device) for i in range(3))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(torch_ops.scaled_dot_product_attention(q, k, v, is_causal=True), want, atol=atol)
    if not torch_ops.register_sdpa():
        pytest.skip("this torch has no register_flash_attention_impl")
    torch.nn.attention.activate_flash_attention_impl("attn")
    calls = []
    original = torch_ops._api.attention
    torch_ops._api.attention = lambda *a, **o: calls.append(1) or original(*a, **o)
    try:
        # on CUDA torch may prefer cuDNN: the flash implementation is what was registered
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            got = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    finally:
        torch_ops._api.attention = original
        torch.nn.attention.restore_flash_attention_impl()
    assert calls and torch.allclose(got, want, atol=atol)
    again = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(again, want, atol=atol)


def test_transformers_model_gives_eager_logits(device):
    transformers = pytest.importorskip("transformers")
    torch_ops.register_transformers()
    config = transformers.LlamaConfig(vocab_size=97, hidden_size=64, intermediate_size=96,
                                      num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                      max_position_embeddings=64)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval().to(device)
    tokens = torch.randint(0, 97, (2, 11), generator=torch.Generator().manual_seed(1)).to(device)
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


# ---- compat ------------------------------------------------------------------------------------------------

def test_flash_attn_variants(device):
    q, k, v = (make(i, *s, device=device)
               for i, s in enumerate([(2, 7, 4, 16), (2, 9, 4, 16), (2, 9, 4, 16)]))
    out, lse, probs = flash_attn.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    want, want_lse = expect(q, k, v, causal=True)
    assert close(f64(out), want, "float32") and close(f64(lse), want_lse, "float32") and probs is None
    assert torch.equal(flash_attn.flash_attn_kvpacked_func(q, torch.stack((k, v), 2), causal=True), out)
    qkv = torch.stack((k, k, v), 2)
    assert torch.equal(flash_attn.flash_attn_qkvpacked_func(qkv), flash_attn.flash_attn_func(k, k, v))
    _, lse, _ = flash_attn.flash_attn_func(k, q, q, causal=True, return_attn_probs=True)
    assert torch.isposinf(lse[..., :2]).all()                           # rows that see no key, FA2's sign
    _, lse = flash_attn_interface.flash_attn_func(k, q, q, causal=True, return_attn_probs=True)
    assert torch.isneginf(lse[..., :2]).all()
    with pytest.raises(NotImplementedError, match="dropout_p"):
        flash_attn.flash_attn_func(q, k, v, 0.1)


def test_varlen_and_padding(device):
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], device=device)
    x = make(1, 2, 5, 2, 16, device=device)
    packed, indices, cu, longest, used = bert_padding.unpad_input(x, mask)
    assert packed.shape[0] == 8 and longest == 5 and used.tolist() == [3, 5] and cu.tolist() == [0, 3, 8]
    out = flash_attn.flash_attn_varlen_func(packed, packed, packed, cu, cu, longest, longest, causal=True)
    back = bert_padding.pad_input(out, indices, 2, 5)
    for b, n in enumerate((3, 5)):
        want = attention64(f64(x[b, :n]), f64(x[b, :n]), f64(x[b, :n]), causal=True)[0]
        assert close(f64(back[b, :n]), want, "float32") and not back[b, n:].any()
    third = flash_attn_interface.flash_attn_varlen_func(packed, packed, packed, cu, cu, 5, 5, causal=True)
    assert torch.equal(third, out)


def test_combine_equals_whole(device):
    q, k, v = (make(i, *s, device=device) for i, s in enumerate([(1, 4, 2, 8), (1, 9, 2, 8), (1, 9, 2, 8)]))
    parts = [attn.attention(q, k[:, a:b], v[:, a:b], return_lse=True) for a, b in ((0, 4), (4, 9))]
    out, _ = flash_attn_interface.flash_attn_combine(torch.stack([o for o, _ in parts]),
                                                     torch.stack([l.transpose(1, 2) for _, l in parts]))
    assert close(f64(out), expect(q, k, v)[0], "float32")


@pytest.mark.parametrize("dtype", list(NAMES))
@pytest.mark.parametrize("heads", [8, 128])
def test_flash_mla(device, dtype, heads):
    q, pages = make(1, 2, 2, heads, 576, dtype=dtype, device=device), make(2, 6, 64, 1, 576, dtype=dtype,
                                                                           device=device)
    table = torch.tensor([[4, 1, 0], [3, 5, 2]], dtype=torch.int32, device=device)
    used = torch.tensor([70, 0], dtype=torch.int32, device=device)
    meta, splits = flash_mla.get_mla_metadata()
    out, lse = flash_mla.flash_mla_with_kvcache(q, pages, table, used, 512, meta, splits, causal=True)
    keys = pages[table[0].long()].reshape(192, 1, 576)[:70]
    want, want_lse = attention64(f64(q[0]), f64(keys), f64(keys[..., :512]), causal=True)
    assert out.shape == (2, 2, heads, 512) and out.device == q.device and lse.shape == (2, heads, 2)
    assert close(f64(out[0]), want, NAMES[dtype]) and close(f64(lse[0]), want_lse, "float16")
    assert not out[1].any() and torch.isposinf(lse[1]).all()
    for _ in range(2):          # the next layers of the step
        again, _ = flash_mla.flash_mla_with_kvcache(q, pages, table, used, 512, meta, splits, causal=True)
        assert torch.equal(again, out)
    with pytest.raises(ValueError, match="metadata was made"):
        flash_mla.flash_mla_with_kvcache(q[:1], pages, table[:1], used[:1], 512, meta, splits)
    with pytest.raises(NotImplementedError, match="sparse"):
        flash_mla.flash_mla_sparse_fwd()


def test_every_kernel_can_be_forced(device):
    for dtype in NAMES:
        q, k, v = (make(i, *s, dtype=dtype, device=device)
                   for i, s in enumerate([(2, 70, 4, 64), (2, 130, 2, 64),
                                                                                   (2, 130, 2, 64)]))
        want, _ = expect(q, k, v, causal=True)
        ran = 0
        for line in attn.explain(q, k, v, causal=True).splitlines():
            name, verdict = line.split(None, 1)
            if verdict in ("chosen", "fits"):
                assert close(f64(attn.attention(q, k, v, causal=True, kernel=name)), want, NAMES[dtype]), name
                ran += 1
        assert ran


def test_layers_share_a_schedule(device):
    q, k, v = (make(i, *s, dtype=torch.bfloat16, device=device)
               for i, s in enumerate([(3, 1, 16, 128), (3, 900, 2, 128),
                                                                                        (3, 900, 2, 128)]))
    used = torch.tensor([900, 0, 333], dtype=torch.int32, device=device)
    schedule, want = attn.Schedule(), attn.attention(q, k, v, seqused_kv=used)
    for _ in range(3):
        assert torch.equal(attn.attention(q, k, v, seqused_kv=used, schedule=schedule), want)


def test_streams_and_graphs(device):
    if device != "cuda":
        pytest.skip("CUDA only")
    q, k, v = (make(i, *s, dtype=torch.bfloat16, device=device)
               for i, s in enumerate([(2, 1, 8, 128), (2, 300, 2, 128),
                                                                                        (2, 300, 2, 128)]))
    used = torch.tensor([300, 17], dtype=torch.int32, device=device)
    want = attn.attention(q, k, v, seqused_kv=used)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        other = attn.attention(q, k, v, seqused_kv=used)
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(other, want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attn.attention(q, k, v, seqused_kv=used)
    for lengths in ([300, 17], [1, 299], [0, 128]):
        used.copy_(torch.tensor(lengths))
        graph.replay()
        assert torch.equal(out, attn.attention(q, k, v, seqused_kv=used))


def test_install_makes_the_imports_work():
    import attn.compat
    done = attn.compat.install()
    try:
        import flash_attn as fa
        from flash_attn.bert_padding import pad_input
        from flash_mla import get_mla_metadata
        import flash_attn_interface as fa3
        from flash_attn.layers.rotary import apply_rotary_emb
        assert apply_rotary_emb
        assert "flash_attn" in done and fa.flash_attn_func and pad_input
        assert get_mla_metadata and fa3.flash_attn_func
    finally:
        attn.compat.uninstall()
