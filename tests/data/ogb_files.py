"""Miniatures of OGB's datasets and of their raw texts, in the exact formats that are published."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request

import numpy as np
import pandas as pd

from glem_graphgym.data.ogb import load_ogbn_arxiv, load_ogbn_papers100m, load_ogbn_products
from glem_graphgym.data.text_graph import TextGraph

N = 12
EDGES = [(0, 1), (1, 0), (0, 1), (2, 2), (5, 3), (7, 11), (11, 10), (3, 4), (8, 2)]
UNDIRECTED = [(0, 1), (2, 8), (3, 4), (3, 5), (7, 11), (10, 11)]
FEATURES = np.arange(2 * N).reshape(N, 2) / 8
SPLIT = {"train": [5, 0, 2, 1], "valid": [3, 7], "test": [11, 4, 6, 8, 9, 10]}


def write_table(path: Path, rows: Iterable) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(",".join(map(str, row)) + "\n" for row in rows).encode()))


def write_lines(path: Path, rows: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(row + b"\n" for row in rows)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _write_csv_archive(folder: Path, split: str, labels: list[int]) -> None:
    for name, rows in {
        "raw/edge": EDGES,
        "raw/node-feat": FEATURES.tolist(),
        "raw/node-label": [[label] for label in labels],
        "raw/num-node-list": [[N]],
        "raw/num-edge-list": [[len(EDGES)]],
        **{f"split/{split}/{part}": [[node] for node in nodes] for part, nodes in SPLIT.items()},
    }.items():
        write_table(folder / f"{name}.csv.gz", rows)


class Response(io.BytesIO):
    """What a server answers: some content, with its length where it tells it."""

    def __init__(self, content: bytes, length: int | None = None, status: int = 200, **headers: str) -> None:
        super().__init__(content)
        self.status = status
        self.headers = dict(headers) if length is None else {"Content-Length": str(length), **headers}


def serving(server: dict[str, bytes], asked: list[str] | None = None) -> Callable[..., Response]:
    """What stands in for `urlopen`: a server with these files; notes in ``asked`` what it is asked for."""

    def answer(request: Request, timeout: float) -> Response:
        if asked is not None:
            asked.append(request.full_url)
        return Response(server[request.full_url], len(server[request.full_url]))

    return answer


def packed(folder: Path, name: str) -> bytes:
    """A zip archive of the folder ``name`` in ``folder``."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted((folder / name).rglob("*")):
            archive.write(path, path.relative_to(folder))
    return content.getvalue()


def read_by_ogb(name: str, root: Path) -> tuple[Any, Any]:
    """The graph and split of OGB's own class."""
    import torch
    from ogb.nodeproppred import PygNodePropPredDataset
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    # OGB keeps the number of nodes as a number of NumPy's.
    scalar = [np._core.multiarray.scalar, np.dtype, np.dtypes.Int64DType]
    with torch.serialization.safe_globals([DataEdgeAttr, DataTensorAttr, GlobalStorage, *scalar]):
        dataset = PygNodePropPredDataset(name, root=str(root))
        return dataset[0], dataset.get_idx_split()


# ---- ogbn-arxiv ---------------------------------------------------------------------------------------------------

PAPERS = [9657784 + 7 * node for node in range(N)]
ARXIV_LABELS = [0, 4, 39, 4, 0, 4, 39, 0, 4, 4, 39, 0]


def write_arxiv(folder: Path) -> None:
    _write_csv_archive(folder, "time", ARXIV_LABELS)
    write_table(folder / "raw/node_year.csv.gz", [[2010 + node] for node in range(N)])
    write_papers(folder, list(enumerate(PAPERS)))
    categories = [("label idx", "arxiv category"), *((i, f"arxiv cs {i:02}") for i in range(40))]
    write_table(folder / "mapping/labelidx2arxivcategeory.csv.gz", categories)
    (folder / "RELEASE_v1.txt").write_text("# Release note for ogbn-arxiv\n")


