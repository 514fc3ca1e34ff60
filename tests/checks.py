"""Checks that many tests share: the message of a refusal, the memory that a call takes; and damage to files."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from glem_graphgym.data.errors import DataError


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def refused(
    call: Callable[[], object], *names: str, error: type[Exception] | tuple[type[Exception], ...] = DataError
) -> str:
    """The one line of the ``error`` with which ``call`` is refused; it holds ``names``: keys, files, values."""
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message and "\r" not in message and len(message) < 1000, message
    for name in names:
        assert name in message, f"{name!r} is not in {message!r}"
    return message


def peak_of(call: Callable[[], object]) -> int:
    """Most bytes that Python and NumPy have allocated at a time during ``call``."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
