"""run/leaderboard.py as a user types it, over runs that run/main.py made. Tiny model, generated graph."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch_geometric.graphgym.config import cfg, set_cfg

from glem_graphgym.report.stats import read_stages
from tests.bad_inputs.conftest import RUN, Ended, load_program, logging_taken_back, run_here
from tests.report.conftest import save_run
from tests.small import write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Path:
    """results/grid: GLEM with two values of α, three seeds each, and the GNN alone with two."""
    folder, main = tmp_path_factory.mktemp("grid"), load_program("main")
    plan = (
        ("glem-alpha=0.2", "glem", 0.2, "text", 3),
        ("glem-alpha=0.8", "glem", 0.8, "text", 3),
        ("gnn", "glem_gnn", 0.5, "static", 2),
    )
    for name, mode, alpha, features, seeds in plan:
        changes = {"train.mode": mode, "glem.alpha": alpha, "glem.node_features": features, "optim.max_epoch": 6}
        more = {"out_dir": str(folder / "results/grid"), "print": "file", "dataset.synthetic_nodes": 120}
        file = write_config(folder / f"{name}.yaml", tiny_lm, {**changes, **more})
        set_cfg(cfg)
        with logging_taken_back():
            assert main.main(["--cfg", str(file), "--repeat", str(seeds)]) == 0
    return folder / "results" / "grid"


Start = Callable[..., Ended]


@pytest.fixture
def start(capsys: pytest.CaptureFixture[str]) -> Start:
    """The program with these arguments."""
    return lambda *arguments: run_here("leaderboard", arguments, capsys)


def test_blind_from_the_start_no_run_says_its_test_scores(
    tmp_path: Path, tiny_lm: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    for killed in (None, results / "search" / "grid" / "point", results / "point"):  # nothing is finished
        if killed:
            save_run(killed, 0, [(0.5, 0.5)], finished=False)
        blind = start("--dir", results, "--blind")
        assert blind.returncode == 0 and blind.stdout.startswith("blind since "), blind.stderr
        assert start("--dir", results).returncode == 1  # as before
    changes = {"out_dir": str(results), "train.mode": "glem_gnn", "glem.node_features": "static", "print": "both"}
    file = write_config(tmp_path / "gnn.yaml", tiny_lm, {**changes, "optim.max_epoch": 2})
    said = run_here("main", ["--cfg", file, "--repeat", "2"], capsys)
    assert said.returncode == 0 and said.stdout.count("hidden") >= 3, said.stderr  # two runs, and their mean
    logs = [log.read_text() for log in results.rglob("*.log")]
    assert len(logs) == 2 and all("% valid" in text and "% test" not in text for text in [*logs, said.stdout])
    assert "hidden" in start("--dir", results).stdout


def test_blind_graphgyms_own_training_says_none_either(
    tmp_path: Path, tiny_lm: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    assert start("--dir", results, "--blind").returncode == 0
    pytest.importorskip("tensorboardX")
    changes = {"train.mode": "standard", "glem.node_features": "static", "print": "both", "optim.max_epoch": 2}
    changes |= {"tensorboard_each_run": True, "tensorboard_agg": True}
    said = run_here("main", ["--cfg", write_config(tmp_path / "stock.yaml", tiny_lm, changes)], capsys)
    assert said.returncode == 0, said.stderr
    for text in (said.stdout, (results / "stock" / "0" / "logging.log").read_text()):
        assert "val: {" in text and "test: hidden" in text and "test: {" not in text
    splits = {events.parent.name for events in results.rglob("events.out.tfevents.*")}
    assert "val" in splits and "test" not in splits
    shown = start("--dir", results / "stock")  # the command that the run names
    assert shown.returncode == 0 and "hidden, as" in shown.stdout


def test_a_grid_becomes_a_leaderboard(grid: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(RUN / "leaderboard.py"), "--dir", str(grid), "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "paired t-test" in result.stdout
    with (tmp_path / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 and [row["rank"] for row in rows] == [str(rank) for rank in range(1, 8)]
    names = {row["name"] for row in rows}
    assert {f"GLEM (SAGE, α {alpha}) · {model}" for alpha in (0.2, 0.8) for model in ("LM", "GNN")} < names
    valid = [float(row["valid_mean"]) for row in rows]
    assert valid == sorted(valid, reverse=True)
    page = (tmp_path / "leaderboard.html").read_text()
    assert "Sensitivity to glem.alpha" in page and "Accuracy by EM iteration" in page
    assert (tmp_path / "leaderboard.md").read_text().count("\n| ") == 9
    assert {path.name for path in tmp_path.iterdir()} == {
        f"leaderboard.{suffix}" for suffix in ("csv", "md", "tex", "html")
    }


def test_numbers_are_those_of_the_runs(grid: Path, tmp_path: Path) -> None:
    assert load_program("leaderboard").main(["--dir", str(grid / "gnn"), "--out", str(tmp_path)]) == 0
    with (tmp_path / "leaderboard.csv").open() as file:
        (row,) = csv.DictReader(file)
    stages = [read_stages(grid / "gnn" / str(seed))[0] for seed in range(2)]
    assert row["name"] == "GNN (SAGE)"
    assert float(row["test_mean"]) == pytest.approx(sum(stage.scores["test"]["accuracy"] for stage in stages) / 2)
    assert float(row["seconds"]) == pytest.approx(sum(stage.seconds for stage in stages) / 2)
    about = json.loads((grid / "gnn" / "0" / "run.json").read_text())
    assert row["dataset_fingerprint"] == about["fingerprint"]


def test_several_folders_and_the_default_place(start: Start, grid: Path) -> None:
    result = start("--dir", grid / "gnn", grid / "glem-alpha=0.2")
    assert result.returncode == 0, result.stderr
    for suffix in ("csv", "md", "tex", "html"):
        (grid / "gnn" / f"leaderboard.{suffix}").unlink()


def test_an_entry_that_breaks_the_rules_is_refused_and_nothing_is_written(
    start: Start, grid: Path, tmp_path: Path
) -> None:
    result = start("--dir", grid, "--out", tmp_path, "--ogb", "--contact", "A. Author")
    assert result.returncode == 1
    for reason in ("the dataset is synthetic", "missing: [3, 4, 5, 6, 7, 8, 9]", "--code is missing", "e-mail address"):
        assert reason in result.stderr
    assert "Traceback" not in result.stderr and list(tmp_path.iterdir()) == []
    result = start("--dir", grid, "--ogb", "--row", "nothing", "--out", tmp_path)
    assert result.returncode == 1 and "expected one of:" in result.stderr
