#!/usr/bin/env python3
"""test_cli.py ATTN — the command from outside: right numbers, hostile files, unwritable outputs, signals. Only the standard library; the reference attention is a dozen lines of Python floats."""
import json
import math
import os
import pathlib
import pty
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

ATTN = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else "build/attn"
FORMATS = {"<f4": "f", "<f2": "e", "<f8": "d", "<i4": "i", "<i8": "q", "|u1": "B", "|b1": "?", "<u2": "H",
           "<V2": "H"}
SAFE = {"F32": "f", "F16": "e", "F64": "d", "I32": "i", "I64": "q", "U8": "B", "BOOL": "?", "BF16": "H"}


class Array:
    """A flat list with a shape."""

    def __init__(self, shape, values, kind="f"):
        self.shape, self.values, self.kind = tuple(shape), list(values), kind
        assert len(self.values) == math.prod(self.shape)

    def at(self, *index):
        offset = 0
        for i, n in zip(index, self.shape):
            offset = offset * n + i
        return self.values[offset]

    def swapped(self):
        """[b, s, h, d] to [b, h, s, d]."""
        b, s, h, d = self.shape
        return Array((b, h, s, d), [self.at(i, k, j, m) for i in range(b) for j in range(h) for k in range(s)
                                    for m in range(d)], self.kind)

    def packed(self):
        return struct.pack(f"<{len(self.values)}{self.kind}", *self.values)


def gaussian(shape, seed, kind="f"):
    dice = random.Random(seed)
    values = [dice.gauss(0, 1) for _ in range(math.prod(shape))]
    return Array(shape, struct.unpack(f"<{len(values)}{kind}", struct.pack(f"<{len(values)}{kind}", *values)),
                 kind)


def npy_bytes(array, descr=None):
    descr = descr or {v: k for k, v in reversed(FORMATS.items())}[array.kind]
    shape = "(" + ", ".join(map(str, array.shape)) + ("," if len(array.shape) == 1 else "") + ")"
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + array.packed()


def read_npy(path):
    data = pathlib.Path(path).read_bytes()
    assert data[:8] == b"\x93NUMPY\x01\x00"
    length = struct.unpack("<H", data[8:10])[0]
    header = eval(data[10:10 + length].decode(), {})
    assert (10 + length) % 64 == 0
    kind = FORMATS[header["descr"]]
    return Array(header["shape"], struct.unpack(f"<{math.prod(header['shape'])}{kind}", data[10 + length:]),
                 kind)


