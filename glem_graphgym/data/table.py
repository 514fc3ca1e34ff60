"""A user's own graph: a folder with a table of nodes and a table of edges, as CSV or Parquet."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from glem_graphgym.data.csv_file import check_rows, read_csv_bytes, read_table
from glem_graphgym.data.errors import DataError, listed
from glem_graphgym.data.label_leaks import telling_columns
from glem_graphgym.data.text_graph import SPLITS, UNLABELLED, TextGraph, Texts, check_shares, csr_from_edges, snapshot
from glem_graphgym.files import fingerprint

# To be raised whenever the same files and options would give another graph than before.
RECIPE_VERSION = 2
ENDINGS = (".csv", ".csv.gz", ".parquet")
NODE_COLUMNS = ("id", "text", "label", "split")
SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}
MASK = re.compile(rf"(is_)?({'|'.join(SPLIT_NAMES)})(_?mask)?", re.IGNORECASE)
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
# Labels that mean "no label" beside numbers; -1 does so beside words too.
NO_LABEL = {"-1", "-1.0", "na", "n/a", "#n/a", "<na>", "nan", "none", "null"}
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
# What others call the columns, for the message when ours are missing.
OTHER_NAMES = {
    "id": "node node_id nid name index paper_id",
    "text": "title abstract content body raw_text raw_texts description",
    "label": "labels class category target y",
    "source": "src from u head start source_id from_node node1",
    "target": "dst to v tail end target_id to_node node2",
}
# Keys of a graph's `origin`, and what is logged of those that hold anything.
UNUSUAL = {
    "no_label_words": "nodes without a label by these words in column 'label': {}",
    "classes_like_no_label": "these words are labels like any other, an empty field is none: {}",
    "odd_labels": "labels that are unlike the others are classes too: {}",
    "similar_labels": "labels that may be meant to be the same are different classes: {}",
    "fractional_labels": "labels are numbers with fractions; each of them is a class",
    "ids_with_blanks": "{} ids begin or end with a blank",
    "classes_without_training": "no training node has these labels, so they cannot be predicted: {}",
    "empty_texts": "{} of {nodes} texts are empty",
    "repeated_texts": "{} of {nodes} texts repeat another node's",
    "ignored_edge_columns": "columns of edges that are ignored: {}",
}

logger = logging.getLogger(__name__)


def load_table(
    folder: Path, cache: Path, *, shares: Sequence[float] = (0.1, 0.1, 0.8), seed: int = 0, raw: bool = False
) -> TextGraph:
    """The graph of the files ``nodes`` and ``edges`` (.csv, .csv.gz or .parquet) of a folder, named like it.

    Nodes have the columns ``id``, ``text``, ``label`` and, if wanted, ``split`` (train, valid, val, validation, dev or
    test in any case; empty: in no split) or, in its place, ``train_mask``, ``val_mask`` and ``test_mask`` (true or
    false, 1 or 0). All other columns are numbers and become ``features``, float32 (N, F), in the file's order. Edges
    have the columns ``source`` and ``target``; others are ignored. CSV is comma-separated UTF-8 with a header, and only
    an empty field is a missing value. Ids and labels are compared as strings: in Parquet 7 and 7.0 are "7".

    A node has no label where the field is empty or -1; beside numbers, NA, nan, None and null mean the same. Beside
    words they are classes, with a warning. The labels 1 and 1.0 are one class, "1". Classes are in numeric order if all
    labels are integers, else in lexicographic order. Self-loops and repeated edges, in either direction, are dropped
    and counted in ``origin``, as are empty texts, which stay, and classes without a training node.

    The graph is frozen under ``cache``, in a folder for each content of the files and options. What is unusual about
    it, and the feature columns, are logged whenever it is loaded.

    Args:
        folder: where the two files are.
        cache: where the snapshot goes.
        shares: shares (0-1) of the labelled nodes for train, valid and test, if the table has no split.
        seed: of that split. It goes by a hash of the ids, so it does not depend on the order of the rows.
        raw: whether the features are going to be used; columns that tell the label are refused then.

    Raises:
        DataError: a file or column is missing or wrong. Names the file, and the line or row.
    """
    shares = list(check_shares(shares))
    nodes_file, edges_file = _find(folder, "nodes"), _find(folder, "edges")
    name = folder.absolute().name
    options = [name, nodes_file.name, edges_file.name, shares, seed]
    key = fingerprint(RECIPE_VERSION, options, nodes_file.read_bytes(), edges_file.read_bytes())
    graph = snapshot(cache / f"table-{key}", lambda: _graph(name, nodes_file, edges_file, shares, seed))
    _report(graph, nodes_file, raw)
    return graph


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


def _graph(name: str, nodes_file: Path, edges_file: Path, shares: list[float], seed: int) -> TextGraph:
    nodes = _read_nodes(nodes_file)
    ids = _ids(nodes_file, nodes)
    label, class_names, words = _labels(nodes_file, nodes)
    masks = _mask_columns(nodes_file, nodes)
    if "split" in nodes or masks:
        split = _given_split(nodes_file, nodes, masks, ids, label)
    else:
        split = _random_split(nodes_file, ids, label, shares, seed)
    texts = [text or "" for text in _strings(nodes_file, nodes, "text")]
    feature_columns = [name for name in map(str, nodes.columns) if name not in (*NODE_COLUMNS, *masks)]
    features = _features(nodes_file, nodes[feature_columns], ids)
    rowptr, col, edge_counts = _edges(edges_file, ids)
    trained = set(label[split["train"]])
    origin = {
        "files": [nodes_file.name, edges_file.name],
        "nodes": len(ids),
        "unlabelled": int((label == UNLABELLED).sum()),
        **words,
        "ids_with_blanks": sum(name != name.strip() for name in ids),
        "empty_texts": sum(not text.strip() for text in texts),
        "repeated_texts": len(texts) - len(set(texts)),
        "classes_without_training": [name for index, name in enumerate(class_names) if index not in trained],
        "split": "column" if "split" in nodes else [*masks] or {"shares": shares, "seed": seed},
        "feature_columns": feature_columns,
        "telling_columns": {} if features is None else telling_columns(feature_columns, features, label),
        **edge_counts,
    }
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


def _report(graph: TextGraph, nodes_file: Path, raw: bool) -> None:
    """Log what is unusual about the graph, and what its features are.

    Raises:
        DataError: ``raw`` features are asked for, and some tell the label.
    """
    name, origin = graph.name, graph.origin
    if columns := origin["feature_columns"]:
        logger.info("%s: %d feature columns (for glem.node_features raw): %s", name, len(columns), listed(columns))
    if telling := origin["telling_columns"]:
        found = f"{nodes_file}: {listed([f'column {column!r} {what}' for column, what in telling.items()])}"
        if raw:
            raise DataError(f"{found}; as raw features (glem.node_features) they give the label away: drop them")
        logger.warning("%s; as raw features they would give the label away", found)
    for key, message in UNUSUAL.items():
        value = origin.get(key)  # older snapshots do not have all of them
        if value and (key != "repeated_texts" or 2 * value > origin["nodes"]):
            shown = listed(value, 20, quoted=key == "odd_labels") if isinstance(value, list) else value
            logger.warning("%s: %s", name, message.format(shown, nodes=origin["nodes"]))
    if not origin["edges"]:
        logger.warning("%s: the graph has no edges", name)


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
        if name not in NODE_COLUMNS and meant in NODE_COLUMNS:
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
    strings = {*required, "split", *filter(MASK.fullmatch, header)} & {*header}
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
        raise DataError(f"{path}: {len(rows)} nodes have no id (rows {listed(rows)}); give each node one")
    if repeated := [found for found, count in Counter(ids).items() if count > 1]:
        raise DataError(f"{path}: {len(repeated)} ids stand in several rows ({listed(repeated)}); keep one row of each")
    return list(ids)


# ---- labels and splits --------------------------------------------------------------------------------------------


def _labels(path: Path, nodes: pd.DataFrame) -> tuple[np.ndarray, list[str], dict[str, Any]]:
    """Class index of each node, int64 (N,), the classes in their order, and what is unusual about the labels."""
    names = _strings(path, nodes, "label")
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
        found = {name: counts[name] for name in sorted(no_label)}
        raise DataError(
            f"{path}: column 'label' holds {len(classes)} classes {classes}; at least 2 are needed to classify"
            + (f" (no labels are: {found})" if found else "")
        )
    fractional = numbers and any("." in name for name in classes)
    if numbers and not fractional:
        classes.sort(key=int)
    index = {name: position for position, name in enumerate(classes)}
    unusual = {
        "no_label_words": {name: counts[name] for name in sorted(no_label)},
        "classes_like_no_label": {name: counts[name] for name in sorted(words - no_label)},
        "odd_labels": _odd(classes),
        "similar_labels": _similar(classes),
        "fractional_labels": fractional,
    }
    label = [index[class_of[name]] if name in class_of else UNLABELLED for name in names]
    return np.array(label, dtype=np.int64), classes, unusual


def _odd(classes: Sequence[str]) -> list[str]:
    """Negative numbers, and words where most other labels are numbers."""
    numbers = [name for name in classes if NUMBER.fullmatch(name.strip())]
    words = [name for name in classes if name not in numbers] if 2 * len(numbers) > len(classes) else []
    return [*(name for name in numbers if name.strip().startswith("-")), *words]


def _similar(classes: Sequence[str]) -> list[str]:
    """Classes that differ by blanks, case or leading zeros alone, each group as one text."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(_plain(name), []).append(name)
    return [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]


