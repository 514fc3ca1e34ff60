"""The planned stages of a run: each in words, and an estimate of the time left."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from glem_graphgym.progress import Progress, time_text

# Kind of stage -> title of its progress bars, and what it does.
STAGES = {
    "lm_gold": ("LM", "the language model learns from gold labels"),
    "gnn_gold": ("GNN", "the GNN learns from gold labels"),
    "e_step": ("E-step", "the language model learns from gold labels and the GNN's pseudo-labels"),
    "m_step": ("M-step", "the GNN learns from gold labels and the language model's pseudo-labels"),
    "joint": ("LM and GNN", "language model and GNN learn together from gold labels"),
    "correct_and_smooth": ("correct_and_smooth", "Correct & Smooth on the GNN's predictions"),
    "ensemble": ("ensemble", "language model and GNN predict together"),
}
Track = Callable[[Mapping[str, float], int], object]  # receives numbers by name, and the step that they belong to
ENOUGH_SECONDS, ENOUGH_SHARE = 5.0, 0.02  # of a stage, before its speed is used to estimate the rest


def untracked(numbers: Mapping[str, float], step: int) -> None:
    """The `Track` of runs that are not tracked."""


def in_words(name: str) -> str:
    """A stage in words: ``E-step 1, the language model learns from gold labels and the GNN's pseudo-labels``."""
    return _title_and_words(name)[1]


def title_of(name: str) -> str:
    """Title of a stage's progress bars: ``E-step 1``."""
    return _title_and_words(name)[0]


def _title_and_words(name: str) -> tuple[str, str]:
    if (view := name.removeprefix("lm_gold_")) != name:
        return f"LM of {view}", f"the language model of '{view}' learns from gold labels"
    kind, *number = re.split(r"_(?=\d+$)", name)  # e_step_1 has a number, joint has none
    title, words = STAGES.get(kind, (kind, name))
    title = " ".join([title, *number])
    return title, f"{title}, {words}" if number else words


@dataclass(frozen=True)
class PlannedStage:
    """A stage that the run will do.

    Attributes:
        name, model: see `StageKey`; the time of stages of model ``none`` or ``given`` is negligible.
        work: unit of a progress bar -> work that this bar shows, comparable between stages of one model.
        seconds_before: part of the stage's seconds that was spent before the first stage began.
    """

    name: str
    model: str
    work: Mapping[str, float] = field(default_factory=dict)
    seconds_before: float = 0.0

    @property
    def learner(self) -> str:
        """The model without its view: ``LM`` or ``GNN``."""
        return self.model.partition(":")[0]


@dataclass
class Plan:
    """The stages of a run in their order, and the known facts about their duration.

    Attributes:
        at_most: whether EM may stop on a plateau, before all of the stages are done.
        seconds_of_other_seeds: name -> seconds of the same stage with another seed.
        prior: model -> seconds per unit of its work, measured before the stages; used until one of them is measured.
        seconds: name -> seconds of the finished stages.
    """

    stages: Sequence[PlannedStage] = ()
    at_most: bool = False
    seconds_of_other_seeds: Mapping[str, float] = field(default_factory=dict)
    prior: Mapping[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def numbered(self, index: int) -> str:
        """``stage 2 of 4``; ``stage 5, at most 22`` if EM may stop on a plateau."""
        if not self.stages:
            return f"stage {index + 1}"
        return f"stage {index + 1}{', at most' if self.at_most else ' of'} {len(self.stages)}"

    def _expected(self, stage: PlannedStage, watch: Watch | None) -> float | None:
        """Expected seconds of an unfinished stage, None if unknown; ``watch``: of a running stage of its model."""
        if stage.name in self.seconds_of_other_seeds:
            return self.seconds_of_other_seeds[stage.name] - stage.seconds_before
        seconds, work = watch.done() if watch and watch.speed() else (0.0, 0.0)
        for other in self.stages:
            if other.learner == stage.learner and other.work and other.name in self.seconds:
                seconds += max(0.0, self.seconds[other.name] - other.seconds_before)
                work += sum(other.work.values())
        rate = seconds / work if work else self.prior.get(stage.learner)
        return rate * sum(stage.work.values()) if rate and stage.work else None

    def time_left(self, index: int, watch: Watch | None = None) -> str:
        """``about 5 of 9 min left``, from the start of stage ``index`` or, with ``watch``, from its present progress.

        ``more than 5 min left`` if the time of some stages is unknown; "" if that of all is.
        """
        total, all_known = 0.0, True
        for position, stage in enumerate(self.stages[index:], start=index):
            if stage.model in ("none", "given"):
                continue
            running = watch if position == index else None
            if running and (speed := running.speed()):
                total += running.work_left() * speed
                continue
            expected = self._expected(stage, watch if stage.learner == self.stages[index].learner else None)
            if expected is None:
                all_known = False
            else:
                total += max(0.0, expected - (running.elapsed() if running else 0.0))
        if total < 1:
            return ""
        if self.at_most:
            return f"at most about {time_text(total)} left" if all_known else ""
        if not all_known:
            return f"more than {time_text(total)} left"
        spent = sum(self.seconds.values()) + (watch.elapsed() if watch else 0.0)
        return f"about {_left_of_total(time_text(total), time_text(total + spent))} left"


def _left_of_total(left: str, total: str) -> str:
    """Join two times: ``5 of 9 min``."""
    if left == total:
        return left
    (number, unit), (_, total_unit) = left.split(), total.split()
    return f"{number if unit == total_unit else left} of {total}"


class Watch:
    """Watches the progress bars of one stage: sets their titles, adds the time left, passes numbers to ``track``."""

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
        return self.plan.time_left(self.index, self)

    def done(self) -> tuple[float, float]:
        """Seconds and work of the bars so far."""
        work = sum(self.work[unit] * share for unit, (_, share) in self.worked.items())
        return sum(seconds for seconds, _ in self.worked.values()), work

    def work_left(self) -> float:
        """Work left in the present bar and in those after it; bars before it have ended, maybe short of their total."""
        units = list(self.work)
        present = max((units.index(unit) for unit in self.worked), default=0)
        shares_left = {unit: 1 - self.worked[unit][1] if unit in self.worked else 1.0 for unit in units[present:]}
        return sum(self.work[unit] * share for unit, share in shares_left.items())

    def speed(self) -> float | None:
        """Seconds per unit of work; None until `ENOUGH_SECONDS` and `ENOUGH_SHARE` are reached."""
        seconds, work = self.done()
        enough = seconds >= ENOUGH_SECONDS and work >= ENOUGH_SHARE * sum(self.work.values())
        return seconds / work if enough else None

    def elapsed(self) -> float:
        return time.perf_counter() - self.begun
