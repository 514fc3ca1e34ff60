"""Tables: the form in which every reader returns a user's files, and from which the text graph is built."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from glem_graphgym.data.errors import DataError

EXACT = 2**53  # the largest whole number up to which floats are exact


@dataclass(frozen=True)
class Tables:
    """A graph of N nodes as its files state it; nothing is checked, joined or dropped yet.

    Attributes:
        name: of the graph, in results.
        nodes: N rows with columns ``id`` (if absent: row numbers from 0), ``text``, ``label`` (empty or missing = none)
            and optionally a split: a column ``split`` (train, valid, test or empty), one such column ``split_<k>`` per
            split, boolean ``train_mask``, ``val_mask`` and ``test_mask``, or these three with the suffix ``_<k>`` per
            split. Columns ``text:<view>`` are further texts; all others are features.
        edges: columns ``source`` and ``target`` (ids), or int64 (2, E), row numbers of the nodes.
        features: float (N, F), instead of feature columns; None if the files have none.
        class_names: names of the classes 0..C-1 if labels are numbers of classes; None = labels are the names.
        where: names for messages: of the files of "nodes" and "edges", and of columns that come from elsewhere.
        origin: JSON-able facts for ``run.json``: names of files, what was read from where, what was left out.
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

    def location(self, column: str) -> str:
        """Name of a column of the nodes in messages."""
        return self.where.get(column) or f"{self.where['nodes']}: column '{column}'"

    def strings(self, column: str) -> np.ndarray:
        """Values of a column of the nodes as strings, object (N,); see `strings_of`."""
        return strings_of(self.nodes[column], self.location(column))

    def id_of(self, node: int | np.integer[Any]) -> str:
        return str(node) if "id" not in self.nodes else string_of(self.nodes["id"].iat[int(node)]) or ""


def strings_of(column: pd.Series, where: str) -> np.ndarray:
    """Values as strings, object (rows,); None if missing or empty. ``where`` is the column's name in messages."""
    try:
        codes, values = pd.factorize(column)
    except UnicodeEncodeError:  # half of a surrogate pair, which no encoding can write
        return strings_of(column.map(string_of, na_action="ignore"), where)
    except TypeError as error:
        raise DataError(f"{where} holds lists or the like; expected text or numbers") from error
    if values.dtype.kind == "f" and len(large := values[np.abs(values) > EXACT]):
        raise DataError(f"{where} holds {large[0]!r:.80}, a rounded number (float); write numbers beyond 2^53 as text")
    return np.array([*map(string_of, values), None], dtype=object)[codes]  # the code of a missing value is -1


def string_of(value: Hashable) -> str | None:
    """A value as a string; None if missing or empty. A question mark replaces what UTF-8 cannot encode."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace") or None
    if isinstance(value, float | np.floating) and value.is_integer():
        return str(int(value))  # an integer column with gaps is read as floats
    return None if value is None else str(value).encode("utf-8", "replace").decode() or None
