"""Tables of a grid with one row per experiment, as run/agg_batch.py writes them: GraphGym's file names and columns.

Follows `agg_batch` of torch_geometric/graphgym/utils/agg_runs.py, which cannot be used: it fails on a folder that is
no run (``logs/``), on blocks with different axes and on values of different types, and in ``test_bestepoch.csv`` it
selects by test. Here validation alone selects.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from glem_graphgym.files import atomic_write, reading
from glem_graphgym.report.aggregate import aggregate_seeds
from glem_graphgym.report.epochs import SPLITS, best_epoch, seed_folders
from grid.jobs import is_finished
from grid.space import axes_of

NOT_RUNS = ("agg", "logs")
TABLES = ("_best", "", "_bestepoch")  # <split>_best.csv, <split>.csv, <split>_bestepoch.csv
_DROPPED = ("lr", "lr_std", "eta", "eta_std", "params_std")

Row = dict[str, Any]
Rows = dict[tuple[str, str], Row]  # by table and split; a split that an experiment lacks has none


def aggregate_grid(folder: Path, metric: str = "auto") -> list[str]:
    """Write ``<folder>/agg/{train,val,test}{_best,,_bestepoch}.csv``; returns notes on what was left out and why.

    ``*_best.csv``: mean and population standard deviation over seeds, each at its epoch of best validation, as in
    ``agg/<split>/best.json``, which is made anew from all seeds with results. ``*.csv``: mean over seeds at the last
    epoch. ``*_bestepoch.csv``: mean over seeds at the one epoch whose mean validation metric is best, the same for all
    splits; the last epoch if a split was not evaluated then.

    Args:
        folder: results of a grid, with one folder per experiment.
        metric: validation metric; ``"auto"``: each experiment's ``metric_best``, or auc if present, else accuracy.
    """
    if not folder.is_dir():
        raise ValueError(f"--dir {folder}: no such folder; expected results/<grid>, with a folder for each experiment")
    tables: dict[str, Rows] = {}
    seeds: dict[str, list[int]] = {}
    notes = []
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in NOT_RUNS):
        if path.name.startswith("."):
            continue
        if not seed_folders(path):
            notes.append(f"{path.name}: skipped, not an experiment (no folder named by a seed in it)")
            continue
        try:
            seeds[path.name], tables[path.name] = _read_experiment(path, metric)
        except (ValueError, KeyError) as error:
            notes.append(f"{path.name}: skipped, without results ({error})")
    if not tables:
        raise ValueError("\n".join([f"--dir {folder}: no experiment with results in it", *notes]))
    # Means over different seeds are not comparable, nor are those of unfinished runs.
    all_seeds = sorted({seed for experiment_seeds in seeds.values() for seed in experiment_seeds})
    notes += [
        f"{name}: only the seeds {', '.join(map(str, experiment_seeds))}, where others have "
        f"{', '.join(map(str, all_seeds))}"
        for name, experiment_seeds in seeds.items()
        if experiment_seeds != all_seeds
    ]
    for name, experiment_seeds in seeds.items():
        runs = [folder / name / str(seed) for seed in experiment_seeds]
        # Unknown for runs of GraphGym's own main, which writes no run.json.
        if unfinished := [run.name for run in runs if (run / "run.json").exists() and not is_finished(run)]:
            notes.append(f"{name}: not finished, counted as far as they are: seeds {', '.join(unfinished)}")
    for split in SPLITS:
        for table in TABLES:
            table_rows = {name: rows[table, split] for name, rows in tables.items() if (table, split) in rows}
            _write_table(folder / "agg" / f"{split}{table}.csv", table_rows)
    return notes


def _read_experiment(path: Path, metric: str) -> tuple[list[int], Rows]:
    """The seeds with validation rows, and the experiment's row of every table."""
    settings = _settings(path)
    metric_best, best = settings.get("metric_best", "auto"), settings.get("metric_agg", "argmax")
    aggregate = aggregate_seeds(
        path, metric_best, best, settings.get("round", 4), settings.get("tensorboard_agg", False)
    )
    epoch = best_epoch(aggregate.stats["val"], metric_best if metric == "auto" else metric, best, path / "agg")
    rows: Rows = {}
    for split, stats in aggregate.stats.items():
        rows["_best", split], rows["", split] = aggregate.best[split], stats[-1]
        rows["_bestepoch", split] = next((row for row in stats if row["epoch"] == epoch), stats[-1])
    return aggregate.seeds, rows


def _settings(experiment: Path) -> Mapping[str, Any]:
    file = experiment / "config.yaml"
    if not file.exists():
        return {}
    with reading(file, "run that experiment again"):
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    return settings if isinstance(settings, dict) else {}


def _write_table(file: Path, rows: Mapping[str, Row]) -> None:
    if not rows:
        file.unlink(missing_ok=True)  # left by an earlier call
        return
    axes = [axes_of(name) for name in rows]
    if not all(axes) or len({repr(sorted(axis_values.items())) for axis_values in axes}) < len(axes):
        axes = [{"run": name, **axis_values} for name, axis_values in zip(rows, axes, strict=True)]
    aliases = list(dict.fromkeys(alias for axis_values in axes for alias in axis_values))
    stats = [{key: value for key, value in row.items() if key not in _DROPPED} for row in rows.values()]
    stat_names = {key for row in stats for key in row}
    names = {alias: f"{alias}_axis" if alias in stat_names else alias for alias in aliases}
    ordered = sorted(
        zip(axes, stats, strict=True), key=lambda pair: [_sort_key(pair[0].get(alias)) for alias in aliases]
    )
    table = [{names[alias]: axis_values[alias] for alias in axis_values} | row for axis_values, row in ordered]
    columns = [*names.values(), *dict.fromkeys(key for row in stats for key in row)]
    with atomic_write(file, "w") as stream:
        pd.DataFrame(table, columns=columns, dtype=object).to_csv(stream, index=False)


def _sort_key(value: Any) -> tuple[int, float, str]:
    """Missing values first, then numbers, then text."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return 0 if value is None else 1 if number else 2, float(value) if number else 0.0, "" if number else str(value)
