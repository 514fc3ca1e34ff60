"""Arrays of an .npz file that are too large for memory: mapped where they lie, or streamed to the disk."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Literal

import numpy as np

from glem_graphgym.data.errors import DataError
from glem_graphgym.disk import DiskFullError, disk_full_errors, require_space
from glem_graphgym.progress import Progress

BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, ValueError, NotImplementedError)
BLOCK_BYTES = 1 << 22
LOCAL_HEADER_BYTES = 30  # PKWARE's APPNOTE.TXT, 4.3.7: the fixed part; the lengths of name and extra end it


class NpzMember:
    """One array of an .npz file.

    Attributes:
        dtype, shape: of the array.
        fortran_order: whether it lies column by column.
        stored: whether it lies in the file as it is, so that it can be memory-mapped there; deflated otherwise.

    Raises:
        DataError: the file is damaged or no .npz, or has no such array; names it and what there is.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if f"{key}.npy" not in names:
                    found = ", ".join(name.removesuffix(".npy") for name in names)
                    raise DataError(f"{path} holds no array '{key}', but: {found or 'nothing'}")
                self._info = archive.getinfo(f"{key}.npy")
                with archive.open(self._info) as stream:
                    self._read_header(stream)
        except DataError:
            raise
        except BROKEN as error:
            raise self._damaged(error) from error
        expected = self._header_bytes + self.nbytes
        if self.dtype.hasobject or self._info.file_size != expected:
            raise self._damaged(f"{self._info.file_size} bytes for {self.dtype} {self.shape}, expected {expected}")

    def _read_header(self, stream: IO[bytes]) -> None:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"'{self.key}' has version {version} of the .npy format, expected 1.0 or 2.0")
        self.shape, self.fortran_order, self.dtype = read[version](stream)
        self._header_bytes = stream.tell()

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stored(self) -> bool:
        return self._info.compress_type == zipfile.ZIP_STORED

    def copy(self, file: Path) -> None:
        """Write the array to ``file`` as .npy, in its order, a few MB at a time, and check it against its CRC-32.

        Raises:
            DataError: the archive is damaged.
            DiskFullError: there is no room for the array; asked before anything is written.
        """
        require_space(file.parent, self._info.file_size, f"unpacking {self.key}")
        with disk_full_errors(file, self._info.file_size), file.open("wb") as out:
            self._stream(out, f"unpacking {self.key}")

    def map(self, folder: Path) -> np.ndarray:
        """The array, memory-mapped: in the .npz itself where it is stored, else unpacked to ``<folder>/<key>.npy``.

        It is read once as a whole, to check it against its CRC-32.
        """
        if not self.stored:
            file = folder / f"{self.key}.npy"
            self.copy(file)
            return np.load(file, mmap_mode="r")
        self._stream(None, f"checking {self.key}")
        order: Literal["F", "C"] = "F" if self.fortran_order else "C"
        return np.memmap(self.path, self.dtype, "r", self._offset(), self.shape, order)

    def read(self) -> np.ndarray:
        """The array in memory."""
        try:
            with np.load(self.path) as archive:
                return archive[self.key]
        except BROKEN as error:
            raise self._damaged(error) from error

    def _stream(self, out: IO[bytes] | None, what: str) -> None:
        total = self._info.file_size
        try:
            with (
                zipfile.ZipFile(self.path) as archive,
                archive.open(self._info) as stream,
                Progress(total=total, desc=what, unit="B", unit_scale=True) as bar,
            ):
                while block := stream.read(BLOCK_BYTES):
                    if out is not None:
                        with disk_full_errors(Path(out.name), total):
                            out.write(block)
                    bar.update(len(block))
        except DiskFullError:
            raise
        except BROKEN as error:
            raise self._damaged(error) from error

    def _offset(self) -> int:
        """Where the array's bytes begin in the file: its local header may differ from the one in the directory."""
        with self.path.open("rb") as file:
            file.seek(self._info.header_offset)
            header = file.read(LOCAL_HEADER_BYTES)
        name, extra = (int.from_bytes(header[start : start + 2], "little") for start in (26, 28))
        return self._info.header_offset + LOCAL_HEADER_BYTES + name + extra + self._header_bytes

    def _damaged(self, reason: object) -> DataError:
        return DataError(f"{self.path} is damaged or no sound .npz file ({reason}); unpack or download it anew")
