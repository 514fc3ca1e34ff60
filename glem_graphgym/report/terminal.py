"""The leaderboard in a terminal: as many columns as fit; the CSV and the Markdown file have all."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glem_graphgym.report.experiments import Row
from glem_graphgym.report.leaderboard import Board
from glem_graphgym.report.significance import Difference
from glem_graphgym.report.stats import default_console, new_table
from glem_graphgym.report.tables import Column, columns_of, interval_text

LEAST_FIRST = ("config", "energy_j", "texts", "peak_memory_mb", "seconds", "runs", "params", "to_best")
NAME_WIDTH, MIN_NAME_WIDTH, REASON_WIDTH, WIDEST = 36, 18, 16, 10_000


def print_board(board: Board, console: Console | None = None) -> None:
    """Print the table of one board, published rows below ours, then its notes.

    In a narrow terminal, cells are wrapped, then the least important columns left out; a note names them.
    """
    console = console or default_console()
    all_columns = columns_of(board)
    main_columns = [column for column in all_columns if column.key not in list(board.headings)[2:]]
    column_subsets = [
        [column for column in main_columns if column.key not in LEAST_FIRST[:count]]
        for count in range(len(LEAST_FIRST) + 1)
    ]
    for columns, width in [(all_columns, 0), (main_columns, 0), *((columns, NAME_WIDTH) for columns in column_subsets)]:
        table = _table(board, columns, width)
        excess = console.measure(table, options=console.options.update(width=WIDEST)).maximum - console.width
        if excess <= 0:
            break
    else:
        table = _table(board, columns, max(MIN_NAME_WIDTH, NAME_WIDTH - excess))
    console.print(table)
    if left_out := [column.heading for column in all_columns if column not in columns]:
        text = f"left out at a width of {console.width}: {', '.join(left_out)}; the CSV and the Markdown file have them"
        console.print(text, highlight=False)
    for note in board.notes:
        console.print(note, highlight=False, markup=False)


def _table(board: Board, columns: Sequence[Column], width: int) -> Table:
    """The table, with names wrapped at ``width`` and differences over several lines; 0 = each row on one line."""
    heads = [column.heading.replace(" non", "\nnon") if width else column.heading for column in columns]
    table = new_table(board.title, [], [])
    for column, head in zip(columns, heads, strict=True):
        table.add_column(head, justify="right" if column.numeric else "left", overflow="fold")
    for row in board.all_rows:
        if row.published and row is board.published[0]:
            table.add_section()
        cells = (_stacked(column, row, width) if width else column.text(row) for column in columns)
        table.add_row(*map(escape, cells), style="dim" if row.published else None)
    return table


def _stacked(column: Column, row: Row, width: int) -> str:
    if column.key == "name":
        return textwrap.fill(column.text(row), width, break_on_hyphens=False)
    difference = getattr(row, column.key, None)
    if not isinstance(difference, Difference) or difference.mean is None:
        return column.text(row).replace("no common ", "no common\n")
    reason = textwrap.wrap(difference.reason, REASON_WIDTH)
    interval = [text] if (text := interval_text(difference).strip()) else []
    return "\n".join([f"{100 * difference.mean:+.2f} (n = {difference.seeds})", *interval, *reason])