def write_papers(folder: Path, rows: list[tuple[int, int]]) -> None:
    write_table(folder / "mapping/nodeidx2paperid.csv.gz", [("node idx", "paper id"), *rows])


def arxiv_rows() -> list[bytes]:
    return [f"{paper}\ttitle {node}\tabout {node}".encode() for node, paper in enumerate(PAPERS)]


# ---- ogbn-products ------------------------------------------------------------------------------------------------

# Product ids are no numbers, in no order, and of different lengths.
ASINS = [f"B00{(7 * node) % N:07d}" for node in range(N - 1)] + ["059"]
PRODUCT_LABELS = [0, 4, 46, 4, 0, 4, 46, 0, 4, 4, 24, 0]


def write_products(folder: Path) -> None:
    _write_csv_archive(folder, "sales_ranking", PRODUCT_LABELS)
    write_asins(folder, ASINS)
    names = ["All Electronics" if i == 0 else "Furniture &amp; Decor" if i == 45 else f"name {i}" for i in range(47)]
    names[24] = ""
    rows = [("label idx", "product category"), *enumerate(names)]
    write_table(folder / "mapping/labelidx2productcategory.csv.gz", rows)
    (folder / "RELEASE_v1.txt").write_text("# Release note for ogbn-products\n")


def write_asins(folder: Path, asins: list[str]) -> None:
    write_table(folder / "mapping/nodeidx2asin.csv.gz", [("node idx", "asin"), *enumerate(asins)])


def product_row(uid: Any, title: Any, content: Any) -> bytes:
    """A line as Amazon-3M has it, with what nobody needs here."""
    useless = {"target_ind": [3, 1], "target_rel": [1.0]}
    return json.dumps({"uid": uid, "title": title, "content": content, **useless}).encode()


def amazon_rows() -> tuple[list[bytes], list[bytes]]:
    """Products of ``trn.json.gz`` and of ``tst.json.gz``, in an order that is not that of the nodes."""
    rows = [product_row(asin, f"title {node}", f"about {node}") for node, asin in enumerate(ASINS)]
    strangers = [product_row(f"S{i:09d}", "a stranger", "of no node") for i in range(4)]
    return [*strangers[:2], *rows[::-2]], [*rows[-2::-2], *strangers[2:]]


def write_amazon(folder: Path, trn: list[bytes] | None = None, tst: list[bytes] | None = None) -> None:
    first, second = amazon_rows()
    write_lines(folder / "trn.json.gz", first if trn is None else trn)
    write_lines(folder / "tst.json.gz", second if tst is None else tst)


# ---- ogbn-papers100M ----------------------------------------------------------------------------------------------

NAN = float("nan")
PAPERS100M_LABELS = [0, 4, 171, 4, 0, 4, 171, 0, 4, 4, 171, 0, NAN, NAN, NAN]
M = len(PAPERS100M_LABELS)  # beside the labelled nodes, some without a label
CITATIONS = np.array([*EDGES, (13, 14), (12, 0)], dtype=np.int64).T
CITATIONS_UNDIRECTED = sorted([*UNDIRECTED, (13, 14), (0, 12)])
PAPERS100M_FEATURES = (np.arange(4 * M).reshape(M, 4) / 8).astype(np.float32)


def write_papers100m(
    folder: Path, save: Callable[..., None] = np.savez_compressed, order: str = "C", **changed: np.ndarray
) -> None:
    """OGB's binary archive, deflated as OGB's own code does it or not; ``changed`` arrays take the place of others."""
    arrays = {
        "edge_index": np.asarray(CITATIONS, order=order),  # type: ignore[call-overload]
        "node_feat": np.asarray(PAPERS100M_FEATURES, order=order),  # type: ignore[call-overload]
        "node_year": np.full((M, 1), 2015),
        "num_nodes_list": np.array([M]),
        "num_edges_list": np.array([CITATIONS.shape[1]]),
    }
    labels = changed.pop("node_label", np.array(PAPERS100M_LABELS, dtype=np.float32).reshape(-1, 1))
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    arrays = {name: array for name, array in {**arrays, **changed}.items() if array is not None}
    save(folder / "raw/data.npz", **arrays)
    save(folder / "raw/node-label.npz", node_label=labels)
    for part, nodes in SPLIT.items():
        write_table(folder / f"split/time/{part}.csv.gz", [[node] for node in nodes])
    categories = [("label idx", "arxiv category"), *((i, f"arxiv cs {i:02}") for i in range(172))]
    write_table(folder / "mapping/labelidx2arxivcategeory.csv.gz", categories)
    (folder / "RELEASE_v1.txt").write_text("# Release note for ogbn-papers100M\n")


