"""For tests that start the programs as a user does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bad_inputs.conftest import load_program, logging_taken_back


@pytest.fixture
def main() -> Iterator[Callable[..., int]]:
    """``main(config, option, value, ...)``, with the logging that it sets up taken back; or another program."""

    def run(config: Path, *options: object, program: str = "main") -> int:
        return load_program(program).main(["--cfg", str(config), *map(str, options)])

    with logging_taken_back():
        yield run
