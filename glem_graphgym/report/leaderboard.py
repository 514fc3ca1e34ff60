"""The leaderboard: one row a method, ranked by validation; one table a graph; as CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glem_graphgym.report.experiments import (
    METRIC,
    STOCK,
    STOCK_CAVEAT,
    STOCK_METHOD,
    Experiment,
    read_experiments,
)
from glem_graphgym.report.published import Published, published_for
from glem_graphgym.report.significance import TEST, Difference, holm, paired_difference
from glem_graphgym.report.stats import in_order

RANKING = "ranked by mean validation accuracy; test accuracy plays no part in any choice"
# Train modes from the simplest: the earlier ones are parts of the later ones.
SIMPLEST_FIRST = ("glem_lm", "glem_gnn", "glem_cascade", "glem_joint", "glem")
FINAL_METHOD = dict(zip(SIMPLEST_FIRST, ("LM", "GNN", "Cascade", "Joint", "GLEM-GNN"), strict=True))
FINAL_METHOD[STOCK] = STOCK_METHOD


@dataclass(frozen=True)
class Spread:
    """Mean over seeds and unbiased standard deviation (n - 1, as `torch.std`); None for one seed or unknown."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)


@dataclass(frozen=True)
class Row:
    """One method of one experiment over its seeds.

    Attributes:
        rank: from 1, by mean validation score.
        name: what the row is called in its table.
        experiment, method: whose and which.
        seeds: ascending.
        valid, test: a share 0-1, each seed's at its epoch or stage of best validation.
        params: parameters of all stages, the largest of the seeds.
        seconds: mean over seeds, to get that model from the start; None where not recorded.
        peak_memory_mb: highest of any seed; None where not recorded.
        config: fingerprint of the experiment's settings.
        config_text: that, with the number of EM iterations where the board's experiments or seeds differ in it.
        to_best, to_baseline: difference to the first row, and to the first that is not GLEM; None for those rows.
        caveat: what must be known to read the row; "" mostly.
        also: further experiments with the very same scores on every seed, e.g. an LM that no setting of theirs
            touches, or the LM that a cascade and GLEM start from. They are one row, named after the simplest train
            mode, since the same result counted twice would weaken every test of significance.
    """

    rank: int
    name: str
    experiment: str
    method: str
    seeds: tuple[int, ...]
    valid: Spread
    test: Spread
    params: int
    seconds: float | None
    peak_memory_mb: float | None
    config: str
    to_best: Difference | None = None
    to_baseline: Difference | None = None
    caveat: str = ""
    also: tuple[str, ...] = ()
    config_text: str = ""

    @property
    def experiments(self) -> tuple[str, ...]:
        return (self.experiment, *self.also)


@dataclass(frozen=True)
class Axis:
    """Settings in which experiments differ, and differ together.

    Attributes:
        keys: ``group.key`` of settings that change in step; one mostly.
        values: names of the experiments by the settings' value, in order of the values.
    """

    keys: tuple[str, ...]
    values: dict[str, list[str]]

    @property
    def name(self) -> str:
        return " + ".join(self.keys)


@dataclass(frozen=True)
class Board:
    """All that is known of one graph: results on it can be ranked against each other.

    Attributes:
        dataset, fingerprint: the graph; None where runs did not record its content's fingerprint.
        metric: what is compared, a share 0-1.
        rows: by rank.
        published: rows from elsewhere, for the same dataset.
        experiments: by name.
        axes: in what experiments of one train mode differ, over all modes.
        notes: what was left out, and what must be known to read the table.
    """

    dataset: str
    fingerprint: str | None
    metric: str
    rows: list[Row]
    published: list[Published]
    experiments: dict[str, Experiment]
    axes: list[Axis]
    notes: list[str]

    @property
    def title(self) -> str:
        return f"{self.dataset} ({self.fingerprint or 'fingerprint not recorded'})"

    @property
    def baseline(self) -> Row | None:
        """The best row that is not GLEM."""
        return next((row for row in self.rows if not is_glem(row.method)), None)

    @property
    def final_rows(self) -> dict[str, Row]:
        """By experiment the row of the method that its train mode ends with; none where that was not reached."""
        final = {name: FINAL_METHOD.get(one.mode) for name, one in self.experiments.items()}
        return {name: row for row in self.rows for name in row.experiments if row.method == final[name]}


def is_glem(method: str) -> bool:
    return method.startswith("GLEM")


