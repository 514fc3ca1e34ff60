"""How far long work is: a bar on a terminal, a line now and then where the output goes into a file.

Imports nothing of ours.
"""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 30.0
LINE = "{desc}: {percentage:.0f}%, {n_fmt} of {total_fmt} {unit}, {elapsed} gone, about {remaining} left{postfix}"
LINE_WITHOUT_TOTAL = "{desc}: {n_fmt} {unit}, {elapsed} gone"


class Progress(tqdm):
    """tqdm's bar; where standard error is no terminal, a line every `LINE_SECONDS`, and none for what is quick."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.in_lines = not sys.stderr.isatty()
        self.said: float = -1  # `n` of the last line
        if self.in_lines:
            # maxinterval: tqdm's own thread shows a bar that has not been shown for so long.
            intervals = dict.fromkeys(("mininterval", "maxinterval", "delay"), LINE_SECONDS)
            options |= {**intervals, "file": sys.stderr}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if not self.in_lines:
            return super().display(msg, pos)
        self.said = self.n
        shown = LINE_WITHOUT_TOTAL if self.total is None else LINE
        about = {**self.format_dict, "bar_format": shown, "ncols": None}
        print(self.format_meter(**about), file=sys.stderr, flush=True)
        return True

    def close(self) -> None:
        if self.in_lines and not self.disable:
            if self.said not in (-1, self.n):
                self.display()
            self.last_print_t = 0.0  # to tqdm nothing was shown, so there is nothing to clear
        super().close()
