"""Snapshots made of pieces that take hours: each is made once, survives a kill, and is linked into the snapshot."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from glem_graphgym.data.csr import write_csr
from glem_graphgym.data.errors import DataError
from glem_graphgym.data.text_graph import TextGraph, load_text_graph, snapshot_from_parts
from glem_graphgym.disk import require_space
from glem_graphgym.files import link_or_copy, make_once, read_json, write_json

COUNTS = "counts.json"
MEMORY_BYTES = 2 << 30  # for sorting edges
CHECKED_EDGES = 1000

logger = logging.getLogger(__name__)


class Piece(NamedTuple):
    """Some files of a snapshot, kept in a folder of their own until the snapshot exists."""

    key: str  # fingerprint of all its sources
    write: Callable[[Path], dict[str, Any]]  # fills an empty folder; returns JSON-able counts, for the graph's `origin`
    size: int = 0  # approximate bytes on disk, if known
    linked: bool = True  # whether its files are the snapshot's too; False = only other pieces read them


def snapshot_of_pieces(folder: Path, pieces: dict[str, Piece], describe: Callable[[], dict[str, Any]]) -> TextGraph:
    """Load the graph frozen in ``folder``; if that does not exist, make the missing ``pieces`` of it, in their order.

    Piece "a" with the key "1" is the folder ``.pieces/a-1`` beside ``folder``, so snapshots that differ in one piece
    share the others. Pieces with other keys are removed: their sources have changed. Processes that make snapshots of
    the same pieces take turns. ``describe`` is called first, and returns what `snapshot_from_parts` asks for.

    Raises:
        DiskFullError: the disk has no room for all missing pieces.
    """
    kept = folder.with_name(".pieces")
    folders = {name: kept / f"{name}-{piece.key}" for name, piece in pieces.items()}

    def write(temporary: Path) -> dict[str, Any]:
        described = describe()
        with _lock(kept):
            kept.mkdir(exist_ok=True)
            for path in {*kept.iterdir()} - {*folders.values()}:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            missing = {name: piece.size for name, piece in pieces.items() if not folders[name].is_dir()}
            require_space(kept, sum(missing.values()), f"making {', '.join(missing)}")
            for name, piece in pieces.items():
                make_once(folders[name], partial(_make, name, piece))
                described["origin"] |= read_json(folders[name] / COUNTS)
                for file in sorted(folders[name].iterdir()) if piece.linked else ():
                    if file.name != COUNTS:
                        link_or_copy(file, temporary / file.name)
        return described

    graph = snapshot_from_parts(folder, write)
    discard(kept)
    return graph


def _make(name: str, piece: Piece, folder: Path) -> None:
    require_space(folder, piece.size, f"making {name}")
    write_json(folder / COUNTS, piece.write(folder))


def discard(kept: Path) -> None:
    """Remove all pieces, now that the snapshot holds them, unless another process is making a snapshot here."""
    if kept.is_dir():
        with contextlib.suppress(Timeout), _lock(kept, timeout=0):
            shutil.rmtree(kept, ignore_errors=True)


def _lock(kept: Path, timeout: float = -1) -> FileLock:
    return FileLock(kept.with_name(f"{kept.name}.lock"), timeout=timeout)


def load_without_sources(snapshots: Path, sources_complete: bool) -> TextGraph | None:
    """The graph of the only snapshot, if not all of its sources exist any more; else None."""
    if (folder := snapshot_without_sources(snapshots, sources_complete)) is None:
        return None
    logger.info("%s: some of the files it was made from no longer exist; it is used as it is", folder)
    return load_text_graph(folder)


def snapshot_without_sources(snapshots: Path, sources_complete: bool) -> Path | None:
    """Folder of the snapshot that `load_without_sources` loads; else None."""
    folders = [path for path in snapshots.glob("[!.]*") if (path / "graph.json").is_file()]
    return folders[0] if len(folders) == 1 and not sources_complete else None


def save_labels(folder: Path, label: np.ndarray, split: dict[str, np.ndarray]) -> None:
    np.save(folder / "label.npy", label)
    for split_name, nodes in split.items():
        np.save(folder / f"split_{split_name}.npy", nodes)


def write_structure(folder: Path, edges: np.ndarray, num_nodes: int) -> int:
    """Write the adjacency of ``edges`` (2, E) by `write_csr`, check a sample of it, and return the number of edges.

    Raises:
        DataError: an edge names a node that does not exist, or a sampled edge is missing in what was written.
    """
    write_csr(edges, num_nodes, folder, memory_bytes=MEMORY_BYTES)
    rowptr, col = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("rowptr", "col"))
    for index in np.unique(np.linspace(0, edges.shape[1] - 1, CHECKED_EDGES).astype(np.int64)) if edges.size else ():
        a, b = int(edges[0, index]), int(edges[1, index])
        for row, neighbour in ((a, b), (b, a)):
            if a != b and neighbour not in col[rowptr[row] : rowptr[row + 1]]:
                raise DataError(f"{folder}: edge {index} from {a} to {b} got lost; check the disk and start again")
    return len(col) // 2
