"""One run's results: its stages (``stages/<ii>_<name>/stage.json``) as GraphGym's stats, a summary, and tables."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from glem_graphgym.files import atomic_write, read_json, reading, write_json
from glem_graphgym.modes import METHODS
from glem_graphgym.scores import METRIC, METRICS, hides_test, warnings_of

MODELS = ("LM", "GNN")
# Columns of `summary_rows` and of summary.json; `report.results` explains them. A run's FURTHER columns are those of
# metrics other than its own; older runs have none.
SUMMARY = ("method", "valid", "test", "params", "seconds", "peak_memory_mb")
FURTHER = tuple(f"{split}_{metric}" for metric in METRICS for split in ("valid", "test"))
COSTS = ("texts", "energy_j")  # recorded by newer runs, energy only if the machine reports it
NO_MODEL, GIVEN = "none", "given"  # `Stage.model` if predictions were combined, or read from a file
LOG_WIDTH = 260
SPLIT_OF_FOLDER = {"train": "train", "val": "valid", "test": "test"}  # GraphGym's folder -> our split


@dataclass(frozen=True)
class Stage:
    """One finished stage of a run: one model fitted once. Costs are of this stage alone."""

    index: int  # position in the run, from 0
    name: str  # e.g. "lm_gold"
    model: str  # kind of model: "LM", "LM:<view>", "GNN"; "none" if predictions were combined, "given" if from a file
    method: str  # row of the summary that it competes for, e.g. "GLEM-GNN"
    em_iteration: int  # 0 before the first
    seconds: float  # wall-clock
    peak_memory_mb: float
    params: int
    lr: float  # base learning rate
    epochs: float
    best_epoch: float  # epoch whose weights were kept; may be a fraction
    scores: dict[str, dict[str, float]]  # train, valid, test -> scores by name of `METRICS` (shares 0-1), and "loss"
    diagnostics: dict[str, float] = field(default_factory=dict)  # of the EM objective; empty outside EM
    texts: float | None = None  # trained on, repetitions counted; None if not recorded
    energy_j: float | None = None  # of the processor packages; None if not recorded

    @property
    def folder(self) -> str:
        return f"{self.index:02d}_{self.name}"

    def score(self, split: str, metric: str) -> float:
        if metric not in self.scores[split]:
            raise ValueError(
                f'stage {self.index} ({self.name}) has no "{metric}" on {split}, found '
                f"{sorted(self.scores[split])}; every stage of a run must be scored by the run's metric"
            )
        return self.scores[split][metric]


def read_stages(run_dir: Path) -> list[Stage]:
    """Finished stages of a run by index, without those that its last command did not ask for (``run.json``).

    Raises:
        ValueError: a ``stage.json`` is damaged, or two stages have the same index; names the files.
    """
    run_file = run_dir / "run.json"
    requested = read_json(run_file).get("stages") if run_file.exists() else None
    stages: dict[int, Stage] = {}
    files: dict[int, Path] = {}
    # Hidden siblings are folders that a killed run was still writing.
    for file in sorted((run_dir / "stages").glob("[0-9]*_*/stage.json")):
        if requested is not None and file.parent.name not in requested:
            continue
        stage = _read_stage(file)
        if stage.index in stages:
            raise ValueError(
                f'{file} and {files[stage.index]} both say "index": {stage.index}, but an index '
                "is for one stage; delete the folder of the one that does not belong to this run"
            )
        stages[stage.index], files[stage.index] = stage, file
    return [stages[index] for index in sorted(stages)]


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected finite numbers, found {number}")
    return number


def _without_null(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers without null, which stands for a mean over no nodes and for a cost that was not recorded."""
    return {key: _finite(value) for key, value in numbers.items() if value is not None}


_CONVERT: dict[str, Callable[[Any], Any]] = {"int": int, "str": str, "float": _finite}  # by annotation of `Stage`


def _read_stage(file: Path) -> Stage:
    remedy = "delete its folder and start the run again to redo that stage"
    with reading(file, remedy):
        content = read_json(file, remedy)
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found {type(content).__name__}")
        if content["model"] not in (*MODELS, NO_MODEL, GIVEN) and not str(content["model"]).startswith("LM:"):
            raise ValueError(f'"model" is {content["model"]!r}, expected one of {[*MODELS, NO_MODEL, GIVEN]}')
        types = {attribute.name: str(attribute.type) for attribute in fields(Stage)}
        values = {name: _CONVERT[type](content[name]) for name, type in types.items() if type in _CONVERT}
        scores = {
            split: {key: _finite(value) for key, value in content["scores"][split].items()}
            for split in SPLIT_OF_FOLDER.values()
        }
        costs = _without_null({cost: content.get(cost) for cost in COSTS})
        return Stage(**values, **costs, scores=scores, diagnostics=_without_null(content["diagnostics"]))


