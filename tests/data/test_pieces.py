"""Snapshots of pieces: which pieces are made and kept, who waits for whom, and room for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock, Timeout

from glem_graphgym import disk
from glem_graphgym.data.pieces import Piece, discard, snapshot_of_pieces
from glem_graphgym.data.text_graph import TextGraph, TextsWriter
from glem_graphgym.disk import DiskFullError


def write_graph(folder: Path) -> dict[str, int]:
    np.save(folder / "rowptr.npy", np.array([0, 1, 2, 2]))
    np.save(folder / "col.npy", np.array([1, 0], dtype=np.int32))
    np.save(folder / "label.npy", np.array([0, 1, 0]))
    for node, split_name in enumerate(("train", "valid", "test")):
        np.save(folder / f"split_{split_name}.npy", np.array([node]))
    return {"rows": 3}


def write_texts(folder: Path) -> dict[str, int]:
    (folder.parent / "graph-1" / "rowptr.npy").read_bytes()  # earlier pieces may be read
    with TextsWriter(folder, 3) as writer:
        writer.put(enumerate("abc"))
    return {"texts": 3}


def killed(folder: Path) -> dict[str, int]:
    (folder / "half").write_text("")
    raise KeyboardInterrupt


def make(folder: Path, key: str, texts: Callable[[Path], dict[str, Any]] = write_texts, **changes: Piece) -> TextGraph:
    pieces = {"graph": Piece("1", write_graph, 5000), "texts": Piece(key, texts, 1500), **changes}

    def describe() -> dict[str, Any]:
        return {"name": "three", "class_names": ["x", "y"], "origin": {"files": []}}

    return snapshot_of_pieces(folder / key, pieces, describe)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".pieces").iterdir() if path.is_dir())


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """What a killed process left: two pieces, and half of a third."""
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, "old", last=Piece("1", killed))
    half = tmp_path / ".pieces" / ".texts-older.part"
    half.mkdir()
    (half / "half").write_text("")
    assert names(tmp_path) == [".texts-older.part", "graph-1", "texts-old"]
    return tmp_path


def test_finished_pieces_are_used_and_those_of_other_sources_removed(begun: Path) -> None:
    def texts(folder: Path) -> dict[str, int]:
        assert names(begun) == [".texts-new.part", "graph-1"]
        return write_texts(folder)

    never = Piece("1", lambda folder: pytest.fail("it is there"), 5000)
    graph = make(begun, "new", texts, graph=never)
    assert list(graph.texts) == ["a", "b", "c"]
    assert graph.origin == {"files": [], "rows": 3, "texts": 3}
    assert not (begun / ".pieces").exists()


def test_a_piece_that_is_not_linked_is_no_part_of_the_snapshot(tmp_path: Path) -> None:
    def write(folder: Path) -> dict[str, int]:
        (folder / "notes.npy").write_text("")
        return {"notes": 1}

    for linked in (True, False):
        graph = make(tmp_path, f"linked-{linked}", notes=Piece("1", write, linked=linked))
        assert (tmp_path / f"linked-{linked}" / "notes.npy").exists() == linked
        assert graph.origin["notes"] == 1


def test_who_comes_while_another_process_is_at_work_waits_and_removes_nothing(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glem_graphgym.data.pieces.FileLock", lambda path, timeout: FileLock(path, timeout=0.1))
    with FileLock(begun / ".pieces.lock"):
        for key in ("new", "old"):
            with pytest.raises(Timeout):
                make(begun, key)
        discard(begun / ".pieces")
    assert names(begun) == [".texts-older.part", "graph-1", "texts-old"]


def test_pieces_that_another_snapshot_shares_stay_until_it_is_made(begun: Path) -> None:
    def texts(folder: Path) -> dict[str, int]:
        discard(begun / ".pieces")
        return write_texts(folder)

    assert make(begun, "new", texts).num_nodes == 3
    assert not (begun / ".pieces").exists()


def test_room_is_asked_for_those_that_are_missing(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 2000)
    message = rf"^{begun}/\.pieces: making texts, more takes 2\.1 kB of disk, 2\.0 kB are free; make"
    with pytest.raises(DiskFullError, match=message):
        make(begun, "new", more=Piece("1", killed, 600))
    monkeypatch.setattr(disk, "free_bytes", lambda path: 2000 if path.name == ".pieces" else 1000)
    with pytest.raises(DiskFullError, match=r"making texts takes 1\.5 kB"):
        make(begun, "new")
