"""The stages of a run before they are done, each in words, and about how long is left."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from glem_graphgym.progress import Progress, time_text

WORDS = {
    "lm_gold": "the language model learns from gold labels",
    "gnn_gold": "the GNN learns from gold labels",
    "e_step": "the language model learns from gold labels and the GNN's pseudo-labels",
    "m_step": "the GNN learns from gold labels and the language model's pseudo-labels",
    "joint": "language model and GNN learn together from gold labels",
    "correct_and_smooth": "Correct & Smooth on the GNN's predictions",
    "ensemble": "language model and GNN predict together",
}
TITLES = {"lm_gold": "LM", "gnn_gold": "GNN", "joint": "LM and GNN", "e_step": "E-step", "m_step": "M-step"}
Track = Callable[[Mapping[str, float], int], object]  # told numbers by name, and the step that they belong to
ENOUGH_SECONDS, ENOUGH_SHARE = 5.0, 0.02  # of a stage, before its speed is taken for that of the rest


def untracked(numbers: Mapping[str, float], step: int) -> None:
    """The `Track` of runs that are not tracked."""


def in_words(name: str) -> str:
    """``E-step 1, the language model learns from gold labels and the GNN's pseudo-labels``."""
    if view := _view(name):
        return f"the language model of '{view}' learns from gold labels"
    kind, *number = _kind_and_number(name)
    words = WORDS.get(kind, name)
    return f"{title_of(name)}, {words}" if number else words


def title_of(name: str) -> str:
    """Title of a progress bar: ``E-step 1``."""
    if view := _view(name):
        return f"LM of {view}"
    kind, *number = _kind_and_number(name)
    return " ".join([TITLES.get(kind, kind), *number])


def _view(name: str) -> str:
    """The view whose LM is trained in a stage; "" for other stages."""
    return name.removeprefix("lm_gold_") if name.startswith("lm_gold_") else ""


def _kind_and_number(name: str) -> list[str]:
    """``["e_step", "1"]`` of ``e_step_1``, ``["joint"]`` of ``joint``."""
    return re.split(r"_(?=\d+$)", name)


@dataclass(frozen=True)
class PlannedStage:
    """A stage that is going to be done.

    Attributes:
        name, model: as of a `StageKey`; stages of model ``none`` take no time worth telling.
        work: unit of a progress bar -> how much of the stage's work it shows, comparable among stages of one model.
        seconds_before: counted among the stage's seconds, but spent before the stages.
    """

    name: str
    model: str
    work: Mapping[str, float] = field(default_factory=dict)
    seconds_before: float = 0.0

    @property
    def learner(self) -> str:
        """The model without the view that it is of."""
        return self.model.partition(":")[0]


@dataclass
class Plan:
    """The stages of a run in their order, and how long they take as far as that is known.

    Attributes:
        at_most: EM ends by itself, so that not all of them may be done.
        known: name -> seconds of the same stage with another seed.
        prior: model -> seconds that a unit of its work took elsewhere; used until a stage of this run tells more.
        seconds: name -> seconds, of the stages that are done.
    """

    stages: Sequence[PlannedStage] = ()
    at_most: bool = False
    known: Mapping[str, float] = field(default_factory=dict)
    prior: Mapping[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def numbered(self, index: int) -> str:
        """``stage 2 of 4``; ``stage 5, at most 22`` where EM ends by itself."""
        if not self.stages:
            return f"stage {index + 1}"
        return f"stage {index + 1}{', at most' if self.at_most else ' of'} {len(self.stages)}"

    def _expected(self, stage: PlannedStage, watch: Watch | None) -> float | None:
        """Seconds of a stage that is not done, None if unknown; ``watch`` sees a present one of the same model."""
        if stage.name in self.known:
            return self.known[stage.name] - stage.seconds_before
        seconds, work = watch.done() if watch and watch.speed() else (0.0, 0.0)
        for other in self.stages:
            if other.learner == stage.learner and other.work and other.name in self.seconds:
                seconds += max(0.0, self.seconds[other.name] - other.seconds_before)
                work += sum(other.work.values())
        rate = seconds / work if work else self.prior.get(stage.learner)
        return rate * sum(stage.work.values()) if rate and stage.work else None

    def left(self, index: int, watch: Watch | None = None) -> str:
        """``about 5 of 9 min left``, from the beginning of stage ``index`` or from where ``watch`` sees it.

        ``more than 5 min left`` where the time of some stages is not known; nothing where that of none is.
        """
        total, all_known = 0.0, True
        for place, stage in enumerate(self.stages[index:], start=index):
            if stage.model in ("none", "given"):
                continue
            now = watch if place == index else None
            if now and (speed := now.speed()):
                total += now.work_left() * speed
                continue
            expected = self._expected(stage, watch if stage.learner == self.stages[index].learner else None)
            if expected is None:
                all_known = False
            else:
                total += max(0.0, expected - (now.elapsed() if now else 0.0))
        if total < 1:
            return ""
        if self.at_most:
            return f"at most about {time_text(total)} left" if all_known else ""
        if not all_known:
            return f"more than {time_text(total)} left"
        done = sum(self.seconds.values()) + (watch.elapsed() if watch else 0.0)
        return f"about {_of(time_text(total), time_text(total + done))} left"


def _of(left: str, whole: str) -> str:
    """``5 of 9 min``."""
    if left == whole:
        return left
    (number, unit), (_, other) = left.split(), whole.split()
    return f"{number if unit == other else left} of {whole}"


class Watch:
    """Watches the progress bars of one stage: gives them titles, the time left beside them, and somebody to track."""

    def __init__(self, plan: Plan, index: int, name: str, track: Track = untracked) -> None:
        self.plan, self.index, self.name, self.track = plan, index, name, track
        self.begun = time.perf_counter()
        self.work = dict(plan.stages[index].work) if index < len(plan.stages) else {}
        self.worked: dict[str, tuple[float, float]] = {}  # unit -> seconds of its bar, and share 0-1 that it has done

    def title(self, text: str) -> str:
        title = title_of(self.name)
        return text.replace(self.name, title, 1) if self.name in text else f"{title}, {text}"

    def remark(self, bar: Progress) -> str:
        if bar.unit not in self.work or not bar.total:
            return ""
        self.worked[bar.unit] = (float(bar.format_dict["elapsed"] or 0.0), min(1.0, bar.n / bar.total))
        return self.plan.left(self.index, self)

    def done(self) -> tuple[float, float]:
        """Seconds and work of the bars so far."""
        work = sum(self.work[unit] * share for unit, (_, share) in self.worked.items())
        return sum(seconds for seconds, _ in self.worked.values()), work

    def work_left(self) -> float:
        """Work left in the bar that is shown and in those after it; one before it has ended, early maybe."""
        units = list(self.work)
        shown = max((units.index(unit) for unit in self.worked), default=0)
        rest = {unit: 1 - self.worked[unit][1] if unit in self.worked else 1.0 for unit in units[shown:]}
        return sum(self.work[unit] * share for unit, share in rest.items())

    def speed(self) -> float | None:
        """Seconds per unit of work; None as long as there is too little of it to go by."""
        seconds, work = self.done()
        enough = seconds >= ENOUGH_SECONDS and work >= ENOUGH_SHARE * sum(self.work.values())
        return seconds / work if enough else None

    def elapsed(self) -> float:
        return time.perf_counter() - self.begun
