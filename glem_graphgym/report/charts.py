"""Small charts as data: scales, ticks and marks, which ``templates/chart.html`` draws as inline SVG.

No plotting library: the page works without network, so a library would be inlined, and that weighs megabytes. Colours
are CSS variables and follow the page's theme. A mark's ``<title>`` is shown as a tooltip and read by screen readers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 44
CHARACTER = 7.0  # approximate width of a character of a tick's text, including its share of the space between texts
LETTER = 6.6  # approximate width of a character of a label
LABEL_SHIFTS = (0, -13, 13, -26, 26, -39, 39, -52, 52)  # vertical positions to try for a label, downwards

Box = tuple[float, float, float, float]  # left, top, right, bottom

Ticks = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Scale:
    """Values -> pixels, linear or logarithmic."""

    low: float  # the range of the values shown: low < high
    high: float
    start: float  # pixels of low and high
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, position = (math.log(number) if self.log else number for number in (self.low, self.high, value))
        return round(self.start + (self.end - self.start) * (position - low) / (high - low), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round values inside the range of a linear scale."""
        step = nice_step((self.high - self.low) / count)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(multiple * step, 10) for multiple in range(first, last + 1)]


def nice_step(rough: float) -> float:
    """Smallest step of 1, 2 or 5 times a power of ten that is at least 0.7 times ``rough``."""
    power = 10 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.7)


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * 0.02 or 1.0
    return low - margin, high + margin


@dataclass
class Chart:
    """One chart under construction: marks are added from back to front."""

    label: str  # description for screen readers
    x_name: str  # with the unit
    y_name: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool = False
    width: float = WIDTH  # in units of the drawing
    height: float = HEIGHT
    left: float = LEFT  # room for the labels of the y axis
    x_ticks: Ticks | None = None  # positions and texts; by default round numbers of a linear axis
    y_ticks: Ticks | None = None
    marks: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)  # SVG: element, attributes, text

    def __post_init__(self) -> None:
        self.right, self.top, self.bottom = self.width - RIGHT, TOP, self.height - BOTTOM
        self.x = Scale(*self.x_range, self.left, self.right, self.log_x)
        self.y = Scale(*self.y_range, self.bottom, self.top)
        if self.x_ticks is None and not self.log_x:
            self.x_ticks = self.apart([(value, f"{value:g}") for value in self.x.ticks()])
        if self.y_ticks is None:
            self.y_ticks = [(value, f"{value:g}") for value in self.y.ticks()]

    def _mark(self, element: str, style: str, color: str, title: str = "", **attributes: Any) -> None:
        if not any("nan" in str(value) for value in attributes.values()):  # a hidden score
            self.marks.append((element, {"class": style, "style": f"--c:{color}", **attributes}, title))

    def line(self, points: Sequence[tuple[float, float]], color: str, title: str = "", style: str = "") -> None:
        """Add a line through points; ``style`` holds further CSS classes: ``dashed``, ``faint``."""
        path = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        self._mark("polyline", f"line {style}", color, title, points=path)

    def band(self, points: Sequence[tuple[float, float, float]], color: str) -> None:
        """Add the area between ``low`` and ``high`` of points (x, low, high)."""
        upper_edge = [f"{self.x(x)},{self.y(high)}" for x, _, high in points]
        lower_edge = [f"{self.x(x)},{self.y(low)}" for x, low, _ in reversed(points)]
        self._mark("polygon", "band", color, points=" ".join(upper_edge + lower_edge))

    def whisker(self, x: float, low: float, high: float, color: str) -> None:
        if low < high:
            self._mark("line", "whisker", color, x1=self.x(x), x2=self.x(x), y1=self.y(low), y2=self.y(high))

    def dot(
        self, x: float, y: float, color: str, title: str, style: str = "", radius: float = 4, shape: str = "circle"
    ) -> None:
        """Add a circle, square or diamond; ``style`` is ``hollow`` (outline only), ``faint`` (pale) or empty."""
        center_x, center_y = self.x(x), self.y(y)
        if shape == "circle":
            self._mark("circle", f"dot {style}", color, title, cx=center_x, cy=center_y, r=radius)
            return
        side = 1.8 * radius  # roughly the area of a circle of that radius
        numbers = {"x": center_x - side / 2, "y": center_y - side / 2, "width": side, "height": side}
        rotation = {"transform": f"rotate(45 {center_x} {center_y})"} if shape == "diamond" else {}
        outline = {name: f"{number:.1f}" for name, number in numbers.items()}
        self._mark("rect", f"dot {style}", color, title, **outline, **rotation)

    def bar(self, x: tuple[float, float], y: tuple[float, float], color: str, title: str, style: str = "") -> None:
        left, right = self.x(x[0]), self.x(x[1])
        top, bottom = sorted((self.y(y[0]), self.y(y[1])))
        width, height = f"{max(right - left - 1, 0.5):.1f}", f"{bottom - top:.1f}"
        self._mark("rect", f"bar {style}", color, title, x=left + 0.5, width=width, y=top, height=height)

    def labels(
        self, labelled_points: Sequence[tuple[float, float, str]], marks: Iterable[tuple[float, float]] = ()
    ) -> None:
        """Write each text beside its point, where it covers no earlier text, no point and none of ``marks``; leave it
        out if there is no such place."""
        labelled_points = [(self.x(x), self.y(y), text) for x, y, text in labelled_points if not math.isnan(y)]
        dots = [point[:2] for point in labelled_points] + [(self.x(x), self.y(y)) for x, y in marks]
        occupied = [(x - 6, y - 6, x + 6, y + 6) for x, y in dots]
        middle = (self.left + self.right) / 2
        for x, y, text in labelled_points:
            width = LETTER * len(text)
            for shift, to_left in itertools.product(LABEL_SHIFTS, (x > middle, x <= middle)):
                start = x - 9 - width if to_left else x + 9
                box = (start, y + shift - 7, start + width, y + shift + 7)
                inside = self.left - 1 <= start <= self.width - width and self.top <= box[1] and box[3] <= self.bottom
                if inside and not any(_overlap(box, obstacle) for obstacle in occupied):
                    break
            else:
                continue
            occupied.append(box)
            if abs(shift) > 10:
                leader = {"x1": x, "y1": y, "x2": start + width if to_left else start, "y2": y + shift}
                self._mark("line", "leader", "var(--muted)", "", **leader)
            anchor = {
                "text-anchor": "end" if to_left else "start",
                "x": x - 9 if to_left else start,
                "y": y + shift + 4,
            }
            self.marks.append(("text", {"class": "note", **anchor}, text))

    def apart(self, ticks: Ticks) -> list[tuple[float, str]]:
        """Ticks of a numeric x axis; a text that would overlap its predecessor becomes empty, its tick mark stays."""
        spaced, free = [], -math.inf
        for value, text in ticks:
            half_width = CHARACTER * len(text) / 2
            fits = self.x(value) - half_width >= free
            spaced.append((value, text if fits else ""))
            free = self.x(value) + half_width if fits else free
        return spaced


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
