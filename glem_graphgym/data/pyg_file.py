"""Graphs in a single file of PyTorch, PyTorch Geometric or DGL, with their texts in that file or beside it."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from glem_graphgym.data.columns import Columns
from glem_graphgym.data.csv_file import check_distinct, check_rows, read_csv_bytes, read_table
from glem_graphgym.data.dgl_file import is_dgl_file, read_dgl_file
from glem_graphgym.data.errors import DataError, listed
from glem_graphgym.data.from_tables import Reader, TableOptions
from glem_graphgym.data.table import check_shape, read_json_lines
from glem_graphgym.data.tables import EXACT, Tables
from glem_graphgym.memory import is_out_of_memory

# Names that published files use for the same attribute; the first one present is read.
EDGES = ("edge_index", "adj_t")
LABELS = ("y", "label", "labels")
TEXTS = ("raw_texts", "raw_text", "texts", "text")
TITLES, BODIES = ("title", "titles"), ("abstract", "abstracts", "abs", "content", "description")
CLASS_NAMES = ("label_names", "label_name", "class_names", "classes", "category_names")
FEATURES = ("x", "feat")
SPLIT_ALIASES = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
SUFFIXES = ("masks", "mask", "idx", "id", "ids", "index", "indices")  # as in train_masks, train_mask, train_idx …
SPLITS = ("split_idx", "split", "splits")  # dicts of train, val (or valid) and test
NODE_NUMBERS = ("node_id", "node_idx", "id", "idx")  # columns with the node's number in a table of texts
TEXT_FILES = ("raw_texts.pt", "{stem}.csv", "{stem}.csv.gz", "{stem}.jsonl", "paper_info.csv")
CLASS_NAMES_FILE = "categories.csv"
NO_NAMES = {"data", "graph", "processed_data", "processed", "raw"}  # say nothing of the graph: its folder names it


class _Stored:
    """Placeholder for a class of another library: keeps the attributes an object was saved with, and runs no code."""


STORED = (
    "torch_geometric.data.data.Data",
    "torch_geometric.data.data.DataEdgeAttr",
    "torch_geometric.data.data.DataTensorAttr",
    "torch_geometric.data.storage.GlobalStorage",
    "torch_sparse.tensor.SparseTensor",
    "torch_sparse.storage.SparseStorage",
)
ARRAYS = [np.ndarray, np.dtype, *(kind for kind in vars(np.dtypes).values() if isinstance(kind, type))]
# Functions that unpickle arrays and NumPy scalars, under their names in NumPy 1 and 2.
ARRAY_MAKERS = [
    (value.__reduce__()[0], f"numpy.{core}.multiarray.{name}")
    for value, name in ((np.zeros(1), "_reconstruct"), (np.float64(), "scalar"))
    for core in ("core", "_core")
]


def find_pyg_files(path: Path) -> list[Path]:
    """The graph's file, and files beside it with texts and class names, which are used if it has none itself."""
    if not path.is_file():
        raise DataError(f"{path} is no file; expected one that torch.save or dgl.save_graphs wrote")
    text_files = [path.with_name(name.format(stem=path.stem)) for name in TEXT_FILES]
    files = [next((file for file in text_files if file.is_file()), None), path.with_name(CLASS_NAMES_FILE)]
    return [path, *(file for file in files if file and file.is_file())]


