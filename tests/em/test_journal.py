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
from glem_graphgym.em.journal import FinishedStage, Journal, Scores, StageKey, StageOutput, seed_everything, stage_seed
from glem_graphgym.em.plan import Plan, PlannedStage
from glem_graphgym.files import read_json
from glem_graphgym.scores import BLIND

FIRST = StageKey(0, "lm_gold", "LM", "LM")
SECOND = StageKey(1, "gnn_gold", "GNN", "Cascade")


class Killed(BaseException):
    """Ends a stage as a signal would."""


def draw_all() -> np.ndarray:
    """Twelve numbers, four from each generator that a library below us might use."""
    numbers = [random.gauss(0, 1) for _ in range(4)]
    return np.array([*numbers, *np.random.normal(size=4), *torch.randn(4).tolist()])  # noqa: NPY002


def random_work(folder: Path) -> StageOutput:
    """A stage whose results are nothing but random numbers."""
    np.save(folder / "logits.npy", draw_all().reshape(4, 3).astype(np.float16))
    weights = {"weight": torch.randn(2, 3).T, "bias": torch.randn(2)}
    return StageOutput(FitLog(2.0, 0.5, 3, [{"epoch": 1.0, "valid": 0.5}]), weights, 8, 0.1)


def with_embeddings(folder: Path) -> StageOutput:
    np.save(folder / "embeddings.npy", draw_all().reshape(4, 3).astype(np.float16))
    return random_work(folder)


def killed(_: Any) -> Any:
    raise Killed


def evaluate(logits: np.ndarray) -> Scores:
    mean = float(np.abs(logits).astype(np.float64).mean())
    return {"train": {"accuracy": mean}, "valid": {"accuracy": mean / 2}, "test": {"accuracy": 1 / (1 + mean)}}


def journal(run_dir: Path, seed: int = 3, **options: Any) -> Journal:
    return Journal(run_dir, seed, evaluate, **{"log": lambda line: None, **options})


