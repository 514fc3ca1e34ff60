"""Make a dataset ready: ``python run/prepare.py --cfg configs_gg/glem_arxiv.yaml [key value ...]``.

Downloads missing files (without a network, says which file to put where), makes and checks graph, texts and tokens,
and prints where they are. After a crash or a kill, type the same command again: finished parts are kept.
Exit status: 0 the dataset is ready; 1 it is not (one message says why); 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from command_line import add_config, parse_with_options, run_program
from session import run_to_status


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """``--cfg`` and the ``key value`` options, as in `run/main.py`."""
    parser = argparse.ArgumentParser(
        description="Make the dataset of a configuration ready; type the same command again to resume.",
        epilog="Options 'key value' override the YAML, e.g.: dataset.dir /data lm.max_length 256",
    )
    add_config(parser)
    return parse_with_options(parser, argv)


def main(argv: list[str] | None = None) -> int:
    return run_to_status(prepare, parse_args(argv))


def prepare(args: argparse.Namespace) -> int:
    """Make a dataset ready; returns the exit status."""
    from torch_geometric.graphgym.config import cfg

    from glem_graphgym.build.preparation import prepare_dataset
    from glem_graphgym.config import load_config
    from glem_graphgym.disk import disk_full_errors

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    load_config(cfg, args.cfg_file, args.opts)
    with disk_full_errors(Path(cfg.dataset.dir)):
        print_prepared(prepare_dataset(cfg), cfg.dataset.name)
    return 0


def print_prepared(prepared: Iterable[Any], name: str) -> None:
    """Print a table of the parts that are ready, with their paths and sizes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from glem_graphgym.disk import size_text

    table = Table(title=f"{name} is ready")
    for column in ("what", "size", "holds", "where"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for item in prepared:
        path_text = str(item.where) if item.where else "made anew at every start"
        size = size_text(item.bytes) if item.where else ""
        table.add_row(*(Text(cell) for cell in (item.what, size, item.holds, path_text)))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(run_program(main))
