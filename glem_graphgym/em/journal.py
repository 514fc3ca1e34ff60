"""The journal of a run: what a finished stage leaves on disk, and how a run resumes from it.

``<run folder>/stages/<index>_<name>/`` holds

    stage.json           what the stage was, its scores and costs; its presence means finished
    logits.npy           float16 (N, C), predictions for all nodes
    embeddings.npy       float16 (N, H), text embeddings (stages of the LM)
    weights.safetensors  the trained weights, as long as the run or a later prediction needs them
    history.json         one row an evaluation

A stage is written into a hidden folder that is renamed when it is whole: a killed run resumes at the stage it was in.
Of several processes the first writes; the others take part in the work or wait, and read what is finished.
What a stage may go on from besides (hop features on disk) lies in ``<run folder>/working/``, until it is finished.
"""

from __future__ import annotations

import logging
import random
import shutil
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from glem_graphgym import processes
from glem_graphgym.disk import writing
from glem_graphgym.em.plan import Plan, Watch, in_words
from glem_graphgym.em.stage import FitLog, Weights
from glem_graphgym.files import link_or_copy, make_once, read_array, read_json, reading, sync, write_json
from glem_graphgym.memory import PeakMemory, naming_out_of_memory
from glem_graphgym.progress import time_text, watched

LINE_WIDTH = 80

Scores = dict[str, dict[str, float]]  # split -> metric -> value


