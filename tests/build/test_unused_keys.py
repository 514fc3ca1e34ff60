"""Settings of ``gnn.*`` that a network does not use are said, and no configuration that is shipped has any."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.gnn_check import unused_keys
from glem_graphgym.config import load_config
from glem_graphgym.modes import MODES

SHIPPED = sorted(Path("configs_gg").glob("*.yaml"))


@pytest.mark.parametrize(
    ("model", "settings", "unused"),
    [
        ("glem_sage", {"hops": 7, "batch_size": 50, "residual": True}, ["batch_size", "hops"]),
        ("glem_sage", {"fan_out": [5, 5], "layers_mp": 2, "batch_size": 50, "agg": "max"}, ["agg"]),
        ("glem_gamlp", {"hops": 7, "batch_size": 50, "norm": "layer", "hop_activation": "relu"}, ["norm"]),
        ("glem_sgc", {"dropout": 0.3, "hops": 2}, ["dropout"]),
        ("gnn", {"hops": 7}, []),
    ],
)
def test_settings_that_a_network_does_not_use_are_found(model: str, settings: dict, unused: list[str]) -> None:
    cfg.model.type, cfg.gnn.layers_post_mp = model, 1
    for name, value in settings.items():
        cfg.gnn[name] = value
    assert unused_keys(cfg, joint=False) == [f"gnn.{name}" for name in unused]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_no_shipped_configuration_sets_what_its_network_does_not_use(file: Path) -> None:
    load_config(cfg, file)
    if cfg.train.mode in MODES and (mode := MODES[cfg.train.mode]).methods != ("LM",):
        assert unused_keys(cfg, mode.joint) == []
