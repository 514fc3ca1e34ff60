"""The train modes under GraphGym's names: ``train_dict[cfg.train.mode]()`` does a run under ``cfg.run_dir``."""

from __future__ import annotations

import functools

from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_train

from glem_graphgym.build.run import train_run
from glem_graphgym.config import ConfigError
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.modes import MODES


def train(mode: str, overwrite: int = 0) -> TextGraph:
    """Train as ``mode`` does, and return the graph; what stages leave is made into tables by `report.stats`.

    Args:
        overwrite: how many seeds, from this one on, are done anew; 0 = none.

    Raises:
        ConfigError: ``train.mode``, which decides much of a run, is another than the mode that was called.
    """
    if cfg.train.mode != mode:
        raise ConfigError(
            f"train.mode is '{cfg.train.mode}', but train_dict['{mode}'] was called; set train.mode to {mode}"
        )
    return train_run(cfg, overwrite)


for _mode in MODES:
    register_train(_mode, functools.partial(train, _mode))