def read_metric(run_dir: Path) -> str:
    """The metric that the run was scored by; raises ValueError if ``run.json`` is missing, damaged or names none."""
    remedy = "is this the folder of a run?"
    with reading(run_dir / "run.json", remedy):
        return str(read_json(run_dir / "run.json", remedy)["metric"])


def finish_run(run_dir: Path, digits: int = 4) -> list[dict[str, Any]]:
    """Write a run's stats and summary, mark it finished in its ``run.json``, and return the summary.

    ``summary.json`` is a list of the run's `summary_rows`. ``train/``, ``val/`` and ``test/stats.json`` are in
    GraphGym's format, one JSON row per stage. All rows have the same keys (train also GraphGym's ``eta``, always 0):
    ``epoch`` is the stage's index; ``lm_*`` and ``gnn_*`` are metric and loss of the latest LM and GNN up to that
    stage, 0.0 before the first; ``time_iter`` is the stage's seconds; ``params`` counts every kind of model trained up
    to that stage once. Values are rounded to ``digits`` decimals, except ``lr``. Files are replaced as a whole:
    GraphGym's reader keeps the first row of an epoch, so appended rows would not replace outdated ones.

    Raises:
        ValueError: there is no finished stage, one is damaged, or one lacks the run's metric.
    """
    metric, stages = read_metric(run_dir), read_stages(run_dir)
    if not stages:
        raise ValueError(f"{run_dir / 'stages'}: no finished stage (<ii>_<name>/stage.json); nothing to report yet")
    stats = {folder: _stats_rows(stages, split, metric, digits) for folder, split in SPLIT_OF_FOLDER.items()}
    summary = summary_rows(stages, metric)
    for folder, rows in stats.items():
        with atomic_write(run_dir / folder / "stats.json", "w") as file:
            file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_json(run_dir / "summary.json", summary)
    write_json(run_dir / "run.json", {**read_json(run_dir / "run.json"), "finished": True})
    return summary


def _stats_rows(stages: Sequence[Stage], split: str, metric: str, digits: int) -> list[dict[str, float]]:
    latest = {f"{model.lower()}_{key}": 0.0 for model in MODELS for key in (metric, "loss")}
    metrics = further_metrics(stages, metric)
    rows = []
    for index, stage in enumerate(stages):
        scores = {key: stage.score(split, key) for key in (metric, "loss")}
        if stage.model in MODELS:
            latest |= {f"{stage.model.lower()}_{key}": value for key, value in scores.items()}
        row: dict[str, float] = {
            "epoch": stage.index,
            **({"eta": 0.0} if split == "train" else {}),
            "loss": scores["loss"],
            "lr": stage.lr,
            "params": _params_of(stages[: index + 1]),
            "time_iter": stage.seconds,
            metric: scores[metric],
            **{name: stage.score(split, name) for name in metrics},
            "em_iteration": stage.em_iteration,
            "peak_memory_mb": stage.peak_memory_mb,
            **latest,
        }
        rows.append({key: value if key == "lr" else round(value, digits) for key, value in row.items()})
    return rows


def _params_of(stages: Sequence[Stage]) -> int:
    return sum({stage.model: stage.params for stage in stages}.values())


def further_metrics(stages: Sequence[Stage], metric: str) -> list[str]:
    """Metrics other than ``metric`` that every stage was scored by."""
    scored = [split_scores for stage in stages for split_scores in stage.scores.values()]
    return [name for name in METRICS if name != metric and all(name in split_scores for split_scores in scored)]


def heading(split: str, metric: str = METRIC) -> str:
    """``test %``, ``test macro-F1 %``: a column's heading."""
    return f"{split} %" if metric == METRIC else f"{split} {METRICS.get(metric, metric)} %"


def further_headings(columns: Iterable[str]) -> dict[str, str]:
    """Column -> heading of the further test scores among ``columns``."""
    present = set(columns)
    return {key: f"test {name} %" for metric, name in METRICS.items() if (key := f"test_{metric}") in present}


def in_order(methods: Iterable[str]) -> list[str]:
    """Distinct methods: those of `METHODS` first, in that order, then others in order of appearance."""
    distinct = list(dict.fromkeys(methods))
    return [name for name in METHODS if name in distinct] + [name for name in distinct if name not in METHODS]


