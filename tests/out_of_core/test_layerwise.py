"""Prediction by blocks of nodes: logits are those of the whole graph, and no more is computed than they depend on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.gnn import LayeredGNN, MmapGraph, build_gnn
from glem_graphgym.data.csr import nodes_within
from glem_graphgym.data.text_graph import csr_from_edges
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.m_step import GNNSettings, GraphViews
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.em.sampled_step import Neighbourhoods, SampledLearner, StoredSampledLearner
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.block import BlockAdjacency
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.out_of_core import layerwise
from glem_graphgym.out_of_core.layerwise import EDGE_BYTES, ROW_COPIES, LayerwiseInference

N, C, D = 60, 3, 5
RNG = np.random.default_rng(0)
ROWPTR, COL = csr_from_edges(RNG.integers(0, N, 130), RNG.integers(0, N, 130), N)
GOLD, VALID = np.arange(0, 36, 2), np.arange(40, 50)
REST = np.setdiff1d(np.arange(N), GOLD)
FEATURES = RNG.normal(size=(N, D)).astype(np.float32)
LABELS = RNG.integers(0, C, N)
LAYERED = ["glem_sage", "glem_gcn", "glem_gat", "glem_mlp"]
ONE_NODE, SOME, ALL_NODES = 1, 6000, 1 << 30  # bytes of a block


@pytest.fixture(autouse=True)
def network_settings(fresh_config: None) -> None:
    g = cfg.gnn
    g.layers_mp, g.layers_post_mp, g.dim_inner, g.dropout, g.norm, g.att_heads = 3, 1, 8, 0.3, "batch", 2
    cfg.model.type = "glem_sage"


def whole() -> Adjacency:
    return Adjacency(torch.from_numpy(ROWPTR), torch.from_numpy(COL))


def network() -> LayeredGNN:
    """With norms that have seen features, in evaluation mode."""
    torch.manual_seed(1)
    made = build_gnn(cfg, D, C)
    assert isinstance(made, LayeredGNN)
    made(torch.from_numpy(FEATURES), whole())
    return made.eval()


def inference(folder: Path, budget: int = SOME, hardware: Hardware | None = None) -> LayerwiseInference:
    options: dict[str, Any] = {"budget": budget, "working": folder / "working", "hardware": hardware or Hardware()}
    return LayerwiseInference(ROWPTR, COL, **options)


def read(nodes: np.ndarray) -> Tensor:
    return torch.from_numpy(FEATURES[nodes])


def logits_of(
    found: Iterator[tuple[np.ndarray, Tensor]], nodes: np.ndarray, columns: int = C
) -> tuple[np.ndarray, list[int]]:
    """All parts' logits, and how many nodes each has; they are all of ``nodes`` in their order."""
    parts = [(part, logits.float().numpy()) for part, logits in found]
    assert np.concatenate([part for part, _ in parts]).tolist() == nodes.tolist()
    return np.concatenate([logits for _, logits in parts]), [len(part) for part, _ in parts]


# ---- the logits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", LAYERED)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("budget", [ONE_NODE, SOME, ALL_NODES])
def test_logits_are_those_of_the_whole_graph(tmp_path: Path, model: str, layers: int, budget: int) -> None:
    cfg.model.type, cfg.gnn.layers_mp, cfg.gnn.residual = model, layers, True
    cfg.gnn.readout, cfg.gnn.linear_skip = ("layer", "linear", "sum")[layers - 1], layers == 2
    made = network()
    with torch.inference_mode():
        full = made(torch.from_numpy(FEATURES), whole()).numpy()
        for nodes in (np.arange(N), np.array([3, 4, 17, 58])):
            found, sizes = logits_of(inference(tmp_path, budget).logits(made, D, read, nodes), nodes)
            np.testing.assert_allclose(found, full[nodes], atol=1e-5)
            if budget == SOME and len(nodes) == N:
                assert 1 < len(sizes) < N
            elif budget != SOME:
                assert sizes == ([1] * len(nodes) if budget == ONE_NODE else [len(nodes)])
    assert not list((tmp_path / "working").glob("*"))


def test_in_bfloat16_what_layers_give_is_stored_as_it_is(tmp_path: Path) -> None:
    hardware = Hardware(precision="bf16-mixed")
    made, nodes = network(), np.arange(N)
    with torch.inference_mode(), hardware.autocast():
        full = made(torch.from_numpy(FEATURES), whole()).float().numpy()
        found, _ = logits_of(inference(tmp_path, SOME, hardware).logits(made, D, read, nodes), nodes)
    np.testing.assert_allclose(found, full, atol=0.02 * np.abs(full).max())


def test_no_more_is_computed_than_logits_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    usual = LayeredGNN.layer

    def layer(self: LayeredGNN, index: int, x: Tensor, block: BlockAdjacency) -> Tensor:
        out = usual(self, index, x, block)
        asked.append((index, len(out)))
        return out

    monkeypatch.setattr(LayeredGNN, "layer", layer)
    rows: list[np.ndarray] = []

    def noted(wanted: np.ndarray) -> Tensor:
        rows.append(wanted)
        return read(wanted)

    nodes = np.array([3, 17])
    with torch.inference_mode():
        list(inference(tmp_path, ALL_NODES).logits(network(), D, noted, nodes))
    within = [nodes_within(ROWPTR, COL, nodes, hops) for hops in range(4)]
    assert asked == [(0, len(within[2])), (1, len(within[1])), (2, 2)]
    assert np.array_equal(np.sort(rows[0]), within[3]) and len(rows) == 1
    assert len(within[2]) < N


