"""Node features that are computed in blocks of rows, without a float32 copy of the whole matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from glem_graphgym.files import fingerprint

BYTES_AT_ONCE = 16 << 20


class FeatureRows:
    """The GNN's node features: arrays joined by columns, standardised if asked for, read in ranges of rows.

    ``np.asarray`` of it returns all of them, float32 (N, D).

    Args:
        arrays: float (N, d) each, in any precision; may be memory-mapped.
        standardise: scale every column to mean 0 and standard deviation 1 over ``rows`` (input norm).
        rows: int64, increasing; None = all.
        fixed: whether all steps of all runs use the same features, so that results computed from them can be cached.
    """

    def __init__(
        self,
        arrays: Sequence[np.ndarray],
        *,
        standardise: bool = False,
        rows: np.ndarray | None = None,
        fixed: bool = False,
    ) -> None:
        self.arrays, self.fixed, self.rows = list(arrays), fixed, rows
        self.statistics = column_statistics(self.arrays, rows) if standardise else None

    @classmethod
    def wrap(cls, features: Any) -> FeatureRows:
        """``features`` as they are, or a float array (N, D) wrapped as `FeatureRows`."""
        return features if isinstance(features, FeatureRows) else cls([features])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.arrays[0]), sum(array.shape[1] for array in self.arrays)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def read(self, first: int, end: int) -> np.ndarray:
        """Rows ``first`` to ``end`` - 1, float32 (end - first, D)."""
        return self._normed(_joined(self.arrays, first, end))

    def take(self, nodes: np.ndarray) -> np.ndarray:
        """Rows of ``nodes``, int64 (n,) in any order: float32 (n, D)."""
        order = np.argsort(nodes, kind="stable")  # read in stored order, which saves seeks on a hard disk
        sorted_nodes = nodes[order]
        x = np.empty((len(nodes), self.shape[1]), dtype=np.float32)
        first = 0
        for array in self.arrays:
            end = first + array.shape[1]
            x[order, first:end] = array[sorted_nodes]
            first = end
        return self._normed(x)

    def _normed(self, x: np.ndarray) -> np.ndarray:
        if self.statistics is None:
            return x
        mean, deviation = self.statistics
        return (x - mean) / deviation

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out = np.empty(self.shape, dtype=np.float32)
        for first, end in _blocks(*self.shape):
            out[first:end] = self.read(first, end)
        return out if dtype is None else out.astype(dtype, copy=False)

    def key(self) -> str:
        """Fingerprint of the content, for which all of it is read once."""
        standardised = self.statistics is not None
        return fingerprint(*self.arrays, standardised, self.rows if standardised else None)


def column_statistics(arrays: Sequence[np.ndarray], rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (1 if constant) of each column over ``rows`` (None = all), float32 (D,) each.

    One pass in float64. Blocks are merged by the formula of Chan et al. (1979), which avoids cancellation.
    """
    width = sum(array.shape[1] for array in arrays)
    count, mean, squares = 0, np.zeros(width), np.zeros(width)
    for first, end in _blocks(len(arrays[0]), width):
        x = _joined(arrays, first, end).astype(np.float64)
        if rows is not None:
            start, stop = np.searchsorted(rows, [first, end])
            x = x[rows[start:stop] - first]
        if not len(x):
            continue
        block_mean = x.mean(0)
        difference, total = block_mean - mean, count + len(x)
        squares += ((x - block_mean) ** 2).sum(0) + difference**2 * (count * len(x) / total)
        mean += difference * (len(x) / total)
        count = total
    deviation = np.sqrt(squares / max(1, count)).astype(np.float32)
    deviation[deviation < 1e-6] = 1.0
    return mean.astype(np.float32), deviation


def _joined(arrays: Sequence[np.ndarray], first: int, end: int) -> np.ndarray:
    return np.concatenate([np.asarray(array[first:end], dtype=np.float32) for array in arrays], axis=1)


def _blocks(count: int, width: int) -> Iterator[tuple[int, int]]:
    return ranges(count, BYTES_AT_ONCE // (4 * max(1, width)))


def ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    """(first, end) of successive blocks of ``step`` rows, at least one, of ``count``."""
    step = max(1, step)
    return ((first, min(first + step, count)) for first in range(0, count, step))
