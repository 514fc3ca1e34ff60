"""The dry run: what memory, disk and time a run will need, and whether this machine has them, before any training.

Sizes of files follow from the graph and the models; memory and time are measured on a small part of every stage, in a
subprocess (`calibration`). Only temporary files and, if missing, the dataset are written.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from yacs.config import CfgNode

from glem_graphgym.build.memory_check import gnn_remedy, lm_remedy, stage_remedy
from glem_graphgym.build.run_folder import RunError
from glem_graphgym.config import ConfigError, dump_config
from glem_graphgym.disk import free_bytes, nearest_existing_parent, size_text
from glem_graphgym.files import read_json, write_json
from glem_graphgym.memory import MB, available_bytes
from glem_graphgym.modes import MODES
from glem_graphgym.plan.calibration import STATIC
from glem_graphgym.processes import PARENT
from glem_graphgym.progress import time_text
from glem_graphgym.report.stats import default_console, new_table

LOG = "log"  # file with the subprocess's output


@dataclass(frozen=True)
class Planned:
    """A stage of a run, as `calibration` recorded it.

    Attributes:
        folder: under ``stages/``; ``static`` for the untuned LM's embeddings, which are made before all stages.
        cost: key of its cost in ``costs``; empty if it trains nothing.
        done: finished already.
        model: see `StageKey`.
        arrays: name -> shape of its predictions, float16.
        weights: bytes.
        shared: folder under ``dataset.dir`` of a stage that runs share, else None.
    """

    folder: str
    cost: str
    done: bool
    model: str = "LM"
    arrays: dict[str, list[int]] = field(default_factory=dict)
    weights: int = 0
    shared: str | None = None


@dataclass(frozen=True)
class Stored:
    """A file or folder that a run writes.

    Attributes:
        done: exists already.
        temporary: the run deletes it again.
        run: run folder that a temporary item belongs to: seeds run in turn, so only the largest seed's total counts.
    """

    what: str
    path: str
    bytes: int
    done: bool = False
    temporary: bool = False
    run: str = ""


@dataclass(frozen=True)
class Verdict:
    """Bytes of one resource that a run needs at its peak, and bytes that are available.

    Attributes:
        resource: its name, for display.
        stage: the stage that needs most; empty if the needs of all stages add up.
        remedy: advice if it does not suffice: keys and values to set.
    """

    resource: str
    needed: int
    available: int
    stage: str
    remedy: str

    @property
    def fits(self) -> bool:
        return self.needed <= self.available


@dataclass(frozen=True)
class Preflight:
    """Result of a dry run.

    Attributes:
        measured: the answer of `calibration`.
        stages: of all seeds, in order.
        stored: of all seeds.
        verdicts: one per resource.
    """

    measured: dict[str, Any]
    stages: list[Planned]
    stored: list[Stored]
    verdicts: list[Verdict]

    @property
    def fits(self) -> bool:
        return all(verdict.fits for verdict in self.verdicts)

    def seconds(self) -> float:
        """Total time of all unfinished stages."""
        costs = self.measured["costs"]
        return sum(costs[stage.cost]["seconds"] for stage in self.stages if not stage.done and stage.cost in costs)


def examine(cfg: CfgNode, run_dirs: Sequence[Path], overwrite: bool = False) -> Preflight:
    """Examine what the runs of ``cfg`` in ``run_dirs`` (one per seed) need, and whether the machine has it.

    Raises:
        ConfigError: ``train.mode`` has no stages.
        RunError: the first folder holds another run, configuration or data cannot be used, or the trial of a stage did
            not fit into memory.
    """
    if cfg.train.mode not in MODES:
        raise ConfigError(
            f"train.mode is '{cfg.train.mode}', but --dry_run knows what the stages of {', '.join(MODES)} need"
        )
    measured = measure(cfg, run_dirs[0], len(run_dirs) if overwrite else 0)
    plans = {run_dir: planned_stages(measured, run_dir, overwrite) for run_dir in run_dirs}
    first_plan = plans[run_dirs[0]]
    for index, stage in enumerate(first_plan):
        if stage.shared and Path(stage.shared).is_dir():  # the folder's name depends on the seed: this is the first's
            first_plan[index] = replace(stage, done=True)
    stages = [stage for plan in plans.values() for stage in plan]
    stored = common_files(measured)
    for run_dir, plan in plans.items():
        stored += run_files(measured, run_dir, plan)
    if STATIC in measured["costs"]:
        stages.insert(0, Planned(STATIC, STATIC, done=False))
    freed = {run_dir: _freed_bytes(run_dir) for run_dir in run_dirs} if overwrite else {}
    verdicts = [*disk_verdicts(cfg, stored, freed), *memory_verdicts(cfg, measured, stages)]
    return Preflight(measured, stages, stored, verdicts)


def planned_stages(measured: dict[str, Any], run_dir: Path, overwrite: bool = False) -> list[Planned]:
    """The recorded stages, each with whether it is done in the run folder."""
    files = [run_dir / "stages" / stage["folder"] / "stage.json" for stage in measured["stages"]]
    done = [file.exists() and not overwrite for file in files]
    return [Planned(**stage, done=is_done) for stage, is_done in zip(measured["stages"], done, strict=True)]


def measure(cfg: CfgNode, run_dir: Path, overwrite: int) -> dict[str, Any]:
    """The answer of `calibration`, run in a subprocess."""
    root = Path(__file__).resolve().parents[2]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory(prefix="glem-dry-run-") as name:
        folder = Path(name)
        dump_config(cfg, folder / "config.yaml")
        request = {"cfg": str(folder / "config.yaml"), "run_dir": str(run_dir), "overwrite": overwrite}
        command = [sys.executable, "-m", "glem_graphgym.plan.calibration"]
        terminal = os.dup(2)
        try:
            write_json(folder / "request.json", {**request, "terminal": terminal})
            with (folder / LOG).open("wb") as log:
                process = subprocess.run(
                    [*command, str(folder / "request.json"), str(folder / "answer.json")],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), PARENT: str(os.getpid())},
                    stdout=log,
                    stderr=log,
                    pass_fds=[terminal],
                )
        finally:
            os.close(terminal)
        if not (folder / "answer.json").exists():
            failure = f"was killed by signal {-process.returncode}, as happens when memory runs out"
            lines = [line for line in (folder / LOG).read_text(errors="replace").splitlines() if line.strip()]
            if process.returncode >= 0:
                failure = f"failed: {lines[-1] if lines else f'exit status {process.returncode}'}"
            raise RunError(f"the trial of this configuration {failure}; {lm_remedy(cfg)}, or {gnn_remedy(cfg)}")
        answer = read_json(folder / "answer.json")
    if "error" in answer:
        raise RunError(answer["error"])
    return answer


# ---- disk ---------------------------------------------------------------------------------------------------------


def common_files(measured: dict[str, Any]) -> list[Stored]:
    """Files under ``dataset.dir`` that all seeds share."""
    nodes, stored = measured["graph"]["nodes"], []
    tokens, static, hops = measured["tokens"], measured["static"], measured["hops"]
    if tokens:
        stored.append(Stored("tokens", tokens["folder"], tokens["bytes"], tokens["cached"]))
    if static:
        shape = f"float16 ({nodes:,}, {static['dim']})"
        size = 2 * nodes * static["dim"]
        stored.append(Stored(f"static embeddings, {shape}", static["folder"], size, static["cached"]))
    if hops:
        operators = hops["operators"]
        stored += [Stored("propagation operator", file["folder"], file["bytes"], file["cached"]) for file in operators]
        if hops["fixed"]:
            stored.append(Stored("hop features", hops["folder"], hops["bytes"], hops["cached"]))
    return stored


def run_files(measured: dict[str, Any], run_dir: Path, plan: Sequence[Planned]) -> list[Stored]:
    """Files that the stages of a run write, permanent and temporary ones."""
    stored = []

    def add_temporary(what: str, path: Path | str, size: int) -> None:
        if size:
            stored.append(Stored(what, str(path), size, temporary=True, run=str(run_dir)))

    for stage in plan:
        array_bytes = {
            f"{name} float16 ({rows:,}, {columns})": 2 * rows * columns
            for name, (rows, columns) in stage.arrays.items()
        }
        what = f"{stage.folder}: {', '.join(array_bytes)}"
        stored.append(Stored(what, str(run_dir / "stages" / stage.folder), sum(array_bytes.values()), stage.done))
    weight_bytes = {stage.folder: stage.weights for stage in plan if not stage.done}

    def unwritten(folders: Sequence[str]) -> tuple[int, int]:
        """Bytes and number of the stages' weights that are still to be written."""
        unwritten_bytes = [weight_bytes[folder] for folder in folders if folder in weight_bytes]
        return sum(unwritten_bytes), len(unwritten_bytes)

    kept_bytes, count = max(unwritten(course[-1]) for course in measured["courses"])
    peak_bytes = max(unwritten(folders)[0] for course in measured["courses"] for folders in course)
    if kept_bytes:
        stored.append(Stored(f"weights of {count} stages", str(run_dir / "stages"), kept_bytes))
    add_temporary("weights that are deleted again", run_dir / "stages", peak_bytes - kept_bytes)
    if any(stage.model == "GNN" and not stage.done for stage in plan):
        hops, working = measured["hops"], run_dir / "working"
        add_temporary("outputs of a GNN's layers", working, measured["layers"])
        if hops and not hops["fixed"]:  # feature hops are made first, then label hops beside them
            peak_bytes = hops["bytes"] + max(hops["temporary"], hops["labels"])
            add_temporary("hop features of one M-step", working, peak_bytes)
        elif hops:
            if not hops["cached"]:
                add_temporary("hop features, while they are made", hops["folder"], hops["temporary"])
            add_temporary("label hops of one M-step", working, hops["labels"])
    return stored


