#!/usr/bin/env bash
# ci_python.sh — the Python package, the Python lessons and the course's documents, in an environment of their
# own.
set -euo pipefail
cd "$(dirname "$0")/.."
env=build-python-env

if [ ! -x $env/bin/pip ]; then
    python3 -m venv $env 2>/dev/null ||
        { [ "$(id -u)" = 0 ] && apt-get install -y -qq python3-venv >/dev/null && python3 -m venv $env; }
fi
$env/bin/pip install -q -r learn/requirements.txt pytest hypothesis ml_dtypes transformers
export PYTHON=$PWD/$env/bin/python ATTN_LIBRARY=$PWD/build/libattn.so PYTHONDONTWRITEBYTECODE=1

echo "== the package"
$PYTHON -m pytest -q -p no:cacheprovider python/tests

echo "== a wheel from the sources, in a fresh environment"
rm -rf build-wheel-env && python3 -m venv build-wheel-env
started=$SECONDS
build-wheel-env/bin/pip install -q . -C cmake.define.ATTN_CUDA=OFF
echo "pip install . took $((SECONDS - started)) s"
(cd build-wheel-env && env -u ATTN_LIBRARY bin/python -c "
import attn, numpy as np
q = np.random.default_rng(0).standard_normal((1, 128, 8, 64), dtype=np.float32)
print(attn.attention(q, q, q, causal=True).shape, attn.info()['version'])")

echo "== the course"
tests/test_learn.sh build
$PYTHON learn/player/record.py --check
$PYTHON scripts/course_docs.py --check

echo "== figures in the documents"
$PYTHON bench/performance.py --check