def _mask_columns(path: Path, nodes: pd.DataFrame) -> dict[str, str]:
    """Column and split of the masks, where the table has a split in that form.

    Columns that are called ``train``, ``val`` and ``test`` are masks only where all three are there.
    """
    matches = {name: match for name in map(str, nodes.columns) if (match := MASK.fullmatch(name))}
    masks = {column: SPLIT_NAMES[match[2].casefold()] for column, match in matches.items()}
    named = {column: part for column, part in masks.items() if matches[column][1] or matches[column][3]}
    if set(masks.values()) != set(SPLITS):
        masks = named
    if not masks:
        return {}
    if "split" in nodes:
        raise DataError(f"{path} has the column 'split' and the masks {[*masks]}; keep one of the two")
    if sorted(masks.values()) != sorted(SPLITS):
        raise DataError(
            f"{path}: the masks {[*masks]} are for {[*masks.values()]}, expected one each for {[*SPLITS]} "
            "(train_mask, val_mask, test_mask)"
        )
    return masks


def _given_split(
    path: Path, nodes: pd.DataFrame, masks: Mapping[str, str], ids: list[str], label: np.ndarray
) -> dict[str, np.ndarray]:
    parts = _parts_of_masks(path, nodes, masks, ids) if masks else _parts_of_column(path, nodes)
    named = f"the masks {[*masks]}" if masks else "column 'split'"
    unlabelled = [ids[node] for node in np.flatnonzero((label == UNLABELLED) & (parts != ""))]
    if unlabelled:
        raise DataError(
            f"{path}: {len(unlabelled)} nodes are in a split and have no label ({listed(unlabelled)}); give "
            "them one, or leave their split empty"
        )
    split = {part: np.flatnonzero(parts == part) for part in SPLITS}
    if empty := [part for part in SPLITS if len(split[part]) == 0]:
        them = "them" if masks else "the column"
        raise DataError(f"{path}: {named} puts no node in {empty}; put some there, or drop {them} for a random split")
    return split


