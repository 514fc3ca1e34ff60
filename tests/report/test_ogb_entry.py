from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from glem_graphgym.report.experiments import read_experiments
from glem_graphgym.report.leaderboard import Board, read_boards
from glem_graphgym.report.ogb_entry import OgbError, entry_markdown, external_data, method_name, ogb_entry
from tests.report.conftest import save_run, save_stock_run

ABOUT: dict[str, Any] = {
    "contact": "A. Author (author@example.org)",
    "code": "https://example.org/code",
    "paper": "https://arxiv.org/abs/2210.14709",
    "hardware": "NVIDIA H100 (80GB GPU)",
    "official": False,
    "name": "GLEM+SAGE",
    "ogb_version": "",
}
NOTHING = dict.fromkeys(ABOUT, "") | {"official": None}  # flags that are not given
VERSIONS = {"ogb": "1.3.6", "torch": "2.13.0"}


def scores(seed: int, gain: float) -> list[tuple[float, float]]:
    shake = (seed * 7 % 10) / 1000
    return [(0.70, 0.69), (0.74, 0.73), (0.73, 0.72), (0.75 + gain + shake, 0.74 + gain - shake)]


def save(folder: Path, seeds: range = range(10), dataset: str = "ogbn-arxiv", **about: Any) -> Board:
    """Three learning rates, of which validation chooses 0.01."""
    for lr, gain in ((0.1, 0.0), (0.001, 0.005), (0.01, 0.01)):
        for seed in seeds:
            known = {"versions": VERSIONS, **about}
            settings = {"optim.base_lr": lr, "lm.model": "/models/deberta-base"}
            save_run(folder / f"lr={lr}", seed, scores(seed, gain), dataset=dataset, settings=settings, **known)
    (board,) = read_boards([folder])
    return board


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return save(tmp_path)


def refusal(board: Board, **changes: Any) -> str:
    with pytest.raises(OgbError) as error:
        ogb_entry(board, ABOUT | changes)
    return str(error.value)


def test_the_entry_has_every_field_of_the_form(board: Board) -> None:
    entry = ogb_entry(board, ABOUT)
    test = torch.tensor([scores(seed, 0.01)[3][1] for seed in range(10)], dtype=torch.float64)
    valid = torch.tensor([scores(seed, 0.01)[3][0] for seed in range(10)], dtype=torch.float64)
    assert entry["test_mean"] == pytest.approx(float(test.mean()))
    assert entry["test_std"] == pytest.approx(float(test.std()))  # torch's is unbiased
    assert (entry["valid_mean"], entry["valid_std"]) == (
        pytest.approx(float(valid.mean())),
        pytest.approx(float(valid.std())),
    )
    assert entry["seeds"] == list(range(10))
    assert entry["params"] == 20300  # LM and GNN
    assert entry["method"] == "GLEM+SAGE (raw text, pretrained deberta-base)"
    assert entry["external_data"] == ["raw text", "pretrained deberta-base"]
    assert entry["tuned_hyperparameters"] == ["optim.base_lr: [0.001, 0.01*, 0.1]"]
    assert (entry["ogb_version"], entry["dataset"], entry["official"]) == ("1.3.6", "ogbn-arxiv", False)
    text = entry_markdown(entry)
    assert "| Test performance | {test_mean:.4f} ± {test_std:.4f} |".format(**entry) in text
    assert "| #Params | 20,300 |" in text and "| Official | unofficial |" in text
    assert "author@example.org" in text and "| External data | Yes: raw text, pretrained deberta-base |" in text


def test_the_entry_counts_the_asked_seeds_alone(tmp_path: Path, board: Board) -> None:
    more = save(tmp_path / "more", range(12))
    assert ogb_entry(more, ABOUT) | {"config": ""} == ogb_entry(board, ABOUT) | {"config": ""}


def test_missing_seeds_are_named(tmp_path: Path) -> None:
    message = refusal(save(tmp_path, range(1, 10)))
    assert "missing: [0]" in message and "expected 0 to 9" in message


