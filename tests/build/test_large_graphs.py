"""Runs of graphs larger than memory, on a small one: hops on disk, and texts that nobody needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import train_dict

from glem_graphgym.build import graph as loader
from glem_graphgym.build.prediction import predict_run
from glem_graphgym.config import load_config
from glem_graphgym.data.text_graph import TextGraph, Texts, csr_from_edges
from glem_graphgym.em import e_step
from glem_graphgym.out_of_core.stored_operator import StoredOperator
from glem_graphgym.report.stats import finish_run

NODES, FAR = 120, 80  # nodes within reach of a split; nodes beyond, each further than the one before
BUDGET = 2e-5  # GB: several blocks of columns


def graph_with_far_nodes(cfg: Any) -> TextGraph:
    """Three classes among the first `NODES`, and a path that leads away from them."""
    rng = np.random.default_rng(0)
    label = np.full(NODES + FAR, -1)
    label[:NODES] = rng.integers(0, 3, NODES)
    pairs = rng.integers(0, NODES, (2, 900))
    pairs = pairs[:, label[pairs[0]] == label[pairs[1]]]
    path = np.arange(NODES - 1, NODES + FAR)
    source, target = np.r_[pairs[0], path[:-1]], np.r_[pairs[1], path[1:]]
    rowptr, col = csr_from_edges(source, target, NODES + FAR)
    words = np.array([["aa", "bb"], ["cc", "dd"], ["ee", "ff"], ["gg", "hh"]])
    texts = [" ".join(rng.choice(words[one], 4)) for one in label]
    order = rng.permutation(NODES)
    split = {"train": order[:40], "valid": order[40:70], "test": order[70:]}
    return TextGraph(
        name="far",
        texts=Texts.of(texts),
        rowptr=rowptr,
        col=col,
        label=label,
        split={part: np.sort(nodes) for part, nodes in split.items()},
        class_names=["a", "b", "c"],
        features=rng.normal(size=(NODES + FAR, 5)).astype(np.float32),
    )


@pytest.fixture
def configure(tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setitem(loader.GRAPHS, "synthetic", graph_with_far_nodes)
    file = tmp_path / "small.yaml"
    file.write_text(
        f"""
accelerator: cpu
num_threads: 1
dataset: {{format: TAG, name: synthetic, dir: {tmp_path}/datasets}}
lm: {{model: {tiny_lm}, max_length: 12, precision: 32, epochs: 1, batch_size: 8, lr: 4.0e-3}}
glem: {{pseudo_nodes: valid_test, label_input: True}}
model: {{type: glem_gamlp}}
gnn: {{dim_inner: 8, hops: 2, label_hops: 2, layers_mp: 2, dropout: 0.2, batch_size: 12, precision: 32,
  input_norm: none}}
