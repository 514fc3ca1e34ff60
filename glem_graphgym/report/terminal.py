"""The leaderboard in a terminal: as much of it as the terminal is wide; the files have all."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glem_graphgym.report.leaderboard import TEXTS, Board, cells_of, columns_of, marks_of
from glem_graphgym.report.significance import Difference
from glem_graphgym.report.stats import default_console, new_table

LEAST_FIRST = ("config", "peak MB", "seconds", "seeds", "params", "to best")
NAME_WIDTH, MIN_NAME_WIDTH, REASON_WIDTH, WIDEST = 36, 18, 16, 10_000
SETTING = re.compile(r"(?<=-)(?=[^-=/]+=)")  # where a grid's names go on with "key=value"


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
    every, further = columns_of(board), list(board.headings.values())[2:]
    most = [name for name in every if name not in further]
    options = [(Style(), every), (Style(), most), (Style(stack_differences=True), most)]
    for left_out in range(len(LEAST_FIRST) + 1):
        options.append((Style(True, True), [name for name in most if name not in LEAST_FIRST[:left_out]]))
    for style, columns in options:
        table = _table(board, prefix, style, columns)
        excess = console.measure(table, options=console.options.update(width=WIDEST)).maximum - console.width
        if excess <= 0:
            break
    else:
        table = _table(board, prefix, Style(True, True, max(MIN_NAME_WIDTH, NAME_WIDTH - excess)), columns)
    console.print(table)
    notes = [f"names are without {prefix!r}, with which all experiments begin"] if prefix else []
    if left := [name for name in every if name not in columns]:
        names = ", ".join(left)
        notes.append(f"left out at a width of {console.width}: {names}; the CSV and the Markdown file have them")
    for note in [*notes, *board.notes]:
        console.print(note, highlight=False, markup=False)


def common_prefix(names: Iterable[str]) -> str:
    """The start that all names of a grid share, up to the first setting that differs: ``glem_debian-``; mostly ""."""
    found = list(names)
    if len(found) < 2:
        return ""
    prefixes = [found[0][: match.end()] for match in SETTING.finditer(found[0])]
    shared = [p for p in prefixes if all(name.startswith(p) and SETTING.match(name, len(p)) for name in found)]
    return max(shared, key=len, default="")


def _table(board: Board, prefix: str, style: Style, columns: Sequence[str]) -> Table:
    heads = [name.replace(" non", "\nnon") if style.stack_differences else name for name in columns]
    table = new_table(board.title, heads[: len(TEXTS)], heads[len(TEXTS) :])
    for index, cells in enumerate(_cells(board, prefix, style)):
        if index == len(board.rows):
            table.add_section()
        table.add_row(*(escape(cells[name]) for name in columns), style="dim" if index >= len(board.rows) else None)
    return table


def _cells(board: Board, prefix: str, style: Style) -> list[dict[str, str]]:
    table = []
    for row, texts in zip([*board.rows, *board.published], cells_of(board), strict=True):
        cells = dict(zip(columns_of(board), texts, strict=True))
        lines = [row.method + marks_of(row), *_wrapped(row.experiment.removeprefix(prefix), style.name_width)]
        if row.published:
            parts = (row.method, f"published: {row.source}")
            lines = [line for part in parts for line in textwrap.wrap(part, style.name_width)]
        elif style.stack_differences:
            cells |= {"to best": _stacked(row.to_best), "to best non-GLEM": _stacked(row.to_non_glem)}
        if style.stack_names and (row.published or row.name != row.method):
            cells["method"] = "\n".join(lines)
        elif not row.published and row.name != row.method:
            cells["method"] = f"{row.experiment.removeprefix(prefix)} {lines[0]}"
        table.append(cells)
    return table


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
    reason = textwrap.wrap(difference.reason, REASON_WIDTH)
    return "\n".join([f"{100 * difference.mean:+.2f} (n = {difference.seeds})", *reason])
