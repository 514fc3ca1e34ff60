"""Operators on disk: the same bits as those in memory, whatever the blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.out_of_core.stored_operator import StoredOperator, operator_bytes, row_blocks, store_operator

NODES = 60


def graph(loops: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A hub that knows everybody, nodes that know nobody, and, where asked for, self-loops."""
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(0, NODES - 5, (2, 150))
    hub = np.full(NODES - 5, 7)
    row, col = np.r_[rows, cols, hub, np.arange(NODES - 5)], np.r_[cols, rows, np.arange(NODES - 5), hub]
    kept = np.ones(len(row), dtype=bool) if loops else row != col
    key = np.unique(row[kept] * NODES + col[kept])
    rowptr = np.searchsorted(key, np.arange(NODES + 1) * NODES)
    return rowptr.astype(np.int64), (key % NODES).astype(np.int32)


def adjacency(rowptr: np.ndarray, col: np.ndarray) -> Adjacency:
    return Adjacency(torch.from_numpy(rowptr), torch.from_numpy(col))


def stored(folder: Path, *graph: Any, block_bytes: int = 64 << 20, **options: Any) -> StoredOperator:
    folder.mkdir()
    store_operator(folder, *graph, **options)
    return StoredOperator(folder, block_bytes)


X = torch.randn(NODES, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("loops", [False, True])
def test_products_are_those_of_the_operator_in_memory_bit_for_bit(tmp_path: Path, loops: bool) -> None:
    rowptr, col = graph(loops)
    wanted = adjacency(rowptr, col).gcn()
    for number, (entries, block_bytes) in enumerate([(1 << 20, 1 << 20), (5, 1), (40, 600)]):
        found = stored(tmp_path / str(number), rowptr, col, entries_at_once=entries, block_bytes=block_bytes)
        assert torch.equal(found.multiply(X, torch.empty_like(X)), wanted @ X)
        np.testing.assert_array_equal(found.weight, wanted.weight(torch.float32).numpy())


def test_left_out_nodes_have_no_edges(tmp_path: Path) -> None:
    rowptr, col = graph()
    keep = np.random.default_rng(1).random(NODES) < 0.6
    row = np.repeat(np.arange(NODES), np.diff(rowptr))
    inner = keep[row] & keep[col]
    edges = torch.from_numpy(np.stack([col[inner], row[inner]]).astype(np.int64))
    wanted = Adjacency.from_edge_index(edges, NODES).gcn() @ X
    found = stored(tmp_path / "a", rowptr, col, keep, entries_at_once=30)
    assert torch.equal(found.multiply(X, torch.empty_like(X)), wanted)
    # And of the others it is the graph among them, renumbered.
    new = np.cumsum(keep) - 1
    among = Adjacency.from_edge_index(torch.from_numpy(np.stack([new[col[inner]], new[row[inner]]])), int(keep.sum()))
    assert torch.equal(wanted[keep], among.gcn() @ X[keep])


@pytest.mark.parametrize("left_out", [False, True])
def test_its_size_is_known_before_it_is_written(tmp_path: Path, left_out: bool) -> None:
    rowptr, col = graph()
    keep = np.random.default_rng(1).random(NODES) < 0.6 if left_out else None
    found = stored(tmp_path / "operator", rowptr, col, keep=keep)
    written = sum(array.nbytes for array in (found.rowptr, found.col, found.weight))
    assert operator_bytes(rowptr, col, keep, entries_at_once=7) == written


def test_blocks_hold_so_many_entries_and_rows_or_one_row() -> None:
    rowptr = np.array([0, 3, 3, 4, 20, 22, 22])
    assert list(row_blocks(rowptr, 4, 10)) == [(0, 3), (3, 4), (4, 6)]
    assert list(row_blocks(rowptr, 100, 4)) == [(0, 4), (4, 6)]
    assert list(row_blocks(rowptr, 0, 0)) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]
