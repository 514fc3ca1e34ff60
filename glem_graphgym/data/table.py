"""A user's own graph: a folder with a table of nodes and a table of edges, as CSV or Parquet."""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.errors import EmptyDataError, ParserWarning

from glem_graphgym.data.text_graph import (
    SPLITS,
    UNLABELLED,
    DataError,
    TextGraph,
    Texts,
    check_shares,
    csr_from_edges,
    snapshot,
)
from glem_graphgym.files import fingerprint

# To be raised whenever the same files and options would give another graph than before.
RECIPE_VERSION = 1
ENDINGS = (".csv", ".csv.gz", ".parquet")
NODE_COLUMNS = ("id", "text", "label", "split")
SPLIT_NAMES = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}

logger = logging.getLogger(__name__)


def load_table(folder: Path, cache: Path, *, shares: Sequence[float] = (0.1, 0.1, 0.8), seed: int = 0) -> TextGraph:
    """The graph of the files ``nodes`` and ``edges`` (.csv, .csv.gz or .parquet) of a folder, named like it.

    Nodes have the columns ``id``, ``text``, ``label`` (empty: unlabelled) and, if wanted, ``split`` (train,
    valid, val, validation, test; empty: in no split). All other columns are numbers and become ``features``,
    float32 (N, F), in the file's order. Edges have the columns ``source`` and ``target``; others are ignored.
    CSV is comma-separated UTF-8 with a header, and only an empty field is a missing value. Ids and labels may
    be of any type and are compared as strings: in CSV what is written there, in Parquet 7 and 7.0 are "7".

    Classes are in numeric order if all labels are integers, else in lexicographic order; ``node_ids`` are the
    ids. Self-loops and repeated edges, in either direction, are dropped and counted in ``origin``, as are
    empty texts, which stay, and classes without a training node, which can never be predicted.

    The graph is frozen under ``cache``, in a folder of its own for each content of the files and options.

    Args:
        folder: where the two files are.
        cache: where the snapshot goes.
        shares: shares (0-1) of the labelled nodes for train, valid and test, if there is no column ``split``.
        seed: of that split. It goes by a hash of the ids, so it does not depend on the order of the rows.

    Raises:
        DataError: a file or column is missing or cannot be read, an id is missing, repeated or (in an edge)
            unknown, a node in a split has no label, a feature is no finite number, or a split stays empty.
    """
    shares = list(check_shares(shares))
    nodes_file, edges_file = _find(folder, "nodes"), _find(folder, "edges")
    name = folder.absolute().name
    options = [name, nodes_file.name, edges_file.name, shares, seed]
    key = fingerprint(RECIPE_VERSION, options, nodes_file.read_bytes(), edges_file.read_bytes())
    return snapshot(cache / f"table-{key}", lambda: _graph(name, nodes_file, edges_file, shares, seed))


def _find(folder: Path, stem: str) -> Path:
    places = [folder / f"{stem}{ending}" for ending in ENDINGS]
    found = [path for path in places if path.is_file()]
    if len(found) != 1:
        names = [path.name for path in places]
        raise DataError(f"{folder} holds {len(found)} of the files {names}, expected exactly one of them")
    return found[0]


def _graph(name: str, nodes_file: Path, edges_file: Path, shares: list[float], seed: int) -> TextGraph:
    nodes = _read(nodes_file, ("id", "text", "label"), ("split",))
    ids = _ids(nodes_file, nodes)
    label, class_names = _labels(nodes_file, nodes)
    if "split" in nodes:
        split = _given_split(nodes_file, nodes, ids, label)
    else:
        split = _random_split(nodes_file, ids, label, shares, seed)
    texts = [text or "" for text in _strings(nodes_file, nodes, "text")]
    feature_columns = [column for column in nodes if column not in NODE_COLUMNS]
    features = _features(nodes_file, nodes[feature_columns], ids)
    rowptr, col, edge_counts = _edges(edges_file, ids)
    origin = {
        "files": [nodes_file.name, edges_file.name],
        "nodes": len(ids),
        "unlabelled": int((label == UNLABELLED).sum()),
        "empty_texts": sum(not text.strip() for text in texts),
        "classes_without_training": _untrained(label, split["train"], class_names),
        "split": "column" if "split" in nodes else {"shares": shares, "seed": seed},
        "feature_columns": [*map(str, feature_columns)],
        **edge_counts,
    }
    _report(name, origin)
    return TextGraph(
        name=name,
        texts=Texts.of(texts),
        rowptr=rowptr,
        col=col,
        label=label,
        split=split,
        class_names=class_names,
        features=features,
        node_ids=ids,
        origin=origin,
    )


