"""Builds a text graph from tables, checks and counts labels, splits, features and edges, and keeps it as a snapshot."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from glem_graphgym.data.columns import EDGE_COLUMNS, NODE_COLUMNS, VIEW, Columns
from glem_graphgym.data.errors import DataError, listed
from glem_graphgym.data.splits import SPLIT_NAMES, drawn_split, given_splits, split_columns
from glem_graphgym.data.tables import Tables, strings_of
from glem_graphgym.data.text_graph import SPLITS, UNLABELLED, TextGraph, Texts, check_shares, csr_from_edges, snapshot
from glem_graphgym.files import fingerprint, sha256_of

# Increment whenever the same files and options would give another graph than before.
RECIPE_VERSION = 5
# Words that mean "no label" if all other labels are numbers; -1 means it among words too.
NO_LABEL = {"-1", "-1.0", "na", "n/a", "#n/a", "<na>", "nan", "none", "null"}
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
# Key of a graph's `origin` -> warning that is logged if the value is not empty.
UNUSUAL = {
    "no_label_words": "nodes without a label by these words in column 'label': {}",
    "classes_like_no_label": "these words are classes here; leave the field empty for a node without a label: {}",
    "odd_labels": "labels that are unlike the others are classes too: {}",
    "similar_labels": "labels that may be meant to be the same are different classes: {}",
    "fractional_labels": "labels are numbers with fractions; each of them is a class",
    "ids_with_blanks": "{} ids begin or end with a blank",
    "classes_without_training": "no training node has these labels, so they cannot be predicted: {}",
    "empty_texts": "{} of {nodes} texts are empty",
    "repeated_texts": "{} of {nodes} texts repeat another node's",
    "ignored_edge_columns": "columns of edges that are ignored: {}",
}
ROWS_PER_VALUE = 4  # with fewer rows per distinct value, a feature column may determine the label by chance
LEAST_ROWS = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableOptions:
    """Options for building a graph from tables: the keys ``dataset.tag_*``.

    Attributes:
        shares: of train, valid and test if the files state no split: shares of the labelled nodes or, above 1, numbers.
        seed: of that split and of the draw for ``valid_share``; both hash the nodes' ids, so row order has no effect.
        valid_share: share (0-1) of the training nodes to move to validation if the files' split has none there.
        undirected: edges count in both directions; False = messages go only from source to target.
        columns: names of columns, each as ``ours=theirs``; see `glem_graphgym.data.columns.Columns`.
        text: template of the texts, ``{title}. {abstract}``; empty = the column ``text``.
    """

    shares: tuple[float, ...] = (0.1, 0.1, 0.8)
    seed: int = 0
    valid_share: float = 0.0
    undirected: bool = True
    columns: tuple[str, ...] = ()
    text: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", check_shares(self.shares, counts=True))
        Columns(self.columns, self.text)  # checks them


class Reader(NamedTuple):
    """Reader of one layout of files: finds the files, then makes `Tables` of them."""

    find: Callable[[Path], list[Path]]  # files of a source; raises DataError if they are missing
    read: Callable[[list[Path], TableOptions], Tables]


def load_files(
    reader: Reader, source: Path, cache: Path, options: TableOptions, *, kind: str, raw: bool = False
) -> TextGraph:
    """Load the graph of a user's files, frozen under ``cache`` in one folder per content of the files and options.

    Each call logs the feature columns and what is unusual about the graph.

    Args:
        kind: the reader's name, for the name of the folder.
        raw: whether the features will be used; if so, columns that give the label away are refused.

    Raises:
        DataError: a file or column is missing or wrong. Names the file, and the line or row.
    """
    files = reader.find(source)
    names = [source.absolute().name, *(file.name for file in files)]
    key = fingerprint(RECIPE_VERSION, names, asdict(options), sha256_of(files))
    graph = snapshot(cache / f"{kind}-{key}", lambda: graph_of(reader.read(files, options), options))
    _report(graph, raw)
    return graph


def graph_of(tables: Tables, options: TableOptions) -> TextGraph:
    """Build the text graph of tables.

    Ids and labels are compared as strings: the numbers 7 and 7.0 are "7". A node has no label if the field is empty or
    -1. NA, nan, None and null mean the same if all other labels are numbers; among words they are classes, with a
    warning. The labels 1 and 1.0 are one class, "1". Classes are in numeric order if all labels are integers, else in
    lexicographic order. Self-loops and repeated edges, in either direction, are dropped. ``origin`` has their numbers,
    the number of empty texts, which are kept, and the classes without a training node.

    Raises:
        DataError: a column is wrong, or the tables contradict each other; names the file.
    """
    ids = _ids(tables)
    label, class_names, unusual = _labels(tables)
    split_maps = split_columns([*tables.nodes])
    if split_maps:
        codes = given_splits(tables, split_maps, label, options.valid_share, options.seed)
    else:
        codes = drawn_split(tables, label, options.shares, options.seed)[None]
    split_names = [names[0] if len(names := [*split_map]) == 1 else names for split_map in split_maps]
    texts = _texts(tables, "text")
    split_column_names = [column for split_map in split_maps for column in split_map]
    views = [name for name in map(str, tables.nodes) if name.startswith(VIEW)]
    columns = [name for name in map(str, tables.nodes) if name not in (*NODE_COLUMNS, *split_column_names, *views)]
    if columns and tables.features is not None:
        raise DataError(
            f"{tables.where['nodes']} has the columns {listed(columns, 12, quoted=True)} beside features of their own; "
            "keep one of the two as features"
        )
    features = _features(tables, columns) if tables.features is None else _array_features(tables)
    source, target = _ends(tables, ids)
    rowptr, col = csr_from_edges(source, target, tables.num_nodes, directed=not options.undirected)
    edge_columns = [*tables.edges] if isinstance(tables.edges, pd.DataFrame) else []
    edges, self_loops = len(col) // (2 if options.undirected else 1), int((source == target).sum())
    trained = set(label[codes[0] == 0])
    origin = {
        **tables.origin,
        "where": tables.where["nodes"],
        "nodes": tables.num_nodes,
        "unlabelled": int((label == UNLABELLED).sum()),
        **unusual,
        "ids_with_blanks": sum(name != name.strip() for name in ids or []),
        "empty_texts": sum(not text.strip() for text in texts),
        "repeated_texts": len(texts) - len(set(texts)),
        "classes_without_training": [name for index, name in enumerate(class_names) if index not in trained],
        "split": split_names[0] if split_maps else {"shares": [*options.shares], "seed": options.seed},
        **({"fixed_splits": split_names} if len(split_maps) > 1 else {}),
        "feature_columns": columns,
        "telling_columns": telling_columns(columns, features, label) if columns and features is not None else {},
        "edges": edges,
        "self_loops": self_loops,
        "repeated_edges": len(source) - self_loops - edges,
        "ignored_edge_columns": [str(name) for name in edge_columns if name not in EDGE_COLUMNS],
    }
    return TextGraph(
        name=tables.name.removeprefix("ogbn-"),  # OGB's evaluators and tables are for OGB's own graphs
        texts=texts,
        rowptr=rowptr,
        col=col,
        label=label,
        split={split_name: np.flatnonzero(codes[0] == code) for code, split_name in enumerate(SPLITS)},
        class_names=class_names,
        features=features,
        views={name.removeprefix(VIEW): _texts(tables, name) for name in views},
        node_ids=ids,
        origin=origin,
        splits=codes if len(codes) > 1 else None,
        directed=not options.undirected,
    )


def _texts(tables: Tables, column: str) -> Texts:
    return Texts.of([text or "" for text in tables.strings(column)])


def _report(graph: TextGraph, raw: bool) -> None:
    """Log the feature columns and what is unusual about the graph.

    Raises:
        DataError: ``raw`` features will be used, and some give the label away.
    """
    name, origin = graph.name, graph.origin
    if unused := origin.get("left"):
        logger.info("%s: not used: %s", name, listed(unused, 20))
    if columns := origin["feature_columns"]:
        logger.info("%s: %d feature columns (for glem.node_features raw): %s", name, len(columns), listed(columns))
    if telling := origin["telling_columns"]:
        problem = f"{origin['where']}: {listed([f'column {column!r} {reason}' for column, reason in telling.items()])}"
        if raw:
            raise DataError(f"{problem}; as raw features (glem.node_features) they give the label away: drop them")
        logger.warning("%s; as raw features they would give the label away", problem)
    for key, message in UNUSUAL.items():
        value = origin.get(key)  # older snapshots lack some of the keys
        if value and (key != "repeated_texts" or 2 * value > origin["nodes"]):
            shown = listed(value, 20, quoted=key == "odd_labels") if isinstance(value, list) else value
            logger.warning("%s: %s", name, message.format(shown, nodes=origin["nodes"]))
    if not origin["edges"]:
        logger.warning("%s: the graph has no edges", name)


# ---- ids and labels --------------------------------------------------------------------------------------------------


def _ids(tables: Tables) -> list[str] | None:
    """The nodes' ids, checked to be unique; None if they are row numbers."""
    where = tables.where["nodes"]
    if tables.num_nodes == 0:
        raise DataError(f"{where} has no rows, expected one for each node")
    if "id" not in tables.nodes:
        return None
    ids = tables.strings("id")
    if None in ids:
        rows = [row for row, node_id in enumerate(ids, start=1) if node_id is None]
        raise DataError(f"{where}: {len(rows)} nodes have no id (rows {listed(rows)}); give each node one")
    if repeated := [node_id for node_id, count in Counter(ids).items() if count > 1]:
        raise DataError(
            f"{where}: {len(repeated)} ids stand in several rows ({listed(repeated)}); keep one row of each"
        )
    return list(ids)


