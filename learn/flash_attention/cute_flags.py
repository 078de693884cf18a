"""cute_flags.py — compiler flags for flash_v2_cute.cu: where pip has put CUTLASS's headers (package nvidia-cutlass)."""
import importlib.util
import pathlib
import sys

found = importlib.util.find_spec("cutlass_library")
include = pathlib.Path(found.origin).parent / "source" / "include" if found else None
if not include or not (include / "cute" / "tensor.hpp").exists():
    sys.exit("skipped: CUTLASS's headers are not here (pip install nvidia-cutlass)")
print(f"-std=c++17 --expt-relaxed-constexpr -I{include}")
