"""Results over seeds: GraphGym's ``agg/`` folder, test split included, and every method as mean ± std.

Follows torch_geometric/graphgym/utils/agg_runs.py, whose `agg_batch` reads what is written here. Takes what
that drops or fails on: the test split, seeds with different numbers of epochs, the half line that a killed
run leaves, a missing tensorboardX.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from rich.console import Console

from glem_graphgym.files import atomic_write, read_json, sync, write_json
from glem_graphgym.report.stats import SummaryRow, default_console, in_order, new_table, write_tensorboard

SPLITS = ("train", "val", "test")  # GraphGym's names of the folders
SEED = re.compile(r"0|-?[1-9][0-9]*")

Row = dict[str, float]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AggregateRow:
    """The result of one method over seeds.

    Attributes:
        method: as in `SummaryRow`.
        seeds: how many seeds have a result of this method.
        valid_mean, test_mean: mean score, a share 0-1.
        valid_std, test_std: unbiased standard deviation (n - 1), as OGB leaderboards ask; None for one seed.
        params: parameters, the largest of the seeds.
        seconds_mean: mean seconds to get that model, from the start of the run.
        peak_memory_mb: highest memory of any seed, in MB.
    """

    method: str
    seeds: int
    valid_mean: float
    valid_std: float | None
    test_mean: float
    test_std: float | None
    params: int
    seconds_mean: float
    peak_memory_mb: float


def aggregate_seeds(
    dir: Path,
    metric: str = "auto",
    best: Literal["argmax", "argmin"] = "argmax",
    digits: int = 4,
    tensorboard: bool = False,
) -> None:
    """Write ``agg/<split>/stats.json`` and ``agg/<split>/best.json`` over seeds of ours or GraphGym's.

    ``stats.json`` has a row an epoch: the mean and, as ``<key>_std``, the population standard deviation of
    each number over the seeds that have that epoch. ``best.json`` is the same over one row a seed: that of
    the seed's epoch with the best validation metric, the first of equal ones. Where a seed has rows of EM
    iterations (``em_iteration`` from 1), only those compete: the LM and the GNN on gold labels are baselines, to
    which GLEM must be able to lose; of other runs only rows at which all their models were trained, so not a cascade's
    LM. GraphGym evaluates the test split once, under another epoch, so where a split
    has no row of the best epoch its last row counts.
    ``epoch`` in ``best.json`` is that of the lowest seed. Numbers are rounded to ``digits`` decimals. An
    older ``agg`` is replaced when the new one is complete.

    Args:
        dir: folder with one folder a seed, named by the seed; other folders are skipped.
        metric: key of the validation rows to select by; ``"auto"`` is ``auc`` if present, else ``accuracy``.
        best: whether the largest or the smallest value is the best.
        digits: decimals kept.
        tensorboard: also write the rows as TensorBoard events; where that fails, a warning is logged.

    Raises:
        ValueError: no seed has validation rows, a file is damaged before its last line, or the metric is
            missing; names the file.
    """
    if best not in ("argmax", "argmin"):
        raise ValueError(f"metric_agg is {best!r}, expected 'argmax' or 'argmin'")
    runs = _read_runs(dir)
    selected = {seed: best_epoch(rows["val"], metric, best, dir / str(seed)) for seed, rows in runs.items()}

    stats, chosen = {}, {}
    for split in SPLITS:
        rows_of_seed = {seed: rows[split] for seed, rows in runs.items() if rows[split]}
        if rows_of_seed:
            picked = [row_at(rows, selected[seed], dir / str(seed) / split) for seed, rows in rows_of_seed.items()]
            stats[split] = _by_epoch(list(rows_of_seed.values()), digits)
            chosen[split] = [_mean_and_std(picked, digits)]

    def write(folder: Path) -> None:
        for split in stats:
            _write_lines(folder / split / "stats.json", stats[split])
            _write_lines(folder / split / "best.json", chosen[split])
        if tensorboard:
            write_tensorboard(folder, stats)

    _replace_folder(dir / "agg", write)


def _seed_folders(dir: Path) -> dict[int, Path]:
    if not dir.is_dir():
        raise ValueError(f"{dir}: no such folder; expected the folder of one experiment, with a folder for each seed")
    seeds = [int(path.name) for path in dir.iterdir() if SEED.fullmatch(path.name) and path.is_dir()]
    return {seed: dir / str(seed) for seed in sorted(seeds)}


def _no_seed(dir: Path, wanted: str) -> ValueError:
    found = sorted(path.name for path in dir.iterdir())[:10]
    return ValueError(
        f"{dir}: no seed folder (named by an integer) with {wanted}, found {found}; "
        "give the folder of one experiment, of which at least one seed has run"
    )


def _read_runs(dir: Path) -> dict[int, dict[str, list[Row]]]:
    """Rows by seed (ascending) and split; an empty list for a split that was not written."""
    runs = {}
    for seed, folder in _seed_folders(dir).items():
        rows = {split: read_rows(folder / split / "stats.json") for split in SPLITS}
        if rows["val"]:
            runs[seed] = rows
        else:
            log.warning("%s: no rows in val/stats.json; seed %d is left out", folder, seed)
    if not runs:
        raise _no_seed(dir, "val/stats.json")
    return runs


def read_rows(file: Path) -> list[Row]:
    """Rows of a stats file by epoch; of several with the same epoch the first, as GraphGym reads them."""
    if not file.is_file():
        return []
    rows: dict[float, Row] = {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _numbers(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(
                    f"{file}, line {number}: not a JSON object with an epoch ({error}); remove that line, "
                    "or the seed's folder, and aggregate again"
                ) from error
            log.warning("%s: the last line is half written (a killed run?) and is ignored", file)
            continue
        rows.setdefault(row["epoch"], row)
    return [rows[epoch] for epoch in sorted(rows)]


def _numbers(row: Any) -> Row:
    """The numbers of a row: null is NaN; text and nested values, of which there is no mean, are left out."""
    if not isinstance(row, Mapping) or not isinstance(row.get("epoch"), int | float):
        raise ValueError('no number under "epoch"')
    values = {key: math.nan if value is None else value for key, value in row.items()}
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def best_epoch(rows: Sequence[Row], metric: str, best: str, folder: Path) -> float:
    """The epoch of the validation rows with the best metric, the first of equal ones, among those that compete.

    Raises:
        ValueError: no row has the metric; names the file below ``folder``, the seed's.
    """
    key = _metric_key(rows[0], folder) if metric == "auto" else metric
    rows = _competing(rows)
    values = np.array([row.get(key, math.nan) for row in rows], dtype=float)
    if np.isnan(values).all():
        raise ValueError(
            f"{folder / 'val' / 'stats.json'}: no value of metric {key!r}, found the keys {sorted(rows[0])}; "
            "name one of them as the metric"
        )
    return rows[int(np.nanargmax(values if best == "argmax" else -values))]["epoch"]


def _competing(rows: Sequence[Row]) -> Sequence[Row]:
    """Rows of EM iterations; without any, those at which all models of the run were there (the most parameters)."""
    all_models = max(row.get("params", 0) for row in rows)
    return [row for row in rows if row.get("em_iteration", 0) >= 1] or [
        row for row in rows if not row.get("params", 0) < all_models
    ]


def _metric_key(row: Row, folder: Path) -> str:
    for key in ("auc", "accuracy"):
        if key in row:
            return key
    raise ValueError(
        f"{folder / 'val' / 'stats.json'}: metric 'auto' means auc or accuracy, but found only the keys "
        f"{sorted(row)}; name one of them as the metric"
    )


def row_at(rows: Sequence[Row], epoch: float, folder: Path) -> Row:
    """The row of that epoch; the last one where there is none, with a warning for other splits than ``test``."""
    for row in rows:
        if row["epoch"] == epoch:
            return row
    if folder.name != "test":  # a killed run: Lightning logs validation before training
        log.warning("%s: no row of epoch %d, the best on validation; its last row is taken", folder, epoch)
    return rows[-1]


def _by_epoch(rows_of_seeds: Sequence[Sequence[Row]], digits: int) -> list[Row]:
    epochs = sorted({row["epoch"] for rows in rows_of_seeds for row in rows})
    return [
        _mean_and_std([row for rows in rows_of_seeds for row in rows if row["epoch"] == epoch], digits)
        for epoch in epochs
    ]


def _mean_and_std(rows: Sequence[Row], digits: int) -> Row:
    result = {"epoch": rows[0]["epoch"]}
    for key in dict.fromkeys(key for row in rows for key in row if key != "epoch"):
        values = np.array([row[key] for row in rows if key in row], dtype=float)
        with np.errstate(invalid="ignore"):
            result[key] = float(np.mean(values).round(digits))
            result[f"{key}_std"] = float(np.std(values).round(digits))
    return result


def _write_lines(file: Path, rows: Sequence[Row]) -> None:
    with atomic_write(file, "w") as handle:
        for row in rows:
            # Not strict JSON: the NaN of a run that diverged stays NaN, as GraphGym writes and reads it.
            json.dump(row, handle)
            handle.write("\n")


def _replace_folder(folder: Path, make: Callable[[Path], None]) -> None:
    """Fill a temporary sibling by ``make``, then let it replace ``folder``; jobs at once take turns."""
    new, old = (folder.parent / f".{folder.name}.{name}" for name in ("part", "old"))
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if old.exists() and not folder.exists():  # killed between the two renames below
            old.rename(folder)
        for rest in (new, old):
            shutil.rmtree(rest, ignore_errors=True)
        try:
            new.mkdir()
            make(new)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def aggregate_summaries(dir: Path) -> list[AggregateRow]:
    """Mean and unbiased standard deviation of each method over the seeds' ``summary.json``.

    Written as ``summary.json`` beside the seed folders, not inside ``agg``: GraphGym's `agg_batch` takes
    everything in there for a split. A seed without a summary (unfinished) is left out with a warning.

    Raises:
        ValueError: no seed has a summary, or one is damaged; names the file.
    """
    rows: list[SummaryRow] = []
    for folder in _seed_folders(dir).values():
        if (folder / "summary.json").is_file():
            rows += read_summary(folder / "summary.json")
        else:
            log.warning("%s: no summary.json (unfinished?); the seed is left out", folder)
    if not rows:
        raise _no_seed(dir, "summary.json")
    result = [
        _aggregate_method([row for row in rows if row.method == method])
        for method in in_order(row.method for row in rows)
    ]
    write_json(dir / "summary.json", [asdict(row) for row in result])
    return result


def read_summary(file: Path) -> list[SummaryRow]:
    """The rows of a seed's ``summary.json``.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return [SummaryRow(**row) for row in read_json(file)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); start that seed's run again to have it rewritten") from error


