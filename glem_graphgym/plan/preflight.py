"""What a run will need, and whether this machine has it: memory, disk and time, before anything is trained.

Sizes of files follow from the graph and the models; memory and time are measured on a small part of every stage, by a
process of its own (`calibration`). Nothing is written but temporary files and, where it is missing, the dataset.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from glem_graphgym.build.memory_check import gnn_remedy, joint_remedy, lm_remedy
from glem_graphgym.build.run_folder import RunError, names_of_stages
from glem_graphgym.config import ConfigError, dump_config
from glem_graphgym.disk import existing, free_bytes
from glem_graphgym.em.plan import FIRST_STAGES, kind_of
from glem_graphgym.files import read_json, write_json
from glem_graphgym.memory import available_bytes
from glem_graphgym.modes import UNTIL_PLATEAU
from glem_graphgym.processes import PARENT

MB = 1 << 20
JOINT_KINDS = ("joint",)
LM_KINDS = ("static", "lm_gold", "e_step")
GNN_KINDS = ("gnn_gold", "m_step")
KEPT_LMS = 4  # weights: of the first LM, the latest, the best, the best GNN's teacher
KEPT_GNNS = 1  # the best
LOG = "log"  # what the process that tries stages says


@dataclass(frozen=True)
class Planned:
    """A stage of a run.

    Attributes:
        folder: under ``stages/``; ``static`` for the embeddings of the untuned LM, which are made before them.
        kind: its name without the iteration.
        done: it is there already.
    """

    folder: str
    kind: str
    done: bool


@dataclass(frozen=True)
class Stored:
    """Something that a run writes.

    Attributes:
        done: it is there already.
        passing: the run removes it again.
        run: whose it is where it is ``passing``: of several seeds, which come one after the other, the largest counts.
    """

    what: str
    path: str
    bytes: int
    done: bool = False
    passing: bool = False
    run: str = ""


@dataclass(frozen=True)
class Verdict:
    """Of one resource: what is needed of it, at its peak, and what there is, in bytes.

    Attributes:
        resource: its name, for people.
        stage: the stage that needs most; empty where all need it together.
        remedy: what helps where it does not suffice: keys and their values.
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
    """What was found.

    Attributes:
        measured: the answer of `calibration`.
        stages: of all seeds, in their order.
        stored: of all seeds.
        verdicts: one a resource.
        at_most: the number of EM iterations is not known beforehand, and its bound was taken.
    """

    measured: dict[str, Any]
    stages: list[Planned]
    stored: list[Stored]
    verdicts: list[Verdict]
    at_most: bool

    @property
    def fits(self) -> bool:
        return all(verdict.fits for verdict in self.verdicts)

    def seconds(self) -> float:
        """Of all stages that are not there yet."""
        costs = self.measured["stages"]
        return sum(costs[stage.kind]["seconds"] for stage in self.stages if not stage.done and stage.kind in costs)


def examine(cfg: CfgNode, run_dirs: Sequence[Path], overwrite: bool = False) -> Preflight:
    """What the run that ``cfg`` describes needs, in each of ``run_dirs`` (one a seed), and whether it is there.

    Raises:
        ConfigError: ``train.mode`` has no stages.
        RunError: the first folder holds another run, the configuration or the data cannot be used, or what was
            tried did not fit into memory.
    """
    if cfg.train.mode not in FIRST_STAGES:
        raise ConfigError(
            f"train.mode is '{cfg.train.mode}', but --dry_run knows what the stages of {', '.join(FIRST_STAGES)} need"
        )
    plans = {run_dir: planned_stages(cfg, run_dir, overwrite) for run_dir in run_dirs}
    kinds = list(dict.fromkeys(stage.kind for plan in plans.values() for stage in plan))
    measured = measure(cfg, run_dirs[0], len(run_dirs) if overwrite else 0, kinds)
    if cfg.glem.share_lm_gold and Path(measured["shared_lm_gold"]).is_dir():
        plans[run_dirs[0]] = [
            Planned(stage.folder, stage.kind, stage.done or stage.kind == "lm_gold") for stage in plans[run_dirs[0]]
        ]
    stages = [stage for plan in plans.values() for stage in plan]
    stored = common_files(cfg, measured)
    for run_dir, plan in plans.items():
        stored += run_files(cfg, measured, run_dir, plan)
    if "static" in measured["stages"]:
        stages.insert(0, Planned("static", "static", done=False))
    freed = {run_dir: _size_of(run_dir) for run_dir in run_dirs} if overwrite else {}
    verdicts = [*disk_verdicts(cfg, stored, freed), *memory_verdicts(cfg, measured, stages)]
    return Preflight(measured, stages, stored, verdicts, cfg.glem.em_iterations == UNTIL_PLATEAU)