def _report(name: str, origin: dict[str, Any]) -> None:
    if untrained := origin["classes_without_training"]:
        logger.warning("%s: no training node has these labels, so they cannot be predicted: %s", name, untrained)
    if origin["empty_texts"]:
        logger.warning("%s: %d of %d texts are empty", name, origin["empty_texts"], origin["nodes"])
    if not origin["edges"]:
        logger.warning("%s: the graph has no edges", name)
    if origin["ignored_edge_columns"]:
        logger.warning("%s: columns of edges that are ignored: %s", name, origin["ignored_edge_columns"])


def _read(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """A table that has its required columns; from CSV, these and the optional ones are strings as written."""
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = _read_csv(path, [*required, *optional])
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow, which is not installed; install the extra 'parquet' "
            "(pip install 'glem-graphgym[parquet]') or save the table as CSV"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    except EmptyDataError as error:
        raise DataError(f"{path} is empty, expected a header with {list(required)}") from error
    except (OSError, EOFError, zlib.error, ValueError, ParserWarning) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]} ({error}); export it again") from error
    if missing := [column for column in required if column not in table]:
        raise DataError(f"{path} has no column {missing}; found {[*table.columns]}, expected {list(required)}")
    return table


def _read_csv(path: Path, strings: Sequence[str]) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ParserWarning)  # a row with more fields than the header
        # No word stands for a missing value: "NA", "null" and "nan" are ids, labels and texts like any other.
        return pd.read_csv(
            path,
            dtype=dict.fromkeys(strings, str),
            keep_default_na=False,
            index_col=False,  # else a row with one field too many would shift all others
            low_memory=False,
        )


def _strings(path: Path, table: pd.DataFrame, column: str) -> np.ndarray:
    """object (rows,): the column's values as strings, None where there is no value or an empty one."""
    try:
        codes, values = pd.factorize(table[column])
    except TypeError as error:
        raise DataError(f"{path}: column '{column}' holds lists or the like; expected text or numbers") from error
    return np.array([*map(_string, values), None], dtype=object)[codes]  # the code of a missing value is -1


def _string(value: Hashable) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace") or None
    if isinstance(value, float | np.floating) and value.is_integer():
        return str(int(value))  # an integer column with gaps is read as floats
    return str(value) or None


def _ids(path: Path, nodes: pd.DataFrame) -> list[str]:
    ids = _strings(path, nodes, "id")
    if len(ids) == 0:
        raise DataError(f"{path} has no rows, expected one for each node")
    if None in ids:
        rows = [row for row, found in enumerate(ids, start=1) if found is None]
        raise DataError(f"{path}: {len(rows)} nodes have no id (rows {_listed(rows)}); give each node one")
    if repeated := [found for found, count in Counter(ids).items() if count > 1]:
        raise DataError(
            f"{path}: {len(repeated)} ids stand in several rows ({_listed(repeated)}); keep one row of each"
        )
    return list(ids)