optim: {{optimizer: sgd, base_lr: 0.05, scheduler: none, max_epoch: 4}}
train: {{mode: glem, eval_period: 1}}
"""
    )

    def load(run: str, *options: object) -> Path:
        load_config(cfg, file, [str(option) for option in options])
        cfg.run_dir = str(tmp_path / run)
        Path(cfg.run_dir).mkdir(exist_ok=True)
        return Path(cfg.run_dir)

    return load


def run(run_dir: Path) -> dict[str, Any]:
    """Train; stage name -> (logits, scores)."""
    train_dict[cfg.train.mode]()
    finish_run(run_dir)
    found = {}
    for stage in sorted((run_dir / "stages").glob("[0-9]*")):
        record = json.loads((stage / "stage.json").read_text())
        found[stage.name] = (np.load(stage / "logits.npy"), record["scores"])
    return found


# ---- hops on disk -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "norm", "precision"),  # every pair of values is there
    [
        *(("transductive", *pair) for pair in (("none", "32"), ("standardise", "bf16"))),
        *(("inductive", *pair) for pair in (("none", "bf16"), ("standardise", "32"))),
        *(("structure_free", *pair) for pair in (("none", "32"), ("standardise", "bf16"))),
    ],
)
def test_a_run_on_disk_is_the_run_in_memory(
    configure: Callable[..., Path], setting: str, norm: str, precision: str
) -> None:
    options = ("glem.setting", setting, "gnn.input_norm", norm, "gnn.precision", precision)
    wanted = run(configure("memory", *options))
    run_dir = configure("disk", *options, "glem.memory_budget_gb", BUDGET)
    found = run(run_dir)
    assert list(found) == ["00_lm_gold", "01_gnn_gold", "02_e_step_1", "03_m_step_1"] == list(wanted)
    for stage, (logits, scores) in wanted.items():
        # Columns are propagated in blocks, which some processors add up in another order: float16 logits may differ in
        # their last bits, after bf16 hops in a few more.
        tolerance = 2e-3 if precision == "32" else 2e-2
        np.testing.assert_allclose(found[stage][0], logits, rtol=tolerance, atol=tolerance)
        for part, values in scores.items():
            assert found[stage][1][part] == pytest.approx(values, abs=tolerance)
    assert not (run_dir / "working").exists()  # nothing is left of what steps worked on


def test_a_run_on_disk_writes_no_large_array_into_memory_and_is_predicted_from(
    configure: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = []
    multiply = StoredOperator.multiply

    def noted(self: StoredOperator, x: Any, out: Any) -> Any:
        widths.append(x.shape[1])
        return multiply(self, x, out)

    monkeypatch.setattr(StoredOperator, "multiply", noted)
    run_dir = configure("disk", "glem.memory_budget_gb", BUDGET, "glem.keep_weights", "all")
    stages = run(run_dir)
    assert widths and max(widths) * 2 * 4 * (NODES + FAR) < BUDGET * 1e9
    predict_run(cfg)
    scores = json.loads((run_dir / "predictions.json").read_text())
    assert scores["GLEM-GNN"]["test"]["accuracy"] == stages["03_m_step_1"][1]["test"]["accuracy"]
    assert not (run_dir / "working").exists()


class Killed(BaseException):
    """Ends a run as a signal would."""


@pytest.mark.slow
def test_a_run_killed_while_it_propagates_goes_on_there(
    configure: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("glem.memory_budget_gb", BUDGET)
    wanted = run(configure("whole", *options))
    multiply, left, done = StoredOperator.multiply, [0], [0]

    def dying(self: StoredOperator, x: Any, out: Any) -> Any:
        if left[0] == 0:
            raise Killed
        left[0], done[0] = left[0] - 1, done[0] + 1
        return multiply(self, x, out)

    deaths = 0
    with monkeypatch.context() as patch:
        patch.setattr(StoredOperator, "multiply", dying)
        for _ in range(100):
            left[0] = 4
            try:
                found = run(configure("killed", *options))
                break
            except Killed:
                deaths += 1
    assert deaths > 3
    for stage, (logits, scores) in wanted.items():
        np.testing.assert_array_equal(found[stage][0], logits)
        assert found[stage][1] == scores
    assert not (configure("killed") / "working").exists()


def test_hops_of_fixed_features_are_shared_between_runs(
    configure: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("train.mode", "glem_gnn", "glem.node_features", "raw", "glem.label_input", False)
    options = (*options, "glem.memory_budget_gb", BUDGET)
    first = run(configure("first", *options))
    assert len(list((tmp_path / "datasets" / "hops").glob("hops-*"))) == 1
    monkeypatch.setattr(StoredOperator, "multiply", None)
    second = run(configure("second", *options, "gnn.dropout", 0.3))
    assert list(first) == list(second) == ["00_gnn_gold"]


# ---- texts that nobody needs --------------------------------------------------------------------------------------


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nodes whose texts were read for inference."""
    seen: list[int] = []
    batches = e_step.budget_batches

    def noted(lengths: np.ndarray, nodes: np.ndarray, tokens: int) -> Any:
        seen.extend(nodes.tolist())
        return batches(lengths, nodes, tokens)

    monkeypatch.setattr(e_step, "budget_batches", noted)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options", "reach"),
    [
        ("glem_gamlp", (), 2),
        ("glem_gamlp", ("glem.memory_budget_gb", BUDGET), 2),
        ("glem_gamlp", ("glem.setting", "inductive"), 2),
        ("glem_sagn", ("glem.order", "gnn_first", "glem.ensemble", True), 2),
        ("glem_sage", ("gnn.norm", "none", "gnn.layers_mp", 2), 2),
        ("glem_gcn", ("gnn.norm", "layer", "gnn.layers_mp", 3), 3),
    ],
)
def test_scores_are_equal_when_far_nodes_are_not_encoded(
    configure: Callable[..., Path], encoded: list[int], model: str, options: tuple[object, ...], reach: int
) -> None:
    options = ("model.type", model, *options)
    wanted = run(configure("all", *options))
    assert set(encoded) == set(range(NODES + FAR))
    encoded.clear()
    found = run(configure("needed", *options, "glem.encode_nodes", "needed"))
    assert set(encoded) == set(range(NODES + reach))
    assert list(found) == list(wanted)
    for stage, (logits, scores) in wanted.items():
        assert found[stage][1] == scores, stage
        np.testing.assert_array_equal(found[stage][0][:NODES], logits[:NODES])
        if "gnn" in stage or "m_step" in stage:  # nobody needs predictions of the neighbours
            assert not found[stage][0][NODES:].any() and logits[NODES:].any()
        elif stage != "04_ensemble":
            assert not found[stage][0][NODES + reach :].any() and logits[NODES + reach :].any()


