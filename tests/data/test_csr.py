from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glem_graphgym import disk
from glem_graphgym.data import csr
from glem_graphgym.data.csr import bounded_cuts, check_csr, csr_from_edges, entry_blocks, nodes_within, write_csr
from glem_graphgym.data.errors import DataError
from glem_graphgym.disk import DiskFullError
from tests.checks import peak_of

# ---- in memory --------------------------------------------------------------------------------------------------


@st.composite
def edge_lists(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    n = draw(st.integers(1, 12))
    node = st.integers(0, n - 1)
    return n, draw(st.lists(st.tuples(node, node), max_size=40))


@settings(max_examples=200, deadline=None)
@given(edge_lists())
def test_csr_equals_a_set_of_pairs(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    n, edges = drawn
    pairs = {pair for a, b in edges if a != b for pair in ((a, b), (b, a))}
    rowptr, col = csr_from_edges(np.array([a for a, _ in edges]), np.array([b for _, b in edges]), n)
    assert (rowptr.dtype, col.dtype) == (np.int64, np.int32)
    rows = [col[rowptr[i] : rowptr[i + 1]].tolist() for i in range(n)]
    assert rows == [sorted(b for a, b in pairs if a == i) for i in range(n)]


def test_csr_of_many_nodes_does_not_overflow() -> None:
    n = 3_000_000  # n² exceeds 32 bits by far
    rowptr, col = csr_from_edges(np.array([0, n - 1]), np.array([n - 1, n - 2]), n)
    assert col.tolist() == [n - 1, n - 1, 0, n - 2]
    assert np.flatnonzero(np.diff(rowptr)).tolist() == [0, n - 2, n - 1]


@pytest.mark.parametrize(("source", "target"), [([0, 5], [1, 2]), ([0, 1], [1, -1])])
def test_csr_refuses_nodes_out_of_range(source: list[int], target: list[int]) -> None:
    with pytest.raises(DataError, match="expected 0 to 4"):
        csr_from_edges(np.array(source), np.array(target), 5)


# ---- out of core ------------------------------------------------------------------------------------------------


def written(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.load(folder / "rowptr.npy"), np.load(folder / "col.npy")


def same(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 50),
    num_edges=st.integers(0, 800),
    hub_share=st.sampled_from([0.0, 0.5, 1.0]),
    memory_bytes=st.sampled_from([1, 3000, 20_000, 10**8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_written_is_what_is_made_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    num_edges: int,
    hub_share: float,
    memory_bytes: int,
    seed: int,
) -> None:
    """With loops, duplicates, isolated nodes, a hub, and bins so few that files exceed the memory by far."""
    rng = np.random.default_rng(seed)
    source, target = rng.integers(0, n, (2, num_edges))
    source[: int(hub_share * num_edges)] = rng.integers(0, n)
    folder = tmp_path_factory.mktemp("csr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csr, "BINS", 16)
        write_csr(np.stack([source, target]), n, folder, memory_bytes=memory_bytes)
    assert same(written(folder), csr_from_edges(source, target, n))
    assert sorted(path.name for path in folder.iterdir()) == ["col.npy", "rowptr.npy"]
    shutil.rmtree(folder)


@pytest.mark.parametrize("memory_bytes", [100_000, 10_000_000])
def test_a_large_graph_with_a_hub_and_two_dense_rows(tmp_path: Path, memory_bytes: int) -> None:
    rng = np.random.default_rng(1)
    n, num_edges = 70_000, 120_000
    source, target = rng.integers(0, n, (2, num_edges))
    source[::2] = 41_234
    source[1::5], target[1::5] = 7, 8
    write_csr(np.stack([source, target]).astype(np.int32), n, tmp_path, memory_bytes=memory_bytes)
    assert same(written(tmp_path), csr_from_edges(source, target, n))


@pytest.mark.parametrize("n", [0, 1, 5])
def test_no_edges(tmp_path: Path, n: int) -> None:
    empty = np.empty((2, 0))  # NumPy calls it float64
    write_csr(empty, n, tmp_path, memory_bytes=1000)
    assert same(written(tmp_path), csr_from_edges(*empty, n))


@pytest.fixture
def no_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only columns are written: pointers of billions of rows would take 17 GB and more."""
    monkeypatch.setattr(csr, "new_array", lambda file, *_: file.touch() or MagicMock())


@pytest.mark.usefixtures("no_pointers")
def test_node_ids_that_do_not_fit_into_32_bits(tmp_path: Path) -> None:
    n = 2**31 + 2
    write_csr(np.array([[0, n - 1], [n - 1, 3]]), n, tmp_path, memory_bytes=10_000)
    col = np.load(tmp_path / "col.npy")
    assert col.dtype == np.int64
    assert col.tolist() == [n - 1, n - 1, 0, 3]


@pytest.mark.usefixtures("no_pointers")
def test_the_largest_graph_whose_pairs_fit_into_64_bits(tmp_path: Path) -> None:
    n = 3_037_000_499
    write_csr(np.array([[n - 1], [n - 2]]), n, tmp_path, memory_bytes=10_000)
    assert np.load(tmp_path / "col.npy").tolist() == [n - 1, n - 2]
    with pytest.raises(ValueError, match="expected 0 to 3,037,000,499"):
        write_csr(np.array([[0], [1]]), n + 1, tmp_path, memory_bytes=10_000)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([[0, 5], [1, 2]], "edges name nodes 0 to 5, expected 0 to 4"),
        ([[0, 1], [1, -1]], "edges name nodes -1 to 1, expected 0 to 4"),
        (np.array([[0, 2**63], [1, 1]], np.uint64), "edges name nodes -9223372036854775808 to 0, expected 0 to 4"),
        ([[0.0, 1.0], [1, 2]], r"edges are float64 \(2, 2\), expected integers \(2, E\)"),
        ([[0, 1], [1, 2], [2, 3]], r"int64 \(3, 2\)"),
        ([[[0, 1]], [[1, 2]]], r"int64 \(2, 1, 2\)"),
    ],
)
def test_bad_edges_are_refused_before_anything_is_written(
    tmp_path: Path, edges: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csr, "require_space", lambda *_: pytest.fail("began to write"))
    with pytest.raises(DataError, match=message):
        write_csr(np.array(edges), 5, tmp_path, memory_bytes=1)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_halfway_leaves_nothing_and_the_old_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rowptr.npy").write_text("old")
    monkeypatch.setattr(csr.NpyWriter, "write", Mock(side_effect=OSError("disk pulled")))
    with pytest.raises(OSError, match="disk pulled"):
        write_csr(np.stack([np.arange(50), np.arange(1, 51)]), 51, tmp_path, memory_bytes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["rowptr.npy"]
    assert (tmp_path / "rowptr.npy").read_text() == "old"


def test_what_a_killed_process_left_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".edges").mkdir()
    (tmp_path / ".edges" / "b-0").write_bytes(np.arange(7).tobytes())
    write_csr(np.array([[0], [1]]), 3, tmp_path, memory_bytes=10_000)
    assert same(written(tmp_path), csr_from_edges(np.array([0]), np.array([1]), 3))
    assert not (tmp_path / ".edges").exists()


def test_a_full_disk_is_seen_before_the_long_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 100)
    with pytest.raises(DiskFullError, match=r"sorting 9 edges takes 224 bytes of disk, 100 bytes are free; make room"):
        write_csr(np.stack([np.arange(9), np.arange(1, 10)]), 10, tmp_path, memory_bytes=10_000)


def test_memory_stays_within_the_budget(tmp_path: Path) -> None:
    """Two million edges: 64 MB of keys, and half of them are of one node, with 4 MB allowed."""
    n, num_edges, budget = 300_000, 2_000_000, 4_000_000
    edges = np.random.default_rng(0).integers(0, n, (2, num_edges))
    edges[0, ::2] = 5
    # Beyond the budget: counts of bins, one chunk of edges, buffers of files.
    assert peak_of(lambda: write_csr(edges, n, tmp_path, memory_bytes=budget)) < budget + 4_000_000
    rowptr, col = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("rowptr", "col"))
    assert peak_of(lambda: check_csr("large", rowptr, col)) < 8_000_000
    assert same((np.array(rowptr), np.array(col)), csr_from_edges(*edges, n))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 20))
def test_bins_are_cut_into_stretches_that_fit(counted: list[int], capacity: int) -> None:
    cuts = bounded_cuts(np.array(counted, dtype=np.int64), capacity)
    assert cuts[0] == 0 and cuts[-1] == len(counted)
    for start, stop in itertools.pairwise(cuts):
        assert start < stop
        assert stop == start + 1 or sum(counted[start:stop]) <= capacity
        assert stop == len(counted) or sum(counted[start : stop + 1]) > capacity  # and none is cut for nothing


# ---- reading and checking by blocks -----------------------------------------------------------------------------


def random_csr(seed: int, n: int = 40, num_edges: int = 100) -> tuple[np.ndarray, np.ndarray]:
    return csr_from_edges(*np.random.default_rng(seed).integers(0, n, (2, num_edges)), n)


@pytest.mark.parametrize("at_once", [1, 2, 7, 64, 1 << 16])
def test_blocks_give_every_entry_once_and_in_order(at_once: int) -> None:
    hub = np.full(60, 3), np.arange(60)
    for n, (rowptr, col) in ((40, random_csr(0)), (200, csr_from_edges(*hub, 200)), (9, random_csr(1, 9, 0))):
        blocks = list(entry_blocks(rowptr, col, at_once))
        row = np.repeat(np.arange(n), np.diff(rowptr))
        assert all(0 < len(rows) == len(cols) <= at_once for rows, cols in blocks)
        assert [int(r) for rows, _ in blocks for r in rows] == row.tolist()
        assert [int(c) for _, cols in blocks for c in cols] == col.tolist()
        assert all(cols.dtype == rows.dtype == np.int64 for rows, cols in blocks)


def test_a_long_stretch_of_isolated_nodes_takes_no_memory() -> None:
    n = 3_000_000
    rowptr, col = csr_from_edges(np.array([0, 1]), np.array([n - 1, n - 2]), n)
    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    assert peak_of(lambda: blocks.extend(entry_blocks(rowptr, col))) < 8_000_000
    assert np.concatenate([rows for rows, _ in blocks]).tolist() == [0, 1, n - 2, n - 1]


@pytest.mark.parametrize("at_once", [1, 3, 50, 1 << 16])
def test_every_single_broken_entry_is_found(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever one entry is changed to, in whatever block, the adjacency is no longer sound."""
    monkeypatch.setattr(csr, "ENTRIES_AT_ONCE", at_once)
    monkeypatch.setattr(entry_blocks, "__defaults__", (at_once,))
    rowptr, col = random_csr(2, n=12, num_edges=30)
    check_csr("sound", rowptr, col)
    for entry in range(len(col)):
        for value in {*range(-1, 13)} - {int(col[entry])}:
            broken = col.copy()
            broken[entry] = value
            with pytest.raises(DataError, match=r"^g: "):
                check_csr("g", rowptr, broken)


def test_symmetry_is_found_broken_whatever_edges_are_turned() -> None:
    """As many entries a row and a column as before, sorted and without loops: only the pairs are wrong."""
    # 0-1, 2-3 and 0-3, 1-2 as directed cycles: each node has one neighbour in and one out.
    rowptr = np.arange(5)
    check_csr("pairs", rowptr, np.array([1, 0, 3, 2]))
    with pytest.raises(DataError, match="not symmetric"):
        check_csr("cycle", rowptr, np.array([1, 2, 3, 0]))
    rng = np.random.default_rng(0)
    for _ in range(300):
        cycle = rng.permutation(50)
        col = np.empty(50, dtype=np.int64)
        col[cycle] = np.roll(cycle, -1)
        with pytest.raises(DataError, match="not symmetric"):
            check_csr("cycle", np.arange(51), col)


def test_the_hash_spreads_over_all_bits_and_turns_its_sign_with_the_edge() -> None:
    row, col = np.zeros(4000, dtype=np.int64), np.arange(1, 4001)
    each = np.array([csr._imbalance(row[i : i + 1], col[i : i + 1], 5000) for i in range(4000)], dtype=np.uint64)
    assert len(np.unique(each)) == 4000
    bits = np.unpackbits(each.view(np.uint8)).reshape(4000, 64)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.05
    assert (csr._imbalance(row, col, 5000) + csr._imbalance(col, row, 5000)) % 2**64 == 0


# ---- nodes within some hops -------------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", range(6))
@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_nodes_within_some_hops_are_those_of_a_search_node_by_node(hops: int, at_once: int) -> None:
    n = 80
    rowptr, col = csr_from_edges(*np.random.default_rng(0).integers(0, n - 4, (2, 70)), n)

    def search(start: list[int], hops: int) -> list[int]:
        reached = set(start)
        for _ in range(hops):
            reached |= {int(other) for node in reached for other in col[rowptr[node] : rowptr[node + 1]]}
        return sorted(reached)

    for start in ([3], [0, 40, 79], [79, 78], []):
        found = nodes_within(rowptr, col, np.array(start, dtype=np.int64), hops, entries_at_once=at_once)
        assert found.tolist() == search(start, hops)
    assert 1 < len(search([3], 2)) < len(search([3], 4)) < n  # so there is something to get wrong
