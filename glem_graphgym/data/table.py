"""A user's own graph: a folder with a table of nodes and a table of edges, as CSV or Parquet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from glem_graphgym.data.csv_file import check_rows, read_csv_bytes, read_table
from glem_graphgym.data.errors import DataError, listed
from glem_graphgym.data.from_tables import NODE_COLUMNS, NUMBER, Reader, TableOptions, load_files
from glem_graphgym.data.splits import MASK_COLUMN, SPLIT_COLUMN
from glem_graphgym.data.tables import Tables
from glem_graphgym.data.text_graph import TextGraph

ENDINGS = (".csv", ".csv.gz", ".parquet")
# What others call the columns, for the message when ours are missing.
OTHER_NAMES = {
    "id": "node node_id nid name index paper_id",
    "text": "title abstract content body raw_text raw_texts description",
    "label": "labels class category target y",
    "source": "src from u head start source_id from_node node1",
    "target": "dst to v tail end target_id to_node node2",
}


def load_table(folder: Path, cache: Path, *, raw: bool = False, **options: Any) -> TextGraph:
    """The graph of the files ``nodes`` and ``edges`` (.csv, .csv.gz or .parquet) of a folder, named like it.

    Nodes have the columns ``id``, ``text``, ``label`` and, if wanted, a split (`glem_graphgym.data.tables.Tables` has
    its forms). All other columns are numbers and become ``features``, float32 (N, F), in the file's order. Edges have
    the columns ``source`` and ``target``; others are ignored. CSV is comma-separated UTF-8 with a header, and only an
    empty field is a missing value.

    Args:
        folder: where the two files are.
        cache: where the snapshot goes.
        raw: as of `load_files`.
        options: those of `TableOptions`.

    Raises:
        DataError: a file or column is missing or wrong. Names the file, and the line or row.
    """
    return load_files(TABLE, folder, cache, TableOptions(**options), kind="table", raw=raw)


def find_tables(folder: Path) -> list[Path]:
    """The files of nodes and of edges in a folder; raises DataError."""
    return [_find(folder, "nodes"), _find(folder, "edges")]


def read_tables(files: list[Path], options: TableOptions) -> Tables:
    """The tables of the files that `find_tables` found; raises DataError."""
    nodes_file, edges_file = files
    nodes, edges = _read_nodes(nodes_file), _read(edges_file, ("source", "target"))
    where = {"nodes": str(nodes_file), "edges": str(edges_file)}
    name = nodes_file.absolute().parent.name
    return Tables(name, nodes, edges, where=where, origin={"files": [file.name for file in files]})


TABLE = Reader(find_tables, read_tables)


def _find(folder: Path, stem: str) -> Path:
    names = [f"{stem}{ending}" for ending in ENDINGS]
    if not folder.is_dir():
        raise DataError(f"dataset.tag_source: {folder} is no folder; expected one with {names[0]} and the like")
    similar = sorted(path for path in folder.iterdir() if path.name.lower().startswith(f"{stem}."))
    found = [path for path in similar if path.name.lower() in names and path.is_file()]
    if len(found) != 1:
        there = [path.name + "/" * path.is_dir() for path in similar]
        parts = "; a folder of parts, as Spark writes it, must be made one file" if "/" in "".join(there) else ""
        raise DataError(
            f"{folder} holds {len(found)} of the files {names}, expected exactly one of them"
            + (f"; there are {there}{parts}" if there else "")
        )
    return found[0]


# ---- files and columns --------------------------------------------------------------------------------------------


def _read_nodes(path: Path) -> pd.DataFrame:
    nodes = _read(path, ("id", "text", "label"), closed=("label", "split"))
    names = [str(column) for column in nodes.columns]
    nameless = [place for place, name in enumerate(names) if re.fullmatch(r"(Unnamed: [0-9]+)?", name.strip())]
    for place in nameless:
        if not nodes.iloc[:, place].isin(["", None, np.nan]).all():
            raise DataError(
                f"{path}: column {place + 1} has no name ('{names[place]}'), as when pandas writes its index; drop it "
                "(to_csv with index=False) or name it"
            )
    nodes = nodes.iloc[:, [place for place in range(len(names)) if place not in nameless]]
    for name in names:
        meant = re.sub(r"[\s_-]+|\.[0-9]+$", "", name).casefold()  # pandas calls a second column label 'label.1'
        if name not in (*NODE_COLUMNS, "split") and meant in (*NODE_COLUMNS, "split"):
            raise DataError(
                f"{path}: column {name!r} may be '{meant}' under another name, or a copy of it; rename it to "
                f"'{meant}' or drop it"
            )
    return nodes


def _read(path: Path, required: Sequence[str], closed: Sequence[str] = ()) -> pd.DataFrame:
    """A table that has its required columns, each once; from CSV, these, split and masks are strings as written.

    Args:
        closed: see `check_rows`.
    """
    if path.suffix.lower() == ".parquet":
        table = _read_parquet(path)
        header = [*table.columns]
        _check_header(path, header, required)
        return table
    content = read_csv_bytes(path)
    header = check_rows(path, content, closed)
    _check_header(path, header, required)
    in_splits = {name for name in header if SPLIT_COLUMN.fullmatch(name) or MASK_COLUMN.fullmatch(name)}
    strings = ({*required} & {*header}) | in_splits
    table = read_table(content, strings)
    table.columns = pd.Index(header, dtype=object)
    return table


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow, which is not installed; install the extra 'parquet' "
            "(pip install 'glem-graphgym[parquet]') or save the table as CSV"
        ) from error
    except Exception as error:  # pyarrow has errors of its own
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as Parquet ({reason:.200}); export it again") from error
    if any(name is not None for name in table.index.names):  # pandas' index is a column of the file
        table = table.reset_index()
    table.columns = pd.Index([str(column) for column in table.columns], dtype=object)
    return table


def _check_header(path: Path, header: Sequence[str], required: Sequence[str]) -> None:
    missing = [column for column in required if column not in header]
    if missing:
        raise DataError(
            f"{path} has no column {missing}; found [{listed(header, 12, quoted=True)}], expected {[*required]}"
            + _why_missing(header, missing, required)
        )
    nodes = "text" in required
    repeated = [name for name, count in Counter(header).items() if count > 1 and (nodes or name in required)]
    if repeated := [name for name in repeated if name.strip()]:
        raise DataError(f"{path}: several columns have the name {listed(repeated, quoted=True)}; keep one of each")


def _why_missing(header: Sequence[str], missing: Sequence[str], required: Sequence[str]) -> str:
    joined = "".join(header)
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if separator in joined and set(missing) <= {cell.strip(' "') for cell in joined.split(separator)}:
            return f"; columns are separated by {name} there, expected commas: export it again"
    for column in missing:
        meant = [cell for cell in header if cell.strip().casefold() in (column, *OTHER_NAMES[column].split())]
        if meant:
            return f"; rename the column {meant[0]!r} to '{column}'?"
    if len(missing) == len(required) and any(NUMBER.fullmatch(cell.strip()) for cell in header):
        return f"; is the first line a row? Put a line with {','.join(required)} above it"
    return ""
