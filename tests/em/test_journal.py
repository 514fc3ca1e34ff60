from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glem_graphgym.em.fit import FitLog
from glem_graphgym.em.journal import (
    FinishedStage,
    Journal,
    Scores,
    StageKey,
    StageOutput,
    seed_everything,
    stage_seed,
)
from glem_graphgym.em.plan import Plan, PlannedStage
from glem_graphgym.files import read_json

FIRST = StageKey(0, "lm_gold", "LM", "LM")
SECOND = StageKey(1, "gnn_gold", "GNN", "Cascade")


class Killed(BaseException):
    """Ends a stage as a signal would."""


def draw_all() -> np.ndarray:
    """Twelve numbers, four from each generator that a library below us might use."""
    return np.array(
        [
            *(random.gauss(0, 1) for _ in range(4)),
            *np.random.normal(size=4),  # noqa: NPY002
            *torch.randn(4).tolist(),
        ]
    )


class RandomWork:
    """A stage whose results are nothing but random numbers, on top of those of the stage before."""

    def __init__(self, before: FinishedStage | None = None, embeddings: bool = False, dies: bool = False) -> None:
        self.before, self.embeddings, self.dies = before, embeddings, dies
        self.calls = 0

    def __call__(self, folder: Path) -> StageOutput:
        self.calls += 1
        logits = draw_all().reshape(4, 3).astype(np.float16)
        if self.before is not None:
            logits = logits + self.before.logits
        np.save(folder / "logits.npy", logits)
        if self.embeddings:
            np.save(folder / "embeddings.npy", draw_all().reshape(4, 3).astype(np.float16))
        if self.dies:
            raise Killed
        history = [{"epoch": 1.0, "valid": 0.5}]
        return StageOutput(
            FitLog(2.0, 0.5, 3, history), {"weight": torch.randn(2, 3).T, "bias": torch.randn(2)}, 8, 0.1
        )


def evaluate(logits: np.ndarray) -> Scores:
    mean = float(np.abs(logits).astype(np.float64).mean())
    return {"train": {"accuracy": mean}, "valid": {"accuracy": mean / 2}, "test": {"accuracy": 1 / (1 + mean)}}


def journal(run_dir: Path, seed: int = 3, **options: Any) -> Journal:
    return Journal(run_dir, seed, evaluate, log=options.pop("log", lambda line: None), **options)


