"""Training, validation and test nodes: read from the columns of a table, or drawn."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from glem_graphgym.data.errors import DataError, listed
from glem_graphgym.data.tables import Tables
from glem_graphgym.data.text_graph import SPLITS, UNLABELLED, TextGraph
from glem_graphgym.files import fingerprint

NO_SPLIT = -1  # code of a node in no split; the others are positions in SPLITS
SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}
SPLIT_COLUMN = re.compile(r"split(_[0-9]+)?")
MASK_COLUMN = re.compile(rf"(is_)?({'|'.join(SPLIT_NAMES)})(_?mask)?(_[0-9]+)?", re.IGNORECASE)
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def split_columns(names: Sequence[str]) -> list[dict[str, str]]:
    """One dict per fixed split, in order: mask column -> train, valid or test; column of such words -> "".

    Columns that are called just ``train``, ``val`` or ``test`` are masks only if there are masks for all three.
    """
    matches = {name: match for name in names if (match := MASK_COLUMN.fullmatch(name))}
    if {SPLIT_NAMES[match[2].casefold()] for match in matches.values()} != set(SPLITS):
        matches = {name: match for name, match in matches.items() if match[1] or match[3]}
    numbered: dict[tuple[bool, int], dict[str, str]] = {}
    for name in names:
        if match := SPLIT_COLUMN.fullmatch(name):
            numbered[False, int((match[1] or "_-1")[1:])] = {name: ""}
        elif match := matches.get(name):
            numbered.setdefault((True, int((match[4] or "_-1")[1:])), {})[name] = SPLIT_NAMES[match[2].casefold()]
    return [numbered[key] for key in sorted(numbered)]


def given_splits(
    tables: Tables, split_maps: list[dict[str, str]], label: np.ndarray, valid_share: float, seed: int
) -> np.ndarray:
    """Read the K splits that a table of N nodes states: each node's code in each split, int8 (K, N).

    Args:
        split_maps: of `split_columns`.
        label: int64 (N,).
        valid_share: share (0-1) of the training nodes to move to validation if a split has no validation nodes.
        seed: of that draw.

    Raises:
        DataError: a split is incomplete, its parts overlap, or it holds nodes without a label; names the column.
    """
    nodes_file = tables.where["nodes"]
    masks = [split_map for split_map in split_maps if "" not in split_map.values()]
    if masks and len(masks) < len(split_maps):
        columns = [name for split_map in split_maps for name in split_map]
        raise DataError(
            f"{nodes_file} has the columns {listed(columns, 12, quoted=True)}, splits and masks; keep one of the two"
        )
    codes = np.full((len(split_maps), tables.num_nodes), NO_SPLIT, dtype=np.int8)
    for split_map, row in zip(split_maps, codes, strict=True):
        if masks:
            where = f"{nodes_file}: the masks {[*split_map]}"
            _fill_from_masks(tables, split_map, row)
        else:
            (column,) = split_map
            where = tables.location(column)
            _fill_from_column(tables, column, row)
        _check(tables, where, row, label, valid_share, seed)
    return codes


def _fill_from_column(tables: Tables, column: str, codes: np.ndarray) -> None:
    values = tables.strings(column)
    words = {value: value.strip().casefold() for value in set(values) - {None}}
    if unknown := Counter(value for value in values if words.get(value) and words[value] not in SPLIT_NAMES):
        unknown_values = listed([f"{value!r} ({count} times)" for value, count in unknown.items()])
        raise DataError(f"{tables.location(column)} holds {unknown_values}, expected {[*SPLIT_NAMES]} or nothing")
    code_of = {value: SPLITS.index(SPLIT_NAMES[word]) for value, word in words.items() if word}
    codes[:] = [code_of.get(value, NO_SPLIT) for value in values]


def _fill_from_masks(tables: Tables, masks: dict[str, str], codes: np.ndarray) -> None:
    if sorted({*masks.values()} - {"valid"}) != ["test", "train"] or len({*masks.values()}) < len(masks):
        raise DataError(
            f"{tables.where['nodes']}: the masks {[*masks]} are for {[*masks.values()]}, expected one each for "
            f"{[*SPLITS]} (train_mask, val_mask, test_mask)"
        )
    for column, split_name in masks.items():
        inside = tables.nodes[column].to_numpy()
        if inside.dtype != bool:
            inside = _truth(tables, column)
        if (overlap := inside & (codes != NO_SPLIT)).any():
            several = [tables.id_of(node) for node in np.flatnonzero(overlap)]
            raise DataError(
                f"{tables.where['nodes']}: {len(several)} nodes are true in several of the masks {[*masks]} "
                f"({listed(several)}); each may be in one split"
            )
        codes[inside] = SPLITS.index(split_name)


def _truth(tables: Tables, column: str) -> np.ndarray:
    values = tables.strings(column)
    truth = [False if value is None else TRUTH.get(value.strip().casefold()) for value in values]
    if None in truth:
        node = truth.index(None)
        raise DataError(
            f"{tables.location(column)} holds {values[node]!r:.80} at node "
            f"{listed([tables.id_of(node)], quoted=True)}, expected true or false"
        )
    return np.array(truth, dtype=bool)


def _check(tables: Tables, where: str, codes: np.ndarray, label: np.ndarray, valid_share: float, seed: int) -> None:
    unlabelled = [tables.id_of(node) for node in np.flatnonzero((label == UNLABELLED) & (codes != NO_SPLIT))]
    if unlabelled:
        raise DataError(
            f"{where}: {len(unlabelled)} nodes in a split have no label ({listed(unlabelled)}); give them one, or "
            "leave their split empty"
        )
    if _empty_splits(codes) == ["valid"] and valid_share:
        train = np.flatnonzero(codes == 0)
        codes[in_order(tables, train, seed)[: max(1, round(valid_share * len(train)))]] = 1
        if not (codes == 0).any():
            raise DataError(
                f"dataset.tag_valid_share: {valid_share} of the {len(train)} training nodes of {where} leaves none for "
                "training; expected a smaller share, or more training nodes"
            )
    if empty := _empty_splits(codes):
        remedy = "put some there, or drop the columns for a random split"
        if empty == ["valid"]:
            remedy = "set dataset.tag_valid_share to the share of the training nodes that are to validate"
        raise DataError(f"{where}: no node in {empty}; {remedy}")


def _empty_splits(codes: np.ndarray) -> list[str]:
    return [split_name for code, split_name in enumerate(SPLITS) if not (codes == code).any()]


def drawn_split(tables: Tables, label: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Split the labelled nodes at random: each node's code, int8 (N,); for ``shares`` see `split_sizes`."""
    order = in_order(tables, np.flatnonzero(label != UNLABELLED), seed)
    sizes = split_sizes(shares, len(order))
    ends = np.rint(np.cumsum(sizes)).astype(int)
    if ends[-1] > len(order):
        raise DataError(
            f"dataset.tag_split: {[*shares]} asks for {ends[-1]} nodes, but {tables.where['nodes']} has {len(order)} "
            "with a label"
        )
    codes = np.full(tables.num_nodes, NO_SPLIT, dtype=np.int8)
    for code, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        codes[order[start:end]] = code
    if empty := _empty_splits(codes):
        raise DataError(
            f"{tables.where['nodes']}: shares {[*shares]} of {len(order)} labelled nodes leave {empty} without one; "
            "label more nodes, or add a column 'split'"
        )
    return codes


