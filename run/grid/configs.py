"""Configurations from a base YAML and a grid; all are checked before the first is written."""

from __future__ import annotations

import copy
import re
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch_geometric.graphgym.config import cfg, set_cfg
from torch_geometric.graphgym.register import network_dict
from torch_geometric.graphgym.utils.comp_budget import params_count
from yacs.config import CfgNode

import glem_graphgym  # noqa: F401 - registers the plugin, whose keys and names a grid may use
from glem_graphgym.config import NULLABLE, ConfigError, load_config, typed_values
from glem_graphgym.config.yaml_text import YamlError, read_file
from glem_graphgym.files import atomic_write
from glem_graphgym.modes import MODES
from grid.space import Axis, GridError, Point, base_name, point_name
from grid.where import configs_folder

MADE_BY = "# Made by run/configs_gen.py"
TRAIN_LM_ON_GOLD = [name for name, mode in MODES.items() if mode.lm]
_MAX_ERRORS = 10

Config = dict[str, Any]


def read_base(file: str | Path | None, flag: str) -> Config:
    """The settings of the base YAML; {} without one. GridError if it is no YAML, or has a wrong key or value."""
    if file is None:
        return {}
    try:
        set_cfg(cfg)
        return typed_values(read_file(Path(file)), cfg, f"{flag} {file}")
    except YamlError as error:
        raise GridError(f"{flag} {file}: {error}") from error
    except ConfigError as error:
        raise GridError(str(error)) from error


def is_text(key: str) -> bool:
    """Whether a key of the configuration takes a string."""
    set_cfg(cfg)
    group, _, name = key.rpartition(".")
    node = cfg.get(group) if group else cfg
    return isinstance(node, CfgNode) and isinstance(node.get(name), str) and key not in NULLABLE


def make_configs(
    base_file: str | Path | None, grid_file: str | Path, points: Iterable[Point], budget: int | None
) -> dict[str, str]:
    """Name -> YAML text of every point, each loaded and checked as ``run/main.py`` would.

    The LM fine-tuned on gold is shared unless base or grid says otherwise: no result depends on it.

    Args:
        base_file: the settings that all points share; None: only GraphGym's defaults.
        grid_file: names the grid in messages and in ``out_dir``.
        budget: number of parameters that ``gnn.dim_inner`` is fitted to (`parameters_of`); None = not fitted.

    Raises:
        GridError: lists at most ten errors, with their lines of the grid.
    """
    base, name_prefix = read_base(base_file, "--config"), base_name(base_file)
    base["out_dir"] = str(configs_folder(base.get("out_dir") or "results", base_file, grid_file))
    checked_configs: dict[str, Config] = {}
    origins: dict[str, tuple[Point, str]] = {}
    errors: dict[str, None] = {}  # an ordered set
    with tempfile.TemporaryDirectory() as folder:
        for point in points:
            name = point_name(name_prefix, point, f"{grid_file}, line {point.block[0].line}")
            config = set_values(base, point, grid_file, base_file)
            if name in checked_configs:  # a point of two blocks is one configuration, unless aliases hide a difference
                earlier_point, settings = origins[name]
                if _dump(config) != settings:
                    raise GridError(
                        f"{grid_file}: the blocks at lines {earlier_point.block[0].line} and {point.block[0].line} "
                        f"both make '{name}', with different settings; give the axes in which they differ other aliases"
                    )
                continue
            checked_configs[name], origins[name] = config, (point, _dump(config))
            error = _complete_and_check(config, Path(folder) / f"{name}.yaml", budget)
            if error:
                errors[f"{_lines_of_error(grid_file, point.block, error)}: {error}"] = None
            if len(errors) == _MAX_ERRORS:
                break
    if errors:
        raise GridError("\n".join(errors) + "\nNothing was written.")
    header = f"{MADE_BY} from {Path(base_file or 'no base').name} and {Path(grid_file).name}; change those instead.\n"
    return {name: header + _dump(config) for name, config in checked_configs.items()}


def set_values(base: Config, point: Point, grid_file: str | Path, base_file: str | Path | None = None) -> Config:
    """A deep copy of ``base`` with the point's values."""
    config = copy.deepcopy(base)
    for axis, value in zip(point.block, point.values, strict=True):
        group, _, key = axis.key.rpartition(".")
        inner = config.setdefault(group, {}) if group else config
        if not isinstance(inner, dict):
            raise GridError(
                f"{grid_file}, line {axis.line}: {axis.key} is a key of the group '{group}', but {base_file} has "
                f"{group}: {inner!r}; expected a group of keys there"
            )
        inner[key] = copy.deepcopy(value)
    return config


