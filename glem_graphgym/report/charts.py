"""Small charts as inline SVG: axes, lines, bands, dots, bars; colours are CSS variables and follow the page's theme.

Drawn by hand because a page without network needs them inline, and a plotting library's page weighs megabytes.
Every mark has a ``<title>``, which browsers show as a tooltip and screen readers read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 44
CHARACTER = 7.0  # width of a tick's text, about, a character, with air between two texts


@dataclass(frozen=True)
class Scale:
    """Values -> pixels, linear or logarithmic.

    Attributes:
        low, high: range of the values shown; low < high.
        start, end: pixels of ``low`` and ``high``.
        log: whether pixels go with the values' logarithm.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (self.end - self.start) * (at - low) / (high - low), 1)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values inside the range, about as many as wanted."""
        if self.log:
            return _log_ticks(self.low, self.high)
        step = nice_step((self.high - self.low) / wanted)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(place * step, 10) for place in range(first, last + 1)]


def nice_step(rough: float) -> float:
    """Of 1, 2, 5 times a power of ten the first that is not much smaller."""
    power = 10 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.7)


def _log_ticks(low: float, high: float) -> list[float]:
    def between(factors: Sequence[int]) -> list[float]:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]

    for factors in ((1,), (1, 3), (1, 2, 5)):
        if len(between(factors)) >= 3:
            return between(factors)
    return between((1, 2, 3, 4, 5, 6, 7, 8, 9))


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """A range with some air around the values."""
    low, high = min(values), max(values)
    air = (high - low) * share or abs(high) * 0.02 or 1.0
    return low - air, high + air


