"""A grid as a user runs it: run/run_batch.sh and run/parallel.sh on a generated graph, with one job that must fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.small import write_config

pytestmark = pytest.mark.slow

RUN = Path(__file__).resolve().parents[2] / "run"

GRID = """
# GLEM and its baseline, with two GNNs
train.mode mode ['glem_cascade','glem']
model.type gnn ['glem_sage','glem_gcn']
gnn.layers_mp layers [1,2]

# ends with an error, once it runs
train.mode mode ['glem']
glem.first_predictions first ['taken away/logits.npy']
model.type gnn ['glem_sage']
"""
BROKEN = "tiny-mode=glem-first=taken%20away%2Flogits.npy-gnn=glem_sage"


def start(script: str, *arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script as a user starts it, who wants no traceback."""
    inherited = {name: value for name, value in os.environ.items() if name != "GLEM_TRACEBACK"}
    return subprocess.run(
        ["bash", str(RUN / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**inherited, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "GPUS": "none", **environment},
        timeout=300,
        check=False,
    )


def computed(results: Path) -> dict[str, int]:
    """When each file that takes computing was written."""
    files = [file for kind in ("logits.npy", "stage.json") for file in results.rglob(kind)]
    return {str(file): file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder where a grid of 2 x 2 x 2 configurations, and one that fails, was run with two seeds; its output."""
    folder = tmp_path_factory.mktemp("grid")
    changes = {"out_dir": "results", "dataset.dir": "datasets", "dataset.synthetic_nodes": 120, "optim.max_epoch": 4}
    write_config(folder / "tiny.yaml", tiny_lm, changes)
    (folder / "modes.txt").write_text(GRID)
    names = {"CONFIG": "tiny.yaml", "GRID": "modes.txt", "OUT_DIR": "configs"}
    return folder, start("run_batch.sh", folder=folder, **names, REPEAT="2", MAX_JOBS="2", SLEEP="0")


def test_a_grid_with_a_job_that_fails(grid: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, ended = grid
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "8 of 9 jobs finished; 1 failed" in ended.stdout
    line = next(line for line in ended.stdout.splitlines() if line.startswith(BROKEN))
    assert "error: glem.first_predictions: taken away/logits.npy cannot be read" in line
    assert f"{BROKEN}: skipped, " in ended.stdout

    configs, results = folder / "configs/tiny_grid_modes", folder / "results/tiny_grid_modes"
    assert [file.stem for file in configs.glob("*.yaml")] == [BROKEN]
    names = [file.name.removesuffix(".yaml_done") for file in sorted(configs.glob("*.yaml_done"))]
    assert len(names) == 8
    for name in names:
        for seed in ("0", "1"):
            assert (results / name / seed / "summary.json").exists()
        assert f"{name}, seed 1" in (results / "logs" / f"{name}.log").read_text()
    # The LM fine-tuned on gold is one a seed, for GLEM and cascades with all GNNs.
    assert len(list((folder / "datasets" / "lm_gold").glob("[0-9a-f]*"))) == 2


def test_its_tables_have_a_row_a_configuration(grid: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    agg = grid[0] / "results/tiny_grid_modes/agg"
    for split in ("train", "val", "test"):
        for table in ("", "_best", "_bestepoch"):
            frame = pd.read_csv(agg / f"{split}{table}.csv")
            assert list(frame.columns[:4]) == ["mode", "gnn", "layers", "epoch"]
            axes = frame[["mode", "gnn", "layers"]].values.tolist()
            assert axes == [
                [mode, gnn, layers]
                for mode in ("glem", "glem_cascade")
                for gnn in ("glem_gcn", "glem_sage")
                for layers in (1, 2)
            ]
            assert frame["accuracy"].between(0, 1).all()
            assert not frame["accuracy_std"].isna().any()


def test_run_again_nothing_is_computed_again(grid: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = grid
    configs, results = folder / "configs/tiny_grid_modes", folder / "results/tiny_grid_modes"
    before = computed(results)
    assert len(before) == 2 * 2 * (4 * 2 + 4 * 4)  # files, seeds, stages of the cascades and of GLEM
    (configs / f"{BROKEN}.yaml").unlink()
    shutil.rmtree(results / BROKEN)
    # As if the queue had been killed just before these were marked: their run folders say that they are finished.
    for file in sorted(configs.glob("*layers=2.yaml_done"))[:2]:
        file.rename(file.with_suffix(".yaml"))
    ended = start("parallel.sh", configs.relative_to(folder), 2, 2, 0, folder=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "8 of 8 jobs finished, 6 of them before; 0 failed" in ended.stdout
    assert computed(results) == before
    assert not list(configs.glob("*.yaml"))
