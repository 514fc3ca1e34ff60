"""Reads YAML as typed: scalars stay texts, so that the type of each key can decide how to convert its value.

PyYAML alone reads ``007`` as 7, ``12:30`` as 750 and ``2024-05-01`` as a date, and silently keeps the last value of a
repeated key. No file can execute code: a tag such as ``!!python/object`` is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000  # aliases expanded: a short file of nested aliases can expand to billions of values
PREFIX = "tag:yaml.org,2002:"
PLAIN_KINDS = ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map")
TAGS = {f"{PREFIX}{kind}" for kind in PLAIN_KINDS}
NULL_TEXTS = ("", "~", "null", "Null", "NULL")
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class YamlError(ValueError):
    """A text is not a YAML of ``key: value`` lines; the message has one line."""


class Quoted(str):
    """A scalar typed in quotes: a text, even if it looks like a number."""


Tree = str | list["Tree"] | dict[str, "Tree"]  # scalars as typed, without their quotes


def is_nothing(tree: Any) -> bool:
    return isinstance(tree, str) and not isinstance(tree, Quoted) and tree in NULL_TEXTS


def whole_number(text: str) -> int:
    """The integer that a text spells, decimal or ``0x``; ValueError for others, and for ``010`` (8 or 10)."""
    return int(text, 0)


def natural(tree: Any) -> Any:
    """The tree with each scalar converted to what it looks like: None, a boolean, a number or a text."""
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
        YamlError: the file cannot be read, or is not a YAML of ``key: value`` lines; names the cause and the line.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a character in the name that no file system accepts
        hint = ""
        if isinstance(error, FileNotFoundError):
            similar = get_close_matches(file.name, [path.name for path in file.parent.glob("*.y*ml")], n=1)
            hint = f"; did you mean {file.with_name(similar[0])}?" if similar else "; expected a YAML file"
        raise YamlError(f"cannot be read ({getattr(error, 'strerror', None) or error}){hint}") from error
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
    kind = "a list" if isinstance(tree, list) else f"the value '{tree[:40]}'"
    raise YamlError(f"expected 'key: value' lines, found {kind}")


def parse(text: str) -> Tree | None:
    """The tree of one YAML document; None if it is empty.

    Raises:
        YamlError: the text is not a single document of lists, groups of keys and values.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _tree(node, "", itertools.count(1))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        problem += "; indent with blanks" if "'\\t'" in problem else ""
        if "single document" in str(error.context):
            problem = "a second document begins (---); expected one"
        raise YamlError(f"not valid YAML{position}: {problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"not valid YAML in line {line}: the character {error.character:#x} is not allowed") from error
    except yaml.YAMLError as error:
        raise YamlError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise YamlError("not valid YAML: lists or groups lie too deep in one another") from None


def _tree(node: yaml.Node, prefix: str, numbers: Iterator[int]) -> Tree:
    """The tree of PyYAML's ``node``; ``numbers`` counts values, with aliases expanded."""
    if next(numbers) > MAX_VALUES:
        raise YamlError(f"has more than {MAX_VALUES:,} values, each alias (*name) counted where it is used")
    if node.tag not in TAGS:
        raise YamlError(
            f"line {node.start_mark.line + 1} has the tag {node.tag.replace(PREFIX, '!!')}, expected texts, "
            "numbers, lists and groups alone; drop the tag"
        )
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style is None else Quoted(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_tree(item, prefix, numbers) for item in node.value]
    assert isinstance(node, yaml.MappingNode)
    group: dict[str, Tree] = {}
    merged: dict[str, Tree] = {}  # from ``<<: *name`` or ``<<: [*name, *name]``; the first group wins
    lines: dict[str, int] = {}
    for key, value in node.value:
        line, name = key.start_mark.line + 1, key.value
        if key.tag == f"{PREFIX}merge":
            for merged_node in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(merged_node, yaml.MappingNode):
                    raise YamlError(f"line {line} merges (<<) something else than a group of keys")
                merged = {**_tree(merged_node, prefix, numbers), **merged}  # type: ignore[dict-item]
            continue
        if not isinstance(key, yaml.ScalarNode) or key.tag not in TAGS:
            raise YamlError(f"line {line} has a list, a group or a tag where the name of a key is expected")
        if name in lines:
            raise YamlError(
                f"'{prefix}{name}' stands twice, in lines {lines[name]} and {line}; put all of it into one of them"
            )
        lines[name], group[name] = line, _tree(value, f"{prefix}{name}.", numbers)
    return {**merged, **group}