def summary_rows(stages: Sequence[Stage], metric: str = METRIC) -> list[dict[str, Any]]:
    """A row per method, in the order of `METHODS`, with the keys `SUMMARY`, and `COSTS` and `FURTHER` as recorded.

    A row shows the method's stage with the best validation score, the first of equal ones; test scores play no part
    in the choice. Costs are of all stages up to that one, but for predictions from a file of that stage alone.

    Raises:
        ValueError: a stage was not scored by ``metric``.
    """
    rows = []
    for method in in_order(stage.method for stage in stages):
        competing = [stage for stage in stages if stage.method == method]
        best = max(competing, key=lambda stage: stage.score("valid", metric))
        counted_stages = [best] if best.model == GIVEN else stages[: stages.index(best) + 1]
        row: dict[str, Any] = {
            "method": method,
            **{split: best.score(split, metric) for split in ("valid", "test")},
            "params": _params_of(counted_stages),
            "seconds": sum(stage.seconds for stage in counted_stages),
            "peak_memory_mb": max(stage.peak_memory_mb for stage in counted_stages),
        }
        stage_costs = {cost: [getattr(stage, cost) for stage in counted_stages] for cost in COSTS}
        row |= {cost: sum(numbers) for cost, numbers in stage_costs.items() if None not in numbers}
        further_scores = [(split, name) for name in further_metrics(stages, metric) for split in ("valid", "test")]
        rows.append(row | {f"{split}_{name}": best.score(split, name) for split, name in further_scores})
    return rows


def new_table(title: str, texts: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[str]] = ()) -> Table:
    """A table with left-aligned columns of text, then right-aligned columns of numbers."""
    # Folded, not cut off with an ellipsis: a truncated number is a wrong number.
    columns = [Column(name, overflow="fold") for name in texts]
    columns += [Column(name, justify="right", overflow="fold") for name in numbers]
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    return table


def default_console() -> Console:
    """Console on standard output; if that is no terminal, wide enough that tables are not folded."""
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)


def _percent(score: float, column: str, blind: bool) -> str:
    return "hidden" if blind and column.startswith("test") else f"{100 * score:.2f}"


def print_run(run_dir: Path, title: str, console: Console | None = None, *, further: bool = False) -> None:
    """Print a finished run, one line per method: scores in %, parameters, seconds and peak memory; then warnings.

    Args:
        further: include test scores by the other metrics, for which a terminal is too narrow.
    """
    metric, stages, blind = read_metric(run_dir), read_stages(run_dir), hides_test(run_dir)
    rows = summary_rows(stages, metric)
    scores = {split: heading(split, metric) for split in ("valid", "test")}
    scores |= further_headings(key for row in rows for key in row) if further else {}
    cells = [
        [row["method"], *(_percent(row[key], key, blind) for key in scores), f"{row['params']:,}",
         f"{row['seconds']:,.1f}", f"{row['peak_memory_mb']:,.0f}"]
        for row in rows
    ]  # fmt: skip
    numbers = [*scores.values(), "params", "seconds", "peak memory MB"]
    table = new_table(title, ["method"], numbers, cells)
    warnings = [text for stage in stages for text in warnings_of(stage.model, stage.em_iteration, stage.diagnostics)]
    table.caption, table.caption_justify = "\n".join(map(escape, warnings)) or None, "left"
    (console or default_console()).print(table)


def log_run(run_dir: Path, log: Path) -> None:
    """Append two tables too wide for a terminal to a log file: a line per stage with diagnostics, and `print_run`."""
    stages, metric = read_stages(run_dir), read_metric(run_dir)
    diagnostics = list(dict.fromkeys(key for stage in stages for key in stage.diagnostics))
    numbers = [heading("valid", metric), "best epoch", "seconds", *diagnostics]
    table = new_table("Stages and their diagnostics", ["EM", "stage", "method"], numbers)
    for previous, stage in zip([None, *stages], stages, strict=False):
        if previous and stage.em_iteration != previous.em_iteration:
            table.add_section()
        cells = [f"{100 * stage.score('valid', metric):.2f}", f"{stage.best_epoch:g}", f"{stage.seconds:,.1f}"]
        cells += [diagnostic_text(stage.diagnostics[key]) if key in stage.diagnostics else "" for key in diagnostics]
        table.add_row(str(stage.em_iteration), stage.name, stage.method, *cells)
    with log.open("a", encoding="utf-8") as file:
        console = Console(file=file, width=LOG_WIDTH)
        console.print(table)
        print_run(run_dir, "", console, further=True)


def diagnostic_text(value: float) -> str:
    """``1,234``, ``0.1234``."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4f}"


def print_predictions(run_dir: Path, console: Console | None = None) -> None:
    """Print the scores of ``predictions.json``: a finished run's models, evaluated again from their weights."""
    scores, metric, blind = read_json(run_dir / "predictions.json"), read_metric(run_dir), hides_test(run_dir)
    rows = [
        (method, *(_percent(splits[split][metric], split, blind) for split in ("valid", "test")))
        for method, splits in scores.items()
    ]
    numbers = [heading(split, metric) for split in ("valid", "test")]
    table = new_table(f"seed {run_dir.name}, predicted again", ["method"], numbers, rows)
    (console or default_console()).print(table)
