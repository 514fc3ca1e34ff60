"""Columns of a user's tables: renamed, joined into texts, and parsed as lists of neighbours."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd

from glem_graphgym.data.errors import DataError, listed
from glem_graphgym.data.splits import MASK_COLUMN, SPLIT_COLUMN
from glem_graphgym.data.tables import string_of, strings_of

NODE_COLUMNS = ("id", "text", "label")
EDGE_COLUMNS = ("source", "target")
VIEW = "text:"  # prefix of the columns with further texts (views)
OURS = (*NODE_COLUMNS, "split", "features", "neighbours", *EDGE_COLUMNS)
NEIGHBOURS = re.compile(r"(neighbou?rs?|adj|adjacency)([ _-]?(ids?|list))?", re.IGNORECASE)  # usual names of the column
FIELD = re.compile(r"\{([^{}]*)\}")
SEPARATORS = " \t\n.,;:|/-"  # stripped from the start of a text whose first field is empty
# Common names of our columns in other tables, suggested when one of ours is missing.
OTHER_NAMES = {
    "id": "node node_id nid name index paper_id",
    "text": "title abstract content body raw_text raw_texts description",
    "label": "labels class category target y",
    "source": "src from u head start source_id from_node node1",
    "target": "dst to v tail end target_id to_node node2",
}


class Columns:
    """Names of the columns of a user's tables, from the keys ``dataset.tag_columns`` and ``dataset.tag_text``.

    Attributes:
        column_of: our name of a column -> its name in the file; features are not in it.
        features: names in the file of the feature columns.
        template: text with ``{column}`` for the value of a column; empty = the column ``text``.
        fields: columns that the template names.
    """

    def __init__(self, pairs: Sequence[Any], template: str) -> None:
        self.template, self.fields = template, FIELD.findall(template)
        self.column_of: dict[str, str] = {}
        self.features: list[str] = []
        for pair in pairs:
            ours, equals, theirs = str(pair).partition("=")
            if not equals or not theirs or (ours not in OURS and not ours.startswith(VIEW)):
                raise DataError(
                    f"dataset.tag_columns holds {pair!r}, expected ours=theirs, such as [text=abstract, label=venue]; "
                    f"ours is one of {listed([*OURS, VIEW + '<view>'], 20)}"
                )
            if ours in self.column_of:
                raise DataError(
                    f"dataset.tag_columns names two columns for '{ours}': {self.column_of[ours]!r} and {theirs!r}; "
                    "keep one"
                )
            if ours == "features":
                self.features.append(theirs)
            else:
                self.column_of[ours] = theirs
        if repeated := [column for column, count in Counter(self.column_of.values()).items() if count > 1]:
            raise DataError(
                f"dataset.tag_columns names the column {listed(repeated, quoted=True)} for several of ours; expected a "
                "column for each"
            )
        if template and not self.fields:
            raise DataError(f"dataset.tag_text is {template!r}, expected columns in braces: '{{title}}. {{abstract}}'")
        if template and "text" in self.column_of:
            raise DataError(
                f"dataset.tag_text is {template!r}, but dataset.tag_columns names {self.column_of['text']!r} for the "
                "text; keep one of the two"
            )
        if (label := self.column_of.get("label", "label")) in self.fields:
            raise DataError(f"dataset.tag_text is {template!r}, so the texts would tell the label, column {label!r}")

    def __bool__(self) -> bool:
        return bool(self.column_of or self.features or self.template)

    def strings(self, header: Collection[str], ours: Sequence[str]) -> set[str]:
        """Columns of a file to keep as strings: those for ``ours``, splits, views, and fields of the template.

        If ``ours`` has neighbours, the columns that may list them are among these.
        """
        in_splits = {name for name in header if SPLIT_COLUMN.fullmatch(name) or MASK_COLUMN.fullmatch(name)}
        views = {name for name in header if name.startswith(VIEW)}
        lists = {name for name in header if "neighbours" in ours and NEIGHBOURS.fullmatch(name.strip())}
        configured = {self.column_of.get(name, name) for name in ours}
        return (configured | {*self.fields} | in_splits | views | lists) & {*header}

    def required(self, header: Sequence[str]) -> list[str]:
        """Columns that nodes must have; ``id`` only if some column may be one, otherwise row numbers are the ids."""
        ids = "id" in self.column_of or {*alike("id", header)} - {*self.fields}
        return ["id"] * bool(ids) + ["text"] * (not self.template) + ["label"]

    def names(self, path: Any, header: Sequence[str], ours: Sequence[str]) -> list[str | None]:
        """Our name for each column of a file; None if the configuration gives a column's own name to another one.

        Raises:
            DataError: a configured column is not in the file ``path``.
        """
        configured = [
            (f"dataset.tag_columns ({name}={self.column_of[name]})", self.column_of[name])
            for name in ours
            if name in self.column_of
        ]
        if "text" in ours:
            configured += [(f"dataset.tag_columns (features={name})", name) for name in self.features]
            configured += [(f"dataset.tag_text ({self.template!r})", name) for name in self.fields]
        for key, name in configured:
            if name not in header:
                raise DataError(
                    f"{key} names the column {name!r}, which {path} does not have; found "
                    f"[{listed(header, 12, quoted=True)}]"
                )
        taken = {self.column_of[name]: name for name in ours if name in self.column_of}
        return [taken.get(name, None if name in taken.values() else name) for name in header]

    def texts(self, table: pd.DataFrame, path: Any) -> list[str]:
        """One text per row, by the template; an empty field is dropped together with the literal text before it."""
        literals = FIELD.split(self.template)
        columns = [strings_of(table[name], f"{path}: column '{name}'") for name in self.fields]
        texts = []
        for values in zip(*columns, strict=True):
            filled = [
                lead + value if value and value.strip() else ""
                for lead, value in zip(literals[::2], values, strict=False)
            ]
            text = "".join(filled) + literals[-1] if any(filled) else ""
            texts.append(text if filled[0] else text.lstrip(SEPARATORS))
        return texts


def alike(column: str, header: Sequence[str]) -> list[str]:
    """Columns of a file whose names suggest that they are our ``column``."""
    return [cell for cell in header if cell.strip().casefold() in (column, *OTHER_NAMES[column].split())]


def edges_of_neighbours(ids: Sequence[Any] | pd.Series, column: pd.Series, where: str) -> pd.DataFrame:
    """Table of edges (``source``, ``target``) from each row's id to each id in its list of neighbours.

    Args:
        ids: one per row.
        column: lists, or strings such as ``[3, 17]``, ``["a", "b"]``, ``3 17`` and ``3;17``; empty = no neighbours.
        where: the column's name in messages.
    """
    if column.dtype.kind == "f":  # single ids with gaps
        column = pd.Series(strings_of(column, where), dtype=object)
    lists = [_parse_ids(value) for value in column]
    for row, neighbours in enumerate(lists, start=1):
        if any(isinstance(item, list | dict) for item in neighbours):
            raise DataError(
                f"{where}, row {row} holds {column.iloc[row - 1]!r:.80}, expected a list of ids (with both brackets)"
            )
    source = np.repeat(np.asarray(ids, dtype=object), [len(neighbours) for neighbours in lists])
    return pd.DataFrame(
        {"source": source, "target": [item for neighbours in lists for item in neighbours]}, dtype=object
    )


def _parse_ids(value: Any) -> list[Any]:
    if isinstance(value, list | tuple | np.ndarray):
        return [*value]
    text = "" if pd.isna(value) else (string_of(value) or "").strip()
    if text.startswith("["):
        try:
            return list(json.loads(text))
        except (ValueError, RecursionError):  # a list as Python or NumPy writes it
            pass
    if text.startswith(("[", "(", "{")) != text.endswith(("]", ")", "}")):
        return [[text]]  # refused: Excel cuts cells after 32,767 characters
    return [item for word in re.split(r"[\s,;|]+", text.strip("[](){}")) if (item := word.strip("'\""))]
