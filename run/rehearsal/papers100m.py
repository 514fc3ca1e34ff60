"""A generated graph in the on-disk format of ogbn-papers100M, of any size, for scale runs: written block by block.

Files and keys are those that ``ogb.io.read_graph_raw.read_binary_graph_raw`` and our loader of ogbn-papers100M read.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from glem_graphgym.data.errors import DataError
from glem_graphgym.data.synthetic import draw_class_means, draw_features, draw_texts
from glem_graphgym.data.text_graph import SPLITS
from glem_graphgym.files import make_once
from glem_graphgym.progress import Progress
from rehearsal.graphs import write_blocks

CLASSES = 172  # of ogbn-papers100M: its table of categories names them all
VOCABULARY = 20  # different words per class
TEXT_SIGNAL, STRUCTURE_SIGNAL = 0.35, 0.6
LABELLED = 0.0139  # share of papers that are on arXiv and thus have a class
TRAIN, VALID = 0.78, 0.08  # shares of the labelled nodes; the rest is for testing
WITHOUT_TITLE, WITHOUT_ABSTRACT = 0.002, 0.05  # shares of nodes
FIRST_YEAR, TRAIN_YEAR, VALID_YEAR, TEST_YEAR = 1990, 2017, 2018, 2019
NODES_AT_ONCE, EDGES_AT_ONCE = 1 << 16, 1 << 20
# Streams of random numbers. Each block of a stream has its own generator, so that it can be drawn again.
DEAL, EDGES, MEANS, FEATURES, YEARS, TITLES, ABSTRACTS = range(7)


@dataclass(frozen=True)
class Papers100MLike:
    """A generated graph in the format of ogbn-papers100M's archive and raw texts; needs a few hundred MB of memory.

    Texts, features and edges depend on the class as in `synthetic.make_synthetic`: each word is, with probability
    `TEXT_SIGNAL`, one of its class's own; features are noise and the mean of the class, mixed by `TEXT_SIGNAL`;
    each edge starts at any node and ends, with probability `STRUCTURE_SIGNAL`, in the class of its source. The first
    nodes of a class are cited most: the number of citations has a Pareto tail of exponent 3. Edges are directed; some
    occur twice, none is a loop. Some nodes have no title, or no abstract. The same arguments give the same files.

    Everything is computed from the numbers of nodes and blocks, so only the labelled nodes are held in memory. Node v
    has place (a·v + b) mod N in a permutation, where a is coprime to N; the places have classes 0, 1, ..., C - 1 in
    turn. Node and place follow from each other by a multiplication, so classes and their members need no table.

    Raises:
        DataError: an argument is out of range.
    """

    num_nodes: int
    num_edges: int
    num_classes: int = CLASSES  # classes that occur, 2 to 172; balanced to within one node
    features: int = 64
    feature_dtype: str = "float32"  # as in OGB's archive, or "float16"
    text_words: int = 32  # of title and abstract together, at least 2; a quarter of them are the title's
    # Share of the nodes that have a label: 78% of these are for training, 8% for validation, 14% for testing, split by
    # year. Each class has at least one training node.
    labelled: float = LABELLED
    seed: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (("num_nodes", 2), ("num_edges", 0), ("features", 1), ("seed", 0), ("text_words", 2)):
            if getattr(self, name) < minimum:
                raise DataError(f"{name} is {getattr(self, name)}, expected at least {minimum}")
        if not 0 <= self.labelled <= 1:
            raise DataError(f"labelled is {self.labelled}, expected 0 to 1")
        if self.feature_dtype not in ("float16", "float32"):
            raise DataError(f"feature_dtype is '{self.feature_dtype}', expected 'float16' or 'float32'")
        if not 2 <= self.num_classes <= CLASSES or int(TRAIN * self.num_labelled) < self.num_classes:
            raise DataError(
                f"{self.num_labelled} labelled nodes (of {self.num_nodes}) for {self.num_classes} classes, expected 2 "
                f"to {CLASSES} classes and at least {math.ceil(self.num_classes / TRAIN)} labelled nodes; raise the "
                "number of nodes or the share that is labelled, or take fewer classes"
            )

    def write(self, folder: Path) -> Path:
        """Write all files into ``folder`` (``<root>/ogbn_papers100M`` for the loader), which must not exist."""
        if folder.exists():
            raise DataError(f"{folder} exists; expected a new folder: delete that one, or name another")
        return make_once(folder, self._make)

    def _make(self, folder: Path) -> None:
        for subfolder in ("raw", "split/time", "mapping"):
            (folder / subfolder).mkdir(parents=True)
        split = self.split()
        _write_data(folder / "raw/data.npz", self, split)
        _write_labels(folder / "raw/node-label.npz", self, np.sort(np.concatenate(list(split.values()))))
        for subset, nodes in split.items():
            _write_lines(folder / f"split/time/{subset}.csv.gz", iter([nodes.tolist()]))
        _write_mappings(folder / "mapping", self.num_nodes)
        title = max(1, self.text_words // 4)
        _write_texts(folder / "idx_title.tsv", self, TITLES, title, WITHOUT_TITLE)
        _write_texts(folder / "idx_abs.tsv", self, ABSTRACTS, self.text_words - title, WITHOUT_ABSTRACT)
        (folder / "RELEASE_v1.txt").touch()

    @property
    def num_labelled(self) -> int:
        return round(self.labelled * self.num_nodes)

    @cached_property
    def _factor(self) -> int:
        factor = int(self.num_nodes * (math.sqrt(5) - 1) / 2)
        while math.gcd(factor, self.num_nodes) != 1:
            factor += 1
        return factor

    def generator(self, stream: int, block: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, block])

    def place_of(self, node: np.ndarray) -> np.ndarray:
        return (node * self._factor + self.seed % self.num_nodes) % self.num_nodes

    def node_at(self, place: np.ndarray) -> np.ndarray:
        inverse = pow(self._factor, -1, self.num_nodes)
        return (place - self.seed % self.num_nodes) * inverse % self.num_nodes

    def class_of(self, node: np.ndarray) -> np.ndarray:
        return self.place_of(node) % self.num_classes

    def class_size(self, class_index: np.ndarray) -> np.ndarray:
        return (self.num_nodes - 1 - class_index) // self.num_classes + 1

    def split(self) -> dict[str, np.ndarray]:
        """Sorted nodes per part of the split. Classes are dealt in turn, so that each part is balanced."""
        rng, num = self.generator(DEAL), self.num_labelled
        nodes = np.empty(num, dtype=np.int64)
        for class_index in range(self.num_classes):
            dealt = len(range(class_index, num, self.num_classes))
            rank = rng.choice(int(self.class_size(np.array(class_index))), dealt, replace=False)
            nodes[class_index :: self.num_classes] = self.node_at(rank * self.num_classes + class_index)
        train = int(TRAIN * num)
        subsets = np.split(nodes, [train, train + int(VALID * num)])
        return {subset: np.sort(nodes) for subset, nodes in zip(SPLITS, subsets, strict=True)}

    def node_blocks(self, description: str) -> Iterator[tuple[int, np.ndarray]]:
        """Number and nodes of each block."""
        with Progress(total=self.num_nodes, desc=description, unit="node", unit_scale=True) as bar:
            for block, start in enumerate(range(0, self.num_nodes, NODES_AT_ONCE)):
                nodes = np.arange(start, min(start + NODES_AT_ONCE, self.num_nodes))
                yield block, nodes
                bar.update(len(nodes))

    def edges(self, description: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Sources and targets, int64, block by block; the same ones each time."""
        with Progress(total=self.num_edges, desc=description, unit="edge", unit_scale=True) as bar:
            for block, start in enumerate(range(0, self.num_edges, EDGES_AT_ONCE)):
                size = min(EDGES_AT_ONCE, self.num_edges - start)
                yield self._edge_block(self.generator(EDGES, block), size)
                bar.update(size)

    def _edge_block(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
        source = rng.integers(0, self.num_nodes, size)
        source_class = self.class_of(source)
        same_class = rng.random(size) < STRUCTURE_SIGNAL
        # The square of a uniform: the nth of a row is drawn with a probability that falls as 1/sqrt(n).
        drawn = rng.random(size)
        drawn *= drawn
        rank = (drawn * np.where(same_class, self.class_size(source_class), self.num_nodes)).astype(np.int64)
        target = self.node_at(np.where(same_class, rank * self.num_classes + source_class, rank))
        loop = target == source
        target[loop] = (target[loop] + 1) % self.num_nodes
        return source, target


# ---- arrays -------------------------------------------------------------------------------------------------------


def _write_data(path: Path, graph: Papers100MLike, split: dict[str, np.ndarray]) -> None:
    dtype = np.dtype(graph.feature_dtype)
    with zipfile.ZipFile(path, "w") as archive:
        with _member(archive, "edge_index", np.dtype(np.int64), (2, graph.num_edges)) as file:
            for end, description in enumerate(("sources of edges", "targets of edges")):
                for ends in graph.edges(description):
                    file.write(ends[end].data)
        for kind, number in (("nodes", graph.num_nodes), ("edges", graph.num_edges)):
            with _member(archive, f"num_{kind}_list", np.dtype(np.int64), (1,)) as file:
                file.write(np.array([number]).data)
        with _member(archive, "node_feat", dtype, (graph.num_nodes, graph.features)) as file:
            means = draw_class_means(graph.generator(MEANS), graph.num_classes, graph.features)
            for block, nodes in graph.node_blocks("features"):
                rng = graph.generator(FEATURES, block)
                drawn = draw_features(rng, graph.class_of(nodes), means, TEXT_SIGNAL)
                file.write(drawn.astype(dtype).data)
        with _member(archive, "node_year", np.dtype(np.int64), (graph.num_nodes, 1)) as file:
            for block, nodes in graph.node_blocks("years"):
                years = graph.generator(YEARS, block).integers(FIRST_YEAR, TEST_YEAR + 1, len(nodes))
                train = _positions_of(split["train"], nodes)
                years[train] = np.minimum(years[train], TRAIN_YEAR)
                years[_positions_of(split["valid"], nodes)] = VALID_YEAR
                years[_positions_of(split["test"], nodes)] = TEST_YEAR
                file.write(years.data)


def _write_labels(path: Path, graph: Papers100MLike, labelled: np.ndarray) -> None:
    with (
        zipfile.ZipFile(path, "w") as archive,
        _member(archive, "node_label", np.dtype(np.float32), (graph.num_nodes, 1)) as file,
    ):
        for _, nodes in graph.node_blocks("labels"):
            label = np.full(len(nodes), np.nan, dtype=np.float32)
            positions = _positions_of(labelled, nodes)
            label[positions] = graph.class_of(nodes[positions])
            file.write(label.data)


def _member(archive: zipfile.ZipFile, key: str, dtype: np.dtype, shape: tuple[int, ...]) -> IO[bytes]:
    """A new, uncompressed array of an .npz file, open for its bytes."""
    info = zipfile.ZipInfo(f"{key}.npy")  # dated 1980, so that the same arguments give the same file
    file = archive.open(info, "w", force_zip64=True)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _positions_of(selected: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Positions in a block of consecutive nodes of those that are in ``selected``, which is sorted."""
    start, stop = np.searchsorted(selected, [nodes[0], nodes[-1] + 1])
    return selected[start:stop] - nodes[0]


# ---- tables and texts ---------------------------------------------------------------------------------------------


def _write_mappings(folder: Path, num_nodes: int) -> None:
    categories = (f"{index},arxiv generated {index}" for index in range(CLASSES))
    _write_lines(folder / "labelidx2arxivcategeory.csv.gz", iter([["label idx,arxiv category"], categories]))

    def papers() -> Iterator[Any]:
        yield ["node idx,paper id"]
        for start in range(0, num_nodes, NODES_AT_ONCE):
            yield (f"{node},{1_000_000_000 + node}" for node in range(start, min(start + NODES_AT_ONCE, num_nodes)))

    _write_lines(folder / "nodeidx2paperid.csv.gz", papers())


def _write_lines(path: Path, blocks: Iterator[Any]) -> None:
    write_blocks(path, ("".join(f"{line}\n" for line in lines).encode() for lines in blocks))


def _write_texts(path: Path, graph: Papers100MLike, stream: int, words: int, missing: float) -> None:
    vocabulary = VOCABULARY * graph.num_classes
    with path.open("w", encoding="utf-8") as file:
        for block, nodes in graph.node_blocks(path.name):
            rng = graph.generator(stream, block)
            present = rng.random(len(nodes)) >= missing
            label = graph.class_of(nodes)
            texts = draw_texts(rng, label, graph.num_classes, vocabulary, words, TEXT_SIGNAL)
            file.writelines(
                f"{node}\t{text}\n"
                for node, text, is_present in zip(nodes.tolist(), texts, present, strict=True)
                if is_present
            )
