"""Edges in files other than tables: text with two ids per line, and matrices of SciPy and NumPy."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse

from glem_graphgym.data.csv_file import read_csv_bytes
from glem_graphgym.data.errors import DataError, reading_data


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
