"""GNNs and optimizers that build but cannot be trained are found before anything long begins."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.graphgym import register
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build import graph as loader
from glem_graphgym.build.gnn_check import check_network
from glem_graphgym.build.run import prepare
from glem_graphgym.config import ConfigError

CLASSES, WIDTH = 4, 32


class Foreign(nn.Module):
    """A network of some other plugin, right but for what a subclass does wrong."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)

    def forward(self, batch: Any) -> Any:
        return self.linear(batch.x), None


class NeedsArguments(Foreign):
    def __init__(self, dim_in: int, dim_out: int, depth: int) -> None:
        super().__init__(dim_in, dim_out)


class TakesTwo(Foreign):
    def forward(self, x: Any, edge_index: Any) -> Any:
        return self.linear(x), None


class TooWide(Foreign):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out + 1)


class OfTheGraph(Foreign):
    def forward(self, batch: Any) -> Any:
        return self.linear(batch.x).mean(0, keepdim=True), None


class WithoutGradients(Foreign):
    def forward(self, batch: Any) -> Any:
        return self.linear(batch.x).detach(), None


class CannotPredict(Foreign):
    def forward(self, batch: Any) -> Any:
        assert self.training, "only for training"
        return super().forward(batch)


class Drawing(Foreign):
    def forward(self, batch: Any) -> Any:
        random.random(), np.random.random(), torch.rand(3)  # noqa: NPY002
        return super().forward(batch)


def check() -> None:
    check_network(cfg, CLASSES, WIDTH)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (NeedsArguments, "model.type foreign cannot be built: TypeError: .*depth"),
        (TakesTwo, "cannot be the GNN of train.mode glem: TypeError: .*edge_index.*; expected a network"),
        (TooWide, r"of 8 nodes it gives \(8, 5\), expected \(8, 4\)"),
        (OfTheGraph, r"of 8 nodes it gives \(1, 4\), expected \(8, 4\)"),
        (WithoutGradients, "model.type foreign cannot be the GNN of train.mode glem: RuntimeError: .*grad"),
        (CannotPredict, "AssertionError: only for training"),
    ],
)
def test_a_network_that_cannot_be_trained(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch, network: type[nn.Module], message: str
) -> None:
    monkeypatch.setitem(register.network_dict, "foreign", network)
    configure("model.type", "foreign")
    with pytest.raises(ConfigError, match=message):
        check()


NETWORKS = ("glem_mlp", "glem_gcn", "glem_sage", "glem_gat", "glem_revgat", "glem_sgc", "glem_sign", "glem_sagn")


@pytest.mark.parametrize("network", [*NETWORKS, "glem_gamlp", "gnn"])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_networks_that_can(configure: Callable[..., None], network: str, precision: str) -> None:
    configure("model.type", network, "gnn.precision", precision, "dataset.node_encoder", False)
    check()
    if network not in ("glem_sgc", "glem_sign"):
        configure("model.type", network, "glem.label_input", True, "dataset.node_encoder", False)
        check()


def test_an_optimizer_that_cannot_be_made(configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(register.optimizer_dict, "broken", lambda params, base_lr, turbo: None)
    configure("optim.optimizer", "broken", "model.type", "glem_sage")
    with pytest.raises(ConfigError, match=r"optim.optimizer broken with optim.scheduler cos cannot be made"):
        check()
    cfg.train.mode = "glem_joint"
    check()  # where the LM's trains both


def test_later_draws_stay_what_they_were(configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(register.network_dict, "foreign", Drawing)
    configure("model.type", "foreign")

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(1))  # noqa: NPY002

    def seeded() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    seeded()
    wanted = draws()
    seeded()
    check()
    assert draws() == wanted


@pytest.mark.parametrize("options", [(), ("train.mode", "glem_joint")])
def test_it_is_found_before_texts_are_tokenised(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: Any
) -> None:
    monkeypatch.setitem(register.network_dict, "foreign", TooWide)
    monkeypatch.setattr(loader, "open_token_store", None)
    joint = ("gnn.fan_out", "[2, 2]", "optim.optimizer", "adamw", "optim.scheduler", "none") if options else ()
    configure("model.type", "foreign", *options, *joint)
    with pytest.raises(ConfigError, match=r"model.type foreign cannot be the GNN"):
        prepare(cfg)
    assert not (tmp_path / "datasets").exists()
