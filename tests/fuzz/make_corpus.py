#!/usr/bin/env python3
"""Write the seed inputs of the fuzz targets: python3 make_corpus.py corpus. What a fuzzer found later lies
beside them."""
import json
import pathlib
import random
import struct
import sys


def npy(header, data=b"", version=(1, 0), length=None):
    text = header.encode("latin1")
    pad = -(len(text) + 11) % 64
    text += b" " * pad + b"\n"
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + text + data


def header(descr="'<f4'", order="False", shape="(2, 3)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


NPY = {
    "f32": npy(header(), bytes(24)),
    "version2": npy(header(), bytes(24), (2, 0)),
    "version3": npy(header("'<f2'"), bytes(12), (3, 0)),
    "version4": npy(header(), bytes(24), (4, 0)),
    "scalar": npy(header(shape="()"), bytes(4)),
    "vector": npy(header("'<i4'", shape="(5,)"), bytes(20)),
    "empty": npy(header(shape="(0, 7)")),
    "bool": npy(header("'|b1'", shape="(3,)"), bytes(3)),
    "bf16_void": npy(header("'<V2'", shape="(3,)"), bytes(6)),
    "double_quotes": npy('{"shape": (1L, 2L), "descr": "<f8", "fortran_order": False}', bytes(16)),
    "fortran": npy(header(order="True"), bytes(24)),
    "fortran_vector": npy(header(order="True", shape="(6,)"), bytes(24)),
    "pickle": npy(header("'|O'"), bytes(24)),
    "big_endian": npy(header("'>f4'"), bytes(24)),
    "complex": npy(header("'<c8'"), bytes(48)),
    "structured": npy(header("[('x', '<f4')]"), bytes(24)),
    "overflow": npy(header(shape="(4294967296, 4294967296, 4294967296)")),
    "overflow_hidden_by_zero": npy(header(shape="(4294967296, 4294967296, 0, 4294967296)")),
    "huge_dimension": npy(header(shape="(99999999999999999999999,)")),
    "negative": npy(header(shape="(-1, 2)")),
    "nine_dimensions": npy(header(shape="(1, 1, 1, 1, 1, 1, 1, 1, 1)"), bytes(4)),
    "missing_key": npy("{'descr': '<f4', 'shape': (1,)}", bytes(4)),
    "duplicate_key": npy("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4)),
    "trailing": npy(header(), bytes(25)),
    "truncated": npy(header(), bytes(23)),
    "long_header": npy(header(), bytes(24), length=60000),
    "no_header": b"\x93NUMPY\x01\x00\x00\x00",
    "short": b"\x93NUMPY\x02\x00\x00\x00",
}


def safe(entries, data=b"", length=None, text=None):
    text = json.dumps(entries).encode() if text is None else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


SAFETENSORS = {
    "one": safe({"q": entry()}, bytes(24)),
    "two": safe({"q": entry(), "k": entry("BF16", (4,), (24, 32))}, bytes(32)),
    "unsorted": safe({"b": entry("U8", (4,), (4, 8)), "a": entry("U8", (4,), (0, 4))}, bytes(8)),
    "metadata": safe({"__metadata__": {"format": "np"}, "q": entry()}, bytes(24)),
    "metadata_number": safe({"__metadata__": {"format": 1}, "q": entry()}, bytes(24)),
    "empty_tensor": safe({"q": entry(shape=(0, 3), offsets=(0, 0))}),
    "no_tensor": safe({}),
    "scalar": safe({"q": entry(shape=(), offsets=(0, 4))}, bytes(4)),
    "padded": safe(None, bytes(24), text=json.dumps({"q": entry()}).encode() + b"   \n"),
    "overlap": safe({"q": entry(), "k": entry(offsets=(12, 36))}, bytes(36)),
    "gap": safe({"q": entry(), "k": entry(offsets=(28, 52))}, bytes(52)),
    "past_end": safe({"q": entry()}, bytes(20)),
    "trailing": safe({"q": entry()}, bytes(30)),
    "wrong_size": safe({"q": entry(offsets=(0, 20))}, bytes(20)),
    "reversed": safe({"q": entry(offsets=(24, 0))}, bytes(24)),
    "fraction": safe({"q": entry(shape=(2.5, 3))}, bytes(24)),
    "negative": safe({"q": entry(shape=(-2, 3))}, bytes(24)),
    "overflow": safe({"q": entry(shape=(2 ** 40, 2 ** 40), offsets=(0, 0))}),
    "overflow_hidden_by_zero": safe({"q": entry(shape=(2 ** 40, 2 ** 40, 0), offsets=(0, 0))}),
    "not_exact": safe({"q": entry(shape=(2 ** 53 + 1,))}, bytes(24)),
    "unknown_dtype": safe({"q": entry("F4")}, bytes(24)),
    "duplicate": safe(None, bytes(24), text=b'{"q":%s,"q":%s}' % ((json.dumps(entry()).encode(),) * 2)),
    "duplicate_escaped": safe(None, bytes(24),
                              text=b'{"q":%s,"\\u0071":%s}' % ((json.dumps(entry()).encode(),) * 2)),
    "duplicate_inside": safe(None, bytes(24),
                             text=b'{"q":{"dtype":"F32","dtype":"F32","shape":[6],"data_offsets":[0,24]}}'),
    "not_object": safe(None, text=b"[1, 2]"),
    "not_json": safe(None, text=b"{q: 1}"),
    "bad_utf8": safe(None, bytes(24), text=b'{"\xff":%s}' % json.dumps(entry()).encode()),
    "bad_continuation": safe(None, bytes(24), text=b'{"\xc3(":%s}' % json.dumps(entry()).encode()),
    "surrogate": safe(None, bytes(24), text=b'{"\xed\xa0\x80":%s}' % json.dumps(entry()).encode()),
    "utf8": safe(None, bytes(24),
                 text='{"\u00e9\u20ac\U0001f600":%s}'.encode() % json.dumps(entry()).encode()),
    "two_empty": safe({"b": entry(shape=(0,), offsets=(0, 0)), "a": entry(shape=(0,), offsets=(0, 0))}),
    "no_dtype": safe({"q": {"shape": [6], "data_offsets": [0, 24]}}, bytes(24)),
    "three_offsets": safe({"q": entry(offsets=(0, 12, 24))}, bytes(24)),
    "after_json": safe(None, bytes(24), text=json.dumps({"q": entry()}).encode() + b"x"),
    "deep": safe(None, text=b"[" * 2000),
    "nul": safe(None, bytes(24),
                text=b'{"q\\u0000a":%s,"q\\u0000b":%s}' % ((json.dumps(entry()).encode(),) * 2)),
    "long_header": safe({}, length=2 ** 63),
    "short": b"\x01\x02\x03",
    "header_past_end": safe({}, length=1000),
}


def problems():
    """Bytes of fuzz_problem.c's small_case: sizes, then scores and batching bits, then the rest."""
    dice = random.Random(1)
    cases = {"zeros": bytes(40), "ones": bytes([255]) * 200}
    for scores in [0, 1, 3, 7, 8, 16, 32, 64, 128, 255]:
        cases[f"scores_{scores}"] = bytes([2, 1, 1, 9, 17, 15, 15, 0, 0, scores, 0]) + dice.randbytes(20)
    for batching in [1, 2, 3, 4, 8, 12, 15, 16, 32, 48, 64, 68, 72, 128, 200]:
        cases[f"batching_{batching}"] = bytes([3, 1, 2, 12, 33, 31, 7, 1, 1, 1,
                                               batching]) + dice.randbytes(20)
    for i in range(8):
        cases[f"random_{i}"] = dice.randbytes(64)
    return cases


OPTIONS = {
    "plain": "--b 1 --hq 8 --sq 2k --d 64 --causal --dtype bf16",
    "lists": "--sq 1k,2k,4k --causal=0,1 --window 1,0/-1,2 --dtype f32,f16",
    "everything": "--bias f16 --mask --alibi 2 --sinks --packed --packed-kv --q-total 9 --kv-total 9 "
                  "--seqused-q --seqused --leftpad --batch-index --kv-batch 3 --page-size 16 --pages 99 "
                  "--v-in-k --strict --top-left --softcap 30 --scale -0.5 --o-dtype f32 --kernel x,y "
                  "--backend cuda --device 1 --threads 1,2 --splits 4 --layout bhsd",
    "wrong": "--sq x --nothing --window 1 --dtype f8 -q --d",
    "equals": "--sq=1m --d=1024 --causal=1 -- operand --sq",
    "huge": "--sq 1099511627776 --sk 1099511627776 --hq 1099511627776 --layout bhsd --bias f32 --page-size 3 "
            "--packed",
    "empty_items": "--sq ,, --kernel ,a, --window /",
}


def main():
    options = {name: line.replace(" ", "\n").encode() for name, line in OPTIONS.items()}
    everything = {"npy": NPY, "safetensors": SAFETENSORS, "problem": problems(), "options": options}
    for name, inputs in everything.items():
        folder = pathlib.Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        for stem, data in inputs.items():
            (folder / stem).write_bytes(data)


main()
