"""The error for bad data, and helpers for messages and for reporting several errors at once."""

from __future__ import annotations

import contextlib
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from glem_graphgym.disk import DiskFullError
from glem_graphgym.memory import is_out_of_memory

# Errors that libraries raise for a file that is damaged, or not in the format its name says.
BROKEN = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError),
    *(struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)


class DataError(ValueError):
    """The data at hand cannot be used as it is; the message names the file or key and what to do."""


@contextlib.contextmanager
def reading_data(problem: str, remedy: str) -> Iterator[None]:
    """Turn any error of a block that reads someone else's file into DataError "``problem`` (reason); ``remedy``"."""
    try:
        yield
    except (DataError, DiskFullError):
        raise
    except BROKEN as error:
        if is_out_of_memory(error):  # says nothing about the file
            raise
        raise DataError(f"{problem} ({' '.join(str(error).split()):.200}); {remedy}") from error


def listed(values: Sequence[Any], most: int = 5, *, quoted: bool = False) -> str:
    """The first ``most`` values on one line, and how many more there are; "nothing" if there are none."""

    def in_line(value: Any) -> str:
        text = str(value)
        text = text if len(text) <= 80 else f"{text[:79]}…"
        return repr(text) if quoted or not text.isprintable() or text != text.strip() else text

    suffix = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(in_line, values[:most])) + suffix if len(values) else "nothing"


def check_all(*checks: Callable[[], object]) -> None:
    """Run all checks; if any fail, raise one DataError with all their messages, numbered if there are several."""
    problems = []
    for check in checks:
        try:
            check()
        except (ValueError, OSError) as error:
            problems.append(str(error))
    problems = list(dict.fromkeys(problems))
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        lines = (f"  {number}. {error}" for number, error in enumerate(problems, start=1))
        raise DataError("\n".join([f"{len(problems)} things are missing or wrong:", *lines]))
