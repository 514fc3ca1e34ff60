"""Reads YAML as it was typed: a scalar keeps its text, so that the key decides what it is.

PyYAML alone reads ``007`` as 7, ``12:30`` as 750 and ``2024-05-01`` as a date, and where a key stands twice it keeps
the last value without a word. Nothing of a file is ever executed: a tag such as ``!!python/object`` is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000  # aliases counted as often as they stand: a short file can stand for billions
PREFIX = "tag:yaml.org,2002:"
TAGS = {
    f"{PREFIX}{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map")
}
NOTHING = ("", "~", "null", "Null", "NULL")
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class YamlError(ValueError):
    """A text is no YAML of ``key: value`` lines; the message is one line."""


@dataclass(frozen=True)
class Scalar:
    """A value that is neither a list nor a group of keys, as it was typed.

    Attributes:
        text: without quotes.
        quoted: it had quotes, so it is a text whatever it looks like.
    """

    text: str
    quoted: bool = False

    @property
    def is_nothing(self) -> bool:
        return not self.quoted and self.text in NOTHING

    def natural(self) -> Any:
        """The nothing, boolean, number or text that it looks like."""
        if self.quoted:
            return self.text
        if self.is_nothing:
            return None
        if self.text.lower() in TRUTH:
            return TRUTH[self.text.lower()]
        for number in (whole_number, float):
            try:
                return number(self.text)
            except ValueError:
                continue
        return self.text


Tree = Scalar | list["Tree"] | dict[str, "Tree"]


def whole_number(text: str) -> int:
    """The integer that a text is, decimal or ``0x``; ``010``, which is 8 or 10, is none.

    Raises:
        ValueError: it is none.
    """
    return int(text, 0)


def natural(tree: Any) -> Any:
    """Lists, dictionaries and the values in them as they look; what is no tree stays as it is."""
    if isinstance(tree, Scalar):
        return tree.natural()
    if isinstance(tree, list):
        return [natural(item) for item in tree]
    if isinstance(tree, dict):
        return {key: natural(value) for key, value in tree.items()}
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
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlError(
            f"line {line} is not UTF-8 text (byte {content[error.start]:#04x}); expected a YAML file of 'key: value' "
            "lines, saved as UTF-8"
        ) from error
    tree = parse(text)
    if tree is None:
        raise YamlError("is empty; expected a YAML file of 'key: value' lines")
    if not isinstance(tree, dict):
        found = "a list" if isinstance(tree, list) else f"the value '{tree.text[:40]}'"
        raise YamlError(f"expected 'key: value' lines, found {found}")
    return tree


def parse(text: str) -> Tree | None:
    """One YAML document; None where there is nothing in it.

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
        if "'\\t'" in what:
            what += "; indent with blanks"
        elif "single document" in str(error.context):
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
        line = node.start_mark.line + 1
        self.values += 1
        if self.values > MAX_VALUES:
            raise YamlError(f"has more than {MAX_VALUES:,} values, aliases (*name) counted as often as they stand")
        if node.tag not in TAGS:
            raise YamlError(
                f"line {line} has the tag {node.tag.replace(PREFIX, '!!')}, expected texts, numbers, lists and groups "
                "alone; drop the tag"
            )
        if isinstance(node, yaml.ScalarNode):
            return Scalar(node.value, quoted=node.style is not None)
        if isinstance(node, yaml.SequenceNode):
            return [self.tree(item, prefix) for item in node.value]
        assert isinstance(node, yaml.MappingNode)
        return self._group(node, prefix)

    def _group(self, node: yaml.MappingNode, prefix: str) -> dict[str, Tree]:
        own: dict[str, Tree] = {}
        merged: dict[str, Tree] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == f"{PREFIX}merge":
                for other in self._merged(value, line, prefix):
                    merged = {**other, **merged}
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag not in TAGS:
                raise YamlError(f"line {line} has a list, a group or a tag where the name of a key is expected")
            name = key.value
            if name in lines:
                raise YamlError(
                    f"'{prefix}{name}' stands twice, in lines {lines[name]} and {line}; put all of it into one of them"
                )
            lines[name] = line
            own[name] = self.tree(value, f"{prefix}{name}.")
        return {**merged, **own}

    def _merged(self, node: yaml.Node, line: int, prefix: str) -> Iterable[dict[str, Tree]]:
        """The groups that ``<<: *name`` or ``<<: [*name, *name]`` takes over, the strongest first."""
        for other in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(other, yaml.MappingNode):
                raise YamlError(f"line {line} merges (<<) something else than a group of keys")
            tree = self.tree(other, prefix)
            assert isinstance(tree, dict)
            yield tree
