#!/usr/bin/env bash
# test_package.sh BUILD — the installation as its users see it: moved, found by CMake and pkg-config, fetched
# as a subproject, from C and C++; and what the library file exports and needs.
set -euo pipefail
build=$(realpath "$1")
source=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc=${CC:-cc} cxx=${CXX:-c++}
passed=0
ok() { passed=$((passed + 1)); echo "ok $passed - $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
quiet() { "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "$*"; }; }
expect() { grep -q "query 3: o = " <<<"$("$@")" || fail "$*: wrong output"; }

# ---- install, then move ----
quiet cmake --install "$build" --prefix "$work/first"
mv "$work/first" "$work/moved"
prefix=$work/moved
library=$(find "$prefix" -name libattn.so)
libdir=$(dirname "$library")
[ -f "$prefix/include/attn/attn.h" ] && [ -L "$library" ] || fail "installed files"
if grep -rlF -e "$build" -e "$source" "$prefix" --include=*.cmake --include=*.pc --include=*.h; then
    fail "an installed text file names the build machine's folders"
fi
ok "install tree moves"
if [ -x "$prefix/bin/attn" ]; then
    "$prefix/bin/attn" info >/dev/null || fail "moved command"
    [ -f "$prefix/share/man/man1/attn.1" ] && [ -f "$prefix/share/bash-completion/completions/attn" ] ||
        fail "manual"
    ok "moved command runs; manual page and completion are there"
fi

# ---- header alone ----
flags="-Wall -Wextra -Wpedantic -Werror -fsyntax-only -I$prefix/include"
printf '#include <attn/attn.h>\nattn_problem p = ATTN_PROBLEM_INIT;\n' >"$work/header.c"
printf '#include <attn/attn.h>\nattn_problem p = ATTN_PROBLEM_INIT;\n' >"$work/header.cpp"
printf 'attn_options o = ATTN_OPTIONS_INIT; attn_tensors t = ATTN_TENSORS_INIT;\n' >>"$work/header.cpp"
for standard in c11 c17; do quiet "$cc" -std=$standard -Wstrict-prototypes $flags "$work/header.c"; done
for standard in c++17 c++20; do quiet "$cxx" -std=$standard $flags "$work/header.cpp"; done
ok "header alone: C11, C17, C++17, C++20"
if command -v nvcc >/dev/null; then
    cp "$work/header.cpp" "$work/header.cu"
    quiet nvcc -std=c++17 -I"$prefix/include" -c -o "$work/header.o" "$work/header.cu"
    ok "header alone: inside a .cu"
fi

# ---- consumers ----
quiet cmake -S "$source/examples" -B "$work/examples" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc"
quiet cmake --build "$work/examples"
expect "$work/examples/first"
ok "find_package"
cat >"$work/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.21)
project(version_check LANGUAGES C)
find_package(attn 0.2 QUIET)
if(attn_FOUND)
    message(FATAL_ERROR "0.1 was taken for 0.2")
endif()
END
quiet cmake -S "$work" -B "$work/version" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc"
ok "find_package refuses another minor version"

export PKG_CONFIG_PATH=$libdir/pkgconfig
quiet "$cc" "$source/examples/first.c" $(pkg-config --cflags --libs attn) -Wl,-rpath,"$libdir" -o "$work/pkg"
expect "$work/pkg"
quiet "$cc" "$source/examples/first.c" $(pkg-config --cflags attn) "$libdir/libattn.a" \
    $(pkg-config --static --libs attn | sed 's/-lattn//') -o "$work/pkg_static"
expect "$work/pkg_static"
version=$("$prefix/bin/attn" --version 2>/dev/null | cut -d' ' -f2 || echo 0.1.0)
[ "$(pkg-config --modversion attn)" = "$version" ] || fail "version in attn.pc"
ok "pkg-config, shared and static"

cat >"$work/consumer.cpp" <<'END'
#include <attn/attn.h>
#include <cstdio>
#include <vector>
int main() {
    std::vector<float> q(4, 1), o(4);
    attn_problem p = ATTN_PROBLEM_INIT;
    p.batch = p.q_heads = p.q_len = 1;
    p.qk_dim = 4;
    attn_tensors t = ATTN_TENSORS_INIT;
    t.q = t.k = t.v = q.data();
    t.o = o.data();
    if (attn_attend(&p, &t, nullptr)) return 1;
    std::printf("query 3: o = %g\n", o[0]);
    return o[0] == 1 ? 0 : 1;
}
END
quiet "$cxx" -std=c++17 -Wall -Wextra -Werror "$work/consumer.cpp" $(pkg-config --cflags --libs attn) \
    -Wl,-rpath,"$libdir" -o "$work/consumer"
expect "$work/consumer"
ok "C++17 consumer"

# ---- as a subproject: only the library is built, nothing is installed, no setting leaks ----
mkdir "$work/fetch"
cat >"$work/fetch/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.21)
project(fetching LANGUAGES C)
include(FetchContent)
FetchContent_Declare(attn SOURCE_DIR ${ATTN_SOURCE})
FetchContent_MakeAvailable(attn)
add_executable(first ${ATTN_SOURCE}/examples/first.c)
target_link_libraries(first PRIVATE attn::attn_static)
foreach(target attn_cli attn_check)
    if(TARGET ${target})
        message(FATAL_ERROR "a subproject build has the target ${target}")
    endif()
endforeach()
if(CMAKE_BUILD_TYPE OR CMAKE_C_FLAGS MATCHES "[^ ]")
    message(FATAL_ERROR "the subproject changed CMAKE_BUILD_TYPE or CMAKE_C_FLAGS")
endif()
END
quiet env -u CFLAGS cmake -S "$work/fetch" -B "$work/fetch/build" -DATTN_SOURCE="$source" -DATTN_CUDA=OFF \
    -DCMAKE_C_COMPILER="$cc"
quiet cmake --build "$work/fetch/build" -j 2
expect "$work/fetch/build/first"
ok "FetchContent"

# ---- the library file ----
sed -n '/global:/,/local:/p' "$source/src/attn.map" | grep -o 'attn_[a-z_]*' | sort -u >"$work/promised"
nm -D --defined-only "$library" | awk '$2 == "T" || $2 == "D" || $2 == "B" || $2 == "R" { print $3 }' |
    sed 's/@.*//' | sort -u >"$work/exported"
diff "$work/promised" "$work/exported" || fail "exported symbols differ from attn.map"
grep -o 'attn_[a-z_]*(' "$prefix/include/attn/attn.h" | tr -d '(' | sort -u >"$work/declared"
comm -23 "$work/promised" "$work/declared" | grep . && fail "exported, but not in attn.h"
ok "exported symbols are those of attn.map, all declared in attn.h"
needed=$(readelf -d "$library" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' |
    grep -Ev '^(libc|libm|libdl|libpthread|ld-linux.*)\.so' || true)
[ -z "$needed" ] || fail "libattn.so needs $needed"
readelf -d "$library" | grep -q TEXTREL && fail "TEXTREL"
readelf -lW "$library" | grep GNU_STACK | grep -q 'RWE' && fail "executable stack"
readelf -d "$library" | grep -q 'SONAME.*libattn.so.0' || fail "SONAME"
readelf -d "$library" | grep -q 'BIND_NOW\|FLAGS_1.*NOW' || fail "not bound at load time"
ok "libattn.so needs libc and libm only; no TEXTREL, no executable stack, SONAME libattn.so.0"

# ---- the build folder, copied elsewhere, still runs ----
if [ -x "$build/attn" ]; then
    mkdir "$work/copy"
    cp "$build/attn" "$build"/libattn.so* "$work/copy/"
    [ ! -d "$build/packages" ] || cp -r "$build/packages" "$work/copy/"
    "$work/copy/attn" info >/dev/null || fail "copied build folder"
    ok "build folder moves"
fi
echo "$passed checks passed"
