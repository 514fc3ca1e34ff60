"""The leaderboard in a terminal: as much of it as the terminal is wide; the files have all."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console

from glem_graphgym.report.leaderboard import (
    NUMBERS,
    TEXTS,
    Board,
    Row,
    all_notes,
    cells_of,
    difference_reason,
    marks_of,
    published_cells,
)
from glem_graphgym.report.published import Published
from glem_graphgym.report.significance import Difference
from glem_graphgym.report.stats import default_console, new_table

COLUMNS = TEXTS + NUMBERS
LEAST_FIRST = ("config", "peak MB", "seconds", "seeds", "params", "to best")
EDGE = 3  # a column's padding and rule
NAME_WIDTH, MIN_NAME_WIDTH, REASON_WIDTH = 36, 18, 16
SETTING = re.compile(r"(?<=-)(?=[^-=/]+=)")  # where a grid's names go on with "key=value"

Cells = dict[str, str]


@dataclass(frozen=True)
class Style:
    """How rows are written: differences, and names, on several lines or on one."""

    stack_differences: bool = False
    stack_names: bool = False
    name_width: int = NAME_WIDTH


def print_board(board: Board, console: Console | None = None) -> None:
    """Print the table of one graph, published rows below ours, then what must be known to read it.

    In a narrow terminal cells have several lines, and columns are left out from the least important; a note says which.
    """
    console = console or default_console()
    prefix = common_prefix(board.experiments)
    style, columns = _fitting(board, prefix, console.width)
    heads = [name.replace(" non", "\nnon") if style.stack_differences else name for name in columns]
    table = new_table(board.title, heads[: len(TEXTS)], heads[len(TEXTS) :])
    for row in board.rows:
        cells = _row(row, prefix, style)
        table.add_row(*(_plain(cells[name]) for name in columns))
    if board.published:
        table.add_section()
        for published in board.published:
            cells = _published(published, style)
            table.add_row(*(_plain(cells[name]) for name in columns), style="dim")
    console.print(table)
    for note in [*_own_notes(prefix, columns, console.width), *all_notes(board)]:
        console.print(_plain(note), highlight=False)


def _plain(text: str) -> str:
    """Text whose brackets are not taken for rich's markup."""
    return text.replace("[", r"\[")


def _own_notes(prefix: str, columns: Sequence[str], width: int) -> list[str]:
    notes = [f"names are without {prefix!r}, with which all experiments begin"] if prefix else []
    left_out = [name for name in COLUMNS if name not in columns]
    if left_out:
        notes.append(f"left out at a width of {width}: {', '.join(left_out)}; the CSV and the Markdown file have them")
    return notes


def common_prefix(names: Iterable[str]) -> str:
    """What all names of a grid begin with, up to their first setting that differs: ``glem_debian-``; mostly ""."""
    found = list(names)
    if len(found) < 2:
        return ""
    prefixes = [found[0][: match.end()] for match in SETTING.finditer(found[0])]
    shared = [p for p in prefixes if all(name.startswith(p) and SETTING.match(name, len(p)) for name in found)]
    return max(shared, key=len, default="")


def _fitting(board: Board, prefix: str, width: int) -> tuple[Style, list[str]]:
    """The style that needs the fewest lines, with all columns; where none fits, the narrowest with as many as fit."""
    styles = [Style(), Style(stack_differences=True), Style(stack_differences=True, stack_names=True)]
    columns = list(COLUMNS)
    for style in styles:
        if _width(board, prefix, style, columns) <= width:
            return style, columns
    for name in LEAST_FIRST:
        columns.remove(name)
        if _width(board, prefix, style, columns) <= width:
            return style, columns
    excess = _width(board, prefix, style, columns) - width
    return Style(True, True, max(MIN_NAME_WIDTH, NAME_WIDTH - excess)), columns


def _width(board: Board, prefix: str, style: Style, columns: Sequence[str]) -> int:
    rows = [_row(row, prefix, style) for row in board.rows] + [_published(row, style) for row in board.published]
    heads = {name: name.split(" non") if style.stack_differences else [name] for name in columns}
    widest = [max(cell_len(line) for line in [*heads[name], *(x for row in rows for x in row[name].split("\n"))])
              for name in columns]  # fmt: skip
    return sum(widest) + EDGE * len(columns) + 1


def _row(row: Row, prefix: str, style: Style) -> Cells:
    cells = dict(zip(COLUMNS, cells_of(row), strict=True))
    if row.name != row.method:
        experiment, method = row.experiment.removeprefix(prefix), row.method + marks_of(row)
        lines = [method, *_wrapped(experiment, style.name_width)]
        cells["method"] = "\n".join(lines) if style.stack_names else f"{experiment} {method}"
    if style.stack_differences:
        cells |= {"to best": _stacked(row.to_best), "to best non-GLEM": _stacked(row.to_baseline)}
    return cells


def _published(row: Published, style: Style) -> Cells:
    cells = dict(zip(COLUMNS, published_cells(row), strict=True))
    if style.stack_names:
        source = textwrap.wrap(f"published: {row.source}", style.name_width)
        cells["method"] = "\n".join([*textwrap.wrap(row.method, style.name_width), *source])
    return cells


def _wrapped(name: str, width: int) -> list[str]:
    """Lines of a name, broken between settings where that is possible."""
    lines = [""]
    for part in SETTING.split(name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return [line[at : at + width] for line in lines for at in range(0, max(len(line), 1), width)]


def _stacked(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    if difference.mean is None:
        return "no common\nseed"
    reason = textwrap.wrap(difference_reason(difference), REASON_WIDTH)
    return "\n".join([f"{100 * difference.mean:+.2f} (n = {difference.seeds})", *reason])
