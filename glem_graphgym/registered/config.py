"""The configuration keys of this package, added to GraphGym's."""

from __future__ import annotations

from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_config
from yacs.config import CfgNode

from glem_graphgym.config import KEYS


@register_config("glem_graphgym")
def add_keys(cfg: CfgNode) -> None:
    """Set every key of `KEYS` to its default, and add the groups that GraphGym does not have."""
    for key in KEYS:
        group, name = key.name.split(".")
        if group not in cfg:
            cfg[group] = CfgNode()
        cfg[group][name] = key.default


# PyG has already set up its cfg when this module is imported, and its main does not call set_cfg again.
add_keys(cfg)