def read_pyg_files(files: Sequence[Path], options: TableOptions) -> Tables:
    """Read a graph that ``torch.save`` or ``dgl.save_graphs`` wrote; docs/your_own_data.md lists the layouts.

    The first file holds a ``Data`` of PyTorch Geometric 1 or 2, a dict of the same attributes, a tuple that begins with
    either (as `InMemoryDataset` saves it), or a homogeneous graph of DGL. Attributes are tensors, arrays or lists.
    Edges stay as stored, in one direction or both. Several splits become columns with the suffix ``_<k>``. If the graph
    has no texts, they are read from the second file (.pt, .csv, .csv.gz or .jsonl); if it has no class names, from
    `CLASS_NAMES_FILE`, if that is among the files.

    Raises:
        DataError: a file is damaged or holds a class that is not in the allow-list, or an attribute is missing or
            wrong.
    """
    path, *extra_files = files
    attributes = read_dgl_file(path) if is_dgl_file(path) else _attributes(path, _load(path))
    columns = Columns(options.columns, options.text)
    if unsupported := sorted({*columns.column_of} - {"text", "label"}) or ["features"] * bool(columns.features):
        raise DataError(f"dataset.tag_columns names {listed(unsupported)}, expected text and label alone for {path}")
    edges = _first_present(path, attributes, EDGES)
    label = _first_present(path, attributes, [columns.column_of["label"]] if "label" in columns.column_of else LABELS)
    labels = _labels(f"{path}: {label}", attributes[label])
    count = attributes.get("num_nodes")
    if count is not None and (counts := _array(f"{path}: num_nodes", count).tolist()) != [len(labels)]:
        raise DataError(f"{path}: num_nodes is {listed(counts)}, but {label} has {len(labels)}; expected as many")
    class_names, classes_from = _class_names(files, attributes, labels)
    split, split_from = _splits(path, attributes, len(labels))
    features = next((name for name in FEATURES if name in attributes and not _is_texts(attributes[name])), None)
    texts_file, (text, text_from) = path, _texts(path, attributes, columns)
    if not text_from:
        texts_file = next((file for file in extra_files if file.name != CLASS_NAMES_FILE), path)
        text, text_from = _texts(texts_file, {} if texts_file == path else _table_of_texts(texts_file), columns)
    if not text_from:
        expected_texts = f"{' or '.join(TEXTS)}, or a title and an abstract,"
        if columns.fields or "text" in columns.column_of:
            expected_texts = " and ".join(columns.fields or [columns.column_of["text"]])
        names = ", ".join(name.format(stem=path.stem) for name in TEXT_FILES)
        raise DataError(
            f"{texts_file} has no texts; expected {expected_texts} in {path.name} or in one of {names} beside it"
        )
    if len(text) != len(labels):
        raise DataError(
            f"{texts_file}: {' and '.join(text_from)} hold {len(text)} texts for {len(labels)} nodes ({label} of "
            f"{path.name}); expected one per node, in the same order: are they of another version of the graph?"
        )
    folders = [folder.name for folder in path.absolute().parents]
    prefix = "" if texts_file == path else f"{texts_file.name}: "
    taken = {
        "edges": edges,
        "label": label,
        "class_names": classes_from,
        "text": [prefix + name for name in text_from],
        "split": split_from,
        "features": features,
    }
    used = {edges, label, classes_from, features, *split_from, *(text_from if texts_file == path else ()), "num_nodes"}
    return Tables(
        name=next((name for name in (path.stem, *folders) if name not in NO_NAMES), path.stem),
        nodes=pd.DataFrame({"text": text, "label": labels, **split}),
        edges=_edges(f"{path}: {edges}", attributes[edges], len(labels)),
        features=_array(f"{path}: {features}", attributes[features]) if features else None,
        class_names=class_names,
        where={
            "nodes": str(path),
            "text": str(texts_file),
            **{key: f"{path}: {taken[key]}" for key in ("edges", "label", "features")},
        },
        origin={
            "files": [file.name for file in files if file in (path, texts_file) or file.name == classes_from],
            "taken": {key: names for key, names in taken.items() if names},
            "left": sorted(set(attributes) - used),
        },
    )


PYG = Reader(find_pyg_files, read_pyg_files)


# ---- files --------------------------------------------------------------------------------------------------------


def _load(path: Path) -> Any:
    """Load a file of ``torch.save`` that holds only tensors, arrays, containers, strings, numbers and `STORED`."""
    allowed: list[Any] = [*((_Stored, name) for name in STORED), *ARRAYS, *ARRAY_MAKERS]
    previous_globals = torch.serialization.get_safe_globals()  # PyTorch Geometric's own classes, once it is imported
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, or one of PyTorch's own errors for damaged archives
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        if isinstance(error, pickle.UnpicklingError) and (match := re.search(r"GLOBAL (\S+)", reason)):
            raise DataError(
                f"{path} holds {match[1]}, which is not loaded, as it could run code; expected tensors, arrays, lists "
                "and PyTorch Geometric's Data. If you trust the file, save what it holds anew: "
                "torch.save({'edge_index': …, 'y': …, 'raw_texts': […]}, file)"
            ) from error
        raise DataError(
            f"{path} is damaged, or not as torch.save writes it by default ({reason:.200}); download it again, or save "
            "it anew without pickle_protocol"
        ) from error
    finally:
        torch.serialization.add_safe_globals(previous_globals)


