"""A user's own graph: a folder with a table of nodes and a table of edges, as CSV or Parquet."""

from __future__ import annotations

import hashlib
import logging
import math
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
    csr_from_edges,
    snapshot,
)
from glem_graphgym.files import fingerprint

# To be raised whenever the same files and options would give another graph than before.
RECIPE_VERSION = 1
ENDINGS = (".csv", ".csv.gz", ".parquet")
SPLIT_NAMES = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}

logger = logging.getLogger(__name__)


def load_table(
    folder: Path, cache: Path, *, shares: Sequence[float] = (0.1, 0.1, 0.8), seed: int = 0
) -> TextGraph:
    """The graph of ``nodes.{csv,csv.gz,parquet}`` and ``edges.{csv,csv.gz,parquet}``, named like their folder.

    Nodes have the columns ``id``, ``text``, ``label`` (empty: unlabelled) and, if wanted, ``split`` (train,
    valid, val, validation, test; empty: in no split). All other columns are numbers and become ``features``,
    float32 (N, F), in the file's order. Edges have the columns ``source`` and ``target``; others are ignored.
    CSV is comma-separated UTF-8 with a header. Ids and labels may be of any type and are compared as strings
    (a whole number without its decimals, so that 7 and 7.0 are one; in CSV they are what is written there).

    Classes are in numeric order if all labels are integers, else in lexicographic order; ``node_ids`` are the
    ids. Self-loops and repeated edges, in either direction, are dropped and counted in ``origin``, as are empty
    texts, which stay, and classes without a training node, which can never be predicted.

    The graph is frozen under ``cache``, in a folder of its own for each content of the files and options.

    Args:
        folder: where the two files are.
        cache: where the snapshot goes.
        shares: shares (0-1) of the labelled nodes for train, valid and test, where there is no column ``split``.
        seed: of that split. It goes by a hash of the ids and so does not depend on the order of the rows.

    Raises:
        DataError: a file or column is missing or cannot be read, an id is missing, repeated or (in an edge)
            unknown, a node in a split has no label, a feature is no finite number, or a split stays empty.
    """
    shares = _checked_shares(shares)
    files = [_find(folder, "nodes"), _find(folder, "edges")]
    name = folder.resolve().name
    options = {"name": name, "files": [file.name for file in files], "shares": shares, "seed": seed}
    key = fingerprint(RECIPE_VERSION, options, *(file.read_bytes() for file in files))
    return snapshot(cache / f"table-{key}", lambda: _graph(name, *files, shares, seed))


def _checked_shares(shares: Sequence[float]) -> list[float]:
    values = [float(share) for share in shares]
    if len(values) != len(SPLITS) or min(values) <= 0 or not math.isclose(sum(values), 1, abs_tol=1e-6):
        raise DataError(f"shares are {values}, expected three positive numbers (train, valid, test) with the sum 1")
    return values


def _find(folder: Path, stem: str) -> Path:
    places = [folder / f"{stem}{ending}" for ending in ENDINGS]
    found = [path for path in places if path.is_file()]
    if len(found) != 1:
        raise DataError(
            f"{folder} holds {[path.name for path in found] or 'none'} of {[path.name for path in places]}, "
            "expected exactly one of them"
        )
    return found[0]


def _graph(name: str, nodes_file: Path, edges_file: Path, shares: list[float], seed: int) -> TextGraph:
    nodes = _read(nodes_file, required=("id", "text", "label"), text=("id", "text", "label", "split"))
    ids = _ids(nodes_file, nodes["id"])
    label, class_names = _labels(nodes["label"])
    if "split" in nodes:
        split = _given_split(nodes_file, nodes["split"], ids, label)
    else:
        split = _random_split(nodes_file, ids, label, shares, seed)
    texts = [text or "" for text in _strings(nodes["text"])]
    features, feature_names = _features(nodes_file, nodes.drop(columns=["id", "text", "label", "split"], errors="ignore"))
    rowptr, col, edge_counts = _edges(edges_file, ids)
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
        origin={
            "files": [nodes_file.name, edges_file.name],
            "nodes": len(ids),
            **edge_counts,
            "unlabelled": int((label == UNLABELLED).sum()),
            "empty_texts": _count_empty(nodes_file, texts),
            "classes_without_training": _untrained(nodes_file, label, split["train"], class_names),
            "feature_columns": feature_names,
            "split": "column" if "split" in nodes else {"shares": shares, "seed": seed},
        },
    )
