"""Generated graphs in the on-disk formats of ogbn-arxiv and ogbn-products, at their true sizes or at a share of them.

Exact: file names and formats, numbers of nodes, edges, features and classes, and the sizes of the split. Approximate:
the share of edges within a class, the sizes of the classes, and the largest degree. Assumed: the lengths of texts,
log-normal numbers of words (`ARXIV`, `PRODUCTS`). Words, features and edges reveal the class in part.
"""

from __future__ import annotations

import gzip
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from glem_graphgym.data.synthetic import draw_class_means, draw_features, draw_texts
from glem_graphgym.data.text_graph import SPLITS, Texts
from glem_graphgym.files import make_once
from glem_graphgym.progress import Progress

VOCABULARY = 731  # 512 words that are one token each, and 219 compounds of two: 1.3 tokens per word
TEXT_SIGNAL = 0.2  # share of a text's words, and of its features, that reveal a class
MISLEADING = 0.2  # share of texts that reveal a wrong class: there only neighbours help
NODES_AT_ONCE, EDGES_AT_ONCE = 1 << 14, 1 << 22


@dataclass(frozen=True)
class Lengths:
    """Log-normal numbers of words, from 1 to ``most``; a share ``missing`` of the texts has none."""

    mean: float
    spread: float  # standard deviation of the logarithm
    most: int
    missing: float = 0.0

    def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
        drawn = self.mean * np.exp(self.spread * rng.standard_normal(size) - self.spread**2 / 2)
        words = np.clip(np.rint(drawn), 1, self.most).astype(np.int64)
        words[rng.random(size) < self.missing] = 0
        return words


@dataclass(frozen=True)
class Shape:
    """The size and shape of a dataset of OGB."""

    name: str
    nodes: int
    edges: int  # rows of OGB's table of edges
    pairs: int  # pairs of nodes with an edge between them; each further row of edges is the reverse of another
    features: int
    classes: int
    split: tuple[int, int, int]  # numbers of train, validation and test nodes; their sum is ``nodes``
    split_name: str  # folder of the split
    homophily: float  # probability that an edge's target is drawn from the class of its source
    hubs: float  # a node of rank r is cited with a probability that falls as r^(1/hubs - 1)
    title: Lengths
    body: Lengths  # of an abstract or description

    def scaled(self, scale: float) -> Shape:
        """The same shape with ``scale`` times the nodes and edges."""
        train, valid, test = (max(1, round(scale * size)) for size in self.split)
        edges, pairs = round(scale * self.edges), round(scale * self.pairs)
        return replace(self, nodes=train + valid + test, edges=edges, pairs=pairs, split=(train, valid, test))


ARXIV = Shape(
    "ogbn-arxiv", nodes=169_343, edges=1_166_243, pairs=1_157_799, features=128, classes=40,
    split=(90_941, 29_799, 48_603), split_name="time", homophily=0.62, hubs=3.5,
    title=Lengths(9, 0.4, 40), body=Lengths(165, 0.4, 600),
)  # fmt: skip
PRODUCTS = Shape(
    "ogbn-products", nodes=2_449_029, edges=61_859_140, pairs=61_859_140, features=100, classes=47,
    split=(196_615, 39_323, 2_213_091), split_name="sales_ranking", homophily=0.78, hubs=2.0,
    title=Lengths(10, 0.5, 60), body=Lengths(65, 0.9, 1500, missing=0.1),
)  # fmt: skip


def write_graph(root: Path, shape: Shape, seed: int = 0) -> Path:
    """Write a graph of this shape where our loader looks for it under ``root``, unless it exists.

    Returns:
        The dataset's folder.
    """
    write_texts = {ARXIV.name: _write_papers, PRODUCTS.name: _write_products}[shape.name]

    def make(folder: Path) -> None:
        for subfolder in ("raw", "mapping", f"split/{shape.split_name}"):
            (folder / subfolder).mkdir(parents=True)
        rng = np.random.default_rng(seed)
        sizes = _class_sizes(shape)
        label = rng.permutation(np.repeat(np.arange(shape.classes), sizes))
        revealed = np.where(rng.random(shape.nodes) < MISLEADING, rng.permutation(label), label)
        split = np.split(rng.permutation(shape.nodes), np.cumsum(shape.split)[:-1])
        _write_tables(folder, shape, rng, label, revealed, split)
        write_texts(folder, shape, rng, revealed)
        (folder / "RELEASE_v1.txt").write_text(f"A generated graph in the format and size of {shape.name}\n")

    return make_once(root / shape.name.replace("-", "_"), make)


def _class_sizes(shape: Shape) -> np.ndarray:
    """Nodes per class, int64 (C,), in proportion to 1/2, 1/3, 1/4, ...: the largest has 15%, as in ogbn-arxiv."""
    weight = 1 / np.arange(2, shape.classes + 2)
    ends = np.rint(np.cumsum(weight) / weight.sum() * shape.nodes).astype(np.int64)
    return np.diff(ends, prepend=0)


