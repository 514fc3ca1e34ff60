"""The M-step on hops on disk: what it trains, what it keeps, what a killed one goes on from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from glem_graphgym.build.gnn import MmapGraph
from glem_graphgym.data.csr import csr_from_edges
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.hop_step import HopLearner
from glem_graphgym.em.m_step import GNNSettings, GraphViews
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.gamlp import GAMLP
from glem_graphgym.out_of_core.feature_rows import FeatureRows
from glem_graphgym.out_of_core.hop_storage import HopStorage, batch_bytes, hops_in_memory
from glem_graphgym.out_of_core.propagation import MappedHops
from tests.out_of_core.conftest import Dying

N, C, D, HOPS, LABEL_HOPS = 300, 3, 12, 2, 2
RNG = np.random.default_rng(0)
ROWPTR, COL = csr_from_edges(RNG.integers(0, N, 500), RNG.integers(0, N, 500), N)
GOLD, VALID, TEST = np.arange(0, 60, 3), np.arange(100, 140), np.arange(200, 240)
REST = np.setdiff1d(np.arange(N), GOLD)
FEATURES = RNG.normal(size=(N, D)).astype(np.float32)
LABELS = RNG.integers(0, C, N)
BUDGET = 24_000  # bytes: two blocks of features, one of labels


def graphs(setting: str = "transductive") -> GraphViews:
    if setting == "transductive":
        return GraphViews(MmapGraph(ROWPTR, COL), MmapGraph(ROWPTR, COL))
    keep = np.ones(N, dtype=bool)
    keep[TEST] = False
    predict = MmapGraph(ROWPTR, COL) if setting == "inductive" else MmapGraph(ROWPTR, COL, keep)
    return GraphViews(MmapGraph(ROWPTR, COL, keep, renumbered=True), predict, np.flatnonzero(keep))


def targets(pseudo: bool = True, seed: int = 5) -> StepTargets:
    gold = Gold(GOLD, LABELS[GOLD], C)
    logits = np.random.default_rng(1).normal(size=(N, C))
    unseen = np.setdiff1d(REST, TEST)
    return StepTargets(gold, PseudoLabels(logits, unseen, gold) if pseudo else None, 0.3, 1.5, True, seed)


PRECISIONS = ["32-true", "bf16-mixed"]


def gamlp(dim_in: int, classes: int) -> nn.Module:
    return GAMLP(dim_in, 8, classes, HOPS, dropout=0.3, label_hops=1, label_dropout=0.2)


def learner_of(
    storage: HopStorage | None, setting: str = "transductive", precision: str = "32-true", **options: Any
) -> HopLearner:
    def optimizer(params: Iterator[nn.Parameter]) -> tuple[Any, Any]:
        made = torch.optim.SGD(params, lr=0.05)  # Adam makes steps of gradients that are but rounding
        return made, torch.optim.lr_scheduler.ConstantLR(made, 1.0)

    validation = Validation(VALID, lambda logits: float((logits.argmax(-1) == LABELS[VALID]).mean()))
    return HopLearner(
        gamlp,
        graphs(setting),
        optimizer,
        GNNSettings(epochs=4, label_input=True),
        validation,
        Hardware(precision=precision),
        **{
            "hops": HOPS,
            "label_hops": LABEL_HOPS,
            "batch_size": 12,
            "storage": storage,
            **options,
        },
    )


def storage_in(
    folder: Path, nodes: np.ndarray | None = None, budget: int = BUDGET, precision: str = "32-true"
) -> HopStorage:
    return HopStorage(budget, folder / "working", folder / "cache", nodes, Hardware(precision=precision).dtype)


def trained(learner: HopLearner, features: Any = FEATURES, pseudo: bool = True) -> tuple[np.ndarray, Any]:
    torch.manual_seed(0)
    task, _ = learner.fit(targets(pseudo), features, "test")
    logits = np.zeros((N, C), dtype=np.float32)
    task.predict(logits)
    return logits, task


# ---- the same results ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("setting", ["transductive", "inductive", "structure_free"])
def test_hops_on_disk_are_those_in_memory(tmp_path: Path, setting: str, precision: str) -> None:
    storages = (None, storage_in(tmp_path, precision=precision))
    tasks: Any = (learner_of(storage, setting, precision).start(targets(), FEATURES) for storage in storages)
    memory, disk = tasks
    assert isinstance(disk.inputs.hops, MappedHops) and isinstance(disk.inputs.labels, MappedHops)
    assert isinstance(memory.inputs.hops, torch.Tensor) and isinstance(memory.inputs.labels, torch.Tensor)
    pairs = zip(disk.inputs.rows(np.arange(N)), (memory.inputs.hops, memory.inputs.labels), strict=True)
    for ours, theirs in pairs:
        assert ours is not None
        assert ours.dtype == Hardware(precision=precision).dtype
        assert torch.equal(ours, theirs)


def test_hops_are_stored_of_the_nodes_that_are_needed_and_no_others(tmp_path: Path) -> None:
    needed = np.unique(np.concatenate([GOLD, VALID, TEST, targets().drawn(0)]))
    nodes = np.union1d(needed, targets().pseudo.nodes)  # type: ignore[union-attr]
    nodes = nodes[nodes != 299]
    logits, disk = trained(learner_of(storage_in(tmp_path, nodes), predicted=nodes))
    assert disk.inputs.hops.shape == (HOPS + 1, len(nodes), D)
    with pytest.raises(ValueError, match="hops of node 299"):
        disk.inputs.rows(np.array([299]))
    whole, _ = trained(learner_of(storage_in(tmp_path / "whole")))
    np.testing.assert_array_equal(logits[nodes], whole[nodes])
    assert not logits[299].any() and whole[299].any()


def test_what_fits_stays_in_memory_and_is_bit_for_bit_what_it_is_without_a_budget(tmp_path: Path) -> None:
    wanted, _ = trained(learner_of(None))
    found, task = trained(learner_of(storage_in(tmp_path, budget=10**9)))
    assert isinstance(task.inputs.hops, torch.Tensor)
    np.testing.assert_array_equal(found, wanted)
    assert list(tmp_path.iterdir()) == []


# ---- what is kept where -------------------------------------------------------------------------------------------


def folders(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in folder.iterdir() if path.is_dir())


def test_hops_of_a_step_lie_in_the_working_folder_and_those_of_fixed_features_in_the_cache(tmp_path: Path) -> None:
    learner_of(storage_in(tmp_path)).start(targets(), FeatureRows([FEATURES]))
    assert folders(tmp_path / "working") == ["hops", "labels"]
    assert folders(tmp_path / "cache") == ["operator"]
    learner_of(storage_in(tmp_path)).start(targets(), FeatureRows([FEATURES], fixed=True))
    assert folders(tmp_path / "cache") == ["hops", "operator"]


def test_a_job_with_the_same_features_propagates_nothing(tmp_path: Path, dying: Dying) -> None:
    def load(working: str, features: np.ndarray, seed: int) -> list[int]:
        """The widths of the products that it takes."""
        learner = learner_of(HopStorage(BUDGET, tmp_path / working, tmp_path / "cache"))
        with dying() as products:
            learner.start(targets(pseudo=False, seed=seed), FeatureRows([features], fixed=True))
        return [x.shape[1] for (x,) in products]

    load("one", FEATURES, 5)
    assert load("two", FEATURES.copy(), 6) == [C] * LABEL_HOPS * 6  # label hops of another draw alone
    assert load("two", FEATURES + 1, 6) == [D // 2] * 2 * HOPS  # other features, whose labels are there


def test_an_operator_is_stored_once_a_graph(tmp_path: Path) -> None:
    for setting in ("transductive", "structure_free", "inductive", "transductive"):
        learner_of(storage_in(tmp_path), setting).start(targets(), FEATURES)
    # the whole graph, the one among seen nodes, and for inductive both, which are there
    assert len(list((tmp_path / "cache").glob("operator-*"))) == 2


# ---- refusals -----------------------------------------------------------------------------------------------------


def test_a_batch_that_exceeds_the_budget_is_refused_with_one_that_does_not(tmp_path: Path) -> None:
    budget = batch_bytes(30, HOPS, D, 4)
    learner = learner_of(storage_in(tmp_path, budget=budget), batch_size=0)
    with pytest.raises(ValueError, match=r"batch_size is 0 with 50 training nodes: 3 hops of 12 .* at most 30$"):
        learner.fit(targets(), FEATURES, "test")
    assert list(tmp_path.iterdir()) == []


def test_a_budget_below_a_column_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    learner = learner_of(storage_in(tmp_path, budget=4000), batch_size=2)
    with pytest.raises(ValueError, match=r"300 nodes need at least .*glem.memory_budget_gb"):
        learner.fit(targets(), FEATURES, "test")
    assert list(tmp_path.iterdir()) == []


def test_inference_reads_as_many_nodes_at_a_time_as_the_budget_allows(tmp_path: Path) -> None:
    storage = storage_in(tmp_path, budget=batch_bytes(10, HOPS, D, 4))
    assert storage.rows_at_once(HOPS, D, 1000) == 10
    assert storage.rows_at_once(HOPS, D, 7) == 7
    assert storage.rows_at_once(100, 10**6, 7) == 1


def test_the_estimate_of_hops_in_memory_grows_with_all_it_is_made_of() -> None:
    base = {"num_nodes": 1000, "entries": 5000, "width": 20, "hops": 3, "item_bytes": 4, "classes": 0}
    size = hops_in_memory(**base)
    assert size > 4 * 1000 * 20 * 5 + 8 * 5000
    changes = {"num_nodes": 2000, "entries": 6000, "width": 30, "hops": 4, "item_bytes": 8, "classes": 9}
    for name, value in changes.items():
        assert hops_in_memory(**{**base, name: value}) > size, name