def read_boards(dirs: Sequence[Path]) -> list[Board]:
    """One board for each graph (dataset, fingerprint) that runs in ``dirs`` were made on; the largest first.

    Raises:
        ValueError: as `read_experiments`.
    """
    experiments, left_out = read_experiments(dirs)
    groups: dict[tuple[str, str | None, str], list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault((experiment.dataset, experiment.fingerprint, experiment.metric), []).append(experiment)
    boards = [make_board(group) for group in groups.values()]
    boards.sort(key=lambda board: -len(board.rows))
    apart = _apart(list(groups)) if len(boards) > 1 else []
    return [replace(board, notes=[*apart, *board.notes, *left_out]) for board in boards]


def _apart(groups: Sequence[tuple[str, str | None, str]]) -> list[str]:
    shown = "; ".join(f"{dataset}, fingerprint {print_ or 'not recorded'}" for dataset, print_, _ in groups)
    notes = [f"results on {len(groups)} graphs ({shown}) are not comparable: each has a table of its own"]
    if any(print_ is None for _, print_, _ in groups):
        notes.append("a run that did not record its graph's fingerprint can not be shown to be on the same graph")
    return notes


def make_board(experiments: Sequence[Experiment]) -> Board:
    """The board of experiments on one graph.

    Raises:
        ValueError: they are not on one graph, or not scored by one metric.
    """
    graphs = {(one.dataset, one.fingerprint, one.metric) for one in experiments}
    if len(graphs) != 1:
        raise ValueError(
            f"results on different graphs or metrics can not be ranked together: {sorted(map(str, graphs))}"
        )
    dataset, fingerprint, metric = graphs.pop()
    by_name = {one.name: one for one in experiments}
    rows = _compared(_ranked(_distinct_rows(experiments)), by_name)
    rows = _with_config_text(rows, by_name)
    return Board(
        dataset=dataset,
        fingerprint=fingerprint,
        metric=metric,
        rows=rows,
        published=published_for(dataset) if metric == METRIC else [],
        experiments=by_name,
        axes=axes_within_modes(experiments),
        notes=[*_notes(rows), *_mixed(experiments)],
    )


def _with_config_text(rows: Sequence[Row], experiments: Mapping[str, Experiment]) -> list[Row]:
    asked = {row.name: ", ".join(map(str, experiments[row.experiment].em_iterations)) for row in rows}
    differ = len({text for text in asked.values() if text}) > 1 or any("," in text for text in asked.values())
    return [
        replace(row, config_text=f"{row.config}, EM {asked[row.name]}" if differ and asked[row.name] else row.config)
        for row in rows
    ]


def _mixed(experiments: Sequence[Experiment]) -> list[str]:
    """In what the seeds of an experiment differ that is no setting: versions of packages, EM iterations asked for."""
    notes = []
    for one in experiments:
        packages = sorted({name for run in one.runs.values() for name in run.versions})
        kinds = [(f"versions of {name}", one.versions(name)) for name in packages]
        kinds.append(("numbers of EM iterations", list(map(str, one.em_iterations))))
        notes += [f"{one.name} was run with several {kind}: {', '.join(f)}" for kind, f in kinds if len(f) > 1]
    return notes


def _distinct_rows(experiments: Sequence[Experiment]) -> list[Row]:
    rows: dict[Any, Row] = {}
    for one in sorted(experiments, key=lambda one: _complexity(one.mode)):
        for method in _methods(one):
            scores = [(s, run.results[method]) for s, run in one.runs.items() if method in run.results]
            key = (one.mode == STOCK, method, *((seed, r.valid, r.test, r.params) for seed, r in scores))
            if key in rows:
                rows[key] = replace(rows[key], also=(*rows[key].also, one.name))
            else:
                rows[key] = _row(one, method, len(experiments) == 1)
    return list(rows.values())


def _complexity(mode: str) -> int:
    return SIMPLEST_FIRST.index(mode) if mode in SIMPLEST_FIRST else len(SIMPLEST_FIRST)


def _methods(experiment: Experiment) -> list[str]:
    return in_order(method for run in experiment.runs.values() for method in run.results)


def _row(experiment: Experiment, method: str, alone: bool) -> Row:
    results = {seed: run.results[method] for seed, run in experiment.runs.items() if method in run.results}
    seconds = [one.seconds for one in results.values() if one.seconds is not None]
    memory = [one.peak_memory_mb for one in results.values() if one.peak_memory_mb is not None]
    return Row(
        rank=0,
        name=method if alone else f"{experiment.name} {method}",
        experiment=experiment.name,
        method=method,
        seeds=tuple(sorted(results)),
        valid=Spread.of(one.valid for one in results.values()),
        test=Spread.of(one.test for one in results.values()),
        params=max(one.params for one in results.values()),
        seconds=statistics.fmean(seconds) if seconds else None,
        peak_memory_mb=max(memory, default=None),
        config=experiment.config,
        caveat=STOCK_CAVEAT if experiment.mode == STOCK else "",
    )


def _ranked(rows: Sequence[Row]) -> list[Row]:
    ordered = sorted(rows, key=lambda row: (-row.valid.mean, row.params, row.name))
    return [replace(row, rank=rank) for rank, row in enumerate(ordered, start=1)]


def scores_on_test(experiment: Experiment, method: str) -> dict[int, float]:
    """Test score by seed."""
    return {seed: run.results[method].test for seed, run in experiment.runs.items() if method in run.results}


def _compared(rows: Sequence[Row], experiments: Mapping[str, Experiment]) -> list[Row]:
    scores = [scores_on_test(experiments[row.experiment], row.method) for row in rows]

    def to(place: int | None) -> list[Difference | None]:
        if place is None:
            return [None] * len(rows)
        pairs = enumerate(scores)
        return holm([None if i == place else paired_difference(s, scores[place], rows[place].name) for i, s in pairs])

    baseline = next((place for place, row in enumerate(rows) if not is_glem(row.method)), None)
    pairs = zip(rows, to(0), to(baseline), strict=True)
    return [replace(row, to_best=best, to_baseline=base) for row, best, base in pairs]


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [RANKING, f"significance: {TEST}; fewer than 3 common seeds are not tested"]
    if len({row.seeds for row in rows}) > 1:
        notes.append("rows rest on different seeds; differences are taken over the seeds that both rows have")
    if all(len(row.seeds) == 1 for row in rows):
        notes.append("one seed: there is no spread, and small differences mean nothing")
    if any(row.also for row in rows):
        notes.append(
            "experiments with the very same scores on every seed share a row, named after the simplest train mode; "
            "the CSV names them all (same_in)"
        )
    return notes + sorted({f"{row.name}: {row.caveat}" for row in rows if row.caveat})


def grid_axes(experiments: Sequence[Experiment]) -> list[Axis]:
    """In which settings experiments differ; settings that change in step make one axis."""
    keys = sorted({key for one in experiments for key in one.settings})
    partitions: dict[tuple[int, ...], list[str]] = {}
    for key in keys:
        values = [json.dumps(one.settings.get(key), sort_keys=True, default=str) for one in experiments]
        distinct = list(dict.fromkeys(values))
        if len(distinct) > 1:
            partitions.setdefault(tuple(distinct.index(value) for value in values), []).append(key)
    return [_axis(tuple(keys), experiments) for keys in partitions.values()]


def axes_within_modes(experiments: Sequence[Experiment]) -> list[Axis]:
    """The axes of each train mode's experiments, GLEM's first; what several modes vary is one axis over all of them.

    Settings in which only whole modes differ are no axis: nothing would tell their effect from the mode's.
    """
    varied: dict[tuple[str, ...], list[Experiment]] = {}
    for mode in sorted({one.mode for one in experiments}, key=_complexity, reverse=True):
        members = [one for one in experiments if one.mode == mode]
        for axis in grid_axes(members):
            varied.setdefault(axis.keys, []).extend(members)
    return [_axis(keys, members) for keys, members in varied.items()]


def _axis(keys: tuple[str, ...], experiments: Sequence[Experiment]) -> Axis:
    members: dict[str, list[str]] = {}
    order: dict[str, Any] = {}
    for one in experiments:
        values = [one.settings.get(key) for key in keys]
        shown = ", ".join(show_value(value) for value in values)
        members.setdefault(shown, []).append(one.name)
        order[shown] = tuple((0, v, "") if isinstance(v, int | float) else (1, 0, str(v)) for v in values)
    return Axis(keys, {shown: members[shown] for shown in sorted(members, key=lambda shown: order[shown])})


def show_value(value: Any) -> str:
    """A setting as it is typed: ``0.001``, ``true``, ``[5, 10]``; ``unset`` for none."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) and value else json.dumps(value)


# --- how numbers are written -------------------------------------------------------------------------------


def percent(spread: Spread | None) -> str:
    """``82.65 ± 0.21``: % with the unbiased standard deviation, where there is one."""
    if spread is None:
        return ""
    return f"{100 * spread.mean:.2f}" + ("" if spread.std is None else f" ± {100 * spread.std:.2f}")


def published_spread(mean: float | None, std: float | None) -> Spread | None:
    return None if mean is None else Spread(mean, std)


def difference_text(difference: Difference | None) -> str:
    """``+1.34 (p = 0.012, n = 10)``: percentage points; the reason in place of a p-value that there is none of."""
    if difference is None:
        return "–"
    if difference.mean is None:
        return "no common seed"
    return f"{100 * difference.mean:+.2f} ({difference_reason(difference)}, n = {difference.seeds})"


def difference_reason(difference: Difference) -> str:
    """The p-value, or why there is none."""
    return p_text(difference.p) if difference.p is not None else difference.reason


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


TEXTS = ["#", "method"]
NUMBERS = ["valid %", "test %", "to best", "to best non-GLEM", "params", "seconds", "peak MB", "seeds", "config"]


def cells_of(row: Row) -> list[str]:
    return [
        str(row.rank),
        row.name + marks_of(row),
        percent(row.valid),
        percent(row.test),
        difference_text(row.to_best),
        difference_text(row.to_baseline),
        f"{row.params:,}",
        _number(row.seconds),
        _number(row.peak_memory_mb),
        seeds_text(row.seeds),
        row.config_text,
    ]


def marks_of(row: Row) -> str:
    """What is appended to a row's name: whether it has a caveat, and how many experiments share it."""
    return (" †" if row.caveat else "") + (f" (+ {len(row.also)} the same)" if row.also else "")


def published_cells(row: Published) -> list[str]:
    valid, test = published_spread(row.valid, row.valid_std), published_spread(row.test, row.test_std)
    empty = [""] * 5
    return [
        "",
        f"{row.method} [published: {row.source}]",
        percent(valid),
        percent(test),
        *empty,
        f"{row.runs} runs",
        "",
    ]


def seeds_text(seeds: Sequence[int]) -> str:
    """``10 (0-9)``, ``2 (3, 7)``."""
    run = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{len(seeds)} ({f'{seeds[0]}-{seeds[-1]}' if run else ', '.join(map(str, seeds))})"


# --- tables ------------------------------------------------------------------------------------------------


def all_notes(board: Board) -> list[str]:
    return [("† " if STOCK_CAVEAT in note else "") + note for note in board.notes]


def to_markdown(boards: Sequence[Board]) -> str:
    """All boards as Markdown tables."""
    parts = []
    for board in boards:
        lines = [f"### {_cell(board.title)}", "", _line(TEXTS + NUMBERS)]
        lines.append(_line(["---"] * len(TEXTS) + ["---:"] * len(NUMBERS)))
        lines += [_line(cells_of(row)) for row in board.rows]
        lines += [_line(published_cells(row)) for row in board.published]
        lines += ["", *(f"- {_cell(note)}" for note in all_notes(board)), ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    for character in "\\|<>*_`":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


CSV_COLUMNS = [
    *("dataset", "dataset_fingerprint", "rank", "name", "experiment", "method", "source"),
    *("valid_mean", "valid_std", "test_mean", "test_std", "runs", "seeds", "params", "seconds", "peak_memory_mb"),
    *("config", "em_iterations", "to_best", "to_best_n", "to_best_p", "to_best_reason"),
    *("to_non_glem", "to_non_glem_n", "to_non_glem_p", "to_non_glem_reason", "caveat", "same_in"),
]


def to_csv(boards: Sequence[Board]) -> str:
    """All boards as one CSV table with full precision; ``source`` is "this run" or where a row was published."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for board in boards:
        graph = {"dataset": board.dataset, "dataset_fingerprint": board.fingerprint or ""}
        for row in board.rows:
            asked = " ".join(map(str, board.experiments[row.experiment].em_iterations))
            writer.writerow({**graph, **_csv_row(row), "em_iterations": asked})
        for published in board.published:
            writer.writerow({**graph, "dataset_fingerprint": "", **_csv_published(published)})
    return text.getvalue()


def _csv_row(row: Row) -> dict[str, Any]:
    return {
        "rank": row.rank,
        "name": row.name,
        "experiment": row.experiment,
        "method": row.method,
        "source": "this run",
        **_csv_spread("valid", row.valid),
        **_csv_spread("test", row.test),
        "runs": len(row.seeds),
        "seeds": " ".join(map(str, row.seeds)),
        "params": row.params,
        "seconds": row.seconds,
        "peak_memory_mb": row.peak_memory_mb,
        "config": row.config,
        **_csv_difference("to_best", row.to_best),
        **_csv_difference("to_non_glem", row.to_baseline),
        "caveat": row.caveat,
        "same_in": " ".join(row.also),
    }


def _csv_published(row: Published) -> dict[str, Any]:
    valid, test = published_spread(row.valid, row.valid_std), published_spread(row.test, row.test_std)
    spreads = {**_csv_spread("valid", valid), **_csv_spread("test", test)}
    return {"name": row.method, "method": row.method, "source": row.source, **spreads, "runs": row.runs}


def _csv_spread(name: str, spread: Spread | None) -> dict[str, Any]:
    return {} if spread is None else {f"{name}_mean": spread.mean, f"{name}_std": spread.std}


def _csv_difference(name: str, difference: Difference | None) -> dict[str, Any]:
    if difference is None:
        return {}
    values = {"": difference.mean, "_n": difference.seeds, "_p": difference.p, "_reason": difference.reason}
    return {f"{name}{key}": value for key, value in values.items()}
