"""The leaderboard: one row per method, ranked by validation; one table per graph; as CSV and Markdown."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from glem_graphgym.modes import MODES
from glem_graphgym.report.experiments import (
    STOCK,
    STOCK_CAVEAT,
    STOCK_METHOD,
    Experiment,
    Row,
    Spread,
    over_seeds,
    percent,
    read_experiments,
)
from glem_graphgym.report.significance import Difference, holm, paired_difference
from glem_graphgym.report.stats import FURTHER, further_headings, heading
from glem_graphgym.scores import METRIC, METRICS

SIMPLEST_FIRST = list(MODES)  # the earlier ones are parts of the later ones
FINAL_METHOD = {name: mode.methods[-1] for name, mode in MODES.items()} | {STOCK: STOCK_METHOD}
Axes = dict[str, dict[str, list[str]]]
PUBLISHED = Path(__file__).with_name("published.csv")


@dataclass(frozen=True)
class Board:
    """Results on one graph, which can be ranked against each other."""

    dataset: str
    fingerprint: str | None
    metric: str
    rows: list[Row]  # by rank
    published: list[Row]  # from elsewhere, for the same dataset
    experiments: dict[str, Experiment]
    # Settings in which experiments of one train mode differ, and differ in step: "group.key" (mostly one, else joined
    # by "+") -> value -> names of the experiments, in order of the values.
    axes: Axes
    notes: list[str]  # what was left out, and what must be known to read the table

    @property
    def title(self) -> str:
        return f"{self.dataset} ({self.fingerprint or 'fingerprint not recorded'})"

    @property
    def facts(self) -> list[str]:
        """What the first run that noted them says of the graph, in words; none of older runs."""
        runs = [run for one in self.experiments.values() for run in one.runs.values()]
        facts = next((run.about["facts"] for run in runs if "facts" in run.about), None)
        if facts is None:
            return []
        homophily = facts["edge_homophily"]
        shares = {"label rate": facts["label_rate"], "empty texts": facts["empty_texts"]}
        return [
            *(f"{facts[name]:,} {name}" for name in ("nodes", "edges", "classes")),
            *([] if homophily is None else [f"edge homophily {homophily:.2f}"]),
            *(f"{name} {100 * share:.3g} %" for name, share in shares.items()),
        ]

    @property
    def score(self) -> str:
        """The metric in words."""
        return METRICS.get(self.metric, self.metric)

    @property
    def headings(self) -> dict[str, str]:
        """``valid``, ``test`` and columns of further test scores -> their headings."""
        further = further_headings(name for row in self.rows for name in row.further)
        return {split: heading(split, self.metric) for split in ("valid", "test")} | further

    @property
    def final_rows(self) -> dict[str, Row]:
        """The row of each experiment's final method, which its train mode ends with; none where it was not reached."""
        final = {name: FINAL_METHOD.get(one.mode) for name, one in self.experiments.items()}
        names = [(name, row) for row in self.rows for name in (row.experiment, *row.same_in)]
        return {name: row for name, row in names if row.method == final[name]}


def published_for(dataset: str) -> list[Row]:
    """The published rows of a dataset, in the order of ``published.csv``; none for one that nobody published on."""
    with PUBLISHED.open(encoding="utf-8") as file:
        table = [row for row in csv.DictReader(line for line in file if line[0] != "#") if row["dataset"] == dataset]

    def spread(row: Mapping[str, str], part: str) -> Spread:
        return Spread(float(row[part] or "nan"), float(std) if (std := row[f"{part}_std"]) else None)

    return [
        Row(row["method"], int(row["runs"]), spread(row, "valid"), spread(row, "test"), name=row["method"],
            source=row["source"])
        for row in table
    ]  # fmt: skip