def _labels(tables: Tables) -> tuple[np.ndarray, list[str], dict[str, Any]]:
    """Class index of each node, int64 (N,), names of the classes, and what is unusual about the labels."""
    names = tables.strings("label")
    counts = Counter(name for name in names if name is not None)
    words = {name for name in counts if name.strip().casefold() in NO_LABEL}
    labels = [name for name in counts if name not in words and name.strip()]
    numbers = bool(labels) and all(NUMBER.fullmatch(name.strip()) for name in labels)
    no_label = words if numbers else {name for name in words if name.strip().startswith("-1")}
    class_of = {
        name: re.sub(r"\.0*$", "", name.strip()) if numbers else name
        for name in counts
        if name.strip() and name not in no_label
    }
    classes = sorted(set(class_of.values()))
    if len(classes) < 2:
        no_label_counts = {name: counts[name] for name in sorted(no_label)}
        raise DataError(
            f"{tables.location('label')} holds {len(classes)} classes ({listed(classes, quoted=True)}); at least 2 are "
            "needed to classify" + (f" (no labels are: {no_label_counts})" if no_label_counts else "")
        )
    fractional = numbers and any("." in name for name in classes)
    if numbers and not fractional:
        classes.sort(key=int)
    if tables.class_names is not None:
        class_numbers = [*map(str, range(len(tables.class_names)))]
        if unknown := [name for name in classes if name not in class_numbers]:
            raise DataError(
                f"{tables.location('label')} holds the classes {listed(unknown)}, which are not among the numbers of "
                f"{len(class_numbers)} names ({listed(tables.class_names)}); expected 0 to {len(class_numbers) - 1}"
            )
        classes = class_numbers
    class_names = tables.class_names or classes
    index = {name: position for position, name in enumerate(classes)}
    unusual = {
        "no_label_words": {name: counts[name] for name in sorted(no_label)},
        "classes_like_no_label": {name: counts[name] for name in sorted(words - no_label)},
        "odd_labels": _odd_classes(class_names),
        "similar_labels": _similar_classes(class_names),
        "fractional_labels": fractional,
    }
    label = [index[class_of[name]] if name in class_of else UNLABELLED for name in names]
    return np.array(label, dtype=np.int64), list(class_names), unusual


