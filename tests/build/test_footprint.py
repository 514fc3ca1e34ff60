"""What a GNN is foreseen to take of memory, from steps on a few hundred nodes, and what real steps on many take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.footprint import STEP, layer_outputs, neighbourhood_bytes, ring_like, scaled, whole_graph_bytes
from glem_graphgym.build.gnn import build_gnn, gnn_optimizer
from glem_graphgym.build.learners import gnn_learner
from glem_graphgym.data.sampling import NeighbourSampler
from glem_graphgym.data.synthetic import make_synthetic
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.pseudo_labels import Gold, StepTargets
from glem_graphgym.live_bytes import counted, foreseen
from glem_graphgym.models.block import BlockAdjacency

WIDTH = 128
NETWORKS = [
    ("model.type", "glem_gcn"),
    ("model.type", "glem_sage", "glem.label_input", True, "gnn.label_reuse", 1),
    ("model.type", "glem_gat", "gnn.att_heads", 2, "gnn.precision", "bf16"),
    ("model.type", "glem_revgat", "gnn.att_heads", 2, "gnn.rev_groups", 2),
    ("model.type", "gnn", "gnn.layer_type", "gcnconv"),
    ("model.type", "gnn", "gnn.layer_type", "gatconv"),
    ("model.type", "gnn", "gnn.layer_type", "generalconv", "gnn.stage_type", "skipconcat"),
]


@pytest.fixture(scope="module")
def large() -> TextGraph:
    return make_synthetic(num_nodes=5000, feature_dim=0, words_per_text=1, avg_degree=11)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda options: "-".join(map(str, options[1::2])))
def test_a_step_on_the_whole_graph_takes_what_was_foreseen(
    configure: Callable[..., None], large: TextGraph, network: tuple[object, ...]
) -> None:
    """And so does a prediction: what is trained and predicted here is what a run would do."""
    configure(*network, "gnn.dim_inner", 48, "gnn.layers_mp", 3, "gnn.dropout", 0.3, "optim.max_epoch", 2)
    parts = whole_graph_bytes(cfg, large, WIDTH)
    learner = gnn_learner(cfg, large, Validation(large.split["valid"], lambda logits: 0.0))
    targets = StepTargets(Gold(large.split["train"], large.label[large.split["train"]], large.num_classes))
    with counted() as live:
        learner = gnn_learner(cfg, large, learner.validation)
        live.mark("edges")
        features = torch.zeros(large.num_nodes, WIDTH)
        task = learner.fit(targets, features.numpy(), "step").task
        task.predict(np.zeros((large.num_nodes, large.num_classes), dtype=np.float16))
    assert sum(parts.values()) == pytest.approx(max(live.history), rel=0.15)
    assert parts["edges"] == pytest.approx(live.marks["edges"], rel=0.15)
    assert parts["features"] == pytest.approx(4 * large.num_nodes * WIDTH, rel=0.01)
    predicted = whole_graph_bytes(cfg, large, WIDTH, trains=False)["a prediction of all nodes"]
    assert 0 < predicted < parts["a training step"]


@pytest.mark.parametrize(
    "network", [*NETWORKS[:1], *NETWORKS[4:6], ("model.type", "glem_sage"), ("model.type", "glem_mlp")]
)
@pytest.mark.parametrize(("fan_out", "width", "precision"), [([5, 4], 256, "32"), ([4, 3, 2], 64, "bf16")])
def test_a_steps_neighbourhood_takes_what_was_foreseen(
    configure: Callable[..., None],
    large: TextGraph,
    network: tuple[object, ...],
    fan_out: list[int],
    width: int,
    precision: str,
) -> None:
    sampling = ("gnn.fan_out", str(fan_out), "gnn.batch_size", 200, "gnn.precision", precision, "gnn.dim_inner", 64)
    configure(*network, *sampling, "gnn.layers_mp", len(fan_out))
    dtype, seeds = torch.bfloat16 if precision == "bf16" else torch.float32, large.split["train"][:200]
    with counted() as live:
        block = NeighbourSampler(large.rowptr, large.col, fan_out).sample(seeds, np.random.default_rng(0))
        gnn = build_gnn(cfg, width, large.num_classes)
        optimizer = gnn_optimizer(cfg)(gnn.parameters())[0]
        x, adjacency = torch.zeros(len(block.nodes), width, dtype=dtype), BlockAdjacency.of(block)
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                logits = gnn(x, adjacency)[: len(seeds)]
            F.cross_entropy(logits.float(), torch.zeros(len(seeds), dtype=torch.int64)).backward()
            del logits
            optimizer.step()
            optimizer.zero_grad()
    assert neighbourhood_bytes(cfg, large, width)[STEP] == pytest.approx(max(live.history), rel=0.15)


def test_with_fewer_edges_in_training_no_more_is_said_than_is_certain(
    configure: Callable[..., None], graph: TextGraph
) -> None:
    sampled = ("gnn.fan_out", "[-1, -1]", "gnn.batch_size", 10, "gnn.dim_inner", 2)
    configure(*sampled)
    all_edges = neighbourhood_bytes(cfg, graph, 32)[STEP]
    configure(*sampled, "glem.setting", "inductive")
    assert 4 * 10 * 32 < neighbourhood_bytes(cfg, graph, 32)[STEP] < all_edges


def test_what_is_measured_draws_no_number_of_the_run(configure: Callable[..., None], graph: TextGraph) -> None:
    configure("gnn.fan_out", "[2, 2]", "gnn.dropout", 0.5)
    drawn = []
    for measured in (False, True):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        if measured:
            whole_graph_bytes(cfg, graph, 8)
            neighbourhood_bytes(cfg, graph, 8)
            layer_outputs(cfg, 3, 8)
        drawn.append((torch.rand(3).tolist(), np.random.rand(3).tolist()))  # noqa: NPY002
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(("options", "item"), [((), 4), (("gnn.precision", "bf16"), 2)])
def test_outputs_of_layers(configure: Callable[..., None], options: tuple[object, ...], item: int) -> None:
    layered = ("gnn.layers_mp", 3, "gnn.dim_inner", 16)
    configure(*options, *layered)
    assert layer_outputs(cfg, 5, 32) == [item * 16, item * 16, item * 5]
    configure(*options, *layered, "model.type", "glem_gat", "gnn.att_heads", 2)
    assert layer_outputs(cfg, 5, 32)[:2] == [item * 32, item * 32]


def test_small_inputs_are_like_the_large_ones(large: TextGraph) -> None:
    small = ring_like(large, 200)
    assert len(small.col) == pytest.approx(200 * len(large.col) / large.num_nodes, abs=2)
    for part, nodes in large.split.items():
        assert len(small.split[part]) == pytest.approx(len(nodes) * 200 / large.num_nodes, abs=2)
    block = NeighbourSampler(large.rowptr, large.col, [5, 4]).sample(np.arange(100), np.random.default_rng(0))
    half = scaled(block, 0.5)
    assert half.ends.tolist() == pytest.approx((block.ends / 2).tolist(), abs=3)
    assert len(half.col) == pytest.approx(len(block.col) / 2, rel=0.02)
    for end, within in zip(half.ends[:-1], half.ends[1:], strict=True):
        assert half.col[: half.rowptr[end]].max() < within
    rows = np.repeat(np.arange(len(half.nodes)), np.diff(half.rowptr))
    assert (np.diff(rows * len(half.nodes) + half.col) > 0).all()  # increasing within each row


def test_a_peak_is_found_that_lies_elsewhere_in_small_steps() -> None:
    """Weights are most of the small ones; what grows with the nodes comes and goes before their gradients are there."""

    def measure(nodes: float) -> object:
        with counted() as live:
            weight = torch.zeros(1000, 100)
            hidden = torch.ones(round(nodes), 50) * 2
            del hidden
            gradient = weight + 1
            del gradient
        return live

    for nodes in (100, 100_000):
        assert foreseen(measure, 10, 20, nodes)[0] == max(measure(nodes).history)  # type: ignore[arg-type, attr-defined]
