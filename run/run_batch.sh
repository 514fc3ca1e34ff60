#!/usr/bin/env bash
# Make the configurations of a grid, run them all, aggregate. Type the same command again to resume.
# Usage, as GraphGym's: CONFIG=synthetic GRID=synthetic REPEAT=3 MAX_JOBS=2 SLEEP=1 MAIN=main bash run/run_batch.sh
#        (these are the defaults; CONFIG and GRID are names in configs_gg/ and configs_gg/grids/, or paths)
# Usage with existing configurations: bash run/run_batch.sh CONFIG_DIR REPEAT [MAX_JOBS] [SLEEP] [MAIN]
# Exit status: 0 all jobs finished; else that of the first step that went wrong (finished jobs are aggregated).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# shellcheck source=run/grid/python.sh
. "$here/grid/python.sh"
export PYTHON

usage() {
    sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}"
    exit "$1"
}

# A name in a folder of ours, or a path.
find_file() { # NAME FOLDER SUFFIX
    if [ -f "$1" ] || [ "${1%"$3"}" != "$1" ]; then  # a name with its ending is a path, also in an error
        printf '%s\n' "$1"
    else
        printf '%s\n' "$2/$1$3"
    fi
}

where() {
    PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" -m grid.where "$@"
}

case "${1:-}" in
-h | --help) usage 0 ;;
esac
if [ $# -eq 0 ]; then
    config=$(find_file "${CONFIG:-synthetic}" "$root/configs_gg" .yaml)
    grid=$(find_file "${GRID:-synthetic}" "$root/configs_gg/grids" .txt)
    "$PYTHON" "$here/configs_gen.py" --config "$config" --grid "$grid" --out_dir "${OUT_DIR:-configs_gg}"
    folder=$(where configs "${OUT_DIR:-configs_gg}" "$config" "$grid")
    set -- "$folder" "${REPEAT:-3}" "${MAX_JOBS:-2}" "${SLEEP:-1}" "${MAIN:-main}"
elif [ $# -lt 2 ]; then
    usage 2 >&2
fi

status=0
bash "$here/parallel.sh" "$@" || status=$?
# Other statuses need no tables: a wrong command line ran nothing, and an interrupt was meant to end all.
if [ "$status" -le 1 ]; then
    while IFS= read -r folder; do
        if [ -d "$folder" ]; then
            "$PYTHON" "$here/agg_batch.py" --dir "$folder" </dev/null || status=1
        fi
    done < <(where results "$1")
fi
exit "$status"
