"""Raw texts as published: rows are streamed out of packed files, and faulty rows are counted."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import logging
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from glem_graphgym.data.errors import DataError, listed, reading_data
from glem_graphgym.progress import Progress

PYG_TEXT = "node-text.csv.gz"  # as PyG's TAGDataset publishes it, for ogbn-arxiv and ogbn-products
LINES_AT_ONCE = 1 << 14  # between two updates of the progress bar
LONGEST_CELL = 1 << 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextFile:
    """A file of texts, plain, gzipped, or inside a zip archive that is not unpacked."""

    path: Path
    remedy: str  # what to do when it is damaged
    member: str = ""  # name of the file inside the archive

    def __str__(self) -> str:
        return f"{self.path}, {self.member}" if self.member else str(self.path)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines with their line ends, showing progress; raises DataError if the file is damaged."""
        name = f"reading {self.member or self.path.name}"
        with (
            reading_data(f"{self} is damaged or not what its name says", self.remedy),
            self._open() as (disk, begin, size, stream),
            Progress(total=size, desc=name, unit="B", unit_scale=True) as bar,
        ):
            while lines := list(islice(stream, LINES_AT_ONCE)):
                yield from lines
                bar.update(max(disk.tell() - begin - bar.n, 0))

    def size(self) -> int:
        """Bytes of the texts; of a gzipped file, which does not state them, the compressed bytes."""
        if not self.member:
            return self.path.stat().st_size
        with zipfile.ZipFile(self.path) as archive:
            return archive.getinfo(self.member).file_size

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], int, int, Iterable[bytes]]]:
        """The file on disk, start and size of the part of it that is read, and the stream of lines."""
        with self.path.open("rb") as disk:
            if self.member:
                with zipfile.ZipFile(disk) as archive, archive.open(self.member) as member:
                    info = archive.getinfo(self.member)
                    # zipfile's own reader splits lines in Python, which is slower.
                    yield disk, info.header_offset, info.compress_size, io.BufferedReader(member, 1 << 20)  # type: ignore[type-var]
            elif self.path.suffix == ".gz":
                with gzip.open(disk) as lines:
                    yield disk, 0, self.size(), lines
            else:
                yield disk, 0, self.size(), disk


def find(folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    """The first of these files that exists, or None; all names are tried in one folder before the next folder."""
    names = list(names)
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def decoded(raw: bytes, counts: dict[str, int]) -> str:
    """Decode a row; U+FFFD replaces bytes that are not UTF-8, and ``rows_not_utf8`` in ``counts`` counts such rows."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        counts["rows_not_utf8"] += 1
        return raw.decode("utf-8", "replace")


def sentence(**fields: str) -> str:
    """The text of a node: ``Title: …. Abstract: …``, without the parts that are empty."""
    stripped = {name: field.strip() for name, field in fields.items()}
    return ". ".join(f"{name}: {field}" for name, field in stripped.items() if field)


def node_texts(path: Path, counts: dict[str, int], total: int, nodes: str) -> Iterator[str]:
    """Yield column ``text`` of a ``node-text.csv.gz``, which has a row per node, ``total`` in all; raises DataError."""
    remedy = "download it again"
    miscounted = f"rows for {total} {nodes}, expected one for each, in order"
    lines = (
        line.decode("utf-8", "surrogateescape").replace("\0", "")
        for line in TextFile(path, remedy).lines()  # quoted cells may span several lines
    )
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        rows = csv.reader(lines, strict=True)
        header = next(rows, [])
        if "text" not in header:
            raise DataError(f"{path} has the columns {header}, expected one that is called 'text'; {remedy}")
        column = header.index("text")
        for row in rows:
            counts["text_rows"] += 1
            if counts["text_rows"] > total:
                raise DataError(f"{path} has more than {total} {miscounted}")
            if len(row) > len(header):
                raise DataError(f"{path}: row {counts['text_rows']} has {len(row)} columns, expected {len(header)}")
            cell = row[column] if len(row) > column else ""
            yield decoded(cell.encode("utf-8", "surrogateescape"), counts).strip()
        if counts["text_rows"] < total:
            raise DataError(f"{path} has {counts['text_rows']} {miscounted}")
    except csv.Error as error:
        raise DataError(f"{path}: row {counts['text_rows'] + 1} is no CSV ({error}); {remedy}") from error
    finally:
        csv.field_size_limit(limit)


def report(
    source: object, nodes: str, counts: dict[str, int], missing: np.ndarray, names: Sequence[object], expected: str
) -> None:
    """Log which nodes have no text (``missing``, int (m,)), and how many rows of ``source`` are not UTF-8.

    Args:
        nodes: plural of what a node is, e.g. "papers".
        counts: ``text_rows``, ``rows_not_utf8`` and, if any, ``skipped_rows``.
        names: names of all nodes.
        expected: content of the right file, and where to get it; for the error.

    Raises:
        DataError: more than half of the nodes have no text: it is another file, or a part of one.
    """
    total, listed_nodes = len(names), listed([names[node] for node in missing])
    message = (
        f"{source} has no text for {len(missing)} of {total} {nodes} ({listed_nodes}); of its "
        f"{counts['text_rows']} rows {counts.get('skipped_rows', 0)} name no {nodes.removesuffix('s')}"
    )
    if 2 * len(missing) > total:
        raise DataError(f"{message}. Expected {expected}")
    if len(missing):
        logger.warning("%s. These nodes get an empty text.", message)
    if broken := counts["rows_not_utf8"]:
        logger.warning("%s: %d rows hold bytes that are not UTF-8; U+FFFD replaces them.", source, broken)
