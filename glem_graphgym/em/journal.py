"""The journal of a run: the files of its finished stages, from which a run resumes.

``<run folder>/stages/<index>_<name>/`` holds

    stage.json           identity, scores and costs; its presence means that the stage is finished
    logits.npy           float16 (N, C), predictions for all nodes
    embeddings.npy       float16 (N, H), text embeddings (stages of the LM)
    weights.safetensors  the trained weights, as long as the run or a later prediction needs them
    history.json         one row per validation

A stage fills a hidden folder, which is renamed when complete; a killed run resumes from the checkpoints in it. Rank 0
writes; the other ranks share the work or wait, and read finished stages. Hop features on disk, from which a killed
stage resumes too, are in ``<run folder>/working/`` until the stage is finished.
"""

from __future__ import annotations

import contextlib
import logging
import random
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glem_graphgym import processes
from glem_graphgym.disk import disk_full_errors
from glem_graphgym.em.checkpoint import MINUTES, Checkpoint, filling
from glem_graphgym.em.e_step import open_predictions
from glem_graphgym.em.fit import FitLog, Weights
from glem_graphgym.em.plan import Plan, Track, Watch, in_words, untracked
from glem_graphgym.energy import EnergyMeter
from glem_graphgym.files import link_or_copy, making, read_array, read_json, reading, write_json
from glem_graphgym.memory import PeakMemory, naming_out_of_memory
from glem_graphgym.progress import time_text, watched
from glem_graphgym.scores import hides_test, warnings_of

LINE_WIDTH = 80
TRACKED_COSTS = ("seconds", "peak_memory_mb", "energy_j", "texts", "params")

Scores = dict[str, dict[str, float]]  # split -> metric -> value


@dataclass(frozen=True)
class StageKey:
    """A stage's identity.

    Attributes:
        index: position in the run, from 0.
        name: folder-safe, e.g. ``lm_gold`` or ``e_step_1``.
        model: ``LM``, ``LM:<view>`` (on another text of the nodes) or ``GNN``; ``none`` for predictions computed from
            finished stages, ``given`` for those of a file.
        method: row of the results: LM, GNN, Cascade, GLEM-LM, GLEM-GNN or a name of its own.
        em_iteration: from 1; 0 before EM.
    """

    index: int
    name: str
    model: str
    method: str
    em_iteration: int = 0

    @property
    def folder(self) -> str:
        return f"{self.index:02d}_{self.name}"


@dataclass
class StageOutput:
    """Outcome of a stage besides its predictions, which are written directly to its folder.

    ``notes``: numbers for its diagnostics; ``seconds_before``: time spent for it before it began, added to its own;
    ``texts``: number of texts trained on, repetitions included.
    """

    log: FitLog
    weights: Weights
    params: int
    lr: float
    notes: dict[str, float] = field(default_factory=dict)
    seconds_before: float = 0.0
    texts: int = 0


@dataclass(frozen=True)
class FinishedStage:
    """A finished stage, read back from disk; predictions are memory-mapped.

    Attributes:
        logits: float16 (N, C).
        embeddings: float16 (N, H) or None.
        valid: validation score, by the metric that selects.
        scores: split -> score by this metric.
        diagnostics: notes of its `StageOutput`.
    """

    key: StageKey
    folder: Path
    logits: np.ndarray
    embeddings: np.ndarray | None
    valid: float
    scores: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    diagnostics: dict[str, float] = field(default_factory=dict)

    def weights(self) -> Weights:
        path = self.folder / "weights.safetensors"
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: the weights of this stage were not kept (glem.keep_weights: needed keeps those of the best "
                "models only); run again with glem.keep_weights: all and --overwrite"
            )
        return load_file(path)


class Stage:
    """A stage in progress: the object that a block of `Journal.stage` works with.

    Attributes:
        todo: whether this rank has work to do: the stage is not finished, nor left to rank 0 alone.
        folder: for ``logits.npy`` (and ``embeddings.npy``), if ``todo``.
        checkpoint: checkpoints of the stage, from which a killed run resumes.
        output: the argument of `finish`.
        result: the finished stage; set at the end of the block.
    """

    result: FinishedStage

    def __init__(self, key: StageKey, folder: Path | None, minutes: float, accelerator: str) -> None:
        self.key, self.todo, self.folder = key, folder is not None, folder or Path()
        self.checkpoint = Checkpoint(self.folder, minutes)
        self.output: StageOutput | None = None
        self._memory = PeakMemory(accelerator) if self.todo else None
        self._energy = EnergyMeter() if self.todo else None
        self._start = time.perf_counter()

    def finish(self, output: StageOutput) -> None:
        """End the measured work, with all predictions written; later diagnostics do not count in time and memory."""
        assert self._memory is not None
        self.output = output
        process_seconds = time.perf_counter() - self._start
        self.seconds = process_seconds + self.checkpoint.seconds_before + output.seconds_before
        self.peak_mb = self._memory.peak_mb()
        energy = self._energy.stop() if self._energy else None
        # Unknown if part of the work was done elsewhere, or before the run was killed.
        self.energy = None if energy is None or self.seconds > process_seconds + 1 else round(energy, 1)

    def predictions(self, name: str, shape: tuple[int, int], nodes: np.ndarray | None = None) -> np.ndarray:
        """Open array ``name``, float16, for the stage to fill the rows of ``nodes``; see `open_predictions`."""
        return open_predictions(self.folder, name, *shape, nodes)

    def compute(self, numbers: Callable[[], dict[str, float]]) -> dict[str, float]:
        """``numbers()``, computed from predictions; a `RecordedStage`, which has no predictions, skips the call."""
        return numbers()

    @property
    def logits(self) -> np.ndarray:
        """The logits as written, float16 (N, C)."""
        return np.load(self.folder / "logits.npy", mmap_mode="r")


