"""For tests that start the programs as a user does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bad_inputs.conftest import load_program


@pytest.fixture
def main() -> Iterator[Callable[..., int]]:
    """``main(config, option, value, ...)``, with the logging that it sets up taken back; or another program."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(config: Path, *options: object, program: str = "main") -> int:
        return load_program(program).main(["--cfg", str(config), *map(str, options)])

    yield run
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