def _attributes(path: Path, loaded: Any) -> dict[str, Any]:
    """Attributes of the one graph in a loaded object, except private ones and those that are None."""
    slices = None
    if isinstance(loaded, tuple | list) and 1 <= len(loaded) <= 3:  # InMemoryDataset: data, slices and its class
        graph, slices = (*loaded, None)[:2]
        loaded = graph if slices is None or isinstance(slices, Mapping) else loaded
    ends = [value for value in (slices.values() if isinstance(slices, Mapping) else ()) if hasattr(value, "__len__")]
    if (graphs := max(map(len, ends), default=0) - 1) > 1:
        raise DataError(f"{path} holds {graphs} graphs, expected one; save one by itself: torch.save(dataset[0], file)")
    if isinstance(loaded, _Stored):
        loaded = getattr(vars(loaded).get("_store"), "_mapping", vars(loaded))  # PyTorch Geometric 2, else 1
    if not isinstance(loaded, Mapping):
        raise DataError(
            f"{path} holds {_type_and_size(loaded)}, expected PyTorch Geometric's Data or a dict of its attributes"
        )
    return {str(name): value for name, value in loaded.items() if value is not None and not str(name).startswith("_")}


def _first_present(path: Path, attributes: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of ``names`` that is an attribute; raises DataError if none is."""
    for name in names:
        if name in attributes:
            return name
    raise DataError(
        f"{path} has no {' or '.join(names)}; found: {listed(sorted(attributes), 20)}. Add it and save anew"
    )


def _table_of_texts(path: Path) -> dict[str, Any]:
    """Columns of a file with texts; rows are put into node order if one of `NODE_NUMBERS` holds 0 to N-1."""
    name = path.name.lower()
    if name.endswith(".pt"):
        loaded = _load(path)
        return loaded if isinstance(loaded, dict) else {TEXTS[0]: loaded}
    if name.endswith((".csv", ".csv.gz")):
        content = read_csv_bytes(path)
        header = check_rows(path, content)
        check_distinct(path, header, (*TEXTS, *TITLES, *BODIES, *NODE_NUMBERS))
        table = read_table(content, header)
    elif name.endswith(".jsonl"):
        table = read_json_lines(path)
    else:
        raise DataError(f"{path}: expected a .pt, .csv, .csv.gz or .jsonl file with the texts")
    for column in NODE_NUMBERS:
        if column in table:
            numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64)
            if np.array_equal(np.sort(numbers), np.arange(len(table))):
                table = table.iloc[np.argsort(numbers)]
                break
            if np.isin(numbers, np.arange(len(table) + 1)).all() and (np.diff(numbers) <= 0).any():
                raise DataError(
                    f"{path}: column '{column}' is in no order and lacks some number from 0 to {len(table) - 1}; "
                    "expected each node's number, counted from 0. If the rows are in node order, drop it"
                )
    return {str(column): table[column].tolist() for column in table}


# ---- attributes ---------------------------------------------------------------------------------------------------


def _type_and_size(value: Any) -> str:
    """A value's type and size, for messages."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{type(value).__name__.strip('_')}" + (f" of {len(value)}" if isinstance(value, Sequence | Mapping) else "")


def _array(where: str, value: Any) -> np.ndarray:
    """Convert a tensor, an array, or a list of numbers or booleans to an array; a single number becomes a list."""
    try:
        if isinstance(value, torch.Tensor):
            dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
            array = np.atleast_1d((dense.float() if dense.is_floating_point() else dense).numpy())
        else:
            array = np.atleast_1d(value)
    except (ValueError, TypeError):  # lists of different lengths; types that NumPy lacks
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} is {_type_and_size(value)}, expected a tensor, an array or a list of numbers")
    return array


def _is_texts(value: Any) -> bool:
    """Whether a value is a list or an array of strings, of which some may be missing (None, NaN)."""
    return (
        isinstance(value, list | tuple | np.ndarray)
        and all(isinstance(text, str) or text is None or (isinstance(text, float) and text != text) for text in value)
        and any(isinstance(text, str) for text in value)
    )


