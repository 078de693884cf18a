#!/usr/bin/env bash
# test_learn.sh BUILD_FOLDER — every lesson runs without a GPU, every exercise accepts its solution and
# nothing else.
set -u
build=$1
learn=$build/learn
source=$(cd "$(dirname "$0")/../learn" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LEARN_FOLDER=$source LEARN_BUILD=$work LEARN_PROGRESS=$work/progress.json

# verdict WANTED_EXIT WORD LABEL COMMAND...: exit code as wanted (0, or "wrong": anything else) and WORD in
# the output
verdict() {
    local wanted=$1 word=$2 label=$3 log=$work/log.$BASHPID
    shift 3
    if [ "$(type -t "$1")" = function ]; then "$@"; else timeout 120 "$@"; fi >"$log" 2>&1
    local code=$? ok=1
    if [ "$wanted" = 0 ]; then [ $code = 0 ] || ok=0; else [ $code != 0 ] && [ $code -lt 124 ] || ok=0; fi
    grep -q -- "$word" "$log" || ok=0
    [ $ok = 1 ] && echo passed >>"$work/verdicts" && return
    echo failed >>"$work/verdicts"
    echo "FAIL $label (exit $code, expected $wanted and \"$word\")
$(tail -n 6 "$log")"
}
# The same, beside what goes on: two at a time.
spawn() {
    while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n; done
    verdict "$@" &
}

# What this Python can do: asked once, since importing torch takes seconds.
python=${PYTHON:-python3} skipped=0 modules=
for module in numpy torch triton; do
    "$python" -c "import $module" 2>/dev/null && modules="$modules $module"
done
can_python() {      # modules separated by commas
    local module
    for module in ${1//,/ }; do [[ " $modules " == *" $module "* ]] || return 1; done
}
# Lessons keep the numbers that their quizzes ask for, one file a lesson.
mkdir "$work/facts"
lesson() { verdict 0 "All of it holds" "lesson $1" env LEARN_FACTS="$work/facts/$1" "$learn" run "$@"; }

for number in $("$learn" list | sed -n 's/^  \([0-9][0-9]\) .*cuda_basics.*/\1/p'); do
    lesson "$number" --sim
    for order in reverse 12345; do
        spawn 0 "All of it holds" "lesson $number, threads in order $order" \
            env SIM_ORDER=$order "$learn" run "$number" --sim
    done
    spawn wrong "NO " "exercise $number with its holes" "$learn" check "$number" --sim
done
# Plug-in kernels.
for number in $("$learn" list | sed -n 's/^  \([0-9][0-9]\) .*flash_attention.*\.cu.*/\1/p'); do
    if [ "$number" = 35 ]; then
        verdict wrong "skipped: CuTe needs a GPU" "lesson 35" "$learn" run 35 --sim
        continue
    fi
    lesson "$number" --sim
    for order in reverse 12345; do
        spawn 0 "All of it holds" "lesson $number, threads in order $order" \
            env SIM_ORDER=$order "$learn" run "$number" --sim
    done
done
verdict 0 "All of it holds" "lesson 38, threads in reverse order" env SIM_ORDER=reverse "$learn" run 38 --sim
verdict 0 "ok" "attn check of a .cu file without a GPU" "$build/attn" check \
    --kernel "$source/flash_attention/flash_v2.cu" --hq 2 --hkv 1 --sq 33,65 --sk 40 --d 8 --causal
for number in $("$learn" list |
    sed -n 's/^  \([0-9][0-9]\) .*\(flash_mla\|flash_v2_backward\).*\.c.*/\1/p'); do
    lesson "$number"
done
# Python lessons need NumPy, some also torch and Triton: run what this Python can, count the rest as skipped.
for file in "$source"/{flash_attention,flash_mla,triton_basics}/[a-z0-9]*.py; do
    name=$(basename "$file")
    case $name in lesson.py | cute_flags.py) continue ;; esac
    needs=numpy
    grep -q 'triton' "$file" && needs=triton,torch
    [ "$name" = 01_vector_add.py ] || [ "$(dirname "$file")" = "$source/triton_basics" ] && needs=triton,torch
    if ! can_python $needs; then
        echo "skipped $name: this Python has no $needs"
        skipped=$((skipped + 1))
        continue
    fi
    number=$("$learn" list | sed -n "s|^  \([0-9][0-9]\) .*/$name.*|\1|p")
    spawn 0 "All of it holds" "lesson $name" env TRITON_INTERPRET=1 PYTHONDONTWRITEBYTECODE=1 \
        LEARN_FACTS="$work/facts/$number" "$python" "$file"
done
wait
for file in "$source"/exercises/solutions/[0-9]*.cu; do
    name=$(basename "$file")
    verdict 0 "All of it holds" "solution $name" "$learn" check "${name:0:2}" --my "$file" --sim
done
# The other exercises: as shipped they fail, their solutions pass. (A C rung's solution is the lesson itself.)
for file in "$source"/exercises/[0-9]*.py; do
    name=$(basename "$file")
    needs=numpy
    case ${name:0:2} in 0? | 36 | 37) needs=triton,torch ;; esac
    can_python $needs || { skipped=$((skipped + 1)); continue; }
    spawn wrong "NO " "exercise $name with its hole" env PYTHON="$python" "$learn" check "${name:0:2}"
    spawn 0 "All of it holds" "solution $name" env PYTHON="$python" "$learn" check "${name:0:2}" \
        --my "$source/exercises/solutions/$name"
