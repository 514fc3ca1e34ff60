"""A snapshot whose pieces take hours: each is made once, survives a kill, and goes into the snapshot without a copy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glem_graphgym.disk import writing
from glem_graphgym.files import make_once, read_json, write_json

COUNTS = "counts.json"


class Pieces:
    """Folders with the finished pieces of one snapshot, kept until the snapshot is there.

    Args:
        folder: where they are kept, one folder a piece. Snapshots that differ in one piece share the others.
        keys: name of each piece -> fingerprint of all that it is made of.

    Attributes:
        counts: what the pieces that were asked for say of themselves, all together.
    """

    def __init__(self, folder: Path, keys: dict[str, str]) -> None:
        self.folder, self.keys = folder, keys
        self.counts: dict[str, Any] = {}

    def make(self, name: str, write: Callable[[Path], dict[str, Any]]) -> Path:
        """The folder of a piece, made where it is not there yet.

        Args:
            name: of the piece.
            write: puts the piece's files into the empty folder that it is given, and returns JSON-able counts.
        """

        def make(temporary: Path) -> None:
            write_json(temporary / COUNTS, write(temporary))

        piece = make_once(self._place(name), make)
        self.counts |= read_json(piece / COUNTS)
        return piece

    def link_into(self, folder: Path, *pieces: Path) -> None:
        """Put the files of these pieces into ``folder`` too: as hard links, or as copies where there are none."""
        for piece in pieces:
            for file in sorted(piece.iterdir()):
                if file.name != COUNTS:
                    _link(file, folder / file.name)

    def discard(self) -> None:
        """Remove the pieces, now that the snapshot holds them; those of a process that was killed here too."""
        for piece in map(self._place, self.keys):
            shutil.rmtree(piece, ignore_errors=True)
            (piece.parent / f".{piece.name}.lock").unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _place(self, name: str) -> Path:
        return self.folder / f"{name}-{self.keys[name]}"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        with writing(target, source.stat().st_size):
            shutil.copyfile(source, target)