def _edges(where: str, value: Any, nodes: int) -> np.ndarray:
    """Edges int64 (2, E), sources and targets, from an edge index or a sparse matrix."""
    shape: Sequence[int] = ()
    if isinstance(value, _Stored) and isinstance(vars(value).get("storage"), _Stored):  # torch_sparse's SparseTensor
        matrix = vars(value.storage)  # type: ignore[attr-defined]
        shape = matrix.get("_sparse_sizes") or ()
        rows = matrix["_row"]
        if rows is None:
            rows = torch.repeat_interleave(matrix["_rowptr"].diff())
        ends = np.stack([_array(where, matrix["_col"]), _array(where, rows)])
    elif isinstance(value, torch.Tensor) and value.layout != torch.strided:
        shape = value.shape
        ends = value.to_sparse_coo().coalesce().indices().flip(0).numpy()  # rows are targets, as in adj_t
    else:
        ends = _array(where, value)
    if ends.ndim != 2 or len(ends) != 2 or ends.dtype.kind not in "iu":
        raise DataError(f"{where} is {_type_and_size(value)}, expected whole numbers (2, number of edges)")
    check_shape(where, shape, nodes)
    return ends.astype(np.int64)


def _labels(where: str, value: Any) -> pd.Series:
    """Class of each node: its number (Int64), or its name if labels are strings; missing if the node has none."""
    if _is_texts(value):
        return pd.Series([name if isinstance(name, str) else None for name in value], dtype=object)
    labels = _array(where, value)
    if labels.ndim == 2 and labels.shape[1] > 1 and np.isin(labels, (0, 1)).all() and labels.sum(axis=1).max() <= 1:
        labels = np.where(labels.any(axis=1), labels.argmax(axis=1), -1)
    if labels.size == 0 or labels.size != len(labels):
        raise DataError(
            f"{where} is {_type_and_size(value)}, expected one class per node: (N,), (N, 1) or one-hot (N, C)"
        )
    labels = labels.reshape(-1)
    missing = np.isnan(labels) | (labels < 0)
    labels = np.where(missing, 0, labels)
    if len(bad := labels[(labels % 1 != 0) | (labels > EXACT)]):
        raise DataError(f"{where} holds {listed(bad)}; expected whole numbers from 0, -1 for no class")
    return pd.Series(pd.arrays.IntegerArray(labels.astype(np.int64), missing))


def _class_names(
    files: Sequence[Path], attributes: Mapping[str, Any], labels: pd.Series
) -> tuple[list[str] | None, str | None]:
    """Names of the classes, and the attribute or file that they are from; (None, None) if there are none."""
    if labels.dtype == object:
        return None, None
    path, name = files[0], next((name for name in CLASS_NAMES if _is_texts(attributes.get(name))), None)
    if name:
        names = [str(value) for value in attributes[name]]
    elif class_files := [file for file in files[1:] if file.name == CLASS_NAMES_FILE]:
        path, name = class_files[0], CLASS_NAMES_FILE
        table = _table_of_texts(path)
        names = table["name"] if "name" in table else next(iter(table.values()))
    else:
        return None, None
    classes = int(labels.fillna(-1).max()) + 1
    if len(names) == len(labels) > classes:  # one name per node instead of one per class
        names_by_class = pd.Series(names).groupby(labels).unique()
        if several := [name for name in names_by_class if len(name) > 1]:
            raise DataError(
                f"{path}: {name} gives nodes of one class the names {listed(several[0])}; expected one name"
            )
        names = [names_by_class[number][0] if number in names_by_class else str(number) for number in range(classes)]
    return names, name


