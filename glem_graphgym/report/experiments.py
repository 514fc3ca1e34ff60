"""Finished runs read back from disk: experiments, their seeds, and the result of each method for each seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glem_graphgym.files import fingerprint, read_json
from glem_graphgym.report.aggregate import SEED, best_epoch, read_rows, read_summary, row_at
from glem_graphgym.report.stats import Stage, read_stages

STOCK = "standard"  # GraphGym's own training
STOCK_METHOD = "GraphGym"
METRIC = "accuracy"
STOCK_CAVEAT = "GraphGym evaluates test once, with the last weights rather than those of the best validation epoch"


@dataclass(frozen=True)
class Result:
    """The result of one method in one run.

    Attributes:
        valid, test: a share 0-1, at the stage or epoch with the best validation score.
        params: parameters of all stages (LM and GNN).
        seconds, peak_memory_mb: from the start of the run to that stage; None where not recorded.
    """

    valid: float
    test: float
    params: int
    seconds: float | None
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Run:
    """One finished seed of an experiment.

    Attributes:
        results: by method.
        stages: the finished stages; empty for stock GraphGym.
        versions: of the packages that the run was made with, as far as its ``run.json`` says; ``"1.3.5, 1.3.6"`` where
            it went on under another version than it was begun with.
        em_iterations: EM iterations that were asked for last; None where there is no EM, or it was not recorded.
    """

    seed: int
    folder: Path
    results: dict[str, Result]
    stages: list[Stage]
    versions: dict[str, str] = field(default_factory=dict)
    em_iterations: int | None = None


@dataclass(frozen=True)
class Experiment:
    """Runs that differ in their seed alone.

    Attributes:
        name: the folder's, with its parent's before it where two folders share a name.
        mode: ``train.mode``.
        dataset: name of the graph.
        fingerprint: of the graph's content; None where the runs did not record it.
        metric: what selects and what is shown.
        settings: ``group.key`` -> value of every setting that a result can depend on, without the seed. A list of
            values for ``glem.em_iterations`` where seeds differ in it.
        config: 8 hexadecimal digits of a hash of mode, settings and the files that they name.
        runs: by seed, ascending.
    """

    name: str
    mode: str
    dataset: str
    fingerprint: str | None
    metric: str
    settings: dict[str, Any]
    config: str
    runs: dict[int, Run]

    @property
    def em_iterations(self) -> list[int]:
        """The numbers of EM iterations that were asked for, over seeds; one mostly, none where there is no EM."""
        return _em_iterations(self.runs.values())

    def versions(self, package: str) -> list[str]:
        """The versions of a package that the runs were made with, as far as they recorded it."""
        noted = [run.versions[package].split(", ") for run in self.runs.values() if package in run.versions]
        return sorted({version for versions in noted for version in versions})


def network_of(experiment: Experiment) -> str:
    """What the GNN is called; for GraphGym's own network the layer's name."""
    network = str(experiment.settings.get("model.type", ""))
    layer = str(experiment.settings.get("gnn.layer_type", network))
    return layer if network == "gnn" else network.removeprefix("glem_")


def read_experiments(dirs: Sequence[Path]) -> tuple[list[Experiment], list[str]]:
    """The experiments in ``dirs`` and what had to be left out of them, in words.

    Args:
        dirs: each the folder of an experiment (with a folder for each seed) or of several experiments (a grid).

    Raises:
        ValueError: a folder holds no run, no run is finished, seeds of one experiment differ in more than the
            seed, or a file is damaged; names the folder or file.
    """
    folders = list(dict.fromkeys(folder.resolve() for dir in dirs for folder in experiment_folders(dir)))
    experiments: list[Experiment] = []
    notes: list[str] = []
    for folder, name in zip(folders, _names(folders), strict=True):
        experiment = _read_experiment(folder, name, notes)
        if experiment:
            experiments.append(experiment)
    if not experiments:
        raise ValueError(f"{', '.join(map(str, dirs))}: no finished run; {'; '.join(notes)}")
    return experiments, notes


def experiment_folders(dir: Path) -> list[Path]:
    """``dir`` itself where it has seed folders with ``run.json``, else those of its folders that have.

    Raises:
        ValueError: there is none.
    """
    if not dir.is_dir():
        raise ValueError(f"{dir}: no such folder; expected results/<experiment> or a folder of experiments")
    if _seeds(dir):
        return [dir]
    found = [path for path in sorted(dir.iterdir()) if path.is_dir() and _seeds(path)]
    if not found:
        hint = "this is the folder of one seed, give the one above it" if (dir / "run.json").is_file() else ""
        raise ValueError(
            f"{dir}: no run found; {hint or 'expected <seed>/run.json or <experiment>/<seed>/run.json below it'}"
        )
    return found


def _seeds(folder: Path) -> list[Path]:
    found = [path.parent for path in folder.glob("*/run.json") if SEED.fullmatch(path.parent.name)]
    return sorted(found, key=lambda path: int(path.name))


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, made unique by as many of the folders above as it takes."""
    names = [folder.name for folder in folders]
    for depth in range(2, 2 + max((len(folder.parts) for folder in folders), default=0)):
        taken = {name for name in names if names.count(name) > 1}
        if not taken:
            break
        pairs = zip(names, folders, strict=True)
        names = ["/".join(folder.parts[-depth:]) if name in taken else name for name, folder in pairs]
    return names


