"""Writers of NumPy's .npy files block by block, for arrays that are never in memory as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from glem_graphgym.disk import disk_full_errors


class NpyWriter:
    """Appends to a one-dimensional array in an .npy file; use it in a ``with`` block, which removes the file on error.

    The length is written into the header at the end (NumPy leaves room for it). Values are cast to ``dtype``.

    Raises:
        DiskFullError: the disk is full; names the file.
    """

    def __init__(self, path: Path, dtype: Any) -> None:
        self.path, self.dtype, self.length = path, np.dtype(dtype), 0
        self._file = path.open("wb")
        self._write_header()

    def write(self, block: np.ndarray) -> None:
        """Append a one-dimensional block."""
        block = np.ascontiguousarray(block, dtype=self.dtype)
        with disk_full_errors(self.path):
            self._file.write(block.data)
        self.length += len(block)

    def _write_header(self) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        complete = False
        try:
            with disk_full_errors(self.path), self._file:
                if kind is None:
                    self._file.seek(0)
                    self._write_header()
                    complete = True
        finally:
            if not complete:
                self.path.unlink(missing_ok=True)


class PointerWriter:
    """Writes CSR row pointers, int64 (N+1,), while the rows' items arrive in order, ``at_once`` pointers at a time."""

    def __init__(self, path: Path, num_rows: int, at_once: int) -> None:
        self.num_rows, self.at_once = num_rows, at_once
        self._file = NpyWriter(path, np.int64)
        self._items = 0  # added so far

    def add(self, rows: np.ndarray) -> None:
        """Count one item for each of ``rows``, int64 (n,), which must not decrease within or across calls."""
        if len(rows):
            self._write_up_to(int(rows[-1]) + 1, rows)
            self._items += len(rows)

    def _write_up_to(self, stop: int, rows: np.ndarray) -> None:
        for start in range(self._file.length, stop, self.at_once):
            self._file.write(self._items + np.searchsorted(rows, np.arange(start, min(start + self.at_once, stop))))

    def __enter__(self) -> PointerWriter:
        return self

    def __exit__(self, kind: Any, *details: Any) -> None:
        if kind is None:
            self._write_up_to(self.num_rows + 1, np.empty(0, dtype=np.int64))
        self._file.__exit__(kind, *details)
