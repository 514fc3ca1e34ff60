"""Records: nodes with a name, a description, a class and a group, and the recipe that turns them into a graph."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from glem_graphgym.data.errors import DataError
from glem_graphgym.data.text_graph import SPLITS, UNLABELLED, TextGraph, Texts, check_shares, csr_from_edges, snapshot
from glem_graphgym.files import fingerprint

# Increment whenever the same options and the same records would give another graph than before.
RECIPE_VERSION = 1


@dataclass(frozen=True)
class Records:
    """N nodes in the order of their names, before labels and splits are drawn."""

    name: str  # of the graph, in results
    names: list[str]  # of the nodes, unique
    groups: list[str]  # nodes of one group are in one split
    classes: list[str]  # "" = none
    descriptions: list[str]  # on one line each; may be empty
    edges: np.ndarray  # int64 (2, R), node numbers; directions, loops and repetitions make no difference
    origin: dict[str, Any]  # JSON-able

    def only(self, nodes: np.ndarray) -> Records:
        """The records of ``nodes`` (sorted node numbers), with the edges between them."""
        number = np.full(len(self.names), -1)
        number[nodes] = np.arange(len(nodes))
        edges = number[self.edges]
        selected: dict[str, Any] = {
            column: [getattr(self, column)[node] for node in nodes]
            for column in ("names", "groups", "classes", "descriptions")
        }
        return replace(self, **selected, edges=edges[:, (edges >= 0).all(axis=0)])


@dataclass(frozen=True)
class Recipe:
    """Options for making a graph of records; raises DataError if a value is out of range.

    The split hashes the group's name and ``seed``: it does not depend on the machine, other records or ``max_nodes``.
    """

    shares: tuple[float, ...] = (0.1, 0.1, 0.8)  # of the groups, for train, valid and test; the rest is in no split
    labels_per_group: int = 5  # most labelled nodes per group: with more, near-copies would decide the score
    min_class_size: int = 20  # classes with fewer labelled nodes, or with none in training, are left unlabelled
    seed: int = 0  # of the split
    max_nodes: int = 0  # nodes to keep: the same share of every class, highest degree first; 0 keeps all

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", check_shares(self.shares))


def graph_snapshot(root: Path, name: str, recipe: Recipe, read: Callable[[], Records], *source: bytes) -> TextGraph:
    """Load the graph of the records that ``read`` returns, which is made and frozen under ``root`` on the first call.

    Its folder is ``<name>-<key>``; the key hashes the recipe and ``source``, the bytes of the file that ``read`` reads.
    """
    key = fingerprint(RECIPE_VERSION, asdict(recipe), *source)
    return snapshot(root / f"{name}-{key}", lambda: graph_of(read(), recipe))


def graph_of(records: Records, recipe: Recipe) -> TextGraph:
    """Build the graph of records, with nodes in their order; raises DataError if fewer than two classes remain."""
    num_records = len(records.names)
    if 0 < recipe.max_nodes < num_records:
        records = records.only(best_connected(records, recipe.max_nodes))
    salt = f"{recipe.seed} " if recipe.seed else ""
    splits = np.array([split_of(salt + group, recipe.shares) for group in records.groups])
    label, class_names, unlabelled_classes = _labels(records, splits, recipe)
    rowptr, col = csr_from_edges(records.edges[0], records.edges[1], len(records.names))
    texts = [": ".join(filter(None, both)) for both in zip(records.names, records.descriptions, strict=True)]
    counts = {
        "records": num_records,
        "nodes": len(texts),
        "edges": len(col) // 2,
        "groups": len(set(records.groups)),
        "labelled": int((label != UNLABELLED).sum()),
        "unlabelled": int((label == UNLABELLED).sum()),
    }
    return TextGraph(
        name=records.name,
        texts=Texts.of(texts),
        rowptr=rowptr,
        col=col,
        label=label,
        split={split_name: np.flatnonzero((splits == split_name) & (label != UNLABELLED)) for split_name in SPLITS},
        class_names=class_names,
        node_ids=records.names,
        origin={**records.origin, **counts, "unlabelled_classes": unlabelled_classes, "recipe": asdict(recipe)},
    )


def split_of(group: str, shares: Sequence[float]) -> str:
    """The split of a group's nodes, from the hash of its salted name alone; "" = no split."""
    position = _unit_hash(group)
    if position < shares[0]:
        return "train"
    if position < shares[0] + shares[1]:
        return "valid"
    return "test" if position < sum(shares) + 1e-6 else ""


def best_connected(records: Records, max_nodes: int) -> np.ndarray:
    """Numbers of ``max_nodes`` nodes, sorted: the same share of every class, highest degree first.

    By degree alone, a fifth or more of Debian would be libraries; a random sample would keep a third of the degree.
    """
    rowptr, _ = csr_from_edges(records.edges[0], records.edges[1], len(records.names))
    in_class = pd.Series(-np.diff(rowptr)).groupby(np.array(records.classes))
    quantile = (in_class.rank(method="first") - 0.5) / in_class.transform("size")
    return np.sort(np.argsort(quantile.to_numpy(), kind="stable")[:max_nodes])


def _labels(records: Records, splits: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, list[str], dict[str, int]]:
    """Label of each node, names of the classes, and the records' classes that were left out, with their sizes."""
    chosen = _label_candidates(records, recipe.labels_per_group)
    size = Counter(records.classes[node] for node in chosen)
    trained = {records.classes[node] for node in chosen if splits[node] == "train"}
    names = sorted(name for name in trained if size[name] >= recipe.min_class_size)
    if len(names) < 2:
        raise DataError(
            f"{records.name}: {len(names)} of {len(size)} classes have {recipe.min_class_size} or more labelled "
            "nodes and one in training; expected 2: name a larger file (dataset.tag_source)"
        )
    index = {name: i for i, name in enumerate(names)}
    label = np.full(len(records.names), UNLABELLED, dtype=np.int64)
    for node in chosen:
        label[node] = index.get(records.classes[node], UNLABELLED)
    return label, names, {name: size[name] for name in sorted(size) if name not in index}


def _label_candidates(records: Records, labels_per_group: int) -> list[int]:
    """Nodes that may carry a label: per group, the first ``labels_per_group`` with a class, in the order of a hash."""
    # Salted: the split's own hash would favour nodes named like their group in training but not in test.
    order = [_unit_hash(f"label {name}") for name in records.names]
    groups: dict[str, list[int]] = defaultdict(list)
    for node, group in enumerate(records.groups):
        if records.classes[node]:
            groups[group].append(node)
    return [node for nodes in groups.values() for node in sorted(nodes, key=order.__getitem__)[:labels_per_group]]


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone (48 bits, exact in a float)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
