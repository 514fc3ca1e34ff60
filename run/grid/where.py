"""Folders of a grid, for the shell scripts.

``python -m grid.where configs OUT_DIR CONFIG GRID`` prints the folder of its configurations,
``python -m grid.where results CONFIG_DIR`` those of their results.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grid.jobs import DONE, results_of
from grid.space import base_name


def configs_folder(out_dir: str | Path, config: str | Path | None, grid: str | Path) -> Path:
    """The folder of a grid's configurations, named as GraphGym does it."""
    return Path(out_dir) / f"{base_name(config)}_grid_{base_name(grid)}"


def results_folders(folder: Path) -> list[Path]:
    """The folders that hold the experiments of all configurations in ``folder``, finished or waiting."""
    files = [*folder.glob("*.yaml"), *folder.glob(f"*.yaml{DONE}")]
    return sorted({results_of(file) for file in files})


def main(argv: list[str]) -> int:
    if argv[:1] == ["configs"] and len(argv) == 4:
        print(configs_folder(argv[1], argv[2], argv[3]))
    elif argv[:1] == ["results"] and len(argv) == 2:
        print(*results_folders(Path(argv[1])), sep="\n")
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
