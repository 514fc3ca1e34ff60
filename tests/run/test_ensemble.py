"""run/ensemble.py: the mean of finished runs' predictions, as an experiment that the leaderboard ranks."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

import ensemble
import numpy as np
import pytest
import torch
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.graph import load_text_graph_of
from glem_graphgym.config import load_config
from glem_graphgym.files import read_json, write_json
from glem_graphgym.report.blind import blinding
from glem_graphgym.report.experiments import read_experiments
from tests.bad_inputs.conftest import load_program, logging_taken_back
from tests.report.conftest import NODES, labels_of_nodes, save_run
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


def save_on_two_splits(folder: Path) -> None:
    """Experiments a and b with seeds 0 and 1, on a table whose fixed splits these seeds choose."""
    parts = [["train", "valid", "test"][node % 3] for node in range(NODES)]
    rows = zip(labels_of_nodes().tolist(), parts, parts[1:] + parts[:1], strict=True)
    lines = [
        f"text {node},{'abcd'[label]},,{split_0},{split_1}\n" for node, (label, split_0, split_1) in enumerate(rows)
    ]
    (folder / "nodes.csv").write_text("text,label,neighbours,split_0,split_1\n" + "".join(lines))
    dataset = f"{{format: TAG, name: table, dir: {folder}/datasets, tag_source: {folder}/nodes.csv}}"
    for name, valid in (("a", 0.7), ("b", 0.6)):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(f"metric_best: accuracy\ndataset: {dataset}\n")
        load_config(cfg, folder / name / "config.yaml")
        for seed in range(2):
            save_run(folder / name, seed, [(valid, 0.5)], fingerprint=load_text_graph_of(cfg).fingerprint())


def test_each_seed_is_scored_on_its_split_of_the_graph_of_the_runs(tmp_path: Path) -> None:
    save_on_two_splits(tmp_path)
    words = ["--dir", str(tmp_path / "a"), str(tmp_path / "b"), "--out"]
    assert ensemble.main([*words, str(tmp_path / "both")]) == 0
    for seed in range(2):
        stage = tmp_path / "both" / str(seed) / "stages" / "00_ensemble"
        right = np.load(stage / "logits.npy").argmax(-1) == labels_of_nodes()
        test_nodes = np.arange(NODES) % 3 == (2 - seed)
        assert read_json(stage / "stage.json")["scores"]["test"]["accuracy"] == pytest.approx(right[test_nodes].mean())
    nodes = (tmp_path / "nodes.csv").read_text()
    (tmp_path / "nodes.csv").write_text(nodes.replace("text 7,", "text seven,"))
    with pytest.raises(ValueError, match=r"has the fingerprint .* now, but the runs were on"):
        ensemble.main([*words, str(tmp_path / "changed")])
    blinding(tmp_path / "b", True, False)
    with pytest.raises(ValueError, match=r"would show test scores that .*b hides"):
        ensemble.main([*words, str(tmp_path / "shown")])


def test_a_method_that_a_seed_lacks_is_not_taken(tmp_path: Path) -> None:
    for seed, stages in enumerate((4, 2, 4)):
        save_run(tmp_path, seed, [(0.7, 0.7), (0.74, 0.7), (0.73, 0.7), (0.78, 0.7)][:stages])
    ((experiment,), _) = read_experiments([tmp_path])
    assert [ensemble.best_method(experiment, seeds) for seeds in ([0, 2], [0, 1, 2])] == ["GLEM-GNN", "Cascade"]


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


def test_a_stage_that_was_deleted_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLEM_TRACEBACK", raising=False)
    for name in "ab":
        shutil.copytree(finished / name, tmp_path / name)
    shutil.rmtree(tmp_path / "b/1/stages")
    words = ["--dir", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "x")]
    assert ensemble.main(words) == 1
    assert f"{tmp_path / 'b/1'}: stages/ lacks the stage of " in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_folder_that_another_process_makes_meanwhile_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLEM_TRACEBACK", raising=False)
    monkeypatch.setattr("glem_graphgym.files.making", lambda folder: nullcontext())  # as if it were there now
    assert ensemble.main(["--dir", str(finished / "a"), str(finished / "b"), "--out", str(tmp_path / "x")]) == 1
    assert "x has been made by another process meanwhile" in capsys.readouterr().err