def split_sizes(shares: Sequence[float], number: int) -> list[float]:
    """Nodes per split out of ``number``: a value of at most 1 is a share, a larger one a number of nodes."""
    return [share * number if share <= 1 else share for share in shares]


def in_order(tables: Tables, nodes: np.ndarray, seed: int) -> np.ndarray:
    """The nodes in a random order that depends on their ids and ``seed`` alone, not on the order of the rows."""
    keys = [hashlib.sha256(f"{seed} {tables.id_of(node)}".encode()).digest() for node in nodes]
    return nodes[sorted(range(len(nodes)), key=keys.__getitem__)]


def with_shots(graph: TextGraph, shots: int, seed: int) -> TextGraph:
    """The graph with at most ``shots`` training nodes per class; the other training nodes are put into no split.

    Their labels are not used: they are unlabelled nodes like any other. A class with fewer training nodes keeps all.
    """
    train = graph.split["train"]
    order = np.random.default_rng(seed).permutation(len(train))
    label = graph.label[train[order]]
    chosen = np.concatenate([order[label == name][:shots] for name in np.unique(label)])
    split = {**graph.split, "train": train[np.sort(chosen)]}
    reduced = replace(graph, split=split, origin={**graph.origin, "shots": shots}, edges_checked=True)
    reduced.set_fingerprint(fingerprint(graph.fingerprint(), "shots", shots, seed))
    return reduced