def title_rows() -> list[bytes]:
    return [f"{node}\ttitle {node}".encode() for node in range(M)]


def abstract_rows() -> list[bytes]:
    """Some papers have no abstract."""
    return [f"{node}\tabout {node}".encode() for node in range(M) if node not in (0, 4, 5, M - 1)]


def papers100m_texts() -> list[str]:
    without = (0, 4, 5, M - 1)
    return [f"Title: title {node}" + ("" if node in without else f". Abstract: about {node}") for node in range(M)]


def write_paperinfo(
    path: Path, titles: list[bytes] | None = None, abstracts: list[bytes] | None = None, deflate: bool = True
) -> None:
    """Titles and abstracts: a folder, or an archive where ``path`` ends in .zip."""
    rows = {
        "idx_title.tsv": title_rows() if titles is None else titles,
        "idx_abs.tsv": abstract_rows() if abstracts is None else abstracts,
    }
    if path.suffix != ".zip":
        for name, lines in rows.items():
            write_lines(path / name, lines)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        archive.writestr("paperinfo/", "")
        for name, lines in rows.items():
            archive.writestr(f"paperinfo/{name}", b"".join(line + b"\n" for line in lines))


def write_pyg(path: Path, texts: list[str]) -> Path:
    """PyG's copy of the texts, written as its TAGDataset writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(texts, columns=["text"]).to_csv(path, compression="gzip", index=False)
    return path


def complete_arxiv(root: Path) -> Path:
    """The folder of ogbn-arxiv in ``root``, with all its files."""
    write_arxiv(root / "ogbn_arxiv")
    write_lines(root / "ogbn_arxiv/titleabs.tsv.gz", arxiv_rows())
    return root / "ogbn_arxiv"


def complete_products(root: Path) -> Path:
    write_products(root / "ogbn_products")
    write_amazon(root / "ogbn_products/Amazon-3M.raw")
    return root / "ogbn_products"


def complete_papers100m(root: Path, *how: Any, **changed: Any) -> Path:
    write_papers100m(root / "ogbn_papers100M", *how, **changed)
    write_paperinfo(root / "ogbn_papers100M/paperinfo.zip")
    return root / "ogbn_papers100M"


class Miniature(NamedTuple):
    """A dataset of OGB: what writes all its files into a folder of datasets, what loads it, and names in its folder."""

    make: Callable[[Path], Path]
    load: Callable[[Path], TextGraph]
    split: str
    mapping: str


MINIATURES = {
    "arxiv": Miniature(complete_arxiv, load_ogbn_arxiv, "time", "nodeidx2paperid"),
    "products": Miniature(complete_products, load_ogbn_products, "sales_ranking", "nodeidx2asin"),
    "papers100M": Miniature(complete_papers100m, load_ogbn_papers100m, "time", ""),
}


def check_miniature(graph: TextGraph, labels: list[int], features: np.ndarray, edges: list[tuple[int, int]]) -> None:
    """Assert that a graph has these labels, features and edges, and the split of all miniatures."""
    assert edges_of(graph) == edges
    assert graph.label.tolist() == labels
    assert {part: nodes.tolist() for part, nodes in graph.split.items()} == {
        part: sorted(nodes) for part, nodes in SPLIT.items()
    }
    assert graph.features is not None
    assert graph.features.dtype == np.float32
    np.testing.assert_array_equal(graph.features, features)


def edges_of(graph: TextGraph) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in graph.edge_index().T if a < b]
