#!/usr/bin/env bash
# Set up an environment of its own and train GLEM on the Debian package graph, which comes with the package.
# Usage: bash run/demo.sh [small] [key value ...]    "small" = a first try, two to five minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

config=glem_debian
if [ "${1:-}" = small ]; then
    config=glem_debian_small
    shift
fi

bash run/setup.sh demo
exec .venv/bin/python run/main.py --cfg "configs_gg/$config.yaml" "$@"
