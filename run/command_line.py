"""Shared by the programs in this folder: OpenMP's settings, ``--cfg FILE [key value ...]``, and standard streams that
do not end a run when they fail.

Imports nothing that takes long: it sets variables that PyTorch reads when imported, and PyTorch takes seconds.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent  # root of the clone, or of the installed package
CONFIGS = ROOT / "configs_gg"
MADE_CONFIGS = Path("configs_gg")  # for those of grids and searches: in a clone beside their base, as with GraphGym
if (ROOT / "glem_graphgym").is_dir():  # a clone works without being installed
    sys.path.insert(0, str(ROOT))

# How many rounds a thread of libgomp (part of torch's wheels) spins after its share of the work before it sleeps. The
# default of 300,000 wastes a core that another program wants. 2,000 rounds cost an E-step 2% on a quiet machine and
# gain a third next to a busy process. If a process is busy at the start, threads sleep at once, which doubles the speed
# there and would cost a sixth on a quiet machine (docs/measurements.md, "Shared cores").
QUIET = {"GOMP_SPINCOUNT": "2000"}
SHARED = {"OMP_WAIT_POLICY": "passive"}
# Batches of varying lengths fragment a GPU's memory, until a longer batch no longer fits.
GPU_MEMORY = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
LOOK_SECONDS, BUSY_CORES = 0.1, 0.3  # how long to watch other programs; cores in use that count as busy


def before_imports(quiet: bool = False, computes: bool = True) -> None:
    """Set the variables that OpenMP and CUDA's allocator read once, and announce the imports, which take a while.

    To be called before torch is imported. Variables that the user has set stay as they are. ``computes``: whether the
    program computes enough for these settings to matter.
    """
    if computes and not os.environ.keys() & {*QUIET, *SHARED}:
        os.environ.update(SHARED if cores_in_use() >= BUSY_CORES else QUIET)
    if computes and not os.environ.keys() & {*GPU_MEMORY, "PYTORCH_CUDA_ALLOC_CONF"}:
        os.environ.update(GPU_MEMORY)
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    started_by_ours = "GLEM_STARTED_BY" in os.environ
    if not quiet and rank == "0" and not started_by_ours and "torch" not in sys.modules:
        print("Loading PyTorch, PyTorch Geometric and Lightning ...", flush=True)


def cores_in_use() -> float:
    """Number of this process's cores that other programs keep busy now; 0 on a system that pins no process to cores."""
    if not hasattr(os, "sched_getaffinity"):
        return 0.0
    import psutil

    shares = psutil.cpu_percent(LOOK_SECONDS, percpu=True)
    return sum(shares[core] for core in os.sched_getaffinity(0) if core < len(shares)) / 100


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg``."""
    help_text = "YAML configuration file, or the name of one in configs_gg/"
    parser.add_argument("--cfg", dest="cfg_file", type=config_file, required=True, help=help_text)


def config_file(text: str) -> Path:
    """Path of a configuration; a bare name that is no file (``glem_debian_small``) is looked up in configs_gg/."""
    file, shipped = path(text), CONFIGS / f"{text}.yaml"
    try:
        return shipped if not file.exists() and Path(text).name == text and shipped.is_file() else file
    except OSError:  # such as a name that is too long, which loading reports
        return file


def path(text: str) -> Path:
    """A flag's path with ``~`` and ``$NAME`` expanded, which a shell leaves alone in ``--cfg=~/x.yaml``."""
    expanded = os.path.expandvars(text)
    if "$" in expanded:
        raise argparse.ArgumentTypeError(f"{text} names a variable that is not set")
    try:
        return Path(expanded).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text} names a user that does not exist") from error


def check_repeat(parser: argparse.ArgumentParser, repeat: int, flag: str = "--repeat") -> None:
    """End with status 2 unless the number of seeds is from 1 to 10,000; more is taken for a mistake."""
    if not 1 <= repeat <= 10_000:
        parser.error(f"{flag} is {repeat}, expected 1 to 10,000")


def parse_with_options(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse flags and, into ``opts``, the ``key value`` options that override the YAML; exits with 2 on errors.

    ``argv`` of the result holds all words as typed.
    """
    args, options = parser.parse_known_args(argv)
    keys = options[::2]
    unknown = [option for option in options if option.startswith("--") or (option in keys and option.startswith("-"))]
    if unknown:
        parser.error(f"unknown flag {unknown[0]}; options are written as 'key value', without dashes")
    args.opts, args.argv = options, sys.argv[1:] if argv is None else argv
    return args


def logs_to_file(args: argparse.Namespace) -> bool:
    """Whether ``print: file`` keeps the log off the terminal; a guess, made before the YAML is loaded."""
    options = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    if "print" in options:
        return bool(options["print"] == "file")
    try:
        if not Path(args.cfg_file).is_file():  # a pipe can be read once only
            return False
        with Path(args.cfg_file).open(encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 20)
    except (OSError, ValueError):  # loading the YAML will report it
        return False
    return re.search(r"""^print:\s*['"]?file\b""", text, re.MULTILINE) is not None


# ---- standard output and standard error -----------------------------------------------------------------------------


def run_program(main: Callable[[], int]) -> int:
    """Call a program's ``main`` and return its exit status; the work continues if output can no longer be written.

    A reader that has gone (``| head -1``) is no error. If a disk is full (``> log.txt``), one line at the end says so,
    and the status is 1.
    """
    output = _guard("stdout", 1)
    _guard("stderr", 2)
    try:
        status = main()
    except SystemExit as end:  # argparse, with 2 after an error of its own
        if _is_lost(output) and not end.code:
            sys.exit(1)
        raise
    except KeyboardInterrupt:  # before or after the program's own work, such as while it imports PyTorch
        print("interrupted", file=sys.stderr)
        return 1
    return 1 if _is_lost(output) and status == 0 else status


def _is_lost(output: _Unfailing) -> bool:
    """Whether output was lost, except to a reader that has gone; if so, prints an error."""
    sys.stdout.flush()
    error = output.error
    if error is None or error.errno == errno.EPIPE:
        return False
    print(f"error: standard output cannot be written ({error.strerror}); all else is done", file=sys.stderr)
    return True


class _Unfailing(io.FileIO):
    """A standard stream that is redirected to /dev/null after a failed write, for libraries and child processes too."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            _redirect_to_null(self.fileno())
            return len(data)


def _guard(name: str, descriptor: int) -> _Unfailing:
    """Replace ``sys.stdout`` or ``sys.stderr`` by an unfailing stream."""
    stream = getattr(sys, name)
    if stream is None:  # closed (>&-): otherwise the next file that is opened would get this descriptor
        _redirect_to_null(descriptor)
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


def _redirect_to_null(descriptor: int) -> None:
    null_device = os.open(os.devnull, os.O_WRONLY)
    if null_device != descriptor:
        os.dup2(null_device, descriptor)
        os.close(null_device)
