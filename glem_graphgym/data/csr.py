"""Adjacency in CSR form: made in memory, made out of core, read and checked block by block."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glem_graphgym.data.errors import DataError
from glem_graphgym.data.npy import NpyWriter, PointerWriter
from glem_graphgym.disk import disk_full_errors, require_space
from glem_graphgym.progress import Progress

Edges = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]
Keys = Callable[[], Iterator[np.ndarray]]

BINS = 1 << 16  # a range of keys is counted in this many bins before it is cut into buckets
BUCKETS = 256  # most files that one range is cut into; what is still too large is cut again
CHUNK, BUCKET = 1 << 20, 1 << 24  # edges and keys handled together: more would only take memory, and no less time
ENTRIES_AT_ONCE = 1 << 16  # entries looked at together: all that is computed of them stays in the processor's cache


# ---- making it ----------------------------------------------------------------------------------------------------


def csr_from_edges(
    source: np.ndarray, target: np.ndarray, num_nodes: int, *, directed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """CSR of an edge list: rowptr int64 (N+1,) and col (nnz,), int32 where N fits into it, else int64.

    Both directions of every edge, or with ``directed`` in row i the sources of the edges to i; no self-loops, no
    duplicates, neighbours in order.

    Raises:
        DataError: an edge names a node outside of 0..N-1.
    """
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    _check_ends(source, target, num_nodes)
    key = np.sort(_keys(source, target, num_nodes, directed))
    key = key[np.diff(key, prepend=-1) > 0]  # np.unique hashes, which is many times slower here
    rowptr = np.zeros(num_nodes + 1, dtype=np.int64)
    np.cumsum(np.bincount(key // max(num_nodes, 1), minlength=num_nodes), out=rowptr[1:])
    return rowptr, (key % max(num_nodes, 1)).astype(_column_type(num_nodes))


def _keys(source: np.ndarray, target: np.ndarray, num_nodes: int, directed: bool = False) -> np.ndarray:
    """row·N + col of all edges but loops, in both directions, or from ``source`` to ``target`` alone."""
    keep = source != target
    source, target = source[keep], target[keep]
    forward = target * num_nodes + source
    return forward if directed else np.concatenate([source * num_nodes + target, forward])


def _column_type(num_nodes: int) -> type[np.signedinteger[Any]]:
    return np.int32 if num_nodes - 1 <= np.iinfo(np.int32).max else np.int64


def _check_ends(source: np.ndarray, target: np.ndarray, num_nodes: int) -> None:
    for end in (source, target):
        if len(end) and (end.min() < 0 or end.max() >= num_nodes):
            raise DataError(f"edges name nodes {end.min()} to {end.max()}, expected 0 to {num_nodes - 1}")


def write_csr(edges: Edges, num_nodes: int, folder: Path, *, memory_bytes: int) -> None:
    """Write the arrays of `csr_from_edges` into ``folder`` without ever holding the edges in memory.

    An external bucket sort. Both directions of each edge become int64 keys row·N + col; a first pass counts them, a
    second deals them out to files, each a range of keys that fits into memory, and each file in turn is sorted, freed
    of duplicates and appended to the result. A range that does not fit (a hub with half of all edges) is cut again.
    The files take 16 bytes per edge on the disk of ``folder`` and are removed as they are used up.

    Args:
        edges: yields chunks of (source, target), integer arrays of the same length, in one direction or in both.
            Called twice; yields the same edges both times.
        num_nodes: N.
        folder: gets ``rowptr.npy`` and ``col.npy``, which appear when they are whole. Made if it does not exist.
        memory_bytes: most that this may allocate, beside what ``edges`` does; below 1 MB it is not kept exactly.

    Raises:
        DataError: an edge names a node outside of 0..N-1, a chunk is not a pair of equally long integer arrays,
            or the two passes differ.
        DiskFullError: there is no room on the disk; asked before the edges are dealt out.
    """
    if memory_bytes < 1 or not 0 <= num_nodes <= 3_037_000_499:  # N² has to fit into int64
        raise ValueError(
            f"num_nodes is {num_nodes}, expected 0 to 3,037,000,499, and memory_bytes {memory_bytes}, at least 1"
        )
    temporary = folder / ".edges"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir(parents=True)
    try:
        runs = _ExternalSort(edges, num_nodes, temporary, memory_bytes).runs()
        _write_rows(runs, num_nodes, temporary, max(1024, memory_bytes // 512))
        for name in ("rowptr.npy", "col.npy"):
            (temporary / name).replace(folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _ExternalSort:
    """All keys row·N + col of both directions of the edges, in order and without duplicates."""

    def __init__(self, edges: Edges, num_nodes: int, folder: Path, memory_bytes: int) -> None:
        self.edges, self.num_nodes, self.folder = edges, num_nodes, folder
        self.capacity = max(memory_bytes // 10, 64)  # keys sorted at a time: 8 bytes each, and a reserve
        self.chunk = min(max(memory_bytes // 64, 32), CHUNK)  # edges made into keys at a time, about 50 bytes each
        self.block = min(max(memory_bytes // 512, 64), 1 << 20)  # keys handed on at a time

    def runs(self) -> Iterator[np.ndarray]:
        """Strictly increasing keys, int64, one block after the other."""
        counted, total = self._count(self._edge_keys("counting edges"), 0, self.num_nodes**2)
        require_space(self.folder.parent, 8 * total + 8 * self.num_nodes, f"sorting {total // 2:,} edges")
        self.capacity = min(self.capacity, max(BUCKET, -(-2 * total // BUCKETS)))
        buckets = self._deal(self._edge_keys("sorting edges", total // 2), 0, self.num_nodes**2, counted, "b")
        with Progress(total=total, desc="writing the adjacency", unit="entry", unit_scale=True) as bar:
            for low, high, count, file in buckets:
                yield from self._sorted(low, high, count, file)
                bar.update(count)

    def _edge_keys(self, what: str, total: int | None = None) -> Iterator[np.ndarray]:
        with Progress(total=total, desc=what, unit="edge", unit_scale=True) as bar:
            for source, target in self.edges():
                source, target = _integers(source, target)
                for start in range(0, len(source), self.chunk):
                    piece = slice(start, start + self.chunk)
                    ends = source[piece].astype(np.int64), target[piece].astype(np.int64)
                    _check_ends(*ends, self.num_nodes)
                    yield _keys(*ends, self.num_nodes)
                    bar.update(len(ends[0]))

    def _file_keys(self, file: Path) -> Iterator[np.ndarray]:
        with file.open("rb") as opened:
            while len(keys := np.fromfile(opened, dtype=np.int64, count=2 * self.chunk)):
                yield keys

    @staticmethod
    def _shift(low: int, high: int) -> int:
        """Keys that differ by less than 2**shift are in the same bin."""
        return max(0, (high - low - 1).bit_length() - (BINS - 1).bit_length())

    def _count(self, keys: Iterator[np.ndarray], low: int, high: int) -> tuple[np.ndarray, int]:
        """int64 (BINS,): number of keys in each bin of [low, high); and in all."""
        counted, shift = np.zeros(BINS, dtype=np.int64), self._shift(low, high)
        for block in keys:
            block -= low
            block >>= shift
            counted += np.bincount(block, minlength=BINS)
        return counted, int(counted.sum())

    def _deal(
        self, keys: Iterator[np.ndarray], low: int, high: int, counted: np.ndarray, name: str
    ) -> list[tuple[int, int, int, Path]]:
        """Deal keys of [low, high) out to files of neighbouring bins: (low, high, count, file) of each."""
        cuts = bounded_cuts(counted, max(self.capacity, -(-2 * int(counted.sum()) // BUCKETS)))
        edges = [min(low + (cut << self._shift(low, high)), high) for cut in cuts]
        counts = np.add.reduceat(counted, cuts[:-1])
        files = [self.folder / f"{name}-{index}" for index in range(len(counts))]
        dealt = np.zeros(len(counts), dtype=np.int64)
        for block in keys:
            block.sort()
            ends = np.searchsorted(block, edges[1:])
            ends[-1] = len(block)
            starts = np.concatenate([[0], ends[:-1]])
            for index in np.flatnonzero(ends > starts):
                with disk_full_errors(files[index]), files[index].open("ab") as file:
                    file.write(block[starts[index] : ends[index]].data)
            dealt += ends - starts
        if not np.array_equal(dealt, counts):
            raise DataError("edges() did not yield the same edges when it was called again")
        return [each for each in zip(edges[:-1], edges[1:], counts.tolist(), files, strict=True) if each[2]]

    def _sorted(self, low: int, high: int, count: int, file: Path) -> Iterator[np.ndarray]:
        """The keys of one file, in order and without duplicates; removes the file."""
        if high - low == 1:
            yield np.array([low])
        elif count <= self.capacity:
            keys = np.fromfile(file, dtype=np.int64)
            file.unlink()
            keys.sort()
            for start in range(0, len(keys), self.block):
                block = keys[start : start + self.block]
                before = keys[start - 1] if start else -1
                yield block[np.diff(block, prepend=before) > 0]
        else:
            counted, _ = self._count(self._file_keys(file), low, high)
            buckets = self._deal(self._file_keys(file), low, high, counted, file.name)
            file.unlink()
            for bucket in buckets:
                yield from self._sorted(*bucket)
        file.unlink(missing_ok=True)


def _integers(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    source, target = np.asarray(source), np.asarray(target)
    for end in (source, target):
        if end.ndim != 1 or len(source) != len(target) or (len(end) and end.dtype.kind not in "iu"):
            raise DataError(
                f"a chunk of edges is {source.dtype} {source.shape} and {target.dtype} {target.shape}, "
                "expected two integer arrays of the same length"
            )
    return source, target


def bounded_cuts(counted: np.ndarray, capacity: int) -> list[int]:
    """Where to cut bins into stretches of at most ``capacity``: 0, ..., len(counted). A bin is never cut."""
    ends, cuts = np.cumsum(counted), [0]
    while cuts[-1] < len(counted):
        done = int(ends[cuts[-1] - 1]) if cuts[-1] else 0
        cuts.append(max(int(np.searchsorted(ends, done + capacity, side="right")), cuts[-1] + 1))
    return cuts


def _write_rows(runs: Iterator[np.ndarray], num_nodes: int, folder: Path, at_once: int) -> None:
    with (
        PointerWriter(folder / "rowptr.npy", num_nodes, at_once) as rowptr,
        NpyWriter(folder / "col.npy", _column_type(num_nodes)) as col,
    ):
        for keys in runs:
            row = keys // num_nodes
            rowptr.add(row)
            col.write(keys - row * num_nodes)


# ---- reading it ---------------------------------------------------------------------------------------------------


def entry_blocks(
    rowptr: np.ndarray, col: np.ndarray, at_once: int = ENTRIES_AT_ONCE
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row, col), both int64, of every entry, at most ``at_once`` of them at a time."""
    rowptr, col = np.asarray(rowptr), np.asarray(col)  # slices of np.memmap itself are slow to make
    start = 0
    while start < len(col):
        first = int(np.searchsorted(rowptr, start, side="right")) - 1
        # Long stretches of empty rows are bounded too.
        last = min(int(np.searchsorted(rowptr, start + at_once, side="left")), first + at_once, len(rowptr) - 1)
        stop = min(start + at_once, int(rowptr[last]))
        ends = np.clip(rowptr[first : last + 1], start, stop)
        yield np.repeat(np.arange(first, last), np.diff(ends)), col[start:stop].astype(np.int64)
        start = stop


