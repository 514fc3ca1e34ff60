"""TextGraph: the form that every dataset is brought into. Its invariants are checked on construction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from glem_graphgym.data.csr import check_csr, entry_blocks
from glem_graphgym.data.csr import csr_from_edges as csr_from_edges
from glem_graphgym.data.errors import BROKEN, listed, reading_data
from glem_graphgym.data.errors import DataError as DataError
from glem_graphgym.data.texts import Texts as Texts
from glem_graphgym.data.texts import TextsWriter as TextsWriter
from glem_graphgym.disk import disk_full_errors
from glem_graphgym.files import fingerprint, forget_unfinished, making, read_json, sampled_fingerprint, write_json

SPLITS = ("train", "valid", "test")
UNLABELLED = -1
NODES_AT_ONCE = 1 << 17  # nodes per block in `TextGraph.properties`
MAPPED_BYTES = 1 << 26  # a larger array of a snapshot is memory-mapped
SAMPLED_BYTES = 1 << 31  # a larger snapshot is checked by samples when it is loaded


@dataclass(frozen=True)
class TextGraph:
    """A text-attributed graph with N nodes, E edges and C classes, undirected unless ``directed``.

    Every array may be memory-mapped: checks and hashes read block by block.

    Raises:
        DataError: an invariant does not hold.
    """

    name: str  # in results, e.g. "debian" or "ogbn-arxiv"
    texts: Texts  # N texts in node order; empty strings are allowed
    rowptr: np.ndarray  # int64 (N+1,), CSR row pointers: row i lists the nodes that send messages to i
    col: np.ndarray  # int32 or int64 (2E,), directed (E,): sorted within a row; no self-loops, no duplicates
    label: np.ndarray  # int64 (N,), class index below C, or UNLABELLED (-1)
    split: dict[str, np.ndarray]  # train, valid and test: disjoint, each a sorted int64 array of labelled nodes
    class_names: list[str]
    features: np.ndarray | None = None  # float (N, F)
    views: dict[str, Texts] = field(default_factory=dict)  # name -> N further texts of the nodes
    node_ids: Sequence[str] | None = None  # id of each node in the source data, a list or Texts; None = 0..N-1
    origin: dict[str, Any] = field(default_factory=dict)  # JSON-able: file names, counts, what was repaired
    directed: bool = False  # edges go only from nodes in ``col`` to the row's node; False = the adjacency is symmetric
    splits: np.ndarray | None = None  # int8 (K, N), K > 1 fixed splits: positions in SPLITS, -1 = none; None = K is 1
    edges_checked: InitVar[bool] = False  # True = skip `check_csr`; `dataclasses.replace` resets it
    _fingerprint: str | None = field(default=None, init=False, repr=False, compare=False)
    _homophily: float | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self, edges_checked: bool) -> None:
        views = {f"texts of the view '{name}'": texts for name, texts in self.views.items()}
        for name, values in {"texts": self.texts, **views, "node ids": self.node_ids}.items():
            if values is not None and len(values) != self.num_nodes:
                may_be_empty = " (may be empty)" * (name != "node ids")
                raise DataError(
                    f"{self.name}: {len(values)} {name} for {self.num_nodes} nodes; every node needs one{may_be_empty}"
                )
        if not edges_checked:
            check_csr(self.name, self.rowptr, self.col, directed=self.directed)
        self._check_labels()
        if self.features is not None and (
            self.features.ndim != 2 or len(self.features) != self.num_nodes or self.features.dtype.kind != "f"
        ):
            raise DataError(
                f"{self.name}: features have shape {self.features.shape} and type {self.features.dtype}, "
                f"expected floats of shape ({self.num_nodes}, F)"
            )

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
        splits_per_node = np.zeros(n, dtype=np.int8)
        for split_name in SPLITS:
            nodes = self.split[split_name]
            if nodes.dtype != np.int64 or nodes.ndim != 1 or (np.diff(nodes) <= 0).any():
                raise DataError(f"{self.name}: split '{split_name}' must be a strictly increasing int64 array")
            if len(nodes) == 0:
                raise DataError(
                    f"{self.name}: split '{split_name}' is empty; every split needs at least one labelled node"
                )
            if nodes[0] < 0 or nodes[-1] >= n:
                wrong = nodes[0] if nodes[0] < 0 else nodes[-1]
                raise DataError(f"{self.name}: split '{split_name}' names node {wrong}, expected 0 to {n - 1}")
            if (self.label[nodes] == UNLABELLED).any():
                raise DataError(f"{self.name}: split '{split_name}' holds unlabelled nodes")
            splits_per_node[nodes] += 1
        if (splits_per_node > 1).any():
            raise DataError(f"{self.name}: {int((splits_per_node > 1).sum())} nodes are in more than one split")

    @property
    def num_nodes(self) -> int:
        return len(self.rowptr) - 1

    @property
    def num_edges(self) -> int:
        """E; an undirected edge counts once."""
        return len(self.col) // (1 if self.directed else 2)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def rows(self) -> np.ndarray:
        """Row of each entry of ``col``, int64. Allocates 8 bytes per entry, unlike `csr.entry_blocks`."""
        return np.repeat(np.arange(self.num_nodes, dtype=np.int64), np.diff(self.rowptr))

    def edge_index(self) -> np.ndarray:
        """Edges int64 (2, nnz) in PyG's convention: sources, then targets. Peak memory: 32 bytes per entry."""
        ends = [self.rows(), self.col.astype(np.int64)]
        return np.stack(ends[::-1] if self.directed else ends)

    def view(self, name: str) -> TextGraph:
        """The same graph with the texts of a view; raises DataError if it has no view of that name."""
        if name not in self.views:
            raise DataError(
                f"glem.node_features asks for 'text:{name}', but {self.name} has {listed([*self.views])} beside its "
                f"texts; expected a column 'text:{name}' of the nodes"
            )
        return replace(self, texts=self.views[name], views={}, edges_checked=True)

    def with_split(self, number: int) -> TextGraph:
        """The same graph with its fixed split ``number`` modulo K; the graph itself if it has only one split."""
        if self.splits is None:
            return self
        chosen = number % len(self.splits)
        split = {split_name: np.flatnonzero(self.splits[chosen] == code) for code, split_name in enumerate(SPLITS)}
        origin = {**self.origin, "split": self.origin["fixed_splits"][chosen]}
        graph = replace(self, split=split, origin=origin, edges_checked=True)
        graph.set_fingerprint(self.fingerprint())
        return graph

    def edge_homophily(self) -> float | None:
        """Share 0-1 of edges between labelled nodes that join equal labels (Zhu et al. 2020); None if there are none.

        Uses all labels, also those of test nodes: for reports, never for training. Computed once; snapshots store it.
        """
        if self._homophily is None:
            label, same, labelled = np.asarray(self.label), 0, 0
            for row, col in entry_blocks(self.rowptr, self.col):
                row_labelled = label[row] != UNLABELLED
                at_row, at_col = label[row[row_labelled]], label[col[row_labelled]]
                same, labelled = same + int((at_row == at_col).sum()), labelled + int((at_col != UNLABELLED).sum())
            object.__setattr__(self, "_homophily", same / labelled if labelled else None)
        return self._homophily

    def facts(self) -> dict[str, float | None]:
        """Numbers of nodes, edges, classes, nodes per split; homophily; shares 0-1 of training nodes, empty texts."""
        sizes = {"nodes": self.num_nodes, "edges": self.num_edges, "classes": self.num_classes}
        sizes |= {split_name: len(self.split[split_name]) for split_name in SPLITS}
        shares = {"label_rate": len(self.split["train"]), "empty_texts": self.texts.num_empty()}
        shares_of_nodes = {name: count / self.num_nodes for name, count in shares.items()}
        return {**sizes, "edge_homophily": self.edge_homophily(), **shares_of_nodes}

    def properties(self, nodes: np.ndarray) -> dict[str, np.ndarray]:
        """Properties of ``nodes``, int64 (n,), as float32 (n,) each: number of neighbours, share 0-1 of the labelled
        neighbours that have the node's label (NaN without labelled ones), bytes of the text.

        Uses all labels, as `edge_homophily` does: for reports only.
        """
        label, rowptr, offsets = (np.asarray(array) for array in (self.label, self.rowptr, self.texts.offsets))
        shares = []
        for chunk in np.array_split(nodes, -(-len(nodes) // NODES_AT_ONCE)) if len(nodes) else []:
            degree = (rowptr[chunk + 1] - rowptr[chunk]).astype(np.int64)
            row = np.repeat(np.arange(len(chunk)), degree)
            position = np.arange(len(row)) + np.repeat(rowptr[chunk] - (np.cumsum(degree) - degree), degree)
            neighbour_label = label[self.col[position]]
            same, neighbour_labelled = (neighbour_label == label[chunk][row], neighbour_label != UNLABELLED)
            with np.errstate(invalid="ignore"):
                shares.append(np.bincount(row, same, len(chunk)) / np.bincount(row, neighbour_labelled, len(chunk)))
        properties = {
            "neighbours": rowptr[nodes + 1] - rowptr[nodes],
            "homophily": np.concatenate(shares) if shares else np.empty(0),
            "text_bytes": offsets[nodes + 1] - offsets[nodes],
        }
        return {name: values.astype(np.float32) for name, values in properties.items()}

    def fingerprint(self) -> str:
        """Hash of everything that a result can depend on: texts, edges, labels, splits, features. Computed once.

        For a graph with several fixed splits, it covers all of them, whichever is chosen.
        """
        if self._fingerprint is None:
            splits = [self.split[split_name] for split_name in SPLITS] if self.splits is None else [self.splits]
            arrays = [self.rowptr, self.col, self.label, *splits]
            arrays += [] if self.features is None else [self.features]
            extras: list[Any] = ["directed"] if self.directed else []
            extras += [[name, texts.fingerprint()] for name, texts in self.views.items()]
            self.set_fingerprint(fingerprint(self.texts.fingerprint(), self.class_names, *arrays, *extras))
        assert self._fingerprint is not None
        return self._fingerprint

    def set_fingerprint(self, value: str) -> None:
        """Set the fingerprint to ``value``, which was computed before, e.g. when the graph was frozen."""
        object.__setattr__(self, "_fingerprint", value)


def check_shares(shares: Sequence[float], *, counts: bool = False) -> tuple[float, ...]:
    """Check and return three positive shares with a sum of at most 1; raises DataError if they are anything else.

    Args:
        shares: of train, valid and test.
        counts: allow whole values above 1, which are numbers of nodes.
    """
    values = tuple(float(share) for share in np.atleast_1d(shares))
    fractions = [value for value in values if not (counts and value > 1 and value.is_integer())]
    if len(values) != len(SPLITS) or not all(value > 0 for value in values) or not sum(fractions) <= 1 + 1e-6:
        raise DataError(
            f"dataset.tag_split is {[*values]}, expected three positive numbers for {', '.join(SPLITS)}: shares with a "
            f"sum of at most 1{', or numbers of nodes, whole and above 1' if counts else ''}"
        )
    if not fractions and sum(values) == 100:
        raise DataError(f"dataset.tag_split is {[*values]}; percent? Write shares: {[value / 100 for value in values]}")
    return values


# ---- snapshots ----------------------------------------------------------------------------------------------------


def snapshot(folder: Path, build: Callable[[], TextGraph]) -> TextGraph:
    """Load the graph frozen in ``folder``; if the folder does not exist, build the graph and freeze it there first."""
    return _load_or_make(folder, lambda temporary: save_text_graph(build(), temporary))


def snapshot_from_parts(folder: Path, write: Callable[[Path], dict[str, Any]]) -> TextGraph:
    """Load the graph frozen in ``folder``; if that does not exist, write it first, never holding the graph in memory.

    ``write`` returns the graph's ``name``, ``class_names`` and ``origin``; into an empty temporary folder it puts

    - ``text.npy``, ``text_offsets.npy``: `TextsWriter`;
    - ``rowptr.npy``, ``col.npy``: `csr.write_csr`;
    - ``label.npy`` and ``split_train.npy``, ``split_valid.npy``, ``split_test.npy``: int64, as in `TextGraph`;
    - ``features.npy``, optional: a float array (N, F);
    - ``node_id.npy``, ``node_id_offsets.npy``, optional: `TextsWriter` with the stem ``node_id``.

    Raises:
        DataError: a file is missing or broken, or an invariant does not hold; nothing is left in ``folder``.
    """

    def make(temporary: Path) -> None:
        meta = write(temporary)
        with reading_data(f"{meta['name']}: the parts of the graph are not complete", "write every file that it needs"):
            graph = _open(temporary, meta)
        _write_meta(graph, temporary)

    return _load_or_make(folder, make)


def _load_or_make(folder: Path, make: Callable[[Path], None]) -> TextGraph:
    with making(folder) as temporary:
        if temporary is not None:
            logging.getLogger(__name__).info(f"{folder} is not there yet: it is made now, once for all runs")
            forget_unfinished(folder)
            make(temporary)
    return load_text_graph(folder)


def save_text_graph(graph: TextGraph, folder: Path) -> None:
    """Write the graph's arrays and texts into an existing ``folder``, for `load_text_graph`."""
    arrays = {"rowptr": graph.rowptr, "col": graph.col, "label": graph.label, "features": graph.features}
    arrays |= {"splits": graph.splits, **{f"split_{split_name}": graph.split[split_name] for split_name in SPLITS}}
    views = enumerate(graph.views.values())
    stems = {"text": graph.texts, "node_id": graph.node_ids, **{f"view_{k}": texts for k, texts in views}}
    for stem, texts in stems.items():
        if texts is not None:
            texts = Texts.of(texts)
            arrays |= {stem: texts.buffer, f"{stem}_offsets": texts.offsets}
    for name, array in arrays.items():
        if array is not None:
            with disk_full_errors(folder / f"{name}.npy", array.nbytes):
                np.save(folder / f"{name}.npy", array)
    _write_meta(graph, folder)


def load_text_graph(folder: Path) -> TextGraph:
    """Load a snapshot that `save_text_graph` or `snapshot_from_parts` wrote.

    Texts, features and every array of more than MAPPED_BYTES are memory-mapped.
    Sizes and samples of all files are compared with recorded ones. A snapshot of up to SAMPLED_BYTES is also checked in
    full (edges and fingerprint); in a larger one, a few changed bytes may go unnoticed.

    Raises:
        DataError: a file is missing, or the content is not what was written.
    """
    remedy = "delete the folder to have it remade"
    try:
        stored = read_json(folder / "graph.json")
        fingerprints = {"fingerprint": stored["fingerprint"], "texts": stored.get("texts")}
        expected = stored.get("sampled")  # older snapshots have none
        actual = _hash_samples(folder, stored["class_names"], fingerprints) if expected else None
        large = bool(expected) and sum(file.stat().st_size for file in _files(folder)) > SAMPLED_BYTES
        if actual == expected:
            graph = _open(folder, stored, edges_checked=large)
    except BROKEN as error:
        raise DataError(f"{folder}: not a complete graph snapshot ({error}); {remedy}") from error
    if actual != expected:
        raise DataError(f"{folder}: samples of its content give {actual}, but {expected} was written; {remedy}")
    object.__setattr__(graph, "_homophily", stored.get("edge_homophily"))  # older snapshots have none
    if large:
        graph.set_fingerprint(fingerprints["fingerprint"])
        graph.texts.set_fingerprint(fingerprints["texts"])
    elif graph.fingerprint() != fingerprints["fingerprint"]:
        actual, expected = graph.fingerprint(), fingerprints["fingerprint"]
        raise DataError(f"{folder}: content has fingerprint {actual}, but {expected} was written; {remedy}")
    return graph


def _open(folder: Path, meta: dict[str, Any], *, edges_checked: bool = False) -> TextGraph:
    def array(name: str, mapped_from: int = MAPPED_BYTES) -> np.ndarray:
        file = folder / f"{name}.npy"
        return np.load(file, mmap_mode="r" if file.stat().st_size > mapped_from else None)

    def texts(stem: str) -> Texts:
        return Texts(array(stem, 0), array(f"{stem}_offsets"))

    def exists(name: str) -> bool:
        return (folder / f"{name}.npy").exists()

    return TextGraph(
        name=meta["name"],
        texts=texts("text"),
        rowptr=array("rowptr"),
        col=array("col"),
        label=array("label"),
        split={split_name: array(f"split_{split_name}") for split_name in SPLITS},
        class_names=meta["class_names"],
        features=array("features", 0) if exists("features") else None,
        views={name: texts(f"view_{k}") for k, name in enumerate(meta.get("views", []))},
        node_ids=texts("node_id") if exists("node_id") else meta.get("node_ids"),  # older snapshots have a list
        origin=meta["origin"],
        directed=meta.get("directed", False),
        splits=array("splits") if exists("splits") else None,
        edges_checked=edges_checked,
    )


def _write_meta(graph: TextGraph, folder: Path) -> None:
    """Write ``graph.json`` beside the graph's arrays, with the hashes that `load_text_graph` checks."""
    meta = {name: getattr(graph, name) for name in ("name", "class_names", "origin", "directed")}
    fingerprints = {"fingerprint": graph.fingerprint(), "texts": graph.texts.fingerprint()}
    checks = {**fingerprints, "sampled": _hash_samples(folder, graph.class_names, fingerprints)}
    facts = {"views": [*graph.views], **checks, "edge_homophily": graph.edge_homophily()}
    write_json(folder / "graph.json", {**meta, **facts})


def _hash_samples(folder: Path, class_names: list[str], fingerprints: dict[str, str]) -> str:
    return fingerprint(class_names, fingerprints, sampled_fingerprint(*_files(folder)))


def _files(folder: Path) -> list[Path]:
    needed = ("text", "text_offsets", "rowptr", "col", "label", *(f"split_{split_name}" for split_name in SPLITS))
    optional = sorted(folder.glob("view_*.npy")) + [
        folder / f"{name}.npy" for name in ("features", "node_id", "node_id_offsets", "splits")
    ]
    return [*(folder / f"{name}.npy" for name in needed), *(file for file in optional if file.exists())]