def planned_stages(cfg: CfgNode, run_dir: Path, overwrite: bool = False) -> list[Planned]:
    """The stages of ``train.mode`` in the order in which `em.loop` does them."""
    names = names_of_stages(cfg)
    folders = [f"{index:02d}_{name}" for index, name in enumerate(names)]
    return [
        Planned(
            folder=folder,
            kind=kind_of(name),
            done=not overwrite and (run_dir / "stages" / folder / "stage.json").exists(),
        )
        for name, folder in zip(names, folders, strict=True)
    ]


def measure(cfg: CfgNode, run_dir: Path, overwrite: int, kinds: Sequence[str]) -> dict[str, Any]:
    """What `calibration` answers, from a process of its own."""
    root = Path(__file__).resolve().parents[2]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory(prefix="glem-dry-run-") as name:
        folder = Path(name)
        dump_config(cfg, folder / "config.yaml")
        asked = {"cfg": str(folder / "config.yaml"), "run_dir": str(run_dir), "overwrite": overwrite}
        command = [sys.executable, "-m", "glem_graphgym.plan.calibration"]
        terminal = os.dup(2)
        try:
            write_json(folder / "request.json", {**asked, "kinds": list(kinds), "terminal": terminal})
            with (folder / LOG).open("wb") as log:
                done = subprocess.run(
                    [*command, str(folder / "request.json"), str(folder / "answer.json")],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), PARENT: str(os.getpid())},
                    stdout=log,
                    stderr=log,
                    pass_fds=[terminal],
                )
        finally:
            os.close(terminal)
        if not (folder / "answer.json").exists():
            how = f"was killed by signal {-done.returncode}, as happens when memory runs out"
            lines = [line for line in (folder / LOG).read_text(errors="replace").splitlines() if line.strip()]
            if done.returncode >= 0:
                how = f"failed: {lines[-1] if lines else f'exit status {done.returncode}'}"
            raise RunError(f"the trial of this configuration {how}; {lm_remedy(cfg)}, or {gnn_remedy(cfg)}")
        found = read_json(folder / "answer.json")
    if "error" in found:
        raise RunError(found["error"])
    return found


# ---- disk ---------------------------------------------------------------------------------------------------------


def common_files(cfg: CfgNode, measured: dict[str, Any]) -> list[Stored]:
    """What runs share under ``dataset.dir``."""
    nodes, stored = measured["graph"]["nodes"], []
    tokens, static, hops = measured["tokens"], measured["static"], measured["hops"]
    if tokens:
        stored.append(Stored("tokens", tokens["folder"], tokens["bytes"], tokens["known"]))
    if static:
        shape = f"float16 ({nodes:,}, {static['dim']})"
        size = 2 * nodes * static["dim"]
        stored.append(Stored(f"static embeddings, {shape}", static["folder"], size, static["known"]))
    if hops:
        operators = hops["operators"]
        stored += [Stored("propagation operator", one["folder"], one["bytes"], one["known"]) for one in operators]
        if hops["fixed"]:
            stored.append(Stored("hop features", hops["folder"], hops["bytes"], hops["known"]))
    return stored


def run_files(cfg: CfgNode, measured: dict[str, Any], run_dir: Path, plan: Sequence[Planned]) -> list[Stored]:
    """What the stages of a run write into its folder."""
    nodes, classes, dim = measured["graph"]["nodes"], measured["graph"]["classes"], measured["dim"]
    stored = []

    def passing(what: str, place: Path | str, size: int) -> None:
        if size:
            stored.append(Stored(what, str(place), size, passing=True, run=str(run_dir)))

    for stage in plan:
        parts = {f"logits float16 ({nodes:,}, {classes})": 2 * nodes * classes}
        if stage.kind in (*LM_KINDS, *JOINT_KINDS):
            parts[f"embeddings float16 ({nodes:,}, {dim})"] = 2 * nodes * dim
        what = f"{stage.folder}: {', '.join(parts)}"
        stored.append(Stored(what, str(run_dir / "stages" / stage.folder), sum(parts.values()), stage.done))
    for model, kinds, kept, size in (
        ("LM", LM_KINDS, KEPT_LMS, measured["lm_weights"]),
        ("GNN", GNN_KINDS, KEPT_GNNS, measured["gnn_weights"]),
        ("LM and GNN", JOINT_KINDS, 1, measured["joint_weights"]),
    ):
        missing = sum(stage.kind in kinds and not stage.done for stage in plan)
        count = missing if cfg.glem.keep_weights == "all" else min(missing, kept)
        if count:
            stored.append(Stored(f"weights of {count} × {model}", str(run_dir / "stages"), count * size))
        if count < missing:  # one that is not yet known to be forgotten
            passing(f"one more of the {model}", run_dir / "stages", size)
    hops, working = measured["hops"], run_dir / "working"
    if any(stage.kind in (*GNN_KINDS, *JOINT_KINDS) and not stage.done for stage in plan):
        passing("outputs of a GNN's layers", working, measured["layers"])
    if hops and any(stage.kind in GNN_KINDS and not stage.done for stage in plan):
        if not hops["fixed"]:  # first hops of features are made, then, beside these, those of labels
            most = hops["bytes"] + max(hops["beside"], hops["labels"])
            passing("hop features of one M-step", working, most)
        else:
            passing("hop features, while they are made", hops["folder"], 0 if hops["known"] else hops["beside"])
            passing("label hops of one M-step", working, hops["labels"])
    return stored