@dataclass(frozen=True)
class StageKey:
    """What a stage is.

    Attributes:
        index: its place in the run, from 0.
        name: folder-safe, e.g. ``lm_gold`` or ``e_step_1``.
        model: ``LM`` or ``GNN``; ``none`` for predictions that were made of finished ones.
        method: the row of the results it counts for: LM, GNN, Cascade, GLEM-LM, GLEM-GNN.
        em_iteration: 0 before the first.
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
class Work:
    """What doing a stage gives back to the journal; predictions go straight into the folder it was given.

    ``notes`` are numbers for the stage's diagnostics; ``seconds_before`` what was done for it earlier, maybe by another
    run, and counts as its own.
    """

    log: FitLog
    weights: Weights
    params: int
    lr: float
    notes: dict[str, float] = field(default_factory=dict)
    seconds_before: float = 0.0


@dataclass(frozen=True)
class Finished:
    """A finished stage, read back from disk: predictions are memory-mapped.

    Attributes:
        logits: float16 (N, C).
        embeddings: float16 (N, H) or None.
        valid: validation score that selection goes by.
    """

    key: StageKey
    folder: Path
    logits: np.ndarray
    embeddings: np.ndarray | None
    valid: float

    def weights(self) -> Weights:
        path = self.folder / "weights.safetensors"
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: the weights of this stage were not kept (glem.keep_weights: needed keeps those of the best "
                "models only); run again with glem.keep_weights: all and --overwrite"
            )
        return load_file(path)


class Journal:
    """Does each stage once.

    Args:
        run_dir: the run's folder.
        seed: the run's seed; every stage starts from its own seed made of it, so a resumed run repeats nothing and
            ends with the same numbers as an uninterrupted one on the same machine.
        evaluate: logits (N, C) -> scores of every split. The only place that test labels are used.
        report: (stage, all stages finished before) -> diagnostics that go into its record.
        metric: which of the scores selects.
        say: called with a line at the beginning and at the end of each stage.
        save_memory: kind of model (``LM``, ``GNN``, ``none``) -> the keys that help where a stage runs out of memory.
    """

    def __init__(
        self,
        run_dir: Path,
        seed: int,
        evaluate: Callable[[np.ndarray], Scores],
        *,
        metric: str = "accuracy",
        say: Callable[[str], None] = logging.info,
        save_memory: Callable[[str], str] = lambda model: "use a smaller model or smaller batches",
    ) -> None:
        self.folder, self.working = run_dir / "stages", run_dir / "working"
        self.seed, self.evaluate, self.metric, self.say = seed, evaluate, metric, say
        self.save_memory = save_memory
        self.finished: list[Finished] = []
        self.plan = Plan()

    def stage(
        self,
        key: StageKey,
        work: Callable[[Path], Work],
        diagnose: Callable[[np.ndarray], dict[str, float]] | None = None,
        shared: Path | None = None,
        together: bool = False,
    ) -> Finished:
        """The finished stage ``key``: read back when it is there, else done by ``work(folder)`` and recorded.

        Args:
            work: trains and writes ``logits.npy`` (and ``embeddings.npy``) into the folder it is given.
            diagnose: logits of this stage -> further numbers for its record.
            shared: a folder for this very stage that runs have in common, named by all that it depends on: the first
                run does it, the others take it over, with the seconds that it took.
            together: whether ``work`` is done by all processes of the run, rather than by the first alone.

        Raises:
            OutOfMemoryError: memory ran out; names the stage.
            DamagedFileError: what a finished stage left cannot be read; names the file.
        """
        folder = self.folder / key.folder

        def seeded(part: Path) -> Work:
            seed_everything(stage_seed(self.seed, key.index, processes.rank()))
            out_of_memory = naming_out_of_memory(f"stage {key.folder}", self.save_memory(key.model))
            with out_of_memory, watched(Watch(self.plan, key.index, key.name)):
                return work(part)

        was_done = processes.from_first((folder / "stage.json").exists)
        if not was_done:
            if together:
                processes.lead(lambda job: self._do(key, folder, job, diagnose, shared), seeded)
            else:
                processes.on_first(lambda: self._do(key, folder, seeded, diagnose, shared))
        done = self._read(key, folder)
        with reading(folder / "stage.json", _remedy(folder)):
            self.plan.note(key.name, float(read_json(folder / "stage.json")["seconds"]))
            if was_done:
                self.say(f"{self.plan.numbered(key.index)} was done before: {self._scores(folder)}")
        self.finished.append(done)
        return done

    def _do(
        self, key: StageKey, folder: Path, work: Callable[[Path], Work], diagnose: Any, shared: Path | None
    ) -> None:
        part = self.folder / f".{key.folder}.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        part.mkdir(parents=True)
        own = shared is None or not (shared / "stage.json").exists()
        if shared is None:
            self._perform(key, part, work, diagnose)
        else:
            make_once(shared, lambda temporary: self._perform(key, temporary, work, diagnose))
            self._read(key, shared)  # a damaged one would be damaged in every run that takes it over
            for file in shared.iterdir():
                link_or_copy(file, part / file.name)
        for file in part.iterdir():
            sync(file)
        part.rename(folder)
        sync(self.folder)
        shutil.rmtree(self.working, ignore_errors=True)
        took = time_text(read_json(folder / "stage.json")["seconds"])
        how = "took" if own else "taken from another run, which took"
        self.say(f"{self.plan.numbered(key.index)}: {self._scores(folder)}; {how} {took}")

    def _scores(self, folder: Path) -> str:
        """``accuracy 97.92% train, 81.25% valid, 79.17% test``."""
        scores = read_json(folder / "stage.json")["scores"]
        return f"{self.metric} " + ", ".join(f"{100 * of[self.metric]:.2f}% {split}" for split, of in scores.items())

    def _perform(self, key: StageKey, part: Path, work: Callable[[Path], Work], diagnose: Any) -> None:
        """Do a stage's work and write all that it leaves into the folder ``part``."""
        left = self.plan.left(key.index)
        line = f"{self.plan.numbered(key.index)}{left and ', '}{left}: {in_words(key.name)}"
        self.say(textwrap.fill(line, LINE_WIDTH, subsequent_indent="  ", break_on_hyphens=False))
        memory = PeakMemory()
        start = time.perf_counter()
        result = work(part)
        seconds = time.perf_counter() - start + result.seconds_before
        logits = np.load(part / "logits.npy", mmap_mode="r")
        scores = self.evaluate(logits)
        record: dict[str, Any] = {
            **asdict(key),
            "seconds": round(seconds, 3),
            "peak_memory_mb": round(memory.peak_mb(), 1),
            "params": result.params,
            "lr": result.lr,
            "epochs": result.log.epochs,
            "best_epoch": result.log.best_epoch,
            "scores": scores,
            "diagnostics": {**result.notes, **(diagnose(logits) if diagnose else {})},
        }
        if result.weights:
            weights = {name: value.contiguous() for name, value in result.weights.items()}
            with writing(part / "weights.safetensors"):
                save_file(weights, part / "weights.safetensors")
        write_json(part / "history.json", result.log.history)
        write_json(part / "stage.json", record)

    def _read(self, key: StageKey, folder: Path) -> Finished:
        """
        Raises:
            DamagedFileError: one of the stage's files is damaged.
        """
        remedy = _remedy(folder)
        embeddings, weights = folder / "embeddings.npy", folder / "weights.safetensors"
        with reading(folder / "stage.json", remedy):
            valid = float(read_json(folder / "stage.json", remedy)["scores"]["valid"][self.metric])
        if weights.exists():
            with reading(weights, remedy), safe_open(weights, "pt"):  # reads the header, and compares the size with it
                pass
        return Finished(
            key=key,
            folder=folder,
            logits=read_array(folder / "logits.npy", remedy),
            embeddings=read_array(embeddings, remedy) if embeddings.exists() else None,
            valid=valid,
        )

    def read_all(self, names: list[str] | None = None) -> None:
        """Take the stages that the run folder holds, in their order; only those whose folders are in ``names``."""
        for folder in sorted(self.folder.glob("[0-9]*_*"), key=lambda path: int(path.name.split("_")[0])):
            if names is not None and folder.name not in names:
                continue
            with reading(folder / "stage.json", f"delete {folder} and type the command of the run again to redo it"):
                record = read_json(folder / "stage.json")
                key = StageKey(**{name: record[name] for name in ("index", "name", "model", "method", "em_iteration")})
            self.finished.append(self._read(key, folder))

    def best(self, method: str) -> Finished | None:
        """Of the finished stages of ``method`` the one with the best validation score, the first on ties."""
        return max((s for s in self.finished if s.key.method == method), key=lambda s: s.valid, default=None)

    def forget_weights(self, keep: set[str]) -> None:
        """Delete the weights of finished stages whose folder name is not in ``keep``."""
        for stage in self.finished:
            if stage.key.folder not in keep:
                (stage.folder / "weights.safetensors").unlink(missing_ok=True)


def _remedy(folder: Path) -> str:
    return f"delete {folder} and type the same command again to redo this stage"


def stage_seed(seed: int, index: int, rank: int = 0) -> int:
    """The seed of one stage of a run: a resumed run and an uninterrupted one agree on it.

    Processes beyond the first have seeds of their own, for dropout.
    """
    return int(np.random.SeedSequence([seed, index, rank] if rank else [seed, index]).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries below us draw from the global state
    torch.manual_seed(seed)
