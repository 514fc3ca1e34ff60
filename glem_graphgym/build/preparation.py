"""Prepares a dataset before any run: puts graph, texts and tokens on disk, checks them, and says where they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from glem_graphgym.build.graph import checks_of, evenly_spaced, load_text_graph_of, open_tokens, tokenizer_of
from glem_graphgym.config import reads_texts
from glem_graphgym.data.errors import check_all
from glem_graphgym.data.text_graph import UNLABELLED, DataError, TextGraph, Texts
from glem_graphgym.data.tokens import encode_texts, token_folder
from glem_graphgym.files import DamagedFileError, read_json
from glem_graphgym.models.pretrained import load_tokenizer, prompt_of

TEXTS_CHECKED = 1000  # spread evenly over all nodes
ROWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Prepared:
    """A prepared part of a dataset, for display."""

    what: str
    where: Path | None  # file or folder; None if it is made anew at every start
    bytes: int  # on disk
    holds: str  # content, in words


def prepare_dataset(cfg: CfgNode) -> list[Prepared]:
    """Make the configuration's graph and, if it reads texts, their tokens; check both.

    Existing files are checked, not made again. All sources and the tokenizer are checked before any long work.

    Raises:
        DataError: files are missing, damaged or of another dataset, or the tokenizer of ``lm.model`` cannot be loaded;
            lists all that is missing, and where to put it.
        ValueError: ``dataset.format`` is not TAG.
        DiskFullError: the disk has no room; says for what.
    """
    if cfg.dataset.format != "TAG":
        raise ValueError(f"dataset.format is '{cfg.dataset.format}', expected 'TAG': others are not prepared here")
    model_checks = [lambda: load_tokenizer(cfg.lm.model), lambda: prompt_of(cfg.lm.model, cfg.lm.prompt)]
    check_all(*checks_of(cfg), *(model_checks if reads_texts(cfg) else []))
    graph = load_text_graph_of(cfg)
    check_texts(graph.texts, graph.name)
    prepared = list(_graph_parts(graph, _snapshot_of(graph, Path(cfg.dataset.dir))))
    return [*prepared, _prepare_tokens(cfg, graph)] if reads_texts(cfg) else prepared


def _snapshot_of(graph: TextGraph, root: Path) -> Path | None:
    """The newest folder under ``root`` in which this graph is frozen."""
    matching = []
    for file in root.rglob("graph.json"):
        with suppress(DamagedFileError, AttributeError):  # a file of that name need not be ours
            if not file.parent.name.startswith(".") and read_json(file).get("fingerprint") == graph.fingerprint():
                matching.append(file)
    return max(matching, key=lambda file: file.stat().st_mtime).parent if matching else None


def _graph_parts(graph: TextGraph, folder: Path | None) -> Iterator[Prepared]:
    split = ", ".join(f"{len(nodes):,} {split_name}" for split_name, nodes in graph.split.items())
    unlabelled = int((graph.label == UNLABELLED).sum())
    x = graph.features
    features = "none" if x is None else f"{x.dtype}, {x.shape[1]} columns"
    parts = {
        "graph": ((), f"{graph.name}, fingerprint {graph.fingerprint()}"),
        "texts": (("text", "text_offsets"), f"{len(graph.texts):,} texts, {graph.texts.num_empty():,} of them empty"),
        "structure": (("rowptr", "col"), f"{graph.num_nodes:,} nodes, {graph.num_edges:,} edges"),
        "labels": (
            ("label", *(f"split_{split_name}" for split_name in graph.split)),
            f"{graph.num_classes} classes, {split}; {unlabelled:,} nodes without a label",
        ),
        "features": (("features",), features),
    }
    for part, (array_names, content) in parts.items():
        if folder is None or not array_names:
            yield Prepared(part, folder, _size(folder) if folder else 0, content)
            continue
        files = [file for name in array_names if (file := folder / f"{name}.npy").exists()]
        if files:
            yield Prepared(part, files[0], sum(map(_size, files)), content)


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


# ---- checks -------------------------------------------------------------------------------------------------------


def check_texts(texts: Texts, name: str) -> None:
    """Check that every text ends where the next one begins, and that a sample of texts is valid UTF-8.

    Raises:
        DataError: names the graph, and what to do.
    """
    remedy = "delete its snapshot to have it made anew"
    _check_offsets(texts.offsets, len(texts.buffer), f"{name}: texts", remedy)
    for node in evenly_spaced(len(texts), TEXTS_CHECKED):
        try:
            texts[node]
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: text {node} is no UTF-8 ({error}); {remedy}") from error


def _prepare_tokens(cfg: CfgNode, graph: TextGraph) -> Prepared:
    store, tokenizer = open_tokens(cfg, graph), tokenizer_of(cfg, graph.texts)
    folder = token_folder(graph.texts, tokenizer, cfg.lm.max_length, Path(cfg.dataset.dir) / "tokens")
    remedy = f"delete {folder} to have it made anew"
    _check_offsets(store.offsets, len(store.ids), f"{folder}: tokens", remedy)
    nodes = evenly_spaced(len(graph.texts), TEXTS_CHECKED)
    expected = encode_texts([graph.texts[node] for node in nodes], tokenizer, cfg.lm.max_length)
    for node, ids in zip(nodes, expected, strict=True):
        if store.ids[store.offsets[node] : store.offsets[node + 1]].tolist() != list(ids):
            raise DataError(f"{folder}: the tokens of node {node} are not those of its text; {remedy}")
    mean = len(store.ids) / max(len(store), 1)
    unknown_share = f"{store.unknown_share():.1%} unknown to {cfg.lm.model}"
    content = f"{len(store.ids):,} tokens, {mean:.0f} per text, at most {cfg.lm.max_length}; {unknown_share}"
    return Prepared("tokens", folder, _size(folder), content)


def _check_offsets(offsets: np.ndarray, end: int, name: str, remedy: str) -> None:
    starts = range(0, len(offsets) - 1, ROWS_AT_ONCE)  # each block begins with the last offset of the one before
    ordered = (np.diff(offsets[start : start + ROWS_AT_ONCE + 1]) >= 0 for start in starts)
    if not all(block.all() for block in ordered) or offsets[0] != 0 or offsets[-1] != end:
        raise DataError(f"{name}: offsets must grow from 0 to {end}; {remedy}")