done
if can_python numpy; then      # a learner's Python function is judged like any kernel
    verdict 0 "ok" "a Python kernel" env PYTHON="$python" "$build/attn" check \
        --kernel "$source/flash_attention/flash_v2.py" --hq 2 --sq 65 --sk 70 --d 16 --causal --fill ascending
    mkdir "$work/python"
    sed 's/o \* keep + p @ vj/o + p @ vj/' "$source/flash_attention/flash_v2.py" \
        >"$work/python/flash_wrong.py"
    cp "$source/flash_attention/lesson.py" "$work/python"
    can_python triton,torch && verdict 0 "ok" "a Triton kernel" env PYTHON="$python" "$build/attn" check \
        --kernel "$source/flash_attention/flash_v1_triton.py" --hq 2 --hkv 1 --sq 33 --sk 40 --d 16 --causal \
        --fill ascending
    verdict wrong "WRONG" "a wrong Python kernel" env PYTHON="$python" "$build/attn" check \
        --kernel "$work/python/flash_wrong.py" --hq 2 --sq 65 --sk 70 --d 16 --causal --fill ascending
fi
# The solution of an exercise: a file of its own, or the lesson itself.
solution() {
    local own
    own=$(ls "$source"/exercises/solutions/"$1"_* 2>/dev/null)
    echo "${own:-$source/$("$learn" list | sed -n "s|^  $1 .* \([a-z_]*/[a-z0-9_]*\.[a-z]*\).*|\1|p")}"
}
for pair in 11:naive 13:online_softmax 15:flash_v1 17:flash_v2; do
    verdict wrong "wrong" "exercise ${pair%:*} with its hole" "$learn" check "${pair%:*}"
    verdict 0 "ok" "solution ${pair%:*}" "$learn" check "${pair%:*}" \
        --my "$source/flash_attention/${pair#*:}.c"
done
for number in 23 24 25 26 27 28 29 30 31 32 33 34 35 38; do
    spawn wrong 'NO \|sim: ' "exercise $number with its hole" "$learn" check "$number" --sim
done
verdict 0 "All of it holds" "solution 35" "$learn" check 35 --my "$(solution 35)"
# An exercise is its lesson but for the hole: a lesson that changes must change here too.
for number in 11 13 15 17 23 25 26 27 28 29 30 31 32 33 34 38; do
    strange=$(diff "$(solution "$number")" "$source"/exercises/"$number"_* | grep '^>' |
        grep -v -e 'hole' -e 'hopper.h' -e 'parity = n / STAGES % 2;' -e '--my FILE' -e '^> *}$')
    [ -z "$strange" ] && echo passed >>"$work/verdicts" && continue
    echo failed >>"$work/verdicts"
    echo "FAIL exercise $number differs from its lesson:
$strange"
done
for file in "$source"/exercises/mutants/[0-9]*.cu; do
    name=$(basename "$file")
    spawn wrong "$(sed -n 's|^// rejected by: ||p' "$file")" "mutant $name" \
        "$learn" check "${name:0:2}" --my "$file" --sim