def _aggregate_method(rows: Sequence[SummaryRow]) -> AggregateRow:
    valid, test = [row.valid for row in rows], [row.test for row in rows]
    return AggregateRow(
        method=rows[0].method,
        seeds=len(rows),
        valid_mean=statistics.fmean(valid),
        valid_std=_unbiased_std(valid),
        test_mean=statistics.fmean(test),
        test_std=_unbiased_std(test),
        params=max(row.params for row in rows),
        seconds_mean=statistics.fmean(row.seconds for row in rows),
        peak_memory_mb=max(row.peak_memory_mb for row in rows),
    )


def _unbiased_std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def print_aggregate(rows: Sequence[AggregateRow], title: str, console: Console | None = None) -> None:
    """Print one line per method: validation and test score in % as mean ± std, and what it costs.

    The number of seeds has a column where it is not the same for all.
    """
    differ = len({row.seeds for row in rows}) > 1
    numbers = [*(["seeds"] if differ else []), "valid %", "test %", "params", "seconds", "peak MB"]
    table = new_table(title, ["method"], numbers)
    for row in rows:
        table.add_row(
            row.method,
            *([str(row.seeds)] if differ else []),
            _percent(row.valid_mean, row.valid_std),
            _percent(row.test_mean, row.test_std),
            f"{row.params:,}",
            f"{row.seconds_mean:,.0f}",
            f"{row.peak_memory_mb:,.0f}",
        )
    (console or default_console()).print(table)


def _percent(mean: float, std: float | None) -> str:
    return f"{100 * mean:.2f}" if std is None else f"{100 * mean:.2f} ± {100 * std:.2f}"
