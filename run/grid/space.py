"""A grid: its axes, its blocks, all or some of their points, and the file name of each point.

The format is GraphGym's: a line ``key alias [value, value, ...]`` is an axis, a blank line ends a block, ``#`` opens a
comment. A block spans the product of its axes, a grid the union of its blocks. In a space for ``run/search.py`` an axis
may also be ``range(low, high)`` or ``log_range(low, high)``, ends included: of integers if both are written as such.
"""

from __future__ import annotations

import ast
import math
import random
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

ALIAS = re.compile(r"[\w.+]+")
RANGE = re.compile(r"(log_)?range\(\s*([^,\s]+)\s*,\s*([^,\s]+)\s*\)")
# Characters of GraphGym's names that are safe in a shell, in a file system and next to "=".
_SAFE_CHARACTERS = "+,"
MAX_CHARACTERS = 10_000_000
_MAX_NAME = 200  # bytes: file systems allow 255, and ".yaml_done" and temporary names are appended


class GridError(ValueError):
    """A grid, or a configuration made from it, is wrong; the message names the file and line."""


@dataclass(frozen=True)
class Axis:
    """One line of a grid: the values that a key takes."""

    line: int  # in the grid text, from 1
    key: str  # "name" or "group.name", as in the configuration
    alias: str  # its name in file names and tables
    values: tuple[Any, ...]  # at least one, all different; of a range its lower and upper end
    scale: str = ""  # "linear" or "log" for a range, of integers or of floats, from which a search draws


Block = tuple[Axis, ...]


@dataclass(frozen=True)
class Point:
    """One value for each axis of a block; ``sampled`` is the alias that a controlled sample varies."""

    block: Block
    values: tuple[Any, ...]
    sampled: str | None = None


# ---- reading ------------------------------------------------------------------------------------------------------


def read_grid(
    file: Path, is_text: Callable[[str], bool] = lambda key: False, flag: str = "--grid", ranges: bool = False
) -> list[Block]:
    """The blocks of a grid.

    Args:
        is_text: whether a key takes a string; its values stay as typed (``[007]``, no valid Python, is refused).
        flag: what named the file, for messages.
        ranges: whether axes may be ranges.

    Raises:
        GridError: names the file, the line, what was found and what was expected.
    """
    blocks: list[list[Axis]] = [[]]
    for number, line in enumerate(_read(file, flag).splitlines(), start=1):
        text = line.strip()
        if text.startswith("#"):
            continue
        if text:
            axis = _read_axis(text, number, f"{file}, line {number}", is_text)
            if axis.scale and not ranges:
                raise GridError(f"{file}, line {number}: a range is for run/search.py; expected a list of values")
            blocks[-1].append(axis)
        elif blocks[-1]:
            blocks.append([])
    grid = [tuple(block) for block in blocks if block]
    if not grid:
        raise GridError(f"{file}: no axis found, expected at least one line 'key alias [value, value]'")
    for block in grid:
        _check_block(block, file)
    return grid


def read_aliases(file: Path) -> list[str]:
    """The aliases on the first line of GraphGym's ``--sample_alias`` file, separated by spaces."""
    aliases = (_read(file, "--sample_alias").splitlines() or [""])[0].split()
    if not aliases:
        raise GridError(f"{file}: the first line is empty, expected aliases of the grid with spaces between them")
    return aliases


def _read(file: Path, flag: str) -> str:
    try:
        with file.open(encoding="utf-8-sig") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"more than {MAX_CHARACTERS:,} characters")
        return text
    except (OSError, ValueError) as error:
        raise GridError(f"{flag} {file}: cannot be read ({error}); expected a text file") from error


