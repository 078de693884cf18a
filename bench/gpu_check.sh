#!/usr/bin/env bash
# gpu_check.sh — everything that needs a GPU, from a built tree, in at most 8 minutes: the checker on all CUDA
# kernels, repeats, graphs, bad input, compute-sanitizer, and the benchmark beside PyTorch. One results file.
#
#     bench/gpu_check.sh [-b BUILD] [-o RESULTS] [-c COMMIT] [-s KERNELS] [SECTION...]
#
# Sections: info check append python zoo device input sanitizer bench decode mla f32 peers; all if none is
# named. Exit code 1: something failed.
# Needs no compiler and no network; python3 with PyTorch only for peers and (with pytest, hypothesis) python,
# compute-sanitizer only for append and sanitizer (a missing tool counts as skipped, and the file says so).
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build results='' commit='' sanitized=''
while getopts b:o:c:s:h option; do
    case $option in
    b) build=$OPTARG ;;
    o) results=$OPTARG ;;
    c) commit=$OPTARG ;;
    s) sanitized=$OPTARG ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || set -- info check append python zoo device input sanitizer bench decode mla f32 peers
build=$(cd "$build" && pwd) || exit 2
[ -n "$commit" ] || commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null ||
    cat "$root/commit" 2>/dev/null || echo unknown)
[ -n "$results" ] || results=$build/gpu-check.txt
mkdir -p "$(dirname "$results")" && : >"$results" || exit 2
export LD_LIBRARY_PATH=$build${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} ATTN_CHECK_BACKEND=cuda NO_COLOR=1
failed='' skipped=''

say() { printf '%s\n' "$*" | tee -a "$results"; }

# step NAME SECONDS COMMAND...: bounded; its output goes to the file, the end of it to the terminal if it
# fails.
step() {
    local log
    log=$(mktemp)
    bounded "$log" "$@"
    report "$log" "$@"
}

# step, and what the card's clock and power were meanwhile.
clocked() {
    local log
    log=$(mktemp)
    nvidia-smi --query-gpu=clocks.sm,power.draw,enforced.power.limit --format=csv,noheader,nounits -lms 200 >"$log" \
        2>/dev/null &
    step "$@"
    kill $! 2>/dev/null
    wait $! 2>/dev/null
    say "   SM clock, MHz: $(column_of "$log" 1); power, W: $(column_of "$log" 2), limit $(tail -n 1 "$log" | cut -d, -f3)"
    rm -f "$log"
}
# Least, median and largest of a column.
column_of() {
    cut -d, -f"$2" "$1" | sort -n | awk '{ x[NR] = $1 } END { print x[1] " .. " x[int((NR + 1) / 2)] " .. " x[NR] }'
}

# Run a step's command, its output and then its exit code and seconds into LOG.
bounded() {
    local log=$1 limit=$3 start=$SECONDS rc
    shift 3
    timeout -k 5 "$limit" "$@" >"$log" 2>&1
    rc=$?
    echo "$rc $((SECONDS - start))" >"$log.rc"
}

report() {
    local log=$1 name=$2 limit=$3 rc seconds
    shift 3
    read -r rc seconds <"$log.rc" || rc=1 seconds=0
    { printf '\n== %s: %s\n' "$name" "$*"; cat "$log"; } |
        sed "s|$root/||g;s|$build|build|g;s|$(dirname "$results")/||g;s|/tmp/tmp[^ /]*/||g" >>"$results"
    if [ "$rc" -eq 0 ]; then
        say "-- $name: ok, $seconds s"
    else
        [ "$rc" -ne 124 ] || say "   stopped after $limit s"
        tail -n 25 "$log"
        say "-- $name: FAILED (exit code $rc), $seconds s"
        failed="$failed $name"
    fi
    rm -f "$log" "$log.rc"
}

# beside NAME SECONDS COMMAND...: queue a step that measures no time; `together` runs all that are queued at
# once and reports them in order. The checkers wait for float64 on the CPU most of the time.
queue=() logs=()
beside() {
    local log
    log=$(mktemp)
    bounded "$log" "$@" &
    logs+=("$log")
    queue+=("$(printf '%q ' "$@")")
}
together() {
    local i
    wait
    for i in "${!queue[@]}"; do eval "report ${logs[$i]} ${queue[$i]}"; done
    queue=() logs=()
}

