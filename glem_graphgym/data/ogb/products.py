"""ogbn-products with its raw text, read from Amazon-3M without holding that in memory."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from glem_graphgym.data.ogb.archive import OgbArchive, read_mapping
from glem_graphgym.data.ogb.text_files import PYG_TEXT, TextFile, decoded, find, node_texts, report, sentence
from glem_graphgym.data.pieces import (
    Piece,
    load_without_sources,
    save_labels,
    snapshot_of_pieces,
    snapshot_without_sources,
    write_structure,
)
from glem_graphgym.data.text_graph import DataError, TextGraph, TextsWriter
from glem_graphgym.files import fingerprint, sampled_fingerprint

# Increment whenever the same files would give another graph than before.
RECIPE_VERSION = 1
TEXTS = ("trn.json.gz", "tst.json.gz")
TEXT_URL = "https://drive.google.com/file/d/1gsabsx8KR2N9jJz16jTcA0QASXsNuKnN"
PRODUCTS = "mapping/nodeidx2asin.csv.gz"
CATEGORIES = "mapping/labelidx2productcategory.csv.gz"


def load_ogbn_products(root: Path) -> TextGraph:
    """ogbn-products with titles and descriptions: 2,449,029 products, 47 classes, bought-together edges.

    OGB's archive is downloaded into ``<root>/ogbn_products`` if missing. The raw text is Amazon-3M of the Extreme
    Classification Repository, which only a browser can download: ``trn.json.gz`` and ``tst.json.gz``, unpacked or not,
    in that folder, in ``root``, or in a folder ``Amazon-3M.raw`` in either. Without it, PyG's copy is read:
    ``<root>/ogbn_products/raw/node-text.csv.gz``, in node order.

    The graph is frozen under ``<root>/ogbn_products/text_graph``, one folder per content of the files. Texts and graph
    are made one after the other; once finished, each survives a kill. OGB's tables are read into memory.

    ``features`` are OGB's, float32 (N, 100), principal components of bags of words; ``node_ids`` are Amazon's product
    ids. A product without a text gets an empty one, is counted in ``origin`` and logged.

    Raises:
        DataError: a file is missing and cannot be downloaded, is damaged, or belongs to another dataset; says which
            file is expected where, and from which URL.
    """
    archive = OgbArchive.of("ogbn-products", root, PRODUCTS)
    snapshots = archive.folder / "text_graph"
    text_files = _find_texts(archive.folder)
    graph = load_without_sources(snapshots, archive.is_complete() and bool(text_files))
    if graph is not None:
        return graph
    _require_texts(archive.folder, text_files)
    archive.provide()
    text_key = fingerprint(RECIPE_VERSION, sampled_fingerprint(*text_files), (archive.folder / PRODUCTS).read_bytes())
    graph_key = fingerprint(RECIPE_VERSION, sampled_fingerprint(*archive.tables()))

    def describe() -> dict[str, Any]:
        files = [archive.release.name, *(file.name for file in text_files)]
        return {"name": archive.name, "class_names": archive.class_names(CATEGORIES), "origin": {"files": files}}

    pieces = {
        "products": Piece(text_key, lambda piece: _write_products(piece, archive, text_files)),
        "graph": Piece(graph_key, lambda piece: _write_graph(piece, archive)),
    }
    return snapshot_of_pieces(snapshots / fingerprint(text_key, graph_key), pieces, describe)


def checks_of_ogbn_products(root: Path) -> list[Callable[[], object]]:
    """Checks to run before anything is downloaded or made; each raises DataError for missing or wrong files."""
    archive = OgbArchive.of("ogbn-products", root, PRODUCTS)
    text_files = _find_texts(archive.folder)
    if snapshot_without_sources(archive.folder / "text_graph", archive.is_complete() and bool(text_files)):
        return []
    return [archive.check, lambda: _require_texts(archive.folder, text_files)]


# ---- texts --------------------------------------------------------------------------------------------------------


def _find_texts(folder: Path) -> list[Path]:
    """Both files of Amazon-3M, or else PyG's copy; [] if neither is complete."""
    if len(files := _amazon_files(folder)) == len(TEXTS):
        return files
    copy = find((folder / "raw", folder), (PYG_TEXT,))
    return [copy] if copy else []


