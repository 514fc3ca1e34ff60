"""What the programs in this folder share: their first line, OpenMP's settings, ``--cfg FILE [key value ...]``, and
standard streams that may fail.

Imports nothing but the standard library: it is there before the seconds that PyTorch takes.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# How long a thread of libgomp, which torch's wheels bring, keeps its core busy at the end of its share of the work
# before it sleeps: 300,000 rounds by default, in which a core that another program wants is lost to both. 2,000 rounds
# cost an E-step 2% on a quiet machine and gain a third beside a busy process; where one is busy at the start, threads
# sleep at once, which doubles the speed there and would cost a sixth elsewhere (docs/measurements.md, "Shared cores").
QUIET = {"GOMP_SPINCOUNT": "2000"}
SHARED = {"OMP_WAIT_POLICY": "passive"}
STAT = Path("/proc/stat")
LOOK_SECONDS, BUSY_CORES = 0.1, 0.3  # how long other programs are watched, and how many cores make them busy


def before_imports(quiet: bool = False, computes: bool = True) -> None:
    """To be called before torch is imported: sets what OpenMP reads once, and says that importing takes a while.

    What the user has set stands. Processes that this one starts inherit the settings.

    Args:
        quiet: nothing is said.
        computes: whether so much is computed that it is worth a look at what other programs do.
    """
    if computes and not os.environ.keys() & {*QUIET, *SHARED}:
        os.environ.update(SHARED if cores_in_use() >= BUSY_CORES else QUIET)
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    started_by_ours = "GLEM_STARTED_BY" in os.environ
    if not quiet and rank == "0" and not started_by_ours and "torch" not in sys.modules:
        print("Loading PyTorch, PyTorch Geometric and Lightning ...", flush=True)


def cores_in_use() -> float:
    """How many of the cores that this process may use are busy with other programs now; 0 where Linux does not tell."""
    if not STAT.exists() or not hasattr(os, "sched_getaffinity"):
        return 0.0
    cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    before = _ticks(STAT.read_text(), cores)
    time.sleep(LOOK_SECONDS)
    busy, total = (now - then for now, then in zip(_ticks(STAT.read_text(), cores), before, strict=True))
    return len(cores) * busy / max(1, total)


def _ticks(stat: str, cores: set[str]) -> tuple[int, int]:
    """Of these cores the ticks that were not idle, and all ticks, as /proc/stat counts them since the start."""
    rows = [
        [int(value) for value in row[1:9]]
        for line in stat.splitlines()
        if (row := line.split())[:1] and row[0] in cores
    ]
    total = sum(map(sum, rows))
    return total - sum(row[3] + row[4] for row in rows), total  # idle, and waiting for a disk


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg``."""
    parser.add_argument("--cfg", dest="cfg_file", type=path, required=True, help="YAML configuration file")


def path(text: str) -> Path:
    """A flag's path, with ``~`` and ``$NAME`` written out where a shell has left them (``--cfg=~/x.yaml``).

    Raises:
        argparse.ArgumentTypeError: there is no such variable or user.
    """
    written = os.path.expandvars(text)
    if "$" in written:
        raise argparse.ArgumentTypeError(f"{text} names a variable that is not set")
    try:
        return Path(written).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text} names a user that there is not") from error


def parse_with_options(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Flags, and in ``opts`` the ``key value`` options that override the YAML, in any order; ends with 2 if wrong."""
    args, options = parser.parse_known_args(argv)
    keys = options[::2]
    unknown = [option for option in options if option.startswith("--") or (option in keys and option.startswith("-"))]
    if unknown:
        parser.error(f"unknown flag {unknown[0]}; options are written as 'key value', without dashes")
    args.opts = options
    return args


def logs_to_file(args: argparse.Namespace) -> bool:
    """Whether ``print: file`` keeps the log off the terminal, as far as can be seen before the YAML is loaded."""
    options = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    if "print" in options:
        return bool(options["print"] == "file")
    try:
        if not Path(args.cfg_file).is_file():  # a pipe can be read once only
            return False
        with Path(args.cfg_file).open(encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 20)
    except (OSError, ValueError):  # said by whoever loads it
        return False
    return re.search(r"""^print:\s*['"]?file\b""", text, re.MULTILINE) is not None


# ---- standard output and standard error -----------------------------------------------------------------------------


def run_program(main: Callable[[], int]) -> int:
    """Call a program's ``main``, whose work goes on when its output can no longer be written; its exit status.

    A reader that has gone (``| head -1``) is no error. Where a disk is full (``> log.txt``), one line says so at the
    end, and the status is 1.
    """
    output = _guard("stdout", 1)
    _guard("stderr", 2)
    try:
        status = main()
    except SystemExit as end:  # argparse, with 2 after an error of its own
        if _is_lost(output) and not end.code:
            sys.exit(1)
        raise
    return 1 if _is_lost(output) and status == 0 else status


def _is_lost(output: _Unfailing) -> bool:
    """Whether something that was written has met an error that the reader has not caused; says so."""
    sys.stdout.flush()
    error = output.error
    if error is None or error.errno == errno.EPIPE:
        return False
    print(f"error: standard output cannot be written ({error.strerror}); all else is done", file=sys.stderr)
    return True


class _Unfailing(io.FileIO):
    """A standard stream; once it cannot be written, it leads nowhere, for libraries and other processes too."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            _lead_nowhere(self.fileno())
            return len(data)


def _guard(name: str, descriptor: int) -> _Unfailing:
    """Put an unfailing stream in the place of ``sys.stdout`` or ``sys.stderr``."""
    stream = getattr(sys, name)
    if stream is None:  # it was closed (>&-): the next file that is opened must not become it
        _lead_nowhere(descriptor)
    else:
        stream.flush()
    raw = _Unfailing(descriptor, "w", closefd=False)
    text = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors=getattr(stream, "errors", "replace"),
        line_buffering=getattr(stream, "line_buffering", False),
    )
    setattr(sys, name, text)
    return raw


def _lead_nowhere(descriptor: int) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    if nothing != descriptor:
        os.dup2(nothing, descriptor)
        os.close(nothing)