def disk_verdicts(cfg: CfgNode, stored: Sequence[Stored], freed: dict[Path, int]) -> list[Verdict]:
    """One per file system; space that ``--overwrite`` or an earlier seed's clean-up frees counts as available."""
    remedy = "set out_dir or dataset.dir to a place with more room"
    if cfg.glem.keep_weights == "all":
        remedy += ", or glem.keep_weights needed"
    groups: dict[int, list[Stored]] = {}
    for item in stored:
        groups.setdefault(nearest_existing_parent(Path(item.path)).stat().st_dev, []).append(item)
    verdicts = []
    for device, items in groups.items():
        parent = nearest_existing_parent(Path(items[0].path))
        freed_bytes = sum(size for path, size in freed.items() if nearest_existing_parent(path).stat().st_dev == device)
        needed = sum(item.bytes for item in items if not item.done and not item.temporary)
        temporary_by_run: Counter[str] = Counter()
        for item in items:
            temporary_by_run[item.run] += item.bytes * item.temporary
        needed += max(temporary_by_run.values())
        mount = next(
            folder for folder in (parent, *parent.parents) if os.path.ismount(folder) or folder.parent == folder
        )
        verdicts.append(Verdict(f"disk mounted at {mount}", needed, free_bytes(parent) + freed_bytes, "", remedy))
    return verdicts


