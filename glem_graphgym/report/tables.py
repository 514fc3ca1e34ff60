"""Boards as tables: the columns of every table, and Markdown, CSV and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from glem_graphgym.report.experiments import Row, Spread, percent
from glem_graphgym.report.leaderboard import Board
from glem_graphgym.report.significance import SIGNIFICANT, Difference
from glem_graphgym.report.stats import FURTHER

COSTS = {"texts": "texts trained", "energy_j": "energy J"}


@dataclass(frozen=True)
class Column:
    """A column of a board's tables.

    Attributes:
        key: attribute of a `Row`, or one of its ``further`` scores.
        numeric: aligned to the right.
        ascending: order of the page's first sort by this column.
        basic: shown on the page by default.
        hidden: our scores are replaced by "hidden", as the board is blind.
    """

    key: str
    heading: str
    numeric: bool = True
    ascending: bool = False
    basic: bool = True
    hidden: bool = False

    def content(self, row: Row) -> Any:
        return row.further.get(self.key) if self.key in FURTHER else getattr(row, self.key)

    def value(self, row: Row) -> Any:
        """Sort key of a row's cell; None sorts last."""
        content = self.content(row)
        number = content.mean if isinstance(content, Spread | Difference) else content
        return None if number != number else number  # NaN

    def text(self, row: Row) -> str:
        """Text of a row's cell."""
        content = self.content(row)
        if self.key == "name":
            return f"{row.name} [published: {row.source}]" if row.published else row.name + marks_of(row)
        if self.key == "runs":
            return f"{row.runs} runs" if row.published else seeds_text(row.seeds)
        if self.key in ("to_best", "to_non_glem"):
            return "" if row.published else difference_text(content)
        if isinstance(content, Spread):
            return "hidden" if self.hidden and not row.published else percent(content)
        if content is None or isinstance(content, str):
            return content or ""
        return f"{content:,.0f}"


def columns_of(board: Board) -> list[Column]:
    """Columns of a board; of `COSTS` only those that a row has."""
    hidden = {"test"} if board.blind else set()
    scores = [Column(key, text, basic=key not in FURTHER, hidden=key in hidden) for key, text in board.headings.items()]
    costs = {"params": "params", "seconds": "seconds", "peak_memory_mb": "peak MB"}
    costs |= {key: text for key, text in COSTS.items() if any(getattr(row, key) is not None for row in board.rows)}
    return [
        Column("rank", "#", ascending=True),
        Column("name", "method", numeric=False, ascending=True),
        *scores,
        Column("to_best", "to best"),
        Column("to_non_glem", "to best non-GLEM"),
        *(Column(key, heading, ascending=True, basic=key not in COSTS) for key, heading in costs.items()),
        Column("runs", "seeds"),
        Column("config", "config", numeric=False, basic=False),
    ]


def difference_text(difference: Difference | None) -> str:
    """``+1.34 [+0.51, +2.17] (p = 0.012, n = 10)``: points, interval, and p-value or the reason why there is none."""
    if difference is None:
        return "–"
    if difference.mean is None:
        return "no common seed"
    return f"{100 * difference.mean:+.2f}{interval_text(difference)} ({difference.reason}, n = {difference.seeds})"


def interval_text(difference: Difference) -> str:
    """`` [+0.51, +2.17]``; empty without an interval."""
    if difference.interval is None:
        return ""
    return " [{:+.2f}, {:+.2f}]".format(*(100 * end for end in difference.interval))


def marks_of(row: Row) -> str:
    """Marks after a row's name: † for a caveat, and the number of further experiments with the same result."""
    return (" †" if row.caveat else "") + (f" (+ {len(row.same_in)} the same)" if row.same_in else "")


def seeds_text(seeds: Sequence[int]) -> str:
    """``10 (0-9)``, ``2 (3, 7)``."""
    consecutive = len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1  # they ascend
    return f"{len(seeds)} ({f'{seeds[0]}-{seeds[-1]}' if consecutive else ', '.join(map(str, seeds))})"


def to_markdown(boards: Sequence[Board]) -> str:
    lines = []
    for board in boards:
        columns = columns_of(board)
        rows = [[column.heading for column in columns], ["---:" if column.numeric else "---" for column in columns]]
        rows += [[_escaped(column.text(row)) for column in columns] for row in board.all_rows]
        lines += [f"### {_escaped(board.title)}", "", *(f"| {' | '.join(cells)} |" for cells in rows), ""]
        lines += [*(f"- {_escaped(note)}" for note in board.notes), ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return " ".join(re.sub(r"([\\|<>*_`])", r"\\\1", text).split())


# ---- LaTeX --------------------------------------------------------------------------------------------------------

IN_PAPERS = ("name", "valid", "test", *FURTHER, "params", "seconds")
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}
LATEX |= {"α": r"$\alpha$", "β": r"$\beta$", "·": r"$\cdot$", "†": r"$^\dagger$", "“": "``", "”": "''"}


