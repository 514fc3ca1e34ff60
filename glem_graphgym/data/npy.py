"""Writes NumPy's .npy files block by block, for arrays that are never in memory as a whole."""

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
