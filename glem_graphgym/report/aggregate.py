"""Results over seeds: GraphGym's ``agg/`` folder, test split included, and every method as mean ± std.

Follows torch_geometric/graphgym/utils/agg_runs.py, whose `agg_batch` reads the files written here. Also handles what
GraphGym drops or fails on: the test split, seeds with different numbers of epochs, the half-written line that a killed
run leaves, a missing tensorboardX.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console

from glem_graphgym.files import atomic_write, replace_folder, write_json
from glem_graphgym.report.epochs import SPLITS, EpochRow, best_epoch, log, read_rows, row_at, seed_folders
from glem_graphgym.report.experiments import Row, over_seeds, percent, read_summary
from glem_graphgym.report.stats import default_console, heading, new_table
from glem_graphgym.scores import METRIC, hides_test


class Aggregate(NamedTuple):
    """Content of an ``agg/`` folder; a split that no seed has is in neither dict."""

    seeds: list[int]  # those with validation rows, ascending
    stats: dict[str, list[EpochRow]]  # by split, a row per epoch
    best: dict[str, EpochRow]  # by split, the mean and std of the seeds' rows of best validation


def aggregate_seeds(
    dir: Path, metric: str = "auto", best: str = "argmax", digits: int = 4, tensorboard: bool = False
) -> Aggregate:
    """Write ``agg/<split>/stats.json`` and ``agg/<split>/best.json`` over seeds, of our runs or of GraphGym's own.

    ``stats.json`` has a row per epoch: the mean and, as ``<key>_std``, the population standard deviation of each
    number over the seeds that have that epoch. ``best.json`` has the same numbers over each seed's row of its
    `best_epoch`, or its last row if that epoch is missing (GraphGym evaluates the test split once, under another
    epoch); its ``epoch`` is the lowest seed's. An older ``agg`` is replaced when the new one is complete.

    Args:
        dir: folder with one folder per seed, named by the seed; other folders are skipped.
        metric, best: as `best_epoch`.
        digits: decimals kept.

    Raises:
        ValueError: validation rows or the metric are missing, or a line is damaged; names the file.
    """
    if best not in ("argmax", "argmin"):
        raise ValueError(f"metric_agg is {best!r}, expected 'argmax' or 'argmin'")
    runs = _read_runs(dir)
    epochs = {seed: best_epoch(rows["val"], metric, best, dir / str(seed)) for seed, rows in runs.items()}
    aggregate = Aggregate(list(runs), {}, {})
    for split in SPLITS:
        rows_by_seed = {seed: rows[split] for seed, rows in runs.items() if rows[split]}
        if rows_by_seed:
            best_rows = [row_at(rows, epochs[seed], dir / str(seed) / split) for seed, rows in rows_by_seed.items()]
            all_rows = sorted((row for rows in rows_by_seed.values() for row in rows), key=itemgetter("epoch"))
            epoch_groups = [list(rows) for _, rows in itertools.groupby(all_rows, itemgetter("epoch"))]
            aggregate.stats[split] = [_mean_and_std(rows, digits) for rows in epoch_groups]
            aggregate.best[split] = _mean_and_std(best_rows, digits)

    def write(folder: Path) -> None:
        for split in aggregate.stats:
            _write_lines(folder / split / "stats.json", aggregate.stats[split])
            _write_lines(folder / split / "best.json", [aggregate.best[split]])
        if tensorboard:
            _write_tensorboard(folder, aggregate.stats)

    replace_folder(dir / "agg", write)
    return aggregate


def _no_seed_error(dir: Path, missing_file: str) -> ValueError:
    entries = sorted(entry.name for entry in dir.iterdir())[:10]
    return ValueError(
        f"{dir}: no seed folder (named by an integer) with {missing_file}, found {entries}; "
        "give the folder of one experiment, of which at least one seed has run"
    )


def _read_runs(dir: Path) -> dict[int, dict[str, list[EpochRow]]]:
    """Rows by seed (ascending) and split; an empty list for a split that was not written."""
    runs = {}
    for seed, folder in seed_folders(dir).items():
        rows = {split: read_rows(folder / split / "stats.json") for split in SPLITS}
        if rows["val"]:
            runs[seed] = rows
        else:
            log.warning("%s: no rows in val/stats.json; seed %d is left out", folder, seed)
    if not runs:
        raise _no_seed_error(dir, "val/stats.json")
    return runs


def _mean_and_std(rows: Sequence[EpochRow], digits: int) -> EpochRow:
    result = {"epoch": rows[0]["epoch"]}
    for key in dict.fromkeys(key for row in rows for key in row if key != "epoch"):
        values = np.array([row[key] for row in rows if key in row], dtype=float)
        with np.errstate(invalid="ignore"):
            result[key] = float(np.mean(values).round(digits))
            result[f"{key}_std"] = float(np.std(values).round(digits))
    return result


def _write_lines(file: Path, rows: Sequence[EpochRow]) -> None:
    with atomic_write(file, "w") as handle:
        # Not strict JSON: the NaN of a run that diverged stays NaN, as GraphGym writes and reads it.
        handle.writelines(json.dumps(row) + "\n" for row in rows)


def _write_tensorboard(folder: Path, stats: Mapping[str, Sequence[EpochRow]]) -> None:
    """Write each split's rows as TensorBoard scalars, in a blind folder without the test split's.

    Any failure of the optional package is only a warning.
    """
    try:
        from tensorboardX import SummaryWriter

        for split, rows in stats.items():
            if split == "test" and hides_test(folder):
                continue
            with SummaryWriter(str(folder / split)) as writer:
                for row in rows:
                    for key, value in row.items():
                        writer.add_scalar(key, value, row["epoch"])
    except Exception as error:
        log.warning("no TensorBoard events written (%r); pip install tensorboardX, or turn them off", error)


def aggregate_summaries(dir: Path) -> list[Row]:
    """Aggregate each method over the seeds' ``summary.json``; also write ``summary.json`` beside the seed folders.

    It is not inside ``agg``, where GraphGym's `agg_batch` reads every entry as a split. A seed without a summary
    (unfinished) is left out with a warning.

    Raises:
        ValueError: no seed has a summary, or one is damaged; names the file.
    """
    summary_rows = []
    for seed, folder in seed_folders(dir).items():
        try:
            summary_rows += [{"seed": seed, **row} for row in read_summary(folder / "summary.json")]
        except LookupError:
            log.warning("%s: no summary.json (unfinished?); the seed is left out", folder)
    if not summary_rows:
        raise _no_seed_error(dir, "summary.json")
    rows = over_seeds(pd.DataFrame(summary_rows))
    records = [
        {
            "method": row.method, "seeds": row.runs, **row.valid.columns("valid"), **row.test.columns("test"),
            "params": row.params, "seconds_mean": row.seconds, "peak_memory_mb": row.peak_memory_mb,
            **{key: value for name, spread in row.further.items() for key, value in spread.columns(name).items()},
        }
        for row in rows
    ]  # fmt: skip
    write_json(dir / "summary.json", records)
    return rows


def print_aggregate(
    rows: Sequence[Row], title: str, metric: str = METRIC, console: Console | None = None, *, blind: bool = False
) -> None:
    """Print one line per method: scores in % as mean ± std, costs, and the number of seeds if methods differ in it.

    Args:
        blind: hide test scores.
    """
    seeds_differ = len({row.runs for row in rows}) > 1
    scores = [heading(split, metric) for split in ("valid", "test")]
    number_headings = [*["seeds"] * seeds_differ, *scores, "params", "seconds", "peak MB"]
    cells = [
        [row.method, *[str(row.runs)] * seeds_differ, percent(row.valid), "hidden" if blind else percent(row.test),
         *(f"{cost:,.0f}" for cost in (row.params, row.seconds, row.peak_memory_mb))]
        for row in rows
    ]  # fmt: skip
    (console or default_console()).print(new_table(title, ["method"], number_headings, cells))