def _freed_bytes(folder: Path) -> int:
    """Bytes that deleting a folder frees: a file with a second link (`glem.share_lm_gold`) stays on the disk."""
    stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


# ---- memory -------------------------------------------------------------------------------------------------------


def memory_verdicts(cfg: CfgNode, measured: dict[str, Any], stages: Sequence[Planned]) -> list[Verdict]:
    """Verdicts on memory and, if there is an accelerator, on its memory, for the stage that needs most.

    Memory counts all processes of the run on this machine; each has an accelerator of its own.
    """
    costs = measured["costs"]
    names = [stage.cost for stage in stages if not stage.done and stage.cost in costs]
    if not names:
        return []

    def verdict(resource: str, available: int, need: dict[str, float]) -> Verdict:
        stage = max(need, key=lambda name: need[name])
        return Verdict(resource, round(need[stage] * MB), available, stage, stage_remedy(cfg, costs[stage]["model"]))

    name = "memory" if measured["processes"] == 1 else f"memory of {measured['processes']} processes"
    verdicts = [verdict(name, available_bytes(), resident_of_all(measured, names))]
    if measured["accelerator"] == "cuda":
        accelerator = {name: costs[name]["accelerator_mb"] for name in names}
        verdicts.append(verdict("accelerator memory", torch.cuda.mem_get_info()[0], accelerator))
    return verdicts


