#!/usr/bin/env bash
# setup.sh — make sure the build's packages are there: install them when we can, else print the line to run.
set -eu
need=()
has() { command -v "$1" >/dev/null 2>&1; }
has cmake || need+=(cmake)
has cc || need+=(gcc)
has make || need+=(make)
has pkg-config || need+=(pkg-config)
printf '#include <cjson/cJSON.h>\n' | cc -E -x c - >/dev/null 2>&1 || need+=(libcjson-dev)
if [ "${1:-}" = test ]; then
    printf '#include <%s.h>\n' stdarg stddef setjmp stdint cmocka |
        cc -E -x c - >/dev/null 2>&1 || need+=(libcmocka-dev)
    has g++ || need+=(g++)
    has python3 || need+=(python3)
fi
[ ${#need[@]} = 0 ] && exit 0
if ! has apt-get; then
    echo "Missing: ${need[*]}. Install them with your package manager (Debian names) and try again." >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    echo "Installing: ${need[*]}" >&2
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${need[@]}" >/dev/null
else
    echo "Missing packages. Run:  sudo apt-get install -y ${need[*]}" >&2
    exit 1
fi