def test_embeddings_of_others_are_zeros_and_predictions_leave_them_out(configure: Callable[..., Path]) -> None:
    options = ("gnn.input_norm", "standardise", "glem.keep_weights", "all")
    run_dir = configure("run", "glem.encode_nodes", "needed", *options)
    stages = run(run_dir)
    embeddings = np.load(run_dir / "stages" / "02_e_step_1" / "embeddings.npy")
    assert embeddings[: NODES + 2].any(1).all() and not embeddings[NODES + 2 :].any()
    predict_run(cfg)
    table = pd.read_csv(run_dir / "predictions.csv.gz")
    assert table["node"].tolist() == list(range(NODES))
    scores = json.loads((run_dir / "predictions.json").read_text())
    assert scores["GLEM-GNN"]["test"]["accuracy"] == stages["03_m_step_1"][1]["test"]["accuracy"]


def test_the_lm_alone_encodes_what_is_scored(configure: Callable[..., Path], encoded: list[int]) -> None:
    run(configure("lm", "train.mode", "glem_lm", "glem.encode_nodes", "needed"))
    assert set(encoded) == set(range(NODES))
    encoded.clear()
    predict_run(cfg)
    assert set(encoded) == set(range(NODES))


def test_with_pseudo_labels_for_all_nodes_all_are_needed(configure: Callable[..., Path], encoded: list[int]) -> None:
    run(configure("all", "glem.pseudo_nodes", "all", "glem.encode_nodes", "needed"))
    assert set(encoded) == set(range(NODES + FAR))


def test_static_embeddings_of_needed_nodes(configure: Callable[..., Path], encoded: list[int], tmp_path: Path) -> None:
    options = ("train.mode", "glem_gnn", "glem.node_features", "static", "gnn.hops", 1)
    wanted = run(configure("all", *options))
    encoded.clear()
    found = run(configure("needed", *options, "glem.encode_nodes", "needed"))
    assert set(encoded) == set(range(NODES + 1))
    assert found["00_gnn_gold"][1] == wanted["00_gnn_gold"][1]
    assert len(list((tmp_path / "datasets" / "static").iterdir())) >= 2


@pytest.mark.slow
def test_an_lm_shared_between_runs_is_shared_among_those_that_encode_the_same(
    configure: Callable[..., Path], tmp_path: Path
) -> None:
    for name, options in {"a": (), "b": ("glem.encode_nodes", "needed"), "c": ("glem.encode_nodes", "needed")}.items():
        run(configure(name, "glem.share_lm_gold", True, *options))
    assert len([path for path in (tmp_path / "datasets" / "lm_gold").iterdir() if path.is_dir()]) == 2