def check_csr(name: str, rowptr: np.ndarray, col: np.ndarray, *, directed: bool = False) -> None:
    """Check that an adjacency is what `csr_from_edges` makes, in one pass and a few MB.

    Symmetry is checked without a sort: each entry (row, col) adds a 64-bit hash of its unordered pair of nodes where
    row < col and subtracts it where row > col, modulo 2**64, for two hashes. A symmetric adjacency gives 0 twice;
    another one, whose entries are distinct by then, does with a probability of about 2**-128.

    Args:
        name: of the graph.
        rowptr, col: as of `csr_from_edges`.
        directed: the adjacency need not be symmetric.

    Raises:
        DataError: names the graph and what is wrong with it.
    """
    n = len(rowptr) - 1
    if rowptr.dtype != np.int64 or rowptr[0] != 0 or rowptr[-1] != len(col):
        raise DataError(f"{name}: row pointers must be int64 and run from 0 to {len(col)}")
    if any((np.diff(rowptr[start : start + ENTRIES_AT_ONCE + 1]) < 0).any() for start in range(0, n, ENTRIES_AT_ONCE)):
        raise DataError(f"{name}: row pointers must not decrease")
    least, most, last, loops, ordered = n, -1, -1, 0, True
    balance = [0, 0]
    what = f"checking the edges of {name}"
    with Progress(total=len(col), desc=what, unit="entry", unit_scale=True, leave=False) as bar:
        for row, neighbour in entry_blocks(rowptr, col):
            bar.update(len(row))
            least, most = min(least, int(neighbour.min())), max(most, int(neighbour.max()))
            key = row * n + neighbour
            ordered = ordered and int(key[0]) > last and bool((key[1:] > key[:-1]).all())
            last = int(key[-1])
            loops += int(np.count_nonzero(row == neighbour))
            if directed:
                continue
            balance = [a + b for a, b in zip(balance, _imbalance(row, neighbour, n), strict=True)]
    if len(col) and (least < 0 or most >= n):
        raise DataError(f"{name}: edges name nodes {least} to {most}, expected 0 to {n - 1}")
    if not ordered:
        raise DataError(f"{name}: neighbours must be sorted and free of duplicates within a row")
    if loops:
        raise DataError(f"{name}: {loops} self-loops; expected none")
    if any(each % 2**64 for each in balance):
        raise DataError(f"{name}: the adjacency is not symmetric; build it with csr_from_edges or write_csr")


def _imbalance(row: np.ndarray, col: np.ndarray, num_nodes: int) -> tuple[int, int]:
    """Two hashes of each unordered pair, added up with the sign of col - row; modulo 2**64."""
    pair = (np.minimum(row, col) * num_nodes + np.maximum(row, col)).view(np.uint64)
    sign = np.where(row < col, np.uint64(1), np.uint64(2**64 - 1))
    # The finaliser of SplitMix64 (Steele, Lea and Flood 2014), and for the second hash one more with other factors.
    first = _mix(pair, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
    second = _mix(first, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
    return int((first * sign).sum()), int((second * sign).sum())


def _mix(values: np.ndarray, first: int, second: int) -> np.ndarray:
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(first)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(second)
    mixed ^= mixed >> np.uint64(31)
    return mixed