def safetensors_bytes(tensors):
    header, data = {}, b""
    for name, array in tensors.items():
        dtype = {v: k for k, v in SAFE.items()}[array.kind]
        header[name] = {"dtype": dtype, "shape": array.shape,
                        "data_offsets": [len(data), len(data) + len(array.packed())]}
        data += array.packed()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    result = {}
    for name, entry in json.loads(data[8:8 + length]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            kind = SAFE[entry["dtype"]]
            values = struct.unpack(f"<{math.prod(entry['shape'])}{kind}",
                                   data[8 + length + begin:8 + length + end])
            result[name] = Array(entry["shape"], values, kind)
    return result


def attention(q, k, v, score=None, visible=None, scale=None, sinks=None):
    """O and LSE of [b, s, h, d] arrays; score(b, h, i, j, s) changes a score, visible(b, h, i, j) masks
    it."""
    batch, q_len, q_heads, dim = q.shape
    kv_len, group, v_dim = k.shape[1], q_heads // k.shape[2], v.shape[3]
    scale = 1 / math.sqrt(dim) if scale is None else scale
    o, lse = [0.0] * (batch * q_len * q_heads * v_dim), []
    for b in range(batch):
        for h in range(q_heads):
            for i in range(q_len):
                scores = {}
                for j in range(kv_len):
                    if visible is None or visible(b, h, i, j):
                        s = scale * sum(q.at(b, i, h, d) * k.at(b, j, h // group, d) for d in range(dim))
                        scores[j] = score(b, h, i, j, s) if score else s
                scores = {j: s for j, s in scores.items() if s > -math.inf}
                top = max(scores.values(), default=0)
                total = sum(math.exp(s - top) for s in scores.values())
                lse.append(math.log(total) + top if scores else -math.inf)
                weight = total + (math.exp(sinks[h] - top) if sinks else 0)
                for j, s in scores.items():
                    for d in range(v_dim):
                        o[((b * q_len + i) * q_heads + h) * v_dim
                          + d] += math.exp(s - top) / weight * v.at(b, j, h // group, d)
    return Array((batch, q_len, q_heads, v_dim), o), Array((batch, q_heads, q_len), lse)


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="attn_cli_")
        self.addCleanup(shutil.rmtree, self.folder)
        os.chdir(self.folder)
        self.addCleanup(os.chdir, "/")

    def attn(self, *words, code=0, env=None, **more):
        result = subprocess.run([ATTN, *map(str, words)], capture_output=True, timeout=120,
                                env={**os.environ, **(env or {})}, **more)
        result.stdout, result.stderr = result.stdout.decode(), result.stderr.decode()
        self.assertEqual(result.returncode, code, f"{words}\n{result.stdout}{result.stderr}")
        if code:
            self.assertIn("error:", result.stderr)
        return result

    def write(self, **arrays):
        for name, array in arrays.items():
            pathlib.Path(f"{name}.npy").write_bytes(npy_bytes(array))

    def qkv(self, batch=2, q_len=5, kv_len=7, q_heads=4, kv_heads=2, dim=8, v_dim=6, kind="f"):
        self.q = gaussian((batch, q_len, q_heads, dim), 1, kind)
        self.k = gaussian((batch, kv_len, kv_heads, dim), 2, kind)
        self.v = gaussian((batch, kv_len, kv_heads, v_dim), 3, kind)
        self.write(q=self.q, k=self.k, v=self.v)

    def run_qkv(self, *words, **more):
        return self.attn("run", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", *words, **more)

    def near(self, got, expected, tolerance=2e-6):
        self.assertEqual(got.shape, expected.shape)
        for i, (x, y) in enumerate(zip(got.values, expected.values)):
            if not (x == y or abs(x - y) <= tolerance * max(1, abs(y))):
                self.fail(f"element {i} of {got.shape}: {x}, expected {y}")

    def left_behind(self):
        return sorted(name for name in os.listdir(".") if ".tmp." in name)


class Numbers(Case):
    def check(self, *words, tolerance=2e-6, **expected):
        self.run_qkv("--out", "o.npy", "--lse", "lse.npy", *words)
        o, lse = attention(self.q, self.k, self.v, **expected)
        self.near(read_npy("o.npy"), o, tolerance)
        self.near(read_npy("lse.npy"), lse, tolerance)

    def test_plain(self):
        self.qkv()
        self.check()

    def test_causal_is_bottom_right(self):
        self.qkv()
        self.check("--causal", visible=lambda b, h, i, j: j <= i + 2)
        self.check("--causal", "--top-left", visible=lambda b, h, i, j: j <= i)

    def test_rows_without_keys(self):
        self.qkv(q_len=7, kv_len=4)
        self.check("--causal", visible=lambda b, h, i, j: j <= i - 3)

    def test_window(self):
        self.qkv()
        self.check("--window", "1,2", visible=lambda b, h, i, j: i + 2 - 1 <= j <= i + 2 + 2)
        self.check("--window", "-1,0", visible=lambda b, h, i, j: j <= i + 2)

    def test_scale_and_softcap(self):
        self.qkv()
        self.check("--scale", "0.7", scale=0.7)
        self.check("--softcap", "0.5", score=lambda b, h, i, j, s: 0.5 * math.tanh(s / 0.5))

    def test_bias_broadcasts(self):
        self.qkv()
        bias = gaussian((4, 1, 7), 5)
        self.write(bias=bias)
        self.check("--bias-file", "bias.npy", score=lambda b, h, i, j, s: s + bias.at(h, 0, j))

    def test_mask(self):
        self.qkv()
        mask = Array((2, 1, 5, 7), [random.Random(9).random() < 0.5 for _ in range(70)], "?")
        self.write(mask=mask)
        self.check("--mask-file", "mask.npy", visible=lambda b, h, i, j: mask.at(b, 0, i, j))

    def test_alibi(self):
        self.qkv()
        slopes = gaussian((4,), 6)
        self.write(slopes=slopes)
        self.check("--alibi-file", "slopes.npy",
                   score=lambda b, h, i, j, s: s - slopes.at(h) * abs(i + 2 - j))

    def test_sinks(self):
        self.qkv()
        self.write(sinks=Array((4,), [0.5, -1.0, 2.0, 0.0]))
        self.check("--sinks-file", "sinks.npy", sinks=[0.5, -1.0, 2.0, 0.0])

    def test_used_lengths(self):
        self.qkv()
        self.write(used=Array((2,), [3, 7], "q"))   # int64 is converted
        self.check("--seqused-kv-file", "used.npy", visible=lambda b, h, i, j: j < (3, 7)[b])

    def test_f16(self):
        self.qkv(kind="e")
        self.check("--o-dtype", "f32")
        self.check(tolerance=1e-3)

    def test_v_in_k(self):
        self.qkv()
        self.attn("run", "--q", "q.npy", "--k", "k.npy", "--dv", 3, "--out", "o.npy")
        v = Array((2, 7, 2, 3), [self.k.at(b, j, h, d) for b in range(2) for j in range(7) for h in range(2)
                                 for d in range(3)])
        self.near(read_npy("o.npy"), attention(self.q, self.k, v)[0])

    def test_layout(self):
        self.qkv()
        self.write(q=self.q.swapped(), k=self.k.swapped(), v=self.v.swapped())
        self.run_qkv("--layout", "bhsd", "--causal", "--out", "o.npy")
        o = attention(self.q, self.k, self.v, visible=lambda b, h, i, j: j <= i + 2)[0]
        self.near(read_npy("o.npy"), o.swapped())

    def test_three_dimensions(self):
        self.qkv(batch=1)
        for name in "qkv":
            array = getattr(self, name)
            self.write(**{name: Array(array.shape[1:], array.values)})
        self.run_qkv("--out", "o.npy", "--lse", "lse.npy")
        o, lse = attention(self.q, self.k, self.v)
        self.near(read_npy("o.npy"), Array(o.shape[1:], o.values))
        self.near(read_npy("lse.npy"), Array(lse.shape[1:], lse.values))

    def test_packed(self):
        cu, cu_k = [0, 2, 2, 5], [0, 3, 4, 7]
        self.qkv(batch=1)
        for name in "qkv":
            array = getattr(self, name)
            self.write(**{name: Array(array.shape[1:], array.values)})
        self.write(cu=Array((4,), cu, "i"), cu_k=Array((4,), cu_k, "i"))
        self.run_qkv("--cu-seqlens-q", "cu.npy", "--cu-seqlens-kv", "cu_k.npy", "--causal", "--out", "o.npy",
                     "--lse", "l.npy")
        part = lambda x, c: max(n for n in range(3) if c[n] <= x)
        def visible(b, h, i, j):
            n = part(i, cu)
            longer = (cu_k[n + 1] - cu_k[n]) - (cu[n + 1] - cu[n])
            return part(j, cu_k) == n and j - cu_k[n] <= i - cu[n] + longer
        o, lse = attention(self.q, self.k, self.v, visible=visible)
        self.near(read_npy("o.npy"), Array(o.shape[1:], o.values))
        self.near(read_npy("l.npy"), Array(lse.shape[1:], lse.values))

    def test_paged(self):
        q = gaussian((2, 3, 4, 8), 1)
        pool, values = gaussian((5, 4, 2, 8), 2), gaussian((5, 4, 2, 6), 3)
        table, used = [[4, 0], [2, 1]], [7, 3]
        tensors = {"q": q, "k_cache": pool, "v_cache": values,
                   "block_table": Array((2, 2), sum(table, []), "i"), "cache_seqlens": Array((2,), used, "i")}
        pathlib.Path("paged.safetensors").write_bytes(safetensors_bytes(tensors))
        self.attn("run", "--in", "paged.safetensors", "--out", "o.safetensors")
        flat = lambda pages, dim: Array((2, 8, 2, dim), [pages.at(table[b][j // 4], j % 4, h, d)
                                                         for b in range(2) for j in range(8)
                                                         for h in range(2) for d in range(dim)])
        o, lse = attention(q, flat(pool, 8), flat(values, 6), visible=lambda b, h, i, j: j < used[b])
        result = read_safetensors("o.safetensors")
        self.near(result["o"], o)
        self.near(result["lse"], lse)

    def test_formats_agree(self):
        """npy and safetensors in, npy and safetensors out: the same bits. Also from misaligned data and a
        pipe."""
        self.qkv()
        self.run_qkv("--out", "o.npy")
        tensors = {"odd": Array((1,), [7], "B"), "q": self.q, "k": self.k, "v": self.v}
        pathlib.Path("in.safetensors").write_bytes(safetensors_bytes(tensors))
        result = self.attn("run", "--in", "in.safetensors", "--out", "o.safetensors")
        self.assertIn('"odd" is not used', result.stderr)
        self.assertEqual(read_safetensors("o.safetensors")["o"].values, read_npy("o.npy").values)
        with open("q.npy", "rb") as file:
            self.attn("run", "--q", "/dev/stdin", "--k", "k.npy", "--v", "v.npy", "--out", "piped.npy",
                      stdin=file)
        self.assertEqual(pathlib.Path("piped.npy").read_bytes(), pathlib.Path("o.npy").read_bytes())

    def test_cases_in_one_file(self):
        self.qkv()
        tensors = {f"{case}.{name}": getattr(self, name) for case in "ab" for name in "qkv"}
        tensors["b.seqused_kv"] = Array((2,), [1, 2], "i")
        pathlib.Path("in.safetensors").write_bytes(safetensors_bytes(tensors))
        self.attn("run", "--in", "in.safetensors", "--out", "o.safetensors")
        result = read_safetensors("o.safetensors")
        self.assertEqual(sorted(result), ["a.lse", "a.o", "b.lse", "b.o"])
        self.near(result["b.o"], attention(self.q, self.k, self.v, visible=lambda b, h, i, j: j < 1 + b)[0])
        self.attn("run", "--in", "in.safetensors", "--out", "o.npy", code=2)
        self.attn("run", "--in", "in.safetensors", "--prefix", "a.", "--out", "o.npy")
        self.near(read_npy("o.npy"), result["a.o"])

    def test_dry_run_writes_nothing(self):
        self.qkv()
        result = self.run_qkv("--dry-run", "--out", "o.npy")
        self.assertIn("workspace", result.stdout)
        self.assertFalse(os.path.exists("o.npy"))

    def test_convert_keeps_bits(self):
        self.qkv()
        self.attn("convert", "q.npy", "k.npy", "values=v.npy", "all.safetensors")
        self.attn("convert", "all.safetensors", "again.npy", "--name", "values")
        self.assertEqual(pathlib.Path("again.npy").read_bytes(), pathlib.Path("v.npy").read_bytes())
        self.attn("convert", "v.npy", "half.npy", "--dtype", "f16")
        self.assertEqual(read_npy("half.npy").packed(),
                         struct.pack(f"<{len(self.v.values)}e", *self.v.values))
        self.attn("convert", "v.npy", "words.npy", "--dtype", "bf16")
        self.attn("convert", "words.npy", "back.npy", "--bf16", "--dtype", "f32")
        self.near(read_npy("back.npy"), self.v, 2 ** -8)

    def test_bf16_words(self):
        self.qkv()
        for name in "qkv":
            self.attn("convert", f"{name}.npy", f"{name}.npy", "--dtype", "bf16", "--quiet")   # in place
        self.assertIn("--dtype", self.run_qkv("--out", "o.npy", code=1).stderr)
        self.run_qkv("--dtype", "bf16", "--o-dtype", "f32", "--out", "o.npy")
        self.near(read_npy("o.npy"), attention(self.q, self.k, self.v)[0], 0.03)


class HostileFiles(Case):
    def refused(self, path, data, *reasons):
        """`run` and `inspect` say file, byte and reason; nothing is written."""
        pathlib.Path(path).write_bytes(data)
        words = ["--in", path] if path.endswith("safetensors") else ["--q", path, "--k", "k.npy", "--v",
                                                                     "v.npy"]
        for result in (self.attn("run", *words, "--out", "o.npy", code=1),
                       self.attn("inspect", path, code=1)):
            for reason in (path, *reasons):
                self.assertIn(reason, result.stderr)
        self.assertFalse(os.path.exists("o.npy"))
        self.assertEqual(self.left_behind(), [])

    def test_truncated_anywhere(self):
        q = gaussian((1, 1, 1, 2), 1)
        whole = npy_bytes(q)
        self.write(k=q, v=q)
        for n in range(len(whole)):
            self.refused("cut.npy", whole[:n], "byte")
        whole = safetensors_bytes({"q": q, "k": q, "v": q})
        for n in range(0, len(whole), 3):
            self.refused("cut.safetensors", whole[:n], "byte")

    def test_inspect_names_the_byte(self):
        self.qkv()
        damaged = bytearray(npy_bytes(self.q))
        damaged[20] = ord("x")
        pathlib.Path("bad.npy").write_bytes(damaged)
        result = self.attn("inspect", "--json", "bad.npy", "q.npy", code=1)
        bad, good = json.loads(result.stdout)["files"]
        self.assertIn("byte", result.stderr)
        self.assertGreaterEqual(bad["error_byte"], 10)
        self.assertEqual(good["tensors"][0]["shape"], [2, 5, 4, 8])
        self.assertEqual(good["tensors"][0]["nan"], 0)

    def test_overflow(self):
        self.qkv()
        for shape in ((2 ** 32, 2 ** 32, 2 ** 32, 0), (2 ** 62, 4, 1, 8)):
            text = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }" % (shape,)
            self.refused("huge.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode(),
                         "overflow")
        header = json.dumps({"q": {"dtype": "F32", "shape": [2 ** 40, 2 ** 40],
                                   "data_offsets": [0, 0]}}).encode()
        self.refused("huge.safetensors", struct.pack("<Q", len(header)) + header, "overflow")
        self.refused("header.safetensors", struct.pack("<Q", 2 ** 63) + b"{}", "header length")

    def test_not_a_tensor_file(self):
        self.qkv()
        self.refused("empty.npy", b"", "empty")
        self.refused("text.npy", b"hello, this is no array at all", "magic")
        self.refused("text.safetensors", b"hello, this is no header at all", "header length")
        self.attn("inspect", "missing.npy", code=1)
        self.attn("inspect", ".", code=1)

    def test_names_do_not_steer_the_terminal(self):
        pathlib.Path("x.safetensors").write_bytes(safetensors_bytes({"\033[31mred\007": Array((1,), [1.0])}))
        self.assertNotIn("\033", self.attn("inspect", "x.safetensors").stdout)

    def test_wrong_shapes(self):
        self.qkv()
        cases = [("k", (2, 7, 2, 7)), ("k", (3, 7, 2, 8)), ("v", (2, 6, 2, 6)), ("q", (2, 5, 3, 8)),
                 ("q", (80,)), ("q", (1, 1, 2, 5, 8)), ("q", (2, 5, 4, 0))]
        for name, shape in cases:
            self.qkv()
            self.write(**{name: gaussian(shape, 4)})
            result = self.run_qkv("--out", "o.npy", code=2 if shape == (2, 5, 3, 8) else 1)
            self.assertRegex(result.stderr, r"\b(k|v|q|q_heads|qk_dim|kv_heads)\b")
            self.assertFalse(os.path.exists("o.npy"))

    def test_wrong_types(self):
        self.qkv()
        self.write(q=Array((2, 5, 4, 8), [1] * 320, "i"))
        self.assertIn("I32", self.run_qkv(code=1).stderr)
        self.qkv()
        self.write(k=gaussian((2, 7, 2, 8), 1, "e"))
        self.assertIn("one type", self.run_qkv(code=1).stderr)
        self.run_qkv("--dtype", "f32")

    def test_wrong_lengths(self):
        self.qkv()
        for values, reason in (([3, 8], "seqused_kv[1] = 8"), ([-1, 2], "seqused_kv[0] = -1"),
                               ([2 ** 40, 2], "32 bits")):
            self.write(used=Array((2,), values, "q"))
            result = subprocess.run([ATTN, "run", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy",
                                     "--seqused-kv-file", "used.npy", "--out", "o.npy"], capture_output=True,
                                    text=True)
            self.assertIn(result.returncode, (1, 2))
            self.assertIn(reason, result.stderr)
            self.assertFalse(os.path.exists("o.npy"))

    def test_missing_tensors(self):
        self.qkv()
        self.assertIn('"v"', self.attn("run", "--q", "q.npy", "--k", "k.npy", code=2).stderr)
        pathlib.Path("x.safetensors").write_bytes(safetensors_bytes({"q": self.q}))
        self.assertIn('"k"', self.attn("run", "--in", "x.safetensors", code=2).stderr)
        twice = {"q": self.q, "k": self.k, "k_cache": self.k, "v": self.v}
        pathlib.Path("x.safetensors").write_bytes(safetensors_bytes(twice))
        self.assertIn("same tensor", self.attn("run", "--in", "x.safetensors", code=1).stderr)


class Outputs(Case):
    def setUp(self):
        super().setUp()
        self.qkv()

    def test_unwritable(self):
        os.mkdir("folder")
        for path in ("no/such/o.npy", "folder", "/dev/full"):
            result = self.run_qkv("--out", path, code=1)
            self.assertIn(path, result.stderr)
            self.assertIn("cannot", result.stderr)
        self.assertEqual(self.left_behind(), [])
        self.assertTrue(os.path.isdir("folder"))

    def test_special_files_are_written_not_replaced(self):
        self.run_qkv("--out", "/dev/null")
        self.assertFalse(os.path.isfile("/dev/null"))

    def small_disk(self, *words, limit):
        """The file size limit acts as a full disk, with EFBIG in place of ENOSPC."""
        def limit_files():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return self.run_qkv(*words, code=1, preexec_fn=limit_files, restore_signals=False)

    def test_full_disk_leaves_the_old_output(self):
        self.run_qkv("--out", "o.npy", "--lse", "lse.npy")
        old = pathlib.Path("o.npy").read_bytes(), pathlib.Path("lse.npy").read_bytes()
        for limit in (0, 100, 500):
            result = self.small_disk("--causal", "--out", "o.npy", "--lse", "lse.npy", limit=limit)
            self.assertIn("o.npy: cannot write", result.stderr)
            self.assertEqual(self.left_behind(), [])
        self.assertEqual(old, (pathlib.Path("o.npy").read_bytes(), pathlib.Path("lse.npy").read_bytes()))

    def test_full_file_system(self):
        os.mkdir("small")
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "small"],
                          capture_output=True).returncode:
            self.skipTest("may not mount a small file system here")
        self.addCleanup(subprocess.run, ["umount", "small"])
        self.run_qkv("--out", "small/o.npy")
        old = pathlib.Path("small/o.npy").read_bytes()
        self.qkv(q_len=500, dim=16, v_dim=16)       # 256 KB of O
        result = self.run_qkv("--out", "small/o.npy", code=1)
        self.assertIn("No space left", result.stderr)
        self.assertEqual(os.listdir("small"), ["o.npy"])
        self.assertEqual(pathlib.Path("small/o.npy").read_bytes(), old)

    def test_input_shrinks_while_it_is_read(self):
        codes = set()
        for n in range(12):
            with open("big.npy", "wb") as file:
                file.write(self.big_header(6 << 20))
                file.truncate(128 + 4 * (6 << 20))
            process = subprocess.Popen([ATTN, "inspect", "big.npy"], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE)
            time.sleep(0.003 * (n + 1))
            os.truncate("big.npy", 200)
            error = process.communicate(timeout=60)[1]
            codes.add(process.returncode)
            if process.returncode:
                self.assertIn(b"error: ", error)
        self.assertLessEqual(codes, {0, 1})

    def test_progress_only_on_a_terminal(self):
        tensors = {f"{case}.{name}": getattr(self, name) for case in "abc" for name in "qkv"}
        pathlib.Path("in.safetensors").write_bytes(safetensors_bytes(tensors))
        self.assertEqual(self.attn("run", "--in", "in.safetensors", "--out", "o.safetensors").stderr, "")
        ours, theirs = pty.openpty()
        result = subprocess.run([ATTN, "run", "--in", "in.safetensors", "--out", "o.safetensors"],
                                stderr=theirs, stdout=subprocess.PIPE, timeout=60)
        os.close(theirs)
        shown = os.read(ours, 65536).decode()
        os.close(ours)
        self.assertEqual(result.returncode, 0)
        self.assertIn("case 1 of 3", shown)
        self.assertTrue(shown.endswith("\r\033[K"))

    def test_both_outputs_or_none(self):
        self.run_qkv("--out", "o.npy", "--lse", "/dev/full", code=1)
        self.assertFalse(os.path.exists("o.npy"))
        self.assertEqual(self.left_behind(), [])
        self.run_qkv("--out", "o.npy", "--lse", "o.npy", code=2)

    def test_failure_leaves_the_old_output(self):
        pathlib.Path("o.npy").write_text("old")
        self.attn("run", "--q", "q.npy", "--k", "q.npy", "--v", "v.npy", "--out", "o.npy", code=1)
        self.assertEqual(pathlib.Path("o.npy").read_text(), "old")
        self.assertEqual(self.left_behind(), [])

    def test_full_standard_output(self):
        with open("/dev/full", "w") as full:
            for words in (["info"], ["info", "--json"], ["help"], ["inspect", "q.npy"], ["--version"]):
                result = subprocess.run([ATTN, *words], stdout=full, stderr=subprocess.PIPE, text=True)
                self.assertEqual(result.returncode, 1, words)
                self.assertIn("standard output", result.stderr)

    def big_header(self, count):
        text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % count
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117) + b"\n"

    def interrupted(self, number, delays):
        """Signal a conversion of 24 MB at some instants; whole old or whole new, and no rest. @return exit
        codes."""
        codes = []
        with open("big.npy", "wb") as file:
            file.write(self.big_header(6 << 20))
            file.truncate(128 + 4 * (6 << 20))
        whole = os.path.getsize("big.npy")
        for delay in delays:
            pathlib.Path("out.npy").write_text("old")
            process = subprocess.Popen([ATTN, "convert", "big.npy", "out.npy", "--quiet"],
                                       stderr=subprocess.PIPE)
            time.sleep(delay)
            process.send_signal(number)
            process.communicate(timeout=60)
            codes.append(process.returncode)
            size = os.path.getsize("out.npy")
            self.assertIn(size, (3, whole))
            if number != signal.SIGKILL:
                self.assertEqual(self.left_behind(), [])
                if process.returncode == 0:     # the signal may also come between renaming and exiting
                    self.assertEqual(size, whole)
            for name in self.left_behind():
                os.remove(name)
        return codes

    def test_interrupt(self):
        codes = self.interrupted(signal.SIGINT, [0.002 * n for n in range(1, 41)])
        self.assertLessEqual(set(codes), {0, 130, -signal.SIGINT})   # before main: the signal's own way
        self.assertIn(130, codes)
        self.assertIn(143, self.interrupted(signal.SIGTERM, [0.004 * n for n in range(1, 11)]))
        self.interrupted(signal.SIGKILL, [0.004 * n for n in range(1, 11)])


@unittest.skipUnless(os.environ.get("ATTN_FAIL_MALLOC"), "needs ATTN_FAIL_MALLOC=libfail_malloc.so")
class OutOfMemory(Case):
    def every_allocation(self, words, output=None):
        """The n-th allocation fails, for each n: an error and no output, or (where it can be done without)
        the same output."""
        self.attn(*words)
        right = pathlib.Path(output).read_bytes() if output else self.attn(*words).stdout.encode()
        failures = 0
        for n in range(1, 2000):
            if output:
                os.remove(output)
            env = {**os.environ, "LD_PRELOAD": os.environ["ATTN_FAIL_MALLOC"], "FAIL_MALLOC_AT": str(n)}
            result = subprocess.run([ATTN, *words], capture_output=True, env=env, timeout=60)
            self.assertIn(result.returncode, (0, 1, 2), (n, result.stderr))
            self.assertEqual(self.left_behind(), [])
            if result.returncode:
                failures += 1
                self.assertIn(b"memory", result.stderr, n)
                self.assertFalse(output and os.path.exists(output), n)
                if output:
                    pathlib.Path(output).write_bytes(b"")
            else:
                self.assertEqual(right, pathlib.Path(output).read_bytes() if output else result.stdout, n)
                if n > failures + 40:
                    break
        self.assertGreater(failures, 3)

    def test_run(self):
        self.qkv()
        self.attn("convert", "q.npy", "k.npy", "v.npy", "in.safetensors")
        self.every_allocation(["run", "--in", "in.safetensors", "--out", "o.safetensors", "--quiet"],
                              "o.safetensors")
        self.every_allocation(["run", "--q", "q.npy", "--k", "k.npy", "--v", "v.npy", "--out", "o.npy"],
                              "o.npy")

    def test_convert(self):
        self.qkv()
        self.every_allocation(["convert", "q.npy", "k.npy", "c.safetensors", "--dtype", "bf16"],
                              "c.safetensors")

    def test_json(self):
        self.qkv()
        self.every_allocation(["inspect", "--json", "q.npy"])
        self.every_allocation(["explain", "--sq", "1,2"])


if __name__ == "__main__":
    unittest.main()
