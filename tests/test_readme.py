"""The README is true: its table of keys, the files and commands it names."""

from __future__ import annotations

import re
from pathlib import Path

from glem_graphgym.config import keys_table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_keys_is_the_code() -> None:
    assert keys_table() in README


def test_files_that_it_names_exist() -> None:
    named = set(re.findall(r"(?:configs_gg|run|docs|glem_graphgym|tests)/[\w/]*\.(?:yaml|sh|py|md)", README))
    assert len(named) > 5
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_nothing_is_left_to_be_filled_in() -> None:
    assert "@@" not in README
