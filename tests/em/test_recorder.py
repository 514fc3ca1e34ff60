"""What is recorded of a run is what the run does: stages, arrays, work, and the weights that are on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from glem_graphgym.data.tokens import TokenStore
from glem_graphgym.em.e_step import TRAINING_COST, LMLearner, LMSettings
from glem_graphgym.em.fit import FitLog, Validation
from glem_graphgym.em.journal import StageKey, StageOutput
from glem_graphgym.em.m_step import GNNLearner, GNNSettings
from glem_graphgym.em.on_gold import SelfDistillation
from glem_graphgym.em.pseudo_labels import PseudoLabels, StepTargets
from glem_graphgym.em.recorder import record
from glem_graphgym.em.run import EMSettings, Run
from glem_graphgym.hardware import Hardware
from glem_graphgym.modes import UNTIL_PLATEAU, run_cascade, run_em, run_gnn, run_lm
from tests.em.test_run import GOLD, REST, C, FakeGNN, H, N, fake_run

SETTINGS = [
    EMSettings(iterations=2),
    EMSettings(order="gnn_first", iterations=1, lm_init="previous", ensemble=True),
    EMSettings(iterations=3, keep_all_weights=True),
]


def folders(run: Run) -> list[str]:
    return [stage.key.folder for stage in run.journal.finished]


def with_weights(run: Run) -> set[str]:
    return {file.parent.name for file in run.journal.folder.glob("*/weights.safetensors")}


def model_of(learner: Any, targets: Any) -> nn.Module:
    """Ten numbers, with an encoder as wide as the run's embeddings."""
    model = nn.Linear(4, 2, device="meta")
    model.encoder = nn.Identity()
    model.encoder.dim = H
    return model


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("program", [run_lm, run_gnn, run_cascade, run_em])
@pytest.mark.parametrize("better", [{}, {"lm_gold": 0.9, "e_step_1": 0.8, "m_step_1": 0.9}])
def test_a_run_does_what_was_recorded(
    program: Callable[[Run], None],
    settings: EMSettings,
    better: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, _ = fake_run(tmp_path / "run", settings, better)
    monkeypatch.setattr(FakeGNN, "validation", Validation(REST[:2], lambda logits: 0.0), raising=False)
    valid = [better.get(name, 0.0) for name in names_of(record(run, program))]
    before = record(run, program, model_of, iter(valid))
    assert not (tmp_path / "run").exists()
    program(run)
    assert [stage.key for stage in before.stages] == [stage.key for stage in run.journal.finished]
    assert before.kept == with_weights(run)
    for noted, stage in zip(before.stages, run.journal.finished, strict=True):
        arrays = {"logits": stage.logits, "embeddings": stage.embeddings}
        assert noted.arrays == {name: array.shape for name, array in arrays.items() if array is not None}
        assert noted.weights == (0 if noted.learner is None else 4 * 10)
        if noted.targets is not None and noted.targets.pseudo is not None:
            assert len(noted.targets.like_an_epoch()) == noted.targets.num_trained
            assert np.isin(noted.targets.like_an_epoch()[len(GOLD.nodes) :], REST).all()


def names_of(recording: Any) -> list[str]:
    return [stage.key.name for stage in recording.stages]


def test_weights_are_counted_before_some_of_them_are_deleted(tmp_path: Path) -> None:
    run, _ = fake_run(tmp_path / "run", EMSettings(iterations=2))
    recording = record(run, run_em)
    *_, last = recording.stages
    assert last.on_disk == {"00_lm_gold", "02_e_step_1", "03_m_step_1", "04_e_step_2", "05_m_step_2"}
    assert recording.kept == {"00_lm_gold", "04_e_step_2", "05_m_step_2"}


def test_until_a_plateau_means_as_many_iterations_as_there_may_be(tmp_path: Path) -> None:
    run, _ = fake_run(tmp_path / "run", EMSettings(iterations=UNTIL_PLATEAU, max_iterations=3))
    assert names_of(record(run, run_em))[-1] == "m_step_3"
    assert names_of(record(run, run_em, scores=iter([0.5] * 8)))[-1] == "m_step_1"


def test_a_stage_that_a_program_adds_is_recorded_and_planned(tmp_path: Path) -> None:
    def longer(run: Run) -> None:
        run_em(run)
        key = StageKey(len(run.journal.finished), "votes", "none", "Votes")
        with run.journal.stage(key) as stage:
            if stage.todo:
                out = stage.predictions("logits", (N, C))
                numbers = stage.compute(lambda: {"sum": float(out.sum())})
                stage.finish(StageOutput(FitLog(), {}, 0, 0.0, numbers))

    run, _ = fake_run(tmp_path / "run")
    recording = record(run, longer)
    assert names_of(recording) == ["lm_gold", "gnn_gold", "e_step_1", "m_step_1", "votes"]
    assert recording.stages[-1].arrays == {"logits": (N, C)}
    longer(run)
    assert folders(run)[-1] == "04_votes"


class Working:
    """A learner's stand-in that says how much work its steps are."""

    def __init__(self, learner: Any, asked: list[tuple[int, int]]) -> None:
        self.learner, self.asked = learner, asked

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def work(self, targets: Any, encoded: np.ndarray) -> dict[str, float]:
        self.asked.append((targets.num_trained, len(encoded)))
        return {"batch": float(targets.num_trained)}


def test_the_work_of_equal_fits_is_asked_for_once(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []
    run, _ = fake_run(tmp_path / "run", EMSettings(iterations=4, lm_ratio=1.0, gnn_ratio=2.0))
    learners: dict[str, Any] = {name: Working(getattr(run, name), asked) for name in ("lm_gold", "lm_em", "gnn")}
    run = replace(run, features_seconds=7.0, encoded=np.arange(5), **learners)
    planned = record(run, run_em).planned(N)
    assert [(stage.name, stage.work, stage.seconds_before) for stage in planned[:4]] == [
        ("lm_gold", {"batch": 3.0}, 0.0),
        ("gnn_gold", {"batch": 3.0}, 7.0),
        ("e_step_1", {"batch": 6.0}, 0.0),
        ("m_step_1", {"batch": 9.0}, 0.0),
    ]
    assert asked == [(3, 5), (3, N), (6, 5), (9, N)]


def test_work_counts_tokens_of_texts_and_nodes_or_epochs_of_graphs() -> None:
    lengths = np.array([2, 4, 4, 1, 1, 1, 1, 1, 1, 9])
    tokens = TokenStore(np.zeros(lengths.sum(), np.uint16), np.concatenate([[0], np.cumsum(lengths)]), 0)
    settings = LMSettings(epochs=3, batch_size=3, evals_per_epoch=2)
    nothing: Any = None
    validation = Validation(np.array([9, 8]), lambda logits: 0.0)
    lm = LMLearner(tokens, nothing, settings, validation, Hardware())
    gold = StepTargets(GOLD)
    trained, validated = 3 * 4, 9 + 1  # three texts are padded to the longest of them
    batches = 3 * (TRAINING_COST * trained + 2 * validated)
    assert lm.work(gold, np.arange(4)) == {"batch": batches, "token": 2 + 4 + 4 + 1}
    pseudo = StepTargets(GOLD, PseudoLabels(np.zeros((N, C)), REST, GOLD), ratio=2.0)
    gnn: Any = GNNLearner(nothing, nothing, nothing, GNNSettings(epochs=7), validation, Hardware())
    assert (gnn.work(gold, REST), gnn.work(pseudo, REST)) == ({"batch": 7}, {"batch": 7})
    vars(gnn)["in_batches"] = True
    assert (gnn.work(gold, REST), gnn.work(pseudo, REST)) == ({"batch": 21}, {"batch": 63})
    vars(gnn)["further_rounds"] = SelfDistillation(0.5)  # on gold, how many GNNs will be trained is not known
    assert (gnn.work(gold, REST), gnn.work(pseudo, REST)) == ({}, {"batch": 63})