def content(folder: Path) -> dict[str, Any]:
    """Every file of a run, byte for byte; of the records, all but what a clock and the memory say."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        if file.name == "stage.json":
            record = read_json(file)
            assert record.pop("seconds") >= 0
            assert record.pop("peak_memory_mb") > 0
            found[name] = record
        else:
            found[name] = file.read_bytes()
    return found


def do(
    made: Journal,
    key: StageKey,
    work: Callable[[Path], StageOutput],
    diagnose: Callable[[np.ndarray], dict[str, float]] | None = None,
    **options: Any,
) -> FinishedStage:
    """The stage ``key``, done by ``work(folder)`` if there is something to do."""
    with made.stage(key, **options) as stage:
        if stage.todo:
            done = work(stage.folder)
            stage.finish(done)
            if diagnose:
                done.notes.update(diagnose(stage.logits))
    return stage.result


# ---- one stage ----------------------------------------------------------------------------------------------------


def test_a_stage_leaves_what_it_was_and_what_came_of_it(tmp_path: Path) -> None:
    key = StageKey(4, "e_step_1", "LM", "GLEM-LM", 1)
    seen: list[np.ndarray] = []

    def diagnose(logits: np.ndarray) -> dict[str, float]:
        seen.append(np.array(logits))
        return {"o_q": -1.5}

    done = do(journal(tmp_path), key, RandomWork(embeddings=True), diagnose)
    folder = tmp_path / "stages" / "04_e_step_1"
    assert done.folder == folder
    names = {"stage.json", "history.json", "logits.npy", "embeddings.npy", "weights.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    record = read_json(folder / "stage.json")
    expected = evaluate(done.logits)
    assert record.pop("seconds") >= 0
    assert record.pop("peak_memory_mb") > 1
    assert record == {
        **{"index": 4, "name": "e_step_1", "model": "LM", "method": "GLEM-LM", "em_iteration": 1},
        **{"params": 8, "lr": 0.1, "epochs": 3, "best_epoch": 2.0},
        "scores": expected,
        "diagnostics": {"o_q": -1.5},
    }
    assert read_json(folder / "history.json") == [{"epoch": 1.0, "valid": 0.5}]
    assert done.valid == expected["valid"]["accuracy"]
    assert done.embeddings is not None
    np.testing.assert_array_equal(seen, [done.logits])


def test_what_a_stage_works_on_is_there_until_it_is_finished(tmp_path: Path) -> None:
    made = journal(tmp_path)
    (made.working / "hops").mkdir(parents=True)

    def killed(folder: Path) -> StageOutput:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(made, FIRST, killed)
    assert (tmp_path / "working" / "hops").is_dir()
    do(made, FIRST, RandomWork())
    assert not (tmp_path / "working").exists()


def test_predictions_are_memory_mapped_and_weights_come_back_as_they_were(tmp_path: Path) -> None:
    done = do(journal(tmp_path), FIRST, RandomWork())
    assert isinstance(done.logits, np.memmap)
    assert done.logits.dtype == np.float16
    assert done.embeddings is None
    seed_everything(stage_seed(3, 0))
    work = RandomWork()(tmp_path)
    weights = done.weights()
    assert {name: value.tolist() for name, value in weights.items()} == {
        name: value.tolist() for name, value in work.weights.items()
    }


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    do(journal(tmp_path), FIRST, RandomWork())
    before = content(tmp_path)
    said: list[str] = []
    never = RandomWork(dies=True)
    done = do(journal(tmp_path, log=said.append), FIRST, never)
    assert never.calls == 0
    assert content(tmp_path) == before
    assert done.valid == before["stages/00_lm_gold/stage.json"]["scores"]["valid"]["accuracy"]
    assert said == ["stage 1 was done before: " + scores_in_words(tmp_path / "stages" / "00_lm_gold")]


def scores_in_words(folder: Path) -> str:
    scores = read_json(folder / "stage.json")["scores"]
    return "accuracy " + ", ".join(f"{100 * scores[part]['accuracy']:.2f}% {part}" for part in scores)


def test_each_stage_is_said_when_it_begins_and_when_it_is_done(tmp_path: Path) -> None:
    said: list[str] = []
    plan = Plan([PlannedStage("lm_gold", "LM"), PlannedStage("gnn_gold", "GNN")])
    made = journal(tmp_path, log=said.append, plan=plan)
    do(made, FIRST, RandomWork())
    begun, done = said
    assert begun == "stage 1 of 2: the language model learns from gold labels"
    scores = scores_in_words(tmp_path / "stages" / "00_lm_gold")
    assert re.fullmatch(rf"stage 1 of 2: {re.escape(scores)}; took 0\.\d s", done)


def test_a_stage_that_another_run_has_done_is_not_said_to_begin(tmp_path: Path) -> None:
    said: list[str] = []
    for name in ("a", "b"):
        made = journal(tmp_path / name, log=said.append)
        do(made, FIRST, RandomWork(), shared=tmp_path / "shared" / "x")
    assert [line.split(":")[0] for line in said] == ["stage 1"] * 3
    assert "; took " in said[1] and "; taken from another run, which took " in said[2]


def test_the_metric_that_selects_is_the_one_named(tmp_path: Path) -> None:
    def both(logits: np.ndarray) -> Scores:
        return {split: {"accuracy": 0.25, "f1": 0.75} for split in ("train", "valid", "test")}

    done = do(Journal(tmp_path, 0, both, metric="f1", log=lambda line: None), FIRST, RandomWork())
    assert done.valid == 0.75


# ---- killed runs --------------------------------------------------------------------------------------------------


def two_stages(run_dir: Path, wrap: Callable[[int, RandomWork], RandomWork] = lambda stage, work: work) -> None:
    run = journal(run_dir)
    first = do(run, FIRST, wrap(0, RandomWork(embeddings=True)))
    do(run, SECOND, wrap(1, RandomWork(first)), lambda logits: {"sum": float(logits.sum())})


@pytest.mark.parametrize("left", ["00_lm_gold", ".00_lm_gold.part"])
def test_a_half_written_folder_without_a_checkpoint_is_cleared_away_and_the_stage_redone(
    tmp_path: Path, left: str
) -> None:
    folder = tmp_path / "killed" / "stages" / left
    folder.mkdir(parents=True)
    (folder / "logits.npy").write_bytes(b"half")
    (folder / "left over").write_text("")
    two_stages(tmp_path / "killed")
    two_stages(tmp_path / "whole")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "killed" / "stages").iterdir()) == [
        "00_lm_gold",
        "01_gnn_gold",
    ]


def test_a_stage_whose_diagnosis_fails_is_not_finished(tmp_path: Path) -> None:
    def diagnose(logits: np.ndarray) -> dict[str, float]:
        raise Killed

    with pytest.raises(Killed):
        do(journal(tmp_path), FIRST, RandomWork(), diagnose)
    assert not (tmp_path / "stages" / "00_lm_gold").exists()


# ---- seeds --------------------------------------------------------------------------------------------------------


def test_stages_and_runs_have_seeds_of_their_own() -> None:
    seeds = {stage_seed(seed, index) for seed in range(20) for index in range(20)}
    assert len(seeds) == 400
    # Part of what "same seed, same result" means from one release to the next.
    assert (stage_seed(0, 0), stage_seed(0, 1), stage_seed(7, 2)) == (2968811710, 3964924996, 1009178997)


def test_seed_everything_sets_all_three_generators() -> None:
    seed_everything(5)
    first = draw_all()
    assert len(set(first)) == 12
    seed_everything(5)
    np.testing.assert_array_equal(draw_all(), first)


# ---- several stages -----------------------------------------------------------------------------------------------


class Valued(RandomWork):
    """A stage whose logits are all one number, which `evaluate` turns into its score."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def __call__(self, folder: Path) -> StageOutput:
        work = super().__call__(folder)
        np.save(folder / "logits.npy", np.full((4, 3), self.value, np.float16))
        return work


