"""Directed graphs: every engine lets messages go from source to target, and a run goes through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.graphgym.config import cfg
from torch_geometric.nn import SAGEConv

from glem_graphgym.build.graph import load_text_graph_of
from glem_graphgym.build.learners import graph_views_of, smoother, stored_graph_views_of
from glem_graphgym.build.run import train_run
from glem_graphgym.data.sampling import ALL, NeighbourSampler
from glem_graphgym.em.pseudo_labels import Gold
from glem_graphgym.files import read_json
from glem_graphgym.out_of_core.stored_operator import StoredOperator, store_operator
from glem_graphgym.registered.loader import TextGraphDataset
from tests.models.test_correct_and_smooth import by_pyg

COUNT = 40
PAIRS = [(i, (3 * i + step) % COUNT) for i in range(COUNT) for step in (1, 7)]
EDGES = {(a, b) for a, b in PAIRS if a != b}


@pytest.fixture
def options(tmp_path: Path) -> list[object]:
    folder = tmp_path / "arrows"
    folder.mkdir()
    rows = [f"{i},text {i % 2} of {i},{i % 2}" for i in range(COUNT)]
    (folder / "nodes.csv").write_text("\n".join(["id,text,label", *rows]))
    (folder / "edges.csv").write_text("\n".join(["source,target", *(f"{a},{b}" for a, b in PAIRS)]))
    return ["dataset.name", "table", "dataset.tag_source", folder, "dataset.tag_undirected", False]


@pytest.mark.parametrize("setting", ["transductive", "inductive", "structure_free"])
def test_all_engines_see_the_same_arrows(
    configure: Callable[..., None], options: list[object], tmp_path: Path, setting: str
) -> None:
    configure(*options, "glem.setting", setting)
    graph = load_text_graph_of(cfg)
    test = set(graph.split["test"].tolist()) if setting == "structure_free" else set()
    edges = {edge for edge in EDGES if not test & set(edge)}
    matrix = torch.zeros(COUNT, COUNT)
    for source, target in edges:
        matrix[target, source] = 1
    x = torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(0))

    in_memory = graph_views_of(cfg, graph).predict
    assert {(a, b) for a, b in in_memory.edge_index().T.tolist()} == edges
    torch.testing.assert_close(in_memory.sum() @ x, matrix @ x)
    conv = SAGEConv(3, 4)
    sums = SAGEConv.propagate(conv, in_memory.edge_index(), x=(x, x), size=None)
    torch.testing.assert_close(in_memory.mean() @ x, sums)

    stored = stored_graph_views_of(cfg, graph).predict
    store_operator(tmp_path, stored.rowptr, stored.col, stored.keep)
    torch.testing.assert_close(StoredOperator(tmp_path).multiply(x, torch.empty_like(x)), in_memory.gcn() @ x)
    if setting == "transductive":
        block = NeighbourSampler(graph.rowptr, graph.col, [ALL]).sample(np.arange(COUNT), np.random.default_rng(0))
        assert {(int(block.nodes[a]), int(block.nodes[b])) for a, b in block.edge_index().T} == edges
        data = TextGraphDataset(graph, x.numpy())[0]
        assert {(a, b) for a, b in data.edge_index.T.tolist()} == edges


@pytest.mark.parametrize("views_of", [graph_views_of, stored_graph_views_of])
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("setting", ["transductive", "inductive", "structure_free"])
def test_smoothing_is_that_of_pyg(
    configure: Callable[..., None], options: list[object], setting: str, directed: bool, views_of: Callable[..., Any]
) -> None:
    configure(
        *options, "dataset.tag_undirected", not directed, "glem.setting", setting, "glem.correct_and_smooth", True
    )
    graph, rng = load_text_graph_of(cfg), np.random.default_rng(0)
    assert graph.directed == directed
    logits = 3 * rng.normal(size=(COUNT, 2)).astype(np.float32)
    gold = Gold(graph.split["train"], graph.label[graph.split["train"]], 2)
    smooth = smoother(cfg, views_of(cfg, graph), gold)
    assert smooth is not None

    def by_pyg_among(nodes: np.ndarray, free: set[int]) -> np.ndarray:
        """Of int64 ``nodes``, on the edges among them of which none touches ``free``."""
        place = {int(node): index for index, node in enumerate(nodes)}
        both = EDGES if directed else EDGES | {(b, a) for a, b in EDGES}
        kept = [(place[a], place[b]) for a, b in both if {a, b} <= place.keys() and not {a, b} & free]
        gold_places = np.array([place[int(node)] for node in gold.nodes])
        return by_pyg(logits[nodes], gold_places, gold.labels, torch.tensor(kept).T, 1.0, 0.8)

    test = {int(node) for node in graph.split["test"]}
    expected = by_pyg_among(np.arange(COUNT), test if setting == "structure_free" else set())
    if setting != "transductive":
        seen = np.setdiff1d(np.arange(COUNT), graph.split["test"])
        expected[seen] = by_pyg_among(seen, set())
    np.testing.assert_allclose(np.exp(smooth(logits)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", ["glem_gcn", "glem_gat", "glem_sign"])
def test_a_run_on_a_directed_graph(configure_run: Callable[..., Path], options: list[object], network: str) -> None:
    folder = configure_run(*options, "model.type", network, "glem.correct_and_smooth", True)
    train_run(cfg)
    assert {"LM", "GNN"} <= {read_json(file)["model"] for file in folder.glob("stages/*/stage.json")}
    assert read_json(folder / "run.json")["origin"]["edges"] == len(EDGES)
