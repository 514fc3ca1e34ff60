"""N texts over one buffer of bytes: read where they lie, or written to disk one after the other."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glem_graphgym.data.csr import bounded_cuts
from glem_graphgym.data.errors import DataError
from glem_graphgym.data.npy import NpyWriter, PointerWriter
from glem_graphgym.files import fingerprint

TEXTS_AT_ONCE = 1 << 14  # texts that are encoded and written together
OFFSETS_AT_ONCE = 1 << 20
ROWS_AT_ONCE = 1 << 18  # rows and lengths that are handled together
PARTS = 200  # most files that texts are dealt out to; each is open three times
SORT_BYTES = 1 << 27  # bytes of text that are put into order at a time
CHECKED_TEXTS = 1000  # texts that are read again after they have been written


class Texts(Sequence[str]):
    """Read-only sequence of N texts over one UTF-8 buffer; equal to any other sequence of the same strings."""

    def __init__(self, buffer: np.ndarray, offsets: np.ndarray) -> None:
        # Plain views of what may be memory-mapped: slices of np.memmap itself are slow to make.
        self.buffer = np.asarray(buffer)  # uint8 (bytes,)
        self.offsets = np.asarray(offsets)  # int64 (N+1,)
        self._fingerprint: str | None = None

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        if isinstance(texts, Texts):
            return texts
        encoded = [text.encode("utf-8", "replace") for text in texts]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._block(start, max(start, stop)) if step == 1 else [self[i] for i in range(start, stop, step)]
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        index = int(index) % len(self)
        return self.buffer[self.offsets[index] : self.offsets[index + 1]].tobytes().decode("utf-8")

    def _block(self, start: int, stop: int) -> list[str]:
        ends = (self.offsets[start : stop + 1] - self.offsets[start]).tolist()
        data = self.buffer[self.offsets[start] : self.offsets[stop]].tobytes()
        return [data[begin:end].decode("utf-8") for begin, end in itertools.pairwise(ends)]

    def num_empty(self) -> int:
        starts = range(0, len(self), OFFSETS_AT_ONCE)
        return sum(int((np.diff(self.offsets[at : at + OFFSETS_AT_ONCE + 1]) == 0).sum()) for at in starts)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), TEXTS_AT_ONCE):
            yield from self._block(start, min(start + TEXTS_AT_ONCE, len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.offsets, self.buffer)
        return self._fingerprint

    def has_fingerprint(self, known: str) -> None:
        """Take ``known``, which was recorded when these texts were written, for their fingerprint."""
        self._fingerprint = known


class TextsWriter:
    """Writes N texts to ``<folder>/<stem>.npy`` (uint8) and ``<folder>/<stem>_offsets.npy`` (int64 (N+1,)).

    Used in a ``with`` block: the files are whole when it ends, and do not exist if it ends in an error. A row without a
    text has an empty one; of several texts of a row the first stays. Texts in the order of their rows are written once,
    others are sorted at the end, in two more passes. Memory: one byte per text and some MB; out of order, some hundreds
    of MB or 1% of the texts. Some texts are read again at the end.

    Args:
        folder: an existing folder.
        num_texts: N.
        stem: ``"text"`` for a graph's texts, ``"node_id"`` for its node ids.

    Attributes:
        given: bool (N,), which rows have got a text.
        repeated: number of texts that came for a row that had one already.

    Raises:
        ValueError: a row is outside of 0..N-1.
        DataError: what is read again is not what was written.
    """

    def __init__(self, folder: Path, num_texts: int, stem: str = "text") -> None:
        self.folder, self.num_texts, self.stem = folder, num_texts, stem
        self.given = np.zeros(num_texts, dtype=bool)
        self.repeated = 0
        self._next = 0  # the row of the next text that is appended
        self._last, self._ordered = -1, True
        self._remembered: dict[int, bytes] = {}
        self._temporary = folder / f".{stem}"
        shutil.rmtree(self._temporary, ignore_errors=True)  # of a process that was killed
        self._temporary.mkdir()
        self._log = _TextLog(self._temporary / "written")

    def extend(self, texts: Iterable[str]) -> None:
        """Write the texts of the next rows: from row 0 at first, then from the one after the last that was written."""
        texts = iter(texts)
        while block := list(itertools.islice(texts, TEXTS_AT_ONCE)):
            self._write(np.arange(self._next, self._next + len(block)), block)

    def put(self, rows: Iterable[tuple[int, str]]) -> None:
        """Write (row, text), which may come in any order."""
        rows = iter(rows)
        while block := list(itertools.islice(rows, TEXTS_AT_ONCE)):
            self._write(np.array([row for row, _ in block], dtype=np.int64), [text for _, text in block])

    def _write(self, rows: np.ndarray, texts: Sequence[str]) -> None:
        if rows.min() < 0 or rows.max() >= self.num_texts:
            raise ValueError(
                f"{self.stem}: texts of rows {rows.min()} to {rows.max()}, expected 0 to {self.num_texts - 1}"
            )
        self._next = int(rows[-1]) + 1
        new = np.zeros(len(rows), dtype=bool)
        new[np.unique(rows, return_index=True)[1]] = True
        new &= ~self.given[rows]
        self.repeated += len(rows) - int(new.sum())
        rows, kept = rows[new], [text.encode("utf-8", "replace") for text, keep in zip(texts, new, strict=True) if keep]
        if kept:
            self._ordered = self._ordered and self._last < int(rows[0]) and bool((np.diff(rows) > 0).all())
            self._last = int(rows[-1])
            self.given[rows] = True
            chosen = np.flatnonzero(rows % max(self.num_texts // CHECKED_TEXTS, 1) == 0)
            self._remembered |= {int(rows[index]): kept[index] for index in chosen}
            self._log.write(rows, kept)

    def read(self) -> Texts:
        """The finished texts, memory-mapped."""
        files = (self.folder / f"{self.stem}.npy", self.folder / f"{self.stem}_offsets.npy")
        return Texts(*(np.load(file, mmap_mode="r") for file in files))

    def missing(self) -> np.ndarray:
        """int64: the rows without a text, once the texts are finished."""
        return np.flatnonzero(np.diff(self.read().offsets) == 0)

    def __enter__(self) -> TextsWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            self._log.__exit__(kind)
            if kind is None:
                log = self._log if self._ordered else _in_order_of_rows(self._log, self.num_texts, self._temporary)
                offsets = self._temporary / "offsets.npy"
                _write_offsets(log, self.num_texts, offsets)
                log.buffer.path.replace(self.folder / f"{self.stem}.npy")
                offsets.replace(self.folder / f"{self.stem}_offsets.npy")
                self._check()
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _check(self) -> None:
        buffer, offsets = self.read().buffer, self.read().offsets
        written = {row: buffer[offsets[row] : offsets[row + 1]].tobytes() for row in self._remembered}
        wrong = [row for row, text in self._remembered.items() if written[row] != text]
        if wrong:
            raise DataError(
                f"{self.folder}: text {wrong[0]} is not what was written, nor are {len(wrong) - 1} more of "
                f"{len(self._remembered)}; check the disk"
            )


class _TextLog:
    """Texts in the order in which they came: bytes, rows and lengths."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.buffer = NpyWriter(folder / "buffer.npy", np.uint8)
        self.rows = NpyWriter(folder / "rows.npy", np.int64)
        self.lengths = NpyWriter(folder / "lengths.npy", np.int64)

    def write(self, rows: np.ndarray, texts: Sequence[bytes | memoryview]) -> None:
        self.buffer.write(np.frombuffer(b"".join(texts), dtype=np.uint8))
        self.rows.write(rows)
        self.lengths.write(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))

    def __enter__(self) -> _TextLog:
        return self

    def __exit__(self, *error: Any) -> None:
        for writer in (self.buffer, self.rows, self.lengths):
            writer.__exit__(*error)

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and lengths, int64, of texts that follow each other."""
        rows, lengths = (np.load(writer.path, mmap_mode="r") for writer in (self.rows, self.lengths))
        for start in range(0, len(rows), ROWS_AT_ONCE):
            yield np.array(rows[start : start + ROWS_AT_ONCE]), np.array(lengths[start : start + ROWS_AT_ONCE])

    def texts(self) -> Iterator[tuple[np.ndarray, list[memoryview]]]:
        """Rows and bytes of texts that follow each other, about SORT_BYTES at a time."""
        buffer, begin = np.asarray(np.load(self.buffer.path, mmap_mode="r")), 0
        for rows, lengths in self.blocks():
            ends = np.cumsum(lengths)
            cuts = bounded_cuts(lengths, SORT_BYTES)
            for first, last in itertools.pairwise(cuts):
                stops = (ends[first:last] - (ends[first] - lengths[first])).tolist()
                data = memoryview(buffer[begin : begin + stops[-1]].tobytes())
                yield rows[first:last], [data[a:b] for a, b in itertools.pairwise([0, *stops])]
                begin += stops[-1]


def _in_order_of_rows(log: _TextLog, num_texts: int, folder: Path) -> _TextLog:
    """The same texts with increasing rows: dealt out to files of neighbouring rows, then each file put into order."""
    bins = min(num_texts, 1 << 16)
    sizes = np.zeros(bins, dtype=np.int64)
    for rows, lengths in log.blocks():
        np.add.at(sizes, rows * bins // num_texts, lengths + 16)
    cuts = bounded_cuts(sizes, max(SORT_BYTES, 2 * int(sizes.sum()) // PARTS))
    first_bins = np.array(cuts[:-1])
    parts = [_TextLog(folder / f"part-{index}") for index in range(len(first_bins))]
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.enter_context(part)
        for rows, texts in log.texts():
            part_of = np.searchsorted(first_bins, rows * bins // num_texts, side="right") - 1
            for index in np.unique(part_of):
                chosen = np.flatnonzero(part_of == index)
                parts[index].write(rows[chosen], [texts[i] for i in chosen])
    log.remove()
    with _TextLog(folder / "ordered") as ordered:
        for part in parts:
            pieces = list(part.texts())
            rows = np.concatenate([piece for piece, _ in pieces]) if pieces else np.empty(0, dtype=np.int64)
            texts = [text for _, piece in pieces for text in piece]
            order = np.argsort(rows)
            for start in range(0, len(order), TEXTS_AT_ONCE):
                chosen = order[start : start + TEXTS_AT_ONCE]
                ordered.write(rows[chosen], [texts[i] for i in chosen])
            part.remove()
    return ordered


def _write_offsets(log: _TextLog, num_texts: int, path: Path) -> None:
    with PointerWriter(path, num_texts) as offsets:
        for rows, lengths in log.blocks():
            offsets.add(rows, lengths)