done

mkdir "$work/mutants"
count=0
while IFS=$'\t' read -r number what change word; do
    [ "${number:0:1}" = "#" ] && continue
    right=$(solution "$number")
    count=$((count + 1))
    mutant=$work/mutants/${number}_$count.${right##*.}
    case $right in
    *.py)
        needs=numpy
        case $number in 0? | 36 | 37) needs=triton,torch ;; esac
        can_python $needs || { skipped=$((skipped + 1)); continue; } ;;
    *exercises/solutions/*) change="$change; s|\"\.\./|\"$source/exercises/|" ;;
    esac
    sed "$change" "$right" >"$mutant"
    cmp -s <(sed "s|\"\.\./|\"$source/exercises/|" "$right") "$mutant" &&
        echo "mutant $number ($what) changes nothing" >"$mutant"
    spawn wrong "$word" "mutant $number: $what" \
        env PYTHON="$python" "$learn" check "$number" --my "$mutant" --sim </dev/null
done <"$source/exercises/mutants/more.txt"
wait

printf '24\n' >"$work/right"
printf '23\n' >"$work/wrong"
verdict 0 "right" "quiz 01, right answer" bash -c "'$learn' quiz 01 --sim <'$work/right'"
verdict wrong "not yet" "quiz 01, wrong answer" bash -c "'$learn' quiz 01 --sim <'$work/wrong'"
verdict 0 "right" "quiz 11 (asks the benchmark)" bash -c "echo 2267 | '$learn' quiz 11"
verdict 0 "right" "quiz 35 (asks the exercise's program)" bash -c "echo 4 | '$learn' quiz 35"
# Every lesson has questions, and its run has counted the answers.
# NUMBER ANSWERS...: one a question, within the question's tolerance of what was counted
right_answers() {
    local number=$1 fact tolerance value line
    shift
    while IFS= read -r line; do
        fact=$(sed 's/^QUIZ("[0-9]*", "\([^"]*\)".*/\1/' <<<"$line")
        tolerance=$(sed 's/^QUIZ("[0-9]*", "[^"]*", \([0-9.]*\),.*/\1/' <<<"$line")
        value=$(awk -F'\t' -v fact="$fact" '$1 == fact { v = $2 } END { print v }' "$work/facts/$number")
        echo "$fact: $value was counted, $1 expected"
        awk -v v="$value" -v a="$1" -v t="$tolerance" 'BEGIN { d = v - a; if (d < 0) d = -d;
            exit !(v != "" && a != "" && d <= t * (v < 0 ? -v : v)) }' || return 1
        shift
    done < <(grep "^QUIZ(\"$number\"" "$source/quizzes.def")
}
while read -r number answers; do
    case $number in
    06 | 07 | 08 | 09 | 18 | 36 | 37) can_python triton,torch || { skipped=$((skipped + 1)); continue; } ;;
    10 | 12 | 14 | 16 | 19 | 2[0-2]) can_python numpy || { skipped=$((skipped + 1)); continue; } ;;
    esac
    verdict 0 "counted" "quiz $number" right_answers "$number" $answers
done <<'END'
01 24
02 8 32
03 524
04 9
05 2
06 5
07 34 16
08 0
09 9e6
10 1310720
12 2129920
14 3473408
16 2359296
18 4
19 8000
20 242
21 849
22 4
23 2152.7
24 1179.6
25 22.02
26 18874
27 4194304
28 1
29 65536
30 98304
31 3885
32 2
33 65536
34 1
36 12
37 2
38 230.4
END
for number in $("$learn" list | sed -n 's/^  \([0-9][0-9]\) .*/\1/p'); do
    verdict 0 "" "lesson $number has a question" grep "^QUIZ(\"$number\"" "$source/quizzes.def"
done
verdict 0 "lessons run" "status" "$learn" status
verdict wrong "no lesson" "unknown lesson" "$learn" run 99
verdict wrong "does not compile" "a file that doesn't compile" \
    bash -c "echo 'int main( {' >'$work/bad.cu'; '$learn' check 01 --my '$work/bad.cu' --sim"
verdict 0 "ok" "doctor" "$learn" doctor
failed=$(grep -c failed "$work/verdicts")
echo "$(grep -c passed "$work/verdicts") passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
