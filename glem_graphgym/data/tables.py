"""Tables: what a reader makes of a user's files, and the text graph that becomes of it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from glem_graphgym.data.errors import DataError


@dataclass(frozen=True)
class Tables:
    """A graph of N nodes as its files state it; nothing is checked, joined or dropped yet.

    Attributes:
        name: of the graph, in results.
        nodes: N rows. Columns ``id`` (absent: the row's number, from 0), ``text``, ``label`` (empty or missing: none),
            and the split in one of these forms, or none of them: ``split`` (train, valid, test, empty), one column
            ``split_<k>`` per split, or boolean ``train_mask``, ``val_mask``, ``test_mask``, or these with ``_<k>`` at
            the end, one of each per split. Columns ``text:<view>`` are further texts, all others features.
        edges: columns ``source`` and ``target`` (ids), or int64 (2, E), row numbers of the nodes.
        features: float (N, F), in place of further columns; None where the files have none.
        class_names: names of the classes 0..C-1, where labels are their numbers; None = labels are the names.
        where: what messages call the files: of "nodes", of "edges", and of single columns that are no columns there.
        origin: JSON-able facts for ``run.json``: names of files, what was taken from where, what was left.
    """

    name: str
    nodes: pd.DataFrame
    edges: pd.DataFrame | np.ndarray
    features: np.ndarray | None = None
    class_names: list[str] | None = None
    where: dict[str, str] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    def place(self, column: str) -> str:
        """What a message calls a column of the nodes."""
        return self.where.get(column) or f"{self.where['nodes']}: column '{column}'"

    def strings(self, column: str) -> np.ndarray:
        """object (N,): `strings_of` a column of the nodes."""
        return strings_of(self.nodes[column], self.place(column))

    def id_of(self, node: int | np.integer[Any]) -> str:
        return str(node) if "id" not in self.nodes else _string(self.nodes["id"].iat[int(node)]) or ""


def strings_of(column: pd.Series, place: str) -> np.ndarray:
    """object (rows,): the values as strings, None where there is no value or an empty one; ``place`` names them."""
    try:
        codes, values = pd.factorize(column)
    except TypeError as error:
        raise DataError(f"{place} holds lists or the like; expected text or numbers") from error
    return np.array([*map(_string, values), None], dtype=object)[codes]  # the code of a missing value is -1


def _string(value: Hashable) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace") or None
    if isinstance(value, float | np.floating) and value.is_integer():
        return str(int(value))  # an integer column with gaps is read as floats
    return None if value is None else str(value) or None
