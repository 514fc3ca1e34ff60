"""GraphGym's rows per epoch (``<seed>/<split>/stats.json``), and the epoch that validation chooses."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glem_graphgym.scores import METRIC

SPLITS = ("train", "val", "test")  # GraphGym's names of the folders
SEED = re.compile(r"0|-?[1-9][0-9]*")

EpochRow = dict[str, float]
log = logging.getLogger(__name__)


def seed_folders(dir: Path, holding: str = "") -> dict[int, Path]:
    """Seed, ascending -> folder of that name in ``dir`` that contains ``holding``; ValueError if ``dir`` is missing."""
    if not dir.is_dir():
        raise ValueError(f"{dir}: no such folder; expected the folder of one experiment, with a folder for each seed")
    named = [path for path in dir.iterdir() if SEED.fullmatch(path.name) and path.is_dir()]
    folders = {int(path.name): path for path in named if (path / holding).exists()}
    return dict(sorted(folders.items()))


def read_rows(file: Path) -> list[EpochRow]:
    """Rows of a stats file by epoch; the first of several with the same epoch, as GraphGym reads them.

    Empty if there is no file. A last line that a killed run left half written is ignored with a warning.

    Raises:
        ValueError: a line before the last is damaged; names the file and the line.
    """
    if not file.is_file():
        return []
    rows: dict[float, EpochRow] = {}
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


def _numbers(row: Any) -> EpochRow:
    """Numbers of a row: null becomes NaN; text and nested values, which have no mean, are dropped."""
    if not isinstance(row, Mapping) or not isinstance(row.get("epoch"), int | float):
        raise ValueError('no number under "epoch"')
    values = {key: math.nan if value is None else value for key, value in row.items()}
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def best_epoch(rows: Sequence[EpochRow], metric: str, best: str, folder: Path) -> float:
    """Epoch with the best validation metric among the rows that compete; the first of equal ones.

    Rows of EM iterations (``em_iteration`` from 1) compete: the LM and the GNN on gold labels are baselines, to which
    GLEM must be able to lose. Without EM, the rows with the most parameters compete, so not those of a cascade's LM.

    Args:
        metric: key of the rows; ``"auto"`` is ``auc`` if GraphGym's own training has it, else ``accuracy``.
        best: ``"argmax"`` or ``"argmin"``.
        folder: folder of the seed, named in the ValueError if no row has the metric.
    """
    stock = "em_iteration" not in rows[0]
    key = metric if metric != "auto" else "auc" if stock and "auc" in rows[0] else METRIC
    all_models = max(row.get("params", 0) for row in rows)
    competing = [row for row in rows if row.get("em_iteration", 0) >= 1]
    competing = competing or [row for row in rows if not row.get("params", 0) < all_models]
    values = np.array([row.get(key, math.nan) for row in competing], dtype=float)
    if np.isnan(values).all():
        meaning = ", which means auc or accuracy" if metric == "auto" else ""
        raise ValueError(
            f"{folder / 'val' / 'stats.json'}: no value of metric {metric!r}{meaning}, found the keys "
            f"{sorted(competing[0])}; name one of them as the metric"
        )
    return competing[int(np.nanargmax(values if best == "argmax" else -values))]["epoch"]


def row_at(rows: Sequence[EpochRow], epoch: float, folder: Path) -> EpochRow:
    """Row of an epoch; if missing the last row, with a warning unless ``folder`` is named ``test``."""
    for row in rows:
        if row["epoch"] == epoch:
            return row
    if folder.name != "test":  # killed in between: Lightning logs validation before training
        log.warning("%s: no row of epoch %d, the best on validation; its last row is taken", folder, epoch)
    return rows[-1]
