"""Reads YAML as it was typed: a scalar keeps its text, so that the key decides what it is.

PyYAML alone reads ``007`` as 7, ``12:30`` as 750 and ``2024-05-01`` as a date, and where a key stands twice it keeps
the last value without a word. Nothing of a file is ever executed: a tag such as ``!!python/object`` is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000  # aliases counted as often as they stand: a short file can stand for billions
PREFIX = "tag:yaml.org,2002:"
PLAIN = ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map")
TAGS = {f"{PREFIX}{kind}" for kind in PLAIN}
NOTHING = ("", "~", "null", "Null", "NULL")
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class YamlError(ValueError):
    """A text is no YAML of ``key: value`` lines; the message is one line."""


class Quoted(str):
    """A scalar that had quotes: a text whatever it looks like."""


Tree = str | list["Tree"] | dict[str, "Tree"]  # scalars as they were typed, without quotes


def is_nothing(tree: Any) -> bool:
    return isinstance(tree, str) and not isinstance(tree, Quoted) and tree in NOTHING


def whole_number(text: str) -> int:
    """The integer that a text is, decimal or ``0x``; ValueError where it is none, as ``010``, which is 8 or 10."""
    return int(text, 0)


def natural(tree: Any) -> Any:
    """A tree with the nothings, booleans, numbers and texts that its scalars look like."""
    if isinstance(tree, list):
        return [natural(item) for item in tree]
    if isinstance(tree, dict):
        return {key: natural(value) for key, value in tree.items()}
    if not isinstance(tree, str) or isinstance(tree, Quoted):
        return str(tree) if isinstance(tree, Quoted) else tree
    if is_nothing(tree) or tree.lower() in TRUTH:
        return TRUTH.get(tree.lower())
    for number in (whole_number, float):
        try:
            return number(tree)
        except ValueError:
            continue
    return tree


def read_file(file: Path) -> dict[str, Tree]:
    """The keys and values of a YAML file.

    Raises:
        YamlError: it cannot be read, or is not a YAML of ``key: value`` lines; says why, and in which line.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # a name may hold a character that no file system takes
        raise YamlError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > MAX_BYTES:
        raise YamlError(f"has more than {MAX_BYTES:,} bytes; expected a short YAML file of 'key: value' lines")
    try:
        tree = parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise YamlError(f"line {line} is not UTF-8 text (byte {byte:#04x}); save it as UTF-8") from error
    if isinstance(tree, dict):
        return tree
    if tree is None:
        raise YamlError("is empty; expected a YAML file of 'key: value' lines")
    found = "a list" if isinstance(tree, list) else f"the value '{tree[:40]}'"
    raise YamlError(f"expected 'key: value' lines, found {found}")


def parse(text: str) -> Tree | None:
    """One YAML document; None where it is empty.

    Raises:
        YamlError: it is not one document of lists, groups of keys and values.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _Reader().tree(node, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = " ".join(str(error.problem or error.context).split())
        what += "; indent with blanks" if "'\\t'" in what else ""
        if "single document" in str(error.context):
            what = "a second document begins (---); expected one"
        raise YamlError(f"not valid YAML{where}: {what}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"not valid YAML in line {line}: the character {error.character:#x} is not allowed") from error
    except yaml.YAMLError as error:
        raise YamlError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise YamlError("not valid YAML: lists or groups lie too deep in one another") from None


class _Reader:
    """Turns PyYAML's nodes into trees, and counts what aliases multiply."""

    def __init__(self) -> None:
        self.values = 0

    def tree(self, node: yaml.Node, prefix: str) -> Tree:
        self.values += 1
        if self.values > MAX_VALUES:
            raise YamlError(f"has more than {MAX_VALUES:,} values, aliases (*name) counted as often as they stand")
        if node.tag not in TAGS:
            raise YamlError(
                f"line {node.start_mark.line + 1} has the tag {node.tag.replace(PREFIX, '!!')}, expected texts, "
                "numbers, lists and groups alone; drop the tag"
            )
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.style is None else Quoted(node.value)
        if isinstance(node, yaml.SequenceNode):
            return [self.tree(item, prefix) for item in node.value]
        assert isinstance(node, yaml.MappingNode)
        own: dict[str, Tree] = {}
        merged: dict[str, Tree] = {}  # what ``<<: *name`` or ``<<: [*name, *name]`` takes over, the first the strongest
        lines: dict[str, int] = {}
        for key, value in node.value:
            line, name = key.start_mark.line + 1, key.value
            if key.tag == f"{PREFIX}merge":
                for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(other, yaml.MappingNode):
                        raise YamlError(f"line {line} merges (<<) something else than a group of keys")
                    merged = {**self.tree(other, prefix), **merged}  # type: ignore[dict-item]
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag not in TAGS:
                raise YamlError(f"line {line} has a list, a group or a tag where the name of a key is expected")
            if name in lines:
                raise YamlError(
                    f"'{prefix}{name}' stands twice, in lines {lines[name]} and {line}; put all of it into one of them"
                )
            lines[name], own[name] = line, self.tree(value, f"{prefix}{name}.")
        return {**merged, **own}