def several(run_dir: Path) -> Journal:
    run = journal(run_dir)
    do(run, FIRST, Valued(0.5))
    for iteration, value in enumerate((0.25, 0.75, 0.75, 0.5), start=1):
        do(run, StageKey(iteration, f"e_step_{iteration}", "LM", "GLEM-LM", iteration), Valued(value))
    return run


def test_best_goes_by_validation_within_a_method_and_takes_the_first_of_equals(tmp_path: Path) -> None:
    run = several(tmp_path)
    best = run.best("GLEM-LM")
    assert best is not None
    assert best.key.name == "e_step_2"
    assert run.best("GLEM-GNN") is None
    lm = run.best("LM")
    assert lm is not None
    assert lm.key == FIRST


def test_weights_are_forgotten_and_predictions_kept(tmp_path: Path) -> None:
    run = several(tmp_path)
    run.forget_weights({"02_e_step_2"})
    run.forget_weights({"02_e_step_2"})
    left = [path.parent.name for path in sorted(tmp_path.rglob("weights.safetensors"))]
    assert left == ["02_e_step_2"]
    assert len(list(tmp_path.rglob("logits.npy"))) == 5
    assert set(run.finished[2].weights()) == {"weight", "bias"}
    with pytest.raises(FileNotFoundError, match=r"00_lm_gold.*glem.keep_weights: all and --overwrite"):
        run.finished[0].weights()


def test_all_stages_are_read_back_in_their_order(tmp_path: Path) -> None:
    run = several(tmp_path)
    (tmp_path / "stages" / ".05_m_step_2.part").mkdir()
    again = journal(tmp_path)
    again.read_all()
    assert [stage.key for stage in again.finished] == [stage.key for stage in run.finished]
    assert [stage.valid for stage in again.finished] == [stage.valid for stage in run.finished]
    some = journal(tmp_path)
    some.read_all(["00_lm_gold", "02_e_step_2"])
    assert [stage.key.index for stage in some.finished] == [0, 2]