skip() { say "-- $1: skipped, $2"; skipped="$skipped $1"; }

# compute-sanitizer's four tools on few small cases: all kernels, grid and random. racecheck does not model
# the asynchronous copies of sm_90 fully: its silence is weak evidence there, a report is strong.
sanitizer() {
    local tool cases kernel
    command -v compute-sanitizer >/dev/null ||
        { skip sanitizer "compute-sanitizer is not installed"; return; }
    [ -z "$sanitized" ] || say "   compute-sanitizer on these only: $sanitized"
    for tool in memcheck initcheck racecheck synccheck; do
        cases=0.12
        [ $tool != racecheck ] || cases=0.06
        for kernel in ${sanitized:-$kernels}; do
            if [ "$tool-$kernel" = racecheck-mla_decode_sm90 ]; then
                # Row maxima in shared memory are handed back together with the K tile: the reader releases the tile to
                # the copy engine, whose bytes the next writer awaits. racecheck reports reads before these writes.
                skip "sanitizer-$tool-$kernel" "it doesn't follow what the copy engine orders"
                continue
            fi
            beside "sanitizer-$tool-$kernel" 100 env ATTN_CHECK_CASES=$cases ATTN_CHECK_KERNEL=$kernel \
                compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 \
                "$build/tests/test_kernels"
        done
    done
    together
}

# Real input on both backends: O and LSE agree.
real_input() {
    local input=$root/demo/minilm.safetensors work
    command -v python3 >/dev/null && python3 -c 'import numpy' 2>/dev/null ||
        { skip input "no NumPy"; return; }
    work=$(mktemp -d)
    cat >"$work/compare.py" <<'END'
import json, sys
import numpy as np
def read(path):
    data = open(path, "rb").read()
    size = int.from_bytes(data[:8], "little")
    table = json.loads(data[8:8 + size])
    table.pop("__metadata__", None)
    floats = np.frombuffer(data[8 + size:], np.float32)
    return {name: floats[slice(*(at // 4 for at in t["data_offsets"]))] for name, t in table.items()}
a, b = read(sys.argv[1]), read(sys.argv[2])
with np.errstate(invalid="ignore"):      # -inf on both sides is equal
    worst = float(np.max([np.max(np.where(a[n] == b[n], 0, np.abs(a[n] - b[n]))) for n in a]))
print(f"{len(a)} tensors, largest difference {worst:.2e}")
sys.exit(0 if a.keys() == b.keys() and len(a) and worst <= 2e-2 else 1)     # P in bf16
END
    beside input-cpu 30 "$build/attn" run --in "$input" --o-dtype f32 --out "$work/cpu.safetensors"
    beside input-cuda 30 "$build/attn" run --in "$input" --o-dtype f32 --out "$work/cuda.safetensors" \
        --backend cuda
    together
    step input-compare 30 python3 "$work/compare.py" "$work/cpu.safetensors" "$work/cuda.safetensors"
    rm -rf "$work"
}

# 16k tokens, hidden 2048, bf16: the planner's choice beside the card's ceilings.
bench_bf16() {
    local d
    for d in 64 128 256; do
        step "bench-d$d" 60 "$build/attn" bench --backend cuda --dtype bf16 --b 8 --hq $((2048 / d)) --sq 2k \
            --d $d --causal=0,1 --samples 5 --sample-ms 20 --budget 4
    done
}

# Long caches, beside the peers' figures: the table here, the same rows as JSON in a file of their own.
suite() {
    clocked "bench-$1" 90 "$build/attn" bench --backend cuda --suite "$1" --json "${results%.txt}-$1.json"
}

peers() {
    command -v python3 >/dev/null && python3 -c 'import torch' 2>/dev/null ||
        { skip peers "no PyTorch"; return; }
    step peers 200 python3 "$root/bench/peers_torch.py" --library "$build/libattn.so" --kernels all \
        --commit "$commit" --json "${results%.txt}.json"
}

# The CUDA kernels of the forward pass, as the command lists them.
cuda_kernels() { "$build/attn" info | awk '$2 == "cuda" && $1 !~ /append|merge/ { print $1 }'; }

# The cache append: all cases, garbage in lengths and tables, bandwidth; and under compute-sanitizer.
append() {
    beside append 60 env ATTN_APPEND_TESTS='[!s]*' "$build/tests/test_kv_append"
    command -v compute-sanitizer >/dev/null ||
        { skip append-memcheck "compute-sanitizer is not installed"; return; }
    beside append-memcheck 90 env ATTN_APPEND_TESTS='[!s]*' compute-sanitizer --tool memcheck \
        --error-exitcode 9 --print-limit 5 "$build/tests/test_kv_append"
}

# The Python package on CUDA tensors, from the source tree and this build's library; and what a call costs.
has_python() {
    command -v python3 >/dev/null && python3 -c 'import torch, pytest, hypothesis, ml_dtypes' 2>/dev/null &&
        return
    skip "$1" "python3 lacks torch, pytest, hypothesis or ml_dtypes"
    return 1
}
python_package() {
    has_python python || return
    beside python 120 env ATTN_LIBRARY="$build/libattn.so" ATTN_TEST_DEVICE=cuda PYTHONDONTWRITEBYTECODE=1 \
        python3 -m pytest -q -rs -p no:cacheprovider --durations=5 "$root/python/tests/test_kvcache.py" \
        "$root/python/tests/test_torch.py"
}

# ---- what measures no time: everything at once ----
check_section() {
    local kernel
    case $1 in
    info) step info 30 "$build/attn" info ;;
    check)
        for kernel in $kernels; do
            beside "check-$kernel" 150 env ATTN_CHECK_CASES=2 ATTN_CHECK_KERNEL=$kernel \
                "$build/tests/test_kernels"
        done
        ;;
    append) append ;;
    python) python_package ;;
    zoo) beside zoo 100 "$build/tests/test_zoo" ;;
    device)
        beside decode 150 "$build/tests/test_cuda_decode"
        beside bad-input 100 "$build/tests/test_cuda_input"
        ;;
    esac
}

