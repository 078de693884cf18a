"""The ctypes structs have the header's layout: a C program prints sizeof and offsetof, this compares."""
import ctypes
import pathlib
import shutil
import subprocess

import pytest
from attn import _library as L

HEADER = pathlib.Path(__file__).resolve().parents[2] / "include"
PAIRS = {"attn_problem": L.Problem, "attn_tensors": L.Tensors, "attn_options": L.Options,
         "attn_kernel_info": L.KernelInfo, "attn_stride": L.Stride, "attn_score_stride": L.ScoreStride}


@pytest.mark.skipif(shutil.which("cc") is None or not HEADER.exists(),
                    reason="needs a C compiler and the header")
def test_structs_match_the_header(tmp_path):
    lines = []
    for name, struct in PAIRS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field, _ in struct._fields_:
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof({name}, {field.rstrip("_")}));')
    source = tmp_path / "layout.c"
    source.write_text("#include <stdio.h>\n#include <attn/attn.h>\nint main(void) {\n" + "\n".join(lines)
                      + "\n}\n")
    program = tmp_path / "layout"
    subprocess.run(["cc", "-std=c11", f"-I{HEADER}", str(source), "-o", str(program)], check=True)
    for line in subprocess.run([str(program)], check=True, capture_output=True,
                               text=True).stdout.splitlines():
        what, value = line.split()
        name, _, field = what.partition(".")
        ours = getattr(PAIRS[name], field).offset if field else ctypes.sizeof(PAIRS[name])
        assert ours == int(value), what
