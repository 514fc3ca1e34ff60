"""The usual graphs by name: found or downloaded, read in their layout, and held against what is published of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.graph import load_text_graph_of
from glem_graphgym.config import load_config
from glem_graphgym.data.registry import LAYOUTS, PUBLISHED_GRAPHS, layout_of, reader_of, source_of
from tests.checks import refused
from tests.data import pyg_files


@pytest.fixture
def small_cora(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"nodes": pyg_files.N, "classes": 3, "edges": pyg_files.N, "splits": 10}
    monkeypatch.setitem(PUBLISHED_GRAPHS, "cora", replace(PUBLISHED_GRAPHS["cora"], **facts))


def load(folder: Path, **changed: Any) -> str:
    """Load dataset.name cora, whose published numbers are changed; the name and fingerprint of the graph."""
    (folder / "own.yaml").write_text(f"dataset: {{format: TAG, name: cora, dir: {folder}}}\n")
    load_config(cfg, folder / "own.yaml")
    PUBLISHED_GRAPHS["cora"] = replace(PUBLISHED_GRAPHS["cora"], **changed)
    return load_text_graph_of(cfg).fingerprint()


def test_every_name_has_a_reader_files_and_a_page() -> None:
    assert {*map(reader_of, LAYOUTS)}
    for published in PUBLISHED_GRAPHS.values():
        assert published.layout in LAYOUTS and published.files and published.site.startswith("https://")
        assert all(url.startswith(("https://", published.site)) or not url for url in published.files.values())


def test_a_folder_is_of_wikics_if_it_has_both_files(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").touch()
    assert layout_of(tmp_path) == "table"
    (tmp_path / "data.json").touch()
    assert layout_of(tmp_path) == "wikics"


@pytest.mark.usefixtures("small_cora")
def test_a_graph_in_its_place_is_read_and_held_against_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "cora").mkdir()
    pyg_files.glbench(tmp_path / "cora")
    found = load(tmp_path)
    assert load(tmp_path, edges=2 * pyg_files.N) == found  # counted in both directions
    said = ["cora.pt is not cora as published", "12 nodes, expected 2,708", "3 classes, expected 7"]
    said += ["10 splits, expected 1", "12 edges, expected 5,429"]
    refused(lambda: load(tmp_path, nodes=2708, classes=7, edges=5429, splits=1), *said)


@pytest.mark.parametrize("name", PUBLISHED_GRAPHS)
def test_missing_files_are_downloaded_or_named_with_their_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unattended: None
) -> None:
    published, folder = PUBLISHED_GRAPHS[name], tmp_path / name
    refused(lambda: source_of(name, folder), *published.files, published.site, f"into {folder}")
    if "" in published.files.values():
        return

    def fetch(url: str, part: Path) -> None:
        part.write_text(url)

    monkeypatch.setattr("glem_graphgym.data.ogb.download._fetch", fetch)
    assert source_of(name, folder) == (folder if name == "wikics" else folder / next(iter(published.files)))
    assert {file: (folder / file).read_text() for file in published.files} == published.files
