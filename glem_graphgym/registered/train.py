"""The train modes under their GraphGym names: ``train_dict[cfg.train.mode]()`` does a run in ``cfg.run_dir``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_train

from glem_graphgym import processes
from glem_graphgym.build.run import train_run
from glem_graphgym.config import ConfigError
from glem_graphgym.modes import MODES, Mode
from glem_graphgym.report import reliability, stats


def train(mode: str, *_: Any, overwrite: int = 0) -> None:
    """Do a run of train mode ``mode``, and write its tables: GraphGym's stats.json per split, and summary.json.

    The arguments of GraphGym's mains (loaders, model, optimizer, …) are ignored: a run makes its own from ``cfg``.

    Args:
        overwrite: number of seeds, from this one on, to do anew; 0 = none.

    Raises:
        ConfigError: ``train.mode`` differs from the mode that was called; or several processes are asked for, which
            GraphGym's mains do not connect.
    """
    if cfg.train.mode != mode:
        raise ConfigError(
            f"train.mode is '{cfg.train.mode}', but train_dict['{mode}'] was called; set train.mode to {mode}"
        )
    info = processes.rank_from_environment()
    if not processes.have_joined() and ((cfg.devices or 1) != 1 or info):
        raise ConfigError(
            f"devices is {cfg.devices} and {info.size if info else 1} processes were started, but this main trains in "
            "one; expected devices 1 and no torchrun, or `python -m glem_graphgym --cfg ...`, which connects its "
            "processes"
        )
    graph = train_run(cfg, overwrite)
    if processes.rank() == 0:
        run_dir = Path(cfg.run_dir)
        stats.finish_run(run_dir, cfg.round)
        properties = functools.partial(graph.properties, graph.split["test"])
        reliability.describe_run(run_dir, graph.label, graph.split, graph.class_names, properties)


def add_mode(name: str, mode: Mode) -> None:
    """Register ``mode`` as ``train.mode: name``; user code may add modes before it loads a configuration."""
    MODES[name] = mode
    register_train(name, functools.partial(train, name))


for _name, _mode in list(MODES.items()):
    add_mode(_name, _mode)
