"""What a run wrote (``stages/<ii>_<name>/stage.json``) as GraphGym's stats rows, a summary, and tables."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from glem_graphgym.files import atomic_write, read_json, write_json

METHODS = ("LM", "GNN", "Cascade", "Joint", "GLEM-LM", "GLEM-GNN")
MODELS = ("LM", "GNN")
# What a stage's record holds beside scores and costs.
DIAGNOSTICS = {
    "o_q": "Objective O(q) of the E-step over all nodes, in nats; higher is better.",
    "o_phi": "Objective O(φ) of the M-step over all nodes, in nats; higher is better.",
    "entropy_q": "Mean entropy of the language model's predictions on unlabelled nodes, in nats; 0: it is sure.",
    "agreement": "Share 0-1 of the unlabelled nodes for which LM and GNN predict the same class.",
    "pseudo_accuracy_valid": "Share 0-1 of right pseudo-labels, on the validation nodes among the candidates.",
    "pseudo_candidates": "Nodes that may get a pseudo-label, after glem.confidence.",
    "ensemble_weight_lm": "Weight 0-1 of the LM in the ensemble, chosen on validation.",
    "steps": "Optimizer steps of joint training.",
    "texts_per_step": "Texts that a step of joint training encodes, the mean.",
    "tokens_per_step": "Tokens of these texts, the mean.",
    "most_texts_at_once": "The most texts that joint training encoded together.",
    "train_seconds_per_epoch": "Seconds per epoch of joint training, without validation.",
}
NO_MODEL = "none"
LOG_WIDTH = 200
SPLIT_OF_FOLDER = {"train": "train", "val": "valid", "test": "test"}  # GraphGym's folder -> our split


@dataclass(frozen=True)
class Stage:
    """One finished stage of a run: one model fitted once.

    Attributes:
        index: place in the run, from 0.
        name: what the stage is called in the run, e.g. ``"lm_gold"``.
        model: kind of model that was fitted, ``"LM"`` or ``"GNN"``; ``"none"`` where predictions were combined.
        method: row of the summary that it competes for, e.g. ``"GLEM-GNN"``.
        em_iteration: EM iteration, 0 before the first.
        seconds: wall-clock time of this stage alone.
        peak_memory_mb: highest memory during this stage, in MB.
        params: parameters of the model that was fitted.
        lr: base learning rate.
        epochs: epochs trained.
        best_epoch: epoch whose weights were kept (may be a fraction, in epochs).
        scores: for each of ``train``, ``valid``, ``test``: the metric (share 0-1) and ``loss``.
        diagnostics: how the EM objective moved; empty for a stage outside EM.
    """

    index: int
    name: str
    model: str
    method: str
    em_iteration: int
    seconds: float
    peak_memory_mb: float
    params: int
    lr: float
    epochs: float
    best_epoch: float
    scores: dict[str, dict[str, float]]
    diagnostics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SummaryRow:
    """The result of one method in one run.

    Attributes:
        method: one of `METHODS`, or a name of the run's own.
        valid, test: score at the stage with the best validation score, a share 0-1.
        params: parameters of every kind of model (LM, GNN) trained up to that stage; each kind counts once.
        seconds: wall-clock time from the start of the run to the end of that stage.
        peak_memory_mb: highest memory from the start of the run to the end of that stage, in MB.
    """

    method: str
    valid: float
    test: float
    params: int
    seconds: float
    peak_memory_mb: float


def read_stages(run_dir: Path) -> list[Stage]:
    """The finished stages of a run by index; a folder without ``stage.json`` is unfinished and left out.

    Where ``run.json`` lists the ``stages`` that the last command asked for, others in the folder are left out too.

    Raises:
        ValueError: a ``stage.json`` is damaged, or two stages have the same index; names the files.
    """
    # Hidden siblings are what a killed run left of a folder that it was still writing.
    files = sorted((run_dir / "stages").glob("[0-9]*_*/stage.json"))
    noted = run_dir / "run.json"
    wanted = read_json(noted).get("stages") if noted.exists() else None
    files = [file for file in files if wanted is None or file.parent.name in wanted]
    by_index: dict[int, Path] = {}
    stages = []
    for file in files:
        stage = _read_stage(file)
        if stage.index in by_index:
            raise ValueError(
                f'{file} and {by_index[stage.index]} both say "index": {stage.index}, but an index '
                "is for one stage; delete the folder of the one that does not belong to this run"
            )
        by_index[stage.index] = file
        stages.append(stage)
    return sorted(stages, key=lambda stage: stage.index)


def _read_stage(file: Path) -> Stage:
    try:
        found = read_json(file)
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, found {type(found).__name__}")
        if found["model"] not in (*MODELS, NO_MODEL):
            raise ValueError(f'"model" is {found["model"]!r}, expected one of {[*MODELS, NO_MODEL]}')
        return Stage(
            index=int(found["index"]),
            name=str(found["name"]),
            model=found["model"],
            method=str(found["method"]),
            em_iteration=int(found["em_iteration"]),
            seconds=_finite(found["seconds"]),
            peak_memory_mb=_finite(found["peak_memory_mb"]),
            params=int(found["params"]),
            lr=_finite(found["lr"]),
            epochs=_finite(found["epochs"]),
            best_epoch=_finite(found["best_epoch"]),
            scores={split: _finite_values(found["scores"][split]) for split in SPLIT_OF_FOLDER.values()},
            # A diagnostic that is not defined for a stage (a mean over no nodes) is stored as null.
            diagnostics=_finite_values({k: v for k, v in found["diagnostics"].items() if v is not None}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{file} is damaged ({reason}); delete its folder and start the run again to redo that stage"
        ) from error


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected finite numbers, found {number}")
    return number


def _finite_values(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: _finite(value) for key, value in values.items()}


def read_metric(run_dir: Path) -> str:
    """Name of the metric that the run was scored by, from its ``run.json``.

    Raises:
        ValueError: ``run.json`` is missing, damaged or names no metric.
    """
    file = run_dir / "run.json"
    try:
        metric = read_json(file)["metric"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{file}: expected an object with the run\'s "metric" ({error!r}); is this the folder of a run?'
        ) from error
    return str(metric)


def write_stats(run_dir: Path, digits: int = 4, tensorboard: bool = False) -> None:
    """Write ``train/``, ``val/`` and ``test/stats.json`` in GraphGym's format: JSON lines, one row a stage.

    Every row of every split has the same keys (train also has GraphGym's ``eta``, always 0): ``epoch`` is the
    stage's index; ``loss`` and the metric are the stage's own; ``lm_*`` and ``gnn_*`` are those of the latest
    LM and GNN up to that stage, 0.0 before the first of its kind; ``time_iter`` is the stage's seconds; ``params``
    are those of every kind of model (LM, GNN) trained up to that stage, each kind counted once, as in the summary.
    Values are rounded to ``digits`` decimals, except ``lr``, of which nothing would be left. Each file is
    replaced as a whole: of rows with the same epoch GraphGym's reader keeps the first, so appending would
    keep what is outdated.

    Raises:
        ValueError: there is no finished stage, one is damaged, or one lacks the run's metric.
    """
    metric = read_metric(run_dir)
    stages = _require_stages(run_dir)
    rows_of = {folder: _stats_rows(stages, split, metric, digits) for folder, split in SPLIT_OF_FOLDER.items()}
    for folder, rows in rows_of.items():
        with atomic_write(run_dir / folder / "stats.json", "w") as file:
            for row in rows:
                json.dump(row, file, allow_nan=False)
                file.write("\n")
    if tensorboard:
        write_tensorboard(run_dir, rows_of)


def write_tensorboard(folder: Path, stats: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Write each split's rows as TensorBoard scalars into ``folder/<split>``, in place of older events there.

    Without a working tensorboardX nothing is written but a warning.
    """
    # An optional package can fail in any way (another protobuf, say); the rows matter more than its events.
    try:
        from tensorboardX import SummaryWriter

        for split, rows in stats.items():
            for old in (folder / split).glob("events.out.tfevents.*"):
                old.unlink()
            with SummaryWriter(str(folder / split)) as writer:
                for row in rows:
                    for key, value in row.items():
                        writer.add_scalar(key, value, row["epoch"])
    except Exception as error:
        logging.warning("no TensorBoard events written (%r); pip install tensorboardX, or turn them off", error)


def _require_stages(run_dir: Path) -> list[Stage]:
    stages = read_stages(run_dir)
    if not stages:
        raise ValueError(f"{run_dir / 'stages'}: no finished stage (<ii>_<name>/stage.json); nothing to report yet")
    return stages


def _stats_rows(stages: Sequence[Stage], split: str, metric: str, digits: int) -> list[dict[str, float]]:
    latest = dict.fromkeys(MODELS, (0.0, 0.0))
    rows = []
    for place, stage in enumerate(stages):
        score, loss = _score(stage, split, metric), _score(stage, split, "loss")
        if stage.model in latest:
            latest[stage.model] = (score, loss)
        row: dict[str, float] = {
            "epoch": stage.index,
            **({"eta": 0.0} if split == "train" else {}),
            "loss": loss,
            "lr": stage.lr,
            "params": _params_of(stages[: place + 1]),
            "time_iter": stage.seconds,
            metric: score,
            "em_iteration": stage.em_iteration,
            "peak_memory_mb": stage.peak_memory_mb,
        }
        for model, (model_score, model_loss) in latest.items():
            row |= {f"{model.lower()}_{metric}": model_score, f"{model.lower()}_loss": model_loss}
        rows.append({key: value if key == "lr" else round(value, digits) for key, value in row.items()})
    return rows


def _score(stage: Stage, split: str, metric: str) -> float:
    try:
        return stage.scores[split][metric]
    except KeyError:
        raise ValueError(
            f'stage {stage.index} ({stage.name}) has no "{metric}" on {split}, found '
            f"{sorted(stage.scores[split])}; every stage of a run must be scored by the run's metric"
        ) from None


def in_order(methods: Iterable[str]) -> list[str]:
    """Each method once, those of `METHODS` first and in that order, others after them as they came."""
    found = list(dict.fromkeys(methods))
    return [name for name in METHODS if name in found] + [name for name in found if name not in METHODS]


def summary_rows(stages: Sequence[Stage], metric: str = "accuracy") -> list[SummaryRow]:
    """One row a method, in the order of `METHODS`, at the method's stage with the best validation score.

    The first of several equal ones counts. Test scores play no part in the choice.

    Raises:
        ValueError: a stage was not scored by ``metric``.
    """
    best: dict[str, int] = {}
    for place, stage in enumerate(stages):
        held = best.get(stage.method)
        if held is None or _score(stage, "valid", metric) > _score(stages[held], "valid", metric):
            best[stage.method] = place
    return [_summary_row(stages[: best[method] + 1], metric) for method in in_order(best)]


def _summary_row(stages: Sequence[Stage], metric: str) -> SummaryRow:
    """The row of the last of ``stages``, which are all those that it took to get there."""
    chosen = stages[-1]
    return SummaryRow(
        method=chosen.method,
        valid=_score(chosen, "valid", metric),
        test=_score(chosen, "test", metric),
        params=_params_of(stages),
        seconds=sum(stage.seconds for stage in stages),
        peak_memory_mb=max(stage.peak_memory_mb for stage in stages),
    )


def _params_of(stages: Sequence[Stage]) -> int:
    """Parameters of the latest model of each kind."""
    return sum({stage.model: stage.params for stage in stages}.values())


def write_summary(run_dir: Path) -> list[SummaryRow]:
    """Write ``summary.json``, a list of the run's `summary_rows`, and return them.

    Raises:
        ValueError: there is no finished stage, one is damaged, or one lacks the run's metric.
    """
    rows = summary_rows(_require_stages(run_dir), read_metric(run_dir))
    write_json(run_dir / "summary.json", [asdict(row) for row in rows])
    return rows


def print_summary(rows: Sequence[SummaryRow], title: str, console: Console | None = None) -> None:
    """Print one line a method: validation and test score in %, parameters, seconds and peak memory."""
    table = new_table(title, ["method"], ["valid %", "test %", "params", "seconds", "peak memory MB"])
    for row in rows:
        costs = (f"{row.params:,}", f"{row.seconds:,.1f}", f"{row.peak_memory_mb:,.0f}")
        table.add_row(row.method, f"{100 * row.valid:.2f}", f"{100 * row.test:.2f}", *costs)
    (console or default_console()).print(table)


def print_progress(stages: Sequence[Stage], metric: str = "accuracy", console: Console | None = None) -> None:
    """Print one line a stage, ruled off by EM iteration, with a column for each diagnostic reported."""
    diagnostics = list(dict.fromkeys(key for stage in stages for key in stage.diagnostics))
    table = new_table(
        "Stages and their diagnostics", ["EM", "stage", "method"], ["valid %", "best epoch", "seconds", *diagnostics]
    )
    for place, stage in enumerate(stages):
        values = [_shown(stage.diagnostics[key]) if key in stage.diagnostics else "" for key in diagnostics]
        valid = f"{100 * _score(stage, 'valid', metric):.2f}"
        if place and stage.em_iteration != stages[place - 1].em_iteration:
            table.add_section()
        training = (f"{stage.best_epoch:g}", f"{stage.seconds:,.1f}")
        table.add_row(str(stage.em_iteration), stage.name, stage.method, valid, *training, *values)
    (console or default_console()).print(table)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4f}"


