"""Record a run without doing it: its program runs, and each stage notes what it would fit and what it would write.

Forecasts of a run (its stages, their work and their files) thus follow from the program itself.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import nn

from glem_graphgym.em.fit import FitLog, Fitted, Weights
from glem_graphgym.em.journal import FinishedStage, Journal, StageKey, StageOutput
from glem_graphgym.em.plan import PlannedStage
from glem_graphgym.em.pseudo_labels import StepTargets
from glem_graphgym.em.run import Run

LEARNERS = ("lm_gold", "lm_em", "gnn", "joint")  # attributes of a `Run`


@dataclass
class RecordedStage:
    """A stage that a `Journal` would do, with the interface of a `Stage`.

    Attributes:
        arrays: name -> shape of its predictions, float16.
        learner, targets: what it would fit, and to which targets; None if it trains nothing.
        encoded: int64 (n,), nodes whose texts the trained LM would encode; None = all.
        weights: bytes of the weights that it would write; 0 if `record` had no ``model_of``.
        on_disk: folders of the stages whose weights are on disk when this one ends, including its own.
    """

    key: StageKey
    data_parallel: bool = False
    shared: Path | None = None
    arrays: dict[str, tuple[int, int]] = field(default_factory=dict)
    learner: Any = None
    targets: StepTargets | None = None
    encoded: np.ndarray | None = None
    weights: int = 0
    on_disk: frozenset[str] = frozenset()
    seconds_before: float = 0.0
    output: StageOutput | None = None
    result: Any = None

    todo, checkpoint, logits = True, None, None  # attributes of a `Stage`

    @property
    def fit(self) -> tuple[object, ...]:
        """Key of the fit: fits with equal keys take the same time and memory."""
        assert self.targets is not None
        return id(self.learner), self.targets.num_trained, self.targets.pseudo is None

    def finish(self, output: StageOutput) -> None:
        self.output, self.seconds_before = output, output.seconds_before
        self.weights = sum(value.numel() * value.element_size() for value in output.weights.values())

    def predictions(self, name: str, shape: tuple[int, int], nodes: np.ndarray | None = None) -> np.ndarray:
        self.arrays[name] = shape
        return _zeros(shape)

    def compute(self, numbers: Callable[[], dict[str, float]]) -> dict[str, float]:
        return {}


@dataclass
class Recording:
    """The stages of a run in their order, and the folders of those whose weights are kept at its end."""

    stages: list[RecordedStage]
    kept: frozenset[str]

    def planned(self, num_nodes: int) -> list[PlannedStage]:
        """The stages as a `Plan` takes them, with their work, for a graph of ``num_nodes``."""
        works: dict[Any, dict[str, float]] = {}
        for stage in self.stages:
            if stage.learner is not None and stage.fit not in works:
                encoded = np.arange(num_nodes) if stage.encoded is None else stage.encoded
                works[stage.fit] = stage.learner.work(stage.targets, encoded)
        return [
            PlannedStage(
                stage.key.name, stage.key.model, works[stage.fit] if stage.learner else {}, stage.seconds_before
            )
            for stage in self.stages
        ]


def record(
    run: Run,
    program: Callable[[Run], None],
    model_of: Callable[[Any, StepTargets], nn.Module] | None = None,
    scores: Iterator[float] | None = None,
) -> Recording:
    """Record the stages that ``program`` would do with ``run``; nothing is trained, computed or written.

    Args:
        model_of: (learner, targets) -> the model that would be fitted, possibly on the meta device (no storage). Gives
            the sizes of weights and embeddings; None leaves them 0.
        scores: assumed validation scores of the stages. None: each is better than all before, so EM does as many
            iterations as it may.
    """
    journal = _RecordingJournal(run, scores or itertools.count(1.0))
    stand_ins: dict[str, Any] = {
        name: _StandIn(learner, journal, model_of) for name in LEARNERS if (learner := getattr(run, name)) is not None
    }
    stand_ins["views"] = {name: _StandIn(learner, journal, model_of) for name, learner in run.views.items()}
    program(replace(run, journal=journal, features=lambda *embeddings: None, **stand_ins))
    return Recording(journal.stages, frozenset(journal.on_disk))


class _RecordingJournal(Journal):
    """A journal that notes each stage of a run instead of doing it."""

    def __init__(self, run: Run, scores: Iterator[float]) -> None:
        super().__init__(run.journal.folder.parent, run.journal.seed, run.journal.evaluate)
        self.shape, self.scores, self.on_disk = (run.num_nodes, run.gold.num_classes), scores, set[str]()
        self.stages: list[RecordedStage] = []

    @contextlib.contextmanager
    def stage(self, key: StageKey, *, data_parallel: bool = False, shared: Path | None = None) -> Iterator[Any]:
        stage = RecordedStage(key, data_parallel, shared)
        self.stages.append(stage)
        yield stage
        if stage.learner is not None:
            self.on_disk.add(key.folder)
        stage.on_disk = frozenset(self.on_disk)
        embeddings = _zeros(stage.arrays["embeddings"]) if "embeddings" in stage.arrays else None
        stage.result = _RecordedResult(key, self.folder / key.folder, _zeros(self.shape), embeddings, next(self.scores))
        self.finished.append(stage.result)

    def forget_weights(self, keep: set[str]) -> None:
        self.on_disk &= keep


class _RecordedResult(FinishedStage):
    def weights(self) -> Weights:
        return {}


class _StandIn:
    """Stand-in for a learner: delegates to it, but only notes what it would fit."""

    def __init__(self, learner: Any, journal: _RecordingJournal, model_of: Callable[..., nn.Module] | None) -> None:
        self.learner, self.journal, self.model_of = learner, journal, model_of

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def fit(self, targets: StepTargets, **_: Any) -> Fitted:
        stage = self.journal.stages[-1]
        stage.learner, stage.targets = self.learner, targets
        model = nn.Module() if self.model_of is None else self.model_of(self.learner, targets)

        def predict(logits: np.ndarray, *arguments: Any) -> None:
            if arguments:  # embeddings, title, nodes to encode, checkpoint
                stage.encoded = arguments[2]

        dim = getattr(getattr(model, "encoder", None), "dim", 0)
        task = SimpleNamespace(model=model, embedding_dim=dim, predict=predict, costs=lambda log: {})
        return Fitted(task, FitLog())


def _zeros(shape: tuple[int, int]) -> np.ndarray:
    """float16 zeros of ``shape`` that take the memory of one number."""
    return np.broadcast_to(np.float16(0), shape)
