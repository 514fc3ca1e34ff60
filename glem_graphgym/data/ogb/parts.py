"""Steps that ogbn-products and ogbn-papers100M share: labels, split, edges, and checks of what was written."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from glem_graphgym.data.csr import write_csr
from glem_graphgym.data.text_graph import UNLABELLED, DataError, TextGraph, load_text_graph

MEMORY_BYTES = 2 << 30  # for sorting edges
ROWS_AT_ONCE = 1 << 20
CHECKED_EDGES = 1000

logger = logging.getLogger(__name__)


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


def class_labels(published: np.ndarray, source: str, num_classes: int) -> np.ndarray:
    """Convert OGB's labels, (N, 1) or (N,), to class indices int64 (N,); NaN becomes `UNLABELLED`.

    Raises:
        DataError: a label is no class from 0 to ``num_classes`` - 1, or labels have several columns; names ``source``.
    """
    if published.ndim not in (1, 2) or published.size != len(published):
        raise DataError(f"{source}: labels have the shape {published.shape}, expected ({len(published)}, 1)")
    label = np.empty(len(published), dtype=np.int64)
    for start in range(0, len(label), ROWS_AT_ONCE):
        block = published[start : start + ROWS_AT_ONCE].reshape(-1).astype(np.float64)
        labelled = ~np.isnan(block)
        wrong = labelled & ~((block >= 0) & (block < num_classes) & (np.floor(block) == block))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"{source}: row {start + row} holds the label {block[row]:g}, expected a whole number from 0 to "
                f"{num_classes - 1}; unpack OGB's archive anew"
            )
        label[start : start + ROWS_AT_ONCE] = np.where(labelled, block, UNLABELLED)
    return label


def check_finite(features: np.ndarray, source: Path) -> None:
    """Raise DataError, naming ``source`` and the row, if any of the features (N, F) is NaN or infinite."""
    for start in range(0, len(features), ROWS_AT_ONCE):
        wrong = ~np.isfinite(features[start : start + ROWS_AT_ONCE]).all(axis=1)
        if wrong.any():
            raise DataError(
                f"{source}: row {start + int(np.argmax(wrong))} holds features that are not finite; unpack OGB's "
                "archive anew"
            )


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