def to_latex(boards: Sequence[Board]) -> str:
    """A table per board for a paper (package booktabs): among our rows the best score per column is bold, the second
    underlined; a star marks rows that differ significantly from the best row without GLEM."""
    lines = ["% \\usepackage{booktabs}"]
    for board in boards:
        columns = [column for column in columns_of(board) if column.key in IN_PAPERS]
        best_texts = {column.key: _best_two(board.rows, column) for column in columns if column.key in board.headings}
        body = []
        for row in board.all_rows:
            cells = {column.key: _marked(column.text(row), best_texts.get(column.key, []), row) for column in columns}
            cells["name"] = _latex(
                f"{row.name} ({row.source})" if row.published else row.name + " †" * bool(row.caveat)
            )
            cells["test"] += r"$^{*}$" * (row.to_non_glem is not None and row.to_non_glem.is_significant)
            body.append(" & ".join(cells.values()) + r" \\")
        if board.published:
            body.insert(len(board.rows), r"\midrule")
        heads = " & ".join(_latex(column.heading) for column in columns)
        lines += ["", r"\begin{table}", r"\centering", rf"\caption{{{_caption(board)}}}"]
        lines += [rf"\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in columns)}}}"]
        lines += [r"\toprule", rf"{heads} \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _caption(board: Board) -> str:
    seeds = sorted({row.runs for row in board.rows})
    runs = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    text = f"{board.dataset}: mean ± standard deviation over {runs} seed(s), ranked by validation. Best score bold, "
    text += f"second underlined; *: {board.split} differs from the best row without GLEM (paired t-test, Holm, "
    text += f"p < {SIGNIFICANT})."
    return _latex(text + " Below the line: published results." * bool(board.published)).replace(" < ", " $<$ ")


def _best_two(rows: Sequence[Row], column: Column) -> list[str]:
    """The two best distinct scores of a column, as displayed."""
    scores = {(value, column.text(row)) for row in rows if (value := column.value(row)) is not None}
    return list(dict.fromkeys(text for _, text in sorted(scores, reverse=True)))[:2]


def _marked(text: str, best: Sequence[str], row: Row) -> str:
    rank = best.index(text) if text in best and not row.published else None
    latex = _latex(text)
    return latex if rank is None else rf"\{('textbf', 'underline')[rank]}{{{latex}}}"


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


# ---- CSV ----------------------------------------------------------------------------------------------------------

CSV_COLUMNS = [
    *("dataset", "dataset_fingerprint", "metric", "rank", "name", "experiment", "method", "source"),
    *("valid_mean", "valid_std", "test_mean", "test_std", "runs", "seeds", "params", "seconds", "peak_memory_mb"),
    *COSTS,
    *("config", "em_iterations"),
    *(
        f"{column}{suffix}"
        for column in ("to_best", "to_non_glem")
        for suffix in ("", "_low", "_high", "_n", "_p", "_reason")
    ),
    *("caveat", "same_in"),
]


def to_csv(boards: Sequence[Board]) -> str:
    """All boards as one CSV table with full precision; ``source`` is "this run" or where a row was published.

    ``valid`` and ``test`` are scores by the board's metric; other scores and the language model are columns at the
    end, if a run has them.
    """
    table = []
    recorded = {name for board in boards for row in board.rows for name in row.further}
    further = [f"{name}_{statistic}" for name in FURTHER if name in recorded for statistic in ("mean", "std")]
    for board, row in [(each, row) for each in boards for row in each.all_rows]:
        flat: dict[str, Any] = {"dataset": board.dataset, "metric": board.metric}
        for name, value in (vars(row) | row.further).items():
            if isinstance(value, Spread | Difference):
                flat |= value.columns(name)
            else:
                flat[name] = " ".join(map(str, value)) if isinstance(value, tuple) else value
        flat["dataset_fingerprint"] = None if row.published else board.fingerprint
        flat["language_model"] = "" if row.published else board.experiments[row.experiment].language_model
        table.append(flat)
    further += ["language_model"] if any(flat["language_model"] for flat in table) else []
    return pd.DataFrame(table, columns=[*CSV_COLUMNS, *further], dtype=object).to_csv(index=False, lineterminator="\n")
