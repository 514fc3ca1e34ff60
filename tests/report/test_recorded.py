"""A grid that run/main.py made (tiny language model, generated graph), and the tables that were recorded of it."""

from __future__ import annotations

import lzma
import re
import tarfile
from pathlib import Path

import pytest
from grid.tables import aggregate_grid

from glem_graphgym.report.leaderboard import read_boards
from glem_graphgym.report.page import render_page
from glem_graphgym.report.stats import finish_run
from glem_graphgym.report.tables import to_csv, to_latex, to_markdown
from tests.report.conftest import Elements

RECORDED = Path(__file__).with_name("recorded")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid's ``run.json``, stages and descriptions of predictions; stats and summaries are made anew."""
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(RECORDED / "grid.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    for run in folder.glob("grid/*/*/run.json"):
        finish_run(run.parent)
    return folder / "grid"


def rounded(text: str) -> str:
    """Text with its long fractions cut to twelve digits: Python 3.10 rounds a standard deviation otherwise."""
    return re.sub(r"(\.\d{12})\d+", r"\1", text)


def test_the_leaderboard_of_a_recorded_grid_is_as_it_was(recorded: Path) -> None:
    boards = read_boards([recorded])
    assert rounded(to_csv(boards)) == rounded((RECORDED / "leaderboard.csv").read_text(encoding="utf-8"))
    assert to_markdown(boards) == (RECORDED / "leaderboard.md").read_text(encoding="utf-8")
    assert to_latex(boards) == (RECORDED / "leaderboard.tex").read_text(encoding="utf-8")


def test_the_page_of_a_recorded_grid_is_as_it_was(recorded: Path) -> None:
    """Element by element, charts, style and script too."""
    expected = Elements(lzma.decompress((RECORDED / "page.html.xz").read_bytes()).decode()).found
    assert len(expected) > 2000
    assert Elements(render_page(read_boards([recorded]), 'T & "x"')).found == expected


def test_the_tables_of_a_recorded_grid_are_as_they_were(recorded: Path) -> None:
    notes = aggregate_grid(recorded)
    assert [note.partition(":")[0] for note in notes] == ["tiny-mode=glem_gnn", "tiny-mode=glem_lm"]  # of fewer seeds
    files = sorted((recorded / "agg").iterdir())
    assert len(files) == 9
    for file in files:
        assert file.read_bytes() == (RECORDED / file.name).read_bytes(), file.name
