"""Further texts of the nodes: an LM for each, whose embeddings are features of the GNN beside those of the text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.graph import load_text_graph_of
from glem_graphgym.build.prediction import predict_run
from glem_graphgym.build.run import build_run, prepare, train_run
from glem_graphgym.config import ConfigError
from glem_graphgym.data.text_graph import DataError, load_text_graph, save_text_graph
from glem_graphgym.files import read_json
from glem_graphgym.modes import run_em
from glem_graphgym.report.stats import finish_run

COUNT, WIDTH = 40, 16


@pytest.fixture
def options(tmp_path: Path) -> list[object]:
    folder = tmp_path / "papers"
    folder.mkdir()
    rows = [f"{i},paper {i},{i % 2},{'' if i == 3 else f'it is about {i % 2}'}" for i in range(COUNT)]
    (folder / "nodes.csv").write_text("\n".join(["id,text,label,text:explanation", *rows]))
    (folder / "edges.csv").write_text(
        "\n".join(["source,target", *(f"{i},{(i * 7 + 1) % COUNT}" for i in range(COUNT))])
    )
    return ["dataset.name", "table", "dataset.tag_source", folder, "glem.node_features", "text+text:explanation"]


def test_a_further_text_is_no_feature_and_part_of_the_graph(
    configure_run: Callable[..., Path], options: list[object], tmp_path: Path
) -> None:
    configure_run(*options)
    graph = load_text_graph_of(cfg)
    assert graph.features is None and graph.texts[5] == "paper 5"
    assert [*graph.views] == ["explanation"] and [*graph.views["explanation"]][2:5] == [
        "it is about 0",
        "",
        "it is about 0",
    ]
    save_text_graph(graph, tmp_path)
    again = load_text_graph(tmp_path)
    assert [*again.views["explanation"]] == [*graph.views["explanation"]]
    nodes = tmp_path / "papers" / "nodes.csv"
    nodes.write_text(nodes.read_text().replace("about 1", "of 1"))
    assert load_text_graph_of(cfg).fingerprint() != graph.fingerprint()


def test_each_view_has_an_lm_and_the_gnn_sees_all_embeddings(
    configure_run: Callable[..., Path], options: list[object]
) -> None:
    folder = configure_run(*options, "glem.em_iterations", 2, "glem.ensemble", True)
    train_run(cfg)
    stages = {path.name: read_json(path / "stage.json") for path in sorted(folder.glob("stages/*"))}
    assert [*stages][:3] == ["00_lm_gold", "01_lm_gold_explanation", "02_gnn_gold"]
    assert stages["01_lm_gold_explanation"]["model"] == "LM:explanation"
    rows = {row["method"]: row for row in finish_run(folder)}
    one = rows["LM"]["params"]
    assert rows["LM:explanation"]["params"] == 2 * one, "both have been trained by then"
    assert rows["GLEM-GNN"]["params"] > 2 * one

    _, run = prepare(cfg)
    run_em(run)  # everything is done: reads it
    last = run.journal.finished[-3]
    assert run.teacher_of(last).key.name in ("e_step_1", "e_step_2"), "views teach nobody"
    features = np.asarray(run.features_of(run.teacher_of(last)))
    view = run.view_stages()["explanation"].embeddings
    assert view is not None and features.shape[1] == 2 * view.shape[1]
    centred = np.asarray(view, np.float64) - np.asarray(view, np.float64).mean(axis=0)
    expected = centred / np.maximum(centred.std(axis=0), 1e-6)
    np.testing.assert_allclose(features[:, view.shape[1] :], expected, atol=0.05)
    val = [json.loads(line) for line in (folder / "val/stats.json").read_text().splitlines()]
    assert val[1]["lm_accuracy"] == val[0]["lm_accuracy"], "the latest LM is that of the text"

    before = {method: row["test"] for method, row in rows.items()}
    for method, scores in predict_run(cfg).items():
        assert scores["test"]["accuracy"] == pytest.approx(before[method], abs=1e-6)


def test_a_further_text_of_another_name(
    configure_run: Callable[..., Path], options: list[object], tmp_path: Path
) -> None:
    configure_run(*options)
    expected = load_text_graph_of(cfg).fingerprint()
    nodes = tmp_path / "papers" / "nodes.csv"
    nodes.write_text(nodes.read_text().replace("text:explanation", "gpt"))
    configure_run(*options, "dataset.tag_columns", "[text:explanation=gpt]")
    assert load_text_graph_of(cfg).fingerprint() == expected


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (["glem.node_features", "text+text:summary"], DataError, "'text:summary', but papers has explanation"),
        (["glem.node_features", "text+text: x"], ConfigError, "'text: x' is unknown"),
        (["train.mode", "glem_gnn"], ConfigError, "train.mode glem_gnn trains none"),
        (["train.mode", "glem_joint", "gnn.fan_out", "[2,2]"], ConfigError, "glem_joint encodes one text per node"),
    ],
)
def test_views_that_cannot_be_are_refused(
    configure_run: Callable[..., Path], options: list[object], changes: list[str], error: type[Exception], said: str
) -> None:
    def build() -> None:
        configure_run(*options, *changes)
        build_run(cfg, load_text_graph_of(cfg))

    with pytest.raises(error, match=said):
        build()
