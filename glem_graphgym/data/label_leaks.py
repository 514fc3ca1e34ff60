"""Feature columns that give the label away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from glem_graphgym.data.text_graph import UNLABELLED

ROWS_PER_VALUE = 4  # a column of features tells the label only with this many rows behind each of its values
LEAST_ROWS = 8
QUICK_LOOK = 4096  # labelled nodes by which most columns are seen not to tell the label


def telling_columns(names: Sequence[str], features: np.ndarray, label: np.ndarray) -> dict[str, str]:
    """Columns that must not be features, and why: they tell the label of every labelled node, or count the rows.

    Args:
        names: of the F columns.
        features: float (N, F).
        label: int64 (N,), `UNLABELLED` where there is none.
    """
    labelled = np.flatnonzero(label != UNLABELLED)
    some = np.random.default_rng(0).permutation(labelled)[:QUICK_LOOK]  # a table may be sorted by its labels
    telling = {}
    for position, name in enumerate(names):
        column = features[:, position]
        if len(column) >= LEAST_ROWS and (np.diff(column) == 1).all():
            telling[name] = "counts the rows"
        elif _tells(column[some], label[some], quick=True) and (how := _tells(column[labelled], label[labelled])):
            telling[name] = how
    return telling


def _tells(values: np.ndarray, label: np.ndarray, quick: bool = False) -> str:
    """How values and classes determine each other, "" where they do not; values with few rows do so by chance."""
    kinds, codes, sizes = np.unique(values, return_inverse=True, return_counts=True)
    classes, label = np.unique(label, return_inverse=True)
    if len(kinds) < 2 or len(classes) < 2:
        return "may" if quick else ""
    pairs = len(np.unique(codes * len(classes) + label))
    enough = quick or (len(values) >= LEAST_ROWS and len(values) >= ROWS_PER_VALUE * len(kinds))
    if pairs == len(kinds) and enough and len(kinds) <= len(values) // 2:
        return "determines the label" if pairs > len(classes) else "is one-to-one with the label"
    if pairs == len(classes) and (quick or (enough and sizes.min() >= ROWS_PER_VALUE)):
        return "is determined by the label"
    return ""
