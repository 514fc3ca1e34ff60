"""Propagation of hop features that exceed memory: by blocks of columns, to files that are read by batches of nodes.

A block of columns stays in memory, in float32, from hop to hop; only the graph is read again, 8 bytes per entry and
hop. So per chain the graph's entries are read (number of blocks) x K times, while each block's columns are read once
and its hops written once. As batches of nodes read rows, several blocks are then joined to rows.

Sums and rounding are those of `propagate`: the results are bitwise equal.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from glem_graphgym.disk import disk_full_errors, kept_array, new_array, require_space, taken_bytes
from glem_graphgym.files import read_json, write_json
from glem_graphgym.memory import GB
from glem_graphgym.models.hops import rounded
from glem_graphgym.out_of_core.feature_rows import ranges
from glem_graphgym.out_of_core.stored_operator import StoredOperator

SAVE_SECONDS = 120.0  # a killed propagation loses about that much work
BLOCK_BYTES = 64 << 20  # of buffers for entries and rows; at most an eighth of the budget

# NumPy's type of the numbers in a file; bfloat16, which it lacks, is stored as its bits.
FILE_TYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.int16}


class Rows(Protocol):
    """A float matrix (N, D) that is read, or computed, in ranges of rows."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def read(self, first: int, end: int) -> np.ndarray:
        """Rows ``first`` to ``end`` - 1, float32 (end - first, D)."""
        ...

    def key(self) -> str:
        """Fingerprint of the content."""
        ...


def disk_bytes(num_nodes: int, stored: int, width: int, hops: int, item_bytes: int, budget: int) -> tuple[int, int]:
    """Bytes on disk of a `DiskPropagation`: those of its result, and those of its temporary files.

    The result has ``hops`` hops of ``stored`` nodes with ``width`` columns; ``budget`` is bytes of memory.
    """
    columns, _ = plan_columns(num_nodes, width, budget)
    hop_bytes = item_bytes * stored * width
    temporary_bytes = 2 * 4 * num_nodes * columns  # checkpoints, old and new
    if columns < width:  # the source's blocks of columns, and a hop twice while its blocks are joined
        temporary_bytes = max(temporary_bytes, hop_bytes) + 4 * num_nodes * width
    return hops * hop_bytes, temporary_bytes