def _read_axis(text: str, line: int, location: str, is_text: Callable[[str], bool]) -> Axis:
    words = text.split(maxsplit=2)
    if len(words) < 3:
        raise GridError(f"{location}: found '{text}', expected 'key alias [value, value]'")
    key, alias, values_text = words
    if key.count(".") > 1 or not all(key.split(".")):
        raise GridError(f"{location}: key '{key}', expected 'name' or 'group.name', as in the configuration")
    if not ALIAS.fullmatch(alias):
        raise GridError(
            f"{location}: alias '{alias}', expected letters, digits, '_', '.' or '+' (it becomes a file name)"
        )
    if range_match := RANGE.fullmatch(values_text):
        ends = _read_range(range_match, f"{location}: {values_text}")
        return Axis(line, key, alias, ends, "log" if range_match[1] else "linear")
    try:
        tree = ast.parse(values_text, mode="eval").body
        values = ast.literal_eval(tree)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise GridError(
            f"{location}: {_short(values_text)} is no Python list in one line; strings need quotes, e.g. ['a','b']"
        ) from error
    if not isinstance(values, list | tuple) or not values:
        raise GridError(f"{location}: {_short(values_text)}, expected a list with at least one value, e.g. [1,2]")
    if is_text(key) and isinstance(tree, ast.List | ast.Tuple):
        values = [
            value if isinstance(value, str | list | tuple) else ast.get_source_segment(values_text, element)
            for value, element in zip(values, tree.elts, strict=True)
        ]
    names: set[str] = set()
    for value in values:
        name = value_name(value)
        if name in names:
            raise GridError(f"{location}: value {unquote(name)} stands twice, or cannot be told apart in file names")
        names.add(name)
    return Axis(line, key, alias, tuple(_storable(value, location) for value in values))


