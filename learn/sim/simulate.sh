#!/usr/bin/env bash
# simulate.sh — compile a .cu file for the CPU: translator, g++, simulator. The same file goes to nvcc unchanged.
#   simulate.sh -program -o PROGRAM lesson.cu   a program of its own
#   simulate.sh -lesson -o PROGRAM kernel.cu    a plug-in kernel (attn/attn_plugin.h) with the program that runs and judges it
#   simulate.sh -shared -o KERNEL.so kernel.cu  a plug-in kernel that the attn command loads; -I FOLDER as for a compiler
# The translator and the simulator's own objects are built once, in $LEARN_BUILD (default: the cache folder).
set -eu
sim=$(cd "$(dirname "$0")" && pwd)
build=${LEARN_BUILD:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/libattn-learn}
form=program out= file= include=()
while [ $# -gt 0 ]; do
    case $1 in
    -o) out=$2; shift ;;
    -I) include+=("-I$2"); shift ;;
    -shared | -lesson | -program) form=${1#-} ;;
    *.cu) file=$1 ;;
    esac
    shift
done
[ -r "$file" ] && [ -n "$out" ] || { echo "usage: simulate.sh [-program | -lesson | -shared] -o OUTPUT FILE.cu" >&2; exit 2; }
mkdir -p "$build"
beside=$(dirname "$file")

# made TARGET SOURCE COMMAND...: run COMMAND -o TARGET unless TARGET is newer than SOURCE and the headers
made() {
    local target=$1 source=$2
    shift 2
    [ "$target" -nt "$source" ] && [ "$target" -nt "$sim/cuda_runtime.h" ] && [ "$target" -nt "$sim/sim.hpp" ] && return
    "$@" "$source" -o "$target.$$"
    mv "$target.$$" "$target"
}

made "$build/cu2cpp" "$sim/cu2cpp.c" cc -std=c11 -O1
objects=()
for part in threads memory host tensor hopper; do
    made "$build/sim_$part.o" "$sim/sim_$part.cpp" g++ -std=c++17 -O2 -fPIC -c
    objects+=("$build/sim_$part.o")
done
include+=("-I$sim" "-I$beside" "-I$sim/../cuda_basics" "-I$sim/../flash_attention" "-I$sim/../../include")

work=$(mktemp -d "$build/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
plugin=()
if [ $form != program ]; then
    plugin=(-Dattn_plugin_kernel=sim_kernel_inside)
    parts="plugin"
    [ $form = lesson ] && parts="plugin lesson"
    for part in $parts; do
        made "$build/sim_$part.o" "$sim/sim_$part.cpp" g++ -std=c++17 -O2 -fPIC "${include[@]}" -c
        objects+=("$build/sim_$part.o")
    done
fi
"$build/cu2cpp" "$file" >"$work/$(basename "$file")"
# Loads and stores stay as written (no vectoriser, no merging): what is counted is what the source says.
as_written="-fno-tree-vectorize -fno-tree-sra -fno-store-merging -fno-tree-loop-distribute-patterns -fno-tree-forwprop"
g++ -std=c++17 -x c++ -include "$sim/cuda_runtime.h" -O1 -g -w -fPIC $as_written -fsanitize=thread "${plugin[@]}" \
    "${include[@]}" -c "$work/$(basename "$file")" -o "$work/kernel.o"
how=(-no-pie)
[ $form = shared ] && how=(-shared -Wl,-Bsymbolic)
g++ "${how[@]}" "$work/kernel.o" "${objects[@]}" -o "$work/linked"
mv "$work/linked" "$out"
