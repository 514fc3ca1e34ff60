"""TextGraph: the one object that every dataset becomes. Its invariants are checked when it is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glem_graphgym.files import fingerprint, make_once, read_json, write_json

SPLITS = ("train", "valid", "test")
UNLABELLED = -1


class DataError(ValueError):
    """The data at hand cannot be used as it is; the message names the file or key and what to do."""


class Texts(Sequence[str]):
    """Read-only sequence of N texts over one UTF-8 buffer and N+1 byte offsets (both may be memory-mapped)."""

    def __init__(self, buffer: np.ndarray, offsets: np.ndarray) -> None:
        self.buffer = buffer  # uint8 (bytes,)
        self.offsets = offsets  # int64 (N+1,)

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        if isinstance(texts, Texts):
            return texts
        encoded = [text.encode("utf-8", "replace") for text in texts]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        index = int(index) % len(self)
        return bytes(self.buffer[self.offsets[index] : self.offsets[index + 1]]).decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def fingerprint(self) -> str:
        return fingerprint(np.asarray(self.offsets), np.asarray(self.buffer))


@dataclass(frozen=True)
class TextGraph:
    """An undirected text-attributed graph with N nodes, E undirected edges and C classes.

    Attributes:
        name: what the graph is called in results, e.g. ``"debian"`` or ``"ogbn-arxiv"``.
        texts: N texts in node order; empty strings are allowed.
        rowptr: int64 (N+1,), CSR row pointers of the symmetric adjacency.
        col: int32 (2E,), neighbours, sorted within a row; no self-loops, no duplicates.
        label: int64 (N,), class index, ``UNLABELLED`` (-1) where there is none.
        split: ``train``, ``valid`` and ``test``, each a sorted int64 array of labelled nodes; they are disjoint.
        class_names: C names; every class index is below C.
        features: float (N, F) raw node features, or None. May be memory-mapped.
        node_ids: the data's own name of each node (package name, paper id, ...), or None for 0..N-1.
        origin: where it came from, for results: file names, counts, what was repaired. JSON-able.

    Raises:
        DataError: an invariant does not hold; says which, with what was found and what was expected.
    """

    name: str
    texts: Texts
    rowptr: np.ndarray
    col: np.ndarray
    label: np.ndarray
    split: dict[str, np.ndarray]
    class_names: list[str]
    features: np.ndarray | None = None
    node_ids: list[str] | None = None
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_structure()
        self._check_labels()
        if self.features is not None and (
            self.features.ndim != 2 or len(self.features) != self.num_nodes or self.features.dtype.kind != "f"
        ):
            raise DataError(
                f"{self.name}: features have shape {self.features.shape} and type {self.features.dtype}, "
                f"expected floats of shape ({self.num_nodes}, F)"
            )
        if self.node_ids is not None and len(self.node_ids) != self.num_nodes:
            raise DataError(f"{self.name}: {len(self.node_ids)} node ids for {self.num_nodes} nodes")

    def _check_structure(self) -> None:
        n = self.num_nodes
        if len(self.texts) != n:
            raise DataError(f"{self.name}: {len(self.texts)} texts for {n} nodes; every node needs one (may be empty)")
        if self.rowptr.dtype != np.int64 or self.rowptr[0] != 0 or self.rowptr[-1] != len(self.col):
            raise DataError(f"{self.name}: row pointers must be int64 and run from 0 to {len(self.col)}")
        if (np.diff(self.rowptr) < 0).any():
            raise DataError(f"{self.name}: row pointers must not decrease")
        if len(self.col) and (self.col.min() < 0 or self.col.max() >= n):
            raise DataError(
                f"{self.name}: edges name nodes {self.col.min()} to {self.col.max()}, expected 0 to {n - 1}"
            )
        row = self.rows()
        key = row * n + self.col
        if (np.diff(key) <= 0).any():
            raise DataError(f"{self.name}: neighbours must be sorted and free of duplicates within a row")
        if (row == self.col).any():
            raise DataError(f"{self.name}: {int((row == self.col).sum())} self-loops; expected none")
        if not np.array_equal(np.sort(self.col.astype(np.int64) * n + row), key):
            raise DataError(f"{self.name}: the adjacency is not symmetric; build it with csr_from_edges")

    def _check_labels(self) -> None:
        n, c = self.num_nodes, self.num_classes
        if self.label.shape != (n,) or self.label.dtype != np.int64:
            raise DataError(f"{self.name}: labels are {self.label.dtype} {self.label.shape}, expected int64 ({n},)")
        if c < 2:
            raise DataError(f"{self.name}: {c} classes; at least 2 are needed to classify")
        if n and (self.label.min() < UNLABELLED or self.label.max() >= c):
            raise DataError(
                f"{self.name}: labels run from {self.label.min()} to {self.label.max()}, expected -1 to {c - 1}"
            )
        if sorted(self.split) != sorted(SPLITS):
            raise DataError(f"{self.name}: splits are {sorted(self.split)}, expected {list(SPLITS)}")
        seen = np.zeros(n, dtype=np.int8)
        for part in SPLITS:
            nodes = self.split[part]
            if nodes.dtype != np.int64 or nodes.ndim != 1 or (np.diff(nodes) <= 0).any():
                raise DataError(f"{self.name}: split '{part}' must be a strictly increasing int64 array")
            if len(nodes) == 0:
                raise DataError(f"{self.name}: split '{part}' is empty; every split needs at least one labelled node")
            if nodes[0] < 0 or nodes[-1] >= n:
                wrong = nodes[0] if nodes[0] < 0 else nodes[-1]
                raise DataError(f"{self.name}: split '{part}' names node {wrong}, expected 0 to {n - 1}")
            if (self.label[nodes] == UNLABELLED).any():
                raise DataError(f"{self.name}: split '{part}' holds unlabelled nodes")
            seen[nodes] += 1
        if (seen > 1).any():
            raise DataError(f"{self.name}: {int((seen > 1).sum())} nodes are in more than one split")

    @property
    def num_nodes(self) -> int:
        return len(self.rowptr) - 1

    @property
    def num_edges(self) -> int:
        """Undirected edges."""
        return len(self.col) // 2

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def rows(self) -> np.ndarray:
        """int64 (2E,): the row of each entry of ``col``."""
        return np.repeat(np.arange(self.num_nodes, dtype=np.int64), np.diff(self.rowptr))

    def edge_index(self) -> np.ndarray:
        """int64 (2, 2E): both directions of every edge, sorted by row."""
        return np.stack([self.rows(), self.col.astype(np.int64)])

    def fingerprint(self) -> str:
        """Hash of everything that a result can depend on: texts, edges, labels, splits, features."""
        arrays = [self.rowptr, self.col, self.label, *(self.split[part] for part in SPLITS)]
        if self.features is not None:
            arrays.append(np.asarray(self.features))
        return fingerprint(self.texts.fingerprint(), self.class_names, *arrays)


def check_shares(shares: Sequence[float]) -> tuple[float, ...]:
    """Shares (0-1) of train, valid and test: three positive numbers with sum 1.

    Raises:
        DataError: they are not; names the key ``dataset.tag_split``.
    """
    values = tuple(float(share) for share in shares)
    if len(values) != len(SPLITS) or not all(value > 0 for value in values) or abs(sum(values) - 1) > 1e-6:
        raise DataError(
            f"dataset.tag_split: shares are {list(values)}, expected three positive numbers with the sum 1, "
            f"for {', '.join(SPLITS)}"
        )
    return values


def csr_from_edges(source: np.ndarray, target: np.ndarray, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric CSR (rowptr int64 (N+1,), col int32 (2E,)) of an edge list.

    Both directions of every edge, no self-loops, no duplicates, neighbours in order.
    """
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    for end in (source, target):
        if len(end) and (end.min() < 0 or end.max() >= num_nodes):
            raise DataError(f"edges name nodes {end.min()} to {end.max()}, expected 0 to {num_nodes - 1}")
    keep = source != target
    source, target = source[keep], target[keep]
    key = np.sort(np.concatenate([source * num_nodes + target, target * num_nodes + source]))
    key = key[np.diff(key, prepend=-1) > 0]  # np.unique hashes, which is many times slower here
    rowptr = np.zeros(num_nodes + 1, dtype=np.int64)
    np.cumsum(np.bincount(key // max(num_nodes, 1), minlength=num_nodes), out=rowptr[1:])
    return rowptr, (key % max(num_nodes, 1)).astype(np.int32)


def save_text_graph(graph: TextGraph, folder: Path) -> None:
    """Write the graph's arrays and texts into an existing ``folder``, for `load_text_graph`."""
    np.save(folder / "text.npy", graph.texts.buffer)
    np.save(folder / "text_offsets.npy", graph.texts.offsets)
    np.save(folder / "rowptr.npy", graph.rowptr)
    np.save(folder / "col.npy", graph.col)
    np.save(folder / "label.npy", graph.label)
    for part in SPLITS:
        np.save(folder / f"split_{part}.npy", graph.split[part])
    if graph.features is not None:
        np.save(folder / "features.npy", graph.features)
    ids = {} if graph.node_ids is None else {"node_ids": graph.node_ids}
    meta = {"name": graph.name, "class_names": graph.class_names, "origin": graph.origin, **ids}
    write_json(folder / "graph.json", {**meta, "fingerprint": graph.fingerprint()})


def load_text_graph(folder: Path) -> TextGraph:
    """Read what `save_text_graph` wrote; texts and features stay memory-mapped.

    Raises:
        DataError: the folder's content is not what was written (its fingerprint differs) or a file is missing.
    """
    try:
        meta = read_json(folder / "graph.json")
        features = folder / "features.npy"
        graph = TextGraph(
            name=meta["name"],
            texts=Texts(np.load(folder / "text.npy", mmap_mode="r"), np.load(folder / "text_offsets.npy")),
            rowptr=np.load(folder / "rowptr.npy"),
            col=np.load(folder / "col.npy"),
            label=np.load(folder / "label.npy"),
            split={part: np.load(folder / f"split_{part}.npy") for part in SPLITS},
            class_names=meta["class_names"],
            features=np.load(features, mmap_mode="r") if features.exists() else None,
            node_ids=meta.get("node_ids"),
            origin=meta["origin"],
        )
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(
            f"{folder}: not a complete graph snapshot ({error}); delete the folder to have it remade"
        ) from error
    if graph.fingerprint() != meta["fingerprint"]:
        raise DataError(
            f"{folder}: content has fingerprint {graph.fingerprint()}, but {meta['fingerprint']} was written; "
            "delete the folder to have it remade"
        )
    return graph


def snapshot(folder: Path, build: Callable[[], TextGraph]) -> TextGraph:
    """The graph frozen in ``folder``; built and frozen there first when the folder does not exist."""
    make_once(folder, lambda temporary: save_text_graph(build(), temporary))
    return load_text_graph(folder)
