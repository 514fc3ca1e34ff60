"""Runs that are refused before they start, for the memory that they would need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch_geometric.graphgym.config import cfg

from glem_graphgym import memory
from glem_graphgym.build import memory_check
from glem_graphgym.build.footprint import STEP, hop_step_bytes, neighbourhood_bytes
from glem_graphgym.build.memory_check import check_memory
from glem_graphgym.build.run import prepare
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.em.hop_step import HopLearner
from glem_graphgym.memory import GB

SAMPLED = ("gnn.fan_out", "[2, 2]", "gnn.batch_size", 10)
HOPS = ("model.type", "glem_gamlp", "gnn.hops", 2, "gnn.batch_size", 8)
JOINT = ("optim.optimizer", "adamw", "optim.scheduler", "none")


def test_a_full_batch_that_exceeds_the_budget_is_refused_with_figures_and_a_way_out(
    configure: Callable[..., None], tmp_path: Path
) -> None:
    configure("glem.memory_budget_gb", 1e-5)
    with pytest.raises(ValueError, match=r"model.type glem_gcn trains on the whole graph") as error:
        prepare(cfg)
    for part in ("features", "a training step", "edges", "glem.memory_budget_gb is 1e-05", "glem_gamlp"):
        assert part in str(error.value)
    assert not (tmp_path / "run").exists() and not list((tmp_path / "datasets").glob("tokens/*"))


@pytest.mark.parametrize("options", [(), SAMPLED, ("train.mode", "glem_joint", *SAMPLED, *JOINT)])
@pytest.mark.parametrize("budget", [0.0, 1e-3, 1e6])
def test_what_fits_is_not_refused(
    configure: Callable[..., None], graph: TextGraph, options: tuple[object, ...], budget: float
) -> None:
    configure("glem.memory_budget_gb", budget, *options)
    check_memory(cfg, graph)


LAYERWISE = r"glem_sage, glem_gcn or glem_gat, which predict by blocks of nodes within glem.memory_budget_gb"


@pytest.mark.parametrize("mode", ["glem", "glem_joint"])
@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ((), "glem.memory_budget_gb below that, and it predicts by blocks of nodes"),
        (("glem.setting", "inductive"), "glem.setting transductive, with which it predicts by blocks of nodes"),
        (("model.type", "glem_revgat"), LAYERWISE),
        (("model.type", "glem_revgat", "glem.memory_budget_gb", 9.9e-5), LAYERWISE),
        (("glem.setting", "inductive", "glem.memory_budget_gb", 9.9e-5), "glem.setting transductive"),
    ],
)
def test_sampled_networks_that_see_the_whole_graph_in_prediction(
    configure: Callable[..., None],
    graph: TextGraph,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    options: tuple[object, ...],
    instead: str,
) -> None:
    configure("train.mode", mode, *SAMPLED, *JOINT, *options)
    monkeypatch.setattr(memory, "machine_bytes", lambda: round(1e-4 * GB))
    whose = "glem.memory_budget_gb is 9.9e-05" if "glem.memory_budget_gb" in options else "this machine has 0.0001 GB"
    message = rf"model.type glem_\w+ samples neighbours in training, but predicts .*, but {whose}; expected .*{instead}"
    with pytest.raises(ValueError, match=message) as error:
        check_memory(cfg, graph)
    for part in ("features", "edges"):
        assert part in str(error.value)
    # With so few nodes a neighbourhood may take more than a prediction of all.
    assert ("a prediction of all nodes" in str(error.value)) != ("neighbourhood" in str(error.value))
    assert ("glem_gamlp" in str(error.value)) == ("glem_revgat" in options and mode == "glem")


def test_a_step_is_held_against_the_part_of_the_budget_that_the_machine_has(
    configure: Callable[..., None], graph: TextGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(*SAMPLED, "glem.memory_budget_gb", 64)
    step = neighbourhood_bytes(cfg, graph, 32)[STEP]
    monkeypatch.setattr(memory, "machine_bytes", lambda: round(step / 0.79))
    check_memory(cfg, graph)
    monkeypatch.setattr(memory, "machine_bytes", lambda: round(step / 0.81))  # of which four fifths are the budget
    with pytest.raises(ValueError, match=r"a step's .* but the budget is .* \(glem.memory_budget_gb, as far as this"):
        check_memory(cfg, graph)


@pytest.mark.parametrize("mode", ["glem", "glem_joint"])
def test_within_a_budget_sampled_networks_predict_by_blocks_of_nodes(
    configure: Callable[..., None], graph: TextGraph, mode: str
) -> None:
    for budget, by_blocks in ((0.0, False), (1e-4, True), (1.0, False)):
        configure("train.mode", mode, *SAMPLED, *JOINT, "glem.memory_budget_gb", budget)
        assert check_memory(cfg, graph) == by_blocks
    configure("train.mode", mode, *SAMPLED, *JOINT, "glem.memory_budget_gb", 1e-6)
    keys = "lm.batch_size / lm.grad_accumulation" if mode == "glem_joint" else "gnn.batch_size"
    with pytest.raises(ValueError, match=rf"a step's neighbourhood takes about .* set {keys} or gnn.fan_out lower"):
        check_memory(cfg, graph)
    configure("train.mode", mode, *SAMPLED, *JOINT, "glem.memory_budget_gb", 1e-4, "glem.correct_and_smooth", True)
    with pytest.raises(ValueError, match=r"glem.correct_and_smooth takes about"):
        check_memory(cfg, graph)


# ---- a budget that the machine has not ------------------------------------------------------------------------------


def test_a_budget_above_the_machine_propagates_on_disk_within_the_machine(
    configure: Callable[..., None], graph: TextGraph, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    configure(*HOPS, "glem.memory_budget_gb", 64)
    check_memory(cfg, graph)
    assert "memory_budget_gb" not in caplog.text
    monkeypatch.setattr(memory_check, "hop_step_bytes", lambda *args: 0)  # whose weights alone exceed such a machine
    monkeypatch.setattr(memory, "machine_bytes", lambda: round(4e-5 * GB))
    check_memory(cfg, graph)
    assert "glem.memory_budget_gb is 64, but this machine has 4e-05 GB" in caplog.text
    assert "within 3.2e-05 GB of memory" in caplog.text
    _, run = prepare(cfg)
    assert isinstance(run.gnn, HopLearner) and run.gnn.storage is not None
    assert run.gnn.storage.budget == round(3.2e-5 * GB)
    monkeypatch.setattr(memory, "machine_bytes", lambda: round(2e-6 * GB))
    with pytest.raises(
        ValueError, match=r"budget is 1.6e-06 GB \(glem.memory_budget_gb, as far as this machine has it"
    ):
        check_memory(cfg, graph)


def test_a_full_batch_within_the_budget_but_not_the_machine_is_refused(
    configure: Callable[..., None], graph: TextGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure("glem.memory_budget_gb", 64)
    monkeypatch.setattr(memory, "machine_bytes", lambda: round(1e-5 * GB))
    with pytest.raises(ValueError, match="but this machine has 1e-05 GB; expected"):
        check_memory(cfg, graph)


def test_hops_of_several_processes_are_held_several_times(
    configure: Callable[..., None], graph: TextGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: round(8e-4 * GB))
    for processes, consistency, fits in [(1, 0.0, True), (2, 0.5, True), (2, 0.0, False)]:
        configure(*HOPS, "devices", processes, "gnn.scr_weight", consistency)
        if fits:
            check_memory(cfg, graph)
            continue
        with pytest.raises(ValueError, match=r"has 0.0004 GB for each of 2 processes; set glem.memory_budget_gb"):
            check_memory(cfg, graph)


def test_a_step_on_hop_features_must_fit_beside_them(
    configure: Callable[..., None], graph: TextGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(*HOPS)
    step = hop_step_bytes(cfg, graph.num_classes, 32, 8)
    assert hop_step_bytes(cfg, graph.num_classes, 32, 80) > step  # weights and optimizer do not grow, all else does
    monkeypatch.setattr(memory, "machine_bytes", lambda: step - 1)
    with pytest.raises(ValueError, match=r"a training step of model.type glem_gamlp on 8 nodes takes about .* set gnn"):
        check_memory(cfg, graph)
    monkeypatch.setattr(memory, "machine_bytes", lambda: step + 10_000)
    with pytest.raises(ValueError, match=r"for 2 hops and .* for a training step, .* set glem.memory_budget_gb below"):
        check_memory(cfg, graph)
    configure(*HOPS, "glem.memory_budget_gb", 2e-5)
    with pytest.raises(ValueError, match=r"beside the 2e-05 GB of glem.memory_budget_gb, .* set gnn.batch_size, now 8"):
        check_memory(cfg, graph)
    monkeypatch.setattr(memory, "machine_bytes", lambda: step + 30_000)
    check_memory(cfg, graph)


@pytest.mark.parametrize("model", ["glem_gcn", "glem_gamlp", "gnn"])
def test_without_a_budget_the_machine_is_the_limit(
    configure: Callable[..., None], graph: TextGraph, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    configure("model.type", model)
    check_memory(cfg, graph)
    monkeypatch.setattr(memory_check, "hop_step_bytes", lambda *args: 0)  # whose weights alone exceed such a machine
    monkeypatch.setattr(memory, "machine_bytes", lambda: round(1e-5 * GB))
    remedy = "set glem.memory_budget_gb" if model == "glem_gamlp" else "gnn.fan_out"
    with pytest.raises(ValueError, match=f"this machine has 1e-05 GB.*{remedy}"):
        check_memory(cfg, graph)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("gnn.batch_size", 0), r"gnn.batch_size is 0 with 80 training nodes: .* at most \d+"),  # half pseudo
        (("gnn.batch_size", 0, "train.mode", "glem_cascade"), "gnn.batch_size is 0 with 40 training nodes"),
        (("glem.correct_and_smooth", True, "gnn.batch_size", 8), "glem.correct_and_smooth takes about"),
        (("glem.memory_budget_gb", 1e-6), r"400 nodes need at least .*glem.memory_budget_gb"),
    ],
)
def test_hops_that_cannot_be_made_within_the_budget(
    configure: Callable[..., None], graph: TextGraph, options: tuple[object, ...], message: str
) -> None:
    configure("model.type", "glem_gamlp", "gnn.hops", 2, "glem.memory_budget_gb", 3e-5, *options)
    with pytest.raises(ValueError, match=message):
        check_memory(cfg, graph)


@pytest.mark.parametrize(("candidates", "confidence", "trained"), [(None, 1.0, 80), (10, 1.0, 50), (10, 0.5, 45)])
def test_a_batch_has_no_more_pseudo_nodes_than_there_are(
    configure: Callable[..., None], graph: TextGraph, candidates: int | None, confidence: float, trained: int
) -> None:
    budget = ("glem.memory_budget_gb", 3e-5, "glem.confidence", confidence, "gnn.batch_size", 0)
    configure("model.type", "glem_gamlp", "gnn.hops", 2, *budget)
    with pytest.raises(ValueError, match=f"with {trained} training nodes"):
        check_memory(cfg, graph, candidates)


def test_unlabelled_nodes_of_consistency_count_in_a_batch(configure: Callable[..., None], graph: TextGraph) -> None:
    options = ("model.type", "glem_gamlp", "gnn.hops", 2, "glem.memory_budget_gb", 3e-5, "gnn.batch_size")
    at_most = {}
    for consistency in (0.0, 0.5):
        configure(*options, 80, "gnn.scr_weight", consistency)
        with pytest.raises(ValueError, match=r"set gnn.batch_size to at most") as error:
            check_memory(cfg, graph)
        at_most[consistency] = int(str(error.value).split()[-1])
        assert ("as many beside them" in str(error.value)) == (consistency > 0)
        configure(*options, at_most[consistency], "gnn.scr_weight", consistency)
        check_memory(cfg, graph)
    assert at_most[0.5] == at_most[0.0] // 2


def test_later_stages_of_self_training_may_train_on_all_nodes(configure: Callable[..., None], graph: TextGraph) -> None:
    configure("model.type", "glem_gamlp", "gnn.hops", 2, "glem.memory_budget_gb", 3e-5, "gnn.rlu_rounds", 2)
    with pytest.raises(ValueError, match=r"gnn.batch_size is 0 with 400 training nodes"):
        check_memory(cfg, graph, 360)
