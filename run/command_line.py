"""What the programs in this folder share: their first line, OpenMP's settings, and ``--cfg FILE [key value ...]``.

Imports nothing but the standard library: it is there before the seconds that PyTorch takes.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

# How long a thread of libgomp, which torch's wheels bring, keeps its core busy at the end of its share of the work
# before it sleeps: 300,000 rounds by default. Where another program wants the core too, that time is lost to both.
# (libomp and Intel's runtime read KMP_BLOCKTIME.)
OPENMP = {"GOMP_SPINCOUNT": "10000"}
OPENMP_WAITING = (*OPENMP, "OMP_WAIT_POLICY")  # whoever has set one of these has chosen


def before_imports(quiet: bool = False) -> None:
    """To be called before torch is imported: sets what OpenMP reads once, and says that importing takes a while.

    What the user has set stands. Processes that this one starts inherit the settings.

    Args:
        quiet: nothing is said.
    """
    if not any(name in os.environ for name in OPENMP_WAITING):
        os.environ.update(OPENMP)
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    started_by_ours = "GLEM_STARTED_BY" in os.environ
    if not quiet and rank == "0" and not started_by_ours and "torch" not in sys.modules:
        print("Loading PyTorch, PyTorch Geometric and Lightning ...", flush=True)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg``."""
    parser.add_argument("--cfg", dest="cfg_file", required=True, help="YAML configuration file")


def parse_with_options(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Flags, and in ``opts`` the ``key value`` options that override the YAML, in any order; ends with 2 if wrong."""
    args, options = parser.parse_known_args(argv)
    unknown = [option for option in options if option.startswith("--")]
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
        text = Path(args.cfg_file).read_text(encoding="utf-8", errors="replace")
    except OSError:  # said by whoever loads it
        return False
    return re.search(r"""^print:\s*['"]?file\b""", text, re.MULTILINE) is not None
