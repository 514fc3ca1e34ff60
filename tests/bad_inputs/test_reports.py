"""Programs that read finished runs: folders that hold none, damaged files and wrong flags, named in one line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.bad_inputs.conftest import run_here
from tests.bad_inputs.test_run_folders import DAMAGES


@pytest.fixture
def results(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished / "results", tmp_path / "results"))


def refusal(program: str, *arguments: object, capsys: pytest.CaptureFixture[str], status: Sequence[int] = (1,)) -> str:
    """The one line with which ``run/<program>.py`` refuses its arguments."""
    found, _, err = run_here(program, arguments, capsys)
    assert found in status, f"exit status {found}, expected {status}; {err}"
    (line,) = (line for line in err.splitlines() if "error:" in line)
    assert "Traceback" not in err
    return line


FILES = ["small/0/run.json", "small/0/stages/01_gnn_gold/stage.json", "small/0/val/stats.json"]


@pytest.mark.parametrize("file", FILES)
def test_the_leaderboard_names_a_damaged_file(file: str, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (results / file).read_bytes()
    for name in ("emptied", "other bytes"):
        if file.endswith("stats.json") and name == "emptied":  # as before a run has written any
            continue
        DAMAGES[name](results / file)
        if not file.endswith("val/stats.json"):  # which the leaderboard does not read of runs of ours
            assert file in refusal("leaderboard", "--dir", results, capsys=capsys)
        (results / file).write_bytes(whole)


@pytest.mark.parametrize("file", ["small/agg/val/stats.json", "small/agg/test/best.json"])
@pytest.mark.parametrize("damage", ["emptied", "cut", "other bytes"])
def test_tables_of_a_grid_name_a_damaged_file(
    file: str, damage: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(results / "small" / "0")  # what is left of a grid whose seeds were removed
    DAMAGES[damage](results / file)
    line = refusal("agg_batch", "--dir", results, capsys=capsys)
    assert str(results) in line


SUMMARIES = ["[]", "{}", '[{"method": "GLEM"}]', "0.5"]


@pytest.mark.parametrize("program", ["leaderboard", "ensemble"])
def test_a_summary_of_something_else_is_named(program: str, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = results / "small/0/summary.json"
    texts = [re.sub(r"0\.\d+", '"high"', file.read_text()), *SUMMARIES]
    arguments = ["--out", "new"] if program == "ensemble" else []
    for text in texts:
        file.write_text(text)
        assert "small/0/summary.json" in refusal(program, "--dir", results, *arguments, capsys=capsys)


NOT_THERE = [
    ("leaderboard", ["--dir", "nothing"], "nothing"),
    ("leaderboard", ["--dir", "empty"], "empty"),
    ("leaderboard", ["--dir", "results/small/0"], "results/small/0"),
    ("agg_batch", ["--dir", "nothing"], "nothing"),
    ("agg_batch", ["--dir", "empty"], "empty"),
    ("slurm_gen", ["--dir", "nothing"], "nothing"),
    ("slurm_gen", ["--dir", "empty"], "empty"),
    ("convert", ["$NOT_SET", "--out", "new"], "$NOT_SET"),
    ("convert", ["~nobody_of_that_name", "--out", "new"], "~nobody_of_that_name"),
]
FLAGS = [
    ("leaderboard", [], "--dir"),
    ("leaderboard", ["--dir", "results", "--nonsense", "1"], "--nonsense"),
    ("agg_batch", [], "--dir"),
    ("agg_batch", ["--dir", "results", "--nonsense"], "--nonsense"),
    ("slurm_gen", ["--dir", "results", "--repeat", "many"], "--repeat"),
    ("slurm_gen", ["--dir", "results", "--repeat", "0"], "--repeat"),
    ("slurm_gen", ["--dir", "results", "--gpus", "-1"], "--gpus"),
    ("slurm_gen", ["--dir", "results", "--cpus", "0"], "--cpus"),
    ("slurm_gen", ["--dir", "results", "--repeat", "10001"], "--repeat"),
    ("search", ["--config", "x", "--space", "x", "--repeat", "10001"], "--repeat"),
    ("search", ["--config", "x", "--space", "x", "--seed", "-1"], "--seed"),
    ("science", ["--max_jobs", "0"], "--max_jobs"),
    ("benchmark", ["cost", "--memory_gb", "inf"], "--memory_gb"),
    ("benchmark", ["scale", "--nodes", "-5"], "--nodes"),
    ("rehearse", ["arxiv", "lm.lr"], "lm.lr"),
    ("rehearse", ["arxiv", "lm.epoch", "3"], "lm.epoch"),
]


@pytest.mark.parametrize(("program", "arguments", "named"), NOT_THERE)
def test_folders_without_what_is_read(
    program: str, arguments: list[str], named: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    assert named in refusal(program, *arguments, capsys=capsys, status=(1, 2))


@pytest.mark.parametrize(("program", "arguments", "named"), FLAGS)
def test_wrong_flags(
    program: str, arguments: list[str], named: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refusal(program, *arguments, capsys=capsys, status=(1, 2))
