#!/usr/bin/env bash
# test_plugins.sh — every kind of broken plug-in gives its row, its line and exit code 1, and the run goes on.
# usage: test_plugins.sh BUILD_FOLDER
set -u
attn=$1/attn
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
bad=0

fail() { echo "FAILED: $*"; sed 's/^/    /' "$scratch/out"; bad=1; }

# run CODE words...: the exit code must be CODE
run() {
    local want=$1 got
    shift
    timeout 120 "$@" >"$scratch/out" 2>&1
    got=$?
    [ "$got" = "$want" ] || fail "exit code $got, not $want: $*"
}
says() { grep -qE -- "$1" "$scratch/out" || fail "does not say '$1'"; }

problem="--hq 2 --sq 9 --sk 9 --d 8 --fill gaussian"
check() { run "$1" "$attn" check $problem --time-limit 2 --kernel "$here/plugins/$2.c"; }

check 0 right;         says 'right.c +ok +1'
check 1 wrong;         says 'WRONG wrong.c.*o\[b=0 i=3 h=0 d=2\]'
                       says 'attn check --kernel .*wrong.c .*--seed 1'
check 1 wrong_lse;     says 'WRONG wrong_lse.c.*lse'
check 1 crash;         says 'FAILED|WRONG'; says 'crash'
check 1 hang;          says 'FAILED hang.c.*no answer within'
check 1 nan;           says 'WRONG nan.c.*nan'
check 1 no_compile;    says 'FAILED no_compile.c.*does not compile: .*does_not_exist'
check 1 out_of_bounds; says 'out_of_bounds.c.*outside o'
check 1 leaves;        says 'FAILED leaves.c.*ended the process with exit'
check 1 no_kernel;     says 'FAILED no_kernel.c.*attn_plugin_kernel'
check 1 refuses;       says 'refuses.c +not reached.*not today'
run 1 "$attn" check $problem --kernel "$here/plugins/absent.c"; says 'FAILED absent.c.*No such file'
run 2 "$attn" check $problem --kernel no_such_kernel; says 'no such kernel'

# A broken one beside right ones: all rows are there, the broken one is not timed, JSON parses.
run 1 "$attn" bench --hq 2 --sq 32 --d 16 --samples 2 --sample-ms 2 --threads 1 --json "$scratch/bench.json" \
    --csv "$scratch/bench.csv" --md "$scratch/bench.md" \
    --kernel "$here/plugins/crash.c,$here/plugins/wrong.c,$here/plugins/right.c,reference_fwd_scalar"
says 'crash.c +1 +(FAILED|WRONG)'; says 'wrong.c +1 +WRONG'; says 'right.c +1 +ok'
says 'reference_fwd_scalar +1 +ok'
[ "$(wc -l <"$scratch/bench.csv")" = 5 ] || fail "CSV: not a header and 4 rows"
[ "$(wc -l <"$scratch/bench.md")" = 6 ] || fail "Markdown: not a header, a rule and 4 rows"
if command -v python3 >/dev/null; then
    python3 - "$scratch/bench.json" >"$scratch/out" 2>&1 <<'PY' || fail "bench.json"
import json, sys
report = json.load(open(sys.argv[1]))
assert report["schema"] == 1 and report["machine"]["threads"] >= 1 and "flop_convention" in report
rows = {row["kernel"]: row for row in report["rows"]}
assert len(rows) == 4, rows
wrong = rows["wrong.c"]
assert wrong["check"] == "WRONG" and "time_ns_median" not in wrong and wrong["reason"]
for name in "right.c", "reference_fwd_scalar":
    row = rows[name]
    assert row["check"] == "ok" and row["samples"] >= 2 and row["flop"] == 2 * 2 * 32 * 32 * (16 + 16), row
    times = [row["time_ns_" + which] for which in ("min", "q25", "median", "q75", "max")]
    assert 0 < times[0] and times == sorted(times), row
    assert row["gflop_per_s"] > 0 and 0 < row["share_of_ceiling"] < 1.2 and row["ceiling"], row
PY
fi

# The lessons are right and count what they move: each reads less far memory than the one before.
course=$here/../learn/flash_attention
run 0 "$attn" bench --hq 1 --sq 256 --d 32 --causal --samples 2 --sample-ms 2 --threads 1 \
    --json "$scratch/course.json" \
    --kernel "$course/naive.c,$course/online_softmax.c,$course/flash_v1.c,$course/flash_v2.c"
if command -v python3 >/dev/null; then
    python3 - "$scratch/course.json" >"$scratch/out" 2>&1 <<'PY' || fail "course.json"
import json, sys
moved = [row["far_bytes"] for row in json.load(open(sys.argv[1]))["rows"]]
assert len(moved) == 4 and moved == sorted(moved, reverse=True) and moved[-1] < moved[0] / 10, moved
PY
fi
[ $bad = 0 ] && echo "plug-ins: all as expected"
exit $bad
