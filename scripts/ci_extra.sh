#!/usr/bin/env bash
# ci_extra.sh — the same tests under ASan+UBSan and TSan, with fewer cases.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=$(nproc)

echo "== ASan + UBSan"
cmake -S . -B build-asan -DATTN_CUDA=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DATTN_SANITIZE=address,undefined >/dev/null
cmake --build build-asan -j "$jobs" >/dev/null
ATTN_CHECK_CASES=0.3 ctest --test-dir build-asan --output-on-failure --timeout 600 -E 'package|learn|pages'

echo "== TSan"
cmake -S . -B build-tsan -DATTN_CUDA=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo -DATTN_SANITIZE=thread >/dev/null
cmake --build build-tsan -j "$jobs" --target test_threads >/dev/null
ctest --test-dir build-tsan --output-on-failure --timeout 600 -R 'test_threads'
