"""Loads a user's own tables, as dataset.name table does."""

from pathlib import Path
from typing import Any

from glem_graphgym.data.from_tables import TableOptions, load_files
from glem_graphgym.data.table import TABLE
from glem_graphgym.data.text_graph import TextGraph


def load_table(source: Path, cache: Path, *, raw: bool = False, **options: Any) -> TextGraph:
    return load_files(TABLE, source, cache, TableOptions(**options), kind="table", raw=raw)