def _complete_and_check(config: Config, file: Path, budget: int | None) -> str:
    """Share the LM and fit ``gnn.dim_inner`` to the budget; returns the configuration's error, "" if none."""
    file.write_text(_dump(config), encoding="utf-8")
    try:
        load_config(cfg, file)
        if cfg.train.mode in TRAIN_LM_ON_GOLD:
            config.setdefault("glem", {}).setdefault("share_lm_gold", True)
        if budget is not None:
            config.setdefault("gnn", {})["dim_inner"] = _fit_width(budget)
    except (ValueError, KeyError) as error:
        return str(error).replace(f"--cfg {file}: ", "").replace(f"{file}: ", "")
    finally:
        file.unlink()
    return ""


def _lines_of_error(grid_file: str | Path, block: Sequence[Axis], error: str) -> str:
    """The lines of the grid that an error comes from: the axes that it names, or the whole block."""
    named = [axis for axis in block if re.search(rf"(?<![\w.]){re.escape(axis.key)}(?![\w.])", error)]
    named = named or [axis for axis in block if error.startswith(f"{axis.key.partition('.')[0]} is ")]
    if named:
        return f"{grid_file}, line {', '.join(f'{axis.line} ({axis.key})' for axis in named)}"
    return f"{grid_file}, block of lines {block[0].line}-{block[-1].line}, or the base configuration"


def _dump(config: Config) -> str:
    return yaml.safe_dump(config, default_flow_style=False, allow_unicode=True)


# ---- computational budget -----------------------------------------------------------------------------------------


def parameters_of(budget_file: str | Path) -> int:
    """Number of parameters of a configuration's network, counted like GraphGym: one input and one output column."""
    try:
        load_config(cfg, budget_file)
        return _parameters(cfg.gnn.dim_inner)
    except (ValueError, KeyError) as error:
        raise GridError(f"--config_budget {budget_file}: {error}") from error


def _parameters(width: int) -> int:
    if cfg.model.type == "glem_lm":
        raise ValueError("model.type glem_lm has no width to fit; leave --config_budget out")
    cfg.gnn.dim_inner = width
    return params_count(network_dict[cfg.model.type](dim_in=1, dim_out=1))


def _fit_width(budget: int) -> int:
    """``gnn.dim_inner`` whose parameters are nearest to the budget: above it if ``model.match_upper``, else below."""
    high = 1
    while _parameters(high) < budget:
        high *= 2
        if high > 1 << 16:
            raise ValueError(f"gnn.dim_inner cannot reach the {budget} parameters of --config_budget")
    high = bisect_left(range(high), budget, lo=high // 2 + 1, key=_parameters)
    exact = _parameters(high) == budget
    return high if exact or cfg.model.match_upper else max(high - 1, 1)


# ---- writing ------------------------------------------------------------------------------------------------------


def write_configs(configs: dict[str, str], folder: Path) -> list[str]:
    """Write the configurations into ``folder``; finished ones (``*.yaml_done``) stay finished; returns notes.

    A finished one may differ in ``glem.share_lm_gold``, which no result depends on. Waiting configurations of an
    earlier grid or base are removed; files that this program did not make are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    finished, outdated = 0, []
    for name, text in configs.items():
        waiting_file, done_file = folder / f"{name}.yaml", folder / f"{name}.yaml_done"
        finished_text = done_file.read_text(encoding="utf-8", errors="replace") if done_file.exists() else None
        if finished_text is not None and (
            finished_text == text or _without_sharing(finished_text) == _without_sharing(text)
        ):
            finished += 1
            outdated += [waiting_file] if waiting_file.exists() else []
            continue
        with atomic_write(waiting_file, "w") as stream:
            stream.write(text)
    unlisted = [file for file in sorted(folder.glob("*.yaml")) if file.name.removesuffix(".yaml") not in configs]
    stale = [file for file in unlisted if file.read_text(encoding="utf-8", errors="replace").startswith(MADE_BY)]
    for file in (*stale, *outdated):
        file.unlink()
    dropped, foreign = len(stale) + len(outdated), [file.name for file in unlisted if file not in stale]
    notes = {
        f"{finished} of them are finished already (*.yaml_done)": finished > 0,
        f"{dropped} waiting configurations of an earlier grid or base were removed": dropped > 0,
        f"left alone, and run with the others: {', '.join(foreign)}": len(foreign) > 0,
    }
    return [note for note, applies in notes.items() if applies]


def _without_sharing(text: str) -> Any:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(config, dict) and isinstance(config.get("glem"), dict):
        config["glem"].pop("share_lm_gold", None)
        config = {key: value for key, value in config.items() if key != "glem" or value}
    return config
