#!/usr/bin/env bash
# Set up an environment of its own and run all checks: lint, format, types, tests.
# Usage: bash run/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."

bash run/setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest -n "$(nproc)" "$@"