def _amazon_files(folder: Path) -> list[Path]:
    folders = [inner for outer in (folder, folder.parent) for inner in (outer, outer / "Amazon-3M.raw")]
    files = [find(folders, (name, name.removesuffix(".gz"))) for name in TEXTS]
    return [path for path in files if path is not None]


def _require_texts(folder: Path, text_files: list[Path]) -> None:
    if not text_files:
        present = ", ".join(map(str, _amazon_files(folder)))
        raise DataError(
            f"the raw text of ogbn-products is {'not complete' if present else 'missing'}: expected "
            f"{' and '.join(TEXTS)} in {folder} or in {folder / 'Amazon-3M.raw'}, found {present or 'neither'}. "
            f"Download Amazon-3M (raw text) of the Extreme Classification Repository with a browser, {TEXT_URL}, and "
            f"unpack it there; or put PyG's {PYG_TEXT} into {folder / 'raw'}"
        )


def _write_products(folder: Path, archive: OgbArchive, text_files: list[Path]) -> dict[str, int]:
    """Write the ids and the texts of the products."""
    products = _ids(archive)
    with TextsWriter(folder, len(products), "node_id") as writer:
        writer.put(enumerate(products))
    counts = dict.fromkeys(("text_rows", "rows_not_utf8"), 0)
    with TextsWriter(folder, len(products)) as writer:
        if text_files[0].name == PYG_TEXT:
            writer.put(enumerate(node_texts(text_files[0], counts, len(products), "products")))
        else:
            counts |= dict.fromkeys(("skipped_rows", "rows_without_text", "rows_of_no_node"), 0)
            writer.put(_match_texts(products, text_files, counts))
            counts["repeated_products"] = writer.repeated
    missing = writer.missing()
    expected = (
        "JSON lines with uid, title and content of nearly all products: this is another file or a part of it; "
        f"put {' and '.join(TEXTS)} of Amazon-3M in its place, from {TEXT_URL}"
    )
    report(" and ".join(map(str, text_files)), "products", counts, missing, products, expected)
    return {**counts, "missing_texts": len(missing)}


def _match_texts(products: list[str], text_files: list[Path], counts: dict[str, int]) -> Iterator[tuple[int, str]]:
    """Yield (node, text) in the order of the files, for each node with the id of the described product."""
    first_row: dict[str, int] = {}
    repeated_rows: dict[str, list[int]] = defaultdict(list)
    for row, uid in enumerate(products):
        if first_row.setdefault(uid, row) != row:
            repeated_rows[uid].append(row)
    for path in text_files:
        for uid, text in _product_texts(path, counts):
            if uid in first_row:
                yield from ((row, text) for row in (first_row[uid], *repeated_rows.get(uid, ())))
            else:
                counts["rows_of_no_node"] += 1


def _product_texts(path: Path, counts: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield (product id, text) for every row that has both; DataError if no row has an id."""
    remedy, named = f"put the one of Amazon-3M in its place, from {TEXT_URL}", False
    for raw in TextFile(path, remedy).lines():
        counts["text_rows"] += 1
        product = _product(decoded(raw, counts).removeprefix("\ufeff"))
        uid = product.get("uid")
        if not isinstance(uid, str) or not uid.strip():
            counts["skipped_rows"] += 1
            continue
        named = True
        text = sentence(Title=_text(product.get("title")), Content=_text(product.get("content")))
        if text:
            yield uid.strip(), text
        else:
            counts["rows_without_text"] += 1
    if not named:
        raise DataError(f"{path}: no row names a product, expected JSON lines with uid, title and content; {remedy}")


def _product(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    # JSON may hold half of a surrogate pair, which no encoding can write.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


# ---- edges, features, labels --------------------------------------------------------------------------------------


def _ids(archive: OgbArchive) -> list[str]:
    return read_mapping(archive.folder / PRODUCTS, "node idx", "asin")


def _write_graph(folder: Path, archive: OgbArchive) -> dict[str, int]:
    num_products = len(_ids(archive))
    graph = archive.read()
    if num_products != len(graph.label):
        raise DataError(
            f"{archive.folder / PRODUCTS}: {num_products} products for {len(graph.label)} nodes; unpack OGB's archive "
            "anew"
        )
    save_labels(folder, graph.label, graph.split)
    np.save(folder / "features.npy", graph.features)
    edges = write_structure(folder, graph.edge_index, num_products)
    return {"nodes": num_products, "published_edges": graph.edge_index.shape[1], "edges": edges}
