"""Nodes within a number of hops of others: those that a prediction depends on."""

from __future__ import annotations

import numpy as np

ENTRIES_AT_ONCE = 1 << 22


def nodes_within(
    rowptr: np.ndarray, col: np.ndarray, nodes: np.ndarray, hops: int, *, entries_at_once: int = ENTRIES_AT_ONCE
) -> np.ndarray:
    """All nodes within ``hops`` steps of any of ``nodes``, these included: int64, increasing.

    Allocates a few bytes per node; of a memory-mapped graph, only blocks that hold reached rows are read. ``rowptr``
    int64 (N+1,) and ``col`` (E,) are the adjacency: row i lists the nodes that node i depends on.
    """
    reached = np.zeros(len(rowptr) - 1, dtype=bool)
    reached[nodes] = True
    latest = reached.copy()
    for _ in range(hops):
        previous = reached.copy()
        first = 0
        while first < len(latest):
            end = int(np.searchsorted(rowptr, int(rowptr[first]) + entries_at_once, side="right")) - 1
            end = min(max(end, first + 1), first + entries_at_once, len(latest))
            if latest[first:end].any():
                entries = np.repeat(latest[first:end], np.diff(rowptr[first : end + 1]))
                reached[np.asarray(col[int(rowptr[first]) : int(rowptr[end])])[entries]] = True
            first = end
        latest = reached & ~previous
        if not latest.any():
            break
    return np.flatnonzero(reached)
