"""Splits: those that a table states, one per seed where there are several, and drawn ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from glem_graphgym.data.from_tables import TableOptions, graph_of
from glem_graphgym.data.splits import with_shots
from glem_graphgym.data.tables import Tables
from glem_graphgym.data.text_graph import DataError, TextGraph, load_text_graph, save_text_graph

COUNT = 60
PARTS = ("train", "valid", "test")


def tables(**columns: Sequence[Any]) -> Tables:
    nodes = pd.DataFrame({"text": [f"text {i}" for i in range(COUNT)], "label": [i % 3 for i in range(COUNT)]})
    edges = np.array([[0, 1, 2, 2], [1, 2, 0, 2]])
    return Tables("g", nodes.assign(**columns), edges, where={"nodes": "g.pt", "edges": "g.pt"})


def parts(graph: TextGraph) -> list[list[int]]:
    return [graph.split[part].tolist() for part in PARTS]


def rotated(number: int) -> list[str]:
    return [PARTS[(i + number) % 3] for i in range(COUNT)]


@pytest.mark.parametrize("form", ["columns", "masks"])
def test_several_fixed_splits_are_chosen_by_number_and_kept_in_the_snapshot(tmp_path: Any, form: str) -> None:
    columns: dict[str, Any] = {f"split_{k}": rotated(k) for k in (2, 10, 0)}  # in numeric order: 0, 2, 10
    if form == "masks":
        columns = {
            f"{name}_mask_{k}": np.array(rotated(k)) == part
            for k in (0, 2, 10)
            for name, part in zip(("train", "val", "test"), PARTS, strict=True)
        }
    built = graph_of(tables(**columns), TableOptions())
    save_text_graph(built, tmp_path)
    graph = load_text_graph(tmp_path)
    for number, k in ((0, 0), (1, 2), (2, 10), (3, 0), (7, 2)):
        chosen = graph.with_split(number)
        assert parts(chosen) == [[i for i in range(COUNT) if rotated(k)[i] == part] for part in PARTS]
        assert str(k) in str(chosen.origin["split"])
        assert chosen.fingerprint() == built.fingerprint(), "the fingerprint is of all splits"
    other = graph_of(tables(**{**columns, f"split_{2}": rotated(1)} if form == "columns" else {}), TableOptions())
    assert other.fingerprint() != built.fingerprint()


def test_one_split_is_the_same_for_every_seed() -> None:
    graph = graph_of(tables(split=rotated(0)), TableOptions())
    assert graph.with_split(5) is graph


def test_a_broken_split_among_several_is_named() -> None:
    columns = {f"split_{k}": rotated(k) for k in range(3)}
    columns["split_1"][4] = "holdout"
    with pytest.raises(DataError, match=r"g\.pt: column 'split_1' holds 'holdout' \(1 times\)"):
        graph_of(tables(**columns), TableOptions())


@pytest.mark.parametrize("form", ["column", "masks"])
def test_validation_nodes_are_drawn_from_training_ones_where_there_are_none(form: str) -> None:
    two = ["train" if i < 40 else "test" for i in range(COUNT)]
    columns: dict[str, Any] = {"split": two}
    if form == "masks":
        columns = {"train_mask": np.array(two) == "train", "test_mask": np.array(two) == "test"}
    with pytest.raises(DataError, match=r"no node in \['valid'\]; set dataset\.tag_valid_share"):
        graph_of(tables(**columns), TableOptions())
    draws = [parts(graph_of(tables(**columns), TableOptions(valid_share=0.25, seed=seed))) for seed in (0, 0, 1)]
    for train, valid, test in draws:
        assert (len(train), len(valid)) == (30, 10)
        assert sorted(train + valid) == list(range(40)) and test == list(range(40, COUNT))
    assert draws[0] == draws[1] != draws[2]


def test_a_share_that_would_leave_nothing_to_train_is_refused_in_whichever_split() -> None:
    columns = {"split_0": ["train"] * 40 + ["test"] * 20, "split_1": ["train"] + ["test"] * (COUNT - 1)}
    with pytest.raises(DataError, match=r"tag_valid_share: 0\.25 of the 1 training nodes of g\.pt: column 'split_1'"):
        graph_of(tables(**columns), TableOptions(valid_share=0.25))


@pytest.mark.parametrize(
    ("shares", "sizes"),
    [
        ((0.1, 0.2, 0.3), [6, 12, 18]),
        ((0.5, 10, 20), [30, 10, 20]),
        ((12, 0.5, 0.2), [12, 30, 12]),
        ((2, 3, 4), [2, 3, 4]),
    ],
)
def test_shares_and_numbers_leave_the_rest_in_no_split(shares: tuple[float, ...], sizes: list[int]) -> None:
    drawn = parts(graph_of(tables(), TableOptions(shares=shares)))
    assert [len(part) for part in drawn] == sizes
    assert len(set().union(*drawn)) == sum(sizes)


@pytest.mark.parametrize(
    ("shares", "said"),
    [((10, 10, 80), "percent"), ((0.5, 0.5, 20), "asks for 80 nodes, but g.pt has 60"), ((1.5, 0.1, 0.1), "whole")],
)
def test_shares_that_cannot_be_are_refused(shares: tuple[float, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        graph_of(tables(), TableOptions(shares=shares))


def test_shots_keep_some_training_nodes_of_each_class_and_nothing_else_changes() -> None:
    label = [0] * 3 + [i % 3 for i in range(3, COUNT)]
    graph = graph_of(tables(label=label), TableOptions(shares=(0.6, 0.2, 0.2)))
    few, again, other = (with_shots(graph, 5, seed) for seed in (0, 0, 1))
    assert np.bincount(few.label[few.split["train"]]).tolist() == [5, 5, 5]
    assert set(few.split["train"]) <= set(graph.split["train"])
    assert parts(few)[1:] == parts(graph)[1:] and (few.label == graph.label).all()
    assert parts(few) == parts(again) != parts(other)
    assert parts(with_shots(graph, COUNT, 0)) == parts(graph)
    assert few.origin["shots"] == 5


def test_graphs_of_few_shots_are_others_whichever_of_several_splits_is_chosen() -> None:
    """What runs share is kept by the fingerprint; seeds of one experiment have one."""
    graph = graph_of(tables(split_0=rotated(0), split_1=rotated(1)), TableOptions())
    of = {
        (k, shots, seed): with_shots(graph.with_split(k), shots, seed)
        for k in (0, 1)
        for shots in (2, 3)
        for seed in (0, 1)
    }
    assert len({few.fingerprint() for few in of.values()} | {graph.fingerprint()}) == 5
    assert all(few.fingerprint() == of[1 - k, shots, seed].fingerprint() for (k, shots, seed), few in of.items())


def test_a_directed_graph_hears_from_sources_alone(tmp_path: Any) -> None:
    graph = graph_of(tables(), TableOptions(undirected=False))
    save_text_graph(graph, tmp_path)
    graph = load_text_graph(tmp_path)
    assert sorted(map(tuple, graph.edge_index().T.tolist())) == [(0, 1), (1, 2), (2, 0)]
    assert [graph.col[graph.rowptr[i] : graph.rowptr[i + 1]].tolist() for i in range(3)] == [[2], [0], [1]]
    assert (graph.num_edges, graph.origin["edges"], graph.origin["self_loops"]) == (3, 3, 1)
    assert graph.fingerprint() != graph_of(tables(), TableOptions()).fingerprint()
