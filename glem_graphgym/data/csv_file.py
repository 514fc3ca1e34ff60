"""CSV files from other programs: checked row by row, and refused with the line number of a malformed row."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from glem_graphgym.data.errors import DataError, listed, reading_data

GZIP = b"\x1f\x8b"
# First bytes of files that are often renamed to .csv.
NO_CSV = {
    b"PAR1": "a Parquet file; name it .parquet",
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save it as CSV",
    codecs.BOM_UTF16_LE: "UTF-16; save it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16; save it as UTF-8",
}
DELIMITERS = {",": "comma", "\t": "tab"}
QUOTING = 'a text with {}s, quotes or line breaks must stand in quotes ("), and a quote in it twice ("")'


def read_csv_bytes(path: Path) -> bytes:
    """The file's content, unpacked if it is gzipped, as UTF-8 without a byte order mark; raises DataError."""
    content = path.read_bytes()
    if content.startswith(GZIP):
        with reading_data(f"{path} cannot be read as gzipped CSV", "export it again"):
            content = gzip.decompress(content)
    for begin, description in NO_CSV.items():
        if content.startswith(begin):
            raise DataError(f"{path} is {description}")
    content = content.removeprefix(codecs.BOM_UTF8)
    if (nul := content.find(b"\0")) >= 0:
        raise DataError(
            f"{path}, line {_line_number(content, nul)}: a NUL byte, which no CSV holds (is it UTF-16, or cut short?); "
            "save it as UTF-8"
        )
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        around = content[max(error.start - 20, 0) : error.start + 20].decode("latin-1")
        raise DataError(
            f"{path}, line {_line_number(content, error.start)}: byte 0x{content[error.start]:02x} is not UTF-8 (in "
            f"Latin-1 it reads {around!r}); save the file as UTF-8"
        ) from error
    if not content.strip():
        raise DataError(f"{path} is empty, expected a line with the names of the columns")
    return content


def _line_number(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1


def check_rows(path: Path, content: bytes, closed: Sequence[str] = (), delimiter: str = ",") -> list[str]:
    """Check that every row of a CSV has as many fields as its header, and return the header.

    ``closed`` names columns with few distinct values (label, split): their values reveal rows that a stray quote has
    made part of a text. ``delimiter`` is one of `DELIMITERS`.

    Raises:
        DataError: a row is longer or shorter than the header, or a quote swallows rows; names the line.
    """
    lines: list[str] = []  # of the current row

    def stream() -> Iterator[str]:
        for line in io.TextIOWrapper(io.BytesIO(content), "utf-8", newline=""):
            lines.append(line)
            yield line

    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(stream(), strict=True, delimiter=delimiter)
        header: list[str] = []
        values: dict[int, set[str]] = {}
        multiline: list[tuple[int, list[str], list[str]]] = []
        for row in reader:
            first, row_lines = reader.line_num - len(lines) + 1, lines[:]
            lines.clear()
            if not row:  # an empty line
                continue
            if not header:
                header = row
                values = {header.index(name): set() for name in closed if name in header}
                continue
            if len(row) != len(header):
                raise DataError(_wrong_length(path, first, row_lines, row, header, delimiter))
            for position, distinct in values.items():
                distinct.add(row[position])
            if len(row_lines) > 1 and all(line.count(delimiter) >= len(header) - 1 for line in row_lines):
                multiline.append((first, row_lines, row))
    except csv.Error as error:
        first = reader.line_num - len(lines) + 1
        raise DataError(_bad_quotes(path, first, lines, str(error), delimiter)) from error
    finally:
        csv.field_size_limit(limit)
    for first, row_lines, row in multiline:
        if _swallows_rows(row_lines, row, values, delimiter):
            raise DataError(
                f"{path}, lines {first} to {first + len(row_lines) - 1}: the quote in {_excerpt(row_lines[0])} makes "
                f"one row of these lines, each of which looks like a row; {QUOTING.format(DELIMITERS[delimiter])}"
            )
    return header


def read_table(content: bytes, strings: Iterable[str], delimiter: str = ",") -> pd.DataFrame:
    """Parse a CSV that `check_rows` accepted; columns not in ``strings`` are numeric if all of their values are."""
    # No word stands for a missing value: "NA", "null" and "nan" are ids and texts like any other.
    options: dict[str, Any] = {"keep_default_na": False, "index_col": False, "low_memory": False}
    return pd.read_csv(io.BytesIO(content), sep=delimiter, dtype=dict.fromkeys(strings, str), **options)


def check_distinct(path: Path, header: Sequence[str], names: Iterable[str]) -> None:
    """Raise DataError if one of ``names``, blank ones aside, stands in a table's header more than once."""
    counts = Counter(header)
    if repeated := [name for name in dict.fromkeys(names) if counts[name] > 1 and name.strip()]:
        raise DataError(f"{path}: several columns have the name {listed(repeated, quoted=True)}; keep one of each")


def _wrong_length(path: Path, first: int, lines: list[str], row: list[str], header: list[str], delimiter: str) -> str:
    mark, quoting = DELIMITERS[delimiter], QUOTING.format(DELIMITERS[delimiter])
    where = f"{path}, line {first}" + (f" to {first + len(lines) - 1}" if len(lines) > 1 else "")
    problem = f"{where}: {len(row)} fields, but the header has {len(header)} ({_excerpt(lines[0])})"
    if len(row) < len(header):
        return f"{problem}; is a text broken into two lines without quotes, or the row cut short? {quoting}"
    if not any(field.strip() for field in row[len(header) :]):
        return f"{problem}; take the {mark}s at the end of the row away, or name these columns in the header"
    return f"{problem}; a {mark} in a text without quotes? {quoting}"


def _bad_quotes(path: Path, first: int, lines: list[str], error: str, delimiter: str) -> str:
    where = f"{path}, line {first}" + (f" to {first + len(lines) - 1}" if len(lines) > 1 else "")
    if any('\\"' in line for line in lines):
        return (
            f"""{where}: quotes are written as \\" (Spark does that), expected ""; in Spark: .option("escape", '"')"""
        )
    problem = "a quote is opened and never closed" if "end of data" in error else "a quote is closed within a field"
    return f"{where}: {problem} ({_excerpt(lines[0] if lines else '')}); {QUOTING.format(DELIMITERS[delimiter])}"


def _swallows_rows(lines: list[str], row: list[str], values: dict[int, set[str]], delimiter: str) -> bool:
    """Whether the lines of one row look like rows: they hold known ``values`` (position of a column -> values seen)."""
    text_position = next((position for position, field in enumerate(row) if "\n" in field or "\r" in field), None)
    if text_position is None:
        return False
    before_text = [position for position in values if position < text_position]
    after_text = [position for position in values if position > text_position]
    width = len(row)

    def looks_like_a_row(line: str, positions: list[int], *, from_end: bool) -> bool:
        fields = line.rstrip("\r\n").split(delimiter)
        cells = [fields[position - width if from_end else position] for position in positions]
        return any(cells) and all(cell in values[position] for cell, position in zip(cells, positions, strict=True))

    if after_text:
        return all(looks_like_a_row(line, after_text, from_end=True) for line in lines[:-1])
    return bool(before_text) and all(looks_like_a_row(line, before_text, from_end=False) for line in lines[1:])


def _excerpt(line: str, most: int = 60) -> str:
    line = line.rstrip("\r\n")
    return repr(line if len(line) <= most else line[: most - 1] + "…")
