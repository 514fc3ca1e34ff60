"""The leaderboard as one self-contained HTML page: no network, light and dark, sortable, readable on a phone.

Templates, style and script lie in ``templates/``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from glem_graphgym.report.charts import Scale
from glem_graphgym.report.experiments import percent
from glem_graphgym.report.leaderboard import Board, config_texts, seeds_text
from glem_graphgym.report.panels import FOLDER, all_panels, color_of, mark_of, seconds_text, upper_first


def render_page(boards: Sequence[Board], title: str = "GLEM leaderboard") -> str:
    """The page of all boards.

    ``?theme=dark`` or ``?theme=light`` fixes the theme, and ``?sort=3`` sorts by that column (from 0), as a click does.
    """
    css, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = environment().get_template("page.html").render(boards=boards, title=title, css=css, script=script)
    return re.sub(r">\s*\n\s*<", "><", page).strip() + "\n"  # a line break between elements would show as a space


def environment() -> Environment:
    look = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    found = Environment(loader=FileSystemLoader(FOLDER), **look)  # type: ignore[arg-type]
    texts = (percent, signed, compact, seconds_text, seeds_text, config_texts, upper_first)
    found.filters |= {function.__name__: function for function in (*texts, scale, color_of, mark_of, all_panels)}
    return found


def signed(share: float) -> str:
    return f"{100 * share:+.2f}".replace("-", "−")


def compact(count: int) -> str:
    """``22.7 M``."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def scale(board: Board) -> Scale:
    """Pixels of a share on the rail that the rows of a table share."""
    spreads = [part for row in [*board.rows, *board.published] for part in (row.valid, row.test) if percent(part)]
    low, high = min(part.ends[0] for part in spreads), max(part.ends[1] for part in spreads)
    return Scale(low, max(high, low + 1e-6), 7, 113)
