"""Convert a graph to tables: ``python run/convert.py FILE... --out FOLDER [--name LAYOUT] [key value ...]``.

Prints which files and columns were used and which were not, and the lines of YAML that read the tables.
Exit status: 0 done; 1 failed (one message says why); 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from command_line import CONFIGS, parse_with_options, path, run_program
from session import run_to_status

CONFIG = CONFIGS / "table.yaml"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write the tables nodes.csv, edges.csv and, if there are features, features.npy of any graph.",
        epilog="Options 'key value' are those of a configuration, e.g.: dataset.tag_columns '[label=venue]'",
    )
    source_help = (
        "the graph's file or folder, as in dataset.tag_source; or its files: nodes, then edges; graph, then texts"
    )
    parser.add_argument("source", nargs="+", metavar="FILE", help=source_help)
    parser.add_argument("--out", type=path, required=True, help="a new folder for the tables")
    parser.add_argument("--name", default="", help="layout, as in dataset.name (default: detected from the file)")
    return parse_with_options(parser, argv)


def main(argv: list[str] | None = None) -> int:
    return run_to_status(convert, parse_args(argv), computes=False)


def convert(args: argparse.Namespace) -> int:
    """Write the tables; returns the exit status."""
    from torch_geometric.graphgym.config import cfg

    from glem_graphgym.build.graph import files_of
    from glem_graphgym.config import all_keys, load_config
    from glem_graphgym.data.errors import DataError, listed
    from glem_graphgym.data.from_tables import graph_of
    from glem_graphgym.data.registry import layout_of
    from glem_graphgym.data.table import TABLE
    from glem_graphgym.data.to_tables import write_tables

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    keys = all_keys()
    count = next((index for index, word in enumerate(args.source) if word in keys), len(args.source))
    try:
        source_paths, opts = [path(word) for word in args.source[:count]], args.source[count:] + args.opts
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"FILE: {error}") from error
    name = args.name or layout_of(source_paths[0])
    load_config(cfg, CONFIG, ["dataset.name", name, "dataset.tag_source", str(source_paths[0]), *opts])
    cfg.dataset.tag_undirected = False  # the tables keep directions; this key counts when they are read
    reader, source, options = files_of(cfg)
    graph = graph_of(reader.read(source_paths if len(source_paths) > 1 else reader.find(source), options), options)
    files = write_tables(graph, args.out)
    again = graph_of(TABLE.read(files, plain := replace(options, columns=(), text="")), plain)
    if lost := lost_classes(graph, again):
        files[0].unlink()  # what is left is no graph that anybody could train on
        raise DataError(
            f"{files[0]} does not keep the classes {listed(lost, quoted=True)} of {source}; in a table names must "
            "differ, not be empty, and not mean 'no label' (-1, NA): rename them"
        )
    report(graph, files, args.out)
    return 0


def lost_classes(graph: Any, again: Any) -> list[str]:
    """Names of classes whose nodes have no label, or that of another class too, in the graph read ``again``."""
    pairs = sorted({*zip(graph.label.tolist(), again.label.tolist(), strict=True)} - {(-1, -1)})
    shared = [label for _, label in pairs]
    return [graph.class_names[old] for old, new in pairs if new < 0 or shared.count(new) > 1]


def report(graph: Any, files: list[Path], folder: Path) -> None:
    """Print what the tables hold, and how to use them."""
    from glem_graphgym.data.errors import listed

    origin = graph.origin
    print(f"read {', '.join(origin['files'])}: {graph.num_nodes:,} nodes, {graph.num_classes} classes")
    split = "none: it is drawn when the tables are read" if "shares" in origin["split"] else origin["split"]
    for use, names in {"features": origin["feature_columns"], **origin["taken"], "split": split}.items():
        if names:
            print(f"  {use}: {listed(names, 20) if isinstance(names, list) else names}")
    print(f"  not used: {listed(origin['left'], 20)}")
    print(f"wrote {', '.join(map(str, files))}\n\ndataset:\n  format: TAG\n  name: table\n  tag_source: {folder}")


if __name__ == "__main__":
    sys.exit(run_program(main))
