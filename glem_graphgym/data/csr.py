"""Adjacency in CSR form: built in memory or out of core, read and checked block by block."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glem_graphgym.data.errors import DataError
from glem_graphgym.disk import NpyWriter, disk_full_errors, new_array, require_space
from glem_graphgym.progress import Progress

BINS = 1 << 16  # keys are counted per bin of adjacent rows, in at most this many bins, before bins form buckets
BUCKETS = 256  # approximate limit on the number of bucket files
CHUNK, BUCKET = 1 << 20, 1 << 24  # edges per chunk, keys per bucket: more would cost memory and save no time
ENTRIES_AT_ONCE = 1 << 16  # entries per block: all intermediate arrays of a block stay in the processor's cache


# ---- building -----------------------------------------------------------------------------------------------------


def csr_from_edges(
    source: np.ndarray, target: np.ndarray, num_nodes: int, *, directed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Build the CSR of an edge list: rowptr int64 (N+1,) and col (nnz,), int32 if node numbers fit, else int64.

    Stores both directions of every edge or, if ``directed``, in row i only the sources of the edges to i. Self-loops
    and duplicates are dropped; neighbours are sorted within a row.

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
    """Keys row·N + col of all edges but self-loops: both directions or, if ``directed``, only the target as row."""
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


def write_csr(edges: np.ndarray, num_nodes: int, folder: Path, *, memory_bytes: int) -> None:
    """Write the arrays of `csr_from_edges` into ``folder`` without ever holding the edges in memory.

    External bucket sort: both directions of each edge become int64 keys row·N + col. A first pass counts them; a second
    distributes them to bucket files, each for a range of rows that should fit into memory. Each bucket is then sorted,
    deduplicated and appended to the result. It is memory-mapped and sorted in place, as it may exceed memory after all:
    a hub's row is not cut. Buckets take 16 bytes per edge on the disk of ``folder`` and are deleted as they are used.

    Args:
        edges: integers (2, E), sources and targets, possibly memory-mapped; each edge in one direction or in both.
        num_nodes: N.
        folder: receives ``rowptr.npy`` and ``col.npy``, which appear when complete. Created if it does not exist.
        memory_bytes: limit on memory to allocate; a limit below 1 MB is not kept exactly.

    Raises:
        DataError: an edge names a node outside of 0..N-1, or ``edges`` has another shape or type.
        DiskFullError: the disk has too little room; checked before any bucket is written.
    """
    if memory_bytes < 1 or not 0 <= num_nodes <= 3_037_000_499:  # N² has to fit into int64
        raise ValueError(
            f"num_nodes is {num_nodes}, expected 0 to 3,037,000,499, and memory_bytes {memory_bytes}, at least 1"
        )
    edges = np.asarray(edges)
    if edges.shape[:1] != (2,) or edges.ndim != 2 or (edges.size and edges.dtype.kind not in "iu"):
        raise DataError(f"edges are {edges.dtype} {edges.shape}, expected integers (2, E)")
    temporary = folder / ".edges"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
    temporary.mkdir(parents=True)
    try:
        files, total = _write_buckets(edges, num_nodes, temporary, memory_bytes)
        at_once = max(64, memory_bytes // 512)
        rowptr = new_array(temporary / "rowptr.npy", np.int64, (num_nodes + 1,))
        with (
            NpyWriter(temporary / "col.npy", _column_type(num_nodes)) as col,
            Progress(total=total, desc="writing the adjacency", unit="entry", unit_scale=True) as bar,
        ):
            for file in files:
                keys = np.asarray(np.memmap(file, np.int64, "r+"))
                file.unlink()
                keys.sort()
                for start in range(0, len(keys), at_once):
                    block = keys[start : start + at_once]
                    bar.update(len(block))
                    block = block[np.diff(block, prepend=keys[start - 1] if start else -1) > 0]
                    row = block // num_nodes
                    first = np.flatnonzero(np.diff(row, prepend=-1))  # of each row's entries
                    rowptr[row[first] + 1] += np.diff(first, append=len(row))
                    col.write(block - row * num_nodes)
        rowptr.cumsum(out=rowptr)
        rowptr.flush()
        for name in ("rowptr.npy", "col.npy"):
            (temporary / name).replace(folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_buckets(edges: np.ndarray, num_nodes: int, folder: Path, memory_bytes: int) -> tuple[list[Path], int]:
    """Distribute the keys of all edges to bucket files, whole rows each; the files in row order, the number of keys."""
    chunk = min(max(memory_bytes // 64, 32), CHUNK)  # edges per chunk; making their keys takes about 50 bytes per edge

    def edge_keys(description: str) -> Iterator[np.ndarray]:
        with Progress(total=edges.shape[1], desc=description, unit="edge", unit_scale=True) as bar:
            for start in range(0, edges.shape[1], chunk):
                source, target = edges[:, start : start + chunk].astype(np.int64)
                _check_ends(source, target, num_nodes)
                yield _keys(source, target, num_nodes)
                bar.update(len(source))

    rows_per_bin = -(-num_nodes // BINS) or 1
    width = rows_per_bin * num_nodes or 1  # range of the keys row·N + col of one bin
    counts = np.zeros(-(-num_nodes // rows_per_bin) or 1, dtype=np.int64)
    for block in edge_keys("counting edges"):
        counts += np.bincount(block // width, minlength=len(counts))
    total = int(counts.sum())
    require_space(folder.parent, 8 * total + 8 * num_nodes, f"sorting {total // 2:,} edges")
    capacity = min(max(memory_bytes // 10, 64), BUCKET)  # keys per bucket, 8 bytes each
    cuts = bounded_cuts(counts, max(capacity, -(-2 * total // BUCKETS)))
    files = [folder / f"b-{index}" for index in range(len(cuts) - 1)]
    for block in edge_keys("sorting edges"):
        block.sort()
        ends = np.append(np.searchsorted(block, width * np.array(cuts[1:-1], dtype=np.int64)), len(block))
        starts = np.append(0, ends[:-1])
        for index in np.flatnonzero(ends > starts):
            with disk_full_errors(files[index]), files[index].open("ab") as file:
                file.write(block[starts[index] : ends[index]].data)
    return [file for file in files if file.exists()], total


def bounded_cuts(counts: np.ndarray, capacity: int) -> list[int]:
    """Bounds 0, ..., len(counts) of runs of bins with at most ``capacity`` items each; a larger bin is a run alone."""
    ends, cuts = np.cumsum(counts), [0]
    while cuts[-1] < len(counts):
        start = int(ends[cuts[-1] - 1]) if cuts[-1] else 0
        cuts.append(max(int(np.searchsorted(ends, start + capacity, side="right")), cuts[-1] + 1))
    return cuts


# ---- reading ------------------------------------------------------------------------------------------------------


def entry_blocks(
    rowptr: np.ndarray, col: np.ndarray, at_once: int = ENTRIES_AT_ONCE
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all entries as arrays (row, col), both int64, of at most ``at_once`` entries."""
    rowptr, col = np.asarray(rowptr), np.asarray(col)  # slicing np.memmap itself is slow
    start = 0
    while start < len(col):
        first = int(np.searchsorted(rowptr, start, side="right")) - 1
        # The number of rows is limited too: there may be long runs of empty ones.
        last = min(int(np.searchsorted(rowptr, start + at_once, side="left")), first + at_once, len(rowptr) - 1)
        stop = min(start + at_once, int(rowptr[last]))
        ends = np.clip(rowptr[first : last + 1], start, stop)
        yield np.repeat(np.arange(first, last), np.diff(ends)), col[start:stop].astype(np.int64)
        start = stop


