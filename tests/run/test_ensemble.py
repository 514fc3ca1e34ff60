"""run/ensemble.py: the mean of finished runs' predictions, as an experiment that the leaderboard ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import ensemble
import numpy as np
import pytest
import torch

from glem_graphgym.files import read_json, write_json
from glem_graphgym.report.experiments import read_experiments
from tests.bad_inputs.conftest import load_program, logging_taken_back
from tests.run.test_search import BASE


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experiments a and b with seeds 0 and 1, and one on another graph."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch, logging_taken_back():
        patch.chdir(folder)
        for name, options in {
            "a": [],
            "b": ["model.type", "glem_gcn"],
            "other": ["dataset.synthetic_nodes", "90"],
        }.items():
            Path(f"{name}.yaml").write_text(BASE)
            repeat = "1" if name == "other" else "2"
            assert load_program("main").main(["--cfg", f"{name}.yaml", "--repeat", repeat, *options]) == 0
    return folder / "results"


def test_runs_that_noted_less_are_averaged_too(finished: Path, tmp_path: Path) -> None:
    """As those of versions that recorded neither the graph's facts nor the texts that they trained on."""
    for name in "ab":
        shutil.copytree(finished / name, tmp_path / name)
        for file in (tmp_path / name).glob("*/run.json"):
            write_json(file, {key: value for key, value in read_json(file).items() if key not in ("facts", "versions")})
        for file in (tmp_path / name).glob("*/summary.json"):
            rows = [{key: value for key, value in row.items() if key != "texts"} for row in read_json(file)]
            write_json(file, rows)
    folders = [str(tmp_path / name) for name in "ab"]
    assert ensemble.main(["--dir", *folders, "--out", str(tmp_path / "both")]) == 0
    assert load_program("leaderboard").main(["--dir", str(tmp_path)]) == 0


def test_the_mean_of_probabilities_is_an_experiment(finished: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    assert ensemble.main(["--dir", str(finished / "a"), str(finished / "b"), "--out", str(both)]) == 0
    for seed in ("0", "1"):
        logits = [np.load(finished / name / seed / "stages" / "00_gnn_gold" / "logits.npy") for name in "ab"]
        mean = sum(torch.from_numpy(values).float().softmax(-1) for values in logits) / 2
        found = torch.from_numpy(np.load(both / seed / "stages" / "00_ensemble" / "logits.npy")).float()
        torch.testing.assert_close(found.softmax(-1), mean, rtol=0, atol=2e-3)
    members = {one.name: one for one in read_experiments([finished, both])[0]}
    rows = {name: one.results.set_index("seed") for name, one in members.items()}
    assert list(rows["both"].index) == [0, 1] and set(rows["both"]["method"]) == {"Ensemble"}
    assert rows["both"].loc[1, "params"] == rows["a"].loc[1, "params"] + rows["b"].loc[1, "params"]
    assert rows["both"].loc[1, "seconds"] >= rows["a"].loc[1, "seconds"] + rows["b"].loc[1, "seconds"]
    again = tmp_path / "again"  # an ensemble may be a member
    assert ensemble.main(["--dir", str(both), str(finished / "a"), "--out", str(again)]) == 0
    assert load_program("leaderboard").main(["--dir", str(finished / "a"), str(both), str(again)]) == 0


@pytest.mark.parametrize(
    ("names", "out", "said"),
    [
        (["a"], "x", "--dir names one experiment, a"),
        (["a", "other"], "x", "other"),
        (["a", "b"], "", "is there already"),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    names: list[str],
    out: str,
    said: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GLEM_TRACEBACK", raising=False)
    folders = [str(finished / name) for name in names]
    assert ensemble.main(["--dir", *folders, "--out", str(tmp_path / out)]) == 1
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
