"""Aggregate the experiments of a grid: ``python run/agg_batch.py --dir results/<grid> [--metric accuracy]``.

Writes GraphGym's ``agg/{train,val,test}.csv``, ``*_best.csv`` and ``*_bestepoch.csv``. Select on ``val_best.csv`` and
report the same row of ``test_best.csv``, which is at the epoch of best validation.
Exit status: 0 written; 1 nothing to aggregate; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import logging
import sys

from command_line import path, run_program
from session import run_to_status


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Aggregate the experiments of a grid into CSV files in <dir>/agg.")
    parser.add_argument("--dir", type=path, required=True, help="results of a grid: results/<grid>")
    parser.add_argument(
        "--metric",
        default="auto",
        help="validation metric that selects the epoch of *_bestepoch.csv (default: auto = each run's metric_best); "
        "*_best.csv follow metric_best",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    return run_to_status(aggregate, parse_args(argv), computes=False)


def aggregate(args: argparse.Namespace) -> int:
    """Write the tables and print what was left out; returns the exit status."""
    from grid.tables import aggregate_grid

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for note in aggregate_grid(args.dir, args.metric):
        print(note)
    print(f"Aggregated into {args.dir / 'agg'}: select on val_best.csv, report test_best.csv")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
