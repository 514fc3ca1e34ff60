"""Loads a checked configuration from a YAML file and the command line, and writes one into a file.

The type of a key's default decides how its value is read: ``007`` is a valid ``out_dir``, but no number for ``seed``.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch_geometric.graphgym.config import assert_cfg, set_cfg
from yacs.config import CfgNode

from glem_graphgym.config.checks import PLUGINS, check_choice, check_config, import_plugins
from glem_graphgym.config.keys import KEYS, KINDS, NULLABLE, ConfigError, kind_of_items, settings_of, shown, unfit
from glem_graphgym.config.yaml_text import (
    TRUTH,
    Quoted,
    Tree,
    YamlError,
    is_nothing,
    natural,
    parse,
    read_file,
    whole_number,
)
from glem_graphgym.files import atomic_write
from glem_graphgym.renamed import old_names

log = logging.getLogger(__name__)
OPTIONAL = {key.name: key.kind for key in KEYS if key.default is None}  # name -> type of values other than null


def load_config(cfg: CfgNode, file: str | Path, options: Iterable[str] = ()) -> None:
    """Set ``cfg`` to defaults, then the YAML ``file``, then ``options`` (key value key value …), and check it.

    If the command line gives a key twice, the last value counts, with a warning.

    Raises:
        ConfigError: names the file or key, what was found and what was expected.
    """
    try:
        tree = read_file(Path(file))
    except YamlError as error:
        raise ConfigError(f"--cfg {file}: {error}") from error
    options = list(options)
    names, texts = options[::2], options[1::2]
    if old := old_names(names):
        raise ConfigError(f"command line: {old}")
    _import_plugins(tree, dict(zip(names, texts, strict=False)), str(file))
    set_cfg(cfg)
    defaults = cfg.clone()
    defaults.pop("share")  # GraphGym's notes about the data, which it writes while it runs
    _merge(cfg, typed_values(tree, defaults, str(file)))
    if joined := next((name for name in names if "=" in name), None):
        raise ConfigError(f"options are written as 'key value', without an equals sign; found '{shown(joined)}'")
    if len(options) % 2:
        raise ConfigError(f"options must be pairs 'key value'; '{shown(options[-1])}' stands alone")
    last = dict(zip(names, texts, strict=True))
    for name, count in Counter(names).items():
        if count > 1:
            log.warning(
                f"{name} is given {count} times on the command line; the last value counts: {shown(last[name])}"
            )
    for name, text in zip(names, texts, strict=True):
        group, dot, key = name.partition(".")
        value = _typed_on_command_line(text)
        _merge(cfg, typed_values({group: {key: value} if dot else value}, defaults, "command line"))
    check_choice("dataset.task", cfg.dataset.task, ("node", "edge", "graph", "link_pred"))
    assert_cfg(cfg)
    check_config(cfg)


def _import_plugins(tree: dict[str, Tree], options: dict[str, str], file: str) -> None:
    """Import the plugins of a configuration that is not checked yet: they may register keys and names in it."""
    group = tree.get("glem")
    value, origin = group.get("plugins", []) if isinstance(group, dict) else [], file
    if PLUGINS in options:
        value, origin = _typed_on_command_line(options[PLUGINS]), "command line"
    import_plugins(_typed([], value, PLUGINS, origin))


def _typed_on_command_line(text: str) -> Tree:
    """Parse an option: the shell has removed its own quotes; further quotes inside them mean a text, as in YAML."""
    if text[:1] in ("'", '"'):
        with suppress(YamlError):
            tree = parse(text)
            return tree if isinstance(tree, str) else text
    return text or Quoted()


def _merge(cfg: CfgNode, values: dict) -> None:
    for name, value in values.items():
        if isinstance(cfg[name], CfgNode):
            _merge(cfg[name], value)
        else:
            cfg[name] = value


def typed_values(tree: dict[str, Tree], defaults: CfgNode, origin: str, prefix: str = "") -> dict[str, Any]:
    """The keys and values of ``tree``, each value in the type of its default.

    Args:
        origin: the file, or the command line, for messages.

    Raises:
        ConfigError: a key is unknown, or its value is of another type.
    """
    if not prefix:
        named = [f"{group}.{key}" for group, keys in tree.items() if isinstance(keys, dict) for key in keys]
        if old := old_names([*tree, *named]):
            raise ConfigError(f"{origin}: {old}")
    values: dict[str, Any] = {}
    for name, value in tree.items():
        full = f"{prefix}{name}"
        if name not in defaults:
            raise ConfigError(f"{origin}: unknown key '{shown(full)}'{_nearest(defaults, prefix, name)}")
        if not isinstance(defaults[name], CfgNode):
            values[name] = _typed(defaults[name], value, full, origin)
        elif isinstance(value, dict):
            values[name] = typed_values(value, defaults[name], origin, f"{full}.")
        else:
            found = "nothing" if is_nothing(value) else f"the value {shown(value)}"
            raise ConfigError(f"{origin}: '{full}' is a group of keys, found {found}")
    return values


def _nearest(defaults: CfgNode, prefix: str, name: str) -> str:
    group, _, key = name.partition(".")
    if not prefix and isinstance(defaults.get(group), CfgNode) and key in defaults[group]:
        return f"; in a file, write '{group}:' and below it, indented, '{key}: ...'"
    close = difflib.get_close_matches(name, [str(key) for key in defaults], n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{prefix}{close[0]}'?"
    return f"; known here: {', '.join(sorted(map(str, defaults)))}"


def _typed(default: Any, value: Tree, name: str, origin: str) -> Any:
    """``value`` in the type of ``default``; a list is converted to a tuple if the default is one.

    ``null`` is accepted if it is the default, and for `NULLABLE` keys. With default None, a value of any type is
    accepted unless the key states one (`OPTIONAL`).
    """
    if is_nothing(value) and (default is None or name in NULLABLE):
        return None
    kind = OPTIONAL.get(name) or type(default)
    if kind is type(None):
        return natural(value)
    is_list = isinstance(default, list | tuple)
    if isinstance(value, str) and not value and not isinstance(value, Quoted):
        raise ConfigError(f"{origin}: {name} has no value, expected {KINDS[list if is_list else kind]}")
    if not is_list:
        return _converted(kind, value, name, origin)
    if isinstance(value, str):  # as on the command line
        with suppress(YamlError):
            parsed = parse(value)
            value = parsed if isinstance(parsed, list) else value
    if not isinstance(value, list):
        raise unfit(name, value, KINDS[list], origin)
    of_items = kind_of_items(default)
    return kind([_converted(of_items, item, name, origin) if of_items else natural(item) for item in value])


def _converted(kind: type, value: Tree, name: str, origin: str) -> Any:
    """A scalar as ``kind``: the text itself, or the number or boolean that it spells."""
    try:
        if not isinstance(value, str):
            raise ValueError
        if kind is str:
            return str(value)
        if kind is bool:
            return TRUTH[value.strip().lower()]
        number = whole_number(value) if kind is int else float(value)
    except (KeyError, ValueError) as error:
        raise unfit(name, value, KINDS.get(kind, kind.__name__), origin) from error
    if not abs(number) < math.inf:
        raise unfit(name, value, "a finite number", origin)
    return number


def dump_config(cfg: CfgNode, file: Path) -> None:
    """Write ``cfg`` as a YAML that `load_config` reads, without the keys that GraphGym adds while it runs."""
    with atomic_write(file, "w") as stream:
        stream.write(settings_of(cfg).dump())
