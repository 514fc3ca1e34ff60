"""Rows in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grid import space

from glem_graphgym.config.keys import all_keys
from glem_graphgym.report.axes import WORDS, axis_sentence, value_in_words
from glem_graphgym.report.leaderboard import read_boards
from tests.report.conftest import save_run

ROOT = Path(__file__).resolve().parents[2]


def test_every_axis_in_words_is_a_key_and_has_a_sentence() -> None:
    assert set(WORDS) <= set(all_keys())
    assert all(axis_sentence(key).endswith(".") for key in WORDS)
    # Seeds of one experiment, graphs and train modes are told apart otherwise.
    grid = {axis.key for block in space.read_grid(ROOT / "configs_gg/grids/debian.txt") for axis in block}
    assert {key for key in grid if key not in ("train.mode", "glem.share_lm_gold", "gnn.fan_out")} <= set(WORDS)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("glem.em_iterations", 2, "2 iterations"),
        ("glem.em_iterations", -1, "until plateau"),
        ("glem.em_iterations", [1, 2], "1, 2 iterations"),
        ("lm.lora_rank", 16, "LoRA 16"),
        ("lm.lora_rank", 0, ""),
        ("lm.lora_targets", ["query", "value"], "adapters on query, value"),
        ("lm.model", "sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("glem.label_input", False, "no label input"),
        ("model.type", "glem_revgat", "RevGAT"),
        ("optim.base_lr", 1, "lr 1"),
        ("gnn.rev_groups", 4, "rev groups 4"),
        ("gnn.residual", True, "residual"),
        ("gnn.act", None, "act unset"),
    ],
)
def test_values_in_words(key: str, value: Any, words: str) -> None:
    assert value_in_words(key, value) == words


def test_names_say_what_differs_and_no_more(tmp_path: Path) -> None:
    def save(name: str, mode: str, stages: int, shift: float, em: int | None = None, **settings: Any) -> None:
        scores = [(0.7 + shift, 0.7), (0.74 + shift, 0.73), (0.73 + shift, 0.74), (0.78 + shift, 0.76)][:stages]
        more = {} if em is None else {"em_iterations": em}
        save_run(tmp_path / name, 0, scores, mode=mode, settings=settings, **more)

    save("a", "glem", 4, 0.0, 1, **{"model.type": "glem_sage"})
    save("b", "glem", 4, 0.1, 2, **{"model.type": "glem_sage"})
    save("c", "glem_cascade", 2, 0.0, **{"model.type": "glem_gamlp"})
    save("d", "glem_lm", 1, 0.05, **{"lm.lora_rank": 16, "lm.lr": 0.001})
    save("e", "glem_lm", 1, 0.0, **{"lm.lora_rank": 0, "lm.lr": 0.0001})
    (board,) = read_boards([tmp_path])
    names = {row.name for row in board.rows}
    assert {"GLEM (SAGE, 1 iteration) · GNN", "GLEM (SAGE, 2 iterations) · LM", "LM, LoRA 16", "LM"} <= names
    assert len(names) == len(board.rows)
    sentence = "LoRA 16: Rank of LoRA adapters; without them all weights of the LM are trained. (lm.lora_rank + lm.lr)"
    assert sentence in board.notes
    assert not any(alias in name.split() for name in names for alias in "abcdef")


def test_what_the_network_tells_is_not_told_again(tmp_path: Path) -> None:
    """As after a search for each method: settings that differ with the network, beside one that does not."""
    glem = [(0.7, 0.7), (0.74, 0.73), (0.73, 0.74), (0.78, 0.76)]
    found = {"glem_sage": {"glem.alpha": 0.65, "gnn.dropout": 0.2}, "glem_gcn": {"glem.alpha": 0.6, "gnn.dropout": 0.3}}
    for network, shift, iterations in (("glem_sage", 0.0, 1), ("glem_sage", 0.02, -1), ("glem_gcn", 0.03, 1)):
        settings = {"model.type": network, "glem.em_iterations": iterations, "lm.lr": 0.1, **found[network]}
        scores = [(valid + shift, test) for valid, test in glem]
        save_run(tmp_path / f"{network}_{iterations}", 0, scores, settings=settings)
    settings = {"model.type": "glem_sage", "gnn.dropout": 0.5, "lm.lr": 0.1}
    save_run(tmp_path / "cascade", 0, [(0.71, 0.7), (0.75, 0.7)], mode="glem_cascade", settings=settings)
    (board,) = read_boards([tmp_path])
    assert {row.name for row in board.rows if row.name.startswith(("GLEM", "Cascade"))} == {
        *("GLEM (SAGE, 1 iteration) · LM", "GLEM (SAGE, 1 iteration) · GNN"),
        *("GLEM (SAGE, until plateau) · LM", "GLEM (SAGE, until plateau) · GNN"),
        *("GLEM (GCN, 1 iteration) · LM", "GLEM (GCN, 1 iteration) · GNN"),
        *("Cascade (SAGE, dropout 0.2, 1 iteration)", "Cascade (SAGE, dropout 0.2, until plateau)"),
        *("Cascade (SAGE, dropout 0.5)", "Cascade (GCN)"),
    }
    assert {row.name for row in board.rows if row.name.startswith("LM")} == {
        *("LM, α 0.5", "LM, 1 iteration, α 0.6", "LM, 1 iteration, α 0.65", "LM, until plateau, α 0.65")
    }
