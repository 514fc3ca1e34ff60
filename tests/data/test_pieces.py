"""Pieces of a snapshot: whose they are, what is removed of those that nobody asks for again, and room for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from glem_graphgym import disk
from glem_graphgym.data.pieces import Pieces
from glem_graphgym.disk import DiskFullError

OLD, NEW = {"graph": "1", "texts": "old"}, {"graph": "1", "texts": "new"}


def write(folder: Path) -> dict[str, int]:
    (folder / "a.npy").write_text("whole")
    return {"rows": 1}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def begun(folder: Path) -> Path:
    """What a killed process left: two pieces, and half of a third."""
    pieces = Pieces(folder, OLD)
    with pieces.claimed():
        for name in OLD:
            pieces.make(name, write)
    (folder / ".texts-older.part").mkdir()
    (folder / ".texts-older.part" / "half").write_text("")
    return folder


def test_those_of_other_sources_are_removed_when_new_ones_are_begun(tmp_path: Path) -> None:
    folder = begun(tmp_path / ".pieces")
    pieces = Pieces(folder, NEW)
    assert names(folder) == [".texts-older.part", "graph-1", "texts-old"]
    with pieces.claimed():
        assert names(folder) == ["graph-1"]
        pieces.make("graph", lambda piece: pytest.fail("it is there"))
        pieces.make("texts", write)
    pieces.discard()
    assert not folder.exists()


def test_who_comes_while_another_process_is_at_work_waits_and_removes_nothing(tmp_path: Path) -> None:
    folder = begun(tmp_path / ".pieces")
    with Pieces(folder, OLD).claimed(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("glem_graphgym.data.pieces.FileLock", lambda path, timeout: FileLock(path, timeout=0.1))
        for keys in (NEW, {"texts": "third"}, OLD):
            with pytest.raises(TimeoutError), Pieces(folder, keys).claimed():
                pass
        assert names(folder) == ["graph-1", "texts-old"]
    with Pieces(folder, NEW).claimed():
        assert names(folder) == ["graph-1"]


def test_pieces_that_another_snapshot_shares_stay_until_it_is_made(tmp_path: Path) -> None:
    folder = begun(tmp_path / ".pieces")
    old, new = Pieces(folder, OLD), Pieces(folder, NEW)
    with new.claimed():
        graph = new.make("graph", write)
        old.discard()
        new.link_into(tmp_path, graph)
    assert (tmp_path / "a.npy").read_text() == "whole"
    new.discard()
    assert not folder.exists()


def test_room_is_asked_for_those_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun(tmp_path / ".pieces")
    monkeypatch.setattr(disk, "free_bytes", lambda path: 2000)
    with Pieces(folder, OLD, {"graph": 5000, "texts": 5000}).claimed():
        pass
    pieces = Pieces(folder, {**NEW, "more": "1"}, {"graph": 5000, "texts": 1500, "more": 600})
    message = rf"^{folder}: making texts, more takes 2\.1 kB of disk, 2\.0 kB are free; make"
    with pytest.raises(DiskFullError, match=message), pieces.claimed():
        pass
    with Pieces(folder, NEW, {"texts": 1500}).claimed():
        monkeypatch.setattr(disk, "free_bytes", lambda path: 1000)
        with pytest.raises(DiskFullError, match=r"making texts takes 1\.5 kB"):
            Pieces(folder, NEW, {"texts": 1500}).make("texts", write)
