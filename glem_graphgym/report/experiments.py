"""Finished runs read from disk: experiments, their seeds, and one frame of results with a row per seed and method."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from glem_graphgym.files import fingerprint, read_json, reading
from glem_graphgym.renamed import in_new_names
from glem_graphgym.report.epochs import best_epoch, read_rows, row_at, seed_folders
from glem_graphgym.report.reliability import Description, read_descriptions, read_test_predictions
from glem_graphgym.report.significance import Difference, Outcomes
from glem_graphgym.report.stats import COSTS, FURTHER, SUMMARY, Stage, in_order, read_stages
from glem_graphgym.scores import METRIC

STOCK = "standard"  # GraphGym's own training
STOCK_METHOD = "GraphGym"
STOCK_CAVEAT = "GraphGym evaluates test once, with the last weights rather than those of the best validation epoch"
OURS = "this run"  # source of a row that is not published
SPLITS = ("valid", "test")
IDENTITY = ("mode", "dataset", "fingerprint", "metric", "config")

T = TypeVar("T")


class NoRunsError(ValueError):
    """The folders hold no finished run; the message names them."""


def results(dirs: Sequence[Path]) -> pd.DataFrame:
    """Results of finished runs in ``dirs`` (see `read_experiments`), a row per seed and method.

    Columns; scores and costs are NaN where not recorded:
        ``experiment``, ``mode``, ``dataset``, ``fingerprint``, ``metric``, ``config``: as in `Experiment`; ``seed``.
        ``method``: one of `METHODS`, a name of the run's own, or GraphGym.
        ``valid``, ``test``: the metric (a share 0-1) at the chosen stage or epoch, that of best validation.
        ``valid_accuracy``, ``test_accuracy``, …: each of `METRICS` at the chosen stage.
        ``params``: summed over the kinds of model (LM, GNN) trained up to the chosen stage, each kind once.
        ``seconds``, ``peak_memory_mb``, ``texts`` (trained on), ``energy_j`` (processor): up to the chosen stage.
    """
    frames = []
    for experiment in read_experiments(dirs)[0]:
        identity = {name: getattr(experiment, name) for name in IDENTITY}
        metric_columns = {f"{split}_{experiment.metric}": experiment.results[split] for split in SPLITS}
        frames.append(experiment.results.assign(experiment=experiment.name, **identity, **metric_columns))
    columns = ["experiment", *IDENTITY, "seed", *SUMMARY, *COSTS, *FURTHER]
    dtypes = dict.fromkeys(("seconds", "peak_memory_mb", *COSTS, *FURTHER), float)
    return pd.concat(frames, ignore_index=True).reindex(columns=columns).astype(dtypes)


@dataclass(frozen=True, eq=False)
class Experiment:
    """Runs that differ in their seed alone."""

    name: str  # of the folder, with as many parent folders as make it unique
    mode: str  # train.mode
    dataset: str
    fingerprint: str | None  # hash of the graph's content; None where the runs did not record it
    metric: str  # selects stages and is shown
    # "group.key" -> value of every setting that a result can depend on, except the seed. glem.em_iterations is a list
    # if seeds differ in it.
    settings: dict[str, Any]
    config: str  # 8 hexadecimal digits of a hash of mode, settings and the files that they name
    em_iterations: list[int]  # distinct numbers that the seeds were run with, ascending; empty without EM
    folder: Path  # contains a folder per seed
    runs: dict[int, dict[str, Any]]  # seed, ascending -> its run.json
    results: pd.DataFrame  # a row per seed and method: "seed", `stats.SUMMARY`, COSTS and FURTHER as far as recorded
    # A row per seed and stage: fields of `Stage`, its folder, "valid" and "test" score. Empty for GraphGym's training.
    stages: pd.DataFrame
    _cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def versions(self) -> dict[str, list[str]]:
        """Package -> distinct versions that the runs recorded, sorted."""
        versions: dict[str, set[str]] = {}
        for run_json in self.runs.values():
            for name, text in run_json.get("versions", {}).items():
                versions.setdefault(name, set()).update(text.split(", "))
        return {name: sorted(versions[name]) for name in sorted(versions)}

    @property
    def language_model(self) -> str:
        """Model, family, parameters, pooling, prompt, precision and attention on one line; empty if not recorded."""
        card: dict[str, Any] = next(
            filter(None, (run_json.get("language_model") for run_json in self.runs.values())), {}
        )
        return ", ".join(f"{name} {_in_words(value)}" for name, value in card.items() if value not in ("", "{text}"))

    def stage_folders(self, method: str) -> dict[int, Path]:
        """Seed -> folder of the stage behind a method's result; empty for stock GraphGym."""
        method_stages = self.stages[self.stages["method"] == method]
        best = method_stages.sort_values("valid", ascending=False, kind="stable").drop_duplicates("seed")
        return dict(best.sort_values("seed")[["seed", "folder"]].values.tolist())

    def _read_per_seed(self, method: str, read: Callable[[Path], T | None]) -> dict[int, T]:
        """Seed -> result of ``read`` on its folder of `stage_folders`, unless None; cached."""
        if (method, read) not in self._cache:
            contents = {seed: read(folder) for seed, folder in self.stage_folders(method).items()}
            self._cache[method, read] = {seed: content for seed, content in contents.items() if content is not None}
        return self._cache[method, read]

    def outcomes(self, method: str) -> Outcomes:
        """Seed -> true and predicted classes of the test nodes, for seeds whose run recorded them."""
        return self._read_per_seed(method, read_test_predictions)

    def descriptions(self, method: str, split: str) -> list[Description]:
        """Result of `describe_predictions` on a split, per seed whose run recorded it."""
        return [descriptions[split] for descriptions in self._read_per_seed(method, read_descriptions).values()]

    def blinded(self) -> Experiment:
        """Copy of this experiment with test scores replaced by NaN."""
        hidden = dict.fromkeys((name for name in map(str, self.results) if name.startswith("test")), math.nan)
        return replace(self, results=self.results.assign(**hidden), stages=self.stages.assign(test=math.nan))

    def results_of(self, method: str) -> pd.DataFrame:
        """The results of one method, indexed by seed."""
        return self.results[self.results["method"] == method].set_index("seed")