def disk_verdicts(cfg: CfgNode, stored: Sequence[Stored], freed: dict[Path, int]) -> list[Verdict]:
    """One a file system; what ``--overwrite`` deletes first is free, what a seed removes is free for the next."""
    groups: dict[int, list[Stored]] = {}
    for item in stored:
        groups.setdefault(existing(Path(item.path)).stat().st_dev, []).append(item)
    verdicts = []
    for device, items in groups.items():
        place = existing(Path(items[0].path))
        more = sum(size for path, size in freed.items() if existing(path).stat().st_dev == device)
        needed = sum(item.bytes for item in items if not item.done and not item.passing)
        of_runs: Counter[str] = Counter()
        for item in items:
            of_runs[item.run] += item.bytes * item.passing
        needed += max(of_runs.values())
        mount = next(folder for folder in (place, *place.parents) if os.path.ismount(folder) or folder.parent == folder)
        verdicts.append(Verdict(f"disk mounted at {mount}", needed, free_bytes(place) + more, "", disk_remedy(cfg)))
    return verdicts


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# ---- memory -------------------------------------------------------------------------------------------------------


def memory_verdicts(cfg: CfgNode, measured: dict[str, Any], stages: Sequence[Planned]) -> list[Verdict]:
    """Memory and, where there is one, the accelerator's; of the stage that needs most.

    Memory is that of all processes of the run on this machine, each of which has an accelerator of its own.
    """
    costs = measured["stages"]
    kinds = [stage.kind for stage in stages if not stage.done and stage.kind in costs]
    if not kinds:
        return []

    def verdict(resource: str, available: int, need: dict[str, float]) -> Verdict:
        most = max(need, key=lambda kind: need[kind])
        remedy = joint_remedy if most in JOINT_KINDS else lm_remedy if most in LM_KINDS else gnn_remedy
        return Verdict(resource, round(need[most] * MB), available, most, remedy(cfg))

    name = "memory" if measured["processes"] == 1 else f"memory of {measured['processes']} processes"
    verdicts = [verdict(name, available_bytes(), resident_of_all(measured, kinds))]
    if measured["accelerator"] == "cuda":
        accelerator = {kind: costs[kind]["accelerator_mb"] for kind in kinds}
        verdicts.append(verdict("accelerator memory", torch.cuda.mem_get_info()[0], accelerator))
    return verdicts


def resident_of_all(measured: dict[str, Any], kinds: Sequence[str]) -> dict[str, float]:
    """MB that all processes of a run have resident at the peak of each kind of stage; ``kinds`` in their order.

    Pages of files that are mapped into memory are not needed: the system takes them back. Processes that wait while
    the first one works alone keep what they had taken before, and the one that has started them stays as it was.
    """
    count, held, found = measured["processes"], measured["program_mb"], dict.fromkeys(kinds, 0.0)
    for kind in kinds:
        cost = measured["stages"][kind]
        own = max(0.0, cost["resident_mb"] - cost["mapped_mb"])
        together = kind in measured["data_parallel"]
        held = max(held, own) if together else held
        others = (count - 1) * (own if together else held) + measured["program_mb"] if count > 1 else 0.0
        found[kind] = max(found[kind], own + others)
    return found


# ---- what to do ---------------------------------------------------------------------------------------------------


def disk_remedy(cfg: CfgNode) -> str:
    ways = ["set out_dir or dataset.dir to a place with more room"]
    if cfg.glem.keep_weights == "all":
        ways.append("glem.keep_weights needed")
    return ", or ".join(ways)
