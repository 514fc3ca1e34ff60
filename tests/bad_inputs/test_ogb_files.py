"""OGB's files: one that is damaged, or contradicts another, is refused by its name, with the row where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glem_graphgym.data.ogb import load_ogbn_arxiv, load_ogbn_papers100m, load_ogbn_products
from glem_graphgym.data.text_graph import TextGraph
from tests.checks import refused
from tests.data.ogb_files import (
    ARXIV_LABELS,
    CITATIONS,
    EDGES,
    FEATURES,
    MINIATURES,
    NAN,
    PAPERS,
    PAPERS100M_FEATURES,
    PAPERS100M_LABELS,
    SPLIT,
    M,
    N,
    complete_arxiv,
    complete_papers100m,
    complete_products,
    write_asins,
    write_lines,
    write_papers,
    write_table,
)


def refusal(load: Callable[[Path], TextGraph], root: Path, names: list[str]) -> None:
    refused(lambda: load(root), *names)
    assert not list(root.glob("*/text_graph/[!.]*/graph.json"))


def with_row(rows: list[Any], place: int, row: Any) -> list[Any]:
    return [*rows[:place], row, *rows[place + 1 :]]


LABELS = [[label] for label in ARXIV_LABELS]
FEATURE_ROWS = FEATURES.tolist()
EDGE_ROWS = [list(edge) for edge in EDGES]
# The table, its rows, and what the message names besides the table.
TABLES: dict[str, tuple[str, list[Any], list[str]]] = {
    "a label with a fraction": ("raw/node-label", with_row(LABELS, 4, [0.5]), ["row 4", "0.5"]),
    "a label beyond the classes": ("raw/node-label", with_row(LABELS, 4, [60]), ["row 4", "60"]),
    "a negative label": ("raw/node-label", with_row(LABELS, 4, [-1]), ["row 4", "-1"]),
    "a label of a word": ("raw/node-label", with_row(LABELS, 4, ["cs.LG"]), ["row 4", "'cs.LG'"]),
    "an infinite label": ("raw/node-label", with_row(LABELS, 4, ["inf"]), ["row 4", "inf"]),
    "no label of a training node": ("raw/node-label", with_row(LABELS, 5, ["nan"]), []),
    "labels too few": ("raw/node-label", LABELS[:-1], ["11", "12", "num-node-list"]),
    "labels too many": ("raw/node-label", [*LABELS, [3]], ["13", "12"]),
    "two columns of labels": ("raw/node-label", [[0, 1]] * N, ["2 columns"]),
    "a header above the labels": ("raw/node-label", [["label"], *LABELS[:-1]], ["row 0", "'label'"]),
    "edges too few": ("raw/edge", EDGE_ROWS[:-1], ["8", "9", "num-edge-list"]),
    "edges too many": ("raw/edge", [*EDGE_ROWS, [1, 2]], ["10", "9", "num-edge-list"]),
    "a count of edges too small": ("raw/num-edge-list", [[len(EDGES) - 1]], []),
    "a count of edges too large": ("raw/num-edge-list", [[len(EDGES) + 1]], []),
    "counts of two graphs": ("raw/num-edge-list", [[4], [5]], ["2 rows"]),
    "a count of a word": ("raw/num-edge-list", [["nine"]], ["row 0", "'nine'"]),
    "a count with a fraction": ("raw/num-edge-list", [[9.5]], ["row 0", "9.5"]),
    "an edge to no node": ("raw/edge", with_row(EDGE_ROWS, 3, [2, N]), ["row 3", "12"]),
    "an edge from -1": ("raw/edge", with_row(EDGE_ROWS, 3, [-1, 2]), ["row 3", "-1"]),
    "an edge with a fraction": ("raw/edge", with_row(EDGE_ROWS, 3, [1.5, 2]), ["row 3", "1.5"]),
    "an edge cut short": ("raw/edge", with_row(EDGE_ROWS, 3, [1]), ["row 3"]),
    "an edge of three": ("raw/edge", with_row(EDGE_ROWS, 3, [1, 2, 3]), []),
    "edges of three": ("raw/edge", [[*edge, 1] for edge in EDGE_ROWS], ["3 columns"]),
    "edges of words": ("raw/edge", with_row(EDGE_ROWS, 3, ["a", "b"]), ["row 3", "'a'"]),
    "a count of nodes too small": ("raw/num-node-list", [[N - 1]], []),
    "a count of nodes too large": ("raw/num-node-list", [[N + 1]], []),
    "features too few": ("raw/node-feat", FEATURE_ROWS[:-1], ["11", "12", "num-node-list"]),
    "features too many": ("raw/node-feat", [*FEATURE_ROWS, [1.0, 2.0]], ["13", "12"]),
    "a feature that is nan": ("raw/node-feat", with_row(FEATURE_ROWS, 6, [1.0, "nan"]), ["row 6", "finite"]),
    "a feature that is infinite": ("raw/node-feat", with_row(FEATURE_ROWS, 6, [1.0, "-inf"]), ["row 6", "finite"]),
    "a feature beyond float32": ("raw/node-feat", with_row(FEATURE_ROWS, 6, [1.0, "1e300"]), ["row 6", "finite"]),
    "a feature missing": ("raw/node-feat", with_row(FEATURE_ROWS, 6, [1.0]), ["row 6"]),
    "a feature of a word": ("raw/node-feat", with_row(FEATURE_ROWS, 6, [1.0, "x"]), ["row 6", "'x'"]),
    "a split beyond the nodes": ("split/{split}/valid", [[3], [N]], ["row 1", "12"]),
    "a split of -1": ("split/{split}/valid", [[3], [-1]], ["row 1", "-1"]),
    "a split that overlaps": ("split/{split}/test", [[11], [3]], ["row 1", "node 3"]),
    "a split with a node twice": ("split/{split}/train", [[5], [0], [5]], ["row 2", "node 5"]),
    "a split with a fraction": ("split/{split}/valid", [[3], [0.5]], ["row 1", "0.5"]),
    "a split of words": ("split/{split}/valid", [["node idx"], [3]], ["row 0", "'node idx'"]),
    "a split of two columns": ("split/{split}/valid", [[3, 7]], ["2 columns"]),
    "a split of nothing": ("split/{split}/valid", [], ["valid"]),
}
OF_TABLES = ("arxiv", "products")


@pytest.mark.parametrize("dataset", OF_TABLES)
@pytest.mark.parametrize("case", TABLES)
def test_tables_that_are_refused(tmp_path: Path, case: str, dataset: str) -> None:
    make, load, split, _ = MINIATURES[dataset]
    template, rows, names = TABLES[case]
    table = template.format(split=split)
    write_table(make(tmp_path) / f"{table}.csv.gz", rows)
    named = {"a count of edges too small": "raw/edge", "a count of edges too large": "raw/edge"}
    named |= dict.fromkeys(("a count of nodes too small", "a count of nodes too large"), "raw/")
    named["no label of a training node"] = f"split/{split}/train"
    refusal(load, tmp_path, [named.get(case, table), *names])


@pytest.mark.parametrize("dataset", OF_TABLES)
@pytest.mark.parametrize(
    "name",
    ["raw/edge", "raw/node-feat", "raw/node-label", "raw/num-node-list", "split/{split}/test", "mapping/{mapping}"],
)
@pytest.mark.parametrize("content", [b"", b"<html>", b"\x1f\x8b\x08", "cut"])
def test_damaged_tables_are_named(tmp_path: Path, dataset: str, name: str, content: bytes | str) -> None:
    make, load, split, mapping = MINIATURES[dataset]
    table = make(tmp_path) / f"{name.format(split=split, mapping=mapping)}.csv.gz"
    table.write_bytes(table.read_bytes()[:-10] if isinstance(content, str) else content)
    refusal(load, tmp_path, [str(table)])


PAIRS = [*enumerate(PAPERS)]


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (PAIRS[:-1], ["11 papers", "12 nodes"]),
        ([*PAIRS, (N, 1)], ["13 papers", "12 nodes"]),
        (with_row(PAIRS, 5, PAIRS[4]), ["row 5", "'4'", "5"]),
        ([*PAIRS[:5], *PAIRS[6:]], ["row 5", "'6'"]),
        (with_row(PAIRS, 5, (5, PAPERS[4])), [str(PAPERS[4]), "several nodes"]),
        (with_row(PAIRS, 5, (5, "")), ["empty"]),
        (with_row(PAIRS, 5, (5,)), ["empty"]),
        (with_row(PAIRS, 5, (5.0, PAPERS[5])), ["row 5", "'5.0'"]),
    ],
)
def test_mappings_that_are_refused(tmp_path: Path, rows: list[Any], names: list[str]) -> None:
    write_papers(complete_arxiv(tmp_path), rows)
    refusal(load_ogbn_arxiv, tmp_path, ["nodeidx2paperid.csv.gz", *names])


def test_a_mapping_of_products_with_a_row_too_few_is_refused(tmp_path: Path) -> None:
    write_asins(complete_products(tmp_path), [f"B{node}" for node in range(N - 1)])
    write_lines(
        tmp_path / "ogbn_products/Amazon-3M.raw/trn.json.gz",
        [f'{{"uid": "B{node}", "title": "t", "content": "c"}}'.encode() for node in range(N)],
    )
    refusal(load_ogbn_products, tmp_path, ["nodeidx2asin.csv.gz", "11 products", "12 nodes"])


def labels(place: int, label: float) -> np.ndarray:
    return np.array(with_row(PAPERS100M_LABELS, place, label), dtype=np.float32).reshape(-1, 1)


def features(value: float) -> np.ndarray:
    changed = PAPERS100M_FEATURES.copy()
    changed[6, 1] = value
    return changed


def citations(row: int, place: int, node: int) -> np.ndarray:
    changed = CITATIONS.copy()
    changed[row, place] = node
    return changed


ARRAYS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a label with a fraction": ({"node_label": labels(4, 0.5)}, ["node-label.npz", "row 4", "0.5"]),
    "a label beyond the classes": ({"node_label": labels(4, 172)}, ["node-label.npz", "row 4", "172"]),
    "a negative label": ({"node_label": labels(4, -1)}, ["node-label.npz", "row 4", "-1"]),
    "no label of a training node": ({"node_label": labels(5, NAN)}, ["train.csv.gz", "node 5"]),
    "labels too few": ({"node_label": labels(0, 0)[:-1]}, ["node-label.npz", "(14, 1)", "15"]),
    "a count of edges too small": ({"num_edges_list": np.array([10])}, ["data.npz", "edge_index", "(2, 11)"]),
    "a count of edges too large": ({"num_edges_list": np.array([12])}, ["data.npz", "edge_index", "(2, 11)"]),
    "a count of nodes too small": ({"num_nodes_list": np.array([M - 1])}, ["data.npz", "node_feat"]),
    "a count of nodes too large": ({"num_nodes_list": np.array([M + 1])}, ["data.npz", "node_feat"]),
    "an edge to no node": ({"edge_index": citations(1, 4, M)}, ["data.npz", "15", "14"]),
    "an edge from -1": ({"edge_index": citations(0, 4, -1)}, ["data.npz", "-1"]),
    "edges that are floats": ({"edge_index": CITATIONS.astype(float)}, ["data.npz", "edge_index", "float64"]),
    "edges the other way": ({"edge_index": CITATIONS.T}, ["data.npz", "edge_index", "(11, 2)"]),
    "features too few": ({"node_feat": PAPERS100M_FEATURES[:-1]}, ["data.npz", "node_feat", "(14, 4)"]),
    "a feature that is nan": ({"node_feat": features(NAN)}, ["data.npz", "row 6", "finite"]),
    "a feature that is infinite": ({"node_feat": features(np.inf)}, ["data.npz", "row 6", "finite"]),
    "features by columns with nan": ({"node_feat": np.asfortranarray(features(NAN))}, ["data.npz", "row 6"]),
    "features that are integers": ({"node_feat": np.ones((M, 4), dtype=int)}, ["data.npz", "node_feat", "int64"]),
    "features of one number": ({"node_feat": np.arange(M)}, ["data.npz", "node_feat", "int64 (15,)"]),
    "features that are objects": ({"node_feat": np.array([[None] * 4] * M)}, ["data.npz is damaged"]),
    "no edges": ({"edge_index": None}, ["data.npz", "'edge_index'"]),
    "no features": ({"node_feat": None}, ["data.npz", "'node_feat'"]),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_are_refused(tmp_path: Path, case: str) -> None:
    changed, names = ARRAYS[case]
    complete_papers100m(tmp_path, **changed)
    refusal(load_ogbn_papers100m, tmp_path, names)


@pytest.mark.parametrize("part", SPLIT)
@pytest.mark.parametrize("rows", [[[M]], [[-1]], [[0.5]], [["x"]], [[14]], [[0], [0]]])
def test_splits_of_papers100m_that_are_refused(tmp_path: Path, part: str, rows: list[Any]) -> None:
    write_table(complete_papers100m(tmp_path) / f"split/time/{part}.csv.gz", rows)
    refusal(load_ogbn_papers100m, tmp_path, [f"split/time/{part}.csv.gz", f"row {len(rows) - 1}"])


def test_the_files_that_every_case_changes_are_fine(tmp_path: Path) -> None:
    for miniature in MINIATURES.values():
        miniature.make(tmp_path)
        assert miniature.load(tmp_path).num_nodes in (N, M)