def read_experiments(dirs: Sequence[Path]) -> tuple[list[Experiment], list[str]]:
    """The experiments in ``dirs``, and a note on each run that was left out.

    Args:
        dirs: each the folder of one experiment (with a folder per seed) or of several experiments (a grid).

    Raises:
        NoRunsError: a folder holds no run, or no run is finished.
        ValueError: seeds of one experiment differ in more than the seed, or a file is damaged; names the folder or
            file.
    """
    folders = list(dict.fromkeys(folder.resolve() for dir in dirs for folder in experiment_folders(dir)))
    notes: list[str] = []
    candidates = [_read_experiment(folder, name, notes) for folder, name in zip(folders, _names(folders), strict=True)]
    experiments = [candidate for candidate in candidates if candidate]
    if not experiments:
        raise NoRunsError(f"{', '.join(map(str, dirs))}: no finished run; {'; '.join(notes)}")
    return experiments, notes


def experiment_folders(dir: Path) -> list[Path]:
    """``dir`` if it has seed folders with ``run.json``, else its subfolders that have; NoRunsError if none has."""
    if not dir.is_dir():
        raise ValueError(f"{dir}: no such folder; expected results/<experiment> or a folder of experiments")
    if seed_folders(dir, "run.json"):
        return [dir]
    folders = [  # hidden ones are unfinished
        path
        for path in sorted(dir.iterdir())
        if path.is_dir() and not path.name.startswith(".") and seed_folders(path, "run.json")
    ]
    if not folders:
        hint = "this is the folder of one seed, give the one above it" if (dir / "run.json").is_file() else ""
        raise NoRunsError(
            f"{dir}: no run found; {hint or 'expected <seed>/run.json or <experiment>/<seed>/run.json below it'}"
        )
    return folders


def _names(folders: Sequence[Path]) -> list[str]:
    """Names of the folders, made unique by as many parent folders as necessary."""
    names, depth = [folder.name for folder in folders], 1
    while len(set(names)) < len(names):
        depth += 1
        pairs = list(zip(names, folders, strict=True))
        names = ["/".join(folder.parts[-depth:]) if names.count(name) > 1 else name for name, folder in pairs]
    return names


