"""One CSV row for each experiment of a grid: what run/agg_batch.py writes, with GraphGym's file names and columns.

Follows `agg_batch` of torch_geometric/graphgym/utils/agg_runs.py, which cannot be called: it ends with an error at a
folder that is no run (``logs/``), at blocks with different axes and at values of different types, and in
``test_bestepoch.csv`` it selects by test. Here validation alone selects.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from glem_graphgym.files import atomic_write, reading
from glem_graphgym.report.aggregate import SEED, SPLITS, aggregate_seeds, best_epoch
from grid.jobs import is_finished
from grid.space import axes_of

log = logging.getLogger(__name__)

NOT_RUNS = ("agg", "logs")
# <split>_best.csv, <split>.csv, <split>_bestepoch.csv
TABLES = ("_best", "", "_bestepoch")
_DROPPED = ("lr", "lr_std", "eta", "eta_std", "params_std")

Row = dict[str, Any]


@dataclass(frozen=True)
class Selection:
    """By which validation metric, and whether its largest or smallest value, epochs are selected."""

    metric: str
    best: str


@dataclass(frozen=True)
class Experiment:
    """An experiment's seeds, and its row of every table, by table and split; a split that it lacks has none."""

    name: str
    seeds: tuple[int, ...]
    rows: Mapping[tuple[str, str], Row]


def aggregate_grid(folder: Path, metric: str = "auto") -> list[str]:
    """Write ``<folder>/agg/{train,val,test}{_best,,_bestepoch}.csv``; returns notes on what was left out and why.

    ``*_best.csv``: mean and population standard deviation over seeds, each at its epoch of best validation, as
    ``agg/<split>/best.json`` has them. That is made anew from all seeds with results: a run in which a later seed
    failed left it as it was, and GraphGym's own main knows no test.
    ``*.csv``: mean over seeds at the last epoch. ``*_bestepoch.csv``: mean over seeds at the one epoch whose mean
    validation metric is best, the same for all splits; the last epoch where a split was not evaluated then.

    Args:
        folder: results of a grid, with one folder an experiment.
        metric: of the validation rows; ``"auto"``: each experiment's ``metric_best``, or auc if present, else accuracy.

    Raises:
        ValueError: the folder is missing or holds no experiment with results; says what was found.
    """
    if not folder.is_dir():
        raise ValueError(f"--dir {folder}: no such folder; expected results/<grid>, with a folder for each experiment")
    experiments, notes = [], []
    for path in sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and path.name not in NOT_RUNS and not path.name.startswith(".")
    ):
        if not _seeds(path):
            notes.append(f"{path.name}: skipped, not an experiment (no folder named by a seed in it)")
            continue
        try:
            experiments.append(_read_experiment(path, metric))
        except (ValueError, KeyError, OSError) as error:
            notes.append(f"{path.name}: skipped, without results ({error})")
    if not experiments:
        raise ValueError("\n".join([f"--dir {folder}: no experiment with results in it", *notes]))
    notes += _uneven_seeds(experiments)
    for one in experiments:
        unfinished = [seed for seed in one.seeds if _is_unfinished(folder / one.name / str(seed))]
        if unfinished:
            notes.append(
                f"{one.name}: not finished, counted as far as they are: seeds {', '.join(map(str, unfinished))}"
            )
    for split in SPLITS:
        for table in TABLES:
            chosen = [(one.name, one.rows[table, split]) for one in experiments if (table, split) in one.rows]
            _write_table(folder / "agg" / f"{split}{table}.csv", chosen)
    return notes


def _seeds(experiment: Path) -> list[int]:
    return sorted(int(path.name) for path in experiment.iterdir() if SEED.fullmatch(path.name) and path.is_dir())


def _read_experiment(path: Path, metric: str) -> Experiment:
    settings = _settings(path)
    split_seeds = {split: [seed for seed in _seeds(path) if _has_rows(path / str(seed), split)] for split in SPLITS}
    aggregate_seeds(
        path,
        settings.get("metric_best", "auto"),
        settings.get("metric_agg", "argmax"),
        settings.get("round", 4),
        settings.get("tensorboard_agg", False),
    )
    selection = Selection(
        settings.get("metric_best", "auto") if metric == "auto" else metric, settings.get("metric_agg", "argmax")
    )
    rows_of_val = _read_rows(path / "agg" / "val" / "stats.json")
    epoch = best_epoch(rows_of_val, selection.metric, selection.best, path / "agg")
    rows: dict[tuple[str, str], Row] = {}
    for split in SPLITS:
        if (path / "agg" / split / "best.json").exists():
            stats = _read_rows(path / "agg" / split / "stats.json")
            rows["_best", split] = _read_rows(path / "agg" / split / "best.json")[-1]
            rows["", split] = stats[-1]
            rows["_bestepoch", split] = next((row for row in stats if row["epoch"] == epoch), stats[-1])
    return Experiment(path.name, tuple(split_seeds["val"]), rows)


def _settings(experiment: Path) -> Mapping[str, Any]:
    file = experiment / "config.yaml"
    if not file.exists():
        return {}
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    return settings if isinstance(settings, dict) else {}


def _has_rows(run: Path, split: str) -> bool:
    file = run / split / "stats.json"
    return file.is_file() and file.stat().st_size > 0


def _is_unfinished(run: Path) -> bool:
    """As far as is known: GraphGym's own main writes no ``run.json``."""
    return (run / "run.json").exists() and not is_finished(run)


def _read_rows(file: Path) -> list[Row]:
    """The rows of a file that `aggregate_seeds`, or GraphGym's `agg_runs`, wrote: one JSON object a line."""
    with reading(file, "run that experiment again"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not rows:
        raise ValueError(f"{file} is empty; run that experiment again")
    return rows


def _uneven_seeds(experiments: Sequence[Experiment]) -> list[str]:
    """Means over different seeds are not comparable: say whose they are."""
    every = sorted({seed for one in experiments for seed in one.seeds})
    return [
        f"{one.name}: only the seeds {', '.join(map(str, one.seeds))}, where others have {', '.join(map(str, every))}"
        for one in experiments
        if list(one.seeds) != every
    ]


# ---- tables -------------------------------------------------------------------------------------------------------


def _write_table(file: Path, rows: Sequence[tuple[str, Row]]) -> None:
    if not rows:
        file.unlink(missing_ok=True)  # of an earlier call
        return
    axes = [axes_of(name) for name, _ in rows]
    if not all(axes) or len({repr(sorted(found.items())) for found in axes}) < len(axes):
        axes = [{"run": name, **found} for (name, _), found in zip(rows, axes, strict=True)]
    aliases = list(dict.fromkeys(alias for found in axes for alias in found))
    stats = [{key: value for key, value in row.items() if key not in _DROPPED} for _, row in rows]
    taken = {key for row in stats for key in row}
    columns = {alias: f"{alias}_axis" if alias in taken else alias for alias in aliases}
    table = [
        {**{columns[alias]: found[alias] for alias in aliases if alias in found}, **row}
        for found, row in sorted(
            zip(axes, stats, strict=True), key=lambda pair: [_sort_key(pair[0].get(alias)) for alias in aliases]
        )
    ]
    names = [*columns.values(), *dict.fromkeys(key for row in stats for key in row)]
    with atomic_write(file, "w") as stream:
        pd.DataFrame(table, columns=names, dtype=object).to_csv(stream, index=False)


def _sort_key(value: Any) -> tuple[int, float, str]:
    """Missing values first, then numbers, then text."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 2, 0.0, str(value)
    return 1, float(value), ""
