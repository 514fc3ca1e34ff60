"""Progress of long work: a bar on a terminal, occasional lines if the output goes to a file.

Imports nothing of this package.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 30.0
BAR = "{desc}: {percentage:.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
LINE = "{desc}: {percentage:.0f}%, {n_fmt} of {total_fmt} {unit}, {elapsed} gone, about {remaining} left{postfix}"
LINE_WITHOUT_TOTAL = "{desc}: {n_fmt} {unit}, {elapsed} gone"
MINUTE, HOUR = 60, 3600


_watcher: ContextVar[Any] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Any) -> Iterator[None]:
    """A block in which ``watcher``, an `em.plan.Watch`, sets the titles of new bars and adds a remark to each."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


class Progress(tqdm):
    """tqdm's bar; if standard error is no terminal, a line every `LINE_SECONDS`, so none for short work."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.in_lines = not sys.stderr.isatty()
        self.printed: float = -1  # `n` in the last line
        self.watcher = _watcher.get()
        if self.watcher and options.get("desc"):
            options["desc"] = self.watcher.title(options["desc"])
        if self.in_lines:
            # maxinterval: tqdm's monitor thread shows a bar that was not shown for so long.
            intervals = dict.fromkeys(("mininterval", "maxinterval", "delay"), LINE_SECONDS)
            options |= {**intervals, "file": sys.stderr}
        elif options.get("total") is not None:
            options.setdefault("bar_format", BAR)
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        meter = {**self.format_dict, "ncols": None if self.in_lines else self.format_dict["ncols"]}
        if self.watcher and (remark := self.watcher.remark(self)):
            remark = f"run: {remark if self.in_lines else remark.replace('about ', '~')}"
            meter["postfix"] = ", ".join(filter(None, [meter["postfix"], remark]))
        if not self.in_lines:
            return super().display(self.format_meter(**meter) if msg is None else msg, pos)
        self.printed = self.n
        meter["bar_format"] = LINE_WITHOUT_TOTAL if self.total is None else LINE
        print(self.format_meter(**meter), file=sys.stderr, flush=True)
        return True

    def track(self, numbers: Mapping[str, float], step: int) -> None:
        """Pass numbers about the work, by name, to the tracker of the run."""
        if self.watcher:
            self.watcher.track(numbers, step)

    def close(self) -> None:
        if self.watcher and not self.disable:
            self.watcher.remark(self)  # lets the watcher record the final progress
        if self.in_lines and not self.disable:
            if self.printed not in (-1, self.n):
                self.display()
            self.last_print_t = 0.0  # tells tqdm that no bar was shown, so that it clears nothing
        super().close()


def time_text(seconds: float) -> str:
    """A duration in words: ``0.4 s``, ``40 s``, ``9 min`` or ``1.5 h``."""
    if seconds < MINUTE:
        return f"{seconds:.{int(seconds < 1)}f} s"
    if seconds < HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:,.1f} h"
