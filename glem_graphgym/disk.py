"""Disk space: allocated before a file is memory-mapped, and one error for a full disk; .npy files written in blocks.

A memory-mapped sparse file is allocated while it is written, and a full disk then kills the process by SIGBUS, which
cannot be caught. Imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

REMEDY = (
    "make room there, or take another disk (out_dir, dataset.dir), and type the same command again: "
    "what is finished is kept"
)
# Errors of the operating system for a file that cannot grow.
FULL_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the file system or this shell's limit (ulimit -f) allows",
}
# The same in the error messages of NumPy, torch and safetensors.
RUST_ERROR = re.compile(r"\(os error (\d+)\)")
SHORT_WRITE = re.compile(r"\d+ requested and \d+ written|unexpected pos \d+ vs \d+")
UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
ROWS_AT_ONCE = 1 << 18
UNITS = ("bytes", "kB", "MB", "GB", "TB")


class DiskFullError(OSError):
    """There is no room for a file; the message names the file, the space needed, the space free and what to do."""


def require_space(folder: Path, needed: int, content: str) -> None:
    """Raise `DiskFullError` unless the ``needed`` bytes of ``content`` are free on the disk of ``folder``."""
    free = free_bytes(folder)
    if free < needed:
        raise DiskFullError(
            f"{folder}: {content} takes {size_text(needed)} of disk, {size_text(free)} are free; {REMEDY}"
        )


@contextlib.contextmanager
def disk_full_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """A block that writes to ``path``, a file or folder; errors of a full disk become `DiskFullError`.

    The message has the path and, if known, the ``needed`` bytes of the innermost such block.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if (reason := _why_full(error)) is None:
            raise
        takes = "" if needed is None else f"it takes {size_text(needed)}, "
        free = size_text(free_bytes(path))
        raise DiskFullError(f"{path}: {reason}; {takes}{free} are free; {REMEDY}") from error


def _why_full(error: Exception) -> str | None:
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := RUST_ERROR.search(str(error))):
        number = int(match[1])
    if number is None and SHORT_WRITE.search(str(error)):
        return f"it could not be written in full ({error})"
    return FULL_REASONS.get(number) if number is not None else None


def new_array(file: Path, dtype: Any, shape: tuple[int, ...], rows: np.ndarray | None = None) -> np.memmap:
    """Create an .npy file of zeros, memory-mapped for reading and writing, with its disk space allocated.

    Replaces an existing file; processes that have mapped it keep the old content.

    Args:
        rows: int64, increasing: allocate only these rows, which alone will be written. None = all.

    Raises:
        DiskFullError: there is no room for the file; it is removed.
    """
    file.unlink(missing_ok=True)
    try:
        with disk_full_errors(file, np.dtype(dtype).itemsize * math.prod(shape)):
            array = np.lib.format.open_memmap(file, "w+", dtype, shape)
        _allocate(file, array, rows)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return array


def kept_array(file: Path, dtype: Any, shape: tuple[int, ...], rows: np.ndarray | None = None) -> np.memmap:
    """Like `new_array`, but keeps what a killed process wrote into ``file``, if shape and dtype are the same."""
    if file.exists():
        try:
            array = np.lib.format.open_memmap(file, "r+")
        except ValueError:  # truncated header
            pass
        else:
            if array.shape == shape and array.dtype == dtype:
                if taken_bytes(file) < array.offset + array.nbytes:  # killed before all space was allocated
                    _allocate(file, array, rows)
                return array
    return new_array(file, dtype, shape, rows)


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


def _allocate(file: Path, array: np.memmap, rows: np.ndarray | None) -> None:
    """Allocate disk space for the array (or its ``rows``); its content stays."""
    needed = sum(end - start for start, end in _ranges(array, rows))
    with disk_full_errors(file, needed), file.open("r+b") as opened:
        # Checked first: an allocation that fails halfway would fill the disk for other processes meanwhile.
        require_space(file, needed - taken_bytes(file), "the array")
        for start, end in _ranges(array, rows):
            try:
                os.posix_fallocate(opened.fileno(), start, end - start)  # keeps the content
            except AttributeError:  # not on macOS: space is allocated on writing
                return
            except OSError as error:
                if error.errno not in UNSUPPORTED:  # nor on some file systems
                    raise


def _ranges(array: np.memmap, rows: np.ndarray | None) -> Iterator[tuple[int, int]]:
    """Byte ranges (start, end) of the file: the whole, or the pages that contain ``rows``."""
    size = array.offset + array.nbytes
    if rows is None:
        yield 0, size
        return
    row_bytes = array.nbytes // max(len(array), 1)
    for chunk_start in range(0, len(rows), ROWS_AT_ONCE):
        start = array.offset + rows[chunk_start : chunk_start + ROWS_AT_ONCE] * row_bytes
        first, last = start // mmap.PAGESIZE, (start + row_bytes - 1) // mmap.PAGESIZE
        # Rows whose pages do not adjoin those before.
        range_starts = np.flatnonzero(first[1:] > last[:-1] + 1) + 1
        for begin, end in zip([0, *range_starts], [*range_starts - 1, len(first) - 1], strict=True):
            yield int(first[begin]) * mmap.PAGESIZE, min((int(last[end]) + 1) * mmap.PAGESIZE, size)


def taken_bytes(file: Path) -> int:
    return 512 * file.stat().st_blocks


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of a file or folder, which need not exist yet."""
    return shutil.disk_usage(nearest_existing_parent(path)).free


def nearest_existing_parent(path: Path) -> Path:
    """The path itself, or its nearest parent folder that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def size_text(size: float) -> str:
    """A size as ``1.5 GB``; units are powers of 1024, as in configuration keys."""
    power = min(max(0, math.floor(size).bit_length() - 1) // 10, len(UNITS) - 1)
    amount = size / 1024**power
    return f"{amount:,.0f} {UNITS[power]}" if power == 0 or amount >= 100 else f"{amount:.1f} {UNITS[power]}"
