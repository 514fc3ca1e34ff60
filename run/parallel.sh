#!/usr/bin/env bash
# Run every configuration of a folder, several at a time; finished ones are not run again, failed ones are listed.
# Usage: bash run/parallel.sh CONFIG_DIR REPEAT [MAX_JOBS] [SLEEP] [MAIN] [--launcher submitit]
# Environment: GPUS, JOBS_PER_GPU, PYTHON; --help explains all of it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run/grid/python.sh
. "$here/grid/python.sh"
exec "$PYTHON" "$here/grid/jobs.py" "$@"
