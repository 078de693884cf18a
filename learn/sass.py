"""sass.py — what the compiler made of a kernel: registers, spills and the instructions that matter, without a
GPU.

    python3 learn/sass.py learn/flash_attention/flash_mma.cu [sm_80]
Needs nvcc and cuobjdump (CUDA's toolkit has it; Triton's Python package brings one).
"""
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

INCLUDE = pathlib.Path(__file__).resolve().parents[1] / "include"
WORTH_COUNTING = ["HGMMA", "HMMA", "LDSM", "LDGSTS", "LDG", "STG", "LDS", "STS", "MUFU", "FFMA", "SHFL",
                  "BAR", "LDL", "STL"]


def find_cuobjdump():
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if not found and triton:
        beside = pathlib.Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(beside) if beside.exists() else None
    return found


def plain(symbol):
    """_Z9flash_mmaILi64ELi0EE... -> flash_mma<64, 0>"""
    match = re.match(r"_Z(\d+)", symbol)
    if not match:
        return symbol
    name = symbol[match.end():match.end() + int(match[1])]
    rest = symbol[match.end() + int(match[1]):]
    arguments = re.findall(r"Li(\d+)E", rest) if rest.startswith("I") else []
    return name + (f"<{', '.join(arguments)}>" if arguments else "")


def main(source, target):
    if not shutil.which("nvcc") or not find_cuobjdump():
        print("skipped: needs nvcc and cuobjdump")
        return
    with tempfile.TemporaryDirectory() as folder:
        cubin = folder + "/kernel.cubin"
        subprocess.run(["nvcc", "-O3", "-std=c++17", f"-arch={target}", "-cubin", "-I", str(INCLUDE), source,
                        "-o", cubin], check=True)
        use = subprocess.run(["cuobjdump", "-res-usage", cubin], executable=find_cuobjdump(),
                             capture_output=True, text=True)
        sass = subprocess.run(["cuobjdump", "-sass", cubin], executable=find_cuobjdump(), capture_output=True,
                              text=True)
    registers = dict(re.findall(r"Function (\S+?):\s+REG:(\d+)", use.stdout + use.stderr))
    for part in sass.stdout.split("Function : ")[1:]:
        symbol = part.split()[0]
        opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)", part)
        counts = ", ".join(f"{opcodes.count(name)} {name}" for name in WORTH_COUNTING if name in opcodes)
        print(f"{plain(symbol)} for {target}: {registers.get(symbol, '?')} registers; {counts}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "sm_80")
