#!/usr/bin/env bash
# Set up an environment of its own and train GLEM on the embedded default, the Debian package graph.
# Usage: bash run/demo.sh [small] [key value ...]    "small" = a first try, two to five minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

config=glem_debian
if [ "${1:-}" = small ]; then
    config=glem_debian_small
    shift
fi

bash run/setup.sh demo
# A fresh container has no package lists yet, and making them needs root; without root the run says what to do.
if ! ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    apt-get update
fi
exec .venv/bin/python run/main.py --cfg "configs_gg/$config.yaml" "$@"
