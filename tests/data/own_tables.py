"""A user's own tables, written, and loaded as dataset.name table does."""

from pathlib import Path
from typing import Any

from glem_graphgym.data.from_tables import TableOptions, load_files
from glem_graphgym.data.table import TABLE
from glem_graphgym.data.text_graph import TextGraph


def write(folder: Path, nodes: str | bytes, edges: str | bytes) -> Path:
    """Make ``folder`` if there is none, and write nodes.csv and edges.csv into it."""
    folder.mkdir(exist_ok=True)
    for name, content in (("nodes", nodes), ("edges", edges)):
        (folder / f"{name}.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def labels_of(graph: TextGraph) -> list[str | None]:
    return [graph.class_names[label] if label >= 0 else None for label in graph.label]


def load_table(source: Path, cache: Path, *, raw: bool = False, **options: Any) -> TextGraph:
    return load_files(TABLE, source, cache, TableOptions(**options), kind="table", raw=raw)