def _parts_of_column(path: Path, nodes: pd.DataFrame) -> np.ndarray:
    """The split of each node, "" for none."""
    values = _strings(path, nodes, "split")
    words = [value.strip().casefold() if value else "" for value in values]
    unknown = Counter(value for value, word in zip(values, words, strict=True) if word and word not in SPLIT_NAMES)
    if unknown:
        found = listed([f"{value!r} ({count} times)" for value, count in unknown.items()])
        raise DataError(f"{path}: column 'split' holds {found}, expected {[*SPLIT_NAMES]} or nothing")
    return np.array([SPLIT_NAMES.get(word, "") for word in words])


def _parts_of_masks(path: Path, nodes: pd.DataFrame, masks: Mapping[str, str], ids: list[str]) -> np.ndarray:
    parts = np.full(len(ids), "", dtype="<U8")
    for column, part in masks.items():
        values = _strings(path, nodes, column)
        truth = [False if value is None else TRUTH.get(value.strip().casefold()) for value in values]
        if None in truth:
            row = truth.index(None)
            raise DataError(
                f"{path}: column '{column}' holds {values[row]!r} at node {ids[row]!r}, expected true or false"
            )
        inside = np.array(truth, dtype=bool)
        if (both := inside & (parts != "")).any():
            several = [ids[node] for node in np.flatnonzero(both)]
            raise DataError(
                f"{path}: {len(several)} nodes are true in several of the masks {[*masks]} ({listed(several)}); "
                "each may be in one split"
            )
        parts[inside] = part
    return parts


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


# ---- features -----------------------------------------------------------------------------------------------------


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
        if str(value).strip().casefold() in SPLIT_NAMES:
            raise DataError(f"{path}: column '{column}' holds {value!r}; if it is the split, call it 'split'")
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


# ---- edges --------------------------------------------------------------------------------------------------------


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
            f"({listed(distinct)}); nodes have ids like {listed(ids, 3, quoted=True)}. "
            f"{_how_ids_differ(distinct, ids)}"
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


def _how_ids_differ(unknown: Sequence[str], ids: Sequence[str]) -> str:
    """What makes ids of edges unlike those of nodes, with an example; else what to do."""
    ways: dict[str, Callable[[str], str]] = {
        "by blanks": str.strip,
        "by '.0' at the end": lambda name: re.sub(r"(?<=[0-9])\.0*$", "", name),
        "by leading zeros": lambda name: re.sub(r"^0+(?=[0-9])", "", name),
        "by case": str.casefold,
        "by quotes": lambda name: name.strip("'\""),
        "in how they are written": _plain,
    }
    for how, same in ways.items():
        node_of = {same(name): name for name in ids}
        alike = [name for name in unknown if same(name) in node_of]
        if 2 * len(alike) >= len(unknown):
            return f"They differ {how}: {alike[0]!r} in edges, {node_of[same(alike[0])]!r} in nodes; write both alike"
    if all(name.isascii() and name.isdigit() and int(name) <= len(ids) for name in unknown):
        return "Are those of the edges row numbers? Write the ids of the nodes in their place"
    return "Add these nodes or drop these edges"


def _plain(name: str) -> str:
    """An id or label without its case, blanks, quotes, zeros before a number and .0 after it."""
    name = re.sub(r"\s+", " ", name.strip(" \t\r\n'\"")).casefold()
    return re.sub(r"^0+(?=[0-9])|(?<=[0-9])\.0*$", "", name)
