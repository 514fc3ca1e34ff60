#!/usr/bin/env bash
# Set up an environment of its own and run all checks: lint, format, types, tests.
# Usage: bash run/test.sh [fast] [--older-processor] [pytest arguments]
#   fast               Without the tests that are marked slow.
#   --older-processor  Compute without AVX and with sums in another order, as another processor does (x86 only).
set -euo pipefail
cd "$(dirname "$0")/.."

chosen=()
if [ "${1:-}" = fast ]; then
    shift
    chosen=(-m "not slow")
fi
if [ "${1:-}" = --older-processor ]; then
    shift
    export ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41       # torch's own kernels, and oneDNN's
    export MKL_ENABLE_INSTRUCTIONS=SSE4_2 MKL_CBWR=COMPATIBLE         # MKL on Intel, and on others
    export OPENBLAS_CORETYPE=Nehalem NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4 AVX512_ICL AVX512_SPR" # numpy and scipy
fi
bash run/setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest -n "$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)" --dist worksteal ${chosen[@]+"${chosen[@]}"} "$@"
