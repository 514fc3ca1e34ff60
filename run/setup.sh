#!/usr/bin/env bash
# Make .venv with the package, the extras named ("demo", "dev", ...) and the versions that are tested.
# Usage: bash run/setup.sh [extra ...]
set -euo pipefail
cd "$(dirname "$0")/.."

extras=$(IFS=,; echo "$*")
wanted="$extras $(cat setup.cfg constraints.txt | cksum)"
if [ "$(cat .venv/.installed 2>/dev/null)" != "$wanted" ]; then
    echo "Setting up .venv, once: downloads PyTorch and what goes with it, which takes minutes ..."
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    # torch first and alone: everything else accepts what is there.
    .venv/bin/pip install --quiet "$(grep '^torch==' constraints.txt)"
    .venv/bin/pip install --quiet --constraint constraints.txt --editable ".${extras:+[$extras]}"
    echo "$wanted" >.venv/.installed
fi