# ---- what does, or needs the others done: one after the other ----
timed_section() {
    case $1 in
    info | check | zoo) ;;
    device) step device 100 "$build/tests/test_cuda_device" ;; # alone: it weighs the device's free memory
    append) step append-speed 30 env ATTN_APPEND_TESTS='speed*' "$build/tests/test_kv_append" ;;
    input) real_input ;;
    sanitizer) sanitizer ;;
    python)
        has_python python-overhead &&
            step python-overhead 40 env ATTN_LIBRARY="$build/libattn.so" \
                python3 "$root/bench/python_overhead.py" --cuda
        ;;
    bench) bench_bf16 ;;
    decode) suite decode ;;
    mla) suite mla ;;
    f32) step bench-f32 60 "$build/attn" bench --backend cuda --dtype f32 --b 2 --hq 16 --sq 8k --d 128 \
             --samples 5 --sample-ms 20 --budget 8 ;;
    peers) peers ;;
    *) say "no section \"$1\""; failed="$failed $1" ;;
    esac
}

begin=$SECONDS
if ! "$build/attn" info | grep -q '^gpu 0:'; then
    say "gpu_check: no GPU here: $("$build/attn" info | sed -n 's/^gpu: //p')"
    exit 1
fi
say "gpu_check: commit $commit, $(date -u '+%Y-%m-%d %H:%M UTC'), sections: $*"
say "device: $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo unknown)"
kernels=$(cuda_kernels)
for section in "$@"; do check_section "$section"; done
together
for section in "$@"; do timed_section "$section"; done
say ""
result="all passed"
[ -z "$skipped" ] || result="passed but for what was skipped:$skipped"
[ -z "$failed" ] || result="FAILED:$failed${skipped:+; skipped:$skipped}"
say "gpu_check: $result, $((SECONDS - begin)) s"
[ -z "$failed" ]
