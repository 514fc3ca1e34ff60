"""What all networks have in common: dropout in training only, refused arguments, published numbers of parameters."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from glem_graphgym.models.gamlp import GAMLP
from glem_graphgym.models.gat import GAT
from glem_graphgym.models.gcn import GCN
from glem_graphgym.models.hop_network import HopNetwork
from glem_graphgym.models.mlp import MLP, LayerStack
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.models.revgat import RevGAT
from glem_graphgym.models.sage import SAGE
from glem_graphgym.models.sagn import SAGN
from glem_graphgym.models.sgc import SGC
from glem_graphgym.models.sign import SIGN
from tests.models.conftest import NODES

DIM, CLASSES, HOPS, LABEL_HOPS = 6, 3, 3, 2
NETWORKS: dict[type[nn.Module], dict[str, Any]] = {
    **{stack: {"dim_hidden": 8, "num_layers": 3} for stack in (MLP, GCN, SAGE)},
    GAT: {"dim_hidden": 4, "num_layers": 3, "heads": 2},
    RevGAT: {"dim_hidden": 8, "num_layers": 5},
    SGC: {},
    SIGN: {"dim_hidden": 8, "hops": HOPS},
    SAGN: {"dim_hidden": 8, "hops": HOPS, "label_hops": LABEL_HOPS, "heads": 2},
    GAMLP: {"dim_hidden": 8, "hops": HOPS, "label_hops": LABEL_HOPS},
}


def build(network: type[nn.Module], **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return network(**{"dim_in": DIM, "dim_out": CLASSES, **NETWORKS[network], **changes})


def arguments_of(network: type[nn.Module]) -> set[str]:
    stack = inspect.signature(LayerStack).parameters if issubclass(network, LayerStack) else {}
    return {*inspect.signature(network).parameters, *stack}


@pytest.mark.parametrize("network", [network for network in NETWORKS if network is not SGC])
def test_each_dropout_acts_in_training_only_and_follows_the_seed(
    network: type[nn.Module], adjacency: Adjacency
) -> None:
    inputs: tuple[Any, ...] = (torch.randn(NODES, DIM), adjacency)
    if issubclass(network, HopNetwork):
        label_hops = None if network is SIGN else torch.rand(LABEL_HOPS, NODES, CLASSES)
        inputs = (torch.randn(HOPS + 1, NODES, DIM), label_hops)
    off = {name: 0.0 for name in arguments_of(network) if "drop" in name}
    plain = build(network, **off)
    assert torch.equal(plain(*inputs), plain(*inputs))
    for name in off:
        net = build(network, **{**off, name: 0.5})
        torch.manual_seed(1)
        first, other = net(*inputs), net(*inputs)
        torch.manual_seed(1)
        assert torch.equal(first, net(*inputs)), name
        assert not torch.equal(first, other), name
        plain.load_state_dict(net.state_dict())  # with the running statistics
        assert torch.equal(net.eval()(*inputs), plain.eval()(*inputs)), name


WRONG_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"dim_in": 0}, "dim_in is 0, expected at least 1"),
    ({"dim_out": 0}, "dim_out is 0"),
    ({"dim_hidden": 0}, "dim_hidden is 0"),
    ({"num_layers": 0}, "num_layers is 0, expected at least"),
    ({"output_layers": 0}, "num_layers is 0"),
    ({"hops": -1}, "hops is -1, expected at least 0"),
    ({"label_hops": -1}, "label_hops is -1"),
    ({"heads": 0}, "heads is 0, expected at least 1"),
    ({"dropout": 1.0}, "dropout is 1.0, expected a probability from 0 to below 1"),
    ({"input_dropout": -0.1}, "input_dropout is -0.1"),
    ({"attention_dropout": 1.0}, "attention_dropout is 1.0, expected a probability"),
    ({"label_dropout": 1.0}, "label_dropout is 1.0"),
    ({"edge_drop": 1.0}, "edge_drop is 1.0, expected a probability"),
    ({"norm": "group"}, "norm is 'group', expected one of batch, layer, none"),
    ({"activation": "tanh"}, "activation is 'tanh', expected one of sigmoid, relu, leaky_relu"),
    ({"alpha": 1.5}, "alpha is 1.5, expected a share"),
    ({"group": 1}, "group is 1, expected at least 2"),
    ({"group": 3}, "dim_hidden is 8, expected a multiple of group, 3"),
]


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [(network, *wrong) for network in NETWORKS for wrong in WRONG_ARGUMENTS if wrong[0].keys() <= arguments_of(network)]
    + [(RevGAT, {"num_layers": 1}, "num_layers is 1, expected at least 2")],
)
def test_bad_arguments_are_refused(network: type[nn.Module], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(network, **changes)


LABELLED = {"label_hops": 1}  # a label net on the last label hop, as the published ones have it


@pytest.mark.parametrize(
    ("network", "arguments", "options", "published"),
    [
        # OGB's leaderboard: the authors' RevGAT on ogbn-arxiv, whose input is 128 features and 40 labels.
        (RevGAT, (128 + 40, 256, 40, 5), {}, 2_098_256),
        # OGB's entries SIGN for ogbn-products and ogbn-arxiv: DGL's example, 512 hidden, 5 hops, 2 layers.
        (SIGN, (100, 512, 47, 5), {}, 3_483_703),
        (SIGN, (128, 512, 40, 5), {}, 3_566_128),
        # On ogbn-products SCR's README has SAGN+SCR-m, and on GIANT's embeddings, GLEM's setting; OGB's leaderboard
        # has plain SAGN (April 2021): 5 hops, no label net. SCR itself adds no parameters.
        (SAGN, (100, 512, 47, 3, 2), LABELLED, 2_179_678),
        (SAGN, (768, 256, 47, 3, 1), LABELLED, 1_154_654),
        (SAGN, (100, 512, 47, 5, 2), {}, 2_233_391),
        # OGB and the READMEs of GAMLP and SCR: GAMLP+RLU(+SCR) on ogbn-products; GIANT-XRT+GAMLP+SCR-m.
        (GAMLP, (100, 512, 47, 5), LABELLED, 3_335_831),
        (GAMLP, (768, 256, 47, 5), LABELLED, 2_144_151),
        # GAMLP's README has 16,308,751 for ogbn-papers100M, with a linear map of x and its PReLU, which the published
        # code makes though this run never uses them; here a part that is not used is not made.
        (GAMLP, (128, 1024, 172, 6, False, 6), LABELLED, 16_308_751 - (128 * 1024 + 1024 + 1)),
    ],
)
def test_published_parameter_counts(
    network: type[nn.Module], arguments: tuple[Any, ...], options: dict[str, Any], published: int
) -> None:
    assert sum(parameter.numel() for parameter in network(*arguments, **options).parameters()) == published