def nodes_within(
    rowptr: np.ndarray, col: np.ndarray, nodes: np.ndarray, hops: int, *, entries_at_once: int = 1 << 22
) -> np.ndarray:
    """All nodes within ``hops`` steps of any of ``nodes``, these included: int64, increasing.

    Allocates a few bytes per node; of a memory-mapped graph, only blocks that hold reached rows are read. ``rowptr``
    int64 (N+1,) and ``col`` (E,) are the adjacency: row i lists the nodes that node i depends on.
    """
    reached = np.zeros(len(rowptr) - 1, dtype=bool)
    reached[nodes] = True
    latest = reached.copy()
    for _ in range(hops):
        previous = reached.copy()
        first = 0
        while first < len(latest):
            end = int(np.searchsorted(rowptr, int(rowptr[first]) + entries_at_once, side="right")) - 1
            end = min(max(end, first + 1), first + entries_at_once, len(latest))
            if latest[first:end].any():
                entries = np.repeat(latest[first:end], np.diff(rowptr[first : end + 1]))
                reached[np.asarray(col[int(rowptr[first]) : int(rowptr[end])])[entries]] = True
            first = end
        latest = reached & ~previous
        if not latest.any():
            break
    return np.flatnonzero(reached)


def check_csr(name: str, rowptr: np.ndarray, col: np.ndarray, *, directed: bool = False) -> None:
    """Check that an adjacency has the form that `csr_from_edges` gives it, in one pass and a few MB of memory.

    Symmetry is checked without a sort: each entry (row, col) adds a 64-bit hash of its unordered pair of nodes if
    row < col and subtracts it if row > col, modulo 2**64. The sum is 0 if the adjacency is symmetric, and otherwise
    with a probability of about 2**-64, given that all entries are distinct, which is checked first.

    Args:
        name: the graph's name in messages.
        rowptr, col: see `csr_from_edges`.
        directed: the adjacency need not be symmetric.

    Raises:
        DataError: names the graph and what is wrong with it.
    """
    n = len(rowptr) - 1
    if rowptr.dtype != np.int64 or rowptr[0] != 0 or rowptr[-1] != len(col):
        raise DataError(f"{name}: row pointers must be int64 and run from 0 to {len(col)}")
    if any((np.diff(rowptr[start : start + ENTRIES_AT_ONCE + 1]) < 0).any() for start in range(0, n, ENTRIES_AT_ONCE)):
        raise DataError(f"{name}: row pointers must not decrease")
    least, most, last, loops, ordered, balance = n, -1, -1, 0, True, 0
    description = f"checking the edges of {name}"
    with Progress(total=len(col), desc=description, unit="entry", unit_scale=True, leave=False) as bar:
        for row, neighbour in entry_blocks(rowptr, col):
            bar.update(len(row))
            least, most = min(least, int(neighbour.min())), max(most, int(neighbour.max()))
            key = row * n + neighbour
            ordered = ordered and int(key[0]) > last and bool((key[1:] > key[:-1]).all())
            last = int(key[-1])
            loops += int(np.count_nonzero(row == neighbour))
            balance += 0 if directed else _imbalance(row, neighbour, n)
    if len(col) and (least < 0 or most >= n):
        raise DataError(f"{name}: edges name nodes {least} to {most}, expected 0 to {n - 1}")
    if not ordered:
        raise DataError(f"{name}: neighbours must be sorted and free of duplicates within a row")
    if loops:
        raise DataError(f"{name}: {loops} self-loops; expected none")
    if balance % 2**64:
        raise DataError(f"{name}: the adjacency is not symmetric; build it with csr_from_edges or write_csr")


def _imbalance(row: np.ndarray, col: np.ndarray, num_nodes: int) -> int:
    """Sum over entries of a hash of the unordered pair {row, col}, with the sign of col - row; modulo 2**64."""
    mixed = (np.minimum(row, col) * num_nodes + np.maximum(row, col)).view(np.uint64)
    # The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return int((mixed * np.where(row < col, np.uint64(1), np.uint64(2**64 - 1))).sum())