# ---- tables -------------------------------------------------------------------------------------------------------


def _write_tables(
    folder: Path,
    shape: Shape,
    rng: np.random.Generator,
    label: np.ndarray,
    revealed: np.ndarray,
    split: list[np.ndarray],
) -> None:
    write_blocks(folder / "raw/num-node-list.csv.gz", [f"{shape.nodes}\n".encode()])
    write_blocks(folder / "raw/num-edge-list.csv.gz", [f"{shape.edges}\n".encode()])
    write_blocks(folder / "raw/node-label.csv.gz", [_lines(label)])
    for subset, nodes in zip(SPLITS, split, strict=True):
        write_blocks(folder / f"split/{shape.split_name}/{subset}.csv.gz", [_lines(np.sort(nodes))])
    if shape.split_name == "time":
        year = np.empty(shape.nodes, dtype=np.int64)
        for nodes, (first_year, last_year) in zip(split, ((1995, 2017), (2018, 2018), (2019, 2020)), strict=True):
            year[nodes] = rng.integers(first_year, last_year + 1, len(nodes))
        write_blocks(folder / "raw/node_year.csv.gz", [_lines(year)])
    node_cells = Cells(f"{node}" for node in range(shape.nodes))
    edges, rows = draw_edges(rng, label, shape), EDGES_AT_ONCE // 4
    starts = Progress(range(0, len(edges), rows), desc="edges")
    write_blocks(folder / "raw/edge.csv.gz", (node_cells.lines(edges[start : start + rows]) for start in starts))
    means = draw_class_means(rng, shape.classes, shape.features)
    # Three decimals between -10 and 10.
    numbers = Cells(f"{thousandths / 1000:.3f}" for thousandths in range(-9999, 10_000))

    def features() -> Iterator[np.ndarray]:
        for start in range(0, shape.nodes, NODES_AT_ONCE):
            drawn = draw_features(rng, revealed[start : start + NODES_AT_ONCE], means, TEXT_SIGNAL)
            yield np.clip(np.rint(drawn * 1000), -9999, 9999).astype(np.int64) + 9999

    blocks = Progress(features(), desc="features", total=-(-shape.nodes // NODES_AT_ONCE))
    write_blocks(folder / "raw/node-feat.csv.gz", (numbers.lines(block) for block in blocks))


def draw_edges(rng: np.random.Generator, label: np.ndarray, shape: Shape) -> np.ndarray:
    """Directed edges, int64 (E, 2), in random order: ``shape.pairs`` different pairs, some in both directions.

    Sources are uniform; targets are drawn by rank, from the class of the source or from all nodes.
    """
    nodes = len(label)
    shuffled = rng.permutation(nodes)
    nodes_by_class = shuffled[np.argsort(label[shuffled], kind="stable")]
    class_size = np.bincount(label, minlength=shape.classes)
    class_start = np.cumsum(class_size) - class_size

    def draw(size: int) -> np.ndarray:
        """Pairs coded as 2·(lower·N + higher), plus 1 if the higher node is the source."""
        source = rng.integers(0, nodes, size)
        same_class = rng.random(size) < shape.homophily
        pool_size = np.where(same_class, class_size[label[source]], nodes)
        rank = (rng.random(size) ** shape.hubs * pool_size).astype(np.int64)
        target = np.where(same_class, nodes_by_class[(rank + class_start[label[source]]) % nodes], shuffled[rank])
        code = (np.minimum(source, target) * nodes + np.maximum(source, target)) * 2 + (source > target)
        return code[source != target]

    codes = np.empty(0, dtype=np.int64)
    with Progress(total=shape.pairs, desc="drawing edges", unit="edge", unit_scale=True) as bar:
        while len(codes) < shape.pairs:
            remaining = shape.pairs - len(codes)
            sizes = [min(EDGES_AT_ONCE, remaining - start) for start in range(0, remaining, EDGES_AT_ONCE)]
            codes = np.concatenate([codes, *(draw(size) for size in sizes)])
            codes.sort()
            codes = codes[np.diff(codes >> 1, prepend=-1) > 0]
            bar.update(len(codes) - bar.n)
    reverse = rng.choice(codes, shape.edges - shape.pairs, replace=False) ^ 1
    codes = np.concatenate([codes, reverse])
    rng.shuffle(codes)
    flipped = codes & 1
    codes >>= 1
    edges = np.stack([codes // nodes, codes % nodes], axis=1)
    edges[flipped == 1] = edges[flipped == 1, ::-1]
    return edges


class Cells:
    """Writes CSV lines; their cells come from a fixed list of up to a few million texts."""

    def __init__(self, cells: Iterable[str]) -> None:
        cell_bytes = np.array(list(cells), dtype="S")
        self._with_comma, self._with_end = (np.char.add(cell_bytes, end) for end in (b",", b"\n"))

    def lines(self, rows: np.ndarray) -> bytes:
        """The CSV lines for ``rows``, int64 (n, F): indices of cells."""
        letters = self._with_comma[rows]
        letters[:, -1] = self._with_end[rows[:, -1]]
        raw = letters.view(np.uint8)
        return raw[raw != 0].tobytes()


def _lines(numbers: np.ndarray) -> bytes:
    return b"".join(b"%d\n" % number for number in numbers.tolist())


def write_blocks(path: Path, blocks: Iterable[bytes]) -> None:
    """Write a gzipped file block by block; the same bytes give the same file."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
        for block in blocks:
            file.write(block)


# ---- texts --------------------------------------------------------------------------------------------------------


def _texts(rng: np.random.Generator, revealed: np.ndarray, shape: Shape, lengths: Lengths) -> Texts:
    words = lengths.draw(rng, len(revealed))
    return draw_texts(rng, revealed, shape.classes, VOCABULARY, words, TEXT_SIGNAL)


def _blocks_of_texts(
    rng: np.random.Generator, revealed: np.ndarray, shape: Shape
) -> Iterator[tuple[int, Texts, Texts]]:
    """The first node of each block, with the block's titles and bodies."""
    for start in Progress(range(0, len(revealed), NODES_AT_ONCE), desc="texts"):
        block = revealed[start : start + NODES_AT_ONCE]
        yield start, _texts(rng, block, shape, shape.title), _texts(rng, block, shape, shape.body)


def _write_mapping(folder: Path, name: str, header: str, names: list[str]) -> None:
    rows = [header, *(f"{index},{name}" for index, name in enumerate(names))]
    write_blocks(folder / f"mapping/{name}.csv.gz", ["".join(f"{row}\n" for row in rows).encode()])


def _write_papers(folder: Path, shape: Shape, rng: np.random.Generator, revealed: np.ndarray) -> None:
    """``titleabs.tsv.gz`` as published: a gzipped tar archive with rows in random order.

    It includes papers that are not in the graph, and a header.
    """
    extra_papers = shape.nodes // 20
    papers = rng.choice(2_900_000_000, shape.nodes + extra_papers, replace=False) + 9_657_784
    names = [str(paper) for paper in papers.tolist()]
    _write_mapping(folder, "nodeidx2paperid", "node idx,paper id", names[: shape.nodes])
    categories = [f"arxiv generated {index}" for index in range(shape.classes)]
    _write_mapping(folder, "labelidx2arxivcategeory", "label idx,arxiv category", categories)
    rows = ["paper id\ttitle\tabstract\n"]
    for start, titles, abstracts in _blocks_of_texts(rng, np.append(revealed, revealed[:extra_papers]), shape):
        block_papers = names[start : start + NODES_AT_ONCE]
        rows += [
            f"{paper}\t{title}\t{abstract}\n"
            for paper, title, abstract in zip(block_papers, titles, abstracts, strict=True)
        ]
    order = [0, *(1 + rng.permutation(len(rows) - 1)).tolist()]
    member = tarfile.TarInfo("titleabs.tsv")
    member.size = sum(map(len, rows))  # all of it is ASCII
    padding = b"\0" * (-(member.size + tarfile.BLOCKSIZE) % tarfile.RECORDSIZE)
    blocks = (rows[row].encode() for row in order)
    write_blocks(folder / "titleabs.tsv.gz", itertools.chain([member.tobuf(tarfile.GNU_FORMAT)], blocks, [padding]))


def _write_products(folder: Path, shape: Shape, rng: np.random.Generator, revealed: np.ndarray) -> None:
    """``trn.json.gz`` and ``tst.json.gz`` of Amazon-3M: 70% and 30% of the products, in the order of the nodes."""
    names = [f"B{number:09d}" for number in rng.choice(10**9, shape.nodes, replace=False).tolist()]
    _write_mapping(folder, "nodeidx2asin", "node idx,asin", names)
    categories = [f"Generated &amp; Category {index}" for index in range(shape.classes)]
    _write_mapping(folder, "labelidx2productcategory", "label idx,product category", categories)
    train_size = 7 * shape.nodes // 10

    def lines(start: int, end: int) -> Iterator[bytes]:
        for begin, titles, contents in _blocks_of_texts(rng, revealed[start:end], shape):
            uids = names[start + begin : start + begin + len(titles)]
            rows = (
                {"uid": uid, "title": title, "content": content, "target_ind": [7, 11], "target_rel": [1.0, 1.0]}
                for uid, title, content in zip(uids, titles, contents, strict=True)
            )
            yield "".join(json.dumps(row) + "\n" for row in rows).encode()

    write_blocks(folder / "trn.json.gz", lines(0, train_size))
    write_blocks(folder / "tst.json.gz", lines(train_size, shape.nodes))
