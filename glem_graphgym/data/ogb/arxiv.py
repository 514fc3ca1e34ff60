"""ogbn-arxiv with its raw text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from glem_graphgym.data.errors import DataError, listed
from glem_graphgym.data.ogb.archive import ARXIV_CATEGORIES, OgbArchive, read_mapping
from glem_graphgym.data.ogb.download import check_download, download
from glem_graphgym.data.ogb.text_files import PYG_TEXT, TextFile, decoded, find, node_texts, report, sentence
from glem_graphgym.data.text_graph import TextGraph, Texts, csr_from_edges, snapshot
from glem_graphgym.files import fingerprint, sampled_fingerprint

# Increment whenever the same files would give another graph than before.
RECIPE_VERSION = 1
TEXT = "titleabs.tsv.gz"
TEXT_URL = f"https://snap.stanford.edu/ogb/data/misc/ogbn_arxiv/{TEXT}"
PAPERS = "mapping/nodeidx2paperid.csv.gz"
REMEDY = f"delete it to have it downloaded again, or put {TEXT_URL} in its place"


def load_ogbn_arxiv(root: Path) -> TextGraph:
    """ogbn-arxiv with titles and abstracts: 169,343 papers, 40 classes, citations made undirected.

    OGB's archive and the text, ``titleabs.tsv.gz``, are downloaded into ``<root>/ogbn_arxiv`` if missing. The text is
    looked for there, then in ``root`` (also as ``titleabs.tsv``), then in ``<root>/ogbn_arxiv/raw`` as PyG's copy
    ``node-text.csv.gz``. The graph is frozen under ``<root>/ogbn_arxiv/text_graph``, one folder per content of files.

    ``features`` are OGB's, float32 (N, 128), means of word vectors; ``node_ids`` are the paper ids of the Microsoft
    Academic Graph. A paper without a text gets an empty one, is counted in ``origin`` and logged.

    Raises:
        DataError: a file is missing and cannot be downloaded, is damaged, or belongs to another dataset; says which
            file is expected where, and from which URL.
    """
    archive = OgbArchive.of("ogbn-arxiv", root, PAPERS)
    archive.provide()
    text_file = _find_text(archive.folder)
    if text_file is None:
        text_file = archive.folder / TEXT
        download(TEXT_URL, text_file, _remedy(archive.folder))
    papers = (archive.folder / PAPERS).read_bytes()
    key = fingerprint(RECIPE_VERSION, text_file.read_bytes(), papers, sampled_fingerprint(*archive.tables()))
    return snapshot(archive.folder / "text_graph" / key, lambda: _graph(archive, text_file))


def checks_of_ogbn_arxiv(root: Path) -> list[Callable[[], object]]:
    """Checks to run before anything is downloaded or made; each raises DataError for missing or wrong files."""
    archive = OgbArchive.of("ogbn-arxiv", root, PAPERS)
    checks: list[Callable[[], object]] = [archive.check]
    if _find_text(archive.folder) is None:
        checks.append(lambda: check_download(TEXT_URL, _remedy(archive.folder)))
    return checks


def _find_text(folder: Path) -> Path | None:
    text_file = find((folder, folder.parent), (TEXT, TEXT.removesuffix(".gz")))
    return text_file or find((folder / "raw", folder), (PYG_TEXT,))


def _remedy(folder: Path) -> str:
    return f"Download {TEXT_URL} and put it at {folder / TEXT}"


def _graph(archive: OgbArchive, text_file: Path) -> TextGraph:
    papers = read_mapping(archive.folder / PAPERS, "node idx", "paper id")
    if repeated := [paper for paper, count in Counter(papers).items() if count > 1 or not paper.strip()]:
        raise DataError(
            f"{archive.folder / PAPERS}: {len(repeated)} paper ids are of several nodes or empty ({listed(repeated)}); "
            "unpack OGB's archive anew"
        )
    class_names = archive.class_names(ARXIV_CATEGORIES)
    texts, counts = _texts(text_file, papers)
    missing = np.array([node for node, text in enumerate(texts) if not text], dtype=np.int64)
    expected = (
        "paper id, title and abstract, separated by tabs, of nearly all papers: this is another file or a part of it; "
        f"put {TEXT_URL} in its place"
    )
    report(text_file, "papers", counts, missing, papers, expected)
    graph = archive.read()
    if len(papers) != len(graph.label):
        raise DataError(
            f"{archive.folder / PAPERS}: {len(papers)} papers for {len(graph.label)} nodes; unpack OGB's archive anew"
        )
    source, target = graph.edge_index
    rowptr, col = csr_from_edges(source, target, len(papers))
    return TextGraph(
        name=archive.name,
        texts=Texts.of(texts),
        rowptr=rowptr,
        col=col,
        label=graph.label,
        split=graph.split,
        class_names=class_names,
        features=graph.features,
        node_ids=papers,
        origin={
            "files": [archive.release.name, text_file.name],
            "nodes": len(papers),
            "directed_edges": len(source),
            "edges": len(col) // 2,
            "missing_texts": len(missing),
            **counts,
        },
    )


def _texts(text_file: Path, papers: list[str]) -> tuple[list[str], dict[str, int]]:
    """The text of every paper, "" where there is none, and counts of rows."""
    counts = dict.fromkeys(("text_rows", "skipped_rows", "repeated_papers", "rows_not_utf8"), 0)
    if text_file.name != PYG_TEXT:
        text_of = _read_papers(text_file, counts)
        return [text_of.get(paper, "") for paper in papers], counts
    return list(node_texts(text_file, counts, len(papers), "papers")), counts


def _read_papers(path: Path, counts: dict[str, int]) -> dict[str, str]:
    """Text by paper id; if a paper has several rows, the first with a text wins."""
    texts: dict[str, str] = {}
    for raw in TextFile(path, REMEDY).lines():
        paper, *fields = raw.rstrip(b"\r\n").split(b"\t", 2)
        # The published file is a tar archive: its header is glued to the first row, zeros follow the last.
        paper = paper.rpartition(b"\0")[2]
        counts["text_rows"] += 1
        if not (fields and paper.isdigit()):
            counts["skipped_rows"] += 1
            continue
        title, _, abstract = decoded(b"\t".join(fields), counts).partition("\t")
        name = paper.decode()
        counts["repeated_papers"] += name in texts
        texts[name] = texts.get(name) or sentence(Title=title, Abstract=abstract)
    return texts