def read_boards(dirs: Sequence[Path]) -> list[Board]:
    """One board for each graph that runs in ``dirs`` (see `read_experiments`) were made on, the largest first."""
    experiments, left_out = read_experiments(dirs)
    groups: dict[tuple[str, str | None, str], list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault((experiment.dataset, experiment.fingerprint, experiment.metric), []).append(experiment)
    boards = sorted((_board(*graph, group) for graph, group in groups.items()), key=lambda board: -len(board.rows))
    apart = []
    if len(boards) > 1:
        shown = "; ".join(f"{dataset}, fingerprint {print_ or 'not recorded'}" for dataset, print_, _ in groups)
        apart.append(f"results on {len(groups)} graphs ({shown}) are not comparable: each has a table of its own")
        if any(print_ is None for _, print_, _ in groups):
            apart.append("a run that did not record its graph's fingerprint can not be shown to be on the same graph")
    return [replace(board, notes=[*apart, *board.notes, *left_out]) for board in boards]


def _board(dataset: str, fingerprint: str | None, metric: str, experiments: Sequence[Experiment]) -> Board:
    by_name = {one.name: one for one in experiments}
    rows = _compared(_distinct_rows(experiments), by_name)
    published = published_for(dataset) if metric == METRIC else []
    notes = [*_notes(rows, METRICS.get(metric, metric)), *_mixed(experiments)]
    return Board(dataset, fingerprint, metric, rows, published, by_name, axes_within_modes(experiments), notes)


def _distinct_rows(experiments: Sequence[Experiment]) -> list[Row]:
    """The rows by rank; results that are the same in several experiments are one row."""
    rows: dict[Any, Row] = {}
    for one in sorted(experiments, key=lambda one: _complexity(one.mode)):
        about: dict[str, Any] = {
            "experiment": one.name,
            "config": one.config,
            "em_iterations": tuple(one.em_iterations),
        }
        about |= {"caveat": STOCK_CAVEAT if one.mode == STOCK else ""}
        for row in over_seeds(one.results):
            scores = one.of(row.method)[["valid", "test", "params"]].itertuples(name=None)
            key = (one.mode == STOCK, row.method, *scores)
            if key in rows:
                rows[key] = replace(rows[key], same_in=(*rows[key].same_in, one.name))
            else:
                name = row.method if len(experiments) == 1 else f"{one.name} {row.method}"
                rows[key] = replace(row, name=name, **about)
    ordered = sorted(rows.values(), key=lambda row: (-row.valid.mean, row.params, row.name))
    return [replace(row, rank=rank) for rank, row in enumerate(ordered, start=1)]


def _complexity(mode: str) -> int:
    return [*SIMPLEST_FIRST, mode].index(mode)


def _compared(rows: Sequence[Row], experiments: Mapping[str, Experiment]) -> list[Row]:
    scores: list[Any] = [experiments[row.experiment].of(row.method)["test"].to_dict() for row in rows]

    def to(reference: Row | None) -> list[Difference | None]:
        if reference is None:
            return [None] * len(rows)
        theirs, pairs = scores[rows.index(reference)], zip(rows, scores, strict=True)
        return holm([None if row is reference else paired_difference(s, theirs, reference.name) for row, s in pairs])

    baseline = next((row for row in rows if not row.method.startswith("GLEM")), None)
    pairs = zip(rows, to(rows[0]), to(baseline), strict=True)
    return [replace(row, to_best=best, to_non_glem=base) for row, best, base in pairs]


def _notes(rows: Sequence[Row], score: str) -> list[str]:
    notes = [
        f"ranked by mean validation {score}; test {score} plays no part in any choice",
        f"significance: two-sided paired t-test on test {score} over the seeds that both rows have, p-values "
        "Holm-corrected over the rows of the table; fewer than 3 common seeds are not tested",
    ]
    if len({row.seeds for row in rows}) > 1:
        notes.append("rows rest on different seeds; differences are taken over the seeds that both rows have")
    if all(row.runs == 1 for row in rows):
        notes.append("one seed: there is no spread, and small differences mean nothing")
    if any(row.same_in for row in rows):
        notes.append(
            "experiments with the very same scores on every seed share a row, named after the simplest train mode; "
            "the CSV names them all (same_in)"
        )
    return notes + sorted({f"† {row.name}: {row.caveat}" for row in rows if row.caveat})


def _mixed(experiments: Sequence[Experiment]) -> list[str]:
    notes = []
    for one in experiments:
        kinds = {f"versions of {name}": versions for name, versions in one.versions.items()}
        kinds["numbers of EM iterations"] = list(map(str, one.em_iterations))
        notes += [f"{one.name} was run with several {kind}: {', '.join(f)}" for kind, f in kinds.items() if len(f) > 1]
    return notes


def varied_settings(experiments: Sequence[Experiment]) -> list[tuple[str, ...]]:
    """Keys of the settings in which experiments differ; those that change in step are together."""
    partitions: dict[tuple[int, ...], list[str]] = {}
    for key in sorted({key for one in experiments for key in one.settings}):
        values = [json.dumps(one.settings.get(key), sort_keys=True, default=str) for one in experiments]
        places = tuple(map(values.index, values))
        if any(places):
            partitions.setdefault(places, []).append(key)
    return list(map(tuple, partitions.values()))


def axes_within_modes(experiments: Sequence[Experiment]) -> Axes:
    """The axes of each train mode's experiments, GLEM's first; what several modes vary is one axis over all of them.

    Settings in which only whole modes differ are no axis: nothing would tell their effect from the mode's.
    """
    varied: dict[tuple[str, ...], list[Experiment]] = {}
    for mode in sorted({one.mode for one in experiments}, key=_complexity, reverse=True):
        members = [one for one in experiments if one.mode == mode]
        for keys in varied_settings(members):
            varied.setdefault(keys, []).extend(members)
    axes: Axes = {}
    for keys, members in varied.items():
        named: dict[str, list[str]] = {}
        order: dict[str, Any] = {}
        for one in members:
            values = [one.settings.get(key) for key in keys]
            shown = ", ".join(map(show_value, values))
            named.setdefault(shown, []).append(one.name)
            order[shown] = tuple(map(sort_key, values))
        axes[" + ".join(keys)] = {shown: named[shown] for shown in sorted(named, key=order.__getitem__)}
    return axes


def sort_key(value: Any, text: Callable[[Any], str] = str) -> tuple[int, float, str]:
    return (0, value, "") if isinstance(value, int | float) else (1, 0, text(value))


def show_value(value: Any) -> str:
    """A setting as it is typed: ``0.001``, ``true``, ``[5, 10]``; ``unset`` for none."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) and value else json.dumps(value)


def difference_text(difference: Difference | None) -> str:
    """``+1.34 (p = 0.012, n = 10)``: percentage points; the reason in place of a p-value that there is none of."""
    if difference is None:
        return "–"
    if difference.mean is None:
        return "no common seed"
    return f"{100 * difference.mean:+.2f} ({difference.reason}, n = {difference.seeds})"


def config_texts(rows: Sequence[Row]) -> list[str]:
    """Each row's configuration, with its number of EM iterations where rows, or seeds of one, differ in it."""
    asked = {row.em_iterations for row in rows if row.em_iterations}
    differ = len(asked) > 1 or any(len(iterations) > 1 for iterations in asked)
    texts = [", ".join(map(str, row.em_iterations)) if differ else "" for row in rows]
    return [row.config + (f", EM {text}" if text else "") for row, text in zip(rows, texts, strict=True)]


def marks_of(row: Row) -> str:
    """Marks after a row's name: whether it has a caveat, and how many experiments share it."""
    return (" †" if row.caveat else "") + (f" (+ {len(row.same_in)} the same)" if row.same_in else "")


def seeds_text(seeds: Sequence[int]) -> str:
    """``10 (0-9)``, ``2 (3, 7)``."""
    run = len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1  # they ascend
    return f"{len(seeds)} ({f'{seeds[0]}-{seeds[-1]}' if run else ', '.join(map(str, seeds))})"


# --- tables ------------------------------------------------------------------------------------------------

TEXTS = ["#", "method"]
NUMBERS = ["to best", "to best non-GLEM", "params", "seconds", "peak MB", "seeds", "config"]


def columns_of(board: Board) -> list[str]:
    return [*TEXTS, *board.headings.values(), *NUMBERS]


def cells_of(board: Board) -> list[list[str]]:
    """The texts of each row, ours and then published ones, one per column of `columns_of`."""
    cells, further = [], list(board.headings)[2:]
    for row, config in zip(board.rows, config_texts(board.rows), strict=True):
        differences = (difference_text(row.to_best), difference_text(row.to_non_glem))
        costs = ("" if cost is None else f"{cost:,.0f}" for cost in (row.params, row.seconds, row.peak_memory_mb))
        scores = [percent(score) for score in (row.valid, row.test, *map(row.further.get, further))]
        scores += differences
        cells.append([str(row.rank), row.name + marks_of(row), *scores, *costs, seeds_text(row.seeds), config])
    for row in board.published:
        scores = [percent(row.valid), percent(row.test), *[""] * len(further)]
        cells.append(["", f"{row.name} [published: {row.source}]", *scores, *5 * [""], f"{row.runs} runs", ""])
    return cells


def to_markdown(boards: Sequence[Board]) -> str:
    lines = []
    for board in boards:
        columns = columns_of(board)
        rows = [columns, ["---"] * len(TEXTS) + ["---:"] * (len(columns) - len(TEXTS))]
        rows += [list(map(_escaped, cells)) for cells in cells_of(board)]
        lines += [f"### {_escaped(board.title)}", "", *(f"| {' | '.join(cells)} |" for cells in rows), ""]
        lines += [*(f"- {_escaped(note)}" for note in board.notes), ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return " ".join(re.sub(r"([\\|<>*_`])", r"\\\1", text).split())


CSV_COLUMNS = [
    *("dataset", "dataset_fingerprint", "metric", "rank", "name", "experiment", "method", "source"),
    *("valid_mean", "valid_std", "test_mean", "test_std", "runs", "seeds", "params", "seconds", "peak_memory_mb"),
    *("config", "em_iterations", "to_best", "to_best_n", "to_best_p", "to_best_reason"),
    *("to_non_glem", "to_non_glem_n", "to_non_glem_p", "to_non_glem_reason", "caveat", "same_in"),
]


def to_csv(boards: Sequence[Board]) -> str:
    """All boards as one CSV table with full precision; ``source`` is "this run" or where a row was published.

    ``valid`` and ``test`` are of the metric; columns of the other scores stand at the end, where a run has them.
    """
    table = []
    there = {name for board in boards for row in board.rows for name in row.further}
    further = [f"{name}_{part}" for name in FURTHER if name in there for part in ("mean", "std")]
    for board, row in [(one, row) for one in boards for row in [*one.rows, *one.published]]:
        flat: dict[str, Any] = {"dataset": board.dataset, "metric": board.metric}
        for name, value in (vars(row) | row.further).items():
            if isinstance(value, Spread | Difference):
                flat |= value.columns(name)
            else:
                flat[name] = " ".join(map(str, value)) if isinstance(value, tuple) else value
        flat |= {"params": None} if row.published else {"dataset_fingerprint": board.fingerprint}
        table.append(flat)
    return pd.DataFrame(table, columns=[*CSV_COLUMNS, *further], dtype=object).to_csv(index=False, lineterminator="\n")
