"""Feature columns that give the label away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from glem_graphgym.data.text_graph import UNLABELLED

ROWS_PER_VALUE = 4  # with fewer rows per distinct value, a column may determine the label by chance
LEAST_ROWS = 8


def telling_columns(names: Sequence[str], features: np.ndarray, label: np.ndarray) -> dict[str, str]:
    """Columns that must not be features -> why: they and the labels determine each other, or they count the rows.

    Args:
        names: one per column, F.
        features: float (N, F).
        label: int64 (N,), `UNLABELLED` where there is none.
    """
    labelled = np.flatnonzero(label != UNLABELLED)
    telling = {}
    for position, name in enumerate(names):
        column = features[:, position]
        if len(column) >= LEAST_ROWS and (np.diff(column) == 1).all():
            telling[name] = "counts the rows"
        elif dependence := _dependence(column[labelled], label[labelled]):
            telling[name] = dependence
    return telling


def _dependence(values: np.ndarray, label: np.ndarray) -> str:
    """The way in which values and labels determine each other; "" if they do not, or too few rows prove nothing."""
    kinds, codes, sizes = np.unique(values, return_inverse=True, return_counts=True)
    if len(kinds) < 2 or len(values) < max(LEAST_ROWS, ROWS_PER_VALUE * len(kinds)):
        return ""
    classes, label = np.unique(label, return_inverse=True)
    pairs = len(np.unique(codes * len(classes) + label))
    if pairs == len(kinds) and len(classes) > 1:
        return "determines the label" if pairs > len(classes) else "is one-to-one with the label"
    if pairs == len(classes) and sizes.min() >= ROWS_PER_VALUE:
        return "is determined by the label"
    return ""
