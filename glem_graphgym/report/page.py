"""The leaderboard as one self-contained HTML page: no network, light and dark, sortable, readable on a phone.

Templates, style and script lie in ``templates/``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from glem_graphgym.report.axes import FOLDER, family_of
from glem_graphgym.report.charts import Scale, padded
from glem_graphgym.report.details import comparison_data, details_of
from glem_graphgym.report.experiments import Row, percent
from glem_graphgym.report.leaderboard import Board
from glem_graphgym.report.panels import all_panels, color_of, mark_of, seconds_text, upper_first
from glem_graphgym.report.tables import Column, columns_of, interval_text

UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def render_page(boards: Sequence[Board], title: str = "GLEM leaderboard") -> str:
    """The page of all boards.

    ``?theme=dark`` or ``?theme=light`` fixes the theme, ``?sort=3`` sorts by that column (from 0), as a click does,
    ``?open=1`` opens the first row, and ``?compare=1,2`` compares two.
    """
    css, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    context = {"title": title, "css": css, "script": script, "choices": choices_of(boards)}
    page = environment().get_template("page.html").render(boards=boards, **context)
    return re.sub(r">\s*\n\s*<", "><", page).strip() + "\n"  # a line break between elements would show as a space


def environment() -> Environment:
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    jinja = Environment(loader=FileSystemLoader(FOLDER), **options)  # type: ignore[arg-type]
    texts = (percent, signed, compact, seconds_text, upper_first, sorted_by, on_page, label_rate, interval_text)
    boards = (scale, columns_of, all_panels, comparison_data)
    jinja.filters |= {function.__name__: function for function in (*texts, *boards, color_of, mark_of, family_of)}
    jinja.filters["details_in"] = lambda row, board: details_of(board, row)
    return jinja


def choices_of(boards: Sequence[Board]) -> dict[str, list[tuple[str, str, bool]]]:
    """Filters of the page: name -> value, text and initial state of each checkbox."""
    rows = [row for board in boards for row in board.rows]
    filter_values = {
        "Dataset": [board.dataset for board in boards],
        "Label rate": [label_rate(board) for board in boards],
        "Family": [family_of(row.method) for row in rows] + ["published"] * any(board.published for board in boards),
    }
    columns = {column.key: column for board in boards for column in columns_of(board)}
    optional = [(key, column.heading, column.basic) for key, column in columns.items() if key not in ("rank", "name")]
    checkboxes = {
        name: [(value, value, True) for value in dict.fromkeys(values)] for name, values in filter_values.items()
    }
    return {**checkboxes, "Columns": optional}


def label_rate(board: Board) -> str:
    rate = board.noted.get("label_rate")
    return "not recorded" if rate is None else f"{100 * rate:.3g} %"


def sorted_by(column: Column, row: Row) -> str:
    return "" if (value := column.value(row)) is None else str(value)


def on_page(column: Column, row: Row) -> str:
    """Text of a cell, shorter than `Column.text`."""
    short: dict[str, Callable[[Any], str]] = {"runs": str, "params": compact, "seconds": seconds_text}
    value = column.value(row)
    return short[column.key](value) if column.key in short and value is not None else column.text(row)


def signed(share: float) -> str:
    return f"{100 * share:+.2f}".replace("-", "−")


def compact(count: int) -> str:
    """``22.7 M``."""
    size, unit = next(((size, unit) for size, unit in UNITS if count >= size), (1, ""))
    return f"{count / size:.1f} {unit}" if unit else str(count)


def scale(board: Board) -> Scale:
    """Scale from scores to pixels, the same for the small plots of all rows; a wide std runs out of the plot."""
    means = [spread.mean for row in board.all_rows for spread in (row.valid, row.test) if percent(spread)]
    return Scale(*padded(means, 0.1), 7, 113)
