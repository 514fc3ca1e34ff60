"""Adds our keys to GraphGym's configuration."""

from __future__ import annotations

from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_config
from yacs.config import CfgNode

from glem_graphgym.config import KEYS


@register_config("glem_graphgym")
def add_keys(cfg: CfgNode) -> None:
    """Add every key of `KEYS` that is not there yet, with its default, and the groups that GraphGym does not have."""
    for key in KEYS:
        group, name = key.name.split(".")
        if group not in cfg:
            cfg[group] = CfgNode()
        cfg[group].setdefault(name, key.default)


# PyG sets its cfg when it is imported, and its main does not call set_cfg again.
add_keys(cfg)