def _labels(path: Path, nodes: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Class index of each node, int64 (N,), and the names of the classes in their order."""
    names = _strings(path, nodes, "label")
    classes = sorted({name for name in names if name is not None})
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in classes):
        classes.sort(key=int)
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index.get(name, UNLABELLED) for name in names], dtype=np.int64), classes


def _given_split(path: Path, nodes: pd.DataFrame, ids: list[str], label: np.ndarray) -> dict[str, np.ndarray]:
    values = _strings(path, nodes, "split")
    if unknown := Counter(value for value in values if value not in SPLIT_NAMES and value is not None):
        raise DataError(f"{path}: column 'split' holds {dict(unknown)}, expected {[*SPLIT_NAMES]} or nothing")
    unlabelled = [ids[node] for node in np.flatnonzero(label == UNLABELLED) if values[node] is not None]
    if unlabelled:
        raise DataError(
            f"{path}: {len(unlabelled)} nodes are in a split and have no label ({_listed(unlabelled)}); give "
            "them one, or leave their split empty"
        )
    parts = np.array([SPLIT_NAMES.get(value, "") for value in values])
    split = {part: np.flatnonzero(parts == part) for part in SPLITS}
    if empty := [part for part in SPLITS if len(split[part]) == 0]:
        raise DataError(
            f"{path}: column 'split' puts no node in {empty}; put some there, or drop the column for a random split"
        )
    return split


def _random_split(
    path: Path, ids: list[str], label: np.ndarray, shares: list[float], seed: int
) -> dict[str, np.ndarray]:
    labelled = np.flatnonzero(label != UNLABELLED)
    order = sorted(labelled, key=lambda node: hashlib.sha256(f"{seed} {ids[node]}".encode()).digest())
    ends = np.rint(np.cumsum(shares[:2]) * len(order)).astype(int)
    parts = np.split(np.array(order, dtype=np.int64), ends)
    split = {part: np.sort(nodes) for part, nodes in zip(SPLITS, parts, strict=True)}
    if empty := [part for part in SPLITS if len(split[part]) == 0]:
        raise DataError(
            f"{path}: shares {shares} of {len(order)} labelled nodes leave {empty} without one; label more "
            "nodes, or add a column 'split'"
        )
    return split


def _features(path: Path, columns: pd.DataFrame, ids: list[str]) -> np.ndarray | None:
    """float32 (N, F), or None without columns."""
    if columns.empty:
        return None
    with np.errstate(over="ignore"):
        features = np.column_stack([_numbers(columns[column]) for column in columns])
    bad = np.argwhere(~np.isfinite(features))
    if len(bad):
        row, position = bad[0]
        column, value = columns.columns[position], columns.iloc[row, position]
        raise DataError(
            f"{path}: column '{column}' holds {value!r} at node '{ids[row]}' ({len(bad)} such values); "
            f"columns beside {[*NODE_COLUMNS]} are features, expected finite numbers. Fill in the values or "
            "drop the column; text belongs in the column 'text'"
        )
    return features


def _numbers(column: pd.Series) -> np.ndarray:
    """float32 (rows,): the numbers of a column, NaN where there is none."""
    if not pd.api.types.is_numeric_dtype(column):
        column = pd.to_numeric(column.astype(str), errors="coerce")
    return column.to_numpy(np.float32, na_value=np.nan)


def _edges(path: Path, ids: list[str]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """CSR of the undirected graph, and counts of what was made of the rows."""
    table = _read(path, ("source", "target"))
    known = pd.Index(ids, dtype=object)
    names = [_strings(path, table, column) for column in ("source", "target")]
    source, target = (known.get_indexer(pd.Index(ends, dtype=object)) for ends in names)
    broken = (source < 0) | (target < 0)
    if broken.any():
        unknown = [end for ends, node in zip(names, (source, target), strict=True) for end in ends[node < 0]]
        distinct = [*dict.fromkeys("(empty)" if end is None else end for end in unknown)]
        raise DataError(
            f"{path}: {int(broken.sum())} of {len(table)} edges name {len(distinct)} ids that no node has "
            f"({_listed(distinct)}); add these nodes or drop these edges"
        )
    rowptr, col = csr_from_edges(source, target, len(ids))
    self_loops = int((source == target).sum())
    counts = {
        "edges": len(col) // 2,
        "self_loops": self_loops,
        "repeated_edges": len(table) - self_loops - len(col) // 2,
        "ignored_edge_columns": [str(column) for column in table if column not in ("source", "target")],
    }
    return rowptr, col, counts


def _untrained(label: np.ndarray, train: np.ndarray, class_names: list[str]) -> list[str]:
    trained = set(label[train])
    return [name for index, name in enumerate(class_names) if index not in trained]


def _listed(values: Sequence[Any], most: int = 5) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more