def _odd_classes(classes: Sequence[str]) -> list[str]:
    """Classes unlike the others: negative numbers, and words if most classes are numbers."""
    numbers = [name for name in classes if NUMBER.fullmatch(name.strip())]
    words = [name for name in classes if name not in numbers] if 2 * len(numbers) > len(classes) else []
    return [*(name for name in numbers if name.strip().startswith("-")), *words]


def _similar_classes(classes: Sequence[str]) -> list[str]:
    """Groups of classes that are equal after `_plain` (blanks, case, leading zeros, …), each as one string."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(_plain(name), []).append(name)
    return [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]


# ---- features ------------------------------------------------------------------------------------------------------


def _features(tables: Tables, names: list[str]) -> np.ndarray | None:
    """Features float32 (N, F) from the columns ``names``; None if there are none."""
    columns = tables.nodes[names]
    if columns.empty:
        return None
    with np.errstate(over="ignore"):
        features = np.column_stack([_numbers(columns[column]) for column in columns])
    bad = np.argwhere(~np.isfinite(features))
    if len(bad):
        row, position = bad[0]
        column, value = columns.columns[position], columns.iloc[row, position]
        if str(value).strip().casefold() in SPLIT_NAMES:
            raise DataError(f"{tables.location(column)} holds {value!r}; if it is the split, call it 'split'")
        raise DataError(
            f"{tables.location(column)} holds {value!r:.80} at node {listed([tables.id_of(row)], quoted=True)} "
            f"({len(bad)} such values); columns beside {[*NODE_COLUMNS, 'split']} are features, expected finite "
            "numbers. Fill in the values or drop the column; text belongs in the column 'text'"
        )
    return features


def _array_features(tables: Tables) -> np.ndarray:
    """Features float32 (N, F) that the tables hold as an array instead of columns."""
    array, where = np.asarray(tables.features), tables.location("features")
    if array.dtype.kind not in "biuf" or array.ndim != 2 or len(array) != tables.num_nodes:
        raise DataError(
            f"{where} is {array.dtype} {array.shape}, expected finite numbers ({tables.num_nodes} nodes, number of "
            "features)"
        )
    with np.errstate(over="ignore"):
        features = array.astype(np.float32)
    if not np.isfinite(features).all():
        raise DataError(f"{where} holds NaN or infinity, expected finite numbers")
    return features


def _numbers(column: pd.Series) -> np.ndarray:
    """Values of a column, float32 (rows,); NaN if a value is not a number."""
    if not pd.api.types.is_numeric_dtype(column):
        column = pd.to_numeric(column.astype(str), errors="coerce")
    return column.to_numpy(np.float32, na_value=np.nan)


def telling_columns(names: Sequence[str], features: np.ndarray, label: np.ndarray) -> dict[str, str]:
    """Columns that must not be features -> why: they and the labels determine each other, or they count the rows.

    Args:
        names: one per column, F.
        features: float (N, F).
        label: int64 (N,), `UNLABELLED` where there is none.
    """
    labelled = np.flatnonzero(label != UNLABELLED)
    telling = {}
    for position, name in enumerate(names):
        column = features[:, position]
        if len(column) >= LEAST_ROWS and (np.diff(column) == 1).all():
            telling[name] = "counts the rows"
        elif dependence := _dependence(column[labelled], label[labelled]):
            telling[name] = dependence
    return telling


def _dependence(values: np.ndarray, label: np.ndarray) -> str:
    """The way in which values and labels determine each other; "" if they do not, or too few rows prove nothing."""
    kinds, codes, sizes = np.unique(values, return_inverse=True, return_counts=True)
    if len(kinds) < 2 or len(values) < max(LEAST_ROWS, ROWS_PER_VALUE * len(kinds)):
        return ""
    classes, label = np.unique(label, return_inverse=True)
    pairs = len(np.unique(codes * len(classes) + label))
    if pairs == len(kinds) and len(classes) > 1:
        return "determines the label" if pairs > len(classes) else "is one-to-one with the label"
    if pairs == len(classes) and sizes.min() >= ROWS_PER_VALUE:
        return "is determined by the label"
    return ""


# ---- edges ---------------------------------------------------------------------------------------------------------


def _ends(tables: Tables, ids: list[str] | None) -> np.ndarray:
    """Edges int64 (2, E), sources and targets, as row numbers of the nodes."""
    edges = tables.edges
    if isinstance(edges, pd.DataFrame):
        return _resolve_edge_ids(tables, edges, ids)
    outside = (edges < 0) | (edges >= tables.num_nodes)
    if outside.any():
        raise DataError(
            f"{tables.where['edges']}: {int(outside.any(axis=0).sum())} of {edges.shape[1]} edges name nodes outside "
            f"of 0 to {tables.num_nodes - 1}, such as {int(edges[outside][0])}; {tables.where['nodes']} has "
            f"{tables.num_nodes} nodes. Drop these edges or add their nodes"
        )
    return edges


def _resolve_edge_ids(tables: Tables, table: pd.DataFrame, ids: list[str] | None) -> np.ndarray:
    """Edges int64 (2, E) of a table: row numbers of the nodes in place of their ids."""
    path = tables.where["edges"]
    ids = [*map(str, range(tables.num_nodes))] if ids is None else ids
    node_index = pd.Index(ids, dtype=object)
    names = [strings_of(table[column], f"{path}: column '{column}'") for column in EDGE_COLUMNS]
    source, target = (node_index.get_indexer(pd.Index(ends, dtype=object)) for ends in names)
    broken = (source < 0) | (target < 0)
    if broken.any():
        unknown = [end for ends, node in zip(names, (source, target), strict=True) for end in ends[node < 0]]
        distinct = [*dict.fromkeys("(empty)" if end is None else end for end in unknown)]
        raise DataError(
            f"{path}: {int(broken.sum())} of {len(table)} edges name {len(distinct)} ids that no node has "
            f"({listed(distinct)}); nodes have ids like {listed(ids, 3, quoted=True)}. "
            f"{_how_ids_differ(distinct, ids)}"
        )
    return np.stack([source, target])


def _how_ids_differ(unknown: Sequence[str], ids: Sequence[str]) -> str:
    """Sentence for a message: how ids in edges differ from those of nodes, with an example, or else what to do."""
    ways: dict[str, Callable[[str], str]] = {
        "by blanks": str.strip,
        "by '.0' at the end": lambda name: re.sub(r"(?<=[0-9])\.0*$", "", name),
        "by leading zeros": lambda name: re.sub(r"^0+(?=[0-9])", "", name),
        "by case": str.casefold,
        "by quotes": lambda name: name.strip("'\""),
        "in how they are written": _plain,
    }
    for difference, normalise in ways.items():
        original = {normalise(name): name for name in ids}
        alike = [name for name in unknown if normalise(name) in original]
        if 2 * len(alike) >= len(unknown):
            return (
                f"They differ {difference}: {listed(alike[:1], quoted=True)} in edges, "
                f"{listed([original[normalise(alike[0])]], quoted=True)} in nodes; write both alike"
            )
    if all(name.isascii() and name.isdigit() and int(name) <= len(ids) for name in unknown):
        return "Are those of the edges row numbers? Write the ids of the nodes in their place"
    return "Add these nodes or drop these edges"


def _plain(name: str) -> str:
    """Normalise an id or label: lower case, single blanks, no outer blanks or quotes, no leading zeros, no final .0."""
    name = re.sub(r"\s+", " ", name.strip(" \t\r\n'\"")).casefold()
    return re.sub(r"^0+(?=[0-9])|(?<=[0-9])\.0*$", "", name)
