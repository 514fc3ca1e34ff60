from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from glem_graphgym.report.experiments import percent
from glem_graphgym.report.leaderboard import Board, read_boards
from glem_graphgym.report.tables import columns_of
from glem_graphgym.report.terminal import print_board
from tests.report.conftest import ARXIV, save_run


def printed(board: Board, width: int) -> str:
    output = io.StringIO()
    print_board(board, Console(file=output, width=width))
    return output.getvalue()


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Three experiments of a grid, with differences of every kind, on a graph that has published rows."""
    for place, network in enumerate(("glem_sage", "glem_gamlp", "glem_revgat")):
        for seed in range(3):
            shake = [0.004, -0.002, 0.001][seed]
            scores = [
                (0.70, 0.69),
                (0.74 + place / 100, 0.73 + shake),
                (0.73 + place / 50, 0.74),
                (0.78 - place / 50, 0.76 - shake),
            ]
            save_run(tmp_path / network, seed, scores, settings={"model.type": network}, **ARXIV)
    (board,) = read_boards([tmp_path])
    return board


@pytest.mark.parametrize("width", [80, 100, 120, 160, 200, 300])
def test_the_table_fits_the_terminal_and_breaks_no_name_or_number(board: Board, width: int) -> None:
    text = printed(board, width)
    table = text.split("ranked by")[0]
    assert all(len(line) <= width for line in table.splitlines())
    assert "…" not in table
    for row in board.rows:
        assert percent(row.valid) in table and percent(row.test) in table
    for word in ("GLEM (SAGE)", "· LM", "(RevGAT)", "Cascade", "n = 3"):
        assert word in table
    assert len(table.splitlines()) < 6 * (len(board.rows) + len(board.published))


def test_columns_that_are_left_out_are_named(board: Board) -> None:
    assert "left out" not in printed(board, 300)
    assert all(column.heading in printed(board, 300) for column in columns_of(board))
    text = printed(board, 100)
    head = text.split("┡")[0]
    assert "non-GLEM" in head and "params" not in head and "config" not in head
    (note,) = [line for line in text.splitlines() if line.startswith("left out")]
    assert note.startswith("left out at a width of 100: test macro-F1 %, test balanced accuracy %, to best, params,")


def test_one_rule_parts_our_rows_from_published_ones(board: Board) -> None:
    assert printed(board, 300).count("├") == 1
