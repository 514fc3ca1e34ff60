"""Tables: what a reader makes of a user's files, before it becomes a `TextGraph`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Tables:
    """A graph of N nodes as its files state it; nothing is checked, joined or dropped yet.

    Attributes:
        name: of the graph, in results.
        nodes: N rows. Columns ``id`` (absent: the row's number, from 0), ``text``, ``label`` (empty or missing: none),
            and the split in one of these forms, or none of them: ``split`` (train, valid, test, empty), one column
            ``split_<k>`` per split, or boolean ``train_mask``, ``val_mask``, ``test_mask``, or these with ``_<k>`` at
            the end, one of each per split.
        edges: columns ``source`` and ``target`` (ids), or int64 (2, E), row numbers of the nodes.
        features: float32 (N, F); None where the files have none.
        class_names: names of the classes 0..C-1, where labels are their numbers; None = labels are the names.
        where: the part that a message names, by its column: "nodes", "edges" or another -> file (and place in it).
        origin: JSON-able facts for ``run.json``: names of files, what was taken from where, what was left.
    """

    name: str
    nodes: pd.DataFrame
    edges: pd.DataFrame | np.ndarray
    features: np.ndarray | None = None
    class_names: list[str] | None = None
    where: dict[str, str] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
