"""Settings that have no effect are said, and no configuration that is shipped has any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.gnn_check import unused_keys
from glem_graphgym.build.run import prepare
from glem_graphgym.config import load_config, unread_keys
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
    cfg.train.mode, cfg.model.type, cfg.gnn.layers_post_mp = "glem_gnn", model, 1
    for name, value in settings.items():
        cfg.gnn[name] = value
    assert unused_keys(cfg) == [f"gnn.{name}" for name in unused]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_no_shipped_configuration_sets_what_its_network_does_not_use(file: Path) -> None:
    load_config(cfg, file)
    if cfg.train.mode in MODES:
        assert unread_keys(cfg) == []
    if cfg.train.mode in MODES and MODES[cfg.train.mode].methods != ("LM",):
        assert unused_keys(cfg) == []


def test_a_run_says_which_keys_of_graphgyms_own_training_it_does_not_read(
    configure_run: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    options = ("train.batch_size", 64, "val.sampler", "neighbor", "optim.warmup_epochs", 5, "num_workers", 2)
    configure_run("train.mode", "glem_lm", *options)
    prepare(cfg)
    (said,) = (record.getMessage() for record in caplog.records if "without effect" in record.getMessage())
    assert said.startswith("train.mode glem_lm does not read train.batch_size (but lm.batch_size and gnn.batch_size), ")
    assert "val.sampler, optim.warmup_epochs (but with optim.scheduler constant_warmup" in said


@pytest.mark.parametrize(
    "options",
    [
        ("optim.warmup_epochs", 5, "optim.scheduler", "cosine_warmup"),
        ("model.loss_fun", "glem_pseudo_label", "train.eval_period", 2),
    ],
)
def test_keys_that_are_read_are_not_said_to_be_without_effect(
    configure_run: Callable[..., Path], options: tuple[object, ...]
) -> None:
    configure_run(*options)
    assert unread_keys(cfg) == []
