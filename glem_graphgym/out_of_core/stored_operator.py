"""Propagation operators on disk: GCN's matrix of `models.propagation` for graphs larger than memory.

The normalised matrix is written once, in CSR form with its weights. A product reads it sequentially, one block of rows
at a time, 8 bytes per entry; in memory it holds its operand, its result and one block. Entries, their order and the
kernel are those of `SparseOperator`, so products are bitwise equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glem_graphgym.disk import new_array
from glem_graphgym.files import read_array
from glem_graphgym.models.propagation import weighted_sums

ENTRIES_AT_ONCE = 1 << 20


class StoredOperator:
    """The N x N matrix that `store_operator` wrote into ``folder``.

    Besides operand and result, a product needs ``block_bytes`` of memory, or one row if that is larger.
    """

    def __init__(self, folder: Path, block_bytes: int = 64 << 20) -> None:
        self.rowptr, self.col, self.weight = (
            read_array(folder / f"{name}.npy", f"delete {folder} to have it made anew")
            for name in ("rowptr", "col", "weight")
        )
        self.num_nodes, self.block_bytes = len(self.rowptr) - 1, block_bytes

    def multiply(self, x: Tensor, out: Tensor) -> Tensor:
        """The product with ``x`` (N, D) float32, written into ``out`` of the same shape, which is returned."""
        # Half of the bytes for entries (column and weight), half for rows of the product.
        entries, rows = self.block_bytes // 16, self.block_bytes // (8 * max(1, x.shape[1]))
        for first, end in row_blocks(self.rowptr, entries, rows):
            start, stop = int(self.rowptr[first]), int(self.rowptr[end])
            col = torch.from_numpy(np.array(self.col[start:stop]))
            rowptr = torch.from_numpy(self.rowptr[first : end + 1] - start).to(col.dtype)
            out[first:end] = weighted_sums(rowptr, col, torch.from_numpy(np.array(self.weight[start:stop])), x)
        return out


def store_operator(
    folder: Path,
    rowptr: np.ndarray,
    col: np.ndarray,
    keep: np.ndarray | None = None,
    *,
    entries_at_once: int = ENTRIES_AT_ONCE,
) -> None:
    """Write a graph's GCN operator, that of `Adjacency.gcn`, into an existing ``folder``, for `StoredOperator`.

    Needs about 20 bytes of memory per node, and 8 bytes of disk per entry and per node.

    Args:
        rowptr, col: CSR of A, columns strictly increasing within a row; may be memory-mapped.
        keep: bool (N,): only entries between two nodes of the mask count, as if the others had no edges; None = all.
        entries_at_once: number of entries of A in memory at a time.
    """
    num_nodes = len(rowptr) - 1
    degree = np.empty(num_nodes, dtype=np.int64)
    blocks = list(row_blocks(rowptr, entries_at_once, entries_at_once))
    for first, end in blocks:
        row, _ = _entries(rowptr, col, first, end, keep)
        degree[first:end] = np.bincount(row, minlength=end - first)
    scale, total = torch.from_numpy(degree).double().rsqrt_(), int(degree.sum())
    stored_rowptr = new_array(folder / "rowptr.npy", np.int64, (num_nodes + 1,))
    np.cumsum(degree, out=stored_rowptr[1:])
    del degree
    stored_col = new_array(folder / "col.npy", _index_type(num_nodes), (total,))
    stored_weight = new_array(folder / "weight.npy", np.float32, (total,))
    for first, end in blocks:
        row, column = _entries(rowptr, col, first, end, keep)
        entries = slice(int(stored_rowptr[first]), int(stored_rowptr[end]))
        stored_col[entries] = column
        weight = scale[torch.from_numpy(row + first)] * scale[torch.from_numpy(column)]
        stored_weight[entries] = weight.float().numpy()
    for array in (stored_rowptr, stored_col, stored_weight):
        array.flush()


def operator_bytes(
    rowptr: np.ndarray, col: np.ndarray, keep: np.ndarray | None = None, *, entries_at_once: int = ENTRIES_AT_ONCE
) -> int:
    """Bytes that `store_operator` writes, without file headers; for arguments see there. Without ``keep`` the graph is
    not read and is taken to have no self-loops; each one that it has means one entry less."""
    num_nodes = len(rowptr) - 1
    entries = len(col) + num_nodes
    if keep is not None:
        blocks = row_blocks(rowptr, entries_at_once, entries_at_once)
        entries = sum(len(_entries(rowptr, col, first, end, keep)[0]) for first, end in blocks)
    return 8 * (num_nodes + 1) + (np.dtype(_index_type(num_nodes)).itemsize + 4) * entries


def _index_type(num_nodes: int) -> type[np.integer]:
    return np.int32 if num_nodes < 2**31 else np.int64


def _entries(
    rowptr: np.ndarray, col: np.ndarray, first: int, end: int, keep: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows, counted from ``first``, and columns, both int64, of the entries of A+I in rows ``first`` to ``end`` - 1."""
    column = np.asarray(col[int(rowptr[first]) : int(rowptr[end])], dtype=np.int64)
    row = np.repeat(np.arange(end - first), np.diff(rowptr[first : end + 1]))
    is_edge = column != row + first
    if keep is not None:
        is_edge &= keep[column] & keep[row + first]
    row, column = row[is_edge], column[is_edge]
    # A self-loop follows the entries of earlier rows, and those of its own row with smaller columns.
    number, smaller = (np.bincount(rows, minlength=end - first) for rows in (row, row[column < row + first]))
    positions = np.cumsum(number) - number + smaller
    return np.insert(row, positions, np.arange(end - first)), np.insert(column, positions, np.arange(first, end))


def row_blocks(rowptr: np.ndarray, entries: int, rows: int) -> Iterator[tuple[int, int]]:
    """(first, end) of successive blocks with at most ``entries`` entries and ``rows`` rows, but at least one row."""
    num_nodes = len(rowptr) - 1
    first = 0
    while first < num_nodes:
        end = int(np.searchsorted(rowptr, int(rowptr[first]) + entries, side="right")) - 1
        end = min(max(end, first + 1), first + max(rows, 1), num_nodes)
        yield first, end
        first = end