def test_papers100m_needs_three_seeds(tmp_path: Path) -> None:
    board = save(tmp_path, range(3), dataset="ogbn-papers100M")
    assert ogb_entry(board, ABOUT)["seeds"] == [0, 1, 2]
    message = refusal(save(tmp_path / "two", range(2), dataset="ogbn-papers100M"))
    assert "missing: [2]" in message


def test_versions_must_be_known_recent_and_the_same(tmp_path: Path) -> None:
    unknown = save(tmp_path / "unknown", versions={})
    assert "did not record the version of ogb; give it with --ogb-version" in refusal(unknown)
    assert ogb_entry(unknown, ABOUT | {"ogb_version": "1.3.6"})["ogb_version"] == "1.3.6"
    old = save(tmp_path / "old", versions={"ogb": "1.2.4"})
    assert "1.2.4, expected at least 1.3.6" in refusal(old)
    assert "the runs recorded 1.2.4" in refusal(old, ogb_version="1.3.6")


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"versions": {**VERSIONS, "ogb": "1.3.7"}}, "different versions of ogb: 1.3.6, 1.3.7; run them anew"),
        ({"versions": {**VERSIONS, "ogb": "1.3.6, 1.3.7"}}, "different versions of ogb: 1.3.6, 1.3.7; run them anew"),
        ({"versions": {**VERSIONS, "torch": "2.14.0"}}, None),  # no rule of OGB's; the leaderboard has a note
        ({"versions": VERSIONS, "em_iterations": 2}, "different glem.em_iterations: 1, 2; run all of them again"),
    ],
)
def test_seeds_are_of_one_version_of_ogb_and_of_equal_length(
    tmp_path: Path, about: dict[str, Any], expected: str | None
) -> None:
    save(tmp_path, range(1, 10), em_iterations=1)
    for lr in (0.1, 0.001, 0.01):
        settings = {"optim.base_lr": lr, "lm.model": "/models/deberta-base"}
        known = {"dataset": "ogbn-arxiv", "settings": settings, "em_iterations": 1, **about}
        save_run(tmp_path / f"lr={lr}", 0, scores(0, lr), **known)
    (board,) = read_boards([tmp_path])
    if expected:
        assert expected in refusal(board)
    else:
        assert ogb_entry(board, ABOUT)["ogb_version"] == "1.3.6"
        assert any("several versions of torch: 2.13.0, 2.14.0" in note for note in board.notes)


def test_other_graphs_and_stock_training_are_refused(tmp_path: Path) -> None:
    assert "the dataset is debian" in refusal(save(tmp_path / "debian", dataset="debian"))
    by_macro_f1 = save(tmp_path / "macro", range(1), metric="macro_f1")
    assert "macro_f1 selected the weights (metric_best), expected accuracy" in refusal(by_macro_f1)
    for seed in range(10):
        save_stock_run(tmp_path / "stock" / "gcn", seed, [0.5], 0.5, dataset="ogbn-arxiv", versions=VERSIONS)
    (board,) = read_boards([tmp_path / "stock"])
    message = refusal(board)
    assert "did not record the graph's fingerprint" in message and "tests the last weights" in message


def test_missing_fields_are_named(board: Board) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"contact": ""}, "--contact is missing"),
        ({"contact": "A. Author"}, "expected a name and an e-mail address"),
        ({"code": " "}, "--code is missing"),
        ({"paper": "arXiv 2210.14709"}, "--paper is 'arXiv 2210.14709', expected a URL"),
        ({"hardware": ""}, "--hardware is missing"),
        ({"official": None}, "--official or --unofficial is missing"),
    ]
    for changes, expected in cases:
        assert expected in refusal(board, **changes)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    message = refusal(save(tmp_path, range(2), dataset="debian", versions={}), **NOTHING)
    assert message.count("\n- ") == 8


def test_a_row_that_validation_did_not_choose_is_refused(board: Board) -> None:
    second = next(row for row in board.rows if row.experiment == "lr=0.001" and row.method == "GLEM-GNN")
    with pytest.raises(OgbError, match=r"chosen by validation, by which GLEM \(SAGE, lr 0\.01\) · GNN"):
        ogb_entry(board, ABOUT, second)
    cascade = next(row for row in board.rows if row.method == "Cascade")
    assert ogb_entry(board, ABOUT | {"name": ""}, cascade)["method"].startswith("Cascade (SAGE)")