def test_blocks_stay_within_the_budget(tmp_path: Path) -> None:
    found = inference(tmp_path)
    blocks = list(found._blocks(np.arange(N), 8))
    assert np.concatenate(blocks).tolist() == list(range(N)) and len(blocks) > 5
    degree = np.diff(ROWPTR)

    def taken(nodes: np.ndarray) -> int:
        return int(((degree[nodes] + 1) * ROW_COPIES * 4 * 8 + degree[nodes] * EDGE_BYTES).sum())

    assert all(taken(block) <= SOME or len(block) == 1 for block in blocks)
    for block, after in pairwise(blocks):  # and none is smaller than it has to be
        assert taken(np.append(block, after[0])) > SOME


def test_blocks_of_more_nodes_than_are_cut_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerwise, "NODES_AT_ONCE", 7)
    blocks = list(inference(tmp_path, ALL_NODES)._blocks(np.arange(N), 8))
    assert [len(block) for block in blocks] == [7] * 8 + [4]


def test_at_most_two_layers_lie_on_disk(tmp_path: Path) -> None:
    cfg.gnn.layers_mp = 4
    made, folder, seen = network(), tmp_path / "working", set()
    with torch.inference_mode():
        usual = made.layer

        def layer(index: int, x: Tensor, block: BlockAdjacency) -> Tensor:
            seen.add((index, tuple(sorted(file.name for file in folder.glob("*")))))
            return usual(index, x, block)

        made.layer = layer  # type: ignore[method-assign]
        list(inference(tmp_path, ONE_NODE).logits(made, D, read, np.arange(N)))
    files = [f"layer_{index}.npy" for index in range(3)]
    # The file of a layer is made when its first outputs are there.
    assert {held for index, held in seen if index == 0} == {(), (files[0],)}
    assert {held for index, held in seen if index == 2} == {(files[1],), (files[1], files[2])}
    assert {held for index, held in seen if index == 3} == {(files[2],)}


# ---- rows of inputs -----------------------------------------------------------------------------------------------


def targets(**options: Any) -> StepTargets:
    gold = Gold(GOLD, LABELS[GOLD], C)
    logits = np.random.default_rng(1).normal(size=(N, C))
    pseudo = PseudoLabels(logits, REST[::2], gold)
    return StepTargets(gold, pseudo, **{"weight": 0.3, "ratio": 1.5, "redraw": True, "seed": 5, **options})


# ---- a learner ----------------------------------------------------------------------------------------------------


def learner_of(stored: bool, folder: Path, label_input: bool, predicted: np.ndarray | None = None) -> SampledLearner:
    def optimizer(params: Iterator[nn.Parameter]) -> tuple[Any, Any]:
        made = torch.optim.SGD(params, lr=0.1)
        return made, torch.optim.lr_scheduler.ConstantLR(made, 1.0)

    def seeded(dim_in: int, num_classes: int) -> nn.Module:
        torch.manual_seed(3)
        return build_gnn(cfg, dim_in, num_classes)

    settings = GNNSettings(epochs=3, label_input=label_input)
    validation = Validation(VALID, lambda logits: float((logits.argmax(-1) == LABELS[VALID]).mean()))
    common = (optimizer, settings, validation, Hardware())
    if not stored:
        graphs = GraphViews(whole(), whole())
        hoods = Neighbourhoods(graphs, [2, 2, 2])
        return SampledLearner(seeded, graphs, *common, predicted, neighbourhoods=hoods, batch_size=9)
    graph = MmapGraph(ROWPTR, COL)
    graphs = GraphViews(graph, graph)
    hoods = Neighbourhoods(graphs, [2, 2, 2])
    return StoredSampledLearner(
        seeded, graphs, *common, predicted, neighbourhoods=hoods, layerwise=inference(folder), batch_size=9
    )


@pytest.mark.parametrize("model", LAYERED)
@pytest.mark.parametrize("label_input", [False, True])
@pytest.mark.parametrize("predicted", [None, np.arange(30, N)])
def test_a_stored_learner_trains_and_predicts_as_one_in_memory(
    tmp_path: Path, model: str, label_input: bool, predicted: np.ndarray | None
) -> None:
    cfg.model.type = model
    results = []
    for stored in (False, True):
        learner = learner_of(stored, tmp_path, label_input, predicted)
        torch.manual_seed(0)
        task, log = learner.fit(targets(), FEATURES, "test")
        out = np.zeros((N, C), dtype=np.float16)
        task.predict(out)
        results.append((log.history, out, list(task.model.parameters())))
    (history, out, parameters), (history_stored, out_stored, parameters_stored) = results
    assert [row["valid"] for row in history] == [row["valid"] for row in history_stored]
    for one, other in zip(parameters, parameters_stored, strict=True):
        torch.testing.assert_close(one, other)
    np.testing.assert_allclose(out.astype(float), out_stored.astype(float), atol=3e-3)
    assert np.abs(out_stored[30:]).sum() > 0
    assert (np.abs(out_stored[:30]).sum() == 0) == (predicted is not None)


def test_a_part_of_a_stored_graph_is_not_sampled_from() -> None:
    graph = MmapGraph(ROWPTR, COL, np.ones(N, dtype=bool))
    with pytest.raises(AssertionError, match="a part of a stored graph"):
        Neighbourhoods(GraphViews(graph, graph), [2])


def test_networks_without_layers_have_none(fresh_config: None) -> None:
    for model in ("glem_revgat", "glem_sage"):
        cfg.model.type = model
        assert isinstance(build_gnn(cfg, D, C), LayeredGNN) == (model == "glem_sage")
