"""Search: what a space may hold, which trials are stopped, and a search that is killed and resumed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import search
import yaml
from grid import space
from optuna.trial import TrialState

from glem_graphgym.report.experiments import read_experiments
from tests.bad_inputs.conftest import load_program, logging_taken_back

BASE = """
metric_best: accuracy
num_threads: 1
accelerator: cpu
tensorboard_agg: False
print: file
dataset: {format: TAG, name: synthetic, dir: datasets, tag_split: [0.3, 0.2, 0.3], synthetic_nodes: 120,
  synthetic_features: 8}
glem: {node_features: raw}
model: {type: glem_sage}
gnn: {layers_mp: 2, layers_post_mp: 1, dim_inner: 16}
optim: {optimizer: adamw, scheduler: none, max_epoch: 10}
train: {mode: glem_gnn}
"""
SPACE = """
optim.base_lr lr log_range(1e-3, 1e-1)
gnn.dim_inner dim range(8, 32)
model.type gnn ['glem_sage','glem_gcn']

model.type gnn ['glem_mlp']
gnn.dropout drop range(0, 0.5)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with base and space; the logging that programs set up is taken back."""
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "space.txt").write_text(SPACE)
    monkeypatch.chdir(tmp_path)
    with logging_taken_back():
        yield tmp_path


def test_points_are_drawn_from_lists_and_ranges(folder: Path) -> None:
    blocks = space.read_grid(folder / "space.txt", ranges=True)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found: dict[str, list[object]] = {}
    for _ in range(200):
        point = search.draw(study.ask(), blocks)
        for axis, value in zip(point.block, point.values, strict=True):
            found.setdefault(axis.alias, []).append(value)
    assert set(found["gnn"]) == {"glem_sage", "glem_gcn", "glem_mlp"}
    assert {min(found["dim"]), max(found["dim"])} == {8, 32} and {type(value) for value in found["dim"]} == {int}
    rates = [float(str(value)) for value in found["lr"]]
    assert 1e-3 <= min(rates) < 2e-3 and 5e-2 < max(rates) <= 1e-1
    assert 0.3 < sum(rate < 1e-2 for rate in rates) / len(rates) < 0.7  # by the logarithm
    assert all(0 <= float(str(value)) <= 0.5 and len(str(value)) <= 9 for value in found["drop"])


def test_the_shipped_space_is_one(folder: Path) -> None:
    root = Path(search.__file__).parents[1]
    words = ["--config", "glem_debian_small", "--space", str(root / "configs_gg" / "spaces" / "gnn.txt")]
    search.check_space(search.parse_args(words))


WRONG = {
    "optim.base_lr lr log_range(0, 1)": ["line 1", "log_range(0, 1)", "above 0"],
    "optim.base_lr lr range(1, 1)": ["line 1", "smaller"],
    "optim.base_lr lr range(1, inf)": ["line 1", "range(1, inf)"],
    "optim.base_lr lr range(a, b)": ["line 1", "two numbers"],
    "optim.base_lr lr range(0, 5)\ngnn.dropout drop range(0.1, 2)": ["line 2", "gnn.dropout", "2"],
    "optim.bas_lr lr range(0.1, 2)": ["line 1", "optim.bas_lr", "base_lr"],
}


@pytest.mark.parametrize("text", WRONG)
def test_a_space_is_checked_before_the_first_trial(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "space.txt").write_text(text)
    assert load_program("search").main(["--config", "base.yaml", "--space", "space.txt"]) == 1
    error = capsys.readouterr().err
    for name in (*WRONG[text], "space.txt"):
        assert name in error
    assert not (folder / "configs_gg").exists()


def test_a_grid_takes_no_range(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_program("configs_gen").main(["--config", "base.yaml", "--grid", "space.txt"]) == 1
    assert "space.txt, line 2: a range is for run/search.py" in capsys.readouterr().err


def test_a_trial_whose_stages_fall_behind_is_stopped(folder: Path) -> None:
    args = search.parse_args(["--config", "base.yaml", "--space", "space.txt"])
    study = search.open_study(args, folder)
    for number in range(6):
        trial = study.ask()
        for step, value in enumerate((0.5, 0.7 + number / 100)):
            trial.report(value, step)
        study.tell(trial, 0.7)
    queue = search.Search(args, SimpleNamespace(), study, folder / "configs_gg", folder / "results", "accuracy")

    def falls_behind(name: str, *scores: float) -> bool:
        for number, score in enumerate(scores):
            file = folder / "results" / name / "0" / "stages" / f"{number:02d}_stage" / "stage.json"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps({"scores": {"valid": {"accuracy": score}, "test": {"accuracy": 1.0}}}))
        queue.trials[name] = study.ask()
        return queue._falls_behind(name)

    assert not falls_behind("none")
    assert not falls_behind("first", 0.6)
    assert falls_behind("bad", 0.4)
    assert not falls_behind("second", 0.5, 0.8)
    assert falls_behind("behind", 0.6, 0.5)  # the best of both stages is below the others' median


def test_trials_that_a_kill_broke_off_are_run_again_even_if_they_were_the_last(folder: Path) -> None:
    args = search.parse_args(["--config", "base.yaml", "--space", "space.txt", "--trials", "2"])
    study = search.open_study(args, folder)
    study.tell(study.ask(), 0.5)
    search.draw(study.ask(), search.space.read_grid(args.space, lambda key: False, ranges=True))  # broken off
    study = search.open_study(args, folder)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "WAITING"]
    found = search.Search(args, search.make_plan(args, 2, {}), study, folder, folder / "results", "accuracy")
    assert len(list(found.jobs)) == 1


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_damaged_database_is_named(keep: float, folder: Path) -> None:
    args = search.parse_args(["--config", "base.yaml", "--space", "space.txt", "--trials", "2"])
    search.open_study(args, folder)
    whole = (folder / "search.db").read_bytes()
    (folder / "search.db").write_bytes(whole[: int(keep * len(whole))] or b"no database" * 500)
    with pytest.raises(search.JobError, match=r"search\.db cannot be read .*; restore it, or delete it"):
        search.open_study(args, folder)


@pytest.mark.slow
def test_a_search_killed_and_resumed_two_jobs_at_a_time(folder: Path) -> None:
    program = Path(search.__file__)
    words = ["--config", "base.yaml", "--space", "space.txt", "--max_jobs", "2", "--trials"]
    log = folder / "log.txt"
    with log.open("w") as out:
        running = subprocess.Popen(
            [sys.executable, program, *words, "6"], cwd=folder, stdout=out, stderr=out, start_new_session=True
        )
        deadline = time.monotonic() + 200
        while "trial" not in log.read_text() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert "[2/6]" in log.read_text()  # the second job ran beside the first
    resumed = subprocess.run(
        [sys.executable, program, *words, "6"], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/configs_gg/base_grid_space/search.db")
    counted = [trial for trial in study.trials if "killed" not in trial.user_attrs]
    assert len(counted) == 6 and len(study.trials) > 6  # those that the kill broke off were done again
    assert {trial.state for trial in counted} <= {TrialState.COMPLETE, TrialState.PRUNED}

    best = folder / "configs_gg" / "base_space_best.yaml"
    settings = yaml.safe_load(best.read_text())
    assert settings["glem"]["search_trials"] == 6 and settings["out_dir"] == "results"
    assert best.read_text().startswith("# Found by run/search.py: the best of 6 trials")
    # The trials are ordinary experiments: the best one's validation is the study's, and is the largest.
    (experiments, _) = read_experiments([folder / "results" / "base_grid_space"])
    valid = {one.name: float(one.results["valid"].iloc[0]) for one in experiments}
    assert valid[study.best_trial.user_attrs["name"]] == pytest.approx(study.best_value, abs=1e-3)
    assert study.best_value == pytest.approx(max(valid.values()), abs=1e-3)
    assert load_program("main").main(["--cfg", str(best)]) == 0
    ((found,), _) = read_experiments([folder / "results" / "base_space_best"])
    assert found.settings["glem.search_trials"] == 6

    (folder / "space.txt").write_text(SPACE + "gnn.act act ['relu']\n")
    with pytest.raises(search.JobError, match="--space differs from"):
        search.open_study(argparse.Namespace(**vars(search.parse_args([*words, "6"]))), best.parent / "base_grid_space")