def _read_range(range_match: re.Match[str], location: str) -> tuple[int, int] | tuple[float, float]:
    try:
        low, high = (int(text) if re.fullmatch(r"-?\d+", text) else float(text) for text in range_match.group(2, 3))
    except ValueError as error:
        raise GridError(f"{location}: expected two numbers") from error
    above = 0 if range_match[1] else -math.inf
    if not above < low < high < math.inf:
        raise GridError(f"{location}: expected a smaller and a larger number{', both above 0' if above == 0 else ''}")
    return (low, high) if isinstance(low, int) and isinstance(high, int) else (float(low), float(high))


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _storable(value: Any, location: str) -> Any:
    """``value`` in types that YAML can store: lists for tuples."""
    if isinstance(value, list | tuple):
        return [_storable(inner, location) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise GridError(
        f"{location}: value {value!r} is a {type(value).__name__}, expected numbers, strings, booleans, lists"
    )


def _check_block(block: Block, file: Path) -> None:
    for name in ("key", "alias"):
        lines_by_value: dict[str, int] = {}
        for axis in block:
            value = getattr(axis, name)
            if value in lines_by_value:
                raise GridError(
                    f"{file}, line {axis.line}: {name} '{value}' stands already in line {lines_by_value[value]} of "
                    "the same block; put the two lines into blocks of their own (a blank line between), or drop one"
                )
            lines_by_value[value] = axis.line


# ---- points -------------------------------------------------------------------------------------------------------


def all_points(blocks: Sequence[Block]) -> Iterator[Point]:
    for block in blocks:
        for index in range(size_of(block)):
            yield _point(block, index)


def size_of(block: Block) -> int:
    return math.prod(len(axis.values) for axis in block)


def _point(block: Block, index: int) -> Point:
    values = []
    for axis in block:
        index, choice = divmod(index, len(axis.values))
        values.append(axis.values[choice])
    return Point(block, tuple(values))


def random_points(blocks: Sequence[Block], number: int, seed: int) -> list[Point]:
    """``number`` different points of all blocks, each equally likely; all points if there are fewer."""
    sizes = [size_of(block) for block in blocks]
    total, rng = sum(sizes), random.Random(seed)
    indices: Collection[int]
    if total <= sys.maxsize:
        indices = rng.sample(range(total), min(number, total))
    else:  # more than a range can count
        indices = set()
        while len(indices) < number:
            indices.add(rng.randrange(total))
    points = []
    for index in sorted(indices):
        for block, size in zip(blocks, sizes, strict=True):
            if index < size:
                points.append(_point(block, index))
                break
            index -= size
    return points


def controlled_points(blocks: Sequence[Block], aliases: Iterable[str], number: int, seed: int) -> list[Point]:
    """GraphGym's controlled random search: for each alias, ``number`` random points, each with all its values.

    Raises:
        GridError: an alias is in no block; names it.
    """
    grid_aliases = sorted({axis.alias for block in blocks for axis in block})
    points = []
    for index, alias in enumerate(aliases):
        if alias not in grid_aliases:
            raise GridError(
                f"--sample_alias: alias '{alias}' is not in the grid; known there: {', '.join(grid_aliases)}"
            )
        varied = [block for block in blocks if any(axis.alias == alias for axis in block)]
        fixed = [
            tuple(replace(axis, values=axis.values[:1]) if axis.alias == alias else axis for axis in block)
            for block in varied
        ]
        for point in random_points(fixed, number, seed + index):
            block = varied[fixed.index(point.block)]
            position = [axis.alias for axis in block].index(alias)
            for value in block[position].values:
                values = (*point.values[:position], value, *point.values[position + 1 :])
                points.append(Point(block, values, alias))
    return points


# ---- names --------------------------------------------------------------------------------------------------------


def value_name(value: Any) -> str:
    """A value in a file name: as GraphGym writes it, with %XX (as in a URL) for special characters.

    Letters, digits and ``_.-~+,`` stay (``agg_batch`` finds the end of a value by the next ``=``, so ``-`` does no
    harm). ``/``, space, ``=``, ``%`` and all others are escaped; `urllib.parse.unquote` reverses it.
    """
    return quote(_value_text(value), safe=_SAFE_CHARACTERS)


def _value_text(value: Any) -> str:
    return ",".join(map(_value_text, value)) if isinstance(value, list | tuple) else str(value)


def base_name(file: str | Path | None) -> str:
    """The first part of all names: that of the base file, with "-" and "." escaped, which GraphGym does not allow."""
    if file is None:
        return "default"
    name = Path(file).name
    for suffix in (".yaml", ".yml", ".txt"):
        name = name.removesuffix(suffix)
    return quote(name, safe="").replace("-", "%2D").replace(".", "%2E").replace("~", "%7E")


def point_name(base: str, point: Point, location: str) -> str:
    """``<base>-<alias>=<value>-...``, the stem of a configuration and the name of its results' folder.

    Raises:
        GridError: it is too long for a file system.
    """
    parts = [base] if point.sampled is None else [base, f"sample={point.sampled}"]
    pairs = zip(point.block, point.values, strict=True)
    name = "-".join([*parts, *(f"{axis.alias}={value_name(value)}" for axis, value in pairs)])
    if len(name) > _MAX_NAME:
        raise GridError(
            f"{location}: the name '{name}' has {len(name)} characters, expected at most {_MAX_NAME}; "
            "shorten aliases or values"
        )
    return name


def axes_of(name: str) -> dict[str, Any]:
    """Alias -> value from a name that `point_name` or GraphGym made; empty if it has no ``alias=value``.

    Like GraphGym, reads a value as Python if possible: ``1`` becomes a number, whatever it was in the grid.
    """
    _, dash, assignments = name.partition("-")
    first_alias, *pieces = assignments.split("=")
    if not dash or not pieces:
        return {}
    aliases, values = [first_alias], []
    for piece in pieces[:-1]:
        value, _, alias = piece.rpartition("-")
        aliases.append(alias)
        values.append(value)
    return {alias: _parsed(unquote(text)) for alias, text in zip(aliases, [*values, pieces[-1]], strict=True)}


def _parsed(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError):
        return text
    return value if isinstance(value, bool | int | float | str) else text
