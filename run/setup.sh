#!/usr/bin/env bash
# Make .venv with the package, the extras named ("demo", "dev", ...) and the versions that are tested.
# Usage: bash run/setup.sh [extra ...]
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
extras=$(IFS=,; echo "$*")
wanted="$extras $(cat setup.cfg constraints.txt | cksum)"
if [ "$(cat .venv/.installed 2>/dev/null)" != "$wanted" ]; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: $python is not Python 3.11 or later, which constraints.txt needs; name one: PYTHON=python3.12 bash run/setup.sh" >&2
        exit 1
    fi
    echo "Setting up .venv, once: downloads PyTorch and what goes with it, which takes minutes ..."
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    # torch first and alone: everything else accepts what is there.
    .venv/bin/pip install --quiet "$(grep '^torch==' constraints.txt)"
    .venv/bin/pip install --quiet --constraint constraints.txt --editable ".${extras:+[$extras]}"
    echo "$wanted" >.venv/.installed
fi