def _texts(path: Path, attributes: Mapping[str, Any], columns: Columns) -> tuple[list[str], list[str]]:
    """Texts of the nodes, "" if missing, and the attributes that they are from; two empty lists if there are none.

    Without a template, a title and an abstract are joined into one text, "title. abstract".
    """
    if names := columns.fields or [columns.column_of[name] for name in ("text",) if name in columns.column_of]:
        names = names if all(_is_texts(attributes.get(name)) for name in names) else []
    else:
        full_text, title, body = (
            next((name for name in aliases if _is_texts(attributes.get(name))), None)
            for aliases in (TEXTS, TITLES, BODIES)
        )
        names = [name for name in ([full_text] if full_text else [title, body]) if name]
        for name in (*TEXTS, *TITLES, *BODIES):
            value = attributes.get(name)
            if not isinstance(value, list | tuple | np.ndarray) or _is_texts(value):
                continue
            if any(isinstance(text, str) for text in value) or (name in TEXTS and not names):
                kinds = sorted({type(text).__name__ for text in value})
                raise DataError(f"{path}: {name} holds {listed(kinds)}; expected a list of str")
    if len({*(lengths := [len(attributes[name]) for name in names])}) > 1:
        raise DataError(f"{path}: {' and '.join(names)} have {lengths} texts; expected as many")
    template = columns.template or ". ".join(f"{{{name}}}" for name in names)
    table = pd.DataFrame({name: pd.Series([*attributes[name]], dtype=object) for name in names})
    return Columns((), template).texts(table, path) if names else [], names


def _splits(path: Path, attributes: Mapping[str, Any], nodes: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns train_mask, val_mask, test_mask (with ``_<k>`` if several splits), and the attributes they are from."""

    def parts_in(values: Mapping[str, Any], ending: str = "", attribute: str = "") -> dict[str, tuple[str, Any]]:
        """Name of each part of a split -> the attribute that it is from, and its value."""
        return {
            split_name: (attribute or alias + ending, values[alias + ending])
            for split_name, aliases in SPLIT_ALIASES.items()
            for alias in aliases
            if alias + ending in values
        }

    families = [parts_in(attributes, f"_{suffix}") for suffix in SUFFIXES]
    dicts = {name: attributes[name] for name in SPLITS if isinstance(attributes.get(name), Mapping)}
    families += [parts_in(values, attribute=name) for name, values in dicts.items()]
    if not any(families) and (unread := [name for name in SPLITS if name in attributes]):
        raise DataError(
            f"{path}: {unread[0]} is {_type_and_size(attributes[unread[0]])}, expected a dict of train, val (or valid) "
            "and test; masks are called train_mask and the like"
        )
    complete = [family for family in families if family.keys() >= {"train", "test"}]
    family = next(iter(complete or filter(None, families)), {})
    masks = {split_name: _membership(f"{path}: {name}", value, nodes) for split_name, (name, value) in family.items()}
    counts = {family[split_name][0]: mask.shape[1] for split_name, mask in masks.items()}
    splits = max(counts.values(), default=0)
    if set(counts.values()) - {1, splits}:
        raise DataError(f"{path}: numbers of splits differ, {counts}; expected as many of each, or one for all")
    columns = {
        f"{split_name}_mask{f'_{split}' * (splits > 1)}": mask[:, split % mask.shape[1]]
        for split_name, mask in masks.items()
        for split in range(splits)
    }
    return columns, list(dict.fromkeys(name for name, _ in family.values()))


def _membership(where: str, value: Any, nodes: int) -> np.ndarray:
    """Membership of nodes in one part of each of K splits, bool (N, K), from masks or numbers of nodes."""
    if isinstance(value, list | tuple) and len(value) and np.ndim(value[0]):
        return np.hstack([_membership(where, members, nodes) for members in value])
    values = _array(where, value)
    if values.size == 0 or (not where.endswith(("_mask", "_masks")) and values.dtype.kind in "iu"):
        numbers = values.reshape(-1).astype(np.int64)
        if (
            numbers.size != max(values.shape)
            or len(set(numbers)) < len(numbers)
            or ((numbers < 0) | (numbers >= nodes)).any()
        ):
            raise DataError(
                f"{where} is {_type_and_size(value)}, expected different numbers of nodes, 0 to {nodes - 1}"
            )
        return np.isin(np.arange(nodes), numbers)[:, None]
    values = values[:, None] if values.ndim == 1 else values
    values = values.T if len(values) != nodes else values
    if values.ndim != 2 or len(values) != nodes or not np.isin(values, (0, 1)).all():
        raise DataError(
            f"{where} is {_type_and_size(value)}, expected true or false (1 or 0) per node, ({nodes},) or "
            f"({nodes}, splits); numbers of nodes are called train_idx and the like"
        )
    return values.astype(bool)
