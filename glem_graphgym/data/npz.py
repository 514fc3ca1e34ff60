"""Arrays of an .npz file that are too large for memory, streamed to disk."""

from __future__ import annotations

import math
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from glem_graphgym.data.errors import DataError, reading_data
from glem_graphgym.disk import disk_full_errors, require_space
from glem_graphgym.progress import Progress

BLOCK_BYTES = 1 << 22
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NpzMember:
    """One array of an .npz file: its ``dtype``, ``shape``, and whether it is stored by columns (``fortran_order``).

    Raises:
        DataError: the file is damaged or no .npz, or lacks the array; names the file and the arrays in it.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        with self._reading(), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if f"{key}.npy" not in names:
                stored_names = ", ".join(name.removesuffix(".npy") for name in names)
                raise DataError(f"{path} holds no array '{key}', but: {stored_names or 'nothing'}")
            self._info = archive.getinfo(f"{key}.npy")
            with archive.open(self._info) as stream:
                version = np.lib.format.read_magic(stream)
                if version not in HEADERS:
                    raise ValueError(f"'{key}' has version {version} of the .npy format, expected 1.0 or 2.0")
                self.shape, self.fortran_order, self.dtype = HEADERS[version](stream)
                expected = stream.tell() + self.nbytes
            if self.dtype.hasobject or self._info.file_size != expected:
                stored = f"{self._info.file_size} bytes for {self.dtype} {self.shape}"
                raise ValueError(f"{stored}, expected {expected}")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def unpack(self, file: Path) -> np.ndarray:
        """Write the array to ``file`` as .npy, in its stored order, a few MB at a time; returns it memory-mapped.

        Raises:
            DataError: the archive is damaged (its CRC-32 is checked).
            DiskFullError: the disk has no room for the array.
        """
        size, description = self._info.file_size, f"unpacking {self.key}"
        require_space(file.parent, size, description)
        with (
            self._reading(),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self._info) as stream,
            Progress(total=size, desc=description, unit="B", unit_scale=True) as bar,
            disk_full_errors(file, size),
            file.open("wb") as out,
        ):
            while block := stream.read(BLOCK_BYTES):
                out.write(block)
                bar.update(len(block))
        return np.load(file, mmap_mode="r")

    def read(self) -> np.ndarray:
        """The array in memory."""
        with self._reading(), np.load(self.path) as archive:
            return archive[self.key]

    def _reading(self) -> AbstractContextManager[None]:
        return reading_data(f"{self.path} is damaged or no sound .npz file", "unpack or download it anew")
