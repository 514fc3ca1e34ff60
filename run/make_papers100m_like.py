"""Write a generated graph in the format of ogbn-papers100M, to measure how runs scale.

``python run/make_papers100m_like.py --folder datasets/ogbn_papers100M --nodes 5000000 --edges 60000000`` writes
files that the loader of ogbn-papers100M reads. To run on them: ``dataset.name ogbn-papers100M dataset.dir datasets``.
Exit status: 0 done; 1 nothing was written, with the reason; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import sys

from command_line import path, run_program
from session import run_to_status


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a generated graph in the format of ogbn-papers100M.")
    parser.add_argument("--folder", required=True, type=path, help="folder to write, e.g. datasets/ogbn_papers100M")
    parser.add_argument(
        "--nodes", dest="num_nodes", required=True, type=int, help="number of nodes (ogbn-papers100M: 111059956)"
    )
    parser.add_argument(
        "--edges", dest="num_edges", required=True, type=int, help="number of directed edges (papers100M: 1615685872)"
    )
    parser.add_argument(
        "--classes", dest="num_classes", type=int, default=172, help="number of classes, at most 172 (default: 172)"
    )
    parser.add_argument("--features", type=int, default=64, help="width of features (papers100M: 128; default: 64)")
    parser.add_argument("--feature_dtype", choices=["float16", "float32"], default="float32", help="(default: float32)")
    parser.add_argument("--text_words", type=int, default=32, help="words per text, title included (default: 32)")
    parser.add_argument("--labelled", type=float, default=0.0139, help="share of labelled nodes (default: 0.0139)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    return run_to_status(write, parse_args(argv))


def write(args: argparse.Namespace) -> int:
    """Write the dataset and print its size; returns the exit status."""
    from rehearsal.papers100m import Papers100MLike

    from glem_graphgym.disk import disk_full_errors

    with disk_full_errors(args.folder):
        Papers100MLike(**{name: value for name, value in vars(args).items() if name != "folder"}).write(args.folder)
    size = sum(file.stat().st_size for file in args.folder.rglob("*") if file.is_file())
    print(f"{args.folder}: {args.num_nodes:,} nodes, {args.num_edges:,} directed edges, {size / 1e9:.1f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
