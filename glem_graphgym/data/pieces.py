"""Pieces of a snapshot that take hours to make: each is made once, survives a kill, and is linked into the snapshot."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from glem_graphgym.disk import require_space
from glem_graphgym.files import link_or_copy, make_once, read_json, write_json

COUNTS = "counts.json"


class Pieces:
    """Finished pieces of one snapshot, a folder each, kept until the snapshot exists.

    Args:
        folder: holds one folder per piece; snapshots that differ in one piece share the others.
        keys: name of each piece -> fingerprint of all its sources.
        sizes: name -> approximate bytes of the piece on disk, if known.
    """

    def __init__(self, folder: Path, keys: dict[str, str], sizes: dict[str, int] | None = None) -> None:
        self.sizes = sizes or {}
        self.folder, self.piece_folders = folder, {name: folder / f"{name}-{key}" for name, key in keys.items()}
        self.counts: dict[str, Any] = {}  # of all pieces requested so far

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Block in which a snapshot is made of these pieces; other processes that make one of this folder wait.

        First removes all other pieces: their sources have changed.

        Raises:
            DiskFullError: the disk has no room for all missing pieces.
        """
        with self._lock():
            self.folder.mkdir(exist_ok=True)
            for path in self.folder.iterdir():
                if path in self.piece_folders.values():
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            missing = {name: size for name, size in self.sizes.items() if not self.piece_folders[name].is_dir()}
            require_space(self.folder, sum(missing.values()), f"making {', '.join(missing)}")
            yield

    def make(self, name: str, write: Callable[[Path], dict[str, Any]]) -> Path:
        """The folder of a piece; if it does not exist, ``write`` fills an empty one and returns JSON-able counts."""

        def make(temporary: Path) -> None:
            require_space(self.folder, self.sizes.get(name, 0), f"making {name}")
            write_json(temporary / COUNTS, write(temporary))

        piece = make_once(self.piece_folders[name], make)
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
            with contextlib.suppress(Timeout), self._lock(timeout=0):
                shutil.rmtree(self.folder, ignore_errors=True)

    def _lock(self, timeout: float = -1) -> FileLock:
        return FileLock(self.folder.with_name(f"{self.folder.name}.lock"), timeout=timeout)