def resident_of_all(measured: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Cost -> peak of resident memory, in MB, summed over a run's processes; ``names`` are the costs in stage order.

    Pages of memory-mapped files do not count, as the system can reclaim them. While rank 0 works alone, the others keep
    the memory that they have allocated before. The launcher adds its own program.
    """
    count, idle_mb, peaks = measured["processes"], measured["program_mb"], dict.fromkeys(names, 0.0)
    for name in names:
        cost = measured["costs"][name]
        process_mb = max(0.0, cost["resident_mb"] - cost["mapped_mb"])
        idle_mb = max(idle_mb, process_mb) if cost["data_parallel"] else idle_mb
        other_ranks_mb = (
            (count - 1) * (process_mb if cost["data_parallel"] else idle_mb) + measured["program_mb"]
            if count > 1
            else 0.0
        )
        peaks[name] = max(peaks[name], process_mb + other_ranks_mb)
    return peaks


# ---- display --------------------------------------------------------------------------------------------------------


def print_needs(preflight: Preflight, title: str, console: Console | None = None) -> None:
    """Print the result of `examine`: stages, files, one line per resource, and the time."""
    console = console or default_console()
    measured = preflight.measured
    _print_line(console, _texts_line(measured))
    console.print(_stages_table(title, preflight.stages, measured["costs"]))
    console.print(_files_table(preflight.stored))
    for verdict in preflight.verdicts:
        _print_line(console, verdict_line(verdict))
    at_most = ", at most, as epochs and iterations may end early"
    _print_line(console, f"time: about {time_text(preflight.seconds())} on this machine at its current load{at_most}")


def verdict_line(verdict: Verdict) -> str:
    """One line about a resource: bytes needed and free, and what to do if they do not suffice."""
    subject = f"{verdict.stage} " if verdict.stage else "the run "
    sizes = f"{subject}needs {size_text(verdict.needed)}, {size_text(verdict.available)} are free"
    if verdict.fits:
        return f"{verdict.resource}: fits; {sizes}"
    return f"{verdict.resource}: DOES NOT FIT; {sizes}; {verdict.remedy}"


def _texts_line(measured: dict[str, Any]) -> str:
    graph, tokens = measured["graph"], measured["tokens"]
    line = f"{graph['name']}: {graph['nodes']:,} nodes, {graph['edges']:,} undirected edges, {graph['classes']} classes"
    if tokens:
        qualifier = "" if tokens["cached"] else "about "
        line += f"; {qualifier}{tokens['total']:,} tokens in {graph['nodes']:,} texts"
    return line


def _stages_table(title: str, stages: Sequence[Planned], costs: dict[str, Any]) -> Any:
    accelerator = any(cost["accelerator_mb"] for cost in costs.values())
    numbers = ["texts trained on", "tokens", "memory", "of it files", *(["accelerator"] if accelerator else []), "time"]
    table = new_table(title, ["stage", ""], numbers)
    for stage in stages:
        cost = costs.get(stage.cost)
        if stage.done or cost is None:
            table.add_row(stage.folder, "is there already" if stage.done else "no training", *[""] * len(numbers))
            continue
        counts = (f"{cost[name]:,}" if cost[name] else "" for name in ("texts", "tokens"))
        sizes = [cost["resident_mb"], cost["mapped_mb"], *([cost["accelerator_mb"]] if accelerator else [])]
        memory = (size_text(size * MB) for size in sizes)
        table.add_row(stage.folder, "", *counts, *memory, time_text(cost["seconds"]))
    return table


def _files_table(stored: Sequence[Stored]) -> Any:
    table = new_table("Files", ["what", "where", ""], ["size"])
    for item in stored:
        note = "is there already" if item.done else "for a while" if item.temporary else ""
        table.add_row(item.what, item.path, note, size_text(item.bytes))
    return table


def _print_line(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
