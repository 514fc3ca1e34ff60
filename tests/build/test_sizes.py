"""What a run is estimated to need, and what it takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_geometric.graphgym.config import cfg

from glem_graphgym import memory
from glem_graphgym.build.gnn import Structure, build_gnn
from glem_graphgym.build.sizes import (
    STEP,
    budget_bytes,
    feature_width,
    full_batch_bytes,
    layer_file_bytes,
    neighbourhood_bytes,
    sampled_bytes,
)
from glem_graphgym.data.reach import nodes_within
from glem_graphgym.data.sampling import NeighbourSampler
from glem_graphgym.data.synthetic import make_synthetic
from glem_graphgym.data.text_graph import TextGraph

SAMPLED = ("gnn.fan_out", "[2, 2]", "gnn.batch_size", 10)
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


@pytest.mark.parametrize(
    ("options", "item"),
    [((), 4), (("gnn.precision", "bf16"), 2), (("gnn.precision", "bf16", "gnn.norm", "layer"), 4)],
)
def test_outputs_of_layers_on_disk(
    configure: Callable[..., None], graph: TextGraph, options: tuple[object, ...], item: int
) -> None:
    """Of a first layer those of the nodes within as many hops as there are further layers, and so on; two at a time."""
    asked = np.arange(3)
    reach = [len(nodes_within(graph.rowptr, graph.col, asked, hops)) for hops in range(4)]
    assert 3 == reach[0] < reach[1] < reach[2]
    for layers, whole, some in (
        (1, 0, 0),
        (2, graph.num_nodes, reach[1]),
        (3, 2 * graph.num_nodes, reach[2] + reach[1]),
        (4, 2 * graph.num_nodes, reach[3] + reach[2]),
    ):
        configure(*options, "gnn.layers_mp", layers, "gnn.fan_out", str([2] * layers))
        for predicted, rows in ((None, whole), (asked, some)):
            assert layer_file_bytes(cfg, graph, predicted) == item * rows * cfg.gnn.dim_inner


def test_what_a_sampled_network_needs_grows_with_its_neighbourhoods(
    configure: Callable[..., None], graph: TextGraph
) -> None:
    configure(*SAMPLED)
    few = sampled_bytes(cfg, graph, 32, neighbourhood_bytes(cfg, graph, 32))
    assert few["features"] == 4 * graph.num_nodes * 32
    assert few["edges"] == 24 * len(graph.col)
    assert few["a prediction of all nodes"] == 4 * graph.num_nodes * 16
    configure("gnn.fan_out", "[-1, -1]", "gnn.dim_inner", 2)
    neighbourhoods = neighbourhood_bytes(cfg, graph, 32)
    assert sampled_bytes(cfg, graph, 32, neighbourhoods)[STEP] == neighbourhoods[STEP]
    configure("gnn.fan_out", "[-1, -1]", "gnn.dim_inner", 2, "glem.setting", "inductive")  # not more than is certain
    assert 4 * len(graph.split["train"]) * 32 < neighbourhood_bytes(cfg, graph, 32)[STEP] < neighbourhoods[STEP] / 2


class LiveTensors(TorchDispatchMode):
    """Bytes of the tensors that there are, and the most that there were at a time, since it was entered."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self.see(tensor.untyped_storage())
        return out

    def see(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.seen:
            self.seen.add(storage)
            weakref.finalize(storage, self.free, storage.nbytes())
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def free(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("network", ["glem_sage", "glem_gcn", "glem_gat", "glem_mlp"])
@pytest.mark.parametrize(
    ("fan_out", "width", "precision"), [([5, 4], 256, "32"), ([4, 3, 2], 100, "32"), ([5, 4], 64, "bf16")]
)
def test_a_steps_neighbourhood_takes_what_is_said(
    configure: Callable[..., None], network: str, fan_out: list[int], width: int, precision: str
) -> None:
    graph = make_synthetic(num_nodes=20_000, feature_dim=0, words_per_text=1, avg_degree=12)
    sizes_of_network = ("gnn.layers_mp", len(fan_out), "gnn.dim_inner", 64, "gnn.att_heads", 2)
    sampling = ("gnn.fan_out", str(fan_out), "gnn.batch_size", 200, "gnn.precision", precision)
    configure("model.type", network, *sizes_of_network, *sampling)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    features, gnn = torch.randn(graph.num_nodes, width).to(dtype), build_gnn(cfg, width, graph.num_classes)
    seeds = graph.split["train"][:200]
    with LiveTensors() as live:
        block = NeighbourSampler(graph.rowptr, graph.col, fan_out).sample(seeds, np.random.default_rng(0))
        x = features[torch.from_numpy(block.nodes)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = gnn(x, Structure.of_block(block))
        F.cross_entropy(logits.float(), torch.zeros(len(seeds), dtype=torch.int64)).backward()
    said = neighbourhood_bytes(cfg, graph, width)[STEP]
    assert 0.7 * said < live.peak < 1.05 * said


def test_a_budget_is_no_more_than_most_of_the_machine(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 10_000)
    for asked, processes, consistency, found in [
        (0.0, 1, 0.0, 0), (5e-6, 1, 0.0, 5_000), (9e-6, 1, 0.0, 8_000), (64.0, 1, 0.0, 8_000),
        (64.0, 2, 0.0, 4_000), (64.0, 2, 0.5, 8_000),
    ]:  # fmt: skip
        configure(*HOPS, "glem.memory_budget_gb", asked, "devices", processes, "gnn.scr_weight", consistency)
        assert budget_bytes(cfg) == found


def test_networks_that_pass_messages_need_more(configure: Callable[..., None], graph: TextGraph) -> None:
    needs = {}
    for model in ("glem_gcn", "glem_gat", "gnn"):
        configure("model.type", model)
        needs[model] = full_batch_bytes(cfg, graph, 32)
    assert "messages" in needs["gnn"] and "attention" in needs["glem_gat"]
    assert sum(needs["gnn"].values()) > sum(needs["glem_gcn"].values())