def test_external_data_is_what_the_run_read(tmp_path: Path) -> None:
    text = ["raw text", "pretrained deberta-base"]
    cases = [("glem", "text", True, text), ("glem", "text", False, text[:1]), ("glem_joint", "text", True, text)]
    cases += [("glem_gnn", "raw", True, []), ("glem_gnn", "static", True, text)]
    for place, (mode, features, pretrained, expected) in enumerate(
        [*cases, ("glem_gnn", "file", True, ["features data/giant.npy"])]
    ):
        settings = {"glem.node_features": features, "lm.model": "/models/deberta-base", "lm.pretrained": pretrained}
        save_run(tmp_path / str(place), 0, settings={**settings, "glem.feature_file": "/data/giant.npy"}, mode=mode)
        (experiment,), _ = read_experiments([tmp_path / str(place)])
        assert external_data(experiment) == expected


def taught(folder: Path, first_predictions: Path) -> Board:
    settings = {"glem.first_predictions": str(first_predictions), "lm.model": "/models/deberta-base"}
    for seed in range(10):
        save_run(folder, seed, dataset="ogbn-arxiv", settings=settings, versions=VERSIONS)
    (board,) = read_boards([folder])
    return board


def test_external_data_of_the_first_teacher_is_followed_to_its_run(tmp_path: Path) -> None:
    settings = {"glem.node_features": "file", "glem.feature_file": "/data/giant/X.all.xrt-emb.npy"}
    teacher = save_run(tmp_path / "giant_sagn", 0, mode="glem_gnn", dataset="ogbn-arxiv", settings=settings)
    board = taught(tmp_path / "glem_giant", teacher / "stages" / "00_gnn_gold" / "logits.npy")
    entry = ogb_entry(board, ABOUT | {"name": ""})
    expected = ["raw text", "pretrained deberta-base", "predictions of giant_sagn",
                "features data/giant/X.all.xrt-emb.npy"]  # fmt: skip
    assert entry["external_data"] == expected
    assert entry["method"] == f"GLEM-GNN (SAGE) ({', '.join(expected)})"


def test_a_first_teacher_of_which_nothing_is_known_is_refused_until_the_name_says_it(tmp_path: Path) -> None:
    board = taught(tmp_path / "glem_giant", tmp_path / "elsewhere" / "logits.npy")
    message = refusal(board, name="")
    assert "the run.json of the run that made it is not found" in message and "mention them in --name" in message
    named = ogb_entry(board, ABOUT | {"name": "GLEM+GIANT+SAGE"})
    assert named["method"] == "GLEM+GIANT+SAGE (raw text, pretrained deberta-base, predictions logits.npy)"


def test_what_an_ensemble_read_is_what_it_recorded_of_its_members(tmp_path: Path) -> None:
    for name, recorded in (("older", {}), ("newer", {"external_data": ["raw text"]})):
        for seed in range(10):
            about = {"dataset": "ogbn-arxiv", "versions": VERSIONS, **recorded}
            save_run(tmp_path / name, seed, mode="ensemble", settings={"model.type": ""}, **about)
    (older,), (newer,) = read_boards([tmp_path / "older"]), read_boards([tmp_path / "newer"])
    assert "what runs of mode ensemble read beside the dataset is not recorded" in refusal(older)
    entry = ogb_entry(newer, ABOUT | {"name": ""})
    assert (entry["method"], entry["external_data"]) == ("GLEM-GNN (raw text)", ["raw text"])


def test_external_data_that_the_name_tells_is_not_repeated() -> None:
    assert method_name("GLEM+GCN", []) == "GLEM+GCN"
    said = "GLEM+GCN (Raw Text, DeBERTa-base)"
    assert method_name(said, ["raw text", "pretrained deberta-base"]) == said
    assert method_name("DeBERTa-base+GCN", ["raw text", "pretrained deberta-base"]) == "DeBERTa-base+GCN (raw text)"
