"""A learner together with the task that it has started last, for tests that look at one after the other."""

from __future__ import annotations

from typing import Any

from glem_graphgym.em.fit import FitLog


class Held:
    """Attributes are those of the task, else of the learner."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner
        self.task: Any = None

    def __getattr__(self, name: str) -> Any:
        held = self.__dict__.get("task")
        return getattr(held if hasattr(held, name) else self.__dict__["learner"], name)

    def load(self, *args: Any, **options: Any) -> None:
        """Start a task, which trains nothing yet."""
        self.task = None
        self.task = self.learner.start(*args, **options)

    def fit(self, *args: Any, **options: Any) -> FitLog:
        self.task = None
        self.task, log = self.learner.fit(*args, **options)
        return log
