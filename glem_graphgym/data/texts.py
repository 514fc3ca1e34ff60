"""N texts in one buffer of bytes: read in place, or written to disk as they arrive."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glem_graphgym.data.errors import DataError
from glem_graphgym.disk import NpyWriter, disk_full_errors
from glem_graphgym.files import fingerprint

TEXTS_AT_ONCE = 1 << 14  # texts that are encoded and written together
OFFSETS_AT_ONCE = 1 << 20
SHARDS = 200  # most shards that texts are distributed to while they arrive, two files each
CHECKED_TEXTS = 1000  # at least this many texts, or all, are read again after they have been written


class Texts(Sequence[str]):
    """Read-only sequence of N texts over one UTF-8 buffer; equal to any other sequence of the same strings."""

    def __init__(self, buffer: np.ndarray, offsets: np.ndarray) -> None:
        # Plain array views, also of memory-mapped files: slicing np.memmap itself is slow.
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

    @classmethod
    def load(cls, folder: Path, stem: str = "text") -> Texts:
        """The texts that a `TextsWriter` wrote, memory-mapped."""
        return cls(*(np.load(folder / f"{stem}{end}.npy", mmap_mode="r") for end in ("", "_offsets")))

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
        return sum(int((np.diff(self.offsets[start : start + OFFSETS_AT_ONCE + 1]) == 0).sum()) for start in starts)

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

    def set_fingerprint(self, value: str) -> None:
        """Set the fingerprint to ``value``, which was recorded when these texts were written."""
        self._fingerprint = value


class TextsWriter:
    """Writes texts to ``<folder>/<stem>.npy`` (uint8) and ``<folder>/<stem>_offsets.npy`` (int64 (N+1,)).

    Use it in a ``with`` block: the files are complete when it ends, and do not exist if it ends in an error. Texts may
    arrive in any order: they are distributed to temporary files, each for a range of rows, and sorted at the end. A row
    without a text gets an empty one; of several texts for a row, the first is kept. Some texts are read again at the
    end. Memory: one byte per text, some MB, and 1% of the texts.

    Args:
        folder: an existing folder.
        num_texts: N.
        stem: "text" for a graph's texts, "node_id" for its node ids.

    Attributes:
        written: bool (N,), the rows that a text was written to.
        repeated: number of texts that were dropped because their row already had one.

    Raises:
        ValueError: a row is outside of 0..N-1.
        DataError: a text that is read again differs from what was written.
    """

    def __init__(self, folder: Path, num_texts: int, stem: str = "text") -> None:
        self.folder, self.num_texts, self.stem = folder, num_texts, stem
        self.written = np.zeros(num_texts, dtype=bool)
        self.repeated = 0
        self._remembered: dict[int, bytes] = {}
        self._rows_per_shard = max(-(-num_texts // SHARDS), TEXTS_AT_ONCE)
        self._temporary = folder / f".{stem}"
        shutil.rmtree(self._temporary, ignore_errors=True)  # left by a killed process
        self._temporary.mkdir()

    def put(self, rows: Iterable[tuple[int, str]]) -> None:
        """Write pairs (row, text), in any order."""
        rows = iter(rows)
        while block := list(itertools.islice(rows, TEXTS_AT_ONCE)):
            self._write(np.array([row for row, _ in block], dtype=np.int64), [text for _, text in block])

    def _write(self, rows: np.ndarray, texts: list[str]) -> None:
        if rows.min() < 0 or rows.max() >= self.num_texts:
            raise ValueError(
                f"{self.stem}: texts of rows {rows.min()} to {rows.max()}, expected 0 to {self.num_texts - 1}"
            )
        new = np.unique(rows, return_index=True)[1]
        new = np.sort(new[~self.written[rows[new]]])
        self.repeated += len(rows) - len(new)
        self.written[rows[new]] = True
        shards = rows[new] // self._rows_per_shard
        for shard in np.unique(shards):
            chosen = new[shards == shard]
            encoded = [texts[index].encode("utf-8", "replace") for index in chosen]
            numbers = np.stack([rows[chosen], [len(text) for text in encoded]], axis=1)
            for kind, content in (("texts", b"".join(encoded)), ("rows", numbers.tobytes())):
                file = self._temporary / f"{shard}.{kind}"
                with disk_full_errors(file), file.open("ab") as opened:
                    opened.write(content)
            checked = zip(rows[chosen].tolist(), encoded, strict=True)
            self._remembered |= {
                row: text for row, text in checked if row % max(self.num_texts // CHECKED_TEXTS, 1) == 0
            }

    def missing(self) -> np.ndarray:
        """Rows without a text or with an empty one, int64; only for finished texts."""
        return np.flatnonzero(np.diff(Texts.load(self.folder, self.stem).offsets) == 0)

    def __enter__(self) -> TextsWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                names = f"{self.stem}.npy", f"{self.stem}_offsets.npy"
                buffer, offsets = (self._temporary / name for name in names)
                with NpyWriter(buffer, np.uint8) as texts, NpyWriter(offsets, np.int64) as ends:
                    ends.write(np.zeros(1, dtype=np.int64))
                    for start in range(0, self.num_texts, self._rows_per_shard):
                        self._write_shard(start, texts, ends)
                self._check(Texts.load(self._temporary, self.stem))
                for file in (buffer, offsets):
                    file.replace(self.folder / file.name)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _write_shard(self, start: int, texts: NpyWriter, ends: NpyWriter) -> None:
        """Append the texts of the shard that begins at row ``start``, in order of rows, and their end offsets."""
        lengths = np.zeros(min(self._rows_per_shard, self.num_texts - start), dtype=np.int64)
        files = [self._temporary / f"{start // self._rows_per_shard}.{kind}" for kind in ("texts", "rows")]
        first_byte = texts.length
        if files[0].exists():
            rows, sizes = np.fromfile(files[1], dtype=np.int64).reshape(-1, 2).T
            lengths[rows - start] = sizes
            content, begins, order = memoryview(files[0].read_bytes()), np.cumsum(sizes) - sizes, np.argsort(rows)
            for chosen in np.array_split(order, -(-len(order) // TEXTS_AT_ONCE)):
                spans = zip(begins[chosen].tolist(), sizes[chosen].tolist(), strict=True)
                block = b"".join([content[begin : begin + size] for begin, size in spans])
                texts.write(np.frombuffer(block, dtype=np.uint8))
            for file in files:
                file.unlink()
        ends.write(first_byte + np.cumsum(lengths))

    def _check(self, texts: Texts) -> None:
        buffer, offsets = texts.buffer, texts.offsets
        remembered = self._remembered.items()
        if wrong := [row for row, text in remembered if buffer[offsets[row] : offsets[row + 1]].tobytes() != text]:
            raise DataError(
                f"{self.folder}: text {wrong[0]} is not what was written, nor are {len(wrong) - 1} more of "
                f"{len(self._remembered)}; check the disk"
            )