def plan_columns(num_nodes: int, width: int, budget: int) -> tuple[int, int]:
    """Number of columns that are propagated at a time, and bytes of a buffer for entries and rows.

    Raises:
        ValueError: not even one column fits; says how much memory it needs.
    """
    block_bytes = min(BLOCK_BYTES, budget // 8)
    column_bytes = 2 * 4 * num_nodes  # float32, before and after a hop
    mask_bytes = 8 * num_nodes  # folds, masks of kept and of stored nodes, and temporaries
    max_columns = (budget - 2 * block_bytes - mask_bytes) // max(1, column_bytes)
    if max_columns < 1:
        least_bytes = (mask_bytes + column_bytes) * 4 / 3
        raise ValueError(
            f"{num_nodes:,} nodes need at least {least_bytes / GB:.3g} GB of memory to be propagated a column at a "
            f"time, but the budget is {budget / GB:.3g} GB (glem.memory_budget_gb, as far as this machine has it)"
        )
    num_blocks = -(-width // max_columns)
    return max(1, -(-width // max(1, num_blocks))), block_bytes


class MappedHops:
    """Hops (H, n, D) on disk, in a type of `FILE_TYPES`, read by batches of nodes.

    ``nodes``, int64 (n,), increasing, are the nodes of the rows; None = 0..n-1.
    """

    def __init__(self, array: np.ndarray, nodes: np.ndarray | None = None) -> None:
        self.array, self.nodes = array, nodes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self, nodes: np.ndarray) -> Tensor:
        """Hops (H, B, D) of ``nodes``, int64 (B,) in any order, in the type in which they were stored.

        Rows are read in stored order, which saves seeks on a hard disk.
        """
        rows = self._rows(nodes)
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        out = np.empty((len(self.array), len(nodes), self.array.shape[2]), dtype=self.array.dtype)
        for hop, stored in zip(out, self.array, strict=True):
            hop[order] = stored[rows]
        values = torch.from_numpy(out)
        return values.view(torch.bfloat16) if values.dtype == torch.int16 else values

    def _rows(self, nodes: np.ndarray) -> np.ndarray:
        if self.nodes is None:
            return nodes
        rows = np.minimum(np.searchsorted(self.nodes, nodes), max(0, len(self.nodes) - 1))
        missing = nodes[self.nodes[rows] != nodes] if len(self.nodes) else nodes
        if len(missing):
            raise ValueError(f"hops of node {missing[0]} and {len(missing) - 1} more are not among those stored")
        return rows


class DiskPropagation:
    """Writes hops ``first_hop`` to K of the stored nodes into ``folder/hops.npy``, (K + 1 - first_hop, n, D).

    Without ``folds`` there is one propagation x, Ax, A²x, … per operator A. With them there is one per operator and
    fold, in which source rows of that fold and of fold -1 count as zeros, and only hops of the fold's nodes are kept:
    no node sees the rows of its own fold.

    A killed propagation is resumed by one with the same arguments. ``folder/progress.json`` is its checkpoint, written
    atomically, and only after the data that it refers to is flushed: after each block of columns, and after a hop if
    `SAVE_SECONDS` have passed. A budget that leads to other blocks starts anew. All files but the result are removed.

    Args:
        folder: exists; empty, or with files of a killed propagation.
        operators: each A with the nodes whose hops it yields, bool (N,), or None for all; every stored node is in one.
        source: (N, D), hop 0.
        hops: K.
        dtype: float32, float16 or bfloat16, to which hops are `rounded` when stored.
        folds: int8 (N,), -1 for nodes without a fold; see `fold_label_hops`.
        stored: bool (N,): the n nodes whose hops are stored, in their order; None = all N.
        budget: bytes of memory; ValueError if they do not suffice for one column.
    """

    def __init__(
        self,
        folder: Path,
        operators: Sequence[tuple[StoredOperator, np.ndarray | None]],
        source: Rows,
        hops: int,
        *,
        dtype: torch.dtype,
        budget: int,
        first_hop: int = 0,
        folds: np.ndarray | None = None,
        stored: np.ndarray | None = None,
    ) -> None:
        self.folder, self.source, self.folds, self.stored = folder, source, folds, stored
        present = [-1] if folds is None else np.unique(folds).tolist()
        self.chains = [(operator, nodes, fold) for operator, nodes in operators for fold in present]
        self.first, self.last, self.budget = first_hop, hops, budget
        self.dtype, self.file_type = dtype, np.dtype(FILE_TYPES[dtype])
        self.num_nodes, self.width = source.shape
        self.columns, self.block_bytes = plan_columns(self.num_nodes, self.width, budget)
        self.count = self.num_nodes if stored is None else int(stored.sum())
        self.file, self.shape = folder / "hops.npy", (hops + 1 - first_hop, self.count, self.width)
        starts = range(0, self.width, self.columns)
        self.blocks = [slice(start, min(start + self.columns, self.width)) for start in starts]
        shape = [self.num_nodes, self.width]
        plan = {"columns": self.columns, "hops": [first_hop, hops], "shape": shape, "dtype": str(dtype)}
        self.progress: dict[str, Any] = {"plan": plan, "split": False, "done": [], "state": None, "joined": []}
        file = folder / "progress.json"
        if file.exists() and (progress := read_json(file))["plan"] == plan:
            self.progress = progress
        else:
            for path in folder.iterdir():
                path.unlink()

    def run(self) -> None:
        """Propagate all chains. Raises DiskFullError, before anything is written, if the disk lacks `disk_bytes`."""
        hops, item_bytes = self.shape[0], self.file_type.itemsize
        needed = sum(disk_bytes(self.num_nodes, self.count, self.width, hops, item_bytes, self.budget))
        content = f"propagating hop features ({hops} hops of {self.count:,} nodes with {self.width} columns)"
        require_space(self.folder, needed - sum(map(taken_bytes, self.folder.iterdir())), content)
        if len(self.blocks) > 1:
            self._split()
        else:
            self.out = kept_array(self.file, self.file_type, self.shape)
        buffers = [torch.empty(self.num_nodes, self.columns) for _ in range(min(2, self.last + 1))]
        for block in range(len(self.blocks)):
            for chain in range(len(self.chains)):
                if f"{chain}.{block}" not in self.progress["done"]:
                    self._propagate(chain, block, buffers)
        del buffers
        if len(self.blocks) > 1:
            self._join()
        else:
            self.out.flush()
            del self.out
        for path in self.folder.iterdir():
            if path != self.file:
                path.unlink()

    def _update_progress(self, **changes: object) -> None:
        self.progress.update(changes)
        write_json(self.folder / "progress.json", self.progress)

    # ---- one block of columns, from hop to hop ---------------------------------------------------------------------

    def _propagate(self, chain_index: int, block: int, buffers: list[Tensor]) -> None:
        name, (operator, kept, fold) = f"{chain_index}.{block}", self.chains[chain_index]
        hidden = None
        if self.folds is not None:
            in_fold = self.folds == fold
            hidden, kept = in_fold | (self.folds < 0), in_fold if kept is None else in_fold & kept
        width = self.blocks[block].stop - self.blocks[block].start
        # Flat views, so that a narrower last block is contiguous too.
        current, *other = (array.view(-1)[: self.num_nodes * width].view(self.num_nodes, width) for array in buffers)
        state = self.progress["state"]
        start = state["hop"] if state is not None and state["name"] == name else 0
        if start:
            saved = np.load(self.folder / state["file"], mmap_mode="r")
            for first, end in self._rows(width):
                current[first:end] = torch.from_numpy(np.array(saved[first:end]))
        else:
            self._read(block, hidden, current)
            if self.first == 0:
                self._store(0, block, kept, current)
        saved_at = time.monotonic()
        for hop in range(start + 1, self.last + 1):
            (following,) = other
            operator.multiply(current, following)
            current, other = following, [current]
            if hop >= self.first:
                self._store(hop, block, kept, current)
            if hop < self.last and time.monotonic() - saved_at >= SAVE_SECONDS:
                self._save(name, hop, current)
                saved_at = time.monotonic()
        blocks_done, num_blocks = [*self.progress["done"], name], len(self.chains) * len(self.blocks)
        self._save(name, None, current, done=blocks_done)
        if num_blocks > 1:
            logging.info(f"hop features: {len(blocks_done)} of {num_blocks} blocks, in {self.folder}")

    def _save(self, name: str, hop: int | None, current: Tensor, **changes: object) -> None:
        """Replace the checkpoint by the columns after ``hop``; None removes it, as the block is finished."""
        old, state = self.progress["state"], None
        if hop is not None:
            file = self.folder / f"state-{name}-{hop}.npy"
            array = new_array(file, np.float32, tuple(current.shape))
            array[:] = current.numpy()
            array.flush()
            state = {"name": name, "hop": hop, "file": file.name}
        self._update_progress(state=state, **changes)
        if old is not None:
            (self.folder / old["file"]).unlink(missing_ok=True)

    def _read(self, block: int, hidden: np.ndarray | None, out: Tensor) -> None:
        """Read a block of the source, with zeros in rows of the mask ``hidden``, bool (N,)."""
        columns = np.load(self._split_file(block), mmap_mode="r") if len(self.blocks) > 1 else None
        for first, end in self._rows(out.shape[1]):
            rows = self.source.read(first, end) if columns is None else np.array(columns[first:end])
            out[first:end] = torch.from_numpy(rows)
        if hidden is not None:
            out[torch.from_numpy(hidden)] = 0.0

    def _store(self, hop: int, block: int, kept: np.ndarray | None, current: Tensor) -> None:
        """Store a hop's columns for the ``kept`` nodes, bool (N,); a single block goes directly into the result."""
        if len(self.blocks) == 1:
            target = self.out[hop - self.first]
        else:
            target = kept_array(self._hop_file(hop, block), self.file_type, (self.count, current.shape[1]))
        start = 0
        for first, end in self._rows(current.shape[1]):
            stored = slice(None) if self.stored is None else self.stored[first:end]
            values = file_numbers(rounded(current[first:end], self.dtype))[stored]
            in_chain = slice(None) if kept is None else kept[first:end][stored]
            target[start : start + len(values)][in_chain] = values[in_chain]
            start += len(values)
        target.flush()

    def _rows(self, width: int) -> Iterator[tuple[int, int]]:
        return ranges(self.num_nodes, self.block_bytes // (16 * max(1, width)))

    # ---- before and after ------------------------------------------------------------------------------------------

    def _split(self) -> None:
        """Split the source into one file per block of columns; otherwise every block would read whole rows."""
        if self.progress["split"]:
            return
        files = [
            new_array(self._split_file(block), np.float32, (self.num_nodes, columns.stop - columns.start))
            for block, columns in enumerate(self.blocks)
        ]
        for first, end in self._rows(self.width):
            rows = self.source.read(first, end)
            for file, columns in zip(files, self.blocks, strict=True):
                file[first:end] = rows[:, columns]
        for file in files:
            file.flush()
        self._update_progress(split=True)

    def _join(self) -> None:
        """Join blocks of columns to rows, hop by hop: the file grows while the blocks of finished hops are removed."""
        header = {"descr": self.file_type.str, "fortran_order": False, "shape": self.shape}
        joined = self.progress["joined"]
        hop_bytes = self.file_type.itemsize * self.count * self.width
        # Plain writes take half the time of a memory map.
        with disk_full_errors(self.file), self.file.open("r+b" if joined else "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
            for hop in range(self.first + len(joined), self.last + 1):
                block_files = [self._hop_file(hop, block) for block in range(len(self.blocks))]
                arrays = [np.load(block_file, mmap_mode="r") for block_file in block_files]
                file.seek(start + (hop - self.first) * hop_bytes)
                for first, end in ranges(self.count, self.block_bytes // (4 * self.width)):
                    file.write(np.concatenate([array[first:end] for array in arrays], axis=1).data)
                file.flush()
                os.fsync(file.fileno())
                self._update_progress(joined=[*self.progress["joined"], hop])
                for block_file in block_files:
                    block_file.unlink(missing_ok=True)

    def _split_file(self, block: int) -> Path:
        return self.folder / f"source-{block}.npy"

    def _hop_file(self, hop: int, block: int) -> Path:
        return self.folder / f"hop-{hop}-{block}.npy"


def file_numbers(values: Tensor) -> np.ndarray:
    """Values as a NumPy array of the type in `FILE_TYPES`."""
    return (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()
