"""Well-known graphs by name: how their files are read, where to get them, and what they must contain."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from glem_graphgym.data.errors import DataError, listed

if TYPE_CHECKING:
    from glem_graphgym.data.from_tables import Reader
    from glem_graphgym.data.text_graph import TextGraph

# Layout, as dataset.name -> its reader, which `reader_of` imports.
LAYOUTS = {
    "table": "glem_graphgym.data.table:TABLE",
    "pyg": "glem_graphgym.data.pyg_file:PYG",
    "wikics": "glem_graphgym.data.wikics:WIKICS",
}
# Tolerance, as papers count edges once or in both directions, with or without self-loops and repetitions.
EDGES_WITHIN = 0.05


@dataclass(frozen=True)
class PublishedGraph:
    """A published benchmark graph.

    Attributes:
        layout: key of `LAYOUTS`.
        files: name of a file -> its URL, or "" if it must be downloaded by hand.
        site: page that offers the files.
        nodes, classes: their numbers.
        edges: number of edges in the graph's documentation.
        splits: number of fixed splits; None = not stated.
    """

    layout: str
    files: dict[str, str]
    site: str
    nodes: int
    classes: int
    edges: int
    splits: int | None = None


def _llmnodebed(name: str, nodes: int, classes: int, edges: int) -> PublishedGraph:
    site = "https://huggingface.co/datasets/xxwu/LLMNodeBed"
    return PublishedGraph("pyg", {f"{name}.pt": f"{site}/resolve/main/{name}.pt"}, site, nodes, classes, edges)


def _cs_tag(name: str, nodes: int, classes: int, edges: int) -> PublishedGraph:
    site = "https://huggingface.co/datasets/Sherirto/CSTAG"
    files = {file: f"{site}/resolve/main/{name}/{file}" for file in (f"{name}.pt", f"{name}.csv")}
    return PublishedGraph("pyg", files, site, nodes, classes, edges)


WIKICS = "https://github.com/pmernyei/wiki-cs-dataset"
PUBLISHED_GRAPHS = {
    # Nodes, edges and classes: README of TAGLAS (cora, pubmed), table of PromptGNN-sim (citeseer, with its texts).
    "cora": _llmnodebed("cora", 2_708, 7, 5_429),
    "citeseer": _llmnodebed("citeseer", 3_186, 6, 4_277),
    "pubmed": _llmnodebed("pubmed", 19_717, 3, 44_338),
    # Documentation of PyTorch Geometric's WikiCS; the README of its authors has the 20 splits.
    "wikics": PublishedGraph(
        "wikics",
        {name: f"{WIKICS}/raw/master/dataset/{name}" for name in ("data.json", "metadata.json")},
        WIKICS, 11_701, 10, 216_123, 20,
    ),
    # The paper of TAPE, whose README offers the files.
    "arxiv_2023": PublishedGraph(
        "pyg", {"graph.pt": "", "paper_info.csv": ""}, "https://github.com/XiaoxinHe/TAPE", 46_198, 40, 78_548
    ),
    # Table 3 of GLBench's paper, and the paper of GraphAdapter, which published both graphs.
    "instagram": _llmnodebed("instagram", 11_339, 2, 144_010),
    "reddit": _llmnodebed("reddit", 33_434, 2, 198_448),
    # Table of datasets in the paper of CS-TAG.
    "history": _cs_tag("History", 41_551, 12, 358_574),
    "children": _cs_tag("Children", 76_875, 24, 1_554_578),
    "photo": _cs_tag("Photo", 48_362, 12, 500_928),
    "computers": _cs_tag("Computers", 87_229, 10, 721_081),
    "fitness": _cs_tag("Fitness", 173_055, 13, 1_773_500),
}  # fmt: skip


def reader_of(layout: str) -> Reader:
    """Import the reader of a layout; raises DataError if there is no such layout."""
    if layout not in LAYOUTS:
        raise DataError(
            f"dataset.name is '{layout}', which is no layout of files; expected one of: {', '.join(LAYOUTS)}, or of "
            f"the published graphs {', '.join(PUBLISHED_GRAPHS)}"
        )
    module, _, name = LAYOUTS[layout].partition(":")
    reader: Reader = getattr(import_module(module), name)
    return reader


def layout_of(source: Path) -> str:
    """The layout of a user's file or folder, judged by file names."""
    if all((source / name).is_file() for name in PUBLISHED_GRAPHS["wikics"].files):
        return "wikics"
    return "pyg" if source.suffix.lower() in (".pt", ".pth", ".bin", ".dgl") else "table"


def source_of(name: str, folder: Path) -> Path:
    """Path to give to the reader of a published graph, whose missing files are first downloaded into ``folder``.

    Raises:
        DataError: files are missing and cannot be downloaded; says where to get them and where to put them.
    """
    from glem_graphgym.data.ogb.download import download

    published = PUBLISHED_GRAPHS[name]
    missing = [file for file in published.files if not (folder / file).is_file()]
    remedy = f"Put {' and '.join(missing)} of {published.site} into {folder}"
    for file in missing:
        if not published.files[file]:
            raise DataError(f"dataset.name {name}: {folder} has no {' and no '.join(missing)}. {remedy}")
        download(published.files[file], folder / file, remedy)
    return folder if published.layout == "wikics" else folder / next(iter(published.files))


def check_published(name: str, graph: TextGraph) -> None:
    """Raise DataError with all numbers (nodes, edges, …) in which a graph differs from the published one."""
    published, origin = PUBLISHED_GRAPHS[name], graph.origin
    rows = origin["edges"] + origin["self_loops"] + origin["repeated_edges"]
    counts = [origin["edges"], origin["edges"] + origin["self_loops"], rows, rows / 2, 2 * origin["edges"]]
    splits = 1 if graph.splits is None else len(graph.splits)
    wrong = [
        f"{value:,} {quantity}, expected {expected:,}"
        for quantity, value, expected in (
            ("nodes", graph.num_nodes, published.nodes),
            ("classes", graph.num_classes, published.classes),
            ("splits", splits, published.splits or splits),
        )
        if value != expected
    ]
    if not any(abs(count - published.edges) <= EDGES_WITHIN * published.edges for count in counts):
        wrong.append(f"{origin['edges']:,} edges, expected {published.edges:,}")
    if wrong:
        raise DataError(
            f"{origin['where']} is not {name} as published ({published.site}): it has {listed(wrong)}. "
            "Download it again; for another graph in this layout, set dataset.name to table or pyg, and "
            "dataset.tag_source"
        )