@dataclass
class Chart:
    """One chart under construction: marks are added from back to front, `svg` closes it.

    Attributes:
        label: what a screen reader says that the chart shows.
        x_name, y_name: names of the axes, with units.
        x_range, y_range: values shown.
        log_x: whether x is logarithmic.
        width, height: of the drawing, in its own units.
        left: room for what stands at the y axis.
    """

    label: str
    x_name: str
    y_name: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool = False
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    marks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x = Scale(*self.x_range, self.left, self.width - RIGHT, self.log_x)
        self.y = Scale(*self.y_range, self.height - BOTTOM, TOP)

    def line(self, points: Sequence[tuple[float, float]], color: str, title: str = "", style: str = "") -> None:
        """A line through points; ``style`` is further classes: ``dashed``, ``faint``."""
        path = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        self.marks.append(
            f'<polyline class="line {style}" style="--c:{color}" points="{path}">{_title(title)}</polyline>'
        )

    def band(self, points: Sequence[tuple[float, float, float]], color: str) -> None:
        """The area between ``low`` and ``high`` of points (x, low, high)."""
        there = [f"{self.x(x)},{self.y(high)}" for x, _, high in points]
        back = [f"{self.x(x)},{self.y(low)}" for x, low, _ in reversed(points)]
        self.marks.append(f'<polygon class="band" style="--c:{color}" points="{" ".join(there + back)}"/>')

    def whisker(self, x: float, low: float, high: float, color: str) -> None:
        at = self.x(x)
        self.marks.append(
            f'<line class="whisker" style="--c:{color}" x1="{at}" x2="{at}" y1="{self.y(low)}" y2="{self.y(high)}"/>'
        )

    def dot(
        self, x: float, y: float, color: str, title: str, style: str = "", radius: float = 4, shape: str = "circle"
    ) -> None:
        """A mark; ``style`` ``hollow`` leaves it empty, ``faint`` pale; ``shape`` is circle, square or diamond."""
        element, place = _outline(shape, self.x(x), self.y(y), radius)
        self.marks.append(f'<{element} class="dot {style}" style="--c:{color}" {place}>{_title(title)}</{element}>')

    def bar(self, x: tuple[float, float], y: tuple[float, float], color: str, title: str, style: str = "") -> None:
        """A bar over the values from ``x[0]`` to ``x[1]``, from ``y[0]`` up or down to ``y[1]``."""
        left, right = self.x(x[0]), self.x(x[1])
        top, bottom = sorted((self.y(y[0]), self.y(y[1])))
        self.marks.append(
            f'<rect class="bar {style}" style="--c:{color}" x="{left + 0.5}" width="{max(right - left - 1, 0.5):.1f}" '
            f'y="{top}" height="{bottom - top:.1f}">{_title(title)}</rect>'
        )

    def text(self, x: float, y: float, text: str, anchor: str = "start", shift: tuple[float, float] = (0, 0)) -> None:
        self.marks.append(
            f'<text class="note" text-anchor="{anchor}" x="{self.x(x) + shift[0]}" y="{self.y(y) + shift[1]}">'
            f"{escape(text)}</text>"
        )

    def svg(
        self,
        x_ticks: Sequence[tuple[float, str]] | None = None,
        y_ticks: Sequence[tuple[float, str]] | None = None,
        x_text: Callable[[float], str] = "{:g}".format,
        y_text: Callable[[float], str] = "{:g}".format,
    ) -> str:
        """The whole chart; ``x_ticks`` and ``y_ticks`` are places and texts where an axis is no number."""
        across = x_ticks if x_ticks is not None else self.apart([(value, x_text(value)) for value in self.x.ticks()])
        upward = y_ticks if y_ticks is not None else [(value, y_text(value)) for value in self.y.ticks()]
        return (
            f'<svg class="chart" role="img" aria-label="{escape(self.label, quote=True)}" '
            f'viewBox="0 0 {self.width:g} {self.height:g}" preserveAspectRatio="xMidYMid meet">'
            f"{self._y_axis(upward)}{self._x_axis(across)}{''.join(self.marks)}</svg>"
        )

    def apart(self, places: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
        """Ticks of a numeric x axis without the texts that would run into the one before; their places stay marked."""
        shown, free = [], -math.inf
        for value, text in places:
            half = CHARACTER * len(text) / 2
            fits = self.x(value) - half >= free
            shown.append((value, text if fits else ""))
            free = self.x(value) + half if fits else free
        return shown

    def _y_axis(self, places: Sequence[tuple[float, str]]) -> str:
        left, right, middle = self.left, self.width - RIGHT, (TOP + self.height - BOTTOM) / 2
        parts = []
        for value, text in places:
            at = self.y(value)
            parts.append(f'<line class="grid" x1="{left:g}" x2="{right:g}" y1="{at}" y2="{at}"/>')
            parts.append(f'<text class="tick" text-anchor="end" x="{left - 7:g}" y="{at + 4}">{escape(text)}</text>')
        name = f'<text class="axis" text-anchor="middle" transform="translate(13 {middle:g}) rotate(-90)">'
        return "".join(parts) + name + escape(self.y_name) + "</text>"

    def _x_axis(self, places: Sequence[tuple[float, str]]) -> str:
        bottom = self.height - BOTTOM
        parts = [f'<line class="base" x1="{self.left:g}" x2="{self.width - RIGHT:g}" y1="{bottom:g}" y2="{bottom:g}"/>']
        for value, text in places:
            at = self.x(value)
            parts.append(f'<line class="base" x1="{at}" x2="{at}" y1="{bottom:g}" y2="{bottom + 4:g}"/>')
            parts.append(f'<text class="tick" text-anchor="middle" x="{at}" y="{bottom + 17:g}">{escape(text)}</text>')
        middle = (self.left + self.width - RIGHT) / 2
        parts.append(f'<text class="axis" text-anchor="middle" x="{middle:g}" y="{self.height - 8:g}">')
        return "".join(parts) + escape(self.x_name) + "</text>"


def _outline(shape: str, x: float, y: float, radius: float) -> tuple[str, str]:
    """SVG element and geometry of a mark about as large as a circle of that radius."""
    if shape == "circle":
        return "circle", f'cx="{x}" cy="{y}" r="{radius}"'
    turned = f' transform="rotate(45 {x} {y})"' if shape == "diamond" else ""
    side = 1.8 * radius
    return "rect", f'x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}"{turned}'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
