"""First predictions in a file of ranked classes, as TAPE publishes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.first_predictions import first_predictions
from glem_graphgym.build.run import train_run
from glem_graphgym.data.synthetic import make_synthetic
from glem_graphgym.data.text_graph import DataError, TextGraph
from glem_graphgym.report.stats import finish_run

COUNT = 40


@pytest.fixture(scope="module")
def small() -> TextGraph:
    graph = make_synthetic(num_nodes=COUNT, num_classes=4, avg_degree=2, words_per_text=2, shares=(0.2, 0.2, 0.2))
    return replace(graph, class_names=["cs.AI", "cs.CL", "cs.LG", "stat.ML"])


@pytest.mark.parametrize("names", [("2", "0"), ("cs.LG", "cs.AI")])
def test_ranked_classes_become_a_distribution(tmp_path: Path, small: TextGraph, names: tuple[str, str]) -> None:
    rows = [f"{names[0]},{names[1]}", f" {names[1]} ", ""] + [names[0]] * (COUNT - 3)
    (tmp_path / "gpt.csv").write_text("\n".join(rows) + "\n")
    logits = first_predictions(str(tmp_path / "gpt.csv"), small)
    assert logits is not None and logits.shape == (COUNT, 4)
    p = np.exp(logits[:3].astype(np.float64))
    expected = [[0.025 + 0.3, 0.025, 0.025 + 0.6, 0.025], [0.925, 0.025, 0.025, 0.025], [0.25] * 4]
    np.testing.assert_allclose(p, expected, atol=2e-3)


@pytest.mark.parametrize(("rows", "first"), [(["0", "1", "2,3"], [0, 1, 2]), (["1", "2", "4,3"], [0, 1, 3])])
def test_names_that_are_numbers_are_names_in_all_rows_or_in_none(
    tmp_path: Path, small: TextGraph, rows: list[str], first: list[int]
) -> None:
    graph = replace(small, class_names=["1", "2", "3", "4"])
    (tmp_path / "gpt.csv").write_text("\n".join([*rows, *["1"] * (COUNT - 3)]))
    logits = first_predictions(str(tmp_path / "gpt.csv"), graph)
    assert logits is not None and logits[:3].argmax(1).tolist() == first


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2,4", r"row 3: '4' is no class of synthetic; expected numbers from 0 to 3, or names such as 'cs.AI'"),
        ("cs.AI,2", "row 3: 'cs.AI' is no class"),
        ("2,0,2", r"row 3 ranks a class twice \(2, 0, 2\)"),
        ("2.5", "row 3: '2.5'"),
        ("0\n1", f"has {COUNT + 1} rows, expected {COUNT}"),
    ],
)
def test_rows_that_cannot_be_are_named(tmp_path: Path, small: TextGraph, row: str, said: str) -> None:
    (tmp_path / "gpt.csv").write_text("\n".join(["1", "1", row, *["1"] * (COUNT - 3)]))
    with pytest.raises(DataError, match=f"glem.first_predictions: .*gpt.csv.*{said}"):
        first_predictions(str(tmp_path / "gpt.csv"), small)


def test_they_are_a_row_of_their_own_that_costs_nothing(configure_run: Callable[..., Path], tmp_path: Path) -> None:
    configure_run()
    from glem_graphgym.build.graph import load_text_graph_of

    graph = load_text_graph_of(cfg)
    right = [str(label) if node % 4 else "" for node, label in enumerate(graph.label)]
    (tmp_path / "gpt.csv").write_text("\n".join(right) + "\n")
    folder = configure_run("glem.first_predictions", tmp_path / "gpt.csv")
    train_run(cfg)
    row = next(row for row in finish_run(folder) if row["method"] == "First predictions")
    assert row["valid"] > 0.7 and (row["params"], row["seconds"] < 1) == (0, True)