def _read_experiment(folder: Path, name: str, notes: list[str]) -> Experiment | None:
    noted: dict[int, dict[str, Any]] = {}
    runs: dict[int, Run] = {}
    for seed_folder in _seeds(folder):
        about = _read_about(seed_folder / "run.json")
        seed = int(seed_folder.name)
        if not about.get("finished"):
            notes.append(f"{name}, seed {seed}: unfinished, left out")
            continue
        try:
            runs[seed] = _read_run(seed, seed_folder, about)
        except LookupError as error:
            notes.append(f"{name}, seed {seed}: left out: {error.args[0]}")
            continue
        noted[seed] = about
    if not runs:
        return None
    first = next(iter(noted.values()))
    for seed, about in noted.items():
        _require_same(folder, first, about, seed)
    settings = _seedless(first)
    if asked := _em_iterations(runs.values()):  # no setting in run.json, since a finished run may go on for more
        settings["glem.em_iterations"] = asked[0] if len(asked) == 1 else asked
    return Experiment(
        name=name,
        mode=first["mode"],
        dataset=first["dataset"],
        fingerprint=first.get("fingerprint"),
        metric=first.get("metric", METRIC),
        settings=settings,
        config=fingerprint(first["mode"], settings, first.get("files", {}))[:8],
        runs=runs,
    )


def _read_about(file: Path) -> dict[str, Any]:
    try:
        about = read_json(file)
        about["mode"], about["dataset"], about["settings"].items()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); start that run anew with --overwrite") from error
    return about


def _seedless(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in about["settings"].items() if key != "seed"}


def _em_iterations(runs: Iterable[Run]) -> list[int]:
    return sorted({run.em_iterations for run in runs if run.em_iterations is not None})


def _require_same(folder: Path, first: Mapping[str, Any], other: Mapping[str, Any], seed: int) -> None:
    a, b = _seedless(first), _seedless(other)
    changed = [key for key in ("mode", "dataset", "fingerprint", "files") if first.get(key) != other.get(key)]
    changed += [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    if changed:
        raise ValueError(
            f"{folder}: seed {seed} differs from the first seed in {', '.join(changed[:5])}; seeds of one "
            "experiment share everything but the seed, so move one of them to a folder of its own"
        )


def _read_run(seed: int, folder: Path, about: Mapping[str, Any]) -> Run:
    versions = about.get("versions", {})
    if about["mode"] == STOCK:
        return Run(seed, folder, {STOCK_METHOD: _stock_result(folder, about)}, [], versions)
    file = folder / "summary.json"
    if not file.is_file():
        raise LookupError("no summary.json")
    results = {
        row.method: Result(row.valid, row.test, row.params, row.seconds, row.peak_memory_mb)
        for row in read_summary(file)
    }
    return Run(seed, folder, results, read_stages(folder), versions, about.get("em_iterations"))


def _stock_result(folder: Path, about: Mapping[str, Any]) -> Result:
    """Validation at its best epoch; test from the same epoch where there is one, else GraphGym's one test row."""
    rows = {split: read_rows(folder / split / "stats.json") for split in ("val", "test")}
    if not all(rows.values()) or not all(METRIC in row for part in rows.values() for row in part):
        raise LookupError(f"no {METRIC} in val/stats.json and test/stats.json")
    epoch = best_epoch(rows["val"], METRIC, "argmax", folder)
    valid = row_at(rows["val"], epoch, folder / "val")
    test = row_at(rows["test"], epoch, folder / "test")
    seconds, memory = about.get("seconds"), about.get("peak_memory_mb")
    return Result(valid[METRIC], test[METRIC], int(valid.get("params", 0)), seconds, memory)


def best_stage(run: Run, method: str, metric: str) -> Stage | None:
    """The stage behind a method's result: the first one with its best validation score."""
    stages = [stage for stage in run.stages if stage.method == method]
    return max(stages, key=lambda stage: stage.scores["valid"][metric], default=None)


def stage_folder(run: Run, stage: Stage) -> Path:
    return run.folder / "stages" / f"{stage.index:02d}_{stage.name}"
