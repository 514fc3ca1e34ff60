"""Start a program of ``run/``, also of an installed package: ``python -m glem_graphgym [PROGRAM] [arguments ...]``.

``python -m glem_graphgym --cfg glem_debian_small`` is ``python run/main.py --cfg configs_gg/glem_debian_small.yaml``;
``python -m glem_graphgym leaderboard --dir results/x`` is ``python run/leaderboard.py --dir results/x``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

SHARED = {"command_line", "session"}  # modules of run/ that are not programs


def start_program(arguments: Sequence[str], flags: Sequence[str] = ()) -> NoReturn:
    """Replace this process by the program of ``run/`` that the first of ``arguments`` names, else by ``main``.

    ``flags``: options for the interpreter.
    """
    package = Path(__file__).resolve().parent
    folder = next(path for path in (package / "run", package.parent / "run") if path.is_dir())
    programs = {file.stem: file for file in folder.glob("*.[ps][yh]") if file.stem not in SHARED}
    named = bool(arguments) and not arguments[0].startswith("-")
    name, program_arguments = (arguments[0], arguments[1:]) if named else ("main", arguments)
    if name not in programs:
        sys.exit(f"error: glem_graphgym has no program '{name}'; expected one of: {', '.join(sorted(programs))}")
    python = [sys.executable, *(flag for flag in flags if flag != "-m")]
    command = python if programs[name].suffix == ".py" else ["bash"]
    os.environ.setdefault("PYTHON", sys.executable)  # read by the shell scripts
    os.execvp(command[0], [*command, str(programs[name]), *program_arguments])


if __name__ == "__main__":
    start_program(sys.argv[1:])
