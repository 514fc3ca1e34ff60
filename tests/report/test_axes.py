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
    save("f", "glem_joint", 1, 0.06, **{"model.type": "glem_sage"})
    (board,) = read_boards([tmp_path])
    names = {row.name for row in board.rows}
    assert {"GLEM (SAGE, 1 iteration) · GNN", "GLEM (SAGE, 2 iterations) · LM", "LM, LoRA 16"} <= names
    assert len(names) == len(board.rows)
    sentence = "LoRA 16: Rank of LoRA adapters; without them all weights of the LM are trained. (lm.lora_rank + lm.lr)"
    assert sentence in board.notes
    assert not any(alias in name.split() for name in names for alias in "abcdef")
