#!/usr/bin/env python3
"""benchmark_all.py — everything this machine can measure, into one folder: the CPU suites with their HTML
report, the Python call overhead, and PyTorch beside us where torch is installed; on a GPU also its suites and
peers.

    python3 bench/benchmark_all.py [--build build] [--out report] [--quick]
Each part is a program of its own that also runs alone; a part that fails or is missing is a line, not the
end.
"""
import argparse
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def parts(build, out, quick):
    attn = str(build / "attn")
    fast = ["--samples", "2"] if quick else []
    yield "CPU suites", [attn, "bench", "--suite", "prefill,decode", "--html", out / "report.html", "--json",
                         out / "cpu.json", *fast], None
    yield "speed table", [attn, "bench", "--suite", "table", *fast], None
    yield "the course's ladder", [attn, "bench", "--b", "1", "--hq", "1", "--sq", "2048", "--d", "64",
                                  "--threads", "1",
                                  "--kernel", ",".join(str(ROOT / "learn/flash_attention" / f) for f in
                                                       ("naive.c", "online_softmax.c", "flash_v1.c",
                                                        "flash_v2.c"))
                                  + ",flash_*", *fast], None
    yield "Python call overhead", [sys.executable, ROOT / "bench/python_overhead.py"], "numpy"
    yield "PyTorch on this CPU", [sys.executable, ROOT / "bench/peers_torch.py", "--cpu", "--rounds",
                                  "2" if quick else "5"], "torch"
    if shutil.which("nvidia-smi"):
        yield "GPU suites", [attn, "bench", "--backend", "cuda", "--suite", "prefill", "--json",
                             out / "gpu.json"], None
        yield "PyTorch on this GPU", [sys.executable, ROOT / "bench/peers_torch.py", "--library",
                                      build / "libattn.so", "--json", out / "peers.json"], "torch"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("report"))
    parser.add_argument("--quick", action="store_true", help="two samples each: a look, no figure to quote")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not (arguments.build / "attn").exists():
        sys.exit(f"{arguments.build}/attn is missing: cmake -S . -B {arguments.build} && cmake --build "
                 f"{arguments.build}")
    failed = []
    for name, command, needs in parts(arguments.build.resolve(), arguments.out.resolve(), arguments.quick):
        if needs and importlib.util.find_spec(needs) is None:
            print(f"-- {name}: skipped, this Python has no {needs}", flush=True)
            continue
        print(f"== {name}", flush=True)
        started = time.time()
        code = subprocess.run([str(word) for word in command]).returncode
        outcome = "done" if code == 0 else f"exit code {code}"
        print(f"-- {name}: {outcome} after {time.time() - started:.0f} s", flush=True)
        failed += [name] * (code != 0)
    print(f"\nresults in {arguments.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(bool(failed))


main()