def content(folder: Path) -> dict[str, Any]:
    """Every file of a run, byte for byte; of the records, all but what a clock and the memory say."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        record = read_json(file) if file.name == "stage.json" else None
        if record:
            assert record.pop("seconds") >= 0 and record.pop("peak_memory_mb") > 0
            assert record.pop("texts") >= 0 and record.pop("energy_j") is None  # no such counters here
        found[str(file.relative_to(folder))] = record or file.read_bytes()
    return found


def do(
    made: Journal,
    key: StageKey = FIRST,
    work: Callable[[Path], StageOutput] = random_work,
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
    key, seen = StageKey(4, "e_step_1", "LM", "GLEM-LM", 1), []

    def diagnose(logits: np.ndarray) -> dict[str, float]:
        seen.append(np.array(logits))
        return {"o_q": -1.5}

    done = do(journal(tmp_path), key, with_embeddings, diagnose)
    folder = tmp_path / "stages" / "04_e_step_1"
    assert done.folder == folder
    names = {"stage.json", "history.json", "logits.npy", "embeddings.npy", "weights.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    expected = evaluate(done.logits)
    assert content(folder)["stage.json"] == {
        **{"index": 4, "name": "e_step_1", "model": "LM", "method": "GLEM-LM", "em_iteration": 1},
        **{"params": 8, "lr": 0.1, "epochs": 3, "best_epoch": 2.0},
        **{"scores": expected, "diagnostics": {"o_q": -1.5}},
    }
    assert read_json(folder / "history.json") == [{"epoch": 1.0, "valid": 0.5}]
    assert done.valid == expected["valid"]["accuracy"]
    assert done.embeddings is not None
    np.testing.assert_array_equal(seen, [done.logits])


def test_what_a_stage_works_on_is_there_until_it_is_finished(tmp_path: Path) -> None:
    made = journal(tmp_path)
    (made.working / "hops").mkdir(parents=True)
    with pytest.raises(Killed):
        do(made, work=killed)
    assert (tmp_path / "working" / "hops").is_dir()
    do(made)
    assert not (tmp_path / "working").exists()


def test_predictions_are_memory_mapped_and_weights_come_back_as_they_were(tmp_path: Path) -> None:
    done = do(journal(tmp_path))
    assert isinstance(done.logits, np.memmap) and done.logits.dtype == np.float16 and done.embeddings is None
    seed_everything(stage_seed(3, 0))
    wanted, weights = random_work(tmp_path).weights, done.weights()
    assert {name: value.tolist() for name, value in weights.items()} == {
        name: value.tolist() for name, value in wanted.items()
    }


def scores_in_words(folder: Path) -> str:
    scores = read_json(folder / "stage.json")["scores"]
    return "accuracy " + ", ".join(f"{100 * scores[part]['accuracy']:.2f}% {part}" for part in scores)


def test_a_stage_is_done_once_and_logged_when_it_begins_and_when_it_is_done(tmp_path: Path) -> None:
    lines: list[str] = []
    plan = Plan([PlannedStage("lm_gold", "LM"), PlannedStage("gnn_gold", "GNN")])
    do(journal(tmp_path, log=lines.append, plan=plan))
    before, scores = content(tmp_path), scores_in_words(tmp_path / "stages" / "00_lm_gold")
    again = do(journal(tmp_path, log=lines.append), work=killed)
    begun, done, was_done = lines
    assert begun == "stage 1 of 2: the language model learns from gold labels"
    assert re.fullmatch(rf"stage 1 of 2: {re.escape(scores)}; took 0\.\d s", done)
    assert was_done == "stage 1 was done before: " + scores
    assert content(tmp_path) == before
    assert again.valid == before["stages/00_lm_gold/stage.json"]["scores"]["valid"]["accuracy"]


def test_a_stage_that_another_run_has_done_is_not_said_to_begin(tmp_path: Path) -> None:
    lines: list[str] = []
    for name in ("a", "b"):
        do(journal(tmp_path / name, log=lines.append), shared=tmp_path / "shared" / "x")
    assert [line.split(":")[0] for line in lines] == ["stage 1"] * 3
    assert "; took " in lines[1] and "; taken from another run, which took " in lines[2]


@pytest.mark.parametrize("level", [0, 1, 3])  # of the run, the experiment, the folder above the grid
def test_in_a_blind_folder_no_test_score_is_logged_or_tracked(tmp_path: Path, level: int) -> None:
    run_dir = tmp_path / "all" / "grid" / "experiment" / "0"
    run_dir.mkdir(parents=True)
    file = [run_dir, *run_dir.parents][level] / BLIND
    file.write_text('{"since": "2026", "unblinded": null}')
    lines: list[str] = []
    tracked: dict[str, float] = {}
    options = {"log": lines.append, "track": lambda numbers, step: tracked.update(numbers)}
    do(journal(run_dir, **options))
    do(journal(run_dir, **options), work=killed)
    assert len(lines) == 3 and all("% valid" in line and "test" not in line for line in lines[1:])
    assert any("valid_" in name for name in tracked) and not any("test" in name for name in tracked)
    file.write_text('{"since": "2026", "unblinded": "2027"}')
    do(journal(run_dir, **options), work=killed)
    assert "% test" in lines[-1]
    file.write_text("damaged")
    do(journal(run_dir, **options), work=killed)
    assert "test" not in lines[-1]


def test_the_metric_that_selects_is_the_one_named(tmp_path: Path) -> None:
    def both(logits: np.ndarray) -> Scores:
        return {split: {"accuracy": 0.25, "f1": 0.75} for split in ("train", "valid", "test")}

    assert do(Journal(tmp_path, 0, both, metric="f1", log=lambda line: None)).valid == 0.75


# ---- killed runs; whole ones are in test_run ----------------------------------------------------------------------


@pytest.mark.parametrize("left", ["00_lm_gold", ".00_lm_gold.part"])
def test_a_half_written_folder_without_a_checkpoint_is_cleared_away_and_the_stage_redone(
    tmp_path: Path, left: str
) -> None:
    folder = tmp_path / "killed" / "stages" / left
    folder.mkdir(parents=True)
    for name in ("logits.npy", "left over"):
        (folder / name).write_bytes(b"half")
    for name in ("killed", "whole"):
        draw_all()
        do(journal(tmp_path / name))
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "killed" / "stages").iterdir()] == ["00_lm_gold"]


def test_a_stage_whose_diagnosis_fails_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        do(journal(tmp_path), diagnose=killed)
    assert not (tmp_path / "stages" / "00_lm_gold").exists()


# ---- seeds --------------------------------------------------------------------------------------------------------


def test_stages_and_runs_have_seeds_of_their_own() -> None:
    seeds = {stage_seed(seed, index) for seed in range(20) for index in range(20)}
    assert len(seeds) == 400
    # Part of what "same seed, same result" means from one release to the next.
    assert (stage_seed(0, 0), stage_seed(0, 1), stage_seed(7, 2)) == (2968811710, 3964924996, 1009178997)


def test_a_stage_depends_on_the_seed_and_its_index_by_every_generator(tmp_path: Path) -> None:
    stages = ((3, FIRST), (4, FIRST), (3, SECOND))
    first, second, other = (do(journal(tmp_path / f"{i}", seed), key).logits for i, (seed, key) in enumerate(stages))
    assert len({*first.ravel().tolist(), *second.ravel().tolist(), *other.ravel().tolist()}) > 30
    draws = []
    for _ in range(2):
        seed_everything(5)
        draws.append(draw_all())
    np.testing.assert_array_equal(*draws)


# ---- several stages -----------------------------------------------------------------------------------------------


def several(run_dir: Path) -> Journal:
    """Stages whose logits are all one number each, which `evaluate` turns into their scores."""
    run = journal(run_dir)
    for index, value in enumerate((0.5, 0.25, 0.75, 0.75, 0.5)):

        def work(folder: Path, value: float = value) -> StageOutput:
            output = random_work(folder)
            np.save(folder / "logits.npy", np.full((4, 3), value, np.float16))
            return output

        do(run, StageKey(index, f"e_step_{index}", "LM", "GLEM-LM", index) if index else FIRST, work)
    return run


def test_best_goes_by_validation_within_a_method_and_takes_the_first_of_equals(tmp_path: Path) -> None:
    run = several(tmp_path)
    best, lm = run.best("GLEM-LM"), run.best("LM")
    assert best is not None and best.key.name == "e_step_2"
    assert lm is not None and lm.key == FIRST
    assert run.best("GLEM-GNN") is None


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
    run, again, some = several(tmp_path), journal(tmp_path), journal(tmp_path)
    (tmp_path / "stages" / ".05_m_step_2.part").mkdir()
    again.read_all()
    assert [(stage.key, stage.valid) for stage in again.finished] == [(s.key, s.valid) for s in run.finished]
    some.read_all(["00_lm_gold", "02_e_step_2"])
    assert [stage.key.index for stage in some.finished] == [0, 2]