class Journal:
    """Does each stage of a run once, and reads finished stages from disk.

    Args:
        run_dir: the run's folder.
        seed: of the run. Every stage derives a seed from it, so that on the same machine a resumed run ends with the
            same numbers as an uninterrupted one.
        evaluate: logits (N, C) -> scores of every split. The only use of test labels.
        metric: the score that selects.
        log: called with a line at the beginning and at the end of each stage.
        save_memory: `StageKey.model` -> advice, which names keys, for a stage that ran out of memory.
        checkpoint_minutes: minutes between the checkpoints of a stage.
        plan: the planned stages of the run, for messages about progress.
        accelerator: ``cpu`` or ``cuda``: whose peak memory is recorded per stage.
        track: receives numbers of training, by optimizer step, and of finished stages, by EM iteration.
    """

    def __init__(
        self,
        run_dir: Path,
        seed: int,
        evaluate: Callable[[np.ndarray], Scores],
        *,
        metric: str = "accuracy",
        log: Callable[[str], None] = logging.info,
        save_memory: Callable[[str], str] = lambda model: "use a smaller model or smaller batches",
        checkpoint_minutes: float = MINUTES,
        plan: Plan | None = None,
        accelerator: str = "cpu",
        track: Track = untracked,
    ) -> None:
        self.folder, self.working = run_dir / "stages", run_dir / "working"
        self.seed, self.evaluate, self.metric, self.log = seed, evaluate, metric, log
        self.save_memory, self.checkpoint_minutes = save_memory, checkpoint_minutes
        self.finished: list[FinishedStage] = []
        self.plan, self.accelerator, self.track = plan or Plan(), accelerator, track

    @contextlib.contextmanager
    def stage(self, key: StageKey, *, data_parallel: bool = False, shared: Path | None = None) -> Iterator[Stage]:
        """A block for stage ``key``: if the stage is `todo`, the block does its work and calls `Stage.finish`.

        Args:
            data_parallel: whether all ranks do the stage together, rather than rank 0 alone.
            shared: folder in which runs share this stage, named by all that it depends on: the first run does the
                stage, the others take it over, including its seconds.

        Raises:
            OutOfMemoryError: memory ran out; names the stage.
            DamagedFileError: a file of a finished stage cannot be read; names it.
        """
        folder, numbered = self.folder / key.folder, self.plan.numbered(key.index)
        was_finished = processes.broadcast((folder / "stage.json").exists)
        if processes.rank() == 0 and not was_finished:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.nullcontext() if was_finished else filling(shared or folder, data_parallel) as temporary:
            stage = Stage(key, temporary, self.checkpoint_minutes, self.accelerator)
            with self._stage_work(stage) if stage.todo else contextlib.nullcontext():
                yield stage
        if not was_finished:
            if processes.rank() == 0:
                self._take_over(key, folder, shared)
            processes.barrier()
        result = stage.result = self._read(key, folder)
        self.plan.seconds[key.name] = result.seconds
        self.finished.append(result)
        if processes.rank() == 0:
            splits = [split for split in result.scores if split != "test" or not hides_test(self.folder)]
            values_text = ", ".join(f"{100 * result.scores[split]:.2f}% {split}" for split in splits)
            scores = f"{self.metric} {values_text}"
            verb = "took" if stage.todo else "taken from another run, which took"
            end_text = f"{numbered}: {scores}; {verb} {time_text(result.seconds)}"
            self.log(f"{numbered} was done before: {scores}" if was_finished else end_text)
            if not was_finished:
                self.track(_tracked_numbers(key, read_json(folder / "stage.json"), splits), key.em_iteration)
            for warning in warnings_of(key.model, key.em_iteration, result.diagnostics):
                self.log(_filled(f"Warning: {warning}"))

    @contextlib.contextmanager
    def _stage_work(self, stage: Stage) -> Iterator[None]:
        """Seed, announce and watch the work of a stage, then record it."""
        key = stage.key
        seed_everything(stage_seed(self.seed, key.index, processes.rank()))
        time_left = self.plan.time_left(key.index)
        line = f"{self.plan.numbered(key.index)}{time_left and ', '}{time_left}: {in_words(key.name)}"
        if processes.rank() == 0:
            self.log(_filled(line))
        with (
            naming_out_of_memory(f"stage {key.folder}", self.save_memory(key.model)),
            watched(Watch(self.plan, key.index, key.name, self.track)),
        ):
            yield
        if processes.rank() == 0:
            self._record(stage)

    def _record(self, stage: Stage) -> None:
        """Write the files of a stage other than its predictions."""
        output, folder = stage.output, stage.folder
        assert output is not None, f"stage {stage.key.name} was not finished"
        record = {
            **asdict(stage.key),
            "seconds": round(stage.seconds, 3),
            "peak_memory_mb": round(stage.peak_mb, 1),
            "energy_j": stage.energy,
            "texts": output.texts,
            "params": output.params,
            "lr": output.lr,
            "epochs": output.log.epochs,
            "best_epoch": output.log.best_epoch,
            "scores": self.evaluate(stage.logits),
            "diagnostics": output.notes,
        }
        if output.weights:
            weights = {name: value.cpu().contiguous() for name, value in output.weights.items()}
            with disk_full_errors(folder / "weights.safetensors"):
                save_file(weights, folder / "weights.safetensors")
        write_json(folder / "history.json", output.log.history)
        write_json(folder / "stage.json", record)

    def _take_over(self, key: StageKey, folder: Path, shared: Path | None) -> None:
        """Link or copy a shared stage into the run folder, and remove the working files of the stage."""
        if shared is not None:
            self._read(key, shared)  # a damaged stage must not be taken over
            with making(folder) as temporary:
                assert temporary is not None
                for file in shared.iterdir():
                    link_or_copy(file, temporary / file.name)
        (self.folder / f".{folder.name}.lock").unlink(missing_ok=True)
        shutil.rmtree(self.working, ignore_errors=True)

    def _read(self, key: StageKey, folder: Path) -> FinishedStage:
        """Read a finished stage; raises `DamagedFileError` if one of its files is damaged."""
        remedy = f"delete {folder} and type the same command again to redo this stage"
        embeddings, weights = folder / "embeddings.npy", folder / "weights.safetensors"
        with reading(folder / "stage.json", remedy):
            record = read_json(folder / "stage.json", remedy)
            scores = {split: float(metrics[self.metric]) for split, metrics in record["scores"].items()}
            valid, seconds = scores["valid"], float(record["seconds"])
        if weights.exists():
            with reading(weights, remedy), safe_open(weights, "pt"):  # reads the header, and compares the size with it
                pass
        logits = read_array(folder / "logits.npy", remedy)
        vectors = read_array(embeddings, remedy) if embeddings.exists() else None
        return FinishedStage(key, folder, logits, vectors, valid, scores, seconds, record.get("diagnostics", {}))

    def read_all(self, names: list[str] | None = None) -> None:
        """Read the finished stages of the run folder in order: those whose folders are in ``names``, None = all."""
        for folder in sorted(self.folder.glob("[0-9]*_*"), key=lambda path: int(path.name.split("_")[0])):
            if names is not None and folder.name not in names:
                continue
            with reading(folder / "stage.json", f"delete {folder} and type the command of the run again to redo it"):
                record = read_json(folder / "stage.json")
                key = StageKey(**{name: record[name] for name in ("index", "name", "model", "method", "em_iteration")})
            self.finished.append(self._read(key, folder))

    def best(self, method: str) -> FinishedStage | None:
        """The finished stage of ``method`` with the best validation score, the first on ties."""
        return max((s for s in self.finished if s.key.method == method), key=lambda s: s.valid, default=None)

    def forget_weights(self, keep: set[str]) -> None:
        """Delete the weights of finished stages whose folder name is not in ``keep``; called by all ranks."""
        processes.barrier()  # no rank reads them any more
        for stage in self.finished if processes.rank() == 0 else ():
            if stage.key.folder not in keep:
                (stage.folder / "weights.safetensors").unlink(missing_ok=True)


def _tracked_numbers(key: StageKey, record: dict[str, Any], splits: Sequence[str]) -> dict[str, float]:
    """Scores on ``splits``, costs and objective terms of a ``stage.json``, named alike in every EM iteration."""
    scores = {f"{split}_{name}": value for split in splits for name, value in record["scores"][split].items()}
    numbers = {**scores, **record["diagnostics"], **{cost: record.get(cost) for cost in TRACKED_COSTS}}
    stage_name = key.name.removesuffix(f"_{key.em_iteration}")
    return {f"{stage_name}/{name}": value for name, value in numbers.items() if value is not None}


def _filled(line: str) -> str:
    return textwrap.fill(line, LINE_WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def stage_seed(seed: int, index: int, rank: int = 0) -> int:
    """The seed of one stage of a run, resumed or not. Ranks beyond 0 have seeds of their own, for dropout."""
    return int(np.random.SeedSequence([seed, index, rank] if rank else [seed, index]).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries below us draw from the global state
    torch.manual_seed(seed)