def new_table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table with left-aligned columns of text, then right-aligned columns of numbers."""
    table = Table(title=title)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        # Folded, not cut off with an ellipsis: a number that lost its end is a wrong number.
        table.add_column(name, justify="right", overflow="fold")
    return table


def default_console() -> Console:
    """Standard output; in a log file there is no edge, so tables are as wide as they need to be."""
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)


def finish_run(run_dir: Path, digits: int = 4, tensorboard: bool = False) -> list[SummaryRow]:
    """Write a run's stats and summary, and note in its ``run.json`` that it is finished; returns the summary.

    Raises:
        ValueError: there is no finished stage, one is damaged, or one lacks the run's metric.
    """
    write_stats(run_dir, digits, tensorboard)
    rows = write_summary(run_dir)
    write_json(run_dir / "run.json", {**read_json(run_dir / "run.json"), "finished": True})
    return rows


def print_run(run_dir: Path, title: str, console: Console | None = None) -> None:
    """Print a finished run: one line per method."""
    print_summary(summary_rows(read_stages(run_dir), read_metric(run_dir)), title, console)


def log_run(run_dir: Path, log: Path) -> None:
    """Append to a log file what would not fit a terminal: the stages with their diagnostics, and the summary."""
    stages, metric = read_stages(run_dir), read_metric(run_dir)
    with log.open("a", encoding="utf-8") as file:
        console = Console(file=file, width=LOG_WIDTH)
        print_progress(stages, metric, console)
        print_summary(summary_rows(stages, metric), "", console)


def print_predictions(run_dir: Path, console: Console | None = None) -> None:
    """Print the scores of ``predictions.json``: a finished run's models, evaluated again from their weights."""
    scores = read_json(run_dir / "predictions.json")
    metric = read_metric(run_dir)
    table = new_table(f"seed {run_dir.name}, predicted again", ["method"], ["valid %", "test %"])
    for method, splits in scores.items():
        table.add_row(method, *(f"{100 * splits[split][metric]:.2f}" for split in ("valid", "test")))
    (console or default_console()).print(table)


def drop_sanity_row(stats_file: Path) -> None:
    """Drop the first row of a stock GraphGym run's validation stats, where Lightning's sanity check stands as epoch 0.

    GraphGym's reader keeps the first row of an epoch, which would be the untrained model's.
    """
    lines = stats_file.read_text(encoding="utf-8").splitlines(keepends=True)
    epochs = [json.loads(line)["epoch"] for line in lines]
    if len(epochs) > 1 and epochs[0] == epochs[1]:
        with atomic_write(stats_file, "w") as file:
            file.writelines(lines[1:])
