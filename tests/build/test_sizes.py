"""The memory that a run may take, and the width of its features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.graphgym.config import cfg

from glem_graphgym import memory
from glem_graphgym.build.footprint import whole_graph_bytes
from glem_graphgym.build.sizes import asked_bytes, budget_bytes, feature_width, generous_bytes
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.memory import GB

HOPS = ("model.type", "glem_gamlp", "gnn.hops", 2, "gnn.batch_size", 8)


def test_the_width_is_that_of_all_sources(configure: Callable[..., None], graph: TextGraph, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((graph.num_nodes, 5), dtype=np.float32))
    torch.save(torch.zeros(graph.num_nodes, 7), tmp_path / "x.pt")
    for options, width in [
        ((), 32),
        (("lm.shrink_dim", 8), 8),
        (("glem.node_features", "static+raw", "lm.shrink_dim", 8), 32 + 6),
        (("glem.node_features", "text+file", "glem.feature_file", tmp_path / "x.npy"), 32 + 5),
        (("glem.node_features", "file", "glem.feature_file", tmp_path / "x.pt"), 7),
    ]:
        configure(*options)
        assert feature_width(cfg, graph) == width


def test_a_budget_is_no_more_than_most_of_the_machine(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 10_000)
    for asked, processes, consistency, found in [
        (0, 1, 0.0, 0), (5_000, 1, 0.0, 5_000), (9_000, 1, 0.0, 8_000), (1 << 36, 1, 0.0, 8_000),
        (1 << 36, 2, 0.0, 4_000), (1 << 36, 2, 0.5, 8_000),
    ]:  # fmt: skip
        configure(*HOPS, "glem.memory_budget_gb", asked / GB, "devices", processes, "gnn.scr_weight", consistency)
        assert budget_bytes(cfg) == found


def test_a_gb_is_a_power_of_two(configure: Callable[..., None]) -> None:
    for budget, found in ((2, 2 * 1024**3), (1e-12, 1), (0, 0)):
        configure("glem.memory_budget_gb", budget)
        assert asked_bytes(cfg) == found


@pytest.mark.parametrize("network", ["glem_gat", "gnn"])
def test_what_is_generous_is_more_than_a_network_takes(
    configure: Callable[..., None], graph: TextGraph, network: str
) -> None:
    """By so much that what it leaves out, weights and gradients, does not matter."""
    configure("model.type", network, "gnn.att_heads", 4, "gnn.layer_type", "gatconv", "glem.label_input", True)
    assert generous_bytes(cfg, graph, 32) > 3 * sum(whole_graph_bytes(cfg, graph, 32).values())
