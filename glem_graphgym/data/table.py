"""A user's own graph in tables: a folder with nodes and edges, or one file of nodes with their neighbours."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse
from pandas.api.types import is_numeric_dtype

from glem_graphgym.data.columns import EDGE_COLUMNS, NEIGHBOURS, NODE_COLUMNS, VIEW, Columns, alike, edges_of_neighbours
from glem_graphgym.data.csv_file import DELIMITERS, check_distinct, check_rows, read_csv_bytes, read_table
from glem_graphgym.data.errors import DataError, listed, reading_data
from glem_graphgym.data.from_tables import NUMBER, Reader, TableOptions
from glem_graphgym.data.splits import split_columns
from glem_graphgym.data.tables import EXACT, Tables

ENDINGS = (".csv", ".csv.gz", ".parquet", ".tsv")
NODE_ENDINGS, EDGE_ENDINGS = (*ENDINGS, ".jsonl"), (*ENDINGS, ".txt", ".npz")
FEATURES = "features.npy"
SEPARATORS = {**DELIMITERS, ";": "semicolon", "|": "bar"}


def find_tables(source: Path) -> list[Path]:
    """The files of nodes, edges and, if any, features in a folder; or a single file of nodes. Raises DataError."""
    if source.is_file():
        if not source.name.lower().endswith(NODE_ENDINGS):
            raise DataError(
                f"dataset.tag_source: {source} is no table of nodes ({', '.join(NODE_ENDINGS)}); expected one, or a "
                "folder with nodes.csv and edges.csv"
            )
        return [source]
    files = [_find(source, "nodes", NODE_ENDINGS), _find(source, "edges", EDGE_ENDINGS)]
    return files + [source / FEATURES] * (source / FEATURES).is_file()


def read_tables(files: list[Path], options: TableOptions) -> Tables:
    """Read the files that `find_tables` found; for the columns see `Tables`.

    Columns of the nodes that have no other use are features, in the file's order; a file ``features.npy`` beside the
    tables may hold them instead. CSV is UTF-8 with a header, and only an empty field is a missing value. A single file
    lists each node's neighbours in a column. If ``options`` rename columns or join several into the text, further
    columns that are not numeric are left out and listed in ``origin["left"]``.

    Raises:
        DataError: a file or column is missing or wrong. Names the file, and the line or row.
    """
    columns = Columns(options.columns, options.text)
    path, *extra_files = files
    if extra_files and (configured := columns.column_of.get("neighbours")):
        raise DataError(f"dataset.tag_columns names {configured!r} for the neighbours, but edges have a file; drop one")
    views = [name for name in columns.column_of if name.startswith(VIEW)]
    ours = (*NODE_COLUMNS, "split", *views, *([] if extra_files else ["neighbours"]))
    table, replaced = _read(path, ours, columns)
    where = {"nodes": str(path)}
    features: np.ndarray | None = None
    edges: pd.DataFrame | np.ndarray
    if extra_files:
        edges_from, where["edges"] = extra_files[0].name, str(extra_files[0])
        edges = _read_edges(extra_files[0], columns, len(table))
    else:
        listing = _neighbours(path, [*table], columns)
        edges_from = columns.column_of.get("neighbours", listing)
        where["edges"] = f"{path}: column '{edges_from}'"
        ids = table["id"] if "id" in table else range(len(table))
        edges = edges_of_neighbours(ids, table.pop(listing), where["edges"])
    nodes, unused = _select_columns(path, table, columns)
    where |= {name: f"{path}: column {column!r}" for name, column in columns.column_of.items() if name in nodes}
    for file in extra_files[1:]:  # features.npy
        where["features"] = str(file)
        with reading_data(f"{file} cannot be read", "save it with numpy.save"):
            features = np.load(file)
    return Tables(
        path.absolute().parent.name if extra_files else path.name.partition(".")[0],
        nodes,
        edges,
        features=features,
        where=where,
        origin={
            "files": [file.name for file in files],
            "taken": {**columns.column_of, **({"text": options.text} if options.text else {}), "edges": edges_from},
            "left": replaced + unused,
        },
    )


TABLE = Reader(find_tables, read_tables)


def _find(folder: Path, stem: str, endings: Sequence[str]) -> Path:
    names = [f"{stem}{ending}" for ending in endings]
    if not folder.is_dir():
        raise DataError(
            f"dataset.tag_source: {folder} is neither folder nor file (seen from {Path.cwd()}); expected a table "
            f"such as papers.csv, or a folder with {names[0]} and the like"
        )
    similar = sorted(path for path in folder.iterdir() if path.name.lower().startswith(f"{stem}."))
    matches = [path for path in similar if path.name.lower() in names and path.is_file()]
    if len(matches) != 1:
        similar_names = [path.name + "/" * path.is_dir() for path in similar]
        hint = ""
        if similar_names:
            hint = f"; there are {similar_names}"
            if any(name.endswith("/") for name in similar_names):
                hint += "; a folder of parts, as Spark writes it, must be made one file"
        elif stem == "edges":
            hint = "; nodes that list their neighbours need none: set dataset.tag_source to their file"
        elif tables := sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(NODE_ENDINGS)):
            hint = (
                f"; there are {tables}: rename them to nodes and edges, or convert them: "
                "run/convert.py <nodes> <edges> --out tables"
            )
        raise DataError(f"{folder} holds {len(matches)} of the files {names}, expected exactly one of them{hint}")
    return matches[0]


# ---- nodes and edges ----------------------------------------------------------------------------------------------


def _neighbours(path: Path, header: Sequence[str], columns: Columns) -> str:
    """Our name, else the file's, of the nodes' column that lists their neighbours."""
    if "neighbours" in columns.column_of:
        return "neighbours"
    candidates = [name for name in header if NEIGHBOURS.fullmatch(name.strip())]
    if len(candidates) != 1:
        raise DataError(
            f"{path} has {len(candidates)} columns of neighbours; found [{listed(header, 12, quoted=True)}]. Set "
            "dataset.tag_columns to [neighbours=<its name>], or put nodes and edges into a folder"
        )
    return candidates[0]


def _select_columns(path: Path, table: pd.DataFrame, columns: Columns) -> tuple[pd.DataFrame, list[str]]:
    """The table of nodes with the columns to use, and the names of those left out."""
    names = [str(column) for column in table]
    selected = {*NODE_COLUMNS, *(name for split_map in split_columns(names) for name in split_map)}
    selected |= {name for name in names if name.startswith(VIEW)}
    nameless = [position for position, name in enumerate(names) if re.fullmatch(r"(Unnamed: [0-9]+)?", name.strip())]
    # pandas renames a second column 'label' to 'label.1'
    plain = {name: re.sub(r"[\s_-]+|\.[0-9]+$", "", name).casefold() for name in names}
    copies = [name for name in names if name not in selected and plain[name] in (*NODE_COLUMNS, "split")]
    if columns:
        numeric = [name for name, dtype in zip(names, table.dtypes, strict=True) if is_numeric_dtype(dtype)]
        selected |= {*columns.features} or {*numeric} - {*copies, *(names[position] for position in nameless)}
        unused = [name for name in names if name not in selected and name not in columns.fields]
        return table.loc[:, [name in selected for name in names]], unused
    for position in nameless:
        if not table.iloc[:, position].isin(["", None, np.nan]).all():
            raise DataError(
                f"{path}: column {position + 1} has no name ('{names[position]}'), as when pandas writes its index; "
                "drop it (to_csv with index=False) or name it"
            )
    for name in copies:
        raise DataError(
            f"{path}: column {name!r} may be '{plain[name]}' under another name, or a copy of it; rename it to "
            f"'{plain[name]}' or drop it"
        )
    return table.iloc[:, [position for position in range(len(names)) if position not in nameless]], []


def _read_edges(path: Path, columns: Columns, nodes: int) -> pd.DataFrame | np.ndarray:
    name = path.name.lower()
    if name.endswith(".npz"):
        return read_edge_matrix(path, nodes)
    names = [columns.column_of.get(ours, ours) for ours in EDGE_COLUMNS]
    without_header = name.endswith(".txt")
    if name.endswith(".tsv"):
        first_line = re.split(r"[\r\n]", read_csv_bytes(path).decode(), maxsplit=1)[0]
        without_header = not set(names) <= {cell.strip('"') for cell in first_line.split("\t")}
    return read_edge_lines(path, names) if without_header else _read(path, EDGE_COLUMNS, columns)[0]


def read_edge_lines(path: Path, header: Sequence[str]) -> pd.DataFrame:
    """Read a text file with two ids per line, separated by tabs, commas or blanks: columns ``source`` and ``target``.

    Further fields, such as a weight, are ignored; lines that begin with # or % are comments. The first line may be
    ``header``.

    Raises:
        DataError: a line has fewer than two ids; names the line.
    """
    ends: list[list[str]] = []
    for number, line in enumerate(io.StringIO(read_csv_bytes(path).decode(), newline=None), start=1):
        if not line.strip() or line.startswith(("#", "%")):
            continue
        separator = next((mark for mark in ("\t", ",") if mark in line), None)
        cells = [cell.strip() for cell in line.split(separator)][:2]
        if len(cells) < 2 or "" in cells:
            raise DataError(f"{path}, line {number}: {line.strip()!r:.80}, expected two ids: source and target")
        if ends or cells != [*header]:
            ends.append(cells)
    return pd.DataFrame(ends, columns=["source", "target"], dtype=object)


def check_shape(where: str, shape: Sequence[int], nodes: int) -> None:
    """Raise DataError if an adjacency matrix has rows or columns beyond the nodes; it may lack those without edges."""
    if max(shape, default=0) > nodes:
        raise DataError(f"{where} is a matrix {tuple(shape)}, but there are {nodes} nodes; are both of one graph?")


def read_edge_matrix(path: Path, nodes: int) -> np.ndarray:
    """Read edges int64 (2, E), as row numbers of nodes, from an .npz with a SciPy sparse matrix or an ``edge_index``.

    Raises:
        DataError: the file is damaged, holds neither, or its matrix is for more than ``nodes`` nodes.
    """
    with reading_data(f"{path} cannot be read as .npz", "save it anew"):
        with np.load(path) as arrays:
            names = arrays.files
            edges = arrays["edge_index"] if "edge_index" in names else None
        if edges is None and "format" in names:
            matrix = scipy.sparse.load_npz(path)
            check_shape(str(path), matrix.shape, nodes)
            edges = np.stack(matrix.nonzero())
    if edges is None or edges.dtype.kind not in "iu" or edges.ndim != 2 or len(edges) != 2:
        contents = (
            f"edge_index of type {edges.dtype} and shape {edges.shape}" if edges is not None else f"arrays {names}"
        )
        raise DataError(
            f"{path} holds {contents}, expected integers edge_index (2, E), or a matrix of scipy.sparse.save_npz"
        )
    return edges.astype(np.int64)


# ---- files and columns --------------------------------------------------------------------------------------------


def _read(path: Path, ours: Sequence[str], columns: Columns) -> tuple[pd.DataFrame, list[str]]:
    """Read a table, rename its columns to ours and check them; returns it and the columns that others replace.

    From CSV, required columns, splits, lists of neighbours and fields of the text template are strings, as written.
    """
    nodes = ours != EDGE_COLUMNS
    read = next((read for ending, read in READERS.items() if path.name.lower().endswith(ending)), None)
    delimiter = "\t" if path.name.lower().endswith(".tsv") else ","
    if read:
        table = read(path)
        header = [*table.columns]
    else:
        content = read_csv_bytes(path)
        closed = [columns.column_of.get(name, name) for name in ("label", "split")] if nodes else []
        header = check_rows(path, content, closed, delimiter)
    names = columns.names(path, header, ours)
    kept = [name for name in names if name is not None]
    _check_header(path, kept, columns, nodes, delimiter)
    if not read:
        table = read_table(content, columns.strings(header, ours), delimiter)
    texts = {"text": columns.texts(table, path)} if nodes and columns.template else {}
    table = table.loc[:, [name is not None for name in names]]
    table.columns = pd.Index(kept, dtype=object)
    unnamed = [theirs for theirs, name in zip(header, names, strict=True) if name is None]
    return table.assign(**texts), [theirs for theirs in unnamed if theirs not in columns.fields]


def read_json_lines(path: Path) -> pd.DataFrame:
    """Read a table from a file with one JSON object per line; raises DataError naming a line that is not one."""
    rows = []
    for number, line in enumerate(read_csv_bytes(path).decode().split("\n"), start=1):
        try:
            row = json.loads(line) if line.strip() else None
            if "\\ud" in line.casefold():  # maybe half of a surrogate pair, which pandas refuses
                row = json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is no JSON ({error}); expected one JSON object per line") from error
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            raise DataError(f"{path}, line {number} is {line.strip()!r:.80}, expected one JSON object per line")
    table = pd.DataFrame(rows)
    for name in table.select_dtypes("float"):
        values = [row.get(name) for row in rows] if table[name].abs().max() >= EXACT else []
        if any(isinstance(value, int) and abs(value) > EXACT for value in values):  # whole numbers with gaps
            table[name] = pd.Series(values, dtype=object)
    return table


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        with reading_data(f"{path} cannot be read as Parquet", "export it again"):
            table = pd.read_parquet(path)
            if (table.select_dtypes("float").abs() >= EXACT).any(axis=None):  # maybe whole numbers with gaps
                table = pd.read_parquet(path, dtype_backend="numpy_nullable")
            if any(name is not None for name in table.index.names):  # a named index is a column of the file
                table = table.reset_index()
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow, which is not installed; install the extra 'parquet' "
            "(pip install 'glem-graphgym[parquet]') or save the table as CSV"
        ) from error
    table.columns = pd.Index([str(column) for column in table.columns], dtype=object)
    return table


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {".parquet": _read_parquet, ".jsonl": read_json_lines}


def _check_header(path: Path, header: Sequence[str], columns: Columns, nodes: bool, delimiter: str) -> None:
    expected = NODE_COLUMNS if nodes else EDGE_COLUMNS
    required = columns.required(header) if nodes else EDGE_COLUMNS
    missing = [column for column in required if column not in header]
    if missing:
        raise DataError(
            f"{path} has no column {missing}; found [{listed(header, 12, quoted=True)}], expected {[*expected]}"
            + _why_missing(path, header, missing, expected, delimiter)
        )
    check_distinct(path, header, header if nodes else required)


def _why_missing(
    path: Path, header: Sequence[str], missing: Sequence[str], expected: Sequence[str], delimiter: str
) -> str:
    joined = "".join(header)
    for separator, name in SEPARATORS.items():
        if separator in joined and set(missing) <= {cell.strip(' "') for cell in joined.split(separator)}:
            ending = {",": ".csv", "\t": ".tsv"}.get(separator)
            remedy = f"name it {path.stem}{ending}" if ending else "export it again"
            return f"; columns are separated by {name}s there, expected {SEPARATORS[delimiter]}s: {remedy}"
    for column in missing:
        if similar := alike(column, header):
            columns = ", ".join(f"{name}={similar[0] if name == column else '<yours>'}" for name in missing)
            return f"; rename the column {similar[0]!r} to '{column}', or set dataset.tag_columns to [{columns}]?"
    if any(NUMBER.fullmatch(cell.strip()) for cell in header):
        return f"; is the first line a row? Put a line with {','.join(expected)} above it"
    return f"; name yours: dataset.tag_columns [{', '.join(f'{column}=<yours>' for column in missing)}]"
