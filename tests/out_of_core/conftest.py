"""Processes that are killed while they propagate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from glem_graphgym.out_of_core.stored_operator import StoredOperator


class Killed(BaseException):
    """Ends a process as a signal would."""


Dying = Callable[..., contextlib.AbstractContextManager[list[Any]]]


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Dying:
    """A block that is killed, and left, at a method's call number ``last`` + 1; gives the calls' first arguments."""

    @contextlib.contextmanager
    def block(last: int | None = None, target: type = StoredOperator, name: str = "multiply") -> Iterator[list[Any]]:
        calls: list[Any] = []
        method = getattr(target, name)

        def call(self: Any, *args: Any, **options: Any) -> Any:
            if len(calls) == last:
                raise Killed
            calls.append(args[:1])
            return method(self, *args, **options)

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(target, name, call)
            yield calls

    return block
