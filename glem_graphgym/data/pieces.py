"""Pieces of a snapshot that take hours to make: each is made once, survives a kill, and is linked into the snapshot."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from glem_graphgym.disk import require_space
from glem_graphgym.files import fingerprint, is_free, link_or_copy, make_once, read_json, write_json

COUNTS = "counts.json"


class Pieces:
    """Finished pieces of one snapshot, a folder each, kept until the snapshot exists.

    Args:
        folder: holds one folder per piece; snapshots that differ in one piece share the others.
        keys: name of each piece -> fingerprint of all its sources.
        sizes: name -> approximate bytes of the piece on disk, if known.
    """

    def __init__(self, folder: Path, keys: dict[str, str], sizes: dict[str, int] | None = None) -> None:
        self.folder, self.keys, self.sizes = folder, keys, sizes or {}
        self.counts: dict[str, Any] = {}  # of all pieces requested so far

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Block in which a snapshot is made of these pieces.

        First removes all other pieces (their sources have changed), unless another process is making a snapshot here.

        Raises:
            DiskFullError: the disk has no room for all missing pieces.
        """
        claim = self.folder / f".{fingerprint(self.keys)}.claim"
        lock = FileLock(claim)
        with self._lock():
            self.folder.mkdir(exist_ok=True)
            lock.acquire()
            if all(is_free(other) for other in self.folder.glob(".*.claim") if other != claim):
                self._remove_stale(claim)
        try:
            missing = {name: size for name, size in self.sizes.items() if not self._piece_folder(name).is_dir()}
            require_space(self.folder, sum(missing.values()), f"making {', '.join(missing)}")
            yield
        finally:
            lock.release()

    def _remove_stale(self, claim: Path) -> None:
        current = {self._piece_folder(name).name for name in self.keys}
        for path in self.folder.iterdir():
            if path == claim or path.name.removeprefix(".").removesuffix(".part").removesuffix(".lock") in current:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def make(self, name: str, write: Callable[[Path], dict[str, Any]]) -> Path:
        """The folder of a piece; if it does not exist, ``write`` fills an empty one and returns JSON-able counts."""

        def make(temporary: Path) -> None:
            require_space(self.folder, self.sizes.get(name, 0), f"making {name}")
            write_json(temporary / COUNTS, write(temporary))

        piece = make_once(self._piece_folder(name), make)
        self.counts |= read_json(piece / COUNTS)
        return piece

    def link_into(self, folder: Path, *pieces: Path) -> None:
        """Put the files of these pieces into ``folder`` too, as hard links if possible."""
        for piece in pieces:
            for file in sorted(piece.iterdir()):
                if file.name != COUNTS:
                    link_or_copy(file, folder / file.name)

    def discard(self) -> None:
        """Remove all pieces, now that the snapshot holds them, unless another process is making a snapshot here."""
        if self.folder.is_dir():
            with self._lock():
                if all(map(is_free, self.folder.glob(".*.claim"))):
                    shutil.rmtree(self.folder, ignore_errors=True)

    def _lock(self) -> FileLock:
        return FileLock(self.folder.with_name(f"{self.folder.name}.lock"))

    def _piece_folder(self, name: str) -> Path:
        return self.folder / f"{name}-{self.keys[name]}"
