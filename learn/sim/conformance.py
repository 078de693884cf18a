"""conformance.py — does the simulator tell the truth? Lessons 01 to 05 run under it and on a GPU; the results
must have the same bits, what the hardware's counters see is put beside what the simulator counted, and
compute-sanitizer must find what the simulator finds in three wrong solutions.

    python3 learn/sim/conformance.py build FOLDER  (nvcc; no GPU) both programs of every lesson into FOLDER
    python3 FOLDER/conformance.py run FOLDER       (a GPU) compare; the counters too if Nsight Compute is here

The GPU programs are built with -fmad=false, since the CPU's compiler does not fuse multiply and add, and with
the simulator's sizes, so that both do the same work. FOLDER can be carried to another machine: nothing else
is needed.
"""
import csv
import io
import os
import pathlib
import shutil
import subprocess
import sys

SIM = pathlib.Path(__file__).resolve().parent
TARGETS = ["80", "90"]
METRICS = {                       # the hardware's counter: the simulator's
    "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum": "load_requests",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum": "load_sectors",
    "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum": "store_requests",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum": "store_sectors",
    "smsp__inst_executed_op_shared_ld.sum": "shared_requests",
    "smsp__inst_executed_op_shared_st.sum": "shared_requests",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum": "shared_wavefronts",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_st.sum": "shared_wavefronts",
}
WRONG = {"02_reads_beyond": "memcheck", "03_missing_barrier": "racecheck", "04_no_warp_sync": "racecheck"}
COLUMNS = ["launches", "load_requests", "load_sectors", "store_requests", "store_sectors", "shared_requests",
           "shared_wavefronts"]


def build(folder):
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(__file__, folder)
    lessons = sorted((SIM.parent / "cuda_basics").glob("0[1-5]_*.cu"))
    wrong = [SIM.parent / "exercises" / "mutants" / (name + ".cu") for name in WRONG]
    for source in lessons + wrong:
        program = str(folder / (source.stem if source in lessons else "wrong_" + source.stem))
        codes = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in TARGETS]
        subprocess.run([os.environ.get("NVCC", "nvcc"), "-O3", "-std=c++17", "-lineinfo", "-fmad=false",
                        "-DLESSON_SMALL", "-diag-suppress=128", "-I", str(SIM.parent / "cuda_basics"), *codes,
                        str(source), "-o", program + ".gpu"], check=True)
        subprocess.run(["bash", str(SIM / "simulate.sh"), "-program", "-o", program + ".sim", str(source)],
                       check=True)
        print(f"built {source.stem}")


def run_program(program, folder, **variables):
    """Run it; its results as {name: (bytes, hash)}, in the order in which it made them."""
    results = folder / "results.txt"
    results.unlink(missing_ok=True)
    done = subprocess.run([str(program)], env=dict(os.environ, LEARN_RESULTS=str(results), SIM_REPORT="0",
                                                   **variables),
                          capture_output=True, text=True, timeout=120)
    lines = results.read_text().splitlines() if results.exists() else []
    return [tuple(line.split("\t")) for line in lines], done


def simulated_counts(path):
    rows = [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []
    return {row[0]: dict(zip(COLUMNS, map(int, row[1:]))) for row in rows}


def hardware_counts(program):
    """{kernel: {metric: sum over launches}} by ncu, or why there are none."""
    ncu = shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")
    if not ncu:
        return None, "ncu is not installed"
    done = subprocess.run([ncu, "--csv", "--clock-control", "none", "--cache-control", "none",
                           "--print-kernel-base", "function", "--metrics", ",".join(METRICS), str(program)],
                          capture_output=True, text=True, timeout=300)
    start = done.stdout.find('"ID"')
    if start < 0:
        return None, "ncu gave no table: " + (done.stdout + done.stderr).strip()[-200:]
    counts = {}
    for row in csv.DictReader(io.StringIO(done.stdout[start:])):
        kernel = counts.setdefault(row["Kernel Name"].split("(")[0].split("<")[0], {})
        name = METRICS.get(row["Metric Name"])
        if name and row["Metric Value"][:1].isdigit():
            kernel[name] = kernel.get(name, 0) + int(float(row["Metric Value"].replace(",", "")))
    return counts, None


def compare_results(lesson, folder):
    """@return how many results differ, or are missing."""
    want, sim = run_program(folder / (lesson + ".sim"), folder, SIM_COUNTS=str(folder / (lesson + ".counts")))
    got, gpu = run_program(folder / (lesson + ".gpu"), folder)
    again, _ = run_program(folder / (lesson + ".gpu"), folder)
    bad = sim.returncode != 0
    if not want or len(want) != len(got):
        print(f"NO   {lesson}: {len(want)} results of the simulator, {len(got)} of the GPU: "
              f"{gpu.stderr.strip()[-200:]}")
        return 1
    for s, g, a in zip(want, got, again):
        same = s == g == a
        print(f"{'yes' if same else 'NO '}  {lesson}: {s[0]}: {s[1]} bytes, simulator {s[2]}, GPU {g[2]}"
              + ("" if g == a else f", then {a[2]}"))
        bad += not same
    return bad


def compare_counts(lesson, folder):
    hardware, why = hardware_counts(folder / (lesson + ".gpu"))
    if hardware is None:
        print(f"     {lesson}: counters not compared: {why}")
        return
    for kernel, counted in simulated_counts(folder / (lesson + ".counts")).items():
        for name in dict.fromkeys(METRICS.values()):
            seen = hardware.get(kernel, {}).get(name)
            if seen is None or not (seen or counted[name]):
                continue
            ratio = counted[name] / seen if seen else float("inf")
            print(f"{'same' if counted[name] == seen else '    '} {kernel:<24} {name:<18} simulator "
                  f"{counted[name]:>10}  GPU {seen:>10}  ratio {ratio:.3f}")


def first_line(text, *words):
    lines = (line.strip("= ") for line in text.splitlines() if any(w in line for w in words))
    return next(lines, "nothing")[:150]


def compare_verdicts(folder):
    """@return how many wrong solutions compute-sanitizer lets through."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if not tool:
        print("     verdicts not compared: compute-sanitizer is not installed")
        return 0
    bad = 0
    for name, check in WRONG.items():
        _, sim = run_program(folder / f"wrong_{name}.sim", folder)
        done = subprocess.run([tool, "--tool", check, "--error-exitcode", "9",
                               str(folder / f"wrong_{name}.gpu")],
                              capture_output=True, text=True, timeout=300)
        both = sim.returncode != 0 and done.returncode == 9
        print(f"{'yes' if both else 'NO '}  {name}: simulator: {first_line(sim.stderr, 'sim:')}")
        print(f"     {check}: {first_line(done.stdout, 'Error:', 'hazard', 'Invalid')} (exit code "
              f"{done.returncode})")
        bad += not both
    return bad


def run(folder):
    bad = 0
    lessons = sorted(p.stem for p in folder.glob("0[1-5]_*.gpu"))
    for lesson in lessons:
        (folder / (lesson + ".counts")).unlink(missing_ok=True)
        bad += compare_results(lesson, folder)
    print()
    for lesson in lessons:
        compare_counts(lesson, folder)
    print()
    verdicts = compare_verdicts(folder)
    print(f"\n{len(lessons)} lessons, {bad} results differ, {verdicts} verdicts differ")
    return bad or verdicts or not lessons


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("build", "run"):
        sys.exit(__doc__)
    where = pathlib.Path(sys.argv[2]).resolve()
    sys.exit(build(where) if sys.argv[1] == "build" else run(where) != 0)