def _read_experiment(folder: Path, name: str, notes: list[str]) -> Experiment | None:
    runs: dict[int, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    stages: list[dict[str, Any]] = []
    for seed, run in seed_folders(folder, "run.json").items():
        remedy = "start that run anew with --overwrite"
        with reading(run / "run.json", remedy):
            run_json = read_json(run / "run.json", remedy)
            run_json["mode"], run_json["dataset"], _seedless(run_json)
        if (recorded_seed := run_json.get("seed", seed)) != seed:
            raise ValueError(
                f"{run} holds a run of seed {recorded_seed}, expected that of its name; rename the folder, "
                "or move it away: a copy would count as a further seed"
            )
        metric = run_json.get("metric", METRIC)
        if not run_json.get("finished"):
            notes.append(f"{name}, seed {seed}: unfinished, left out")
            continue
        stock = run_json["mode"] == STOCK
        try:
            summary = _stock_row(run, run_json) if stock else read_summary(run / "summary.json")
        except LookupError as error:
            notes.append(f"{name}, seed {seed}: left out: {error.args[0]}")
            continue
        runs[seed] = run_json
        rows += [{"seed": seed, **row} for row in summary]
        for stage in read_stages(run) if not stock else ():
            scores = {split: stage.score(split, metric) for split in SPLITS}
            stages.append({"seed": seed, **vars(stage), "folder": run / "stages" / stage.folder, **scores})
    if not runs:
        return None
    first_run = next(iter(runs.values()))
    for seed, run_json in runs.items():
        _require_same_settings(folder, first_run, run_json, seed)
    # run.json keeps em_iterations apart from its settings, since a finished run may be continued with more.
    recorded_numbers = {run_json.get("em_iterations") for run_json in runs.values() if first_run["mode"] != STOCK}
    em_iterations = sorted(number for number in recorded_numbers if number is not None)
    kept_apart: dict[str, Any] = {}
    if em_iterations:
        kept_apart["glem.em_iterations"] = em_iterations[0] if len(em_iterations) == 1 else em_iterations
    metric = first_run.get("metric", METRIC)
    if metric != METRIC:
        kept_apart["metric_best"] = metric
    recorded_settings = {key: value for key, value in first_run["settings"].items() if key != "seed"} | kept_apart
    config = fingerprint(first_run["mode"], recorded_settings, first_run.get("files", {}))[:8]
    settings = _seedless(first_run) | kept_apart
    if "search_trials" in first_run:
        settings["glem.search_trials"] = first_run["search_trials"]
    graph = (first_run["dataset"], first_run.get("fingerprint"), metric)
    columns = ["seed", *(field.name for field in fields(Stage)), "folder", *SPLITS]
    frames = pd.DataFrame(rows), pd.DataFrame(stages, columns=columns)
    return Experiment(name, first_run["mode"], *graph, settings, config, em_iterations, folder, runs, *frames)


def _in_words(value: Any) -> str:
    if isinstance(value, int):
        return f"{value / 1e6:,.1f} M" if value >= 1e5 else f"{value:,}"
    return repr(value) if "{text}" in value else value


def _seedless(run_json: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the seed, under today's names, so that runs of earlier versions compare with current ones."""
    return in_new_names({key: value for key, value in run_json["settings"].items() if key != "seed"})


def _require_same_settings(folder: Path, first_run: Mapping[str, Any], run_json: Mapping[str, Any], seed: int) -> None:
    first_settings, settings = _seedless(first_run), _seedless(run_json)
    changed = [
        key for key in ("mode", "dataset", "fingerprint", "metric", "files") if first_run.get(key) != run_json.get(key)
    ]
    changed += [key for key in sorted({*first_settings, *settings}) if first_settings.get(key) != settings.get(key)]
    if changed:
        raise ValueError(
            f"{folder}: seed {seed} differs from the first seed in {', '.join(changed[:5])}; seeds of one "
            "experiment share everything but the seed, so move one of them to a folder of its own"
        )


def read_summary(file: Path) -> list[dict[str, Any]]:
    """Rows of a seed's ``summary.json`` (see `stats.summary_rows`); LookupError if there is no such file."""
    if not file.is_file():
        raise LookupError("no summary.json")
    remedy = "start that seed's run again to have it rewritten"
    with reading(file, remedy):
        rows = [
            {key: row[key] for key in (*SUMMARY, *COSTS, *FURTHER) if key in SUMMARY or key in row}
            for row in read_json(file, remedy)
        ]
        if not rows or any(isinstance(value, str) != (key == "method") for row in rows for key, value in row.items()):
            raise ValueError("expected a row of numbers per method")
        if len({row["method"] for row in rows}) < len(rows):
            raise ValueError("a method has several rows, expected one")
        return rows


def _stock_row(folder: Path, run_json: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Summary row of GraphGym's own training: scores at the best validation epoch, else test of the last test row."""
    rows = {split: read_rows(folder / split / "stats.json") for split in ("val", "test")}
    if not all(rows.values()) or not all(METRIC in row for split_rows in rows.values() for row in split_rows):
        raise LookupError(f"no {METRIC} in val/stats.json and test/stats.json")
    epoch = best_epoch(rows["val"], METRIC, "argmax", folder)
    valid, test = (row_at(rows[split], epoch, folder / split) for split in ("val", "test"))
    costs = (int(valid.get("params", 0)), run_json.get("seconds"), run_json.get("peak_memory_mb"))
    return [dict(zip(SUMMARY, (STOCK_METHOD, valid[METRIC], test[METRIC], *costs), strict=True))]


@dataclass(frozen=True)
class Spread:
    """Mean over seeds and unbiased standard deviation (n - 1, as OGB leaderboards ask)."""

    mean: float  # NaN where hidden, not defined, or where a published number could not be checked
    std: float | None = None  # None for one seed, or where unknown

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        numbers = list(map(float, values))
        if not numbers or any(map(math.isnan, numbers)):
            return cls(math.nan)
        return cls(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)

    @property
    def ends(self) -> tuple[float, float]:
        return self.mean - (self.std or 0), self.mean + (self.std or 0)

    def columns(self, name: str) -> dict[str, Any]:
        return {f"{name}_mean": self.mean, f"{name}_std": self.std}


def percent(spread: Spread | None) -> str:
    """``82.65 ± 0.21``: mean and unbiased standard deviation in %, as far as known."""
    if spread is None or math.isnan(spread.mean):
        return ""
    return f"{100 * spread.mean:.2f}" + ("" if spread.std is None else f" ± {100 * spread.std:.2f}")


@dataclass(frozen=True)
class Row:
    """One method over seeds: a result of an experiment, or a published one."""

    method: str  # method, valid and test as in `results`
    runs: int  # number of seeds
    valid: Spread
    test: Spread
    seeds: tuple[int, ...] = ()  # ascending; empty if published
    params: int | None = None  # maximum over seeds; this and the costs below are None if published or not recorded
    seconds: float | None = None  # mean over seeds
    peak_memory_mb: float | None = None  # maximum over seeds
    texts: float | None = None  # mean over seeds
    energy_j: float | None = None  # mean over seeds
    name: str = ""  # of the row in its table, in words
    source: str = OURS  # or where the row was published
    experiment: str = ""  # experiment (its name), config and em_iterations as in `Experiment`
    config: str = ""
    em_iterations: tuple[int, ...] = ()
    caveat: str = ""  # what a reader must know about the row
    # Further experiments with identical scores on every seed, e.g. of the LM that a cascade and GLEM start from. They
    # share one row, named after the simplest train mode: counting a result twice would weaken every significance test.
    same_in: tuple[str, ...] = ()
    rank: int | None = None  # from 1, by mean validation score; None if published
    to_best: Difference | None = None  # to the first row; None for the first row itself
    to_non_glem: Difference | None = None  # to the first row that is not GLEM; None for that row itself
    further: dict[str, Spread] = field(default_factory=dict, hash=False)  # column of `stats.FURTHER` -> score

    @property
    def published(self) -> bool:
        return self.source != OURS


def over_seeds(frame: pd.DataFrame) -> list[Row]:
    """A row per method out of `Experiment.results`, in the order of `METHODS`."""
    rows = []
    for method in in_order(frame["method"]):
        method_rows = frame[frame["method"] == method]
        recorded = {name: method_rows[name].dropna().tolist() for name in method_rows if name != "method"}
        complete = {name: numbers for name, numbers in recorded.items() if len(numbers) == len(method_rows)}
        seconds = recorded["seconds"]
        row_fields: dict[str, Any] = {
            "seeds": tuple(recorded["seed"]),
            "params": int(max(recorded["params"])),
            "seconds": statistics.fmean(seconds) if seconds else None,
            "peak_memory_mb": max(recorded["peak_memory_mb"], default=None),
            **{cost: statistics.fmean(complete[cost]) for cost in COSTS if cost in complete},
            "further": {name: Spread.of(complete[name]) for name in FURTHER if name in complete},
        }
        rows.append(
            Row(method, len(method_rows), Spread.of(method_rows["valid"]), Spread.of(method_rows["test"]), **row_fields)
        )
    return rows
