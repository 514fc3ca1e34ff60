#!/usr/bin/env bash
# Make .venv with the package, the extras named ("demo", "dev", ...) and the versions that are tested.
# Usage: [CONSTRAINTS=constraints-lowest.txt] bash run/setup.sh [extra ...]
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
constraints=${CONSTRAINTS:-constraints.txt}
extras=$(IFS=,; echo "$*")
wanted="$extras $(cat setup.cfg "$constraints" | cksum)"
if [ "$(cat .venv/.installed 2>/dev/null)" != "$wanted" ]; then
    least=$([ "$constraints" = constraints.txt ] && echo 11 || echo 10)
    if ! "$python" -c "import sys; sys.exit(sys.version_info < (3, $least))"; then
        echo "error: $python is not Python 3.$least or later, which $constraints needs; name one: PYTHON=python3.12 bash run/setup.sh" >&2
        exit 1
    fi
    echo "Setting up .venv, once: downloads PyTorch and other packages, which takes minutes ..."
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    echo "1 of 2: PyTorch (some hundred MB; with its GPU libraries some GB) ..."
    # torch first and alone: all other packages accept the version that is installed.
    .venv/bin/pip install --quiet "$(grep '^torch==' "$constraints")"
    echo "2 of 2: the package and the other packages ..."
    .venv/bin/pip install --quiet --constraint "$constraints" --editable ".${extras:+[$extras]}"
    echo "$wanted" >.venv/.installed
fi
