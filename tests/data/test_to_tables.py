"""Tables that are written are read again as the same graph, or are not written."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from glem_graphgym.data.errors import DataError
from glem_graphgym.data.from_tables import TableOptions, graph_of
from glem_graphgym.data.table import TABLE
from glem_graphgym.data.tables import Tables
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.data.to_tables import write_tables
from glem_graphgym.disk import DiskFullError

SPLIT = ["train", "train", "valid", "test"]


def graph_with_ids(ids: list[str]) -> TextGraph:
    nodes = pd.DataFrame({"id": ids, "text": list("abcd"), "label": list("xyxy"), "split": SPLIT})
    where = {"nodes": "nodes", "edges": "edges"}
    return graph_of(Tables("g", nodes, np.array([[0, 1], [1, 3]]), where=where), TableOptions())


@pytest.mark.parametrize("character", ["\r", "\n", '"', ",", " ", "'"])
def test_ids_of_any_characters_are_read_again(character: str, tmp_path: Path) -> None:
    graph = graph_with_ids([f"{character}{i}{character}" for i in range(4)])
    again = graph_of(TABLE.read(write_tables(graph, tmp_path), TableOptions()), TableOptions())
    assert again.node_ids == graph.node_ids
    assert again.fingerprint() == graph.fingerprint()


@pytest.mark.parametrize("name", ["nodes.csv", "edges.csv"])
def test_a_disk_that_fills_up_leaves_no_graph_that_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def to_csv(*_: Any, **__: Any) -> None:
        written.append("nodes.csv" if written else "edges.csv")
        if written[-1] == name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", to_csv)
    with pytest.raises(DiskFullError, match=name):
        write_tables(graph_with_ids(list("abcd")), tmp_path / "tables")
    assert not (tmp_path / "tables/nodes.csv").exists()


def test_a_nul_byte_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nodes\.csv cannot be written: 'id' hold a NUL byte"):
        write_tables(graph_with_ids(["a\0", "b", "c", "d"]), tmp_path)
    assert not list(tmp_path.iterdir())
